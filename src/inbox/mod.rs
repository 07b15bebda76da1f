//! A task's inputs: the only place that reads channels and the only caller of the aligner.
//!
//! Usually records go from a ring straight to the stage. They are *set aside* into the input's
//! [`Backlog`] where the ring must not fill up although the stage cannot take them yet:
//!
//! | input | set aside when | so that |
//! |---|---|---|
//! | back-edge | the stage is full, or the input is blocked or late | a loop of full rings cannot stand still |
//! | late | its ring is full and its barrier not in it | its sender can bring the barrier |
//! | blocked, with spilling on | its ring is half full | the sender runs on during a long alignment |
//! | any, once a timed alignment is overdue | the stage is full | the senders can bring their barriers |
//!
//! Why a loop cannot deadlock: a task that cannot hand on its output still empties its back-edge
//! rings (`relieve`), into memory and then disk. Without the back-edges the rings form a graph
//! without cycles whose last tasks always take, so every full ring becomes free in the end. Records
//! enter a loop only while the backlog of the entrance is small, and no more goes round in all than one
//! back-edge has room for: keys may lead all of it to one. A loop that still outgrows its bounds makes more
//! records than it lets out, and is an error that names it.
//!
//! An entrance that is closed for what goes round elsewhere still reads what comes from inside the loop (it
//! may be that of a loop inside). And it is closed for that only once it has captured as much as any task
//! of the loop: what goes round may stand, blocked, before a task that waits for the barrier of this one.
//!
//! Invariants
//! - Every batch and every mark, from a ring or set aside, is admitted by [`Aligner::admit`] before
//!   the stage sees it. A barrier of a late input counts when it is seen, though records stand before it;
//!   it is taken off then, and so comes once.
//! - Per input, what is set aside is older than what is in the ring.
//! - A record in transit at a cut is copied to the log once: when it leaves the ring of a late input,
//!   where it stands in the ring once the barrier is seen behind it, or at the capture if it was set
//!   aside before. So no snapshot waits for a slow stage.
//! - Only where part of what was set aside is on disk at the capture does a snapshot wait: what comes
//!   before the barrier is logged as it comes back, and the rest at once when the last of it is in memory.
//!   That an input is not waited for is refused, and counted, where it has set aside more than a log holds.
//! - A blocked input is not handled; every other input is, in turn and with a bound, so that after an
//!   alignment none starves and none floods (trap 7).
//! - A batch ends at a mark; records behind it are not touched (trap 5).

mod aside;
mod log;
mod timed;
#[cfg(test)]
mod tests;

use std::ops::AddAssign;
use std::sync::Arc;

use self::timed::Timed;
pub use log::{Log, Share};

use crate::align::{Aligner, Arrival, InputKind, ProtocolError, Verdict};
use crate::channel::{Consumer, Polled};
use crate::config::{DISK_POLL_NS, INPUT_RECORDS_FIRST, INPUT_RECORDS_MAX, Mode, STEP_NS_MAX};
use crate::error::{Error, Result};
use crate::flight::Flight;
use crate::id::SnapshotId;
use crate::operator::{Flow, Stage};
use crate::record::{Batch, Control, Record};
use crate::spill::{Backlog, Front, Limits, Spilled};

/// What a pull found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pulled {
    /// Records were handled, or a mark was.
    Worked,
    /// Records were handled until the chain had no room: flush it before the next pull.
    Full,
    /// The chain has no room for the first of them.
    Stuck,
    /// Nothing there.
    Nothing,
    /// The trigger for this snapshot has come: capture now.
    Barrier(SnapshotId),
    /// Every input has ended.
    Ended,
}

/// One input of a task.
pub struct Input<T: Record> {
    /// Its ring.
    pub ring: Consumer<T>,
    /// Which kind of edge it belongs to.
    pub kind: InputKind,
    /// Whether the edge lies inside a loop.
    pub inside: bool,
    /// Where its records are set aside.
    pub backlog: Backlog<T>,
    /// Whether it is late and what was set aside is not in the log yet: part of it is on disk, perhaps
    /// with its barrier. It is logged as it is handled.
    pub unlogged: bool,
}

