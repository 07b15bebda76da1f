//! Alignment: the pure heart of Asynchronous Barrier Snapshotting (ABS).
//!
//! One [`Aligner`] per task decides, input by input, what is to be done with what came. It holds no
//! channel, no clock and no thread, so its whole state space can be explored (see the tests).
//!
//! To be read beside the paper: Carbone, Fóra, Ewen, Haridi, Tzoumas, "Lightweight Asynchronous Snapshots
//! for Distributed Dataflows", 2015. Its execution graph `G = (T, E)` is here tasks and channels, its
//! `s_t` the state of a task's operators, its `I_t` and `O_t` the inputs and outputs of a task, its stage
//! marker a *barrier* with the number of its snapshot. What the paper asks of a snapshot
//! `G* = (T*, E*)`: it ends if all tasks live (*termination*), and a job that goes on from it neither
//! loses nor doubles a record's effect (*feasibility*).
//!
//! # Algorithm 1: graphs without cycles
//! Channels are first-in first-out, so a barrier parts each of them into what belongs to the snapshot
//! and what does not. A task has to make one cut of its several inputs, whose barriers come at different
//! times: it *blocks* those that are ahead.
//! ```text
//! on barrier from input i:   blocked += {i}; block i
//!                            if blocked = I_t:  send the barrier to all of O_t
//!                                               capture s_t
//!                                               unblock all; blocked = {}
//! ```
//! When the last barrier comes, `s_t` holds the effect of all records before the barriers and of none
//! behind. So the captured states *are* the snapshot: `E* = {}`, no channel is recorded, which is what the
//! paper has over Chandy and Lamport. A source has no input; the coordinator's word is its barrier and its
//! offset its state. Sending before (here: in one step with) the capture lets the next task align while
//! this one's bytes are still on their way to the disk.
//!
//! # Algorithm 2: graphs with cycles
//! On a cycle algorithm 1 waits for ever: the task at its entrance waits for a barrier on the back-edge
//! that it would itself have to send round. So the trigger is *all regular inputs*, and what is in the
//! loop at that moment is recorded: `E*` is the records in transit on back-edges.
//! ```text
//! on barrier from regular i:    block i
//!                               if all regular inputs are blocked: copy s_t; marked = true
//!                                     send the barrier; unblock all; log what back-edges bring
//! on barrier from back-edge b:  if all back-edges have delivered: {copy, log} is the snapshot of t
//!                               marked = false
//! on record from back-edge:     if marked: append it to the log;  process it in any case
//! ```
//! Why the log is right: what a back-edge brings between the capture and its barrier was sent by a task
//! that had not forwarded the barrier, so it is an effect of records before the cut; and it is in no
//! captured state, as this task's copy was made before. Such a record is in transit at the cut. A restored
//! task processes its log before it reads anything.
//!
//! # Two faults in the published algorithm 2
//! Both were found by running the pseudo-code over random schedules, and are tests here.
//! - *It stops logging all back-edges at once*, when the last one has delivered. Say `b1` has delivered
//!   and `b2` has not: a record behind `b1`'s barrier is logged, although the task that sent it had
//!   captured its cause. After a restore it comes twice: wrong in 78 % of schedules with two
//!   back-edges on one task. Here being [late](Aligner::is_late) is a property of each input.
//! - *`marked` has no number.* If barrier n+1 reaches the regular inputs before the loop has brought n back,
//!   the task takes it for n's, waits for barriers it has used up, and hangs: 93 % of schedules with
//!   a second snapshot. Here each input counts the barriers it has delivered; one of n+1 blocks its input,
//!   and the trigger of n+1 waits until n is sealed.
//!
//! # One rule for both
//! The two algorithms differ in their trigger only. For snapshot n at a task:
//! 1. *Block*: an input that delivers barrier n before the capture is not read until the capture.
//! 2. *Capture*: at the trigger the task captures its state, forwards the barrier, unblocks.
//! 3. *Log*: after the capture, what still comes from an input that has not delivered n (a *late*
//!    input) is in transit at the cut: it is copied to the snapshot's log, and handled as usual.
//! 4. *Seal*: when every input has delivered n, the task's share of n is its captured state and log.
//!
//! | trigger | gives |
//! |---|---|
//! | every input has delivered n | algorithm 1: no input is late, the log is empty |
//! | every *regular* input has | algorithm 2: only back-edges are late |
//! | the same, or a timeout ([`Aligner::expire`]) | "unaligned": no slow input holds a snapshot up |
//! | every regular input has and the loop is empty ([`Aligner::hold`]) | synchronous: empty log |
//!
//! The argument for the log asks nothing of the input but that its barrier was not forwarded yet, so it
//! holds for a regular input that is late as well: hence the third row.
//!
//! An input is kept as one number, the last barrier it `delivered`, and the task as one, the snapshot
//! `captured` last; all else follows:
//! ```text
//! delivered > captured   blocked: its barrier was here before the capture
//! delivered = captured   free: records are processed
//! delivered < captured   late: records are logged and processed
//! ```
//! Example, the entrance of a loop, with regular input `r` and back-edge `b`:
//! ```text
//! r: record a    Process
//! r: barrier 1   Capture(1)   b is late from here on
//! r: record c    Process      behind the cut of 1
//! b: record x    Log(1)       in transit at it
//! r: barrier 2   Noted        r is blocked: the loop has not brought 1 back yet
//! r: record d    Block
//! b: record y    Log(1)
//! b: barrier 1   Capture(2)   seals 1, with the log x, y; and is what the trigger of 2 has waited for
//! r: record d    Process
//! b: record z    Log(2)
//! b: barrier 2   Sealed(2)
//! ```
//!
//! # Ended inputs
//! An ended input is no special case. A task that has no more records keeps forwarding barriers
//! until the job's last snapshot is complete ([`Control::End`] is a mark *between* records and
//! nothing, not the death of the sender), so it takes part in alignment like any other. Flink's
//! rule, a finished input leaves the alignment set and its successors become barrier roots, needs
//! triggers that race with finishes; this one has no such race.
//!
//! # Invariants
//! - Snapshot ids rise by one per input; a task has at most one unsealed snapshot.
//! - After input i's barrier n nothing of i is admitted until the capture of n.
//! - A capture happens exactly once per snapshot.
//! - A record is in the captured state of n, or in its log, or behind n: exactly one of the three.

