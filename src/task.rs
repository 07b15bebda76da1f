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

mod head;

use std::sync::Arc;

pub use head::{Head, InboxHead, SourceTask};

use crate::config::DISK_POLL_NS;
use crate::error::{Error, Result};
use crate::guard::{self, Caught};
use crate::id::{SnapshotId, StateSlot};
use crate::inbox::{Measured, Pulled};
use crate::operator::{Flow, Part, Trace};
use crate::record::Control;
use crate::state::{Drained, Lost, OperatorState, PageEntry, PageSource, StateWriter};

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

/// One task.
pub struct Task {
    head: Box<dyn Head>,
    state: State,
    /// Which outputs have the mark that is being sent.
    given: Vec<bool>,
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
        Self { head, state: State::Running, given: Vec::new(), subtask, names, trace }
    }

    /// The coordinator's barrier: a source takes it into the stream, other tasks await it.
    pub fn inject(&mut self, snapshot: SnapshotId, pause: bool, triggered_ns: u64) {
        self.head.inject(snapshot, pause, triggered_ns);
    }

    /// Every state is restored; records follow. Called before the worker runs: what a source has to
    /// wait for keeps nobody else waiting.
    ///
    /// # Errors
    /// A source cannot be opened; its name is told.
    pub fn start(&mut self) -> Result<()> {
        self.guarded(|task| task.head.start())
    }

    /// From now on the task is told how long its steps take.
    pub fn time_steps(&mut self) {
        self.head.time_steps();
    }

    /// The last step took this long, ns.
    pub fn took(&mut self, ns: u64) {
        self.head.took(ns);
    }

    /// What its inputs spilled and logged so far.
    #[must_use]
    pub fn measured(&self) -> Measured {
        self.head.measured()
    }

    /// A synchronous snapshot is durable or given up: sources that wait for it go on.
    pub fn resume(&mut self, snapshot: SnapshotId) {
        self.head.resume(snapshot);
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
                    Pulled::Stuck => {
                        self.state = State::Flushing;
                        return self.stalled(now_ns);
                    }
                    Pulled::Barrier(snapshot) => State::AtBarrier(snapshot),
                    Pulled::Ended => State::Finishing,
                };
                if let State::AtBarrier(_) = self.state {
                    return self.advance(now_ns);
                }
                Ok(Progress::Worked)
            }
            State::Flushing => Ok(match self.head.flush()? {
                Flow::Full => self.stalled(now_ns)?,
                Flow::Done => self.turn_to(State::Running),
            }),
            State::AtBarrier(snapshot) => {
                if self.head.flush()? == Flow::Full {
                    return self.stalled(now_ns);
                }
                Ok(Progress::Due(snapshot))
            }
            State::Finishing => Ok(match self.head.finish()? {
                Flow::Full => self.stalled(now_ns)?,
                Flow::Done => self.turn_to(State::Sending(Control::End)),
            }),
            State::Sending(control) => Ok(match self.send(control)? {
                Progress::Idle => self.stalled(now_ns)?,
                progress => progress,
            }),
        }
    }

    /// An output is full; inputs that must not wait are relieved. What part of the batch was sent
    /// before is progress all the same: its receiver may be parked and has to be woken, or each ring's worth would wait for its timeout
    /// (measured on a busy machine: 0.02 M records/s instead of 1.2).
    ///
    /// A stage that has only paused goes on at the next step.
    ///
    /// A sink or an input that waits for its disk is looked after in time, and so is a timed alignment:
    /// nobody wakes its worker for that.
    fn stalled(&mut self, now_ns: u64) -> Result<Progress> {
        let relieved = self.head.relieve(now_ns)?;
        let held_back = self.trace.take_held_back();
        let paused = self.trace.take_paused();
        Ok(if self.trace.take_sent() || paused || relieved {
            Progress::Worked
        } else {
            let disk = held_back.then_some(now_ns + DISK_POLL_NS);
            let times = [disk, self.head.look_at_ns(now_ns)].into_iter().flatten();
            times.min().map_or(Progress::Idle, Progress::Until)
        })
    }

    fn turn_to(&mut self, state: State) -> Progress {
        self.state = state;
        Progress::Worked
    }

    fn send(&mut self, control: Control) -> Result<Progress> {
        let given = &mut self.given;
        let (mut outputs, mut all) = (0, true);
        self.head.visit(&mut |part| {
            if let Part::Output(output) = part {
                if given.len() == outputs {
                    given.push(false);
                }
                given[outputs] = given[outputs] || output.control(control) == Flow::Done;
                all &= given[outputs];
                outputs += 1;
            }
            Ok(())
        })?;
        if !all {
            return Ok(Progress::Idle);
        }
        self.given.fill(false);
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

    /// Hands about `budget_bytes` of the captured state to `out`.
    ///
    /// # Errors
    /// State that cannot be written: the snapshot fails, the task goes on.
    pub fn drain(&mut self, budget_bytes: usize, out: &mut dyn StateWriter) -> Result<Drained> {
        self.guarded(|task| {
            let mut drained = Drained::Done;
            task.head.visit(&mut |part| {
                if let Part::State(operator, state) = part
                    && drained == Drained::Done
                {
                    enter(&task.names, &task.trace, operator);
                    out.enter(operator);
                    drained = state.drain(budget_bytes, out)?;
                }
                Ok(())
            })?;
            Ok(drained)
        })
    }

    /// What was handed over to lie there has to be handed over again.
    ///
    /// # Errors
    /// None in practice.
    pub fn lost(&mut self, lost: &[Lost]) -> Result<()> {
        self.guarded(|task| {
            task.head.visit(&mut |part| {
                if let Part::State(_, state) = part {
                    state.lost(lost);
                }
                Ok(())
            })
        })
    }

    /// Loads about `budget_bytes` of restored state that is still on disk; whether more is left.
    ///
    /// # Errors
    /// The disk's, or a page that is not what was written.
    pub fn load(&mut self, budget_bytes: usize) -> Result<bool> {
        self.guarded(|task| {
            let mut more = false;
            task.head.visit(&mut |part| {
                if let Part::State(operator, state) = part
                    && !more
                {
                    enter(&task.names, &task.trace, operator);
                    more = state.load(budget_bytes)?;
                }
                Ok(())
            })?;
            Ok(more)
        })
    }

    /// Bytes of memory that its state takes, about.
    ///
    /// # Errors
    /// None in practice.
    pub fn memory_bytes(&mut self) -> Result<usize> {
        let mut bytes = 0;
        self.head.visit(&mut |part| {
            if let Part::State(_, state) = part {
                bytes += state.memory_bytes();
            }
            Ok(())
        })?;
        Ok(bytes)
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

    /// Gives one piece of restored state to the operator it belongs to. Whether this task has it.
    ///
    /// # Errors
    /// The piece does not fit the operator.
    pub fn restore(
        &mut self,
        operator: &str,
        slot: StateSlot,
        schema: u32,
        bytes: &[u8],
    ) -> Result<bool> {
        self.restore_with(operator, &mut |state| state.restore(slot, schema, bytes))
    }

    /// Gives the pages of restored state to the operator they belong to. Whether this task has it.
    ///
    /// # Errors
    /// The pages do not fit the operator.
    pub fn restore_pages(
        &mut self,
        operator: &str,
        schema: u32,
        pages: &[PageEntry],
        source: &Arc<dyn PageSource>,
    ) -> Result<bool> {
        self.restore_with(operator, &mut |state| state.restore_pages(schema, pages, source))
    }

    fn restore_with(
        &mut self,
        operator: &str,
        restore: &mut dyn FnMut(&mut dyn OperatorState) -> Result<(), String>,
    ) -> Result<bool> {
        let mut taken = false;
        guard::named(operator, self.subtask, || {
            self.head.visit(&mut |part| match part {
                Part::State(name, state) if name == operator => {
                    taken = true;
                    let refused = |reason| Error::State { operator: operator.into(), reason };
                    restore(state).map_err(refused)
                }
                _ => Ok(()),
            })
        })?;
        Ok(taken)
    }

    /// Reads what of restored state cannot stay on disk, and turns that of older versions into this job's.
    ///
    /// # Errors
    /// The disk's, a page that is not what was written, or a panic in a migration.
    pub fn migrate(&mut self) -> Result<()> {
        self.guarded(|task| {
            let (names, trace) = (&task.names, &task.trace);
            task.head.visit(&mut |part| {
                let Part::State(name, state) = part else { return Ok(()) };
                enter(names, trace, name);
                state.migrate()
            })
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
        let result = guard::caught(|| work(self)).or_else(|caught| match caught {
            Caught::Error(error) => Ok(Err(*error)),
            Caught::Panic(message) => Err(message),
        });
        let operator = || self.names[self.trace.running()].clone();
        match result {
            Ok(Err(
                source @ (Error::Panicked { .. } | Error::Operator { .. } | Error::Fault { .. }),
            )) => Err(source),
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::channel::{CONTROLS_MAX, Polled, channel};
    use crate::config::{BATCH_RECORDS, STEP_RECORDS_MAX};
    use crate::id::KEY_GROUPS;
    use crate::inbox::Inbox;
    use crate::operator::keyed::{Aggregate, AtEnd, ByValue, Keyed};
    use crate::operator::transform::FlatMap;
    use crate::operator::{Probe, Stage, Visitor};
    use crate::outbox::{Outbox, RoundRobin};
    use crate::record::Batch;
    use crate::state::Evolution;

    /// A head with two outputs that stands at a barrier.
    struct Forked(Vec<Outbox<u64>>);

    impl Head for Forked {
        fn pull(&mut self, _now_ns: u64) -> Result<(Pulled, Option<u64>)> {
            Ok((Pulled::Barrier(SnapshotId(1)), None))
        }

        fn flush(&mut self) -> Result<Flow> {
            Ok(Flow::Done)
        }

        fn finish(&mut self) -> Result<Flow> {
            Ok(Flow::Done)
        }

        fn visit(&mut self, visitor: &mut Visitor<'_>) -> Result<()> {
            self.0.iter_mut().try_for_each(|outbox| outbox.visit(visitor))
        }
    }

    #[test]
    fn trap_09_an_output_that_has_the_mark_does_not_get_it_again_while_another_is_full() {
        let (trace, names) = (Arc::new(Trace::default()), Arc::from(["fork".to_string()]));
        let (producers, mut consumers): (Vec<_>, Vec<_>) =
            (0..2).map(|_| channel::<u64>(4)).unzip();
        let mut producers = producers.into_iter();
        let (free, mut full) = (producers.next().unwrap(), producers.next().unwrap());
        for n in 0..CONTROLS_MAX as u64 {
            full.control(Control::Barrier(SnapshotId(n))).unwrap();
        }
        let outbox = |producer| {
            let probe = Probe::new(trace.clone(), 0);
            Outbox::new(Box::new(RoundRobin::default()), vec![producer], probe, None)
        };
        let head = Forked(vec![outbox(free), outbox(full)]);
        let mut task = Task::new(Box::new(head), 0, names, trace);
        assert_eq!(task.step(0).unwrap(), Progress::Due(SnapshotId(1)));
        task.pass_barrier(SnapshotId(1)).unwrap();
        assert_eq!(task.step(0).unwrap(), Progress::Worked, "the free output has got it");
        assert_eq!(task.step(0).unwrap(), Progress::Idle);
        assert!(matches!(consumers[1].poll(1), Polled::Control(_)));
        assert_eq!(task.step(0).unwrap(), Progress::Worked);
        assert!(matches!(consumers[0].poll(1), Polled::Control(Control::Barrier(SnapshotId(1)))));
        assert!(matches!(consumers[0].poll(1), Polled::Empty), "it came twice");
    }

    /// Takes all there is.
    struct Count(Arc<AtomicUsize>);

    impl<T> Stage<T> for Count {
        fn process(&mut self, input: &mut Batch<'_, T>) -> Result<Flow> {
            self.0.fetch_add(input.drain(usize::MAX).count(), Ordering::Relaxed);
            Ok(Flow::Done)
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

    /// A step ended when an output was full. Where none ever is, a record that expands to a million was one
    /// step, and so was all that is emitted at the end: barriers and every other task of the worker waited.
    #[test]
    fn expansions_and_what_is_left_at_the_end_are_many_steps_though_no_output_is_ever_full() {
        let names: Arc<[String]> = Arc::from(["chain".to_string()]);
        let trace = Arc::new(Trace::default());
        let count = Arc::new(AtomicUsize::new(0));
        let probe = || Probe::new(trace.clone(), 0);
        let stepped = |stage: Box<dyn Stage<u64>>, expected: usize| {
            let (mut sender, receiver) = channel::<u64>(4);
            assert!(sender.room(1) > 0);
            sender.push(expected as u64);
            sender.control(Control::End).unwrap();
            let inbox = Inbox::acyclic(vec![receiver], SnapshotId(0));
            let head = InboxHead { inbox, stage, log: "chain#log".into() };
            let mut task = Task::new(Box::new(head), 0, names.clone(), trace.clone());
            count.store(0, Ordering::Relaxed);
            let (mut steps, mut before) = (0, 0);
            loop {
                let progress = task.step(0).unwrap();
                let counted = count.load(Ordering::Relaxed);
                let most = STEP_RECORDS_MAX + 2 * BATCH_RECORDS;
                assert!(counted - before <= most, "{} in one step", counted - before);
                (steps, before) = (steps + 1, counted);
                if progress == Progress::Finished {
                    break;
                }
                assert_eq!(progress, Progress::Worked, "step {steps}: it can go on");
            }
            assert_eq!(before, expected);
            assert!(steps < 10 + expected / (STEP_RECORDS_MAX / 2), "{steps} steps");
        };

        let inner = FlatMap::new(|n: u64| 0..n / 1_000, Box::new(Count(count.clone())), probe());
        let many = |n: u64| std::iter::repeat_n(n, 1_000);
        stepped(Box::new(FlatMap::new(many, Box::new(inner), probe())), 1_000_000);

        let select = ByValue(|n: &u64| *n);
        let keyed = Keyed::new("count".into(), select, 0..KEY_GROUPS, Evolution::default());
        let update = |count: &mut u64, _: u64| *count += 1;
        let fold =
            Aggregate { init: || 0_u64, update, emit: |key: u64, count: &u64| (key, *count) };
        let end = AtEnd::new(keyed, 0..KEY_GROUPS, fold, Box::new(Count(count.clone())), probe());
        stepped(Box::new(FlatMap::new(|n: u64| 0..n, Box::new(end), probe())), 100_000);
    }
}
