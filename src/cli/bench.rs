//! `tidegate bench paper`: the workload of the paper's evaluation, with its answer checked.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;
use tempfile::TempDir;
use tidegate::config::Config;
use tidegate::engine::{End, Report};
use tidegate::error::Error;
use tidegate::jobs::paper;
use tidegate::workload::paper::expected_checksum;

use super::duration;
use super::exit::{self, Failure};
use super::settings::{Alignment, Asked, ModeName, Workers};
use super::summary::{self, quantile};
use super::watch::{self, Show};

/// Measure the engine, and check what it computes
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    workload: Workload,
}

#[derive(Subcommand)]
enum Workload {
    Paper(Paper),
}

/// Six operators, three full shuffles, a checksum known in closed form
#[derive(Args)]
struct Paper {
    /// Records to send through
    #[arg(long, value_name = "N", default_value_t = 30_000_000)]
    records: u64,
    /// Distinct keys
    #[arg(long, value_name = "K", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// none: no snapshots; abs: Asynchronous Barrier Snapshotting; sync: stop the sources, run empty,
    /// write, go on; unaligned: abs with a bound on the wait for barriers
    #[arg(long, default_value = "none", value_parser = ModeName::parser(["none", "abs", "sync", "unaligned"]),
        value_name = "none|abs|sync|unaligned", hide_possible_values = true)]
    mode: ModeName,
    /// From one snapshot to the next, at least 1ms
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = duration::parse_interval)]
    interval: Duration,
    /// Directory for snapshots, new or empty; its file system is what is measured
    /// [default: a temporary directory, removed afterwards]
    #[arg(long, value_name = "DIR")]
    snapshots: Option<PathBuf>,
    /// Slots of each ring between two tasks, a power of two [default: 8192]
    #[arg(long, value_name = "N")]
    ring_slots: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    alignment: Alignment,
    #[command(flatten)]
    workers: Workers,
}

/// The numbers of one run.
#[derive(Serialize)]
struct Numbers {
    records: u64,
    keys: u64,
    parallelism: usize,
    mode: ModeName,
    interval_ms: Option<f64>,
    ring_slots: usize,
    debug_build: bool,
    seconds: f64,
    records_per_second: f64,
    checksum: String,
    expected_checksum: String,
    restarts: u32,
    snapshots_asked: u64,
    snapshots_completed: u64,
    snapshots_aborted: u64,
    snapshot_ms_p50: Option<f64>,
    snapshot_ms_p99: Option<f64>,
    capture_us_p50: Option<f64>,
    capture_us_p99: Option<f64>,
    capture_us_max: Option<f64>,
    peak_rss_bytes: Option<u64>,
}

/// What a key that occurs takes in the three tables, about.
const KEY_STATE_BYTES: u64 = 100;
/// What every key takes in the closed form that the checksum is compared with.
const KEY_CHECK_BYTES: u64 = 8;

/// Runs it.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.workload {
        Workload::Paper(paper) => run_paper(&paper),
    }
}

fn run_paper(arguments: &Paper) -> Result<(), Failure> {
    let handle = watch::stop_on_signals()?;
    let Paper { mode, interval, alignment, .. } = arguments;
    if *mode == ModeName::None && arguments.snapshots.is_some() {
        return Err(Failure::Usage("--snapshots needs --mode abs, sync or unaligned".into()));
    }
    let place = Place::of(arguments)?;
    let directory = place.as_ref().map(|place| place.path().to_path_buf());
    let asked = Asked { directory, interval: *interval, mode: *mode, alignment };
    let mut config = arguments.workers.config(asked)?;
    config.ring_slots = arguments.ring_slots.unwrap_or(config.ring_slots);
    config.validate()?;
    refuse_keys(arguments, summary::available_bytes())?;
    if cfg!(debug_assertions) {
        exit::say("warning: a debug build; its figures mean nothing");
    }
    let (graph, checksum) = paper::job(arguments.records, arguments.keys)?;
    let show = Show { unit: "records", progress: true, warning: None };
    let report = watch::run(&graph, &config, handle, show)?.report;
    if report.end != End::Complete {
        return Err(Failure::Failed("stopped before the end: there is no result".into()));
    }
    let peak_rss_bytes = summary::peak_rss_bytes();
    let expected = expected_checksum(arguments.records, arguments.keys);
    let numbers = Numbers {
        peak_rss_bytes,
        checksum: format!("{:016x}", checksum.sum()),
        expected_checksum: format!("{expected:016x}"),
        ..numbers(arguments, &config, &report)
    };
    print(arguments, &numbers, &report)?;
    if checksum.sum() == expected {
        return Ok(());
    }
    Err(Failure::WrongResult(format!(
        "checksum {} differs from the expected {}: records were lost, repeated or changed",
        numbers.checksum, numbers.expected_checksum
    )))
}

