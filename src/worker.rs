//! A worker: one core's tasks, stepped in turn, and their share of each snapshot.
//!
//! [`Worker::step`] does a bounded round of work and never blocks, so any driver can run it: a
//! pinned thread, a simulator, a caller's own loop. The worker gathers what its tasks captured for
//! a snapshot into *one* part, written and synced once, and acks when that part and what its sinks
//! prepared are durable.
//!
//! Invariants
//! - An ack means durable bytes of every task of this worker (trap 22).
//! - A worker that says it has stopped has nothing under way any more.
//! - A worker whose supervisor is gone stops: nobody would ever tell it to.
//! - A panic, wherever it comes from, does not leave [`Worker::step`]: it is told as a failure.

mod handover;
mod pace;
mod share;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};

use hdrhistogram::Histogram;

use crate::clock;
use crate::config::{
    DISK_POLL_NS, DRAIN_BYTES_MAX, DRAIN_BYTES_MIN, LOAD_BYTES_MAX, LOAD_BYTES_MIN,
};
use crate::error::{Error, Result};
use crate::guard;
use crate::id::{Attempt, SnapshotId, WorkerId};
use crate::inbox;
use crate::store::{Committed, PartWriter};
use crate::task::{Progress, Task};

pub use handover::Handover;
use pace::Pace;
pub use share::Share;
use share::{Outcome, Shares};

