//! A task: one parallel copy of a chain of operators, as one state machine.
//!
//! [`Task::step`] does one bounded piece of work and returns; it never blocks. Trigger, capture and
//! barrier are one piece of work: nothing is emitted between them.
//!
//! A task lives until its job ends. When its inputs have ended and it has emitted what was left, it
//! is *finished*: it goes on forwarding barriers, so the job's last snapshot covers every task and
//! a trigger never races with a finish.
//!
//! Invariants
//! - The capture of n sees the effect of every record before barrier n on every input and of none
//!   behind; outputs hold exactly what those records led to, then barrier n.
//! - Nothing is emitted between capture and barrier (trap 14).

use std::collections::VecDeque;
use std::sync::Arc;

use crate::config::{DISK_POLL_NS, DRAIN_BYTES_MAX, SNAPSHOTS_PENDING_MAX};
use crate::error::{Error, Result};
use crate::guard;
use crate::id::{SnapshotId, StateSlot};
use crate::inbox::{Inbox, Pulled};
use crate::operator::source::{SourceHead, SourcePull};
use crate::operator::{Flow, Part, Stage, Trace, Visitor};
use crate::record::{Control, Record};
use crate::state::{Drained, StateWriter};

/// What one step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Something was done.
    Worked,
    /// Nothing could be done.
    Idle,
    /// Nothing can be done before this time, ns, unless something comes.
    Until(u64),
    /// The task stands at this barrier with nothing owed: call [`Task::capture`] or
    /// [`Task::pass_barrier`] now.
    Due(SnapshotId),
    /// No record will come out of this task any more.
    Finished,
}

/// Where a chain's records come from.
pub trait Head: Send {
    /// Reads some records into the chain.
    ///
    /// # Errors
    /// The chain's.
    fn pull(&mut self, now_ns: u64) -> Result<(Pulled, Option<u64>)>;

    /// Hands on what the chain owes.
    ///
    /// # Errors
    /// The chain's.
    fn flush(&mut self) -> Result<Flow>;

    /// Emits what is left.
    ///
    /// # Errors
    /// The chain's.
    fn finish(&mut self) -> Result<Flow>;

    /// Visits every part of the chain.
    ///
    /// # Errors
    /// The visitor's.
    fn visit(&mut self, visitor: &mut Visitor<'_>) -> Result<()>;

    /// The coordinator's barrier, for a task without inputs; behind it nothing more is read if
    /// `pause`.
    fn inject(&mut self, _snapshot: SnapshotId, _pause: bool) {}
}

/// Head of a task with inputs.
pub struct InboxHead<T: Send> {
    /// Its inputs.
    pub inbox: Inbox<T>,
    /// Its chain.
    pub stage: Box<dyn Stage<T>>,
}

impl<T: Send> Head for InboxHead<T> {
    fn pull(&mut self, _now_ns: u64) -> Result<(Pulled, Option<u64>)> {
        Ok((self.inbox.pull(&mut *self.stage)?, None))
    }

    fn flush(&mut self) -> Result<Flow> {
        self.stage.flush()
    }

    fn finish(&mut self) -> Result<Flow> {
        self.stage.finish()
    }

    fn visit(&mut self, visitor: &mut Visitor<'_>) -> Result<()> {
        self.stage.visit(visitor)
    }
}

/// Head of a source task: its only "input" is the coordinator's word.
pub struct SourceTask<T: Record> {
    head: SourceHead<T>,
    /// Barriers that are due: at most as many as snapshots may be pending.
    injected: VecDeque<(SnapshotId, bool)>,
    reading: Reading,
}

/// Whether a source still reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// It does.
    On,
    /// The job is being stopped: it will not read on.
    Paused,
    /// Its input has come to its end.
    Ended,
}

impl<T: Record> SourceTask<T> {
    /// The source and its chain.
    #[must_use]
    pub fn new(head: SourceHead<T>) -> Self {
        let injected = VecDeque::with_capacity(SNAPSHOTS_PENDING_MAX);
        Self { head, injected, reading: Reading::On }
    }
}

impl<T: Record> Head for SourceTask<T> {
    fn pull(&mut self, now_ns: u64) -> Result<(Pulled, Option<u64>)> {
        if let Some((snapshot, pause)) = self.injected.pop_front() {
            if pause && self.reading == Reading::On {
                self.reading = Reading::Paused;
            }
            return Ok((Pulled::Barrier(snapshot), None));
        }
        if self.reading != Reading::On {
            return Ok((Pulled::Nothing, None));
        }
        Ok(match self.head.pull(now_ns)? {
            SourcePull::Worked => (Pulled::Worked, None),
            SourcePull::Full => (Pulled::Full, None),
            SourcePull::Idle(until) => (Pulled::Nothing, until),
            SourcePull::Ended => {
                self.reading = Reading::Ended;
                (Pulled::Ended, None)
            }
        })
    }

