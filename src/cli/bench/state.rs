//! `tidegate bench state`: snapshots of state of a chosen size, under updates that are even or skewed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;
use tidegate::clock;
use tidegate::config::Config;
use tidegate::engine::{End, Report, default_disk};
use tidegate::error::Error;
use tidegate::jobs::timetable::Timing;
use tidegate::jobs::updates::{KEY_BYTES, Updates};
use tidegate::store;
use tidegate::workload::ranks::RANKS_MAX;
use tidegate::workload::updates::{Draw, Skew};

use super::latency::{self, Latency};
use super::phases::{Phases, WrittenBytes};
use super::place::{self, Place};
use super::restart::{self, GoneOn, Restart};
use crate::cli::duration;
use crate::cli::exit::{self, Failure};
use crate::cli::settings::{Alignment, Asked, ModeName, Workers};
use crate::cli::summary::{self, InputNumbers, quantile};
use crate::cli::watch::{self, Show};

/// Updates where neither their number nor a rate is given.
const RECORDS_DEFAULT: u64 = 10_000_000;
/// What a table takes of memory for a byte in its slots, at most: pages are between half and wholly
/// full, and a page that changes while it is being saved is there twice.
const TABLE_FACTOR: u64 = 3;
/// What every key takes in the count that the checksum is compared with, and in the table of Zipf's law.
const KEY_CHECK_BYTES: u64 = 16;

/// One operator with a value for each of many keys: what its snapshots cost
///
/// Every key is loaded once; then keys are updated, drawn evenly or by Zipf's law, and that is what is
/// measured. Snapshots are taken while keys are loaded too, and count in the figures of snapshots. The
/// result is compared with one that is counted without the engine.
#[derive(Args)]
pub struct State {
    /// Keys, all with a value from the beginning
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: u64,
    /// Bytes of a value: 8, 16, 32, 64, 128, 256, 512 or 1024
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub value_bytes: usize,
    /// uniform: every key as often as any other; zipf: the r-th most frequent in proportion to 1/r
    #[arg(
        long,
        default_value = "uniform",
        value_name = "uniform|zipf",
        hide_possible_values = true
    )]
    pub skew: SkewName,
    /// Updates to send [default: 10000000; with --rate, as many as --seconds take]
    #[arg(long, value_name = "N", conflicts_with = "seconds", value_parser = clap::value_parser!(u64).range(1..))]
    records: Option<u64>,
    /// Send updates at --rate for so many seconds [default: 10]
    #[arg(long, value_name = "N", requires = "rate", value_parser = clap::value_parser!(u32).range(1..))]
    seconds: Option<u32>,
    /// Send so many updates per second, whatever the engine does, and measure their latency
    #[arg(long, value_name = "N", value_parser = latency::parse_rate, allow_negative_numbers = true)]
    pub rate: Option<f64>,
    /// none: no snapshots; abs: Asynchronous Barrier Snapshotting; sync: stop the sources, run empty,
    /// write, go on
    #[arg(long, default_value = "abs", value_parser = ModeName::parser(["none", "abs", "sync"]),
        value_name = "none|abs|sync", hide_possible_values = true)]
    pub mode: ModeName,
    /// From one snapshot to the next, at least 1ms
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = duration::parse_interval)]
    pub interval: Duration,
    /// Directory for snapshots, new or empty; its file system is what is measured
    /// [default: a temporary directory, removed afterwards]
    #[arg(long, value_name = "DIR")]
    snapshots: Option<PathBuf>,
    /// Afterwards run the job again from its last snapshot, in a process of its own, and measure how long
    /// that takes while updates come at the same rate, or without one as fast as they are taken
    #[arg(long)]
    restart: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub workers: Workers,
    /// What `--restart` runs: goes on from the snapshots; the process was started then.
    #[arg(long, hide = true, value_name = "NS", requires = "snapshots")]
    go_on_since: Option<u64>,
}

/// `--skew`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SkewName {
    Uniform,
    Zipf,
}

/// The numbers of one run.
#[derive(Serialize)]
struct Numbers {
    keys: u64,
    value_bytes: usize,
    skew: SkewName,
    parallelism: usize,
    mode: ModeName,
    interval_ms: Option<f64>,
    debug_build: bool,
    /// Updates, without the loading of keys.
    records: u64,
    load_seconds: f64,
    /// From when every key was loaded to the last result.
    seconds: f64,
    updates_per_second: f64,
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
    /// What the newest snapshot on disk holds.
    snapshot_bytes: Option<u64>,
    phases_us: Phases,
    written_bytes: WrittenBytes,
    inputs: InputNumbers,
    state_bytes: u64,
    /// Resident before the job, its draws included.
    rss_bytes_before: Option<u64>,
    /// The median while keys were updated.
    steady_rss_bytes: Option<u64>,
    peak_rss_bytes: Option<u64>,
    #[serde(flatten)]
    latency: Latency,
    restart: Option<Restart>,
}

