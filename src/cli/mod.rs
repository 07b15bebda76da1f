//! The command line of tidegate: one file per subcommand.
//!
//! Each subcommand turns its raw arguments into something valid and runs it; what a run is belongs
//! to the library. Standard output carries results only, everything else goes to standard error.
//! Exit codes are decided in [`exit`].

mod bench;
mod completions;
mod doctor;
mod duration;
mod exit;
mod graph;
mod iterate;
mod results;
mod settings;
mod snapshot;
mod summary;
mod text;
mod watch;
mod word_count;

use std::cell::RefCell;
use std::panic::{set_hook, take_hook};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use exit::Failure;
use tidegate::guard;

/// A thread-per-core stream engine with exactly-once snapshots every few milliseconds.
#[derive(Parser)]
#[command(name = "tidegate", version, max_term_width = 100, after_help = exit::HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    WordCount(word_count::Arguments),
    Iterate(iterate::Arguments),
    Bench(bench::Arguments),
    Graph(graph::Arguments),
    Snapshot(snapshot::Arguments),
    Text(text::Arguments),
    Doctor(doctor::Arguments),
    Completions(completions::Arguments),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    say_panics_once();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help goes to standard output, which may be closed: not our loss.
            _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    exit::code(run(arguments.command))
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::WordCount(arguments) => word_count::run(arguments),
        Command::Iterate(arguments) => iterate::run(arguments),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Graph(arguments) => graph::run(&arguments),
        Command::Snapshot(arguments) => snapshot::run(&arguments),
        Command::Text(arguments) => text::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Completions(arguments) => completions::run(&arguments),
    }
}

/// The engine reports a panic on its workers as an error with operator and task; the hook would say
/// it a second time. It still does where a backtrace is asked for. Any other panic is printed: one
/// on a thread that does not report, and one that comes while another unwinds, which ends the
/// process before anything is reported, so both are said.
fn say_panics_once() {
    thread_local! {
        static UNSAID: RefCell<String> = const { RefCell::new(String::new()) };
    }
    if std::env::var_os("RUST_BACKTRACE").is_some() {
        return;
    }
    let usual = take_hook();
    set_hook(Box::new(move |info| {
        if guard::takes() {
            UNSAID.set(info.to_string());
            return;
        }
        let unsaid = UNSAID.take();
        if !unsaid.is_empty() {
            exit::say(&format!("before, on the same thread: {unsaid}"));
        }
        usual(info);
    }));
}
