//! Sources: where records enter the job, and where in the input a snapshot was taken.
//!
//! A source is a set of *splits*, fixed for the life of the job, each read in order by one
//! [`Reader`] with an offset. Task t of p reads the splits s with `s % p == t`, so a job restored on
//! another number of cores goes on exactly where the splits were.
//!
//! Invariants
//! - The offset in a snapshot is taken when everything read before it has left the operator and
//!   nothing after it has been read (trap 11).
//! - A replayable source gives the same records again from the same offset, whatever machine or
//!   time it is.

mod generator;
mod lines;
mod text_file;

pub use generator::{Generator, Items};
pub use lines::{LineSplitter, StdinLines, TcpLines};
pub use text_file::{Decoded, TextFile};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rkyv::{Archive, Deserialize, Serialize};

use super::{Downstream, Flow, Part, Probe, Visitor};
use crate::config::{BATCH_RECORDS, INPUT_RECORDS_MAX};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::id::{SnapshotId, StateSlot};
use crate::record::{Collector, Data, Record};
use crate::state::{Drained, OperatorState, StateWriter};

/// How soon a source that had nothing is asked again, ns.
const IDLE_POLL_NS: u64 = 1_000_000;
/// The same where the disk is at work for it.
const SOON_POLL_NS: u64 = 20_000;

/// What a reader may use.
#[derive(Clone)]
pub struct ReaderContext {
    /// Files, as the job's driver reaches them.
    pub disk: Arc<dyn Disk>,
}

/// Where records come from.
pub trait Source: Send + Sync + 'static {
    /// What it emits.
    type Item: Record;

    /// What distinguishes this input from another, for the job's fingerprint: a snapshot is only
    /// restored over the same input.
    ///
    /// # Errors
    /// The input cannot be looked at.
    fn identity(&self, context: &ReaderContext) -> Result<String>;

    /// How many splits there are; never changes for one identity. At least 1.
    fn splits(&self) -> u32;

    /// A reader of `split` from `offset` on, or from the split's beginning. The first one of each
    /// task is made before the workers of an attempt run, and may be waited for, with a bound. One that
    /// follows on it is made on the worker, which waits too, and with it every barrier.
    ///
    /// # Errors
    /// The split cannot be read.
    fn reader(
        &self,
        split: u32,
        offset: Option<u64>,
        context: &ReaderContext,
    ) -> Result<Box<dyn Reader<Self::Item>>>;
}

/// How a [`Reader::read`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// There may be more.
    More,
    /// Nothing now; more may come, when is not known.
    Idle,
    /// Nothing now; more is on its way from the disk.
    Soon,
    /// Nothing before this time, ns of [`crate::clock`].
    Until(u64),
    /// The split has come to its end.
    End,
}

/// Reads one split in order.
pub trait Reader<T>: Send {
    /// Takes up to `max` items of the input (lines, indices: what a rate and progress count), and
    /// fewer once `out` has a batch; appends the records they make to `out` and returns how many
    /// items it took. Never blocks.
    ///
    /// # Errors
    /// The input cannot be read or is malformed.
    fn read(&mut self, max: usize, out: &mut Collector<T>) -> Result<(Read, usize)>;

    /// Where a reader has to begin to take the first item not taken yet.
    fn offset(&self) -> u64;
}

/// How far one split has been read.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitOffset {
    split: u32,
    offset: u64,
    ended: bool,
}

/// Source offsets of one task, as state.
struct Offsets {
    subtask: u32,
    parallelism: u32,
    splits: BTreeMap<u32, SplitOffset>,
    marked: Option<Vec<SplitOffset>>,
}

const SCHEMA: u32 = 1;

impl OperatorState for Offsets {
    fn mark(&mut self, _snapshot: SnapshotId) {
        self.marked = Some(self.splits.values().copied().collect());
    }

    fn drain(&mut self, _budget_bytes: usize, out: &mut dyn StateWriter) -> Result<Drained> {
        if let Some(marked) = self.marked.take() {
            let bytes = marked.to_archive().map_err(|source| Error::State {
                operator: "source offsets".into(),
                reason: source.to_string(),
            })?;
            out.write(StateSlot::Task(self.subtask), SCHEMA, &bytes);
        }
        Ok(Drained::Done)
    }

    fn abandon(&mut self) {
        self.marked = None;
    }

