//! Alignment: the pure heart of Asynchronous Barrier Snapshotting.
//!
//! One [`Aligner`] per task decides, input by input, what is to be done with what came. It holds no
//! channel, no clock and no thread, so its whole state space can be explored (see the tests).
//!
//! # The rule
//! Carbone et al. 2015 give two algorithms, one for acyclic graphs and one for cyclic ones. Both are
//! one rule with different triggers. For snapshot n at a task:
//! 1. *Block*: an input that delivers barrier n before the capture is not read until the capture.
//! 2. *Capture*: at the trigger the task captures its state, forwards the barrier, unblocks.
//! 3. *Log*: after the capture, what still comes from an input that has not delivered n (a *late*
//!    input) is in transit at the cut: it is copied to the snapshot's log, and handled as usual.
//! 4. *Seal*: when every input has delivered n, the task's share of n is its captured state and log.
//!
//! | trigger | gives |
//! |---|---|
//! | every input has delivered n | algorithm 1, acyclic: no input is late, the log is empty |
//! | every *regular* input has | algorithm 2, cyclic: only back-edges are late |
//! | the same, or a timeout ([`Aligner::expire`]) | "unaligned": no slow input holds a snapshot up |
//! | every regular input has and the loop is empty ([`Aligner::hold`]) | synchronous: empty log |
//!
//! Why the log is right: what a back-edge brings after the capture was sent by a task that had not
//! yet forwarded n, so it is an effect of records before the cut that is in no captured state. The
//! restored task handles its log before it reads anything.
//!
//! # Two faults in the published algorithm 2
//! - It stops logging all back-edges at once, when the last one has delivered: a task with two of
//!   them goes on logging the first behind its barrier, and those records come twice after a
//!   restore. Here being late is a property of each input.
//! - Its `marked` carries no snapshot number: a barrier n+1 that comes while a loop has not closed n
//!   is taken for n's, and the task hangs. Here each input counts its barriers, and n+1 is not acted
//!   on before n is sealed.
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
mod tests {
    use super::Arrival::Records;
    use super::InputKind::{BackEdge, Regular};
    use super::*;
    use std::collections::BTreeSet;

    const END: Arrival = Arrival::Control(Control::End);
    const ONE: SnapshotId = SnapshotId(1);
    const TWO: SnapshotId = SnapshotId(2);

    fn barrier(n: u64) -> Arrival {
        Arrival::Control(Control::Barrier(SnapshotId(n)))
    }

    /// One case: (input, arrival, verdict) in order.
    fn script(kinds: &[InputKind], events: &[(usize, Arrival, Verdict)]) -> Aligner {
        let mut aligner = Aligner::new(kinds, SnapshotId(0));
        for (step, &(input, arrival, expected)) in events.iter().enumerate() {
            assert_eq!(aligner.admit(input, arrival), Ok(expected), "step {step}");
        }
        aligner
    }

    #[test]
    fn a_single_input_captures_at_its_barrier() {
        script(
            &[Regular],
            &[
                (0, Records, Verdict::Process),
                (0, barrier(1), Verdict::Capture(ONE)),
                (0, Records, Verdict::Process),
                (0, barrier(2), Verdict::Capture(TWO)),
            ],
        );
    }

    #[test]
    fn an_input_is_blocked_from_its_barrier_to_the_capture() {
        script(
            &[Regular; 3],
            &[
                (1, barrier(1), Verdict::Noted),
                (1, Records, Verdict::Block),
                (0, Records, Verdict::Process),
                (0, barrier(1), Verdict::Noted),
                (2, Records, Verdict::Process),
                (0, Records, Verdict::Block),
                (2, barrier(1), Verdict::Capture(ONE)),
                (0, Records, Verdict::Process),
                (1, Records, Verdict::Process),
            ],
        );
    }

    #[test]
    fn trap_01_a_finished_input_does_not_hold_alignment_back() {
        script(
            &[Regular; 2],
            &[
                (0, END, Verdict::Noted),
                (1, Records, Verdict::Process),
                (0, barrier(1), Verdict::Noted),
                (1, barrier(1), Verdict::Capture(ONE)),
                (1, END, Verdict::AllEnded),
                (1, barrier(2), Verdict::Noted),
                (0, barrier(2), Verdict::Capture(TWO)),
            ],
        );
    }

