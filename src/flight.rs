//! What is in flight in a loop: how the end of its input is found.
//!
//! A loop has ended when nothing can enter it any more and nothing goes round in it. Both are
//! counted, never guessed from a pause (a timeout loses the records of a slow operator; trap 20).
//! One [`Flight`] serves one strongly connected component of the graph, so nested loops and loops
//! through several tasks end together.
//!
//! Why the count can be trusted: a record is counted *before* it can be seen in its ring, and counted
//! off only when all that it led to has been counted in its turn. So while no entry is open, the
//! count is zero only if nothing is in flight, and then it stays zero.
//!
//! The same count says when a loop has run empty for a synchronous snapshot: when every entry stands
//! at its barrier and the count is zero. One entrance finds that out for all: as soon as the first of
//! them lets its barrier in, records may come in behind it.
//!
//! It says too when so much goes round that nothing more is to enter, by whichever entrance.
//!
//! Invariants
//! - `sent` comes before the records are published, `handled` after the stage owes nothing.
//! - An entry is counted off after every record that came through it has been handled.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::id::SnapshotId;

/// Counts what enters, goes round in, and leaves one loop. Shared by the tasks of the loop; touched
/// once per batch.
#[derive(Debug)]
pub struct Flight {
    /// Channels into the loop.
    entries: u64,
    /// Those that have not ended.
    open: AtomicU64,
    /// Barriers that entries have delivered, all together.
    barriers: AtomicU64,
    /// Rounds of barriers before which the loop has been empty.
    quiet: AtomicU64,
    /// Records in channels inside the loop, or being handled.
    records: AtomicU64,
    /// Those of them that a task has set aside.
    aside: AtomicU64,
    /// The newest snapshot that a task of the loop has captured.
    captured: AtomicU64,
}

impl Flight {
    /// For a loop with this many channels into it.
    #[must_use]
    pub fn new(entries: usize) -> Self {
        let entries = entries as u64;
        let zero = AtomicU64::default;
        Self {
            entries,
            open: entries.into(),
            barriers: zero(),
            quiet: zero(),
            records: zero(),
            aside: zero(),
            captured: zero(),
        }
    }

    /// `count` records are about to be published in a channel inside the loop.
    pub fn sent(&self, count: usize) {
        // Relaxed: the records are published with a Release store behind this, and whoever takes
        // them off does so through that store.
        self.records.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// `count` records from inside the loop, and all that they led to, have been sent on.
    pub fn handled(&self, count: usize) {
        // Release, pairs with the Acquire loads below: who sees this sees what we sent before.
        let before = self.records.fetch_sub(count as u64, Ordering::Release);
        assert!(before >= count as u64, "{count} records handled, {before} were in flight");
    }

    /// A channel into the loop has ended, and all that came through it has been sent on.
    pub fn entry_ended(&self) {
        // Release, as in `handled`.
        let before = self.open.fetch_sub(1, Ordering::Release);
        assert!(before > 0, "more entries ended than there are");
    }

    /// A channel into the loop has delivered its next barrier; all that came before has been sent on.
    pub fn entry_at_barrier(&self) {
        // Release, as in `handled`.
        self.barriers.fetch_add(1, Ordering::Release);
    }

    /// Whether the loop has been empty since every entry delivered its barrier number `round`,
    /// counted from 1.
    #[must_use]
    pub fn is_quiet(&self, round: u64) -> bool {
        // Relaxed: nothing is read on the strength of it.
        if self.quiet.load(Ordering::Relaxed) >= round {
            return true;
        }
        // Barriers first: once all are there, nothing enters before the first capture.
        let all_there = self.barriers.load(Ordering::Acquire) >= round * self.entries;
        if all_there && self.is_empty() {
            self.quiet.fetch_max(round, Ordering::Relaxed);
            return true;
        }
        false
    }

    /// A task of the loop has captured `snapshot`.
    pub fn captured(&self, snapshot: SnapshotId) {
        // Relaxed: nothing is read on the strength of it, and who acts on what was true a moment ago looks
        // again at its next step.
        self.captured.fetch_max(snapshot.0, Ordering::Relaxed);
    }

    /// Whether more than `records_max` go round and nothing is to enter by an entrance that has captured
    /// `captured` last. Not while a task of the loop is a snapshot ahead of it: what goes round may stand
    /// before one that waits for the barrier of this entrance.
    #[must_use]
    pub fn is_full(&self, records_max: u64, captured: SnapshotId) -> bool {
        // Relaxed, as above.
        self.records.load(Ordering::Relaxed) > records_max
            && self.captured.load(Ordering::Relaxed) <= captured.0
    }

    /// A task that had set `before` records aside has `now`.
    pub fn aside(&self, before: usize, now: usize) {
        // Relaxed, as above.
        self.aside.fetch_add((now as u64).wrapping_sub(before as u64), Ordering::Relaxed);
    }

    /// Records that go round and are not set aside, about: in rings, or being handled.
    #[must_use]
    pub fn aloft(&self) -> u64 {
        // Relaxed, as above. The two are not of one moment, so the difference may be below zero.
        let aside = self.aside.load(Ordering::Relaxed);
        self.records.load(Ordering::Relaxed).saturating_sub(aside)
    }

    /// Whether no record goes round. More may enter.
    fn is_empty(&self) -> bool {
        self.records.load(Ordering::Acquire) == 0
    }

    /// Whether no record goes round and none will.
    #[must_use]
    pub fn is_over(&self) -> bool {
        // Entries first: once they are none, only records in flight can lead to others.
        self.open.load(Ordering::Acquire) == 0 && self.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_is_over_when_nothing_can_enter_and_nothing_goes_round() {
        let flight = Flight::new(2);
        flight.sent(3);
        flight.entry_ended();
        flight.handled(3);
        assert!(flight.is_empty() && !flight.is_over(), "an entry is open");
        flight.sent(1);
        flight.entry_ended();
        assert!(!flight.is_over(), "a record goes round");
        flight.handled(1);
        assert!(flight.is_over());
    }

    #[test]
    fn a_loop_is_quiet_for_all_once_it_is_for_one() {
        let flight = Flight::new(2);
        flight.entry_at_barrier();
        assert!(!flight.is_quiet(1), "an entry may bring more");
        flight.sent(1);
        flight.entry_at_barrier();
        assert!(!flight.is_quiet(1), "a record goes round");
        flight.handled(1);
        assert!(flight.is_quiet(1));
        flight.sent(1); // behind the barrier, through an entrance that has captured
        assert!(flight.is_quiet(1) && !flight.is_quiet(2));
    }

    #[test]
    fn a_full_loop_is_closed_to_entrances_that_are_not_a_snapshot_behind() {
        let flight = Flight::new(2);
        let (one, two) = (SnapshotId(1), SnapshotId(2));
        flight.captured(one);
        flight.sent(3);
        assert!(!flight.is_full(3, one));
        flight.sent(1);
        assert!(flight.is_full(3, one));
        flight.captured(two);
        flight.captured(one);
        assert!(!flight.is_full(3, one) && flight.is_full(3, two));
        flight.handled(1);
        assert!(!flight.is_full(3, two));
    }

    #[test]
    #[should_panic(expected = "2 records handled, 1 were in flight")]
    fn what_was_not_sent_cannot_be_handled() {
        let flight = Flight::new(0);
        flight.sent(1);
        flight.handled(2);
    }
}
