//! Operators: what a task does to its records.
//!
//! A task is a chain (or tree) of [`Stage`]s. Each is generic inside and called through `dyn` once
//! per batch: the inner loops are plain loops over records. Stages never see a barrier; a task
//! reaches the parts of its stages that a snapshot concerns through [`Stage::visit`].
//!
//! Invariants
//! - Nothing is lost or reordered by backpressure: a stage that cannot hand on its output keeps it
//!   ([`Downstream`]) and says [`Flow::Full`]; called again, it goes on where it stopped.
//! - After [`Flow::Done`] a stage owes nothing: state and output agree, so a capture may follow.
//! - A call is a bounded piece of work, though no output is ever full: a stage that makes more of a record
//!   than a fixed number, or emits its state, pauses after [`STEP_RECORDS_MAX`] in all. Not bounded is what
//!   user code does in one call: what `process` puts out for one chunk is handed on as it is.

pub mod keyed;
pub mod process;
pub mod sink;
pub mod source;
pub mod split;
pub mod transform;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::config::{BATCH_RECORDS, STEP_RECORDS_MAX};
use crate::error::Result;
use crate::id::SnapshotId;
use crate::record::{Batch, Buffer, Control};
use crate::state::OperatorState;

/// How far a call got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Flow {
    /// All that was asked is done; nothing is owed.
    Done,
    /// An output has no room, or a stage has paused: call again to go on.
    Full,
}

/// One step of a task's chain: takes records of type `I`, hands results to its successor.
pub trait Stage<I>: Send {
    /// Takes records out of `input` until it is empty (`Done`) or an output is full.
    ///
    /// # Errors
    /// What fails the task: a source, sink or state error.
    fn process(&mut self, input: &mut Batch<'_, I>) -> Result<Flow>;

    /// Hands on everything owed, without taking a record.
    ///
    /// # Errors
    /// See [`process`](Self::process).
    fn flush(&mut self) -> Result<Flow>;

    /// No record follows: emits what is left. Called until `Done`, then never again.
    ///
    /// # Errors
    /// See [`process`](Self::process).
    fn finish(&mut self) -> Result<Flow>;

    /// Shows `visitor` every part of this stage and its successors that a snapshot concerns, in a
    /// fixed order.
    ///
    /// # Errors
    /// The visitor's.
    fn visit(&mut self, visitor: &mut Visitor<'_>) -> Result<()>;
}

/// What [`Stage::visit`] calls.
pub type Visitor<'a> = dyn FnMut(Part<'_>) -> Result<()> + 'a;

/// One part of a task that a snapshot concerns.
pub enum Part<'a> {
    /// State, under the name of its operator.
    State(&'a str, &'a mut dyn OperatorState),
    /// A sink's two-phase commit.
    Sink(&'a str, &'a mut dyn Committer),
    /// The end of the chain towards other tasks.
    Output(&'a mut dyn Output),
}

/// The commit side of a sink. What it writes between two marks belongs to one snapshot.
pub trait Committer: Send {
    /// Whether everything written before the mark of `snapshot` is durable. Never blocks.
    ///
    /// # Errors
    /// The data could not be made durable.
    fn is_prepared(&mut self, snapshot: SnapshotId) -> Result<bool>;

    /// Publishes what belongs to snapshots up to `snapshot`, which is complete. `last`: the job
    /// stops here.
    ///
    /// # Errors
    /// The data could not be published.
    fn commit(&mut self, snapshot: SnapshotId, last: bool) -> Result<()>;

    /// Publishes everything: the job is complete and takes no snapshots.
    ///
    /// # Errors
    /// The data could not be published.
    fn commit_all(&mut self) -> Result<()>;
}

/// Where records leave the task.
pub trait Output: Send {
    /// Puts `control` behind everything sent so far, in every channel. `Full`: call again with the
    /// same control; channels that have it do not get it twice.
    fn control(&mut self, control: Control) -> Flow;
}

/// What a task's stages tell their task in passing. Written and read by one thread.
#[derive(Debug, Default)]
pub struct Trace {
    /// Number of the operator whose code runs.
    running: AtomicUsize,
    /// Whether records were sent since the task last asked.
    sent: AtomicBool,
    /// Whether a sink had to wait for its output since the task last asked.
    held_back: AtomicBool,
    /// Records that stages have made of others, or out of state, since one of them paused.
    made: AtomicUsize,
    /// Whether a stage has paused since the task last asked.
    paused: AtomicBool,
}

impl Trace {
    /// Number of the operator whose code ran last.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// From here on this operator's code runs.
    #[inline]
    pub fn enter(&self, operator: usize) {
        self.running.store(operator, Ordering::Relaxed);
    }