    #[test]
    fn trap_10_a_repeated_barrier_is_an_error_and_an_old_one_is_dropped() {
        let mut aligner = Aligner::new(&[Regular; 2], SnapshotId(4));
        assert_eq!(aligner.admit(0, barrier(4)), Ok(Verdict::Old));
        assert_eq!(aligner.admit(0, barrier(5)), Ok(Verdict::Noted));
        let twice = aligner.admit(0, barrier(5)).unwrap_err();
        assert!(matches!(twice, ProtocolError::ReadWhileBlocked { input: 0, .. }), "{twice}");
        let skipped = aligner.admit(1, barrier(6)).unwrap_err();
        assert!(matches!(skipped, ProtocolError::WrongBarrier { input: 1, .. }), "{skipped}");
        let mut aligner = Aligner::new(&[Regular], SnapshotId(0));
        assert_eq!(aligner.admit(0, END), Ok(Verdict::AllEnded));
        assert!(matches!(aligner.admit(0, Records), Err(ProtocolError::AfterEnd { .. })));
    }

    #[test]
    fn a_back_edge_is_logged_from_the_capture_to_its_barrier() {
        script(
            &[Regular, BackEdge],
            &[
                (1, Records, Verdict::Process),
                (0, barrier(1), Verdict::Capture(ONE)),
                (0, Records, Verdict::Process),
                (1, Records, Verdict::Log(ONE)),
                (1, barrier(1), Verdict::Sealed(ONE)),
                (1, Records, Verdict::Process),
            ],
        );
    }

    /// The first fault in the published algorithm: all back-edges were logged until the last one had
    /// delivered.
    #[test]
    fn of_two_back_edges_each_is_logged_up_to_its_own_barrier() {
        script(
            &[Regular, BackEdge, BackEdge],
            &[
                (0, barrier(1), Verdict::Capture(ONE)),
                (2, Records, Verdict::Log(ONE)),
                (1, barrier(1), Verdict::Noted),
                (1, Records, Verdict::Process),
                (2, Records, Verdict::Log(ONE)),
                (2, barrier(1), Verdict::Sealed(ONE)),
            ],
        );
    }

    /// The second fault: a barrier that comes before the loop has closed the last one.
    #[test]
    fn the_next_barrier_waits_until_the_loop_has_closed_the_last() {
        let aligner = script(
            &[Regular, BackEdge],
            &[
                (0, barrier(1), Verdict::Capture(ONE)),
                (0, barrier(2), Verdict::Noted),
                (0, Records, Verdict::Block),
                (1, Records, Verdict::Log(ONE)),
                (1, barrier(1), Verdict::Capture(TWO)),
                (1, Records, Verdict::Log(TWO)),
                (1, barrier(2), Verdict::Sealed(TWO)),
            ],
        );
        assert!(!aligner.is_logging() && !aligner.is_aligning());
    }

    #[test]
    fn a_timeout_captures_at_once_and_logs_the_inputs_that_are_late() {
        let mut aligner = script(&[Regular; 2], &[(0, barrier(1), Verdict::Noted)]);
        assert_eq!(aligner.expire(TWO), None);
        assert_eq!(aligner.expire(ONE), Some(ONE));
        assert_eq!(aligner.admit(0, Records), Ok(Verdict::Process));
        assert_eq!(aligner.admit(1, Records), Ok(Verdict::Log(ONE)));
        assert_eq!(aligner.expire(ONE), None, "captured");
        assert_eq!(aligner.expire(TWO), None, "before the last one is sealed");
        assert_eq!(aligner.admit(1, barrier(1)), Ok(Verdict::Sealed(ONE)));
    }

    #[test]
    fn a_held_trigger_waits_for_its_release() {
        let mut aligner = Aligner::new(&[Regular, BackEdge], SnapshotId(0));
        aligner.hold(true);
        assert_eq!(aligner.release(), None);
        assert_eq!(aligner.admit(0, barrier(1)), Ok(Verdict::Noted));
        assert_eq!(aligner.admit(1, Records), Ok(Verdict::Process));
        assert_eq!(aligner.release(), Some(ONE));
        assert_eq!(aligner.admit(1, barrier(1)), Ok(Verdict::Sealed(ONE)));
    }

    const SNAPSHOTS: u64 = 3;

    /// One input as its sender sees it: barriers sent, whether a record was sent since, ended.
    type Place = (u64, bool, bool);

    /// The definition, kept beside the aligner: what each snapshot has seen of each input.
    #[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
    struct World {
        aligner: Aligner,
        places: Vec<Place>,
        /// Captured, sealed.
        captured: u64,
        sealed: u64,
    }

    /// Every interleaving of up to four inputs of both kinds, each with 0 or 1 record between
    /// barriers and an end at any point, and timeouts at any point: each reachable state is visited
    /// once and compared with the definition.
    #[test]
    fn every_reachable_state_keeps_the_definition_and_never_gets_stuck() {
        for (kinds, timeouts) in [
            (&[Regular][..], true),
            (&[Regular, Regular], true),
            (&[Regular, BackEdge], true),
            (&[Regular, Regular, Regular], true),
            (&[Regular, BackEdge, BackEdge], true),
            (&[Regular, Regular, BackEdge], true),
            (&[Regular, Regular, Regular, Regular], false),
            (&[Regular, Regular, BackEdge, BackEdge], false),
        ] {
            let visited = explore(kinds, timeouts);
            assert!(visited > 5 * kinds.len(), "only {visited} states with {kinds:?}");
        }
    }