use crate::id::SnapshotId;
use crate::record::Control;

/// What kind of edge an input belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum InputKind {
    /// The trigger waits for its barrier.
    Regular,
    /// It closes a cycle, so its barrier comes after the capture: the trigger does not wait for it.
    BackEdge,
}

/// What an input has next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Records, as far as the next control mark.
    Records,
    /// A control mark.
    Control(Control),
}

/// What the task has to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Handle the records now.
    Process,
    /// Copy the records to the log of this snapshot, and handle them.
    Log(SnapshotId),
    /// The input is blocked: leave what it has for later.
    Block,
    /// The mark is taken note of; read on elsewhere.
    Noted,
    /// A barrier that the input has delivered before: nothing is to be done.
    Old,
    /// The trigger: capture, forward the barrier, read on. [`Aligner::is_late`] says which inputs
    /// are logged from here on.
    Capture(SnapshotId),
    /// The last late input has delivered: the log of this snapshot is complete.
    Sealed(SnapshotId),
    /// No regular input has records any more: emit what is left, as soon as a loop that ends here
    /// is empty.
    AllEnded,
}

/// A sender broke the protocol: a defect of tidegate, never of the user's job.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The same input delivered one barrier twice, or a mark after being blocked.
    #[error("input {input} delivered {arrival:?} while blocked by barrier {blocked_by}")]
    ReadWhileBlocked {
        /// Which input.
        input: usize,
        /// What came.
        arrival: Arrival,
        /// The barrier it is blocked by.
        blocked_by: SnapshotId,
    },
    /// A barrier that is neither the one being aligned nor the next one.
    #[error("input {input} delivered barrier {found}, expected {expected}")]
    WrongBarrier {
        /// Which input.
        input: usize,
        /// The barrier that came.
        found: SnapshotId,
        /// The barrier that was due.
        expected: SnapshotId,
    },
    /// Something other than a barrier came after the end.
    #[error("input {input} delivered {arrival:?} after its end")]
    AfterEnd {
        /// Which input.
        input: usize,
        /// What came.
        arrival: Arrival,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Input {
    kind: InputKind,
    /// The barrier it delivered last.
    delivered: u64,
    ended: bool,
}

/// The alignment state of one task's inputs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Aligner {
    inputs: Vec<Input>,
    /// The snapshot whose capture came last (or the one restored from).
    captured: u64,
    /// Regular inputs that have not delivered `captured + 1`.
    awaited: usize,
    /// Inputs that have not delivered `captured`.
    late: usize,
    /// Regular inputs that have not ended.
    unended: usize,
    /// Whether the trigger waits for [`release`](Aligner::release).
    held: bool,
}

impl Aligner {
    /// For a task with these inputs whose last captured snapshot is `captured`.
    #[must_use]
    pub fn new(kinds: &[InputKind], captured: SnapshotId) -> Self {
        let regular = kinds.iter().filter(|kind| **kind == InputKind::Regular).count();
        assert!(regular > 0, "a task that aligns has a regular input");
        let input = |&kind| Input { kind, delivered: captured.0, ended: false };
        Self {
            inputs: kinds.iter().map(input).collect(),
            captured: captured.0,
            awaited: regular,
            late: 0,
            unended: regular,
            held: false,
        }
    }