    /// Whether records were sent to another task since the last call.
    pub fn take_sent(&self) -> bool {
        take(&self.sent)
    }

    /// Whether a sink had to wait for its output since the last call.
    pub fn take_held_back(&self) -> bool {
        take(&self.held_back)
    }

    /// Whether a stage said [`Flow::Full`] since the last call only to let others run.
    pub fn take_paused(&self) -> bool {
        take(&self.paused)
    }
}

fn take(flag: &AtomicBool) -> bool {
    let set = flag.load(Ordering::Relaxed);
    if set {
        flag.store(false, Ordering::Relaxed);
    }
    set
}

/// Says whose user code runs, so that a panic or error is reported under its operator's name, and
/// whether records were sent or held back, or are to be made later.
#[derive(Clone, Debug)]
pub struct Probe {
    trace: Arc<Trace>,
    operator: usize,
}

impl Probe {
    /// For operator number `operator` of the job; `trace` is shared by the task's stages.
    #[must_use]
    pub fn new(trace: Arc<Trace>, operator: usize) -> Self {
        Self { trace, operator }
    }

    /// From here on this operator's code runs. Once per batch.
    #[inline]
    pub fn enter(&self) {
        self.trace.enter(self.operator);
    }

    /// Records were sent to another task. Once per batch.
    #[inline]
    pub fn sent(&self) {
        self.trace.sent.store(true, Ordering::Relaxed);
    }

    /// `count` records were made that need not be as many as were taken. True: that is enough for one
    /// step, so the stage says [`Flow::Full`] although its output has room; called again, it goes on.
    #[inline]
    pub fn pauses_after(&self, count: usize) -> bool {
        let made = self.trace.made.load(Ordering::Relaxed) + count;
        let pauses = made >= STEP_RECORDS_MAX;
        self.trace.made.store(if pauses { 0 } else { made }, Ordering::Relaxed);
        if pauses {
            self.trace.paused.store(true, Ordering::Relaxed);
        }
        pauses
    }

    /// A sink takes no more until its output has got on: nobody but the disk will say when.
    #[inline]
    pub fn held_back(&self) {
        self.trace.held_back.store(true, Ordering::Relaxed);
    }
}

/// A stage's successor, and the output it has not taken yet.
pub struct Downstream<O> {
    buffer: Buffer<O>,
    next: Box<dyn Stage<O>>,
    owed: bool,
}

impl<O> Downstream<O> {
    /// Hands on to `next`.
    #[must_use]
    pub fn new(next: Box<dyn Stage<O>>) -> Self {
        Self { buffer: Buffer::with_capacity(BATCH_RECORDS), next, owed: false }
    }

    /// Hands on what is buffered. After `Done` the buffer is empty and may be filled.
    ///
    /// # Errors
    /// The successor's.
    #[inline]
    pub fn flush(&mut self) -> Result<Flow> {
        let flow = if !self.buffer.is_empty() {
            let next = &mut self.next;
            self.buffer.lend(|batch| next.process(batch))?
        } else if self.owed {
            self.next.flush()?
        } else {
            return Ok(Flow::Done);
        };
        self.owed = flow == Flow::Full;
        Ok(flow)
    }

    /// The buffer to fill, after a flush that was `Done`.
    #[inline]
    pub fn fill(&mut self) -> &mut Vec<O> {
        self.buffer.fill()
    }

    /// Flushes, then finishes the successor.
    ///
    /// # Errors
    /// The successor's.
    pub fn finish(&mut self) -> Result<Flow> {
        match self.flush()? {
            Flow::Full => Ok(Flow::Full),
            Flow::Done => self.next.finish(),
        }
    }

    /// Visits the successor.
    ///
    /// # Errors
    /// The visitor's.
    pub fn visit(&mut self, visitor: &mut Visitor<'_>) -> Result<()> {
        self.next.visit(visitor)
    }
}