    fn explore(kinds: &[InputKind], timeouts: bool) -> usize {
        let aligner = Aligner::new(kinds, SnapshotId(0));
        let places = vec![(0, false, false); kinds.len()];
        let start = World { aligner, places, captured: 0, sealed: 0 };
        let mut seen = BTreeSet::from([start.clone()]);
        let mut open = vec![start];
        while let Some(world) = open.pop() {
            let mut moves = Vec::new();
            for input in 0..kinds.len() {
                if world.aligner.is_blocked(input) {
                    let verdict = world.aligner.clone().admit(input, Records);
                    assert_eq!(verdict, Ok(Verdict::Block));
                    continue; // the inbox leaves a blocked input alone
                }
                for arrival in possible(world.places[input]) {
                    moves.push(world.after(input, arrival));
                }
            }
            let done = world.captured == SNAPSHOTS && world.sealed == SNAPSHOTS;
            assert!(done || !moves.is_empty(), "stuck at {:?}", world.places);
            let next = SnapshotId(world.captured + 1);
            if timeouts && next.0 <= SNAPSHOTS && world.sealed == world.captured {
                let mut world = world.clone();
                assert_eq!(world.aligner.expire(next), Some(next));
                world.has_captured();
                moves.push(world);
            }
            open.extend(moves.into_iter().filter(|next| seen.insert(next.clone())));
        }
        seen.len()
    }

    fn possible((sent, record, ended): Place) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        if sent < SNAPSHOTS {
            arrivals.push(barrier(sent + 1));
        }
        if !ended {
            arrivals.push(END);
            if !record {
                arrivals.push(Records);
            }
        }
        arrivals
    }

    impl World {
        fn has_captured(&mut self) {
            self.captured += 1;
            self.seal();
        }

        fn seal(&mut self) -> bool {
            let all = self.places.iter().all(|place| place.0 >= self.captured);
            let sealed = all && self.sealed < self.captured;
            if sealed {
                self.sealed = self.captured;
            }
            sealed
        }

        /// Whether the trigger by alignment is due: the last snapshot is sealed and every regular
        /// input has delivered the next.
        fn is_due(&self) -> bool {
            let next = self.captured + 1;
            let mut inputs = self.places.iter().zip(&self.aligner.inputs);
            self.sealed == self.captured
                && inputs.all(|(place, input)| input.kind == BackEdge || place.0 >= next)
        }

        fn after(&self, input: usize, arrival: Arrival) -> World {
            let mut world = self.clone();
            let verdict =
                world.aligner.admit(input, arrival).expect("the script keeps the protocol");
            let place = &mut world.places[input];
            match arrival {
                Records => {
                    place.1 = true;
                    // The definition: behind the cut, in transit at it, or before the next one.
                    let expected = match place.0.cmp(&world.captured) {
                        std::cmp::Ordering::Greater => Verdict::Block,
                        std::cmp::Ordering::Less => Verdict::Log(SnapshotId(world.captured)),
                        std::cmp::Ordering::Equal => Verdict::Process,
                    };
                    assert_eq!(verdict, expected);
                }
                END => {
                    let was = world.all_regular_ended();
                    world.places[input].2 = true;
                    let now = world.all_regular_ended();
                    assert_eq!(
                        verdict,
                        if now && !was { Verdict::AllEnded } else { Verdict::Noted }
                    );
                }
                Arrival::Control(Control::Barrier(n)) => {
                    *place = (n.0, false, place.2);
                    let sealed = world.seal();
                    if world.is_due() {
                        world.has_captured();
                        assert_eq!(verdict, Verdict::Capture(SnapshotId(world.captured)));
                    } else if sealed {
                        assert_eq!(verdict, Verdict::Sealed(n));
                    } else {
                        assert_eq!(verdict, Verdict::Noted);
                    }
                }
            }
            assert_eq!(world.aligner.is_logging(), world.sealed < world.captured);
            for (input, place) in world.places.iter().enumerate() {
                assert_eq!(world.aligner.is_blocked(input), place.0 > world.captured);
                assert_eq!(world.aligner.is_late(input), place.0 < world.captured);
            }
            world
        }

        fn all_regular_ended(&self) -> bool {
            let mut inputs = self.places.iter().zip(&self.aligner.inputs);
            inputs.all(|(place, input)| input.kind == BackEdge || place.2)
        }
    }
}
