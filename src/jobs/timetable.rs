//! When each record of a measured run is sent: at a constant rate, whatever the engine does.
//!
//! A record's latency is counted from when it *was to be* sent, not from when it was: a generator that
//! is held up would otherwise leave out exactly the records that waited longest (coordinated
//! omission). So the timetable is fixed in advance: behind the records that are *loaded* before
//! anything is measured, record i is due `i / rate` after a start that all sources share; in a run that goes
//! on from another, behind those that the other sent.
//!
//! The source emits a record in the first step that finds it due, in turn with the other sources: a
//! source is a *lane* that has every p-th index. Steps follow each other within a microsecond while
//! a worker has nothing else to do, so records leave one by one, not in bursts.
//!
//! Invariants
//! - A due time is a function of the index and the start only.
//! - No record behind the loaded ones leaves before the run has started.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::clock;
use crate::config::BATCH_RECORDS;
use crate::error::Result;
use crate::operator::source::{Read, Reader, ReaderContext, Source};
use crate::record::{Collector, Record};

/// What is sent first is not measured: caches, tables and the machine's clock rate are cold.
const WARM_UP_NS_MAX: u64 = 1_000_000_000;
/// Of a short run, this part of it.
const WARM_UP_SHARE: u64 = 10;
/// Behind its timetable by this all the time, a generator is late, ns: far more than a step.
const LATE_NS: u64 = 1_000_000;
/// It is judged in the last part of the run: one that is slow ever has fallen behind by then.
const JUDGED_SHARE: u64 = 10;

/// What is to be sent, and how fast.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Indices loaded as fast as they are taken, before the start.
    pub loaded: u64,
    /// Indices that follow.
    pub records: u64,
    /// Of those, only so many: the source then waits for a stop. For a run that is to be gone on from.
    pub held_after: Option<u64>,
    /// Of those, so many were sent by the run that this one goes on from: the next is due at the start.
    pub sent_before: u64,
    /// Records per second over all lanes; without a rate they are sent as fast as they are taken.
    pub per_second: Option<f64>,
}

impl Timing {
    /// `records` at this rate, if any.
    #[must_use]
    pub fn of(records: u64, per_second: Option<f64>) -> Self {
        Self { loaded: 0, records, held_after: None, sent_before: 0, per_second }
    }

    /// Indices that are sent behind the loaded ones.
    fn sent(&self) -> u64 {
        self.held_after.map_or(self.records, |held_after| held_after.min(self.records))
    }
}

/// The timetable of one run, for its sources, its sink and whoever looks on.
#[derive(Clone, Debug)]
pub struct Timetable {
    timing: Timing,
    started_ns: Arc<OnceLock<u64>>,
    late: Arc<AtomicBool>,
}

impl Timetable {
    /// A timetable that has not started.
    #[must_use]
    pub fn new(timing: Timing) -> Self {
        Self { timing, started_ns: Arc::default(), late: Arc::default() }
    }

    /// What is sent.
    #[must_use]
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// All that is loaded is there: the first record is due now. Later calls change nothing.
    pub fn start(&self, now_ns: u64) {
        self.started_ns.get_or_init(|| now_ns);
    }

    /// When the run started, ns of [`clock`].
    #[must_use]
    pub fn started_ns(&self) -> Option<u64> {
        self.started_ns.get().copied()
    }

    /// Whether the generator fell behind and did not catch up: the rate was not kept.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.late.load(Ordering::Relaxed)
    }

    /// Latencies of records due from then on count, ns; none do without a rate or before the start.
    #[must_use]
    pub fn measured_from_ns(&self) -> Option<u64> {
        let sent = self.timing.sent().saturating_sub(self.timing.sent_before);
        let run_ns = sent as f64 * 1e9 / self.timing.per_second?;
        let warm_up_ns = (run_ns as u64 / WARM_UP_SHARE).min(WARM_UP_NS_MAX);
        Some(self.started_ns()?.saturating_add(warm_up_ns))
    }

    /// Indices below this may be sent at `now_ns`.
    fn sendable(&self, now_ns: u64) -> u64 {
        let Timing { loaded, sent_before, per_second, .. } = self.timing;
        let Some(started_ns) = self.started_ns() else { return loaded };
        let due = per_second.map_or(u64::MAX, |per_second| {
            let since = (now_ns.saturating_sub(started_ns) as f64 * per_second / 1e9) as u64;
            sent_before + 1 + since
        });
        loaded + due.min(self.timing.sent())
    }

    /// When `index` is due; without a timetable for it, `now_ns`.
    fn due_ns(&self, index: u64, now_ns: u64) -> u64 {
        let started_ns = self.started_ns().filter(|_| index >= self.timing.loaded);
        match started_ns.zip(self.timing.per_second) {
            None => now_ns,
            Some((started_ns, per_second)) => {
                let after = index - self.timing.loaded;
                let after_ns =
                    after.saturating_sub(self.timing.sent_before) as f64 * 1e9 / per_second;
                started_ns.saturating_add(after_ns as u64)
            }
        }
    }

    /// From this index on it is judged whether the generator keeps up.
    fn judged_from(&self) -> u64 {
        let sent = self.timing.sent();
        self.timing.loaded + sent - sent / JUDGED_SHARE
    }
}

