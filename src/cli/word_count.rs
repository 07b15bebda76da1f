//! `tidegate word-count`: counts the words of a text, exactly once.

use std::path::PathBuf;

use clap::Args;
use tidegate::engine::default_disk;
use tidegate::jobs::word_count::WordCount;

use super::exit::Failure;
use super::results::{EmitName, Results, Unit, rate};
use super::watch;

/// Count the words of a text, exactly once
///
/// A word is a maximal run of bytes other than ASCII white space; a line of output is word, tab,
/// count. Run the same command again after a crash or a stop to go on from the last snapshot.
#[derive(Args)]
pub struct Arguments {
    /// Text file to read [default: generated text; see `tidegate text`]
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// final: each word once with its count; updates: every new count of every word
    #[arg(long, value_enum, default_value_t = EmitName::Final, value_name = "final|updates", hide_possible_values = true)]
    emit: EmitName,
    /// Read only so many lines per second; 0: reads nothing, for ever; stop it with a signal
    #[arg(long, value_name = "LINES", value_parser = rate, allow_negative_numbers = true)]
    rate: Option<f64>,
    /// Read only the first lines
    #[arg(long, value_name = "LINES")]
    limit: Option<u64>,
    #[command(flatten)]
    results: Results,
}

/// Runs it.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    // First: a signal that comes while the input is looked at stops the job like any other.
    let handle = watch::stop_on_signals()?;
    let Arguments { input, emit, rate, limit, results } = arguments;
    let job = WordCount { input, emit: emit.into(), output: results.output(), rate, limit };
    let resolved = results.resolve()?;
    resolved.run(&job.job(&*default_disk().0)?, handle, Unit::Lines)
}
