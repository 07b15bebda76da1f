//! The only file that reads time.
//!
//! Owns the two clocks of the engine: a monotonic one to measure with and the calendar to print.
//! Pure machines take the time as a parameter; who drives them reads it here, once per batch at
//! most (a reading costs 20-70 ns).
//!
//! Invariants
//! - [`now_ns`] never goes back within a process and means nothing outside it; [`machine_ns`] is the
//!   same clock, from another beginning.
//! - [`unix_ms`] may jump; nothing is decided by it.

#![expect(clippy::disallowed_methods, reason = "this is the one home of reading time")]

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};

/// Longest duration a histogram tells apart, ns: one hour.
const DURATION_NS_MAX: u64 = 3_600_000_000_000;

/// Monotonic nanoseconds since the process first asked.
#[inline]
#[must_use]
pub fn now_ns() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    // 64 bits of nanoseconds last 584 years.
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// Nanoseconds since this machine came up, for two of its processes to compare.
#[must_use]
pub fn machine_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A duration in ns, which can be added to a time: one longer than 146 years is as long as that.
#[must_use]
pub fn duration_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).min(u64::MAX / 4)
}

/// Milliseconds since 1970-01-01 UTC; 0 if the calendar is set before that.
#[must_use]
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// An empty histogram of durations in ns, exact to three digits, longer ones counted as an hour. All
/// of it is allocated here: one that grows on demand saturates at 2047 when it may not allocate.
///
/// # Panics
/// Never: the bounds are valid.
#[must_use]
pub fn histogram_ns() -> Histogram<u64> {
    Histogram::new_with_bounds(1, DURATION_NS_MAX, 3).expect("the bounds are valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_can_be_added_to_a_time_however_long_it_is() {
        assert_eq!(duration_ns(Duration::from_millis(3)), 3_000_000);
        assert!(now_ns().checked_add(duration_ns(Duration::MAX)).is_some());
    }

    #[test]
    fn a_histogram_keeps_a_duration_of_minutes() {
        // `Histogram::new(3)` with `saturating_record` once reported every snapshot as taking 2 ns.
        let mut histogram = histogram_ns();
        histogram.saturating_record(60_000_000_000);
        let found = histogram.value_at_quantile(0.5);
        assert!((59_900_000_000..60_100_000_000).contains(&found), "{found}");
    }

    #[test]
    fn monotonic_time_does_not_go_back() {
        let readings: Vec<u64> = (0..1000).map(|_| now_ns()).collect();
        assert!(readings.is_sorted(), "{readings:?}");
    }

    #[test]
    fn the_calendar_is_past_the_year_2024() {
        assert!(unix_ms() > 1_704_067_200_000, "{}", unix_ms());
    }
}
