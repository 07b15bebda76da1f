//! The phases of a snapshot, and how long each took.
//!
//! ```text
//! trigger --start delay--> first task --alignment--> last task --drain--> all handed to the disk
//!     --write--> chunks are written --sync--> part is durable (ack) --commit--> manifest is durable
//! ```
//! *Capture* lies within the alignment: how long one task stood still at the barrier, marking its
//! state. Of each phase the longest of any worker counts; bytes are summed over the workers.

use hdrhistogram::Histogram;

use crate::clock;

/// What one snapshot took. Times in ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// From the trigger to the first capture on a worker.
    pub start_delay_ns: u64,
    /// From the first capture on a worker to its last: the barrier on its way.
    pub alignment_ns: u64,
    /// The longest time a task stood still to capture its state.
    pub capture_ns: u64,
    /// From the last capture to the last byte handed to the disk.
    pub drain_ns: u64,
    /// From there until the bytes are written and the disk was given what lists them.
    pub write_ns: u64,
    /// From there until they are durable, and those of all snapshots before.
    pub sync_ns: u64,
    /// From the last ack to the durable manifest.
    pub commit_ns: u64,
    /// Bytes that were written.
    pub written_bytes: u64,
    /// Bytes of the pages that had changed since the snapshot before; the rest of what was written lists
    /// them, holds small state, or is pages that are written again to empty an old segment.
    pub changed_bytes: u64,
}

/// How many values a [`Phases`] has.
const VALUES: usize = 9;

impl Phases {
    /// Its values with their names, in order.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); VALUES] {
        [
            ("start_delay_ns", self.start_delay_ns),
            ("alignment_ns", self.alignment_ns),
            ("capture_ns", self.capture_ns),
            ("drain_ns", self.drain_ns),
            ("write_ns", self.write_ns),
            ("sync_ns", self.sync_ns),
            ("commit_ns", self.commit_ns),
            ("written_bytes", self.written_bytes),
            ("changed_bytes", self.changed_bytes),
        ]
    }

    /// Takes in what another worker says of the same snapshot.
    #[must_use]
    pub fn joined(self, other: Self) -> Self {
        Self {
            start_delay_ns: self.start_delay_ns.max(other.start_delay_ns),
            alignment_ns: self.alignment_ns.max(other.alignment_ns),
            capture_ns: self.capture_ns.max(other.capture_ns),
            drain_ns: self.drain_ns.max(other.drain_ns),
            write_ns: self.write_ns.max(other.write_ns),
            sync_ns: self.sync_ns.max(other.sync_ns),
            commit_ns: self.commit_ns.max(other.commit_ns),
            written_bytes: self.written_bytes + other.written_bytes,
            changed_bytes: self.changed_bytes + other.changed_bytes,
        }
    }
}

/// The phases of many snapshots.
#[derive(Clone, Debug)]
pub struct PhaseHistograms([Histogram<u64>; VALUES]);

impl Default for PhaseHistograms {
    fn default() -> Self {
        Self(std::array::from_fn(|_| clock::histogram_ns()))
    }
}

impl PhaseHistograms {
    /// Takes a snapshot in.
    pub fn record(&mut self, phases: &Phases) {
        for (histogram, (_, value)) in self.0.iter_mut().zip(phases.named()) {
            histogram.saturating_record(value);
        }
    }

    /// A histogram for each value of [`Phases::named`], by its name.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &Histogram<u64>)> {
        Phases::default().named().map(|(name, _)| name).into_iter().zip(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_counts_and_bytes_add_up() {
        let phases = |drain_ns, sync_ns, written_bytes, changed_bytes| Phases {
            drain_ns,
            sync_ns,
            written_bytes,
            changed_bytes,
            ..Phases::default()
        };
        let (one, other, both) = (phases(7, 1, 10, 4), phases(3, 2, 5, 3), phases(7, 2, 15, 7));
        assert_eq!(one.joined(other), both);
        let mut histograms = PhaseHistograms::default();
        histograms.record(&both);
        let found = histograms.named().find(|(name, _)| *name == "drain_ns").unwrap().1;
        assert_eq!((found.len(), found.max()), (1, 7));
    }
}
