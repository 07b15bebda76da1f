//! How snapshots align: the modes side by side, a slow input, a long alignment with and without
//! spilling.
//!
//! `cargo bench --bench alignment -- modes [--records N] [--keys K] [--interval MS] [--rounds R]`
//! `cargo bench --bench alignment -- slow [--rounds R]`
//! `cargo bench --bench alignment -- stall [--rounds R]`
//!
//! On two workers, or so many: `--workers N`.
//!
//! Every run checks what it computed. Without arguments (and under `cargo test --benches`) all of
//! them run small.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use tidegate::clock;
use tidegate::config::{Config, Mode, Snapshots};
use tidegate::engine::hiccup::Hiccups;
use tidegate::engine::{self, Handle, Report};
use tidegate::graph::Graph;
use tidegate::jobs;
use tidegate::operator::sink::FoldSink;
use tidegate::operator::source::Generator;
use tidegate::operator::split::Side;
use tidegate::record::Collector;
use tidegate::stream::Job;
use tidegate::workload::paper::expected_checksum;

/// With one on a machine of two processors the system has one for what it does for the disk.
fn workers() -> usize {
    number("--workers", 2) as usize
}

/// `--name value` among the arguments.
fn number(name: &str, default: u64) -> u64 {
    let arguments: Vec<String> = std::env::args().collect();
    let at = arguments.iter().position(|argument| argument == name);
    at.map_or(default, |at| arguments[at + 1].parse().expect("a number"))
}

/// A job's configuration, and the directory that goes with it.
fn config(mode: Option<Mode>, interval: Duration) -> (Config, Option<tempfile::TempDir>) {
    let mut config = Config::workers(workers());
    let Some(mode) = mode else { return (config, None) };
    let under =
        std::env::var_os("TIDEGATE_BENCH_DIR").unwrap_or_else(|| std::env::temp_dir().into());
    let directory = tempfile::tempdir_in(under).expect("a temporary directory");
    let mut snapshots = Snapshots::every(interval, directory.path().join("snapshots"));
    snapshots.mode = mode;
    config.snapshots = Some(snapshots);
    (config, Some(directory))
}

fn run(graph: &Graph, config: &Config) -> Report {
    let report = engine::run(graph, config, &Handle::default(), &mut |_| {});
    let report = report.expect("the job completes");
    assert_eq!(report.restarts, 0);
    report
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn ms(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile) as f64 / 1e6
}

const UNALIGNED: Mode = Mode::Unaligned { after: Duration::from_millis(5) };
const MODES: [(&str, Option<Mode>); 4] = [
    ("none", None),
    ("abs", Some(Mode::Abs)),
    ("unaligned", Some(UNALIGNED)),
    ("sync", Some(Mode::Synchronous)),
];

/// The paper's workload as fast as it goes, by mode; each against `none` of its round.
fn modes(records: u64, keys: u64, interval: Duration, rounds: u64) {
    println!("modes: {records} records, {keys} keys, every {interval:?}, {rounds} rounds");
    let mut ratios: [Vec<f64>; 4] = Default::default();
    let mut lines: [String; 4] = Default::default();
    for _ in 0..rounds {
        let mut none = 0.0;
        for (index, (name, mode)) in MODES.into_iter().enumerate() {
            let (graph, checksum) = jobs::paper::job(records, keys).expect("a job");
            let (config, _directory) = config(mode, interval);
            let report = run(&graph, &config);
            assert_eq!(checksum.sum(), expected_checksum(records, keys), "{name}");
            let rate = records as f64 / report.elapsed.as_secs_f64() / 1e6;
            none = if index == 0 { rate } else { none };
            ratios[index].push(rate / none);
            let (asked, completed) = (report.cadence.asked, report.cadence.completed);
            lines[index] = format!(
                "{rate:6.2} M/s, {completed} of {asked} snapshots, {:.1} / {:.1} ms (p50 / p99)",
                ms(&report.snapshot_ns, 0.5),
                ms(&report.snapshot_ns, 0.99),
            );
        }
    }
    for (index, (name, _)) in MODES.into_iter().enumerate() {
        let ratio = median(&mut ratios[index]);
        let (low, high) = (ratios[index][0], ratios[index][ratios[index].len() - 1]);
        println!("  {name:10} ratio {ratio:.3} ({low:.3} to {high:.3}); last {}", lines[index]);
    }
}