/// A source that keeps to a timetable: `make(index, due_ns, out)` pushes the records of an index.
pub struct Timed<T, F> {
    identity: String,
    timetable: Timetable,
    lanes: u32,
    make: Arc<F>,
    record: std::marker::PhantomData<fn() -> T>,
}

impl<T: Record, F: Fn(u64, u64, &mut Collector<T>) + Send + Sync + 'static> Timed<T, F> {
    /// As many lanes as there are tasks of it, at least one.
    ///
    /// # Panics
    /// Without a lane.
    pub fn new(identity: impl Into<String>, timetable: Timetable, lanes: usize, make: F) -> Self {
        assert!(lanes > 0, "{lanes} lanes");
        let lanes = u32::try_from(lanes).expect("no machine has so many cores");
        let record = std::marker::PhantomData;
        Self { identity: identity.into(), timetable, lanes, make: Arc::new(make), record }
    }
}

impl<T: Record, F: Fn(u64, u64, &mut Collector<T>) + Send + Sync + 'static> Source for Timed<T, F> {
    type Item = T;

    fn identity(&self, _context: &ReaderContext) -> Result<String> {
        let Timing { loaded, records, .. } = self.timetable.timing;
        let (identity, lanes) = (&self.identity, self.lanes);
        Ok(format!("timed {identity}, {loaded} loaded and {records} more in {lanes} lanes"))
    }

    fn splits(&self) -> u32 {
        self.lanes
    }

    fn reader(
        &self,
        split: u32,
        offset: Option<u64>,
        _context: &ReaderContext,
    ) -> Result<Box<dyn Reader<T>>> {
        let (timetable, make) = (self.timetable.clone(), self.make.clone());
        let (next, step) = (offset.unwrap_or(u64::from(split)), u64::from(self.lanes));
        Ok(Box::new(Lane { next, step, behind_ns: None, timetable, make }))
    }
}

struct Lane<F> {
    next: u64,
    step: u64,
    /// In the judged part, the least by which the newest record of a batch was behind.
    behind_ns: Option<u64>,
    timetable: Timetable,
    make: Arc<F>,
}

impl<T, F: Fn(u64, u64, &mut Collector<T>) + Send + Sync> Reader<T> for Lane<F> {
    fn read(&mut self, max: usize, out: &mut Collector<T>) -> Result<(Read, usize)> {
        Ok(self.read_at(clock::now_ns(), max, out))
    }

    fn offset(&self) -> u64 {
        self.next
    }
}

impl<F> Lane<F> {
    fn read_at<T>(&mut self, now_ns: u64, max: usize, out: &mut Collector<T>) -> (Read, usize)
    where
        F: Fn(u64, u64, &mut Collector<T>),
    {
        let Timing { loaded, records, .. } = self.timetable.timing;
        if loaded == 0 {
            self.timetable.start(now_ns);
        }
        let (end, mut count) = (self.timetable.sendable(now_ns), 0);
        let mut due_ns = now_ns;
        while self.next < end && count < max && out.len() < BATCH_RECORDS {
            due_ns = self.timetable.due_ns(self.next, now_ns);
            (self.make)(self.next, due_ns, out);
            self.next += self.step;
            count += 1;
        }
        if count > 0 {
            self.judge(now_ns.saturating_sub(due_ns));
        }
        let read = match () {
            () if self.next >= loaded + records => Read::End,
            () if count > 0 => Read::More,
            () if self.timetable.started_ns().is_none() => Read::Soon,
            () => match self.timetable.due_ns(self.next, now_ns) {
                due_ns if due_ns > now_ns => Read::Until(due_ns),
                _ => Read::Idle,
            },
        };
        (read, count)
    }

