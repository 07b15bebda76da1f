//! Where a snapshot's time goes, phase by phase: the one place that prints the histograms of a
//! [`Report`]. A phase that is added to the report is added to [`Phases::of`].

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;
use tidegate::engine::Report;

use super::latency::Quantiles;

/// The phases, in the order in which a snapshot goes through them, and all of them together; see
/// [`tidegate::phases`]. In JSON an object by name.
pub struct Phases(Vec<(&'static str, Quantiles)>);

impl Phases {
    /// Those of `report`; all are in ns there.
    pub fn of(report: &Report) -> Self {
        let timed = report.phases.named().filter_map(|(name, histogram)| {
            let name = name.strip_suffix("_ns")?;
            // Of captures every one was measured, not the longest of each snapshot only.
            Some((name, if name == "capture" { &report.capture_ns } else { histogram }))
        });
        let all = timed.chain([("snapshot", &report.snapshot_ns)]);
        Self(all.map(|(name, histogram)| (name, Quantiles::of(histogram))).collect())
    }

    /// A row for each.
    pub fn text(&self) -> String {
        let rows = self.0.iter().map(|(name, quantiles)| quantiles.row(name));
        std::iter::once(Quantiles::head("us")).chain(rows).collect()
    }
}

/// Bytes written for snapshots: pages, and the indices that list them.
#[derive(Serialize)]
pub struct WrittenBytes {
    p50: Option<u64>,
    p99: Option<u64>,
    max: Option<u64>,
    /// Of all snapshots that were completed, to three digits.
    total: u64,
    /// Of the pages that had changed, likewise.
    changed_total: u64,
}

impl WrittenBytes {
    /// Those of `report`.
    pub fn of(report: &Report) -> Self {
        let named = |wanted| report.phases.named().find(|(name, _)| *name == wanted);
        let histogram = |wanted| named(wanted).expect("it is one of the values of a snapshot").1;
        let total = |histogram: &Histogram<u64>| histogram.mean() * histogram.len() as f64;
        let (written, changed) = (histogram("written_bytes"), histogram("changed_bytes"));
        let at = |share: f64| (!written.is_empty()).then(|| written.value_at_quantile(share));
        let (total, changed_total) = (total(written) as u64, total(changed) as u64);
        Self { p50: at(0.5), p99: at(0.99), max: at(1.0), total, changed_total }
    }

    /// A line for a person; empty where there were no snapshots.
    pub fn text(&self) -> String {
        let Some((p50, p99)) = self.p50.zip(self.p99) else { return String::new() };
        let kib = |bytes: u64| bytes as f64 / 1024.0;
        format!("written for a snapshot: p50 {:.1} KiB, p99 {:.1} KiB\n", kib(p50), kib(p99))
    }
}

impl Serialize for Phases {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.iter().copied().collect::<BTreeMap<_, _>>().serialize(serializer)
    }
}
