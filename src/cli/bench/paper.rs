//! `tidegate bench paper`: the workload of the paper's evaluation, with its answer checked.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tidegate::config::Config;
use tidegate::engine::{End, Report};
use tidegate::graph::Graph;
use tidegate::jobs::arrivals::Arrivals;
use tidegate::jobs::paper;
use tidegate::operator::sink::Folded;
use tidegate::workload::paper::expected_checksum;

use super::latency::{self, Latency};
use super::phases::{Phases, WrittenBytes};
use super::place::{self, Place};
use crate::cli::duration;
use crate::cli::exit::{self, Failure};
use crate::cli::settings::{Alignment, Asked, ModeName, Workers};
use crate::cli::summary::{self, InputNumbers, quantile};
use crate::cli::watch::{self, Show};

/// Records where neither their number nor a rate is given.
const RECORDS_DEFAULT: u64 = 30_000_000;

/// Six operators, three full shuffles, a checksum known in closed form
///
/// As fast as it goes, or with --rate as an open loop: then each record's latency is counted from when
/// it was to be sent until its result is computed, and below it stands what a thread with nothing to do
/// was held up on the same cores ("hiccups"): the machine's share. The first second, or tenth of a
/// shorter run, is left out. A quantile with fewer than 10 samples beyond it is not printed.
#[derive(Args)]
pub struct Paper {
    /// Records to send through [default: 30000000; with --rate, as many as 10 s take]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    records: Option<u64>,
    /// Send so many records per second, whatever the engine does, and measure their latency
    #[arg(long, value_name = "N", value_parser = latency::parse_rate, allow_negative_numbers = true)]
    rate: Option<f64>,
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
    /// Completed of asked.
    delivered: Option<f64>,
    snapshot_ms_p50: Option<f64>,
    snapshot_ms_p99: Option<f64>,
    phases_us: Phases,
    written_bytes: WrittenBytes,
    inputs: InputNumbers,
    peak_rss_bytes: Option<u64>,
    #[serde(flatten)]
    latency: Latency,
}

/// What a key that occurs takes in the three tables, about.
const KEY_STATE_BYTES: u64 = 100;
/// What every key takes in the closed form that the checksum is compared with.
const KEY_CHECK_BYTES: u64 = 8;

/// Runs it.
pub fn run(arguments: &Paper) -> Result<(), Failure> {
    let handle = watch::stop_on_signals()?;
    let Paper { mode, interval, alignment, keys, .. } = arguments;
    let place = Place::of(*mode, arguments.snapshots.as_ref())?;
    let directory = place.as_ref().map(|place| place.path().to_path_buf());
    let asked = Asked { directory, interval: *interval, mode: *mode, alignment };
    let mut config = arguments.workers.config(asked)?;
    config.ring_slots = arguments.ring_slots.unwrap_or(config.ring_slots);
    config.validate()?;
    let records = arguments.records();
    place::refuse_keys(*keys, records.min(*keys), [KEY_STATE_BYTES, KEY_CHECK_BYTES])?;
    exit::warn_of_debug_build();
    let (graph, checksum, arrivals) = arguments.job(config.workers)?;
    let show = Show { unit: "records", progress: true, warning: None, until: None, memory: false };
    let (watched, hiccups) = latency::beside(arrivals.is_some(), config.workers, || {
        watch::run(&graph, &config, handle, show)
    })?;
    let report = watched.report;
    if report.end != End::Complete {
        return Err(Failure::Failed("stopped before the end: there is no result".into()));
    }
    let measured = arrivals.as_ref().zip(hiccups.as_ref());
    let numbers = Numbers {
        peak_rss_bytes: summary::peak_rss_bytes(),
        latency: measured.map_or_else(Latency::default, |(a, h)| Latency::of(a, h)),
        checksum: format!("{:016x}", checksum.sum()),
        expected_checksum: format!("{:016x}", expected_checksum(records, *keys)),
        ..numbers(arguments, &config, &report)
    };
    numbers.latency.warn();
    print(arguments, &numbers, &report)?;
    exit::check_checksum(&numbers.checksum, &numbers.expected_checksum)?;
    if arrivals.is_some() { latency::refuse_restarted(&report) } else { Ok(()) }
}

impl Paper {
    fn records(&self) -> u64 {
        let by_rate = || self.rate.map(|rate| latency::records_in(None, rate));
        self.records.or_else(by_rate).unwrap_or(RECORDS_DEFAULT)
    }

    /// With a rate, also what has arrived of it.
    fn job(&self, workers: usize) -> Result<(Graph, Folded, Option<Arrivals>), Failure> {
        let Some(rate) = self.rate else {
            let (graph, checksum) = paper::job(self.records(), self.keys)?;
            return Ok((graph, checksum, None));
        };
        let (graph, checksum, arrivals) =
            paper::timed_job((self.records(), self.keys), rate, workers)?;
        Ok((graph, checksum, Some(arrivals)))
    }
}

fn numbers(arguments: &Paper, config: &Config, report: &Report) -> Numbers {
    let seconds = report.elapsed.as_secs_f64();
    let snapshot_ns = &report.snapshot_ns;
    let interval_ms = config.snapshots.as_ref().map(|s| s.interval.as_secs_f64() * 1e3);
    Numbers {
        records: arguments.records(),
        keys: arguments.keys,
        parallelism: config.workers,
        mode: arguments.mode,
        interval_ms,
        ring_slots: config.ring_slots,
        debug_build: cfg!(debug_assertions),
        seconds,
        records_per_second: arguments.records() as f64 / seconds,
        checksum: String::new(),
        expected_checksum: String::new(),
        restarts: report.restarts,
        snapshots_asked: report.cadence.asked,
        snapshots_completed: report.cadence.completed,
        snapshots_aborted: report.cadence.aborted,
        delivered: summary::delivered(report),
        snapshot_ms_p50: quantile(snapshot_ns, 0.5, 1e6),
        snapshot_ms_p99: quantile(snapshot_ns, 0.99, 1e6),
        phases_us: Phases::of(report),
        written_bytes: WrittenBytes::of(report),
        inputs: InputNumbers::of(report),
        peak_rss_bytes: None,
        latency: Latency::default(),
    }
}

fn print(arguments: &Paper, numbers: &Numbers, report: &Report) -> Result<(), Failure> {
    if arguments.json {
        return summary::print_json(numbers);
    }
    let line = summary::line(report, "records");
    let latency = numbers.latency.text();
    let mut phases = String::new();
    if report.cadence.completed > 0 {
        phases = numbers.phases_us.text() + &numbers.written_bytes.text();
    }
    summary::print(&format!("{line}\n{latency}{phases}checksum {}\n", numbers.checksum))
}
