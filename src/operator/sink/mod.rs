//! Sinks: where results leave the job, exactly once.
//!
//! Two phases around the manifest, which is the decision (Gray's transaction log in miniature):
//! at a barrier a writer *prepares* what it wrote (durable, but not visible) and puts a handle into
//! the snapshot; when the manifest is durable it *commits* (visible). After a restore
//! [`Sink::recover`] commits again what the manifest lists, which changes nothing if it had been
//! done, and discards anything newer.
//!
//! Invariants
//! - What is written between two marks belongs to the later one, whenever it is committed (trap 26).
//! - A handle lists everything of its writer that is not known to be committed for good, so a crash
//!   between manifest and commit loses nothing (trap 25).

mod collect;
mod console;
mod files;
mod fold;

pub use collect::{Collect, Collected};
pub use console::Console;
pub use files::{Files, Roll};
pub use fold::{FoldSink, Folded};

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Committer, Flow, Part, Probe, Stage, Visitor};
use crate::disk::{Disk, DiskLock};
use crate::error::{Error, Result};
use crate::id::{SnapshotId, StateSlot};
use crate::record::{Batch, Record};
use crate::state::{Drained, OperatorState, StateWriter};

/// What a writer is made with.
#[derive(Clone)]
pub struct WriterContext {
    /// Which parallel copy, from 0.
    pub subtask: usize,
    /// The first snapshot that what it writes will belong to.
    pub first_snapshot: SnapshotId,
    /// Whether the job takes snapshots. Without them nothing is prepared: a writer may publish as
    /// it goes, or at [`Writer::commit_all`].
    pub transactional: bool,
    /// Files, as the job's driver reaches them.
    pub disk: Arc<dyn Disk>,
}

/// The owner of what a run without snapshots leaves behind when it dies: no run goes on from that.
pub const NOBODY: &str = "a run without snapshots";

/// Where results go.
pub trait Sink: Send + Sync + 'static {
    /// What it takes.
    type Item: Record;

    /// What kind of sink it is, in one line: part of the job's identity, and of each of its handles.
    /// What one kind left prepared, another cannot commit.
    fn identity(&self) -> String;

    /// Called once in a run, before [`recover`](Self::recover) and with the same handles: takes what
    /// keeps other runs away from the place of output until this one ends, restarts included.
    /// `owner` says in one line whose output it is: the operator, and where its snapshots are; or it
    /// is [`NOBODY`].
    ///
    /// # Errors
    /// Another run or job has the place.
    fn claim(
        &self,
        _owner: &str,
        _handles: Option<&[Vec<u8>]>,
        _disk: &dyn Disk,
    ) -> Result<Option<DiskLock>> {
        Ok(None)
    }

    /// Called before writers are made, at every start and restart. `handles` are those of the snapshot
    /// that is being restored (empty: it had none), or `None` at a start without one. Commits what
    /// they list and discards what they do not. Called again after a crash: must be idempotent.
    ///
    /// # Errors
    /// The place of output cannot be used as it is.
    fn recover(&self, handles: Option<&[Vec<u8>]>, disk: &dyn Disk) -> Result<()>;

    /// A writer for one task.
    ///
    /// # Errors
    /// It cannot be made.
    fn writer(&self, context: &WriterContext) -> Result<Box<dyn Writer<Self::Item>>>;
}

/// Writes the results of one task.
pub trait Writer<T>: Send {
    /// Takes records until the batch is empty, or `Full` while earlier output is on its way out.
    /// After `Full` it is called again, with an empty batch or with what it has left, until `Done`.
    ///
    /// # Errors
    /// The output failed.
    fn write(&mut self, records: &mut Batch<'_, T>) -> Result<Flow>;

    /// No record follows.
    fn ended(&mut self) {}

    /// What was written since the last call belongs to `snapshot`. Starts making it durable and
    /// returns the handle that the snapshot will list. Never blocks.
    ///
    /// # Errors
    /// The output failed: the job goes back to its last snapshot, since what is in the output now
    /// is not known.
    fn prepare(&mut self, snapshot: SnapshotId) -> Result<Vec<u8>>;

    /// Whether everything up to `snapshot` is durable.
    ///
    /// # Errors
    /// The output failed.
    fn is_prepared(&mut self, _snapshot: SnapshotId) -> Result<bool> {
        Ok(true)
    }

    /// `snapshot` is complete: publishes everything up to it. `last`: the job stops here.
    ///
    /// # Errors
    /// The output failed.
    fn commit(&mut self, snapshot: SnapshotId, last: bool) -> Result<()>;

    /// The input has come to its end in a job without snapshots: publishes everything.
    ///
    /// # Errors
    /// The output failed.
    fn commit_all(&mut self) -> Result<()>;
}

/// A [`Sink`], whatever its records are: what the engine asks of it.
pub trait AnySink {
    /// See [`Sink::identity`].
    fn identity(&self) -> String;

