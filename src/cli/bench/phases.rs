//! Where a snapshot's time goes, phase by phase: the one place that prints the histograms of a
//! [`Report`]. A phase that is added to the report is added to [`Phases::of`].

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;
use tidegate::engine::Report;

use super::latency::Quantiles;

/// The phases, in the order in which a snapshot goes through them. In JSON an object by name.
pub struct Phases(Vec<(&'static str, Quantiles)>);

impl Phases {
    /// Those of `report`; all are in ns there.
    pub fn of(report: &Report) -> Self {
        let phases: [(&'static str, &Histogram<u64>); 2] =
            [("capture", &report.capture_ns), ("snapshot", &report.snapshot_ns)];
        Self(phases.map(|(name, histogram)| (name, Quantiles::of(histogram))).into())
    }

    /// A row for each.
    pub fn text(&self) -> String {
        let rows = self.0.iter().map(|(name, quantiles)| quantiles.row(name));
        std::iter::once(Quantiles::head("us")).chain(rows).collect()
    }
}

impl Serialize for Phases {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.iter().copied().collect::<BTreeMap<_, _>>().serialize(serializer)
    }
}
