//! A job whose lines of results are what its user wants: the arguments of every such command, its
//! run, and how it says what became of it.

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;
use tidegate::config::Config;
use tidegate::engine::{End, Handle, Report};
use tidegate::graph::Graph;
use tidegate::jobs::{Emit, Output};
use tidegate::operator::sink::Roll;

use super::duration;
use super::exit::{self, Failure};
use super::settings::{Alignment, Asked, ModeName, Workers};
use super::summary::{self, InputNumbers, SnapshotNumbers};
use super::watch::{self, Show, Watched};

const NO_SNAPSHOTS: &str = "without --snapshots a crash or a stop loses all that was done";

/// Where results go, and what a later run goes on from.
#[derive(Args)]
pub struct Results {
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
    /// abs: Asynchronous Barrier Snapshotting; sync: stop the sources, run empty, write, go on;
    /// unaligned: abs with a bound on the wait for barriers
    #[arg(long, requires = "snapshots", default_value = "abs", value_parser = ModeName::with_directory(),
        value_name = "abs|sync|unaligned", hide_possible_values = true)]
    mode: ModeName,
    #[command(flatten)]
    alignment: Alignment,
    /// Print one JSON object about the run to standard output; needs --output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    workers: Workers,
}

/// `--emit`.
#[derive(Clone, Copy, ValueEnum)]
pub enum EmitName {
    Final,
    Updates,
}

impl From<EmitName> for Emit {
    fn from(name: EmitName) -> Self {
        match name {
            EmitName::Final => Self::Final,
            EmitName::Updates => Self::Updates,
        }
    }
}

/// Above any machine.
const RATE_MAX: f64 = 1e9;

/// Parses `--rate`.
pub fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| (0.0..=RATE_MAX).contains(rate));
    rate.ok_or_else(|| {
        format!("give a number per second from 0 to {RATE_MAX}; for full speed leave it out")
    })
}

impl Results {
    /// Where the job sends its results.
    pub fn output(&self) -> Output {
        Output { directory: self.output.clone(), roll: Roll { age: self.roll, ..Roll::default() } }
    }

    /// Arguments that fit together.
    pub fn resolve(self) -> Result<Resolved, Failure> {
        if self.json && self.output.is_none() {
            return Err(Failure::Usage(
                "--json would mix with the results on standard output; give --output DIR too"
                    .into(),
            ));
        }
        let (output, snapshots) = (self.output.as_ref(), self.snapshots.as_ref());
        let spill = self.alignment.directory();
        let places = [("--output", output), ("--snapshots", snapshots), ("--spill", spill)];
        let places = places.map(|(name, place)| (name, place.and_then(|place| whole(place))));
        for (number, (name, place)) in places.iter().enumerate() {
            let same = |(_, other): &&(&str, Option<PathBuf>)| place.is_some() && other == place;
            if let Some((other, _)) = places[number + 1..].iter().find(same) {
                return Err(Failure::Usage(format!(
                    "{name} and {other} name the same directory; give each its own"
                )));
            }
        }
        let config = self.workers.config(Asked {
            directory: self.snapshots,
            interval: self.interval,
            mode: self.mode,
            alignment: &self.alignment,
        })?;
        Ok(Resolved { output: self.output, config, json: self.json })
    }
}

/// The path without links and dots, so that one place has one name; what does not exist yet keeps its links.
fn whole(path: &Path) -> Option<PathBuf> {
    path.canonicalize().or_else(|_| std::path::absolute(path)).ok()
}

/// What a job reads, in the plural.
#[derive(Clone, Copy)]
pub enum Unit {
    Lines,
    Edges,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Lines => "lines",
            Self::Edges => "edges",
        }
    }

    fn numbers(self, report: &Report) -> Read {
        let (count, per_second) = (report.records, summary::per_second(report));
        match self {
            Self::Lines => Read::Lines { lines: count, lines_per_second: per_second },
            Self::Edges => Read::Edges { edges: count, edges_per_second: per_second },
        }
    }
}

/// What was read.
#[derive(Serialize)]
#[serde(untagged)]
enum Read {
    Lines { lines: u64, lines_per_second: f64 },
    Edges { edges: u64, edges_per_second: f64 },
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
    #[serde(flatten)]
    read: Read,
    seconds: f64,
    snapshots: SnapshotNumbers,
    inputs: InputNumbers,
    peak_rss_bytes: Option<u64>,
}

impl Numbers {
    fn of(watched: &Watched, unit: Unit) -> Self {
        let report = &watched.report;
        Self {
            end: summary::end_word(report.end),
            snapshot: watched.last_snapshot.map(|snapshot| snapshot.0),
            restored: report.restored.map(|snapshot| snapshot.0),
            restarts: report.restarts,
            read: unit.numbers(report),
            seconds: report.elapsed.as_secs_f64(),
            snapshots: SnapshotNumbers::of(report),
            inputs: InputNumbers::of(report),
            peak_rss_bytes: summary::peak_rss_bytes(),
        }
    }
}

/// How a job is run, and what is said of it.
pub struct Resolved {
    output: Option<PathBuf>,
    config: Config,
    json: bool,
}

impl Resolved {
    /// Runs `graph`, which reads `unit`, until its end or until `handle` stops it.
    pub fn run(&self, graph: &Graph, handle: Handle, unit: Unit) -> Result<(), Failure> {
        let show = Show {
            unit: unit.name(),
            progress: self.output.is_some() || !io::stdout().is_terminal(),
            warning: self.config.snapshots.is_none().then_some(NO_SNAPSHOTS),
            until: None,
            memory: false,
        };
        let watched = watch::run(graph, &self.config, handle, show)?;
        if self.json {
            summary::print_json(&Numbers::of(&watched, unit))?;
        }
        conclude(&watched, self.output.as_deref(), unit)
    }
}

/// The last line, and whether the job came to its end.
fn conclude(watched: &Watched, output: Option<&Path>, unit: Unit) -> Result<(), Failure> {
    let output = match output {
        Some(directory) => format!("; output is in {}", directory.display()),
        None => String::new(),
    };
    let did = summary::line(&watched.report, unit.name());
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
