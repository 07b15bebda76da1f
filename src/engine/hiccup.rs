//! Hiccups: how long this machine keeps a thread from running that asks for nothing but a tick.
//!
//! One idle thread on each core that the job's workers use is to tick every [`TICK_NS`] and records
//! how late it is. Printed below a latency it tells the engine's share from the platform's (a stalled
//! virtual processor, an interrupt, a neighbour): what is in both rows is not the engine's.
//!
//! It is pinned, because a thread that may move is woken on whichever core is idle and so misses the
//! stall of the other. It shares the core with a worker that seldom sleeps, so it asks for the highest
//! ordinary priority: without it a tick waits for the end of the worker's time slice (measured: 3.7 ms
//! at p99.9 where the records themselves took 0.2 ms). It interrupts the worker for some microseconds
//! each tick, about one percent of the time. What a worker has the kernel do (copying a snapshot to the
//! disk, say) may still hold the core, and shows.
//!
//! Invariants
//! - A tick that was missed because of an earlier stall counts as late too, from the time it was due:
//!   the same rule as for records, and no stall is counted once where it held up a hundred ticks.

#![expect(clippy::disallowed_methods, reason = "the engine is the one home of threads and sleep")]

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle, sleep};
use std::time::Duration;

use core_affinity::CoreId;
use hdrhistogram::Histogram;
use rustix::process::setpriority_process;
use rustix::thread::{gettid, set_current_timer_slack};

use super::pool;
use crate::clock;
use crate::error::{Error, Result};

/// From one tick to the next, ns.
pub const TICK_NS: u64 = 250_000;

/// The highest ordinary priority, as a nice value.
const PRIORITY: i32 = -20;

/// Threads that measure hiccups until they are asked what they found.
pub struct Hiccups {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Histogram<u64>>>,
    preempting: Arc<AtomicBool>,
}

/// What they found.
#[derive(Clone, Debug)]
pub struct Found {
    /// How late the ticks were, ns.
    pub late_ns: Histogram<u64>,
    /// Whether every thread got the priority it asked for: otherwise ticks waited for workers too.
    pub preempting: bool,
}

impl Hiccups {
    /// Starts one thread on each of the first `cores` cores, those of as many workers.
    ///
    /// # Errors
    /// A thread cannot be started; then none is left.
    pub fn start(cores: usize) -> Result<Self> {
        let preempting = Arc::new(AtomicBool::new(true));
        let mut hiccups = Self { stop: Arc::default(), threads: Vec::new(), preempting };
        for (index, core) in pool::cores().into_iter().take(cores).enumerate() {
            let (stop, preempting) = (hiccups.stop.clone(), hiccups.preempting.clone());
            let thread = Builder::new().name(format!("hiccups-{index}"));
            let thread = thread.spawn(move || tick_on(core, &stop, &preempting));
            hiccups.threads.push(thread.map_err(Error::io("start", "a thread for hiccups"))?);
        }
        Ok(hiccups)
    }

    /// Stops them.
    #[must_use]
    pub fn stop(mut self) -> Found {
        let mut late_ns = clock::histogram_ns();
        for found in self.end() {
            late_ns.add(&found).expect("both have the same bounds");
        }
        Found { late_ns, preempting: self.preempting.load(Ordering::Relaxed) }
    }

    fn end(&mut self) -> Vec<Histogram<u64>> {
        self.stop.store(true, Ordering::Release);
        self.threads.drain(..).filter_map(|thread| thread.join().ok()).collect()
    }
}

impl Drop for Hiccups {
    fn drop(&mut self) {
        self.end();
    }
}

fn tick_on(core: CoreId, stop: &AtomicBool, preempting: &AtomicBool) -> Histogram<u64> {
    core_affinity::set_for_current(core);
    // To Linux a thread is a process with a priority of its own.
    if setpriority_process(Some(gettid()), PRIORITY).is_err() {
        preempting.store(false, Ordering::Relaxed);
    }
    // By default the kernel may wake us 50 us late to save power. Where it refuses, ticks are that late.
    _ = set_current_timer_slack(NonZeroU64::new(1));
    let mut ticks = Ticks { due_ns: clock::now_ns() + TICK_NS, late_ns: clock::histogram_ns() };
    while !stop.load(Ordering::Acquire) {
        sleep(Duration::from_nanos(ticks.due_ns.saturating_sub(clock::now_ns())));
        ticks.woken(clock::now_ns());
    }
    ticks.late_ns
}

/// The ticks of one thread.
struct Ticks {
    due_ns: u64,
    late_ns: Histogram<u64>,
}

impl Ticks {
    /// The thread runs at `now_ns`: every tick that is due by then takes place.
    fn woken(&mut self, now_ns: u64) {
        while self.due_ns <= now_ns {
            self.late_ns.saturating_record(now_ns - self.due_ns);
            self.due_ns += TICK_NS;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tick_that_a_stall_held_up_is_late_from_when_it_was_due() {
        let mut ticks = Ticks { due_ns: TICK_NS, late_ns: clock::histogram_ns() };
        ticks.woken(TICK_NS - 1);
        assert_eq!(ticks.late_ns.len(), 0, "too early");
        ticks.woken(TICK_NS + 10);
        ticks.woken(12 * TICK_NS);
        assert_eq!(ticks.late_ns.len(), 12);
        assert_eq!(ticks.late_ns.min(), 0, "the last is on time");
        let longest = ticks.late_ns.max();
        assert!(longest.abs_diff(10 * TICK_NS) < TICK_NS / 100, "{longest}");
    }

    #[test]
    fn threads_end_when_they_are_asked_or_dropped() {
        drop(Hiccups::start(1).expect("a thread"));
        let found = Hiccups::start(usize::MAX).expect("a thread on each core").stop();
        assert!(found.late_ns.len() < 1 << 40, "{}", found.late_ns.len());
    }
}