    /// See [`Sink::claim`].
    ///
    /// # Errors
    /// The sink's.
    fn claim(
        &self,
        owner: &str,
        handles: Option<&[Vec<u8>]>,
        disk: &dyn Disk,
    ) -> Result<Option<DiskLock>>;

    /// See [`Sink::recover`].
    ///
    /// # Errors
    /// The sink's.
    fn recover(&self, handles: Option<&[Vec<u8>]>, disk: &dyn Disk) -> Result<()>;
}

impl<S: Sink> AnySink for S {
    fn identity(&self) -> String {
        Sink::identity(self)
    }

    fn claim(
        &self,
        owner: &str,
        handles: Option<&[Vec<u8>]>,
        disk: &dyn Disk,
    ) -> Result<Option<DiskLock>> {
        let handles = handles.map(|handles| untagged(self, handles)).transpose()?;
        Sink::claim(self, owner, handles.as_deref(), disk)
    }

    fn recover(&self, handles: Option<&[Vec<u8>]>, disk: &dyn Disk) -> Result<()> {
        let handles = handles.map(|handles| untagged(self, handles)).transpose()?;
        Sink::recover(self, handles.as_deref(), disk)
    }
}

/// Between a handle's kind and what the writer put into it.
const TAG_END: u8 = b'\n';

/// A handle as it is in the snapshot: the kind of its sink first.
fn tagged(kind: &str, handle: &[u8]) -> Vec<u8> {
    [kind.as_bytes(), &[TAG_END], handle].concat()
}

/// The handles without their kind, which must be that of `sink`.
fn untagged<S: Sink>(sink: &S, handles: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
    let kind = Sink::identity(sink);
    let one = |handle: &Vec<u8>| {
        let end = handle.iter().position(|byte| *byte == TAG_END).unwrap_or(handle.len());
        let found = String::from_utf8_lossy(&handle[..end]);
        if found != kind {
            let found = found.chars().take(40).collect::<String>();
            let reason = format!("it is of a sink '{}', not '{kind}'", found.escape_debug());
            return Err(bad_handle(&kind, reason));
        }
        Ok(handle.get(end + 1..).unwrap_or_default().to_vec())
    };
    handles.iter().map(one).collect()
}

/// The last stage of a chain that ends in a sink.
pub struct SinkStage<T: Record> {
    name: String,
    writer: Box<dyn Writer<T>>,
    handle: Handle,
    probe: Probe,
}

/// The handle of the marked snapshot on its way into it.
struct Handle {
    kind: String,
    subtask: u32,
    marked: VecDeque<Result<Vec<u8>>>,
}

const SCHEMA: u32 = 1;

impl<T: Record> SinkStage<T> {
    /// Operator `name` with a sink of this [kind](Sink::identity), task `subtask`.
    ///
    /// # Panics
    /// If the kind is not one line.
    #[must_use]
    pub fn new(
        name: String,
        (kind, subtask): (String, usize),
        writer: Box<dyn Writer<T>>,
        probe: Probe,
    ) -> Self {
        assert!(!kind.contains('\n'), "the kind of a sink is one line, not {kind:?}");
        let handle = Handle { kind, subtask: subtask as u32, marked: VecDeque::new() };
        Self { name, writer, handle, probe }
    }
}

impl<T: Record> Stage<T> for SinkStage<T> {
    fn process(&mut self, input: &mut Batch<'_, T>) -> Result<Flow> {
        self.probe.enter();
        let flow = self.writer.write(input)?;
        if flow == Flow::Full {
            self.probe.held_back();
        }
        Ok(flow)
    }

    fn flush(&mut self) -> Result<Flow> {
        self.process(&mut Batch::empty())
    }

    fn finish(&mut self) -> Result<Flow> {
        self.writer.ended();
        Ok(Flow::Done)
    }

    fn visit(&mut self, visitor: &mut Visitor<'_>) -> Result<()> {
        self.probe.enter();
        let mut state = SinkState { writer: &mut *self.writer, handle: &mut self.handle };
        visitor(Part::State(&self.name, &mut state))?;
        visitor(Part::Sink(&self.name, &mut state))
    }
}

/// A sink's writer as a part of the snapshot.
struct SinkState<'a, T> {
    writer: &'a mut dyn Writer<T>,
    handle: &'a mut Handle,
}

