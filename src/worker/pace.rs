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
    /// When the tasks had nothing to do last, by the clock.
    rested_ns: u64,
    /// What their last round allows, in bytes.
    bytes: u64,
}

impl Pace {
    /// One for a driver whose time is not the clock's: always as much as can be.
    pub(super) fn untimed() -> Self {
        Self { rested_ns: 0, bytes: u64::MAX }
    }

    /// The tasks took so long for a round, which ended now. `rested`: they found nothing to do.
    pub(super) fn round(&mut self, now_ns: u64, took_ns: u64, rested: bool) {
        if rested {
            self.rested_ns = now_ns;
        }
        let busy_ns = now_ns - self.rested_ns;
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
        let mut pace = Pace::untimed();
        assert_eq!(pace.piece(1, 1000), 1000, "nothing to go by");
        pace.round(100 * MS, 80, true);
        assert_eq!(pace.piece(1, 1000), 80 * PIECE_BYTES_PER_NS as usize / 8);
        assert_eq!((pace.piece(500, 1000), pace.piece(1, 5)), (500, 5));
        pace.round(100 * MS + PIECE_FULL_NS / 2, 80, false);
        assert_eq!(pace.piece(1, 1000), 80 * PIECE_BYTES_PER_NS as usize / 2);
        for later in [1, 50] {
            pace.round(100 * MS + later * PIECE_FULL_NS, 80, false);
            assert_eq!(pace.piece(1, 1000), 80 * PIECE_BYTES_PER_NS as usize);
        }
        pace.round(100 * MS + 60 * PIECE_FULL_NS, 80, true);
        assert_eq!(pace.piece(1, 1000), 80 * PIECE_BYTES_PER_NS as usize / 8, "rested again");
    }
}
