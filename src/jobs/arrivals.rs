//! What arrives at a sink, and when: the other end of a [`Timetable`].
//!
//! A wrapper around a sink. It reads the clock once per batch and records for each record how long ago
//! it was due. That is when the engine has computed the result, not when its snapshot has committed it.
//!
//! Invariants
//! - Each writer has a histogram of its own, merged when it is dropped: once a run has ended the
//!   latencies are whole.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hdrhistogram::Histogram;

use super::timetable::Timetable;
use crate::clock;
use crate::disk::{Disk, DiskLock};
use crate::error::Result;
use crate::id::SnapshotId;
use crate::operator::Flow;
use crate::operator::sink::{Sink, Writer, WriterContext};
use crate::record::Batch;

/// What has arrived so far.
#[derive(Clone, Debug)]
pub struct Arrivals {
    timetable: Timetable,
    latency_ns: Arc<Mutex<Histogram<u64>>>,
    seen: Arc<Seen>,
}

#[derive(Debug)]
struct Seen {
    records: AtomicU64,
    /// `u64::MAX`: none.
    first_ns: AtomicU64,
    last_ns: AtomicU64,
    /// Longest time in which nothing arrived anywhere, after the start.
    gap_ns: AtomicU64,
}

impl Arrivals {
    /// Of records that are sent by `timetable`.
    #[must_use]
    pub fn new(timetable: Timetable) -> Self {
        let [records, last_ns, gap_ns] = [0; 3].map(AtomicU64::new);
        let first_ns = AtomicU64::new(u64::MAX);
        let seen = Arc::new(Seen { records, first_ns, last_ns, gap_ns });
        Self { timetable, latency_ns: Arc::new(Mutex::new(clock::histogram_ns())), seen }
    }

    /// By which they were sent.
    #[must_use]
    pub fn timetable(&self) -> &Timetable {
        &self.timetable
    }

    /// From when a record was due to when it arrived, ns, without the warm-up. Whole when the run has
    /// ended.
    #[must_use]
    pub fn latency_ns(&self) -> Histogram<u64> {
        self.latency_ns.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many, loaded ones included.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.seen.records.load(Ordering::Relaxed)
    }

    /// When the first one came, ns of [`clock`].
    #[must_use]
    pub fn first_ns(&self) -> Option<u64> {
        Some(self.seen.first_ns.load(Ordering::Relaxed)).filter(|first_ns| *first_ns != u64::MAX)
    }

    /// From the timetable's start to the last arrival, ns: without what is loaded, and without the
    /// job's beginning and end. 0 before the start.
    #[must_use]
    pub fn took_ns(&self) -> u64 {
        let last_ns = self.seen.last_ns.load(Ordering::Relaxed);
        self.timetable.started_ns().map_or(0, |started_ns| last_ns.saturating_sub(started_ns))
    }

    /// The longest time after the timetable's start in which nothing arrived at any sink, ns.
    #[must_use]
    pub fn longest_gap_ns(&self) -> u64 {
        self.seen.gap_ns.load(Ordering::Relaxed)
    }

    fn note(&self, count: u64, now_ns: u64) {
        let Seen { records, first_ns, last_ns, gap_ns } = &*self.seen;
        if first_ns.load(Ordering::Relaxed) == u64::MAX {
            first_ns.fetch_min(now_ns, Ordering::Relaxed);
        }
        let before_ns = last_ns.fetch_max(now_ns, Ordering::Relaxed);
        if self.timetable.started_ns().is_some_and(|started_ns| before_ns >= started_ns) {
            let gap = now_ns.saturating_sub(before_ns);
            if gap > gap_ns.load(Ordering::Relaxed) {
                gap_ns.fetch_max(gap, Ordering::Relaxed);
            }
        }
        let all = records.fetch_add(count, Ordering::Relaxed) + count;
        if self.timetable.started_ns().is_none() && all >= self.timetable.timing().loaded {
            self.timetable.start(now_ns);
        }
    }
}

/// A sink whose arrivals are noted. For sinks that take every batch whole.
pub struct Noted<S, D> {
    sink: S,
    due_ns: D,
    arrivals: Arrivals,
}

impl<S: Sink, D: Fn(&S::Item) -> u64 + Clone + Send + Sync + 'static> Noted<S, D> {
    /// Notes what arrives at `sink`; a record was due at `due_ns(record)`.
    #[must_use]
    pub fn new(sink: S, due_ns: D, arrivals: Arrivals) -> Self {
        Self { sink, due_ns, arrivals }
    }
}

impl<S: Sink, D: Fn(&S::Item) -> u64 + Clone + Send + Sync + 'static> Sink for Noted<S, D> {
    type Item = S::Item;

    fn identity(&self) -> String {
        self.sink.identity()
    }

    fn claim(
        &self,
        owner: &str,
        handles: Option<&[Vec<u8>]>,
        disk: &dyn Disk,
    ) -> Result<Option<DiskLock>> {
        self.sink.claim(owner, handles, disk)
    }

    fn recover(&self, handles: Option<&[Vec<u8>]>, disk: &dyn Disk) -> Result<()> {
        self.sink.recover(handles, disk)
    }

    fn writer(&self, context: &WriterContext) -> Result<Box<dyn Writer<S::Item>>> {
        let (writer, due_ns) = (self.sink.writer(context)?, self.due_ns.clone());
        let (arrivals, latency_ns) = (self.arrivals.clone(), clock::histogram_ns());
        Ok(Box::new(NotedWriter { writer, due_ns, arrivals, latency_ns }))
    }
}

struct NotedWriter<T, D> {
    writer: Box<dyn Writer<T>>,
    due_ns: D,
    arrivals: Arrivals,
    latency_ns: Histogram<u64>,
}

impl<T, D: Fn(&T) -> u64 + Send> Writer<T> for NotedWriter<T, D> {
    fn write(&mut self, records: &mut Batch<'_, T>) -> Result<Flow> {
        if records.is_empty() {
            return self.writer.write(records);
        }
        let now_ns = clock::now_ns();
        if let Some(from_ns) = self.arrivals.timetable.measured_from_ns() {
            let due = records.as_slice().iter().map(&self.due_ns);
            due.filter(|due_ns| *due_ns >= from_ns).for_each(|due_ns| {
                self.latency_ns.saturating_record(now_ns.saturating_sub(due_ns));
            });
        }
        let count = records.len() as u64;
        let flow = self.writer.write(records)?;
        assert!(records.is_empty(), "{} of {count} records are left", records.len());
        self.arrivals.note(count, now_ns);
        Ok(flow)
    }

    fn ended(&mut self) {
        self.writer.ended();
    }

    fn prepare(&mut self, snapshot: SnapshotId) -> Result<Vec<u8>> {
        self.writer.prepare(snapshot)
    }

    fn is_prepared(&mut self, snapshot: SnapshotId) -> Result<bool> {
        self.writer.is_prepared(snapshot)
    }

    fn commit(&mut self, snapshot: SnapshotId, last: bool) -> Result<()> {
        self.writer.commit(snapshot, last)
    }

    fn commit_all(&mut self) -> Result<()> {
        self.writer.commit_all()
    }
}

impl<T, D> Drop for NotedWriter<T, D> {
    fn drop(&mut self) {
        let all = self.arrivals.latency_ns.lock();
        let mut all = all.unwrap_or_else(PoisonError::into_inner);
        // Both have the same bounds; nothing is to be done about it in a drop.
        _ = all.add(&self.latency_ns);
    }
}