/// What an inbox is told about its task.
pub struct Setting {
    /// The operator at the head of the task; for a loop its entrance.
    pub operator: String,
    /// Last captured snapshot.
    pub captured: SnapshotId,
    /// What is in flight in the loop that the task is part of.
    pub flight: Option<Arc<Flight>>,
    /// How snapshots are aligned.
    pub mode: Mode,
    /// Whether blocked inputs are set aside.
    pub spill: bool,
    /// What a back-edge may hold, in words.
    pub loop_limit: String,
    /// Bytes in a back-edge above which nothing more is let into the loop by the task's other inputs.
    pub loop_bytes_max: usize,
    /// Bytes going round in the whole loop above which nothing more is let into it.
    pub flight_bytes_max: usize,
    /// Bytes in the channels of the whole loop above which records that have grown in it are an error.
    pub aloft_bytes_max: usize,
}

/// What an inbox did besides handing on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// What it moved to disk and back.
    pub spilled: Spilled,
    /// Records it copied to logs.
    pub logged_records: u64,
    /// Bytes of those, with what they own on the heap, about.
    pub logged_bytes: u64,
    /// Snapshots that were given up because more was in transit than a log holds.
    pub logs_failed: u64,
    /// Timed alignments that waited past their time, for the same reason.
    pub timeouts_refused: u64,
}

impl AddAssign for Measured {
    fn add_assign(&mut self, other: Self) {
        self.spilled += other.spilled;
        self.logged_records += other.logged_records;
        self.logged_bytes += other.logged_bytes;
        self.logs_failed += other.logs_failed;
        self.timeouts_refused += other.timeouts_refused;
    }
}

/// The inputs of one task, all of one record type.
pub struct Inbox<T: Record> {
    inputs: Vec<Input<T>>,
    aligner: Aligner,
    log: Log<T>,
    setting: Setting,
    has_back_edges: bool,
    /// The input to look at first.
    turn: usize,
    /// Records to take from one input before looking at the next.
    records_max: usize,
    /// Most records taken from one input at once since the last step's time was told.
    taken_most: usize,
    timed: Timed,
    /// A trigger that came while the stage was full.
    due: Option<SnapshotId>,
    /// Records taken from inside the loop whose effects may not all be sent yet.
    unsettled: usize,
    /// Records from inside the loop that were last told to be set aside.
    told_aside: usize,
    /// What a record that comes back weighed when those that go round began to seem too much.
    too_heavy_since: Option<usize>,
    /// Whether every regular input of the loop's entrance has ended.
    ending: bool,
}

impl<T: Record> Inbox<T> {
    /// Reads `inputs`; late ones are logged in `log`.
    #[must_use]
    pub fn new(inputs: Vec<Input<T>>, log: Log<T>, setting: Setting) -> Self {
        let kinds: Vec<_> = inputs.iter().map(|input| input.kind).collect();
        let mut aligner = Aligner::new(&kinds, setting.captured);
        aligner.hold(setting.mode == Mode::Synchronous && kinds.contains(&InputKind::BackEdge));
        Self {
            inputs,
            aligner,
            log,
            timed: Timed::new(setting.captured),
            setting,
            turn: 0,
            records_max: INPUT_RECORDS_MAX,
            taken_most: 0,
            due: None,
            has_back_edges: kinds.contains(&InputKind::BackEdge),
            unsettled: 0,
            told_aside: 0,
            too_heavy_since: None,
            ending: false,
        }
    }

    /// Reads `rings` of a graph without loops, and sets nothing aside.
    #[must_use]
    pub fn acyclic(rings: Vec<Consumer<T>>, captured: SnapshotId) -> Self {
        let log = Log::new((0, 1), rings.iter().map(|_| Share::Any).collect());
        let (kind, inside, unlogged) = (InputKind::Regular, false, false);
        let limits = Limits { memory_bytes: 0, disk_bytes: 0 };
        let input = |ring| {
            let backlog = Backlog::new(limits, None);
            Input { ring, kind, inside, backlog, unlogged }
        };
        let setting = Setting {
            operator: String::new(),
            captured,
            flight: None,
            mode: Mode::Abs,
            spill: false,
            loop_limit: String::new(),
            loop_bytes_max: 0,
            flight_bytes_max: 0,
            aloft_bytes_max: 0,
        };
        Self::new(rings.into_iter().map(input).collect(), log, setting)
    }

