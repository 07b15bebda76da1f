//! What a run did, as numbers: for `--json`, and as one line for a person.

use std::io::{self, Write as _};

use hdrhistogram::Histogram;
use indicatif::HumanCount;
use serde::Serialize;
use tidegate::engine::{End, Report};
use tidegate::inbox::Measured;

use super::exit::{Failure, stdout_failure};

/// How well the snapshot interval was kept. Times are missing where no snapshot was completed.
#[derive(Serialize)]
pub struct SnapshotNumbers {
    asked: u64,
    triggered: u64,
    completed: u64,
    aborted: u64,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
}

impl SnapshotNumbers {
    /// Those of `report`.
    pub fn of(report: &Report) -> Self {
        let cadence = report.cadence;
        Self {
            asked: cadence.asked,
            triggered: cadence.triggered,
            completed: cadence.completed,
            aborted: cadence.aborted,
            p50_ms: quantile(&report.snapshot_ns, 0.5, 1e6),
            p99_ms: quantile(&report.snapshot_ns, 0.99, 1e6),
        }
    }
}

/// What inputs moved to disk and back while they were not read, and what was logged of records in transit.
#[derive(Serialize)]
pub struct InputNumbers {
    spilled_records: u64,
    spilled_bytes: u64,
    /// From handing a chunk to the disk to seeing it written, and from asking for it to seeing it read,
    /// summed over chunks: several are under way at once.
    spill_write_ms: f64,
    spill_read_ms: f64,
    logged_records: u64,
    /// With what records own on the heap, about.
    logged_bytes: u64,
    /// Snapshots given up because more was in transit than a log holds.
    logs_failed: u64,
    /// Timed alignments that waited past their time for that reason.
    timeouts_refused: u64,
}

impl InputNumbers {
    /// Those of `report`.
    pub fn of(report: &Report) -> Self {
        let Measured { spilled, logged_records, logged_bytes, logs_failed, timeouts_refused } =
            report.inputs;
        Self {
            spilled_records: spilled.records,
            spilled_bytes: spilled.bytes,
            spill_write_ms: spilled.write_ns as f64 / 1e6,
            spill_read_ms: spilled.read_ns as f64 / 1e6,
            logged_records,
            logged_bytes,
            logs_failed,
            timeouts_refused,
        }
    }
}

/// A quantile in units of `unit_ns`; none of an empty histogram.
pub fn quantile(histogram: &Histogram<u64>, quantile: f64, unit_ns: f64) -> Option<f64> {
    let value = || histogram.value_at_quantile(quantile) as f64 / unit_ns;
    (!histogram.is_empty()).then(value)
}

/// How a run ended, in a word that does not change.
pub fn end_word(end: End) -> &'static str {
    match end {
        End::Complete => "complete",
        End::AlreadyComplete => "already_complete",
        End::Stopped => "stopped",
    }
}

/// Snapshots completed, of those asked; none where none was asked.
pub fn delivered(report: &Report) -> Option<f64> {
    let (asked, completed) = (report.cadence.asked, report.cadence.completed);
    (asked > 0).then(|| completed as f64 / asked as f64)
}

/// Records per second over the whole run.
pub fn per_second(report: &Report) -> f64 {
    let seconds = report.elapsed.as_secs_f64();
    if seconds > 0.0 { report.records as f64 / seconds } else { 0.0 }
}

/// "1,000 lines in 1.23 s (813 per second), 12 snapshots (p50 1.2 ms, p99 3.4 ms)"; "12 snapshots of 30 asked"
/// where the interval was not kept.
pub fn line(report: &Report, unit: &str) -> String {
    let seconds = report.elapsed.as_secs_f64();
    let (records, rate) = (counted(report.records, unit), HumanCount(per_second(report) as u64));
    let again = match report.restarts {
        0 => String::new(),
        count => {
            let restarts = counted(count.into(), "restarts");
            format!(" read, those read again after {restarts} included,")
        }
    };
    let mut line = format!("{records}{again} in {seconds:.2} s ({rate} per second)");
    let numbers = SnapshotNumbers::of(report);
    if let (Some(p50), Some(p99)) = (numbers.p50_ms, numbers.p99_ms) {
        let completed = counted(numbers.completed, "snapshots");
        let is_behind = numbers.completed < numbers.asked;
        let of = if is_behind { format!(" of {} asked", numbers.asked) } else { String::new() };
        line.push_str(&format!(", {completed}{of} (p50 {p50:.1} ms, p99 {p99:.1} ms)"));
    }
    line
}

/// The most memory this process has had resident, where the kernel says.
pub fn peak_rss_bytes() -> Option<u64> {
    status_bytes("VmHWM:")
}

/// The memory this process has resident, where the kernel says.
pub fn rss_bytes() -> Option<u64> {
    status_bytes("VmRSS:")
}

fn status_bytes(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// From now on [`peak_rss_bytes`] is of what follows, where the kernel allows it.
pub fn forget_peak_rss() {
    _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// "1 line", "1,000 lines": `plural` is the unit with an s.
pub fn counted(count: u64, plural: &str) -> String {
    let unit = if count == 1 { plural.trim_end_matches('s') } else { plural };
    format!("{} {unit}", HumanCount(count))
}

/// One JSON value as the whole of standard output.
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(value).expect("numbers and words are valid JSON");
    text.push('\n');
    print(&text)
}

/// `text` to standard output.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(stdout_failure)
}