fn numbers(arguments: &Paper, config: &Config, report: &Report) -> Numbers {
    let seconds = report.elapsed.as_secs_f64();
    let (snapshot_ns, capture_ns) = (&report.snapshot_ns, &report.capture_ns);
    let interval_ms = config.snapshots.as_ref().map(|s| s.interval.as_secs_f64() * 1e3);
    Numbers {
        records: arguments.records,
        keys: arguments.keys,
        parallelism: config.workers,
        mode: arguments.mode,
        interval_ms,
        ring_slots: config.ring_slots,
        debug_build: cfg!(debug_assertions),
        seconds,
        records_per_second: arguments.records as f64 / seconds,
        checksum: String::new(),
        expected_checksum: String::new(),
        restarts: report.restarts,
        snapshots_asked: report.cadence.asked,
        snapshots_completed: report.cadence.completed,
        snapshots_aborted: report.cadence.aborted,
        snapshot_ms_p50: quantile(snapshot_ns, 0.5, 1e6),
        snapshot_ms_p99: quantile(snapshot_ns, 0.99, 1e6),
        capture_us_p50: quantile(capture_ns, 0.5, 1e3),
        capture_us_p99: quantile(capture_ns, 0.99, 1e3),
        capture_us_max: quantile(capture_ns, 1.0, 1e3),
        peak_rss_bytes: None,
    }
}

fn print(arguments: &Paper, numbers: &Numbers, report: &Report) -> Result<(), Failure> {
    if arguments.json {
        return summary::print_json(numbers);
    }
    let line = summary::line(report, "records");
    summary::print(&format!("{line}\nchecksum {}\n", numbers.checksum))
}

/// Where the snapshots of a measurement go.
enum Place {
    Given(PathBuf),
    Temporary(TempDir),
}

impl Place {
    fn of(arguments: &Paper) -> Result<Option<Self>, Failure> {
        match (arguments.mode, &arguments.snapshots) {
            (ModeName::None, _) => Ok(None),
            (_, Some(directory)) => {
                refuse_used(directory)?;
                Ok(Some(Self::Given(directory.clone())))
            }
            (_, None) => {
                let directory = tempfile::Builder::new().prefix("tidegate-bench-").tempdir();
                let parent = std::env::temp_dir();
                let directory = directory.map_err(Error::io("create a directory in", parent))?;
                Ok(Some(Self::Temporary(directory)))
            }
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Given(directory) => directory,
            Self::Temporary(directory) => directory.path(),
        }
    }
}

/// Keys that do not fit into memory would end the process in the middle of its run.
fn refuse_keys(arguments: &Paper, available_bytes: Option<u64>) -> Result<(), Failure> {
    let (keys, occurring) = (arguments.keys, arguments.keys.min(arguments.records));
    let state = occurring.saturating_mul(KEY_STATE_BYTES);
    let bytes = keys.saturating_mul(KEY_CHECK_BYTES).saturating_add(state);
    match available_bytes.filter(|available| bytes > *available) {
        None => Ok(()),
        Some(available) => Err(Failure::Engine(Error::Config {
            setting: "keys".into(),
            value: keys.to_string(),
            reason: format!(
                "their tables and the check of the checksum take about {} MiB, and {} MiB of \
                 memory are available; {} keys fit",
                bytes >> 20,
                available >> 20,
                available / (KEY_STATE_BYTES + KEY_CHECK_BYTES)
            ),
        })),
    }
}

/// A run that goes on from an earlier one would measure only its rest.
fn refuse_used(directory: &Path) -> Result<(), Failure> {
    let is_used = std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some());
    if !is_used {
        return Ok(());
    }
    let reason = "it is not empty, and a measurement begins anew; name a new directory".into();
    Err(Failure::Engine(Error::Directory { path: directory.to_path_buf(), reason }))
}