    fn restore(&mut self, _slot: StateSlot, schema: u32, bytes: &[u8]) -> Result<(), String> {
        if schema != SCHEMA {
            return Err(format!("source offsets have schema {schema}, known is {SCHEMA}"));
        }
        let all = Vec::<SplitOffset>::from_archive(bytes).map_err(|error| error.to_string())?;
        let mine = all.into_iter().filter(|s| s.split % self.parallelism == self.subtask);
        self.splits.extend(mine.map(|offset| (offset.split, offset)));
        Ok(())
    }
}

/// Keeps a source to a rate: item i is due at `i / rate` after the first step.
#[derive(Clone, Debug)]
pub struct Pace {
    items_per_second: f64,
    emitted: u64,
    started_ns: Option<u64>,
}

impl Pace {
    /// `items_per_second` of one task; 0 means never.
    #[must_use]
    pub fn new(items_per_second: f64) -> Self {
        Self { items_per_second, emitted: 0, started_ns: None }
    }

    /// How many items are due by `now_ns`.
    fn due(&mut self, now_ns: u64) -> usize {
        let started_ns = *self.started_ns.get_or_insert(now_ns);
        let due = ((now_ns - started_ns) as f64 / 1e9 * self.items_per_second) as u64;
        let due = due.saturating_add(u64::from(self.items_per_second > 0.0));
        due.saturating_sub(self.emitted) as usize
    }

    /// When the next item is due.
    fn next_due_ns(&self) -> Option<u64> {
        let seconds = self.emitted as f64 / self.items_per_second;
        let after_ns = ((seconds * 1e9) as u64).saturating_add(1);
        seconds.is_finite().then(|| self.started_ns.unwrap_or(0).saturating_add(after_ns))
    }
}

/// What a pull of the source did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourcePull {
    /// It emitted something.
    Worked,
    /// The chain is full.
    Full,
    /// Nothing before this time (ns), or until something comes.
    Idle(Option<u64>),
    /// Every split has come to its end.
    Ended,
}

/// A split being read.
type OpenSplit<T> = (u32, Box<dyn Reader<T>>);

/// The head of a source task: reads its splits one after another.
pub struct SourceHead<T: Record> {
    name: String,
    source: Arc<dyn Source<Item = T>>,
    context: ReaderContext,
    reading: Option<OpenSplit<T>>,
    offsets: Offsets,
    pace: Option<Pace>,
    /// Items of input read by all sources of the job, for whoever watches it.
    records: Arc<AtomicU64>,
    downstream: Downstream<T>,
    probe: Probe,
}

impl<T: Record> SourceHead<T> {
    /// Task `subtask` of `parallelism` of operator `name`, emitting into `downstream`.
    #[must_use]
    pub fn new(
        name: String,
        source: Arc<dyn Source<Item = T>>,
        (subtask, parallelism): (usize, usize),
        (pace, records): (Option<Pace>, Arc<AtomicU64>),
        context: ReaderContext,
        (downstream, probe): (Downstream<T>, Probe),
    ) -> Self {
        let (subtask, parallelism) = (subtask as u32, parallelism as u32);
        let offsets = Offsets { subtask, parallelism, splits: BTreeMap::new(), marked: None };
        Self { name, source, context, reading: None, offsets, pace, records, downstream, probe }
    }

    /// Opens what is to be read first.
    ///
    /// # Errors
    /// The source's.
    pub fn open(&mut self) -> Result<()> {
        self.probe.enter();
        self.reading = self.open_next()?;
        Ok(())
    }

    /// Reads and hands on up to [`INPUT_RECORDS_MAX`] records.
    ///
    /// # Errors
    /// The source's, or its successor's.
    pub fn pull(&mut self, now_ns: u64) -> Result<SourcePull> {
        let mut pulled = 0;
        let result = self.pull_some(now_ns, &mut pulled);
        if pulled > 0 {
            self.records.fetch_add(pulled as u64, Ordering::Relaxed);
        }
        result
    }

