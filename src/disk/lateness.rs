//! Whether a disk is late, so that workers give way to the kernel.
//!
//! Part of a write is done by threads of the kernel, on whichever processor the device interrupts. A worker
//! that never sleeps is to share its processor with them. But where the scheduler groups by session
//! (`kernel.sched_autogroup_enabled`, the default of many systems), they stood ready beside it for more than
//! a second, and a snapshot with them (`perf/0003-alignment.md`). So who waits for a disk says so after
//! [`LATE_NS`], and then every worker sleeps once, as shortly as a thread can: some 60 us, in which
//! they run.
//!
//! Invariants
//! - A worker is asked at most once in [`LATE_NS`], and once more at most when the disks are in time again.
//! - It is advice: nothing depends on it, and what several say at the same time may count once.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::clock;

/// The disk is late after so long: most writes and syncs take less, and a worker that gives way each time
/// loses three hundredths of its own while the disk is.
const LATE_NS: u64 = 2_000_000;

/// What those who wait for the disks of this process say.
pub(super) struct Lateness {
    /// How often nothing came for [`LATE_NS`].
    times: AtomicU64,
    /// Threads that stand in a call to a disk.
    blocked: AtomicU32,
    /// Since when one does, or since another of several has left it; 0: none does.
    blocked_since_ns: AtomicU64,
}

/// That of all disks: a processor is shared by all that runs on it.
pub(super) static LATENESS: Lateness = Lateness::new();

impl Lateness {
    const fn new() -> Self {
        let (blocked, blocked_since_ns) = (AtomicU32::new(0), AtomicU64::new(0));
        Self { times: AtomicU64::new(0), blocked, blocked_since_ns }
    }

    /// Runs `call`, which blocks this thread. Of several at a time it is watched that one ends now and then.
    pub fn blocked<R>(&self, now_ns: impl Fn() -> u64, call: impl FnOnce() -> R) -> R {
        // Relaxed, here and below: nothing is read on the strength of it.
        if self.blocked.fetch_add(1, Ordering::Relaxed) == 0 {
            self.blocked_since_ns.store(now_ns().max(1), Ordering::Relaxed);
        }
        let result = call();
        let is_last = self.blocked.fetch_sub(1, Ordering::Relaxed) == 1;
        let since_ns = if is_last { 0 } else { now_ns().max(1) };
        self.blocked_since_ns.store(since_ns, Ordering::Relaxed);
        result
    }
}

/// Watches a queue for completions that do not come.
#[derive(Default)]
pub(super) struct Watch {
    quiet_since_ns: u64,
}

impl Watch {
    /// Something was submitted to an idle queue, or has come.
    pub fn restart(&mut self, now_ns: u64) {
        self.quiet_since_ns = now_ns;
    }

    /// Nothing has come.
    pub fn nothing_came(&mut self, now_ns: u64, lateness: &Lateness) {
        if now_ns.saturating_sub(self.quiet_since_ns) >= LATE_NS {
            self.quiet_since_ns = now_ns;
            lateness.times.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What one worker has done about it.
#[derive(Default)]
pub struct Courtesy {
    seen: u64,
    rested_ns: u64,
}

impl Courtesy {
    /// Whether this worker is to sleep shortly. Two loads while no disk is late.
    #[inline]
    pub fn is_asked(&mut self) -> bool {
        self.is_asked_by(&LATENESS, clock::now_ns)
    }

    #[inline]
    fn is_asked_by(&mut self, lateness: &Lateness, now_ns: impl FnOnce() -> u64) -> bool {
        let times = lateness.times.load(Ordering::Relaxed);
        let since_ns = lateness.blocked_since_ns.load(Ordering::Relaxed);
        if times == self.seen && since_ns == 0 {
            return false;
        }
        let now_ns = now_ns();
        let is_blocked = since_ns != 0 && now_ns.saturating_sub(since_ns) >= LATE_NS;
        let is_new = times != self.seen || is_blocked;
        if !is_new || now_ns.saturating_sub(self.rested_ns) < LATE_NS {
            return false;
        }
        (self.seen, self.rested_ns) = (times, now_ns);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1 << 40;

    #[test]
    fn every_worker_is_asked_once_when_nothing_comes_for_long() {
        let (lateness, mut watch) = (Lateness::new(), Watch::default());
        let mut workers = [Courtesy::default(), Courtesy::default()];
        let mut asked = |now_ns| workers.each_mut().map(|w| w.is_asked_by(&lateness, || now_ns));
        watch.restart(NOW);
        watch.nothing_came(NOW + LATE_NS - 1, &lateness);
        assert_eq!(asked(NOW + LATE_NS - 1), [false, false]);
        watch.nothing_came(NOW + LATE_NS, &lateness);
        assert_eq!(asked(NOW + LATE_NS), [true, true]);
        assert_eq!(asked(NOW + 9 * LATE_NS), [false, false]);
        watch.nothing_came(NOW + 9 * LATE_NS, &lateness);
        assert_eq!(asked(NOW + 9 * LATE_NS), [true, true]);
        watch.restart(NOW + 10 * LATE_NS);
        watch.nothing_came(NOW + 10 * LATE_NS, &lateness);
        assert_eq!(asked(NOW + 11 * LATE_NS), [false, false], "something came");
    }

    #[test]
    fn a_worker_is_asked_again_and_again_while_a_sync_blocks_but_not_too_often() {
        let (lateness, mut worker) = (Lateness::new(), Courtesy::default());
        let mut asked = |now_ns| worker.is_asked_by(&lateness, || now_ns);
        lateness.blocked(
            || NOW,
            || {
                assert!(!asked(NOW + LATE_NS - 1));
                assert!(asked(NOW + LATE_NS));
                assert!(!asked(NOW + 2 * LATE_NS - 1));
                lateness.blocked(|| NOW + LATE_NS, || ());
                assert!(!asked(NOW + 2 * LATE_NS - 1), "another has just ended");
                assert!(asked(NOW + 2 * LATE_NS), "the first still does not");
            },
        );
        assert!(!asked(NOW + 9 * LATE_NS));
    }
}