    /// Whether `input` must not be read now: it has delivered a barrier that is not captured yet.
    #[inline]
    #[must_use]
    pub fn is_blocked(&self, input: usize) -> bool {
        self.inputs[input].delivered > self.captured
    }

    /// Whether `input` is logged: it has not delivered the barrier that is captured.
    #[inline]
    #[must_use]
    pub fn is_late(&self, input: usize) -> bool {
        self.inputs[input].delivered < self.captured
    }

    /// Whether any input is logged.
    #[inline]
    #[must_use]
    pub fn is_logging(&self) -> bool {
        self.late > 0
    }

    /// Whether an input waits for the trigger.
    #[must_use]
    pub fn is_aligning(&self) -> bool {
        (0..self.inputs.len()).any(|input| self.is_blocked(input))
    }

    /// Whether no regular input will bring another record.
    #[must_use]
    pub fn all_ended(&self) -> bool {
        self.unended == 0
    }

    /// The snapshot captured last.
    #[must_use]
    pub fn captured(&self) -> SnapshotId {
        SnapshotId(self.captured)
    }

    /// The only gate between a channel and an operator: asked once per batch and once per mark.
    ///
    /// # Errors
    /// [`ProtocolError`] when the sender broke the protocol.
    #[inline]
    pub fn admit(&mut self, input: usize, arrival: Arrival) -> Result<Verdict, ProtocolError> {
        let Input { delivered, ended, .. } = self.inputs[input];
        let blocked = delivered > self.captured;
        match arrival {
            Arrival::Records if blocked => Ok(Verdict::Block),
            Arrival::Records if ended => Err(ProtocolError::AfterEnd { input, arrival }),
            Arrival::Records if delivered < self.captured => Ok(Verdict::Log(self.captured())),
            Arrival::Records => Ok(Verdict::Process),
            Arrival::Control(_) if blocked => {
                let blocked_by = SnapshotId(delivered);
                Err(ProtocolError::ReadWhileBlocked { input, arrival, blocked_by })
            }
            Arrival::Control(Control::Barrier(snapshot)) => self.barrier(input, snapshot),
            Arrival::Control(Control::End) => self.end(input),
        }
    }

    fn barrier(&mut self, input: usize, found: SnapshotId) -> Result<Verdict, ProtocolError> {
        let Input { kind, delivered, .. } = self.inputs[input];
        if found.0 <= delivered {
            return Ok(Verdict::Old);
        }
        let expected = SnapshotId(delivered + 1);
        if found != expected {
            return Err(ProtocolError::WrongBarrier { input, found, expected });
        }
        self.inputs[input].delivered = found.0;
        if found.0 > self.captured {
            self.awaited -= usize::from(kind == InputKind::Regular);
        } else {
            self.late -= 1;
        }
        let captured = if self.held { None } else { self.release() };
        Ok(match captured {
            Some(snapshot) => Verdict::Capture(snapshot),
            None if found == self.captured() && self.late == 0 => Verdict::Sealed(found),
            None => Verdict::Noted,
        })
    }

    fn end(&mut self, input: usize) -> Result<Verdict, ProtocolError> {
        let Input { kind, ended, .. } = self.inputs[input];
        if ended {
            let arrival = Arrival::Control(Control::End);
            return Err(ProtocolError::AfterEnd { input, arrival });
        }
        self.inputs[input].ended = true;
        if kind == InputKind::BackEdge {
            return Ok(Verdict::Noted);
        }
        self.unended -= 1;
        Ok(if self.unended == 0 { Verdict::AllEnded } else { Verdict::Noted })
    }

    /// From now on (or no longer) the trigger waits until it is released.
    pub fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// The trigger, if all is there for it, although it is held: the snapshot to capture now.
    pub fn release(&mut self) -> Option<SnapshotId> {
        (self.awaited == 0 && self.late == 0).then(|| self.capture())
    }

    /// `snapshot` has been awaited for too long: captures it now, if it is the next one and the one
    /// before it is sealed.
    pub fn expire(&mut self, snapshot: SnapshotId) -> Option<SnapshotId> {
        let is_next = snapshot.0 == self.captured + 1;
        (is_next && self.late == 0).then(|| self.capture())
    }

    fn capture(&mut self) -> SnapshotId {
        self.captured += 1;
        let regular = |input: &&Input| input.kind == InputKind::Regular;
        self.awaited = self.inputs.iter().filter(regular).count();
        self.late = self.inputs.iter().filter(|input| input.delivered < self.captured).count();
        self.captured()
    }
}

#[cfg(test)]
mod tests;
