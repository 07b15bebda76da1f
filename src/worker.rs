//! A worker: one core's tasks, stepped in turn, and their share of each snapshot.
//!
//! [`Worker::step`] does a bounded round of work and never blocks, so any driver can run it: a
//! pinned thread, a simulator, a caller's own loop. The worker gathers what its tasks captured for
//! a snapshot into *one* part, written and synced once, and acks when that part and what its sinks
//! prepared are durable.
//!
//! Invariants
//! - An ack means durable bytes of every task of this worker (trap 22).
//! - A task has at most one captured version not yet written out: before it captures the next one,
//!   the last is drained to its end, or given up if the part it belongs to is gone.
//! - Snapshots are written in the order they were captured.
//! - A worker that says it has stopped has nothing under way any more.
//! - A panic, wherever it comes from, does not leave [`Worker::step`]: it is told as a failure.

use std::collections::{BTreeSet, VecDeque};
use std::sync::mpsc::{Receiver, Sender};

use hdrhistogram::Histogram;

use crate::clock;
use crate::config::{DISK_POLL_NS, SNAPSHOTS_PENDING_MAX};
use crate::error::{Error, Result};
use crate::guard;
use crate::id::{Attempt, SnapshotId, WorkerId};
use crate::inbox;
use crate::state::Drained;
use crate::store::{PartRef, PartWriter};
use crate::task::{Progress, Task};

/// What the supervisor tells a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Sources: emit this barrier.
    Inject {
        /// Of which snapshot.
        snapshot: SnapshotId,
        /// Whether they stop reading behind it.
        pause: bool,
    },
    /// It is complete: sinks publish. `last`: then the worker stops.
    Complete {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// Whether the job ends with it.
        last: bool,
    },
    /// Every worker has acked it: sources that wait for it go on.
    Resume(SnapshotId),
    /// Forget it.
    Abort(SnapshotId),
    /// A job without snapshots is complete: sinks publish everything, the worker stops.
    CommitAll,
    /// Stop now; what is not committed is lost.
    Stop,
}

/// What a worker tells the supervisor.
#[derive(Debug)]
pub enum Event {
    /// Its share of the snapshot is durable.
    Acked {
        /// Who.
        worker: WorkerId,
        /// In which attempt.
        attempt: Attempt,
        /// Of which snapshot.
        snapshot: SnapshotId,
        /// The durable part.
        part: PartRef,
    },
    /// Its share of the snapshot could not be made durable.
    SnapshotFailed {
        /// In which attempt.
        attempt: Attempt,
        /// Which snapshot.
        snapshot: SnapshotId,
        /// Why.
        reason: String,
    },
    /// One of its tasks has finished.
    TaskFinished(Attempt),
    /// A task failed; the worker has stopped.
    Failed(WorkerId, Attempt, Error),
    /// It has stopped as it was told to.
    Stopped(WorkerId, Attempt, Box<Measured>),
}

/// What a worker measured.
#[derive(Clone, Debug)]
pub struct Measured {
    /// How long a task stood still at a barrier to capture its state, ns.
    pub capture_ns: Histogram<u64>,
    /// What the inputs of its tasks spilled and logged.
    pub inputs: inbox::Measured,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Something was done: step again at once.
    Worked,
    /// Nothing can be done before this time (ns), unless a neighbour or the supervisor acts.
    Idle(Option<u64>),
    /// The worker has stopped; it must not be stepped again.
    Stopped,
}

/// A snapshot on its way from capture to ack.
struct Gathering {
    snapshot: SnapshotId,
    /// Tasks that have captured, and of those the ones written out.
    captured: Vec<bool>,
    drained: Vec<bool>,
}

/// A snapshot whose part is with the disk.
struct Writing {
    snapshot: SnapshotId,
    part: Option<PartRef>,
}

/// One worker.
pub struct Worker {
    id: WorkerId,
    attempt: Attempt,
    tasks: Vec<Task>,
    parts: Option<PartWriter>,
    commands: Receiver<Command>,
    events: Sender<Event>,
    gathering: VecDeque<Gathering>,
    writing: VecDeque<Writing>,
    aborted: BTreeSet<SnapshotId>,
    measured: Measured,
    timed: bool,
}