    fn flush(&mut self) -> Result<Flow> {
        self.head.flush()
    }

    fn finish(&mut self) -> Result<Flow> {
        self.head.finish()
    }

    fn visit(&mut self, visitor: &mut Visitor<'_>) -> Result<()> {
        self.head.visit(visitor)
    }

    fn inject(&mut self, snapshot: SnapshotId, pause: bool) {
        self.injected.push_back((snapshot, pause));
    }
}

/// What a task does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Reads its head.
    Running,
    /// An output was full: hands on what the chain owes until nothing is owed.
    Flushing,
    /// A barrier is due: hands on what the chain owes until nothing is owed, then waits to be told
    /// to capture.
    AtBarrier(SnapshotId),
    /// The input has ended: lets operators emit what is left until nothing is.
    Finishing,
    /// Puts a mark into every output until all have it.
    Sending(Control),
}

/// Takes one share of an operator's state: the operator's name, which share, its schema, its bytes.
pub type WriteState<'a> = dyn FnMut(&str, StateSlot, u32, &[u8]) + 'a;

/// One task.
pub struct Task {
    head: Box<dyn Head>,
    state: State,
    subtask: usize,
    /// Operators of the job by number, for naming who failed.
    names: Arc<[String]>,
    trace: Arc<Trace>,
}

impl Task {
    /// Copy number `subtask` of a chain, whose stages write into `trace`.
    #[must_use]
    pub fn new(
        head: Box<dyn Head>,
        subtask: usize,
        names: Arc<[String]>,
        trace: Arc<Trace>,
    ) -> Self {
        Self { head, state: State::Running, subtask, names, trace }
    }

    /// The coordinator's barrier: a source takes it into the stream, other tasks ignore it.
    pub fn inject(&mut self, snapshot: SnapshotId, pause: bool) {
        self.head.inject(snapshot, pause);
    }

    /// One piece of work.
    ///
    /// # Errors
    /// The operator that failed or panicked, by name.
    pub fn step(&mut self, now_ns: u64) -> Result<Progress> {
        self.guarded(|task| task.advance(now_ns))
    }

    fn advance(&mut self, now_ns: u64) -> Result<Progress> {
        match self.state {
            State::Running => {
                let (pulled, until) = self.head.pull(now_ns)?;
                self.state = match pulled {
                    Pulled::Nothing => return Ok(until.map_or(Progress::Idle, Progress::Until)),
                    Pulled::Worked => State::Running,
                    Pulled::Full => State::Flushing,
                    Pulled::Barrier(snapshot) => State::AtBarrier(snapshot),
                    Pulled::Ended => State::Finishing,
                };
                if let State::AtBarrier(_) = self.state {
                    return self.advance(now_ns);
                }
                Ok(Progress::Worked)
            }
            State::Flushing => Ok(match self.head.flush()? {
                Flow::Full => self.stalled(now_ns),
                Flow::Done => self.turn_to(State::Running),
            }),
            State::AtBarrier(snapshot) => {
                if self.head.flush()? == Flow::Full {
                    return Ok(self.stalled(now_ns));
                }
                Ok(Progress::Due(snapshot))
            }
            State::Finishing => Ok(match self.head.finish()? {
                Flow::Full => self.stalled(now_ns),
                Flow::Done => self.turn_to(State::Sending(Control::End)),
            }),
            State::Sending(control) => self.send(control),
        }
    }

    /// An output is full. What part of the batch was sent before is progress all the same: its
    /// receiver may be parked and has to be woken, or each ring's worth would wait for its timeout
    /// (measured on a busy machine: 0.02 M records/s instead of 1.2).
    ///
    /// A sink that waits for its disk is looked after in time: nobody wakes its worker for that.
    fn stalled(&self, now_ns: u64) -> Progress {
        let held_back = self.trace.take_held_back();
        if self.trace.take_sent() {
            Progress::Worked
        } else if held_back {
            Progress::Until(now_ns + DISK_POLL_NS)
        } else {
            Progress::Idle
        }
    }

    fn turn_to(&mut self, state: State) -> Progress {
        self.state = state;
        Progress::Worked
    }

    fn send(&mut self, control: Control) -> Result<Progress> {
        let mut flow = Flow::Done;
        self.head.visit(&mut |part| {
            if let Part::Output(output) = part
                && output.control(control) == Flow::Full
            {
                flow = Flow::Full;
            }
            Ok(())
        })?;
        if flow == Flow::Full {
            return Ok(Progress::Idle);
        }
        self.state = State::Running;
        Ok(if control == Control::End { Progress::Finished } else { Progress::Worked })
    }