    /// The newest record of a batch left so long after it was due.
    fn judge(&mut self, behind_ns: u64) {
        let sent = self.next - self.step;
        if sent < self.timetable.judged_from() {
            return;
        }
        let least_ns = self.behind_ns.map_or(behind_ns, |least_ns| least_ns.min(behind_ns));
        self.behind_ns = Some(least_ns);
        let timing = self.timetable.timing;
        if self.next >= timing.loaded + timing.sent() && least_ns > LATE_NS {
            self.timetable.late.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Sent = (u64, u64);

    fn push(index: u64, due_ns: u64, out: &mut Collector<Sent>) {
        out.push((index, due_ns));
    }

    type Make = fn(u64, u64, &mut Collector<Sent>);

    fn lane(timetable: &Timetable, lane: u64, lanes: u64) -> Lane<Make> {
        let (timetable, make) = (timetable.clone(), Arc::new(push as Make));
        Lane { next: lane, step: lanes, behind_ns: None, timetable, make }
    }

    fn read(lane: &mut Lane<Make>, now_ns: u64) -> (Read, Vec<Sent>) {
        let mut out = Vec::new();
        let (read, count) = lane.read_at(now_ns, usize::MAX, Collector::over(&mut out));
        assert_eq!(count, out.len());
        (read, out)
    }

    #[test]
    fn a_record_is_sent_as_soon_as_it_is_due_and_says_when_that_was() {
        let timetable = Timetable::new(Timing::of(10, Some(1e6)));
        let (mut even, mut odd) = (lane(&timetable, 0, 2), lane(&timetable, 1, 2));
        assert_eq!(read(&mut even, 500), (Read::More, vec![(0, 500)]));
        assert_eq!(read(&mut odd, 600), (Read::Until(1_500), vec![]), "one start for both");
        assert_eq!(read(&mut odd, 1_500), (Read::More, vec![(1, 1_500)]));
        let held_up = read(&mut even, 7_000);
        assert_eq!(held_up, (Read::More, vec![(2, 2_500), (4, 4_500), (6, 6_500)]));
        assert_eq!(read(&mut even, 8_500), (Read::End, vec![(8, 8_500)]));
    }

    #[test]
    fn what_is_loaded_comes_first_and_nothing_behind_it_before_the_start() {
        let timing = Timing { loaded: 3, held_after: Some(2), ..Timing::of(9, None) };
        let timetable = Timetable::new(timing);
        let mut only = lane(&timetable, 0, 1);
        assert_eq!(read(&mut only, 5).1, [(0, 5), (1, 5), (2, 5)]);
        assert_eq!(read(&mut only, 6), (Read::Soon, vec![]));
        timetable.start(7);
        assert_eq!(read(&mut only, 8).1, [(3, 8), (4, 8)]);
        assert_eq!(read(&mut only, 9), (Read::Idle, vec![]), "held");
    }

    #[test]
    fn a_run_that_goes_on_from_another_begins_its_timetable_where_that_one_ended() {
        let timing = Timing { loaded: 3, sent_before: 2, ..Timing::of(9, Some(1e6)) };
        let timetable = Timetable::new(timing);
        timetable.start(7_000);
        let mut only = lane(&timetable, 5, 1);
        assert_eq!(read(&mut only, 7_500), (Read::More, vec![(5, 7_000)]));
        assert_eq!(read(&mut only, 7_600), (Read::Until(8_000), vec![]));
        assert_eq!(read(&mut only, 9_000).1, [(6, 8_000), (7, 9_000)]);
    }

    #[test]
    fn a_generator_that_catches_up_is_not_late_and_one_that_never_does_is() {
        let timing = Timing::of(1_000, Some(1e6));
        for (late, behind_ns) in [(false, 0), (false, LATE_NS / 2), (true, 2 * LATE_NS)] {
            let timetable = Timetable::new(timing);
            let mut only = lane(&timetable, 0, 1);
            timetable.start(0);
            for now_us in 0..1_000 {
                // Records that are due by then leave later.
                let mut out = Vec::new();
                if timetable.sendable(now_us * 1_000) > only.next {
                    only.read_at(now_us * 1_000 + behind_ns, 1, Collector::over(&mut out));
                }
            }
            assert_eq!(timetable.is_late(), late, "{behind_ns}");
        }
    }

    #[test]
    fn a_second_or_a_tenth_of_a_short_run_is_warm_up() {
        for (records, warm_up_ns) in [(100, 10_000_000), (1_000_000, 1_000_000_000)] {
            // What is left to a second run does not lengthen the first.
            let held_after = Some(records);
            let timing = Timing { held_after, ..Timing::of(records * 9, Some(1_000.0)) };
            let timetable = Timetable::new(timing);
            assert_eq!(timetable.measured_from_ns(), None, "not started");
            timetable.start(5);
            assert_eq!(timetable.measured_from_ns(), Some(5 + warm_up_ns));
        }
    }
}