    fn pull_some(&mut self, now_ns: u64, pulled: &mut usize) -> Result<SourcePull> {
        while *pulled < INPUT_RECORDS_MAX {
            if self.downstream.flush()? == Flow::Full {
                return Ok(SourcePull::Full);
            }
            let max = self.pace.as_mut().map_or(usize::MAX, |pace| pace.due(now_ns));
            if max == 0 {
                let next = self.pace.as_ref().and_then(Pace::next_due_ns);
                return Ok(if *pulled > 0 { SourcePull::Worked } else { SourcePull::Idle(next) });
            }
            self.probe.enter();
            let (read, count) = self.read(max.min(BATCH_RECORDS))?;
            *pulled += count;
            if let Some(pace) = &mut self.pace {
                pace.emitted += count as u64;
            }
            match read {
                Read::More => {}
                Read::Idle | Read::Soon | Read::Until(_) if *pulled > 0 => break,
                Read::Idle => return Ok(SourcePull::Idle(Some(now_ns + IDLE_POLL_NS))),
                Read::Soon => return Ok(SourcePull::Idle(Some(now_ns + SOON_POLL_NS))),
                Read::Until(due_ns) => return Ok(SourcePull::Idle(Some(due_ns))),
                Read::End => {
                    return Ok(if *pulled > 0 { SourcePull::Worked } else { SourcePull::Ended });
                }
            }
        }
        Ok(match self.downstream.flush()? {
            Flow::Full => SourcePull::Full,
            Flow::Done => SourcePull::Worked,
        })
    }

    /// One batch from the split being read, or the next one that has not ended, and how many items
    /// of input it took.
    fn read(&mut self, max: usize) -> Result<(Read, usize)> {
        if self.reading.is_none() {
            self.reading = self.open_next()?;
        }
        let Some((split, reader)) = &mut self.reading else { return Ok((Read::End, 0)) };
        let out = self.downstream.fill();
        let (read, count) = reader.read(max, Collector::over(out))?;
        let ended = read == Read::End;
        let offset = SplitOffset { split: *split, offset: reader.offset(), ended };
        self.offsets.splits.insert(*split, offset);
        if ended {
            self.reading = None;
            return Ok((Read::More, count));
        }
        Ok((read, count))
    }

    fn open_next(&self) -> Result<Option<OpenSplit<T>>> {
        let Offsets { subtask, parallelism, .. } = self.offsets;
        for split in (subtask..self.source.splits()).step_by(parallelism as usize) {
            let read = self.offsets.splits.get(&split);
            if read.is_none_or(|read| !read.ended) {
                let offset = read.map(|read| read.offset);
                let reader = self.source.reader(split, offset, &self.context)?;
                return Ok(Some((split, reader)));
            }
        }
        Ok(None)
    }

    /// Hands on what is buffered.
    ///
    /// # Errors
    /// The successor's.
    pub fn flush(&mut self) -> Result<Flow> {
        self.downstream.flush()
    }

    /// Every split has ended: finishes the successors.
    ///
    /// # Errors
    /// The successor's.
    pub fn finish(&mut self) -> Result<Flow> {
        self.downstream.finish()
    }

    /// Visits the offsets and the successors.
    ///
    /// # Errors
    /// The visitor's.
    pub fn visit(&mut self, visitor: &mut Visitor<'_>) -> Result<()> {
        visitor(Part::State(&self.name, &mut self.offsets))?;
        self.downstream.visit(visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paced_source_emits_record_i_at_i_over_rate() {
        let mut pace = Pace::new(1000.0);
        assert_eq!(pace.due(5_000_000), 1, "the first at once");
        pace.emitted = 1;
        assert_eq!(pace.due(5_900_000), 0);
        assert_eq!(pace.next_due_ns(), Some(6_000_001));
        assert_eq!(pace.due(6_000_001), 1);
        assert_eq!(pace.due(15_000_001), 10);
    }

    #[test]
    fn a_rate_of_any_size_is_kept_without_overflow() {
        for rate in [1e300, f64::MAX, 1e-300, f64::MIN_POSITIVE] {
            let mut pace = Pace::new(rate);
            assert_eq!(pace.due(7), 1, "the first at once");
            pace.emitted = 1;
            let quick = rate > 1.0;
            assert_eq!(pace.due(1 << 40) > 1 << 60, quick, "{rate}");
            assert_eq!(pace.next_due_ns() == Some(8), quick, "{rate}");
        }
    }

    #[test]
    fn rate_zero_never_emits_and_never_wakes() {
        let mut pace = Pace::new(0.0);
        assert_eq!(pace.due(1 << 60), 0);
        assert_eq!(pace.next_due_ns(), None);
    }
}