/// Runs it.
pub fn run(arguments: &State) -> Result<(), Failure> {
    let handle = watch::stop_on_signals()?;
    if arguments.restart && arguments.mode == ModeName::None {
        let why = "--restart needs snapshots to go on from: give --mode abs or sync";
        return Err(Failure::Usage(why.into()));
    }
    let place = match (arguments.go_on_since, &arguments.snapshots) {
        (Some(_), Some(directory)) => Some(Place::Given(directory.clone())),
        _ => Place::of(arguments.mode, arguments.snapshots.as_ref())?,
    };
    let config = arguments.config(place.as_ref())?;
    let draw = arguments.draw()?;
    exit::warn_of_debug_build();
    let timing = arguments.timing();
    let updates = Updates::new(&draw, arguments.value_bytes, timing, config.workers)?;
    if let Some(since_ns) = arguments.go_on_since {
        let gone_on = GoneOn::run(&updates, &config, handle, since_ns)?;
        return summary::print_json(&gone_on);
    }
    summary::forget_peak_rss();
    let (rss_bytes_before, began_ns) = (summary::peak_rss_bytes(), clock::now_ns());
    let (arrivals, records) = (updates.arrivals.clone(), arguments.records());
    let until = timing.held_after.map(|held| {
        let (arrivals, all) = (arrivals.clone(), timing.loaded + held);
        Box::new(move || arrivals.records() >= all) as Box<dyn Fn() -> bool>
    });
    let wanted = if until.is_some() { End::Stopped } else { End::Complete };
    let show = Show { unit: "records", progress: true, warning: None, until, memory: true };
    let (watched, hiccups) = latency::beside(arguments.rate.is_some(), config.workers, || {
        watch::run(&updates.graph, &config, handle, show)
    })?;
    let report = &watched.report;
    if report.end != wanted || arrivals.records() < timing.loaded + records {
        return Err(Failure::Failed("stopped before the end: there is no result".into()));
    }
    let peak_rss_bytes = summary::peak_rss_bytes();
    let restart = match (&place, arguments.restart) {
        (Some(place), true) => Some(restart::run(arguments, &config, place.path())?),
        _ => None,
    };
    let started_ns = arrivals.timetable().started_ns().unwrap_or(began_ns);
    let seconds = arrivals.took_ns() as f64 / 1e9;
    let numbers = Numbers {
        load_seconds: started_ns.saturating_sub(began_ns) as f64 / 1e9,
        seconds,
        updates_per_second: records as f64 / seconds.max(1e-9),
        checksum: format!("{:016x}", updates.checksum.sum()),
        expected_checksum: format!("{:016x}", updates.expected_checksum(records)),
        rss_bytes_before,
        steady_rss_bytes: watched.resident_bytes_since(started_ns),
        peak_rss_bytes,
        snapshot_bytes: place.as_ref().and_then(newest_bytes),
        latency: hiccups.map_or_else(Latency::default, |found| Latency::of(&arrivals, &found)),
        restart,
        ..numbers(arguments, &config, report)
    };
    numbers.latency.warn();
    print(arguments, &numbers, report)?;
    exit::check_checksum(&numbers.checksum, &numbers.expected_checksum)?;
    if let Some(restart) = &numbers.restart {
        let expected = updates.expected_checksum(timing.records);
        exit::check_checksum(&restart.gone_on.checksum, &format!("{expected:016x}"))?;
    }
    if arguments.rate.is_some() { latency::refuse_restarted(report) } else { Ok(()) }
}

impl State {
    /// Updates that are measured.
    pub fn records(&self) -> u64 {
        let seconds = self.seconds.map(f64::from);
        let by_rate = || self.rate.map(|rate| latency::records_in(seconds, rate));
        self.records.or_else(by_rate).unwrap_or(RECORDS_DEFAULT)
    }

    /// A job that is to be gone on from is held before its end.
    fn timing(&self) -> Timing {
        let (records, loaded) = (self.records(), self.keys);
        let goes_on = self.go_on_since.is_some();
        let is_continued = self.restart || goes_on;
        let after = if is_continued { restart::records(self.rate, self.state_bytes()) } else { 0 };
        let held_after = self.restart.then_some(records);
        let sent_before = if goes_on { records } else { 0 };
        let records = records + after;
        Timing { loaded, records, held_after, sent_before, per_second: self.rate }
    }