    /// The log, as a part of the task's state.
    pub fn log(&mut self) -> &mut Log<T> {
        &mut self.log
    }

    /// What was spilled and logged so far.
    #[must_use]
    pub fn measured(&self) -> Measured {
        let mut measured = Measured {
            logged_records: self.log.logged(),
            logged_bytes: self.log.logged_bytes(),
            logs_failed: self.log.failed(),
            timeouts_refused: self.timed.refused,
            spilled: Spilled::default(),
        };
        self.inputs.iter().for_each(|input| measured.spilled += input.backlog.measured());
        measured
    }

    /// The restored log counts as in flight. Called once, after the restore.
    pub fn start(&mut self) {
        if let Some(flight) = &self.setting.flight {
            flight.sent(self.log.restored());
        }
    }

    /// Looks at each input once and gives what it may to `stage`. `Some` time: look again then, see
    /// [`look_at_ns`](Self::look_at_ns).
    ///
    /// # Errors
    /// The stage's; a disk's; a loop that outgrows its bounds.
    pub fn pull(&mut self, now_ns: u64, stage: &mut dyn Stage<T>) -> Result<(Pulled, Option<u64>)> {
        if let Some(snapshot) = self.due.take() {
            return Ok((Pulled::Barrier(snapshot), None));
        }
        if let Some(pulled) = self.replay(stage)? {
            return Ok((pulled, None));
        }
        if self.is_overdue(now_ns)
            && let Some(snapshot) = self.expire()?
        {
            return Ok((Pulled::Barrier(snapshot), None));
        }
        if self.has_back_edges
            && let Some(pulled) = self.watch_loop()?
        {
            return Ok((pulled, None));
        }
        Ok((self.read_each(stage)?, self.look_at_ns(now_ns)))
    }

    /// When an inbox that nothing comes to has to be looked at again, ns: a timed alignment is overdue
    /// then, or the disk may have got on with what was set aside. Nobody wakes a worker for either.
    #[must_use]
    pub fn look_at_ns(&self, now_ns: u64) -> Option<u64> {
        let moves = self.inputs.iter().any(|input| input.backlog.is_moving());
        let disk = moves.then_some(now_ns + DISK_POLL_NS);
        [disk, self.overdue_at_ns(now_ns)].into_iter().flatten().min()
    }

    /// Takes in what the disk has done with what was set aside. Whether there was anything.
    fn poll_disk(&mut self) -> Result<bool> {
        let mut worked = false;
        for Input { backlog, .. } in &mut self.inputs {
            worked |= backlog.is_moving() && backlog.poll()?;
        }
        Ok(worked)
    }

    /// The entrance of a loop: whether the loop is empty, where that matters.
    fn watch_loop(&mut self) -> Result<Option<Pulled>> {
        self.check_grown()?;
        let Some(flight) = &self.setting.flight else { return Ok(None) };
        if self.ending && flight.is_over() {
            self.ending = false;
            return Ok(Some(Pulled::Ended));
        }
        if self.setting.mode != Mode::Synchronous {
            return Ok(None);
        }
        let rounds = self.aligner.captured().next().0 - self.setting.captured.0;
        if flight.is_quiet(rounds)
            && let Some(snapshot) = self.aligner.release()
        {
            self.begin_log(snapshot)?;
            return Ok(Some(Pulled::Barrier(snapshot)));
        }
        Ok(None)
    }

    /// Whether the back-edges here hold so much that nothing more is to come in. A blocked back-edge does
    /// not count: what unblocks it comes in by the regular inputs.
    fn is_full(&self) -> bool {
        let mut inputs = self.inputs.iter().enumerate();
        self.has_back_edges
            && inputs.any(|(index, Input { kind, backlog, .. })| {
                let much = backlog.memory_bytes() > self.setting.loop_bytes_max;
                *kind == InputKind::BackEdge
                    && !self.aligner.is_blocked(index)
                    && (much || !backlog.is_in_memory())
            })
    }

