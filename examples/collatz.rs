//! How many steps does each number take to 1, if even numbers are halved and odd ones become 3n + 1?
//!
//! The smallest useful loop: its body sends a record round again or lets it out, and how often a record
//! goes round depends on the record. The loop ends by itself when its input has ended and nothing goes
//! round any more. Snapshots are taken meanwhile: what goes round at the moment of one is a part of it.
//!
//! ```sh
//! cargo run --release --example collatz
//! ```

use std::process::ExitCode;
use std::time::Duration;

use tidegate::config::{Config, Snapshots};
use tidegate::error::Result;
use tidegate::operator::sink::Collect;
use tidegate::operator::source::Generator;
use tidegate::operator::split::Side;
use tidegate::record::Collector;
use tidegate::stream::Job;

const NUMBERS: u64 = 20_000;

fn next(at: u64) -> u64 {
    if at.is_multiple_of(2) { at / 2 } else { 3 * at + 1 }
}

fn main() -> Result<ExitCode> {
    let job = Job::new("collatz");
    let (sink, results) = Collect::new();
    let numbers = |index, out: &mut Collector<u64>| out.push(index + 1);
    job.source("numbers", Generator::new("1 to N", NUMBERS, numbers))
        // The number, where it is now, and its steps so far.
        .map("begin", |number| (number, number, 0_u64))
        .iterate("again", |walks| {
            let (on, arrived) = walks.split("arrived?", |(number, at, steps)| {
                if at == 1 { Side::Right((number, steps)) } else { Side::Left((number, at, steps)) }
            });
            (on.map("step", |(number, at, steps)| (number, next(at), steps + 1)), arrived)
        })
        .sink("out", sink);

    let snapshots = tempfile::tempdir().expect("a temporary directory");
    let every = Snapshots::every(Duration::from_millis(10), snapshots.path());
    let report = job.run(&Config::workers(1).with_snapshots(every))?;

    let mut found = results.take();
    found.sort_unstable();
    let longest = found.iter().max_by_key(|(_, steps)| *steps);
    println!(
        "{} numbers, longest walk (number, steps) {longest:?}, {} snapshots",
        found.len(),
        report.cadence.completed
    );
    if !found.into_iter().eq((1..=NUMBERS).map(|number| (number, steps(number)))) {
        eprintln!("wrong: a plain loop counts other steps");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// The same without the engine.
fn steps(number: u64) -> u64 {
    std::iter::successors(Some(number), |at| (*at != 1).then(|| next(*at))).count() as u64 - 1
}
