//! What snapshots cost those who wait for results: latency in an open loop, by mode, side by side.
//!
//! `cargo bench --bench latency -- [--rate N] [--seconds S] [--keys K] [--interval MS] [--rounds R]`
//! runs the paper's workload without snapshots and in each mode, in turn, R times. Each run checks its
//! checksum. Printed per round and mode: the share of the rate that was kept, p50, p99 and p99.9 of the
//! latency and of the hiccups (what an idle thread on the same cores was held up), the longest time in
//! which no result came, the longest capture, and how many snapshots were taken. Without arguments (and
//! under `cargo test --benches`) it runs small.

use std::time::Duration;

use hdrhistogram::Histogram;
use tidegate::config::{Config, Mode, Snapshots};
use tidegate::engine::hiccup::Hiccups;
use tidegate::engine::{self, Handle};
use tidegate::jobs::paper;
use tidegate::workload::paper::expected_checksum;

const WORKERS: usize = 2;
const MODES: [(&str, Option<Mode>); 4] = [
    ("none", None),
    ("abs", Some(Mode::Abs)),
    ("unaligned", Some(Mode::Unaligned { after: Duration::from_millis(5) })),
    ("sync", Some(Mode::Synchronous)),
];

/// `--name value` among the arguments.
fn number(name: &str, default: u64) -> u64 {
    let arguments: Vec<String> = std::env::args().collect();
    let at = arguments.iter().position(|argument| argument == name);
    at.map_or(default, |at| arguments[at + 1].parse().expect("a number"))
}

/// What is measured.
struct Case {
    rate: u64,
    records: u64,
    keys: u64,
    interval: Duration,
}

/// Quantiles in us; none that fewer than ten samples lie beyond.
fn quantiles(histogram: &Histogram<u64>) -> String {
    let at = |share: f64| {
        let enough = histogram.len() as f64 * (1.0 - share) >= 10.0;
        match enough.then(|| histogram.value_at_quantile(share) as f64 / 1e3) {
            Some(us) => format!("{us:>9.1}"),
            None => format!("{:>9}", "n/a"),
        }
    };
    [0.5, 0.99, 0.999].map(at).concat()
}

impl Case {
    /// Runs one mode and prints its two rows.
    fn run(&self, name: &str, mode: Option<Mode>) {
        let (rate, shape) = (self.rate as f64, (self.records, self.keys));
        let (graph, checksum, arrivals) = paper::timed_job(shape, rate, WORKERS).expect("a job");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut config = Config::workers(WORKERS);
        config.snapshots = mode.map(|mode| Snapshots {
            mode,
            ..Snapshots::every(self.interval, directory.path().join("snapshots"))
        });
        let hiccups = Hiccups::start(WORKERS).expect("threads");
        let report =
            engine::run(&graph, &config, &Handle::default(), &mut |_| {}).expect("it runs");
        let hiccups = hiccups.stop();
        assert_eq!(report.restarts, 0, "the latency of a restarted run means nothing");
        assert_eq!(checksum.sum(), expected_checksum(self.records, self.keys), "{name}");
        let latency = arrivals.latency_ns();
        let planned_ns = self.records as f64 / rate * 1e9;
        let share = planned_ns / (arrivals.took_ns() as f64).max(planned_ns);
        let late = if arrivals.timetable().is_late() { "; the generator was late" } else { "" };
        println!(
            "  {name:10} kept {share:.3}  latency {}  no result for {:6.1} ms, longest capture {:6.2} ms, {} of {} snapshots{late}",
            quantiles(&latency),
            arrivals.longest_gap_ns() as f64 / 1e6,
            report.capture_ns.max() as f64 / 1e6,
            report.cadence.completed,
            report.cadence.asked,
        );
        println!("  {:10}             hiccups {}", "", quantiles(&hiccups.late_ns));
    }
}

fn main() {
    let big = std::env::args().any(|argument| argument.starts_with("--") && argument != "--bench");
    let (rate, seconds) = if big { (100_000, 10) } else { (20_000, 0) };
    let (rate, seconds) = (number("--rate", rate), number("--seconds", seconds));
    let case = Case {
        rate,
        records: (rate * seconds).max(rate / 10),
        keys: number("--keys", 1_000),
        interval: Duration::from_millis(number("--interval", if big { 100 } else { 10 })),
    };
    let Case { rate, records, keys, interval } = &case;
    println!(
        "{rate} records/s, {records} records, {keys} keys, every {interval:?}; us: p50 p99 p99.9"
    );
    for round in 1..=number("--rounds", 1) {
        println!("round {round}");
        MODES.into_iter().for_each(|(name, mode)| case.run(name, mode));
    }
}
