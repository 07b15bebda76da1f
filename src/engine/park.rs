//! How a worker waits: spin, then give way, then park; and how it is woken.
//!
//! A worker that only spins collapses when its core is shared (a waiter burns the time slice its
//! peer needs); one that parks at once pays a wake-up per batch. The steps and their lengths are
//! configuration ([`Idle`]).
//!
//! Giving way polls on, so it pays only where work comes soon. A job at a low rate waits a
//! millisecond for each item, never long enough to park, and burnt its cores. So a
//! worker whose last waits were mostly long parks as soon as it has spun.
//!
//! No wake-up is lost: a worker announces that it parks, looks once more for work, and only then
//! sleeps; whoever makes work looks for the announcement afterwards. The two SeqCst fences order
//! "announce, look" against "make work, look for the announcement", so at least one side sees the
//! other. Parks are bounded besides.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread::Thread;
use std::time::Duration;

use atomic_waker::AtomicWaker;
use crossbeam_utils::CachePadded;

use crate::clock;
use crate::config::Idle;
use crate::worker::Step;

/// Tells a worker that there may be work.
#[derive(Debug, Default)]
pub struct Signal {
    parked: CachePadded<AtomicBool>,
    /// Who waits, as a future.
    pub waker: AtomicWaker,
    /// Who waits, as a thread.
    pub thread: OnceLock<Thread>,
}

impl Signal {
    /// Wakes the worker if it parks. Call [`made_work`] before.
    pub fn wake(&self) {
        // Relaxed is enough: the fence in `made_work` and the one in `announce` order this load
        // against the announcement.
        if self.parked.load(Ordering::Relaxed) && self.parked.swap(false, Ordering::AcqRel) {
            self.waker.wake();
            if let Some(thread) = self.thread.get() {
                thread.unpark();
            }
        }
    }

    /// Whether nobody has woken the worker since it announced its park.
    pub fn is_parked(&self) -> bool {
        self.parked.load(Ordering::Acquire)
    }

    fn announce(&self) {
        self.parked.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    fn withdraw(&self) {
        self.parked.store(false, Ordering::Release);
    }
}

/// To be called between making work visible and waking those it may be for.
pub fn made_work() {
    fence(Ordering::SeqCst);
}

/// What to do before the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Step at once.
    Not,
    /// Let other threads run, then step.
    GiveWay,
    /// Park for at most this long, then step.
    Park(Duration),
}

/// A wait that ends within this time is worth giving way for, ns: some times what it costs to wake a
/// thread that parks.
const SHORT_NS: u64 = 200_000;
/// Short ones among a worker's last waits for which it gives way.
const SHORT_MIN: u32 = Waits::BITS * 3 / 4;

/// A worker's last waits, newest in the lowest bit: 1 was short. A busy pipeline has hundreds of short
/// ones for each long one, also on a machine whose scheduler takes the core away for milliseconds;
/// at a low rate every item brings a long one.
type Waits = u16;

/// Decides how long a worker waits and how.
#[derive(Debug)]
pub struct Waiting {
    idle: Idle,
    waits: Waits,
    idle_since_ns: Option<u64>,
    announced: bool,
}

impl Waiting {
    /// By this policy.
    pub fn new(idle: Idle) -> Self {
        Self { idle, waits: Waits::MAX, idle_since_ns: None, announced: false }
    }

