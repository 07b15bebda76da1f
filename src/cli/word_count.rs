//! `tidegate word-count`: counts the words of a text, exactly once.

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;
use tidegate::config::Config;
use tidegate::engine::{End, default_disk};
use tidegate::jobs::word_count::{Emit, WordCount};
use tidegate::operator::sink::Roll;

use super::duration;
use super::exit::{self, Failure};
use super::settings::Workers;
use super::summary::{self, SnapshotNumbers};
use super::watch::{self, Show, Watched};

const NO_SNAPSHOTS: &str = "without --snapshots a crash or a stop loses all that was done";

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
    /// Directory for the results, new or empty; names that begin with a dot are not committed yet
    /// [default: standard output]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Begin a new output file after this time; 0: with every snapshot
    #[arg(long, requires = "output", value_name = "DURATION", default_value = "1s", value_parser = duration::parse)]
    roll: Duration,
    /// Directory for snapshots: makes the results exactly-once
    #[arg(long, value_name = "DIR")]
    snapshots: Option<PathBuf>,
    /// From one snapshot to the next, at least 1ms
    #[arg(long, requires = "snapshots", value_name = "DURATION", default_value = "10ms", value_parser = duration::parse_interval)]
    interval: Duration,
    /// Read only so many lines per second; 0: reads nothing, for ever; stop it with a signal
    #[arg(long, value_name = "LINES", value_parser = rate, allow_negative_numbers = true)]
    rate: Option<f64>,
    /// Read only the first lines
    #[arg(long, value_name = "LINES")]
    limit: Option<u64>,
    /// Print one JSON object about the run to standard output; needs --output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    workers: Workers,
}

#[derive(Clone, Copy, ValueEnum)]
enum EmitName {
    Final,
    Updates,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate >= 0.0);
    rate.ok_or_else(|| "give a number of lines per second, 0 or more".into())
}

/// Arguments that fit together.
struct Resolved {
    job: WordCount,
    config: Config,
    json: bool,
}

impl Arguments {
    fn resolve(self) -> Result<Resolved, Failure> {
        if self.json && self.output.is_none() {
            return Err(Failure::Usage(
                "--json would mix with the results on standard output; give --output DIR too"
                    .into(),
            ));
        }
        if self.output.is_some() && self.output == self.snapshots {
            return Err(Failure::Usage(
                "--output and --snapshots name the same directory; give each its own".into(),
            ));
        }
        let config = self.workers.config(self.snapshots.map(|dir| (dir, self.interval)))?;
        let emit = match self.emit {
            EmitName::Final => Emit::Final,
            EmitName::Updates => Emit::Updates,
        };
        let roll = Roll { age: self.roll, ..Roll::default() };
        let (input, output, rate, limit) = (self.input, self.output, self.rate, self.limit);
        let job = WordCount { input, emit, output, roll, rate, limit };
        Ok(Resolved { job, config, json: self.json })
    }
}

/// The numbers of one run.
#[derive(Serialize)]
struct Numbers {
    end: &'static str,
    /// Last snapshot completed in this run.
    snapshot: Option<u64>,
    /// Snapshot that this run went on from.
    restored: Option<u64>,
    restarts: u32,
    lines: u64,
    seconds: f64,
    lines_per_second: f64,
    snapshots: SnapshotNumbers,
    peak_rss_bytes: Option<u64>,
}

impl Numbers {
    fn of(watched: &Watched) -> Self {
        let report = &watched.report;
        Self {
            end: summary::end_word(report.end),
            snapshot: watched.last_snapshot.map(|snapshot| snapshot.0),
            restored: report.restored.map(|snapshot| snapshot.0),
            restarts: report.restarts,
            lines: report.records,
            seconds: report.elapsed.as_secs_f64(),
            lines_per_second: summary::per_second(report),
            snapshots: SnapshotNumbers::of(report),
            peak_rss_bytes: summary::peak_rss_bytes(),
        }
    }
}

/// Runs it.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    // First: a signal that comes while the input is looked at stops the job like any other.
    let handle = watch::stop_on_signals()?;
    let resolved = arguments.resolve()?;
    let (disk, _) = default_disk();
    let graph = resolved.job.job(&*disk)?;
    let show = Show {
        unit: "lines",
        progress: resolved.job.output.is_some() || !io::stdout().is_terminal(),
        warning: resolved.config.snapshots.is_none().then_some(NO_SNAPSHOTS),
    };
    let watched = watch::run(&graph, &resolved.config, handle, show)?;
    if resolved.json {
        summary::print_json(&Numbers::of(&watched))?;
    }
    conclude(&watched, &resolved)
}

/// The last line, and whether the job came to its end.
fn conclude(watched: &Watched, resolved: &Resolved) -> Result<(), Failure> {
    let output = match &resolved.job.output {
        Some(directory) => format!("; output is in {}", directory.display()),
        None => String::new(),
    };
    let did = summary::line(&watched.report, "lines");
    match (watched.report.end, watched.last_snapshot) {
        (End::AlreadyComplete, _) => exit::say(&format!("already complete: nothing to do{output}")),
        (End::Complete, _) => exit::say(&format!("complete: {did}{output}")),
        (End::Stopped, Some(snapshot)) => exit::say(&format!(
            "stopped at snapshot {snapshot}; run the same command again to go on ({did})"
        )),
        (End::Stopped, None) => {
            return Err(Failure::Failed(format!(
                "stopped before the end of the input, and without --snapshots nothing of it was kept \
                 ({did})"
            )));
        }
    }
    Ok(())
}
