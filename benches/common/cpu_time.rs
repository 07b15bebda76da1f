//! A moment in this thread's CPU time: neighbours on a shared machine do not count.

use rustix::time::{ClockId, Timespec, clock_gettime};

pub struct Start(Timespec);

impl Start {
    pub fn now() -> Self {
        Self(clock_gettime(ClockId::ThreadCPUTime))
    }

    pub fn elapsed_ns(&self) -> f64 {
        let passed = Self::now().0 - self.0;
        passed.tv_sec as f64 * 1e9 + passed.tv_nsec as f64
    }
}

pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
