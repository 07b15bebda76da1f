//! When to say that snapshots do not keep up with their interval.
//!
//! A disk that is slower than the interval fails nothing: the next snapshot is triggered later. Who asked for
//! an interval is told all the same, once, and once more when it was better meanwhile.

use crate::coordinator::Cadence;

/// So long is looked at at least, ns, and longer until so many were asked for: one slow snapshot is no news.
const WINDOW_NS: u64 = 5_000_000_000;
const ASKED_MIN: u64 = 10;

/// How the cadence was when it was looked at last, and what was found.
#[derive(Debug)]
pub(super) struct Watch {
    since_ns: u64,
    before: Cadence,
    is_behind: bool,
}

/// Of the snapshots `asked` for in a while, fewer than half were `completed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Behind {
    pub asked: u64,
    pub completed: u64,
}

impl Watch {
    /// Of a job that starts now.
    pub fn new(now_ns: u64) -> Self {
        Self { since_ns: now_ns, before: Cadence::default(), is_behind: false }
    }

    /// What is to be told now. Snapshots given up are told of otherwise, and so are the pauses after them.
    pub fn look(&mut self, cadence: Cadence, now_ns: u64) -> Option<Behind> {
        let paused = cadence.paused - self.before.paused;
        let asked = cadence.asked - self.before.asked - paused;
        if now_ns < self.since_ns.saturating_add(WINDOW_NS) || asked < ASKED_MIN {
            return None;
        }
        let completed = cadence.completed - self.before.completed;
        let ended = completed + (cadence.aborted - self.before.aborted);
        let is_behind = 2 * ended < asked;
        (self.since_ns, self.before) = (now_ns, cadence);
        let was_behind = std::mem::replace(&mut self.is_behind, is_behind);
        (is_behind && !was_behind).then_some(Behind { asked, completed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_for_more_than_the_disk_can_do_is_told_once_until_it_is_better() {
        let (mut watch, mut now) = (Watch::new(7), Cadence::default());
        let mut look = |asked, completed, aborted| {
            now.asked += asked;
            now.completed += completed;
            now.aborted += aborted;
            watch.look(now, 7 + now.asked * 100_000_000)
        };
        assert_eq!(look(49, 10, 0), None, "not long enough");
        assert_eq!(look(1, 5, 0), Some(Behind { asked: 50, completed: 15 }));
        assert_eq!(look(50, 15, 0), None, "that was said");
        assert_eq!(look(50, 25, 0), None, "half of them");
        assert_eq!(look(50, 20, 10), None, "those given up were told of");
        assert_eq!(look(60, 29, 0), Some(Behind { asked: 60, completed: 29 }));
    }

    #[test]
    fn intervals_of_a_pause_after_a_failure_are_no_slowness() {
        let mut watch = Watch::new(0);
        let failing =
            Cadence { asked: 510, completed: 1, aborted: 8, paused: 500, ..Cadence::default() };
        assert_eq!(watch.look(failing, 6_000_000_000), None);
    }

    #[test]
    fn a_long_interval_is_looked_at_for_longer() {
        let mut watch = Watch::new(0);
        let few = Cadence { asked: 9, completed: 1, ..Cadence::default() };
        assert_eq!(watch.look(few, 90_000_000_000), None);
        let more = Cadence { asked: 10, ..few };
        let behind = Behind { asked: 10, completed: 1 };
        assert_eq!(watch.look(more, 100_000_000_000), Some(behind));
    }
}