    /// What to do after `step` at `now_ns`. A park is announced one step before it is taken.
    pub fn after(&mut self, step: Step, now_ns: u64, signal: &Signal) -> Wait {
        let Step::Idle(until_ns) = step else {
            if let Some(since_ns) = self.idle_since_ns.take() {
                self.waits = self.waits << 1 | Waits::from(now_ns - since_ns < SHORT_NS);
            }
            self.retract(signal);
            return Wait::Not;
        };
        let idle_ns = now_ns - *self.idle_since_ns.get_or_insert(now_ns);
        let spin_ns = clock::duration_ns(self.idle.spin);
        let pays = self.waits.count_ones() >= SHORT_MIN;
        let give_way_ns = spin_ns + if pays { clock::duration_ns(self.idle.give_way) } else { 0 };
        if self.idle.busy_poll || idle_ns < spin_ns {
            std::hint::spin_loop();
            return Wait::Not;
        }
        if idle_ns < give_way_ns {
            return Wait::GiveWay;
        }
        if !self.announced {
            self.announced = true;
            signal.announce();
            return Wait::Not;
        }
        let left_ns = until_ns.map_or(u64::MAX, |until_ns| until_ns.saturating_sub(now_ns));
        let park = Duration::from_nanos(left_ns).min(self.idle.park_max);
        self.announced = false;
        Wait::Park(park)
    }

    /// The park is over.
    pub fn woken(&mut self, signal: &Signal) {
        self.retract(signal);
        signal.withdraw();
    }

    fn retract(&mut self, signal: &Signal) {
        if self.announced {
            self.announced = false;
            signal.withdraw();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quick() -> Idle {
        Idle { give_way: Duration::from_micros(100), ..Idle::default() }
    }

    #[test]
    fn a_park_is_announced_and_one_more_step_is_taken_before_it() {
        let (signal, idle) = (Signal::default(), quick());
        let mut waiting = Waiting::new(idle);
        let idle_step = Step::Idle(None);
        assert_eq!(waiting.after(idle_step, 0, &signal), Wait::Not);
        assert_eq!(waiting.after(idle_step, 30_000, &signal), Wait::GiveWay);
        assert_eq!(waiting.after(idle_step, 200_000, &signal), Wait::Not);
        assert!(signal.is_parked(), "announced");
        assert_eq!(waiting.after(Step::Worked, 201_000, &signal), Wait::Not);
        assert!(!signal.is_parked(), "withdrawn: there was work");
        assert_eq!(waiting.after(idle_step, 300_000, &signal), Wait::Not);
        assert_eq!(waiting.after(idle_step, 500_000, &signal), Wait::Not);
        assert_eq!(waiting.after(idle_step, 501_000, &signal), Wait::Park(idle.park_max));
        signal.wake();
        assert!(!signal.is_parked());
    }

    /// A source at 1000 lines per second burnt a core: each line came before the worker had given way
    /// for so long that it parked.
    #[test]
    fn a_worker_whose_waits_are_long_parks_without_giving_way_until_they_are_short_again() {
        let signal = Signal::default();
        let mut waiting = Waiting::new(Idle::default());
        let mut now_ns = 0;
        let mut wait = |wait_ns: u64| {
            let mut gave_way = false;
            for ns in [0, 50_000, wait_ns] {
                let step = if ns == wait_ns { Step::Worked } else { Step::Idle(None) };
                gave_way |= waiting.after(step, now_ns + ns, &signal) == Wait::GiveWay;
            }
            now_ns += wait_ns;
            gave_way
        };
        let long = (0..16).filter(|_| wait(1_000_000)).count();
        assert_eq!(long, 5, "a quarter of the last ones, and one");
        let short = (0..16).filter(|_| wait(60_000)).count();
        assert_eq!(short, 4, "after three quarters");
    }

    #[test]
    fn a_park_ends_when_something_is_due_and_busy_polling_never_parks() {
        let signal = Signal::default();
        let mut waiting = Waiting::new(quick());
        let due = Step::Idle(Some(1_500_000));
        for now_ns in [0, 1_000_000] {
            assert_eq!(waiting.after(due, now_ns, &signal), Wait::Not);
        }
        let park = Wait::Park(Duration::from_nanos(500_000));
        assert_eq!(waiting.after(due, 1_000_000, &signal), park);
        let mut waiting = Waiting::new(Idle { busy_poll: true, ..Idle::default() });
        for now_ns in [0, 1 << 40] {
            assert_eq!(waiting.after(due, now_ns, &signal), Wait::Not);
        }
    }
}
