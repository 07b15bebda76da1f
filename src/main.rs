//! The command line: raw arguments, then a resolved configuration, then a run.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
