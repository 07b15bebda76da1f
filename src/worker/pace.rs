//! How large a piece of captured or restored state a worker moves between two rounds of its tasks.
//!
//! A record that goes through several exchanges may wait for a piece at each. A worker whose tasks find nothing
//! to do now and then has time: it moves small pieces in many rounds, and its records hardly notice. One
//! whose tasks always find something is behind already, and small pieces would only make it longer: it moves
//! pieces that take as long as its tasks do.
//!
//! In between that rule would feed itself. While a long piece is moved records come; the next round of the tasks
//! is longer for them, all the more as pages that they change are copied first; and the piece after it as
//! long again. (At 100,000 records a second and a million keys rounds of 20 us grew to 0.5 ms within four:
//! `perf/0004-snapshots.md`.) So the share of time that pieces take grows slowly, while there is no rest.

use crate::config::{PIECE_BYTES_PER_NS, PIECE_FULL_NS};

/// A piece takes this share of its tasks' time at least, all of it at most.
const EIGHTHS: u64 = 8;

/// See the module's documentation.
pub(super) struct Pace {
    /// Since when the tasks have found something to do in every round, by the clock; `None`: in the last they did not.
    busy_since_ns: Option<u64>,
    /// Bytes that their last round allows, before the bounds of a piece.
    bytes: u64,
}

impl Pace {
    /// One that allows as much as can be until it is told of a round: for good with a driver whose time is not
    /// the clock's.
    pub(super) fn untimed() -> Self {
        Self { busy_since_ns: None, bytes: u64::MAX }
    }

    /// The tasks took so long for a round, which ended now. `rested`: they found nothing to do.
    pub(super) fn round(&mut self, now_ns: u64, took_ns: u64, rested: bool) {
        let busy_ns = if rested {
            self.busy_since_ns = None;
            0
        } else {
            now_ns - *self.busy_since_ns.get_or_insert(now_ns - took_ns)
        };
        let eighths = (busy_ns * EIGHTHS / PIECE_FULL_NS).clamp(1, EIGHTHS);
        self.bytes = took_ns * PIECE_BYTES_PER_NS * eighths / EIGHTHS;
    }

    /// The next piece, in bytes: what the last round of the tasks allows, between `least` and `most`.
    pub(super) fn piece(&self, least: usize, most: usize) -> usize {
        self.bytes.clamp(least as u64, most as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn while_tasks_rest_pieces_are_small_and_without_rest_as_long_as_theirs() {
        let whole = 80 * PIECE_BYTES_PER_NS as usize;
        let mut pace = Pace::untimed();
        assert_eq!(pace.piece(1, 1000), 1000, "nothing to go by");
        pace.round(100 * MS, 80, true);
        assert_eq!(pace.piece(1, 1000), whole / 8);
        assert_eq!((pace.piece(15, 1000), pace.piece(1, 5)), (whole / 8, 5));
        assert_eq!(pace.piece(500, 1000), 500);
        let mut round = |now_ns, rested| {
            pace.round(now_ns, 80, rested);
            pace.piece(1, 1000)
        };
        assert_eq!(round(101 * MS, false), whole / 8);
        assert_eq!(round(101 * MS + PIECE_FULL_NS / 2, false), whole / 2);
        for later in [1, 50] {
            assert_eq!(round(101 * MS + later * PIECE_FULL_NS, false), whole);
        }
        assert_eq!(round(101 * MS + 60 * PIECE_FULL_NS, true), whole / 8, "rested again");
    }

    /// A worker that was parked, or had its first round, was taken to have had no rest all the while before.
    #[test]
    fn time_without_rounds_is_rest() {
        let eighth = 800 * PIECE_BYTES_PER_NS as usize / 8;
        let mut pace = Pace::untimed();
        pace.round(1_000_000 * MS, 800, false);
        assert_eq!(pace.piece(1, 10_000), eighth, "the first");
        pace.round(1_000_001 * MS, 800, true);
        pace.round(3_000_000 * MS, 800, false);
        assert_eq!(pace.piece(1, 10_000), eighth, "the first after a park");
    }
}