/// What the supervisor tells a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Sources: emit this barrier.
    Inject {
        /// Of which snapshot.
        snapshot: SnapshotId,
        /// Whether they stop reading behind it.
        pause: bool,
        /// When it was triggered, in the driver's time, ns: a timed alignment counts from there.
        triggered_ns: u64,
        /// When this was told, by the clock, ns.
        told_ns: u64,
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

/// What a worker tells the supervisor, or who commits beside it.
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
        /// Its durable share.
        share: Share,
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
    /// It needs a file for snapshots soon.
    WantsSegment,
    /// All of its restored state is in memory.
    Loaded(WorkerId, Attempt),
    /// One of its tasks has finished.
    TaskFinished(Attempt),
    /// A task failed; the worker has stopped.
    Failed(WorkerId, Attempt, Error),
    /// It has stopped as it was told to.
    Stopped(WorkerId, Attempt, Box<Measured>),
    /// A manifest that was written beside the supervisor is durable, or is not.
    Committed {
        /// What came of it.
        committed: Committed,
        /// How long that took, ns.
        took_ns: u64,
    },
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

/// One worker.
pub struct Worker {
    id: WorkerId,
    attempt: Attempt,
    tasks: Vec<Task>,
    /// `None`: the job takes no snapshots.
    shares: Option<Shares>,
    commands: Receiver<Command>,
    /// Whether it is not to hear of triggers yet, and the first of those that have come.
    hears_late: bool,
    unheard: Option<Command>,
    events: Sender<Event>,
    measured: Measured,
    timed: bool,
    pace: Pace,
    /// Whether restored state is still on disk only.
    loading: bool,
}

impl Worker {
    /// A worker with these tasks. Without `parts` the job takes no snapshots; else what stands beside
    /// them tells whoever triggers whether captured state is still being handed over.
    #[must_use]
    pub fn new(
        (id, attempt): (WorkerId, Attempt),
        tasks: Vec<Task>,
        parts: Option<(PartWriter, Arc<Handover>)>,
        commands: Receiver<Command>,
        events: Sender<Event>,
    ) -> Self {
        let capture_ns = clock::histogram_ns();
        let count = tasks.len();
        Self {
            id,
            attempt,
            tasks,
            shares: parts.map(|(parts, handover)| Shares::new(parts, count, handover)),
            commands,
            hears_late: false,
            unheard: None,
            events,
            measured: Measured { capture_ns, inputs: inbox::Measured::default() },
            timed: false,
            pace: Pace::untimed(),
            loading: true,
        }
    }

    /// From now on each task is told how long its steps take. For drivers whose time is the clock's.
    pub fn time_tasks(&mut self) {
        self.timed = true;
        self.tasks.iter_mut().for_each(Task::time_steps);
    }

    /// While it `hears_late`, word of a trigger does not reach it, nor what was said after that: as where the
    /// supervisor loses its processor between telling one worker and the next. For drivers that simulate.
    pub fn set_late(&mut self, hears_late: bool) {
        self.hears_late = hears_late;
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
        let (mut began_ns, mut stepping_ns) = (self.timed.then(clock::now_ns), 0);
        let mut rested = true;
        for task in 0..self.tasks.len() {
            // A round takes as long as its slowest tasks: a timed alignment is not to be looked at by
            // the time of its beginning.
            let progress = self.tasks[task].step(began_ns.unwrap_or(now_ns))?;
            if let Some(began_ns) = &mut began_ns {
                let ended_ns = clock::now_ns();
                let took_ns = ended_ns - std::mem::replace(began_ns, ended_ns);
                self.tasks[task].took(took_ns);
                stepping_ns += took_ns;
            }
            // What the disk has done is looked for between tasks: a snapshot comes back from it twice,
            // and would wait for the rest of a round each time.
            if self.shares.as_ref().is_some_and(Shares::is_writing) {
                worked |= self.ack_some()?;
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
                    // That was no step of the next task.
                    began_ns = self.timed.then(clock::now_ns);
                }
                Progress::Finished => self.tell(Event::TaskFinished(self.attempt)),
            }
            rested = false;
        }
        if let Some(ended_ns) = began_ns {
            self.pace.round(ended_ns, stepping_ns, rested);
        }
        worked |= self.snapshot_some()?;
        worked |= self.load_some()?;
        if worked || !rested {
            return Ok(Step::Worked);
        }
        if self.shares.as_ref().is_some_and(Shares::is_writing) {
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
        let shares = self.shares.take();
        result.and(self.guarded("closing its snapshot files", |_| drop(shares)))
    }

    /// Turns a panic into an error that says what this worker was at.
    fn guarded<R>(&mut self, at: &'static str, work: impl FnOnce(&mut Self) -> R) -> Result<R> {
        let worker = self.id.0;
        guard::caught(|| work(self)).map_err(|caught| {
            caught.into_error(|message| Error::WorkerPanicked { worker, at, message })
        })
    }

    fn tell(&self, event: Event) {
        // A supervisor that is gone has given the job up; this worker will be dropped with it.
        _ = self.events.send(event);
    }

    /// Carries out the commands that have come. True: the worker has stopped.
    fn obey_all(&mut self, worked: &mut bool) -> Result<bool> {
        loop {
            let said = self.unheard.take().map_or_else(|| self.commands.try_recv(), Ok);
            let command = match said {
                Ok(command @ Command::Inject { .. }) if self.hears_late => {
                    self.unheard = Some(command);
                    return Ok(false);
                }
                Ok(command) => command,
                Err(TryRecvError::Empty) => return Ok(false),
                Err(TryRecvError::Disconnected) => Command::Stop,
            };
            *worked = true;
            if self.obey(command)? {
                self.tasks.iter().for_each(|task| self.measured.inputs += task.measured());
                self.let_go()?;
                self.tell(Event::Stopped(self.id, self.attempt, Box::new(self.measured.clone())));
                return Ok(true);
            }
        }
    }

    /// Carries a command out. True: it was the last one.
    fn obey(&mut self, command: Command) -> Result<bool> {
        match command {
            Command::Inject { snapshot, pause, triggered_ns, told_ns } => {
                let tasks = self.tasks.iter_mut();
                tasks.for_each(|task| task.inject(snapshot, pause, triggered_ns));
                self.shares.iter_mut().for_each(|shares| shares.triggered(snapshot, told_ns));
            }
            Command::Complete { snapshot, last } => {
                self.shares.iter_mut().for_each(|shares| shares.completed(snapshot));
                for task in &mut self.tasks {
                    task.commit(Some((snapshot, last)))?;
                }
                return Ok(last);
            }
            Command::Resume(snapshot) => {
                self.tasks.iter_mut().for_each(|task| task.resume(snapshot));
            }
            Command::Abort(snapshot) => {
                if let Some(shares) = &mut self.shares {
                    shares.give_up(&mut self.tasks, snapshot)?;
                }
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
        let Some(shares) = &mut self.shares else {
            return self.tasks[task].pass_barrier(snapshot);
        };
        if let Some(stood_ns) = shares.capture(&mut self.tasks, task, snapshot)? {
            self.measured.capture_ns.saturating_record(stood_ns);
        }
        Ok(())
    }

    /// A piece of what is to be written; acks of what is durable.
    fn snapshot_some(&mut self) -> Result<bool> {
        let Some(shares) = &mut self.shares else { return Ok(false) };
        let piece_bytes = self.pace.piece(DRAIN_BYTES_MIN, DRAIN_BYTES_MAX);
        let drained = shares.drain_some(&mut self.tasks, piece_bytes)?;
        Ok(self.ack_some()? || drained)
    }

    /// Acks of what is durable, and what has failed.
    fn ack_some(&mut self) -> Result<bool> {
        let Some(shares) = &mut self.shares else { return Ok(false) };
        let polled = shares.poll(&mut self.tasks)?;
        for outcome in shares.take_outcomes() {
            let (worker, attempt) = (self.id, self.attempt);
            // A supervisor that is gone has given the job up; see `tell`.
            _ = self.events.send(match outcome {
                Outcome::Durable(snapshot, share) => {
                    Event::Acked { worker, attempt, snapshot, share }
                }
                Outcome::Failed(snapshot, reason) => {
                    Event::SnapshotFailed { attempt, snapshot, reason }
                }
            });
        }
        if shares.wants_segment() {
            _ = self.events.send(Event::WantsSegment);
        }
        Ok(polled)
    }

    /// A piece of restored state that is still on disk only.
    fn load_some(&mut self) -> Result<bool> {
        if !self.loading {
            return Ok(false);
        }
        for task in &mut self.tasks {
            if task.load(self.pace.piece(LOAD_BYTES_MIN, LOAD_BYTES_MAX))? {
                return Ok(true);
            }
        }
        self.loading = false;
        self.tell(Event::Loaded(self.id, self.attempt));
        Ok(true)
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

    /// The supervisor's thread panicked, and its workers ran on for ever.
    #[test]
    fn a_worker_whose_supervisor_is_gone_stops() {
        let names = Arc::from(["holding".to_string()]);
        let head = Holding { _held: Arc::new(()), fails: false };
        let task = Task::new(Box::new(head), 0, names, Arc::new(Trace::default()));
        let ((commands, orders), (events, _told)) = (channel(), channel());
        let mut worker = Worker::new((WorkerId(0), Attempt(1)), vec![task], None, orders, events);
        assert_ne!(worker.step(0), Step::Stopped);
        drop(commands);
        assert_eq!(worker.step(0), Step::Stopped);
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