    /// Whether so much goes round in the whole loop that nothing more is to enter it here.
    fn is_loop_full(&self) -> bool {
        let flight = self.setting.flight.as_ref().filter(|_| self.has_back_edges);
        flight.is_some_and(|flight| {
            // What has come round says what goes round; one heavy record that entered does not.
            let is_told = |input: &&Input<T>| {
                input.kind == InputKind::BackEdge && input.backlog.is_weight_known()
            };
            let bytes = |input: &Input<T>| input.backlog.record_bytes();
            let told = self.inputs.iter().filter(is_told).map(bytes).max();
            let heaviest = told.or_else(|| self.inputs.iter().map(bytes).max());
            let records_max = self.setting.flight_bytes_max / heaviest.unwrap_or(1);
            flight.is_full(records_max as u64, self.aligner.captured())
        })
    }

    /// The last step of the task took this long. If that was long, takes fewer records at once: an
    /// operator that is slow per record must not keep the others, or a barrier, waiting for
    /// thousands of its own.
    pub fn took(&mut self, ns: u64) {
        let taken = std::mem::take(&mut self.taken_most);
        if ns > STEP_NS_MAX && taken > 0 {
            self.records_max = (self.records_max / 2).max(1);
        } else if ns < STEP_NS_MAX / 4 && taken == self.records_max {
            // Only a step that took all it might says that more would do: an idle one says nothing.
            self.records_max = (self.records_max * 2).min(INPUT_RECORDS_MAX);
        }
    }

    /// From now on [`took`](Self::took) is told: begins with few records.
    pub fn start_small(&mut self) {
        self.records_max = INPUT_RECORDS_FIRST;
    }

    /// Handles the restored log, before any input.
    fn replay(&mut self, stage: &mut dyn Stage<T>) -> Result<Option<Pulled>> {
        let Some(replay) = self.log.replay() else { return Ok(None) };
        let (taken, flow) =
            replay.lend_at_most(self.records_max, |batch| handle(batch, stage, None));
        Ok(Some(self.handled(taken, true, flow?)))
    }

    fn read_each(&mut self, stage: &mut dyn Stage<T>) -> Result<Pulled> {
        self.tell_aside();
        let mut worked = self.poll_disk()?;
        let (full, loop_full) = (self.is_full(), self.is_loop_full());
        for _ in 0..self.inputs.len() {
            let input = self.turn;
            self.turn = if input + 1 == self.inputs.len() { 0 } else { input + 1 };
            if self.aligner.is_blocked(input) {
                worked |= self.set_aside_if_needed(input)?;
                continue;
            }
            if self.aligner.is_late(input) {
                worked |= self.log_ahead(input)?;
                if let Some(snapshot) = self.due.take() {
                    return Ok(Pulled::Barrier(snapshot));
                }
            }
            let Input { kind, inside, .. } = &self.inputs[input];
            if *kind == InputKind::Regular && (full || loop_full && !inside) {
                continue;
            }
            match self.read(input, stage)? {
                Pulled::Nothing => {}
                Pulled::Worked => worked = true,
                pulled => return Ok(pulled),
            }
        }
        Ok(if worked { Pulled::Worked } else { Pulled::Nothing })
    }

    /// Handles what `input` has next: what was set aside, or what is in its ring.
    fn read(&mut self, input: usize, stage: &mut dyn Stage<T>) -> Result<Pulled> {
        let Input { ring, backlog, inside, .. } = &mut self.inputs[input];
        let inside = *inside;
        if !backlog.is_empty() {
            return self.read_backlog(input, stage);
        }
        let control = match ring.poll(self.records_max) {
            Polled::Empty | Polled::Closed => return Ok(Pulled::Nothing),
            Polled::Records(mut records) => {
                if self.has_back_edges {
                    backlog.weigh(records.as_slice());
                }
                let admitted = self.aligner.admit(input, Arrival::Records);
                let verdict = admitted.map_err(|error| fault(&self.setting, &error))?;
                assert_ne!(verdict, Verdict::Block, "input {input} is not blocked");
                let log = matches!(verdict, Verdict::Log(_)).then_some((&mut self.log, input));
                Err(handle(&mut records, stage, log))
            }
            Polled::Control(control) => Ok(control),
        };
        match control {
            Ok(control) => self.control(input, control),
            Err((taken, flow)) => Ok(self.handled(taken, inside, flow?)),
        }
    }