    /// Marks the state of every operator as that of `snapshot` and sends the barrier on, in one
    /// piece: nothing is emitted between the two.
    ///
    /// # Errors
    /// None in practice; a panic in a sink.
    pub fn capture(&mut self, snapshot: SnapshotId) -> Result<()> {
        self.guarded(|task| {
            task.head.visit(&mut |part| {
                if let Part::State(operator, state) = part {
                    enter(&task.names, &task.trace, operator);
                    state.mark(snapshot);
                }
                Ok(())
            })
        })?;
        self.pass_barrier(snapshot)
    }

    /// Sends the barrier on without capturing: the snapshot has been given up.
    ///
    /// # Errors
    /// None in practice.
    pub fn pass_barrier(&mut self, snapshot: SnapshotId) -> Result<()> {
        assert_eq!(self.state, State::AtBarrier(snapshot), "barrier {snapshot}");
        self.state = State::Sending(Control::Barrier(snapshot));
        self.send(Control::Barrier(snapshot)).map(|_| ())
    }

    /// Writes about [`DRAIN_BYTES_MAX`] of the captured state to `out`.
    ///
    /// # Errors
    /// State that cannot be written: the snapshot fails, the task goes on.
    pub fn drain(&mut self, out: &mut WriteState<'_>) -> Result<Drained> {
        self.guarded(|task| {
            let mut drained = Drained::Done;
            task.head.visit(&mut |part| {
                if let Part::State(operator, state) = part
                    && drained == Drained::Done
                {
                    enter(&task.names, &task.trace, operator);
                    drained = state.drain(DRAIN_BYTES_MAX, &mut Named { operator, out })?;
                }
                Ok(())
            })?;
            Ok(drained)
        })
    }

    /// Forgets the captured state.
    ///
    /// # Errors
    /// None in practice; a panic in a sink.
    pub fn abandon(&mut self) -> Result<()> {
        self.guarded(|task| {
            task.head.visit(&mut |part| {
                if let Part::State(_, state) = part {
                    state.abandon();
                }
                Ok(())
            })
        })
    }

    /// Gives one piece of restored state to the operator it belongs to, if this task has it.
    ///
    /// # Errors
    /// The piece does not fit the operator.
    pub fn restore(
        &mut self,
        operator: &str,
        slot: StateSlot,
        schema: u32,
        bytes: &[u8],
    ) -> Result<()> {
        self.head.visit(&mut |part| match part {
            Part::State(name, state) if name == operator => state
                .restore(slot, schema, bytes)
                .map_err(|reason| Error::State { operator: operator.into(), reason }),
            _ => Ok(()),
        })
    }

    /// Whether every sink of this task has made `snapshot` durable.
    ///
    /// # Errors
    /// A sink failed.
    pub fn is_prepared(&mut self, snapshot: SnapshotId) -> Result<bool> {
        self.guarded(|task| {
            let mut prepared = true;
            task.head.visit(&mut |part| {
                if let Part::Sink(_, sink) = part {
                    prepared &= sink.is_prepared(snapshot)?;
                }
                Ok(())
            })?;
            Ok(prepared)
        })
    }

    /// Lets every sink publish: up to a complete snapshot (and whether the job stops there), or all
    /// there is.
    ///
    /// # Errors
    /// A sink failed.
    pub fn commit(&mut self, upto: Option<(SnapshotId, bool)>) -> Result<()> {
        self.guarded(|task| {
            task.head.visit(&mut |part| match (part, upto) {
                (Part::Sink(_, sink), Some((snapshot, last))) => sink.commit(snapshot, last),
                (Part::Sink(_, sink), None) => sink.commit_all(),
                _ => Ok(()),
            })
        })
    }

    /// Turns an error or panic of user code into an error that names its operator.
    fn guarded<R>(&mut self, work: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        let result = guard::caught(|| work(self));
        let operator = || self.names[self.trace.running()].clone();
        match result {
            Ok(Err(source @ (Error::Panicked { .. } | Error::Operator { .. }))) => Err(source),
            Ok(Err(source)) => Err(Error::Operator {
                operator: operator(),
                subtask: self.subtask,
                source: Box::new(source),
            }),
            Ok(Ok(value)) => Ok(value),
            Err(message) => {
                Err(Error::Panicked { operator: operator(), subtask: self.subtask, message })
            }
        }
    }
}

/// From here on the code runs of the operator that has the state `name`. State is visited, not run
/// into with a batch, so without this a failure would be put down to whoever ran last.
fn enter(names: &[String], trace: &Trace, name: &str) {
    let operator = name.split('#').next().unwrap_or(name);
    if let Some(number) = names.iter().position(|name| name == operator) {
        trace.enter(number);
    }
}

/// Adds the operator's name to what its state writes.
struct Named<'a> {
    operator: &'a str,
    out: &'a mut WriteState<'a>,
}

impl StateWriter for Named<'_> {
    fn write(&mut self, slot: StateSlot, schema: u32, bytes: &[u8]) {
        (self.out)(self.operator, slot, schema, bytes);
    }
}