    fn state_bytes(&self) -> u64 {
        self.keys * (KEY_BYTES + self.value_bytes) as u64
    }

    fn config(&self, place: Option<&Place>) -> Result<Config, Failure> {
        let alignment = Alignment::default();
        let directory = place.map(|place| place.path().to_path_buf());
        let (interval, mode) = (self.interval, self.mode);
        self.workers.config(Asked { directory, interval, mode, alignment: &alignment })
    }

    /// Its table is made here, so what does not fit is refused before.
    fn draw(&self) -> Result<Arc<Draw>, Failure> {
        let slot_bytes = (KEY_BYTES + self.value_bytes) as u64;
        place::refuse_keys(self.keys, self.keys, [slot_bytes * TABLE_FACTOR, KEY_CHECK_BYTES])?;
        let skew = match self.skew {
            SkewName::Uniform => Skew::Uniform,
            SkewName::Zipf if self.keys > RANKS_MAX as u64 => {
                return Err(Failure::Engine(Error::Config {
                    setting: "keys".into(),
                    value: self.keys.to_string(),
                    reason: format!("with --skew zipf there are at most {RANKS_MAX}"),
                }));
            }
            SkewName::Zipf => Skew::Zipf,
        };
        Ok(Arc::new(Draw::new(skew, self.keys)))
    }
}

fn numbers(arguments: &State, config: &Config, report: &Report) -> Numbers {
    let cadence = report.cadence;
    let interval_ms = config.snapshots.as_ref().map(|s| s.interval.as_secs_f64() * 1e3);
    Numbers {
        keys: arguments.keys,
        value_bytes: arguments.value_bytes,
        skew: arguments.skew,
        parallelism: config.workers,
        mode: arguments.mode,
        interval_ms,
        debug_build: cfg!(debug_assertions),
        records: arguments.records(),
        load_seconds: 0.0,
        seconds: 0.0,
        updates_per_second: 0.0,
        checksum: String::new(),
        expected_checksum: String::new(),
        restarts: report.restarts,
        snapshots_asked: cadence.asked,
        snapshots_completed: cadence.completed,
        snapshots_aborted: cadence.aborted,
        delivered: summary::delivered(report),
        snapshot_ms_p50: quantile(&report.snapshot_ns, 0.5, 1e6),
        snapshot_ms_p99: quantile(&report.snapshot_ns, 0.99, 1e6),
        snapshot_bytes: None,
        phases_us: Phases::of(report),
        written_bytes: WrittenBytes::of(report),
        inputs: InputNumbers::of(report),
        state_bytes: arguments.state_bytes(),
        rss_bytes_before: None,
        steady_rss_bytes: None,
        peak_rss_bytes: None,
        latency: Latency::default(),
        restart: None,
    }
}

/// What the newest snapshot that was kept holds.
fn newest_bytes(place: &Place) -> Option<u64> {
    let kept = store::list(&*default_disk().0, place.path()).ok()?;
    kept.last()?.manifest.as_ref().map(|manifest| manifest.state_bytes())
}

fn print(arguments: &State, numbers: &Numbers, report: &Report) -> Result<(), Failure> {
    if arguments.json {
        return summary::print_json(numbers);
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let Numbers { records, seconds, updates_per_second, load_seconds, state_bytes, .. } = numbers;
    let mut text = format!(
        "{} in {seconds:.2} s ({updates_per_second:.0} per second), keys loaded in {load_seconds:.2} s\n",
        summary::counted(*records, "updates"),
    );
    if report.cadence.asked > 0 {
        text.push_str(&format!(
            "snapshots: {} asked, {} completed, {} given up; the newest holds {:.1} MiB\n",
            numbers.snapshots_asked,
            numbers.snapshots_completed,
            numbers.snapshots_aborted,
            mib(numbers.snapshot_bytes.unwrap_or(0)),
        ));
        text.push_str(&numbers.phases_us.text());
        text.push_str(&numbers.written_bytes.text());
    }
    text.push_str(&numbers.latency.text());
    let Numbers {
        rss_bytes_before: before, steady_rss_bytes: steady, peak_rss_bytes: peak, ..
    } = numbers;
    if let (Some(before), Some(steady), Some(peak)) = (before, steady, peak) {
        let [steady, peak] = [steady, peak].map(|bytes| mib(bytes.saturating_sub(*before)));
        let state = mib(*state_bytes);
        text.push_str(&format!(
            "memory: {steady:.1} MiB more, {peak:.1} MiB at the peak, for {state:.1} MiB of state\n"
        ));
    }
    text.extend(numbers.restart.as_ref().map(Restart::text));
    summary::print(&format!("{text}checksum {}\n", numbers.checksum))
}