impl Worker {
    /// A worker with these tasks. Without `parts` the job takes no snapshots.
    #[must_use]
    pub fn new(
        (id, attempt): (WorkerId, Attempt),
        tasks: Vec<Task>,
        parts: Option<PartWriter>,
        commands: Receiver<Command>,
        events: Sender<Event>,
    ) -> Self {
        let capture_ns = clock::histogram_ns();
        Self {
            id,
            attempt,
            tasks,
            parts,
            commands,
            events,
            gathering: VecDeque::with_capacity(SNAPSHOTS_PENDING_MAX),
            writing: VecDeque::with_capacity(SNAPSHOTS_PENDING_MAX),
            aborted: BTreeSet::new(),
            measured: Measured { capture_ns, inputs: inbox::Measured::default() },
            timed: false,
        }
    }

    /// From now on each task is told how long its steps take. For drivers whose time is the clock's.
    pub fn time_tasks(&mut self) {
        self.timed = true;
        self.tasks.iter_mut().for_each(Task::time_steps);
    }

    /// Which worker this is.
    #[must_use]
    pub fn id(&self) -> WorkerId {
        self.id
    }

    /// One round: commands, every task once, a piece of what is to be written out.
    pub fn step(&mut self, now_ns: u64) -> Step {
        match self.guarded("between its tasks", |worker| worker.round(now_ns)).flatten() {
            Ok(step) => step,
            Err(error) => {
                // The first failure is told; that letting go fails too is no news.
                _ = self.let_go();
                self.tell(Event::Failed(self.id, self.attempt, error));
                Step::Stopped
            }
        }
    }

    fn round(&mut self, now_ns: u64) -> Result<Step> {
        let mut worked = false;
        let mut until = None;
        if self.obey_all(&mut worked)? {
            return Ok(Step::Stopped);
        }
        let mut began_ns = self.timed.then(clock::now_ns);
        for task in 0..self.tasks.len() {
            let progress = self.tasks[task].step(now_ns)?;
            if let Some(began_ns) = &mut began_ns {
                let ended_ns = clock::now_ns();
                self.tasks[task].took(ended_ns - std::mem::replace(began_ns, ended_ns));
            }
            match progress {
                Progress::Idle => continue,
                Progress::Until(time) => {
                    until = Some(until.map_or(time, |until: u64| until.min(time)));
                    continue;
                }
                Progress::Worked => {}
                Progress::Due(snapshot) => {
                    // The commit of an earlier snapshot may have been ordered before this barrier
                    // set out; then it comes before this capture too.
                    if self.obey_all(&mut worked)? {
                        return Ok(Step::Stopped);
                    }
                    self.capture(task, snapshot)?;
                }
                Progress::Finished => self.tell(Event::TaskFinished(self.attempt)),
            }
            worked = true;
        }
        worked |= self.drain_some()?;
        worked |= self.ack_durable()?;
        if worked {
            return Ok(Step::Worked);
        }
        if !self.writing.is_empty() {
            let soon = now_ns + DISK_POLL_NS;
            until = Some(until.map_or(soon, |until| until.min(soon)));
        }
        Ok(Step::Idle(until))
    }

    /// Ends everything that could still touch a file, waiting for what is under way: whoever hears
    /// that this worker has stopped may cut, rename and remove what it wrote. What panics when it
    /// is dropped (a record left in a ring, a closure) does not keep the rest.
    fn let_go(&mut self) -> Result<()> {
        let mut result = Ok(());
        while let Some(task) = self.tasks.pop() {
            let dropped = self.guarded("dropping a task it had stopped", |_| drop(task));
            result = result.and(dropped);
        }
        let parts = self.parts.take();
        result.and(self.guarded("closing its snapshot files", |_| drop(parts)))
    }

    /// Turns a panic into an error that says what this worker was at.
    fn guarded<R>(&mut self, at: &'static str, work: impl FnOnce(&mut Self) -> R) -> Result<R> {
        let worker = self.id.0;
        guard::caught(|| work(self)).map_err(|message| Error::WorkerPanicked {
            worker,
            at,
            message,
        })
    }

    fn tell(&self, event: Event) {
        // A supervisor that is gone has given the job up; this worker will be dropped with it.
        _ = self.events.send(event);
    }