impl<T: Record> OperatorState for SinkState<'_, T> {
    fn mark(&mut self, snapshot: SnapshotId) {
        let prepared = self.writer.prepare(snapshot);
        self.handle.marked.push_back(prepared);
    }

    fn drain(&mut self, _budget_bytes: usize, out: &mut dyn StateWriter) -> Result<Drained> {
        if let Some(handle) = self.handle.marked.pop_front() {
            let handle = tagged(&self.handle.kind, &handle?);
            out.write(StateSlot::Task(self.handle.subtask), SCHEMA, &handle);
        }
        Ok(Drained::Done)
    }

    fn abandon(&mut self) {
        // A handle can be forgotten: what it lists is in the next one too. A failure cannot: what
        // the writer holds is in doubt, whatever becomes of this snapshot.
        self.handle.marked.retain(Result::is_err);
    }

    fn restore(&mut self, _slot: StateSlot, schema: u32, _bytes: &[u8]) -> Result<(), String> {
        // The handles went to `Sink::recover` before this writer existed.
        if schema == SCHEMA { Ok(()) } else { Err(format!("handle schema {schema}")) }
    }
}

impl<T: Record> Committer for SinkState<'_, T> {
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

/// What cannot be read in a handle.
fn bad_handle(sink: &str, reason: impl ToString) -> Error {
    Error::State { operator: sink.into(), reason: format!("sink handle: {}", reason.to_string()) }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::channel::channel;
    use crate::config::DISK_POLL_NS;
    use crate::inbox::Inbox;
    use crate::operator::Trace;
    use crate::task::{InboxHead, Progress, Task};

    /// Takes as many records as it is allowed to.
    struct Slow(Arc<AtomicUsize>);

    impl Writer<u64> for Slow {
        fn write(&mut self, records: &mut Batch<'_, u64>) -> Result<Flow> {
            let allowed = self.0.load(Ordering::Relaxed);
            self.0.fetch_sub(records.drain(allowed).count(), Ordering::Relaxed);
            Ok(if self.0.load(Ordering::Relaxed) == 0 { Flow::Full } else { Flow::Done })
        }

        fn prepare(&mut self, _snapshot: SnapshotId) -> Result<Vec<u8>> {
            Ok(Vec::new())
        }

        fn commit(&mut self, _snapshot: SnapshotId, _last: bool) -> Result<()> {
            Ok(())
        }

        fn commit_all(&mut self) -> Result<()> {
            Ok(())
        }
    }

    /// At the head of its task such a sink went from full to running and back, "working" each time,
    /// and its worker span and woke its neighbours; behind a stage the worker parked, and looked for
    /// the disk when the park was over.
    #[test]
    fn a_task_whose_sink_waits_for_the_disk_looks_again_in_time_and_does_not_spin() {
        let (allowed, trace) = (Arc::new(AtomicUsize::new(2)), Arc::new(Trace::default()));
        let probe = Probe::new(trace.clone(), 0);
        let writer = Box::new(Slow(allowed.clone()));
        let stage = SinkStage::new("out".into(), ("slow".into(), 0), writer, probe);
        let (mut sender, receiver) = channel::<u64>(8);
        let inbox = Inbox::acyclic(vec![receiver], SnapshotId(0));
        let head = InboxHead { inbox, stage: Box::new(stage), log: "out#log".into() };
        let mut task = Task::new(Box::new(head), 0, Arc::from(["out".to_string()]), trace);
        assert!(sender.room(5) >= 5);
        (0..5).for_each(|number| sender.push(number));
        sender.publish();
        assert_eq!(task.step(0).unwrap(), Progress::Worked, "it takes two");
        for now_ns in [1, 2] {
            assert_eq!(task.step(now_ns).unwrap(), Progress::Until(now_ns + DISK_POLL_NS));
        }
        allowed.store(9, Ordering::Relaxed);
        (3..5).for_each(|now_ns| assert_eq!(task.step(now_ns).unwrap(), Progress::Worked));
        assert_eq!(task.step(5).unwrap(), Progress::Idle);
        assert_eq!(allowed.load(Ordering::Relaxed), 6, "and the other three");
    }

    /// In release builds the default error of rkyv says only that there was one.
    #[test]
    fn what_is_wrong_with_an_archive_is_said_in_every_build() {
        use crate::record::Data as _;
        let error: rkyv::rancor::BoxedError = Vec::<u64>::from_archive(&[1]).unwrap_err();
        assert!(error.to_string().contains("range"), "{error}");
    }

    #[test]
    fn a_handle_is_only_given_to_the_kind_of_sink_that_made_it() {
        let disk = crate::disk::MemoryDisk::new(1);
        let (fold, folded) = FoldSink::<u64, _>::new(|number| *number);
        let (collect, _) = Collect::<u64>::new();
        let handle = [tagged("fold", &7_u64.to_le_bytes())];
        AnySink::recover(&fold, Some(&handle), &disk).unwrap();
        assert_eq!(folded.sum(), 7);
        for (handle, says) in
            [(handle, "'fold', not 'collect'"), ([vec![1, 2]], "not 'collect'"), ([vec![]], "''")]
        {
            let refused = AnySink::recover(&collect, Some(&handle), &disk).unwrap_err();
            assert!(refused.to_string().contains(says), "{refused}");
        }
    }
}
