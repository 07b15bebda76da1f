//! What a worker tells whoever triggers snapshots: whether another would find a task that still hands over
//! what it captured before, so that it would have to be given up.
//!
//! Invariants
//! - After a large snapshot, one that was triggered counts as not handed over until the worker has heard of it
//!   and says otherwise: however soon after a trigger it is asked.
//! - It is advice: a snapshot that is triggered nevertheless is whole or given up.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::id::SnapshotId;

/// Something captured is not handed over, or what was triggered is not and will be large.
const OPEN: u64 = 1;
/// The last snapshot was large.
const LARGE: u64 = 2;
const BITS: u32 = 2;

/// One worker's; above the bits stands the last snapshot that it has heard of.
#[derive(Debug)]
pub struct Handover(AtomicU64);

impl Handover {
    /// That of a worker whose first snapshot comes after `before`. It counts as large: nobody knows yet.
    #[must_use]
    pub fn new(before: SnapshotId) -> Self {
        Self((before.0 << BITS | LARGE).into())
    }

    /// The last snapshot that the worker has heard of.
    pub(super) fn heard_of(&self) -> SnapshotId {
        SnapshotId(self.0.load(Ordering::Relaxed) >> BITS)
    }

    /// How it stands with all up to `heard_of`.
    pub(super) fn tell(&self, heard_of: SnapshotId, is_open: bool, is_large: bool) {
        let bits = u64::from(is_open) * OPEN + u64::from(is_large) * LARGE;
        // Relaxed, here and below: nothing is read on the strength of it.
        self.0.store(heard_of.0 << BITS | bits, Ordering::Relaxed);
    }

    /// Whether another snapshot is better not triggered now, where `triggered` was the last.
    #[must_use]
    pub fn is_open(&self, triggered: SnapshotId) -> bool {
        let told = self.0.load(Ordering::Relaxed);
        told & OPEN != 0 || (told & LARGE != 0 && told >> BITS < triggered.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_large_snapshot_that_the_worker_has_not_heard_of_nothing_is_handed_over() {
        let handover = Handover::new(SnapshotId(7));
        assert_eq!(handover.heard_of(), SnapshotId(7));
        assert!(!handover.is_open(SnapshotId(7)), "the first may be triggered");
        assert!(handover.is_open(SnapshotId(8)), "triggered, and not heard of");
        handover.tell(SnapshotId(8), true, false);
        assert!(handover.is_open(SnapshotId(8)));
        handover.tell(SnapshotId(8), false, true);
        assert!(!handover.is_open(SnapshotId(8)));
        assert!(handover.is_open(SnapshotId(9)), "triggered, and not heard of");
        handover.tell(SnapshotId(9), false, false);
        assert!(!handover.is_open(SnapshotId(10)), "the last was small");
    }
}