    fn read_backlog(&mut self, input: usize, stage: &mut dyn Stage<T>) -> Result<Pulled> {
        let records_max = self.records_max;
        let Input { backlog, inside, unlogged, .. } = &mut self.inputs[input];
        let moved = backlog.poll()?;
        match backlog.front() {
            Front::Empty | Front::Waiting => {
                Ok(if moved { Pulled::Worked } else { Pulled::Nothing })
            }
            Front::Control(control) => {
                backlog.pop_control();
                self.control(input, control)
            }
            Front::Records => {
                let admitted = self.aligner.admit(input, Arrival::Records);
                let verdict = admitted.map_err(|error| fault(&self.setting, &error))?;
                assert_ne!(verdict, Verdict::Block, "input {input} is not blocked");
                // Of a late input, what was set aside is in the log already; unless it was on disk.
                let is_new = *unlogged && matches!(verdict, Verdict::Log(_));
                let log = is_new.then_some((&mut self.log, input));
                let (taken, flow) = backlog.lend(records_max, |batch| handle(batch, stage, log));
                let inside = *inside;
                Ok(self.handled(taken, inside, flow?))
            }
        }
    }

    /// The stage has taken `taken` records.
    fn handled(&mut self, taken: usize, inside: bool, flow: Flow) -> Pulled {
        self.taken_most = self.taken_most.max(taken);
        if inside && self.setting.flight.is_some() {
            self.unsettled += taken;
        }
        match flow {
            Flow::Full if taken == 0 => Pulled::Stuck,
            Flow::Full => Pulled::Full,
            Flow::Done => {
                self.settle();
                Pulled::Worked
            }
        }
    }

    /// The stage owes nothing: what was taken has been sent on.
    #[inline]
    pub fn settle(&mut self) {
        if self.unsettled > 0
            && let Some(flight) = &self.setting.flight
        {
            flight.handled(std::mem::take(&mut self.unsettled));
        }
    }

    /// `input` has come to a mark. The stage owes nothing now: otherwise nothing would be read.
    fn control(&mut self, input: usize, control: Control) -> Result<Pulled> {
        let admitted = self.aligner.admit(input, Arrival::Control(control));
        let verdict = admitted.map_err(|error| fault(&self.setting, &error))?;
        if verdict == Verdict::Old {
            return Ok(Pulled::Worked);
        }
        if !self.inputs[input].inside
            && let Some(flight) = &self.setting.flight
        {
            match control {
                Control::End => flight.entry_ended(),
                Control::Barrier(_) => flight.entry_at_barrier(),
            }
        }
        Ok(match verdict {
            Verdict::Capture(snapshot) => {
                self.begin_log(snapshot)?;
                Pulled::Barrier(snapshot)
            }
            Verdict::Sealed(_) => {
                self.seal();
                Pulled::Worked
            }
            Verdict::AllEnded if self.has_back_edges => {
                self.ending = true;
                Pulled::Worked
            }
            Verdict::AllEnded => Pulled::Ended,
            Verdict::Noted => Pulled::Worked,
            Verdict::Old | Verdict::Process | Verdict::Log(_) | Verdict::Block => {
                unreachable!("{control:?} of input {input}: {verdict:?}")
            }
        })
    }
}

/// Lets `stage` take from `batch`, and copies what it took to a log; how many it took, and how that
/// went.
fn handle<T: Record>(
    batch: &mut Batch<'_, T>,
    stage: &mut dyn Stage<T>,
    mut log: Option<(&mut Log<T>, usize)>,
) -> (usize, Result<Flow>) {
    let before = batch.len();
    if let Some((log, input)) = &mut log {
        log.append(*input, batch.as_slice());
    }
    let flow = stage.process(batch);
    if let Some((log, input)) = &mut log {
        log.retract(*input, batch.len());
    }
    (before - batch.len(), flow)
}

/// A sender that breaks the protocol is a defect of tidegate: it stops the task rather than letting a
/// wrong snapshot pass, and is not put down to the operator that happened to run.
fn fault(setting: &Setting, error: &ProtocolError) -> Error {
    Error::Fault {
        place: format!("the inputs of '{}'", setting.operator),
        what: format!("barrier protocol: {error}"),
    }
}