/// Keeps a core busy for this long.
fn burn(time: Duration) {
    let end_ns = clock::now_ns() + time.as_nanos() as u64;
    while clock::now_ns() < end_ns {
        std::hint::spin_loop();
    }
}

/// One input of an operator is 100 times slower than its sibling: how long snapshots take.
fn slow(rounds: u64, slow_records: u64) {
    let per_record = Duration::from_micros(5);
    println!("slow: {per_record:?} a record on one input, 50 ns on the other, every 20 ms");
    for round in 1..=rounds {
        for (name, mode) in [("blocked", Mode::Abs), ("timed 5 ms", UNALIGNED)] {
            let job = Job::new("slow input");
            let make = |index, out: &mut Collector<u64>| out.push(index);
            let slow = job.source("slow source", Generator::new("slow", slow_records, make));
            let slow = slow.parallelism(1).rebalance().map("slow", move |n| {
                burn(per_record);
                n
            });
            let fast_records = slow_records * 100;
            let fast = job.source("fast source", Generator::new("fast", fast_records, make));
            let (sink, sum) = FoldSink::new(|(_, count): &(u64, u64)| *count);
            let both = fast.parallelism(1).rebalance().map("fast", |n| n).union(slow);
            both.key_by(|n| n % 1_000).fold("count", || 0_u64, |n, _| *n += 1).sink("sum", sink);
            let graph = job.build().expect("a job");
            let (config, _directory) = config(Some(mode), Duration::from_millis(20));
            let hiccups = Hiccups::start(workers()).expect("threads");
            let report = run(&graph, &config);
            let late = hiccups.stop().late_ns;
            let mut counts = vec![0_u64; 1_000];
            (0..slow_records)
                .chain(0..fast_records)
                .for_each(|n| counts[(n % 1_000) as usize] += 1);
            assert_eq!(sum.sum(), counts.iter().map(|c| c * (c + 1) / 2).sum::<u64>(), "{name}");
            let taken = &report.snapshot_ns;
            println!(
                "  round {round} {name:10} p50 {:6.1} p99 {:6.1} max {:6.1} ms, {} of {} snapshots, {} records logged",
                ms(taken, 0.5),
                ms(taken, 0.99),
                ms(taken, 1.0),
                report.cadence.completed,
                report.cadence.asked,
                report.inputs.logged_records,
            );
            println!(
                "    {}; ticks of an idle thread {:.2} ms late at p99.9, {:.1} at most",
                phases(&report),
                ms(&late, 0.999),
                ms(&late, 1.0)
            );
        }
    }
}

/// Where the time of snapshots went: of each phase the median, p99 and longest.
fn phases(report: &Report) -> String {
    let timed = report.phases.named().filter_map(|(name, histogram)| {
        let name = name.strip_suffix("_ns")?;
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|quantile| ms(histogram, quantile));
        Some(format!("{name} {p50:.2}/{p99:.2}/{max:.2}"))
    });
    timed.collect::<Vec<_>>().join(", ")
}

/// Buckets of 10 ms in which one path's records are counted.
const BUCKET_NS: u64 = 10_000_000;