    /// Carries out the commands that have come. True: the worker has stopped.
    fn obey_all(&mut self, worked: &mut bool) -> Result<bool> {
        while let Ok(command) = self.commands.try_recv() {
            *worked = true;
            if self.obey(command)? {
                self.tasks.iter().for_each(|task| self.measured.inputs += task.measured());
                self.let_go()?;
                self.tell(Event::Stopped(self.id, self.attempt, Box::new(self.measured.clone())));
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Carries a command out. True: it was the last one.
    fn obey(&mut self, command: Command) -> Result<bool> {
        match command {
            Command::Inject { snapshot, pause } => {
                self.tasks.iter_mut().for_each(|task| task.inject(snapshot, pause));
                if self.tasks.is_empty() && self.parts.is_some() {
                    // Nothing will come to the barrier; an empty part is this worker's share.
                    let (captured, drained) = (Vec::new(), Vec::new());
                    self.gathering.push_back(Gathering { snapshot, captured, drained });
                }
            }
            Command::Complete { snapshot, last } => {
                self.aborted.retain(|aborted| *aborted > snapshot);
                for task in &mut self.tasks {
                    task.commit(Some((snapshot, last)))?;
                }
                return Ok(last);
            }
            Command::Resume(snapshot) => {
                self.tasks.iter_mut().for_each(|task| task.resume(snapshot));
            }
            Command::Abort(snapshot) => {
                self.give_up(snapshot)?;
                self.tasks.iter_mut().for_each(|task| task.resume(snapshot));
            }
            Command::CommitAll => {
                for task in &mut self.tasks {
                    task.commit(None)?;
                }
                return Ok(true);
            }
            Command::Stop => return Ok(true),
        }
        Ok(false)
    }

    /// Every input of `task` has delivered the barrier: mark, send it on.
    fn capture(&mut self, task: usize, snapshot: SnapshotId) -> Result<()> {
        if self.parts.is_none() || self.aborted.contains(&snapshot) {
            return self.tasks[task].pass_barrier(snapshot);
        }
        let began_ns = clock::now_ns();
        self.finish_draining(task)?;
        self.tasks[task].capture(snapshot)?;
        self.measured.capture_ns.saturating_record(clock::now_ns() - began_ns);
        let tasks = self.tasks.len();
        if self.gathering.back().is_none_or(|last| last.snapshot < snapshot) {
            let (captured, drained) = (vec![false; tasks], vec![false; tasks]);
            self.gathering.push_back(Gathering { snapshot, captured, drained });
        }
        let mut at = self.gathering.iter_mut().filter(|gathering| gathering.snapshot == snapshot);
        at.next().expect("pushed above").captured[task] = true;
        Ok(())
    }

    /// Writes out what `task` captured before, all of it, so that it can capture again.
    fn finish_draining(&mut self, task: usize) -> Result<()> {
        let open = |gathering: &&Gathering| gathering.captured[task] && !gathering.drained[task];
        let Some(snapshot) = self.gathering.iter().find(open).map(|open| open.snapshot) else {
            return Ok(());
        };
        while self.drain(snapshot, task)? == Drained::More {}
        Ok(())
    }

    /// Writes out a piece of the oldest snapshot that is being gathered.
    fn drain_some(&mut self) -> Result<bool> {
        let Some(oldest) = self.gathering.front() else { return Ok(false) };
        let snapshot = oldest.snapshot;
        for task in 0..oldest.captured.len() {
            let Some(oldest) = self.gathering.front().filter(|g| g.snapshot == snapshot) else {
                return Ok(true); // it has failed
            };
            if oldest.captured[task]
                && !oldest.drained[task]
                && self.drain(snapshot, task)? != Drained::Waiting
            {
                return Ok(true);
            }
        }
        let oldest = self.gathering.front().expect("seen above");
        if !oldest.drained.iter().all(|&drained| drained) {
            return Ok(false); // not every task has come to the barrier, or sealed its log, yet
        }
        self.gathering.pop_front();
        let parts = self.parts.as_mut().expect("there are snapshots");
        parts.begin(snapshot);
        match parts.finish() {
            Ok(()) => self.writing.push_back(Writing { snapshot, part: None }),
            Err(error) => self.fail(snapshot, &error)?,
        }
        Ok(true)
    }

    /// Writes out a piece of what `task` captured for `snapshot`.
    fn drain(&mut self, snapshot: SnapshotId, task: usize) -> Result<Drained> {
        let parts = self.parts.as_mut().expect("there are snapshots");
        parts.begin(snapshot);
        let drained = self.tasks[task].drain(&mut |operator, slot, schema, bytes| {
            parts.append(operator, slot, schema, bytes);
        });
        match drained {
            Ok(Drained::Done) => {
                let mut at = self.gathering.iter_mut().filter(|g| g.snapshot == snapshot);
                at.next().expect("it is being gathered").drained[task] = true;
                Ok(Drained::Done)
            }
            Ok(drained) => Ok(drained),
            Err(error) if is_of_snapshot(&error) => {
                self.fail(snapshot, &error)?;
                Ok(Drained::Done)
            }
            Err(error) => Err(error),
        }
    }

    /// This worker cannot make its share of `snapshot` durable.
    fn fail(&mut self, snapshot: SnapshotId, error: &Error) -> Result<()> {
        let reason = error.to_string();
        self.tell(Event::SnapshotFailed { attempt: self.attempt, snapshot, reason });
        self.give_up(snapshot)
    }

    fn give_up(&mut self, snapshot: SnapshotId) -> Result<()> {
        self.aborted.insert(snapshot);
        if let Some(parts) = &mut self.parts {
            parts.abandon(snapshot);
        }
        self.writing.retain(|writing| writing.snapshot != snapshot);
        let at = self.gathering.iter().position(|gathering| gathering.snapshot == snapshot);
        let Some(gathering) = at.and_then(|at| self.gathering.remove(at)) else { return Ok(()) };
        for (task, (captured, drained)) in
            gathering.captured.iter().zip(&gathering.drained).enumerate()
        {
            if *captured && !drained {
                self.tasks[task].abandon()?;
            }
        }
        Ok(())
    }

    /// Acks what has become durable, in order.
    fn ack_durable(&mut self) -> Result<bool> {
        if self.writing.is_empty() {
            return Ok(false);
        }
        let done = self.parts.as_mut().expect("there are snapshots").poll();
        let mut worked = !done.is_empty();
        for (snapshot, result) in done {
            match result {
                Ok(part) => {
                    let mut at = self.writing.iter_mut().filter(|w| w.snapshot == snapshot);
                    if let Some(writing) = at.next() {
                        writing.part = Some(part);
                    }
                }
                Err(error) => self.fail(snapshot, &error)?,
            }
        }
        while let Some(Writing { snapshot, part: Some(_) }) = self.writing.front() {
            let snapshot = *snapshot;
            for task in &mut self.tasks {
                if !task.is_prepared(snapshot)? {
                    return Ok(worked);
                }
            }
            let writing = self.writing.pop_front().expect("seen above");
            let part = writing.part.expect("seen above");
            let (worker, attempt) = (self.id, self.attempt);
            self.tell(Event::Acked { worker, attempt, snapshot, part });
            worked = true;
        }
        Ok(worked)
    }
}

/// Whether only the snapshot has failed. State that does not serialise is still there for the next
/// one; after a panic, or in a sink that could not prepare, nothing is sure any more.
fn is_of_snapshot(error: &Error) -> bool {
    match error {
        Error::Operator { source, .. } => is_of_snapshot(source),
        Error::Snapshot { .. } => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    use super::*;
    use crate::inbox::Pulled;
    use crate::operator::{Flow, Trace, Visitor};
    use crate::task::Head;

    /// A chain that holds something others wait for, such as writes under way.
    struct Holding {
        _held: Arc<()>,
        fails: bool,
    }

    impl Head for Holding {
        fn pull(&mut self, _now_ns: u64) -> Result<(Pulled, Option<u64>)> {
            assert!(!self.fails, "as asked");
            Ok((Pulled::Nothing, None))
        }

        fn flush(&mut self) -> Result<Flow> {
            Ok(Flow::Done)
        }

        fn finish(&mut self) -> Result<Flow> {
            Ok(Flow::Done)
        }

        fn visit(&mut self, _visitor: &mut Visitor<'_>) -> Result<()> {
            Ok(())
        }
    }

    /// A worker said it had stopped, and only then ended its writes. The next attempt, on another
    /// thread, had cut and shown the files by then; a late write put uncommitted lines into one.
    #[test]
    fn a_worker_that_says_it_has_stopped_holds_nothing_any_more() {
        for fails in [false, true] {
            let held = Arc::new(());
            let head = Holding { _held: held.clone(), fails };
            let names = Arc::from(["holding".to_string()]);
            let task = Task::new(Box::new(head), 0, names, Arc::new(Trace::default()));
            let ((commands, orders), (events, told)) = (channel(), channel());
            let name = (WorkerId(0), Attempt(1));
            let mut worker = Worker::new(name, vec![task], None, orders, events);
            if !fails {
                commands.send(Command::Stop).unwrap();
            }
            assert_eq!(worker.step(0), Step::Stopped);
            let event = told.try_recv().unwrap();
            assert_eq!(matches!(event, Event::Failed(..)), fails, "{event:?}");
            assert_eq!(Arc::strong_count(&held), 1, "still held when {event:?} was told");
            drop(worker);
        }
    }
}