/// A barrier takes a second to come through one input of an operator. Its other input's source also
/// feeds a path that does not align: how that one runs meanwhile.
fn stall(rounds: u64, slow_records: u64) {
    let per_record = Duration::from_micros(125);
    let rate = 500_000;
    println!(
        "stall: 8,192 records of {per_record:?} before one barrier; {rate} records/s beside it"
    );
    for round in 1..=rounds {
        for (name, spill) in [("spill off", false), ("spill on", true)] {
            let seconds = per_record.as_secs_f64() * slow_records as f64;
            let fast_records = (rate as f64 * seconds) as u64;
            let buckets: Arc<Vec<AtomicU64>> =
                Arc::new((0..(seconds * 300.0) as usize).map(|_| AtomicU64::new(0)).collect());
            let job = Job::new("long alignment");
            let make = |index, out: &mut Collector<u64>| out.push(index);
            let slow = job.source("slow source", Generator::new("slow", slow_records, make));
            let slow = slow.parallelism(1).rebalance().map("slow", move |n| {
                burn(per_record);
                n
            });
            let fast = job.source("fast source", Generator::new("fast", fast_records, make));
            let (aligned, free) = fast.parallelism(1).rate(rate as f64).split("fork", |n: u64| {
                if n.is_multiple_of(2) { Side::Left(n) } else { Side::Right(n) }
            });
            let (sink, sum) = FoldSink::new(|n: &u64| *n);
            aligned
                .union(slow.parallelism(1))
                .rebalance()
                .map("join", |n| n)
                .parallelism(1)
                .sink("sum", sink);
            let began_ns = clock::now_ns();
            let counted = buckets.clone();
            let (sink, free_sum) = FoldSink::new(move |n: &u64| {
                let bucket = (clock::now_ns() - began_ns) / BUCKET_NS;
                counted.get(bucket as usize).map(|bucket| bucket.fetch_add(1, Ordering::Relaxed));
                *n
            });
            free.sink("free", sink);
            let graph = job.build().expect("a job");
            let (mut config, _directory) = config(Some(Mode::Abs), Duration::from_millis(1_500));
            config.spill.blocked = spill;
            config.spill.memory_bytes = 1 << 20;
            let report = run(&graph, &config);
            let sum_below = |n: u64| n * (n - 1) / 2;
            let odd = (0..fast_records).filter(|n| n % 2 == 1).sum::<u64>();
            assert_eq!(free_sum.sum(), odd, "{name}");
            let all = sum_below(fast_records) - odd + sum_below(slow_records);
            assert_eq!(sum.sum(), all, "{name}");
            // Up to the end of the slow input: what runs on behind it is no alignment.
            let used = (seconds * 1e9 / BUCKET_NS as f64) as usize;
            let counts: Vec<u64> =
                buckets.iter().take(used).map(|b| b.load(Ordering::Relaxed)).collect();
            let counts = &counts[5..];
            let (mut gap, mut longest) = (0, 0);
            for count in counts {
                gap = if *count == 0 { gap + 1 } else { 0 };
                longest = longest.max(gap);
            }
            let usual = rate as f64 / 2.0 * BUCKET_NS as f64 / 1e9;
            let got = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
            println!(
                "  round {round} {name:9} alignments of {:.0} ms; unblocked path {:.2} of its rate, longest stall {} ms; {} spilled in {} chunks",
                ms(&report.snapshot_ns, 1.0),
                got / usual,
                longest * 10,
                report.inputs.spilled.records,
                report.inputs.spilled.chunks,
            );
        }
    }
}

fn main() {
    let interval = Duration::from_millis(number("--interval", 100));
    let (keys, rounds) = (number("--keys", 1_000), number("--rounds", 5));
    match std::env::args().nth(1).as_deref() {
        Some("modes") => modes(number("--records", 40_000_000), keys, interval, rounds),
        Some("slow") => slow(rounds, number("--records", 400_000)),
        Some("stall") => stall(rounds, number("--records", 40_000)),
        _ => {
            modes(200_000, 1_000, Duration::from_millis(5), 1);
            slow(1, 4_000);
            stall(1, 2_000);
        }
    }
}
