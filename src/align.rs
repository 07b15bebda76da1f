//! Alignment: the pure heart of Asynchronous Barrier Snapshotting.
//!
//! One [`Aligner`] per task decides, input by input, whether what came may be handled now. It holds
//! no channel, no clock and no thread, so its whole state space can be explored (see the tests).
//!
//! The rule, from Carbone et al. 2015, algorithm 1: for snapshot n, an input that has delivered
//! barrier n is *blocked*; when every input has delivered it, the task captures its state, forwards
//! the barrier and unblocks all inputs.
//!
//! An ended input is no special case here. A task that has no more records keeps forwarding
//! barriers until the job's last snapshot is complete ([`Control::End`] is a mark *between* records
//! and nothing, not the death of the sender), so it takes part in alignment like any other. Flink's
//! rule, a finished input leaves the alignment set and its successors become barrier roots, needs
//! triggers that race with finishes; this one has no such race.
//!
//! Invariants
//! - At most one alignment at a time; snapshot ids rise by one per input.
//! - After input i's barrier n nothing of i is admitted until the capture of n.
//! - A capture happens exactly once per snapshot, in the step that admitted the last barrier.

use crate::id::SnapshotId;
use crate::record::Control;

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
    /// The input is blocked: leave what it has where it is.
    Block,
    /// The mark is taken note of; read on elsewhere.
    Noted,
    /// Every input has delivered this barrier: capture, forward, read on.
    Capture(SnapshotId),
    /// No input has records any more: emit what is left.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Input {
    blocked: bool,
    ended: bool,
}

/// The alignment state of one task's inputs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Aligner {
    inputs: Vec<Input>,
    blocked: usize,
    ended: usize,
    /// The snapshot whose capture came last (or the one restored from).
    captured: u64,
}

impl Aligner {
    /// For a task with `inputs` inputs whose last captured snapshot is `captured`.
    #[must_use]
    pub fn new(inputs: usize, captured: SnapshotId) -> Self {
        assert!(inputs > 0, "a task that aligns has inputs");
        let input = Input { blocked: false, ended: false };
        Self { inputs: vec![input; inputs], blocked: 0, ended: 0, captured: captured.0 }
    }

    /// Whether `input` must not be read now.
    #[inline]
    #[must_use]
    pub fn is_blocked(&self, input: usize) -> bool {
        self.inputs[input].blocked
    }

    /// Whether an alignment is under way.
    #[must_use]
    pub fn is_aligning(&self) -> bool {
        self.blocked > 0
    }

    /// Whether no input will bring another record.
    #[must_use]
    pub fn all_ended(&self) -> bool {
        self.ended == self.inputs.len()
    }

    /// The only gate between a channel and an operator: asked once per batch and once per mark.
    ///
    /// # Errors
    /// [`ProtocolError`] when the sender broke the protocol.
    #[inline]
    pub fn admit(&mut self, input: usize, arrival: Arrival) -> Result<Verdict, ProtocolError> {
        let Input { blocked, ended } = self.inputs[input];
        match arrival {
            Arrival::Records if blocked => Ok(Verdict::Block),
            Arrival::Records if ended => Err(ProtocolError::AfterEnd { input, arrival }),
            Arrival::Records => Ok(Verdict::Process),
            Arrival::Control(_) if blocked => {
                let blocked_by = SnapshotId(self.captured + 1);
                Err(ProtocolError::ReadWhileBlocked { input, arrival, blocked_by })
            }
            Arrival::Control(Control::Barrier(snapshot)) => self.barrier(input, snapshot),
            Arrival::Control(Control::End) if ended => {
                Err(ProtocolError::AfterEnd { input, arrival })
            }
            Arrival::Control(Control::End) => {
                self.inputs[input].ended = true;
                self.ended += 1;
                Ok(if self.all_ended() { Verdict::AllEnded } else { Verdict::Noted })
            }
        }
    }

    fn barrier(&mut self, input: usize, found: SnapshotId) -> Result<Verdict, ProtocolError> {
        if found.0 <= self.captured {
            return Ok(Verdict::Noted); // older than what is captured: dropped
        }
        let expected = SnapshotId(self.captured + 1);
        if found != expected {
            return Err(ProtocolError::WrongBarrier { input, found, expected });
        }
        self.inputs[input].blocked = true;
        self.blocked += 1;
        if self.blocked < self.inputs.len() {
            return Ok(Verdict::Noted);
        }
        self.inputs.iter_mut().for_each(|input| input.blocked = false);
        self.blocked = 0;
        self.captured = found.0;
        Ok(Verdict::Capture(found))
    }
}

#[cfg(test)]
mod tests {
    use super::Arrival::Records;
    use super::*;
    use std::collections::BTreeSet;

    const END: Arrival = Arrival::Control(Control::End);

    fn barrier(n: u64) -> Arrival {
        Arrival::Control(Control::Barrier(SnapshotId(n)))
    }

    /// One case: (input, arrival, verdict) in order.
    fn script(inputs: usize, events: &[(usize, Arrival, Verdict)]) {
        let mut aligner = Aligner::new(inputs, SnapshotId(0));
        for (step, &(input, arrival, expected)) in events.iter().enumerate() {
            assert_eq!(aligner.admit(input, arrival), Ok(expected), "step {step}");
        }
    }

    #[test]
    fn a_single_input_captures_at_its_barrier() {
        script(
            1,
            &[
                (0, Records, Verdict::Process),
                (0, barrier(1), Verdict::Capture(SnapshotId(1))),
                (0, Records, Verdict::Process),
                (0, barrier(2), Verdict::Capture(SnapshotId(2))),
            ],
        );
    }

    #[test]
    fn an_input_is_blocked_from_its_barrier_to_the_capture() {
        script(
            3,
            &[
                (1, barrier(1), Verdict::Noted),
                (1, Records, Verdict::Block),
                (0, Records, Verdict::Process),
                (0, barrier(1), Verdict::Noted),
                (2, Records, Verdict::Process),
                (0, Records, Verdict::Block),
                (2, barrier(1), Verdict::Capture(SnapshotId(1))),
                (0, Records, Verdict::Process),
                (1, Records, Verdict::Process),
            ],
        );
    }

    #[test]
    fn trap_01_a_finished_input_does_not_hold_alignment_back() {
        script(
            2,
            &[
                (0, END, Verdict::Noted),
                (1, Records, Verdict::Process),
                (0, barrier(1), Verdict::Noted),
                (1, barrier(1), Verdict::Capture(SnapshotId(1))),
                (1, END, Verdict::AllEnded),
                (1, barrier(2), Verdict::Noted),
                (0, barrier(2), Verdict::Capture(SnapshotId(2))),
            ],
        );
    }

    #[test]
    fn trap_10_a_repeated_barrier_is_an_error_and_an_old_one_is_dropped() {
        let mut aligner = Aligner::new(2, SnapshotId(4));
        assert_eq!(aligner.admit(0, barrier(4)), Ok(Verdict::Noted));
        assert_eq!(aligner.admit(0, barrier(5)), Ok(Verdict::Noted));
        let twice = aligner.admit(0, barrier(5)).unwrap_err();
        assert!(matches!(twice, ProtocolError::ReadWhileBlocked { input: 0, .. }), "{twice}");
        let skipped = aligner.admit(1, barrier(6)).unwrap_err();
        assert!(matches!(skipped, ProtocolError::WrongBarrier { input: 1, .. }), "{skipped}");
        let mut aligner = Aligner::new(1, SnapshotId(0));
        assert_eq!(aligner.admit(0, END), Ok(Verdict::AllEnded));
        assert!(matches!(aligner.admit(0, Records), Err(ProtocolError::AfterEnd { .. })));
    }

    /// Where one input is in its script: records and barriers 1..=SNAPSHOTS, with an end anywhere.
    /// (next barrier, records seen since the last barrier, ended)
    type Place = (u64, u8, bool);

    /// Every interleaving of up to four inputs, each with 0 or 1 record between barriers and an
    /// end at any point: the reachable states are visited once each.
    #[test]
    fn every_reachable_state_captures_each_snapshot_once_and_never_gets_stuck() {
        for inputs in 1..=4 {
            let visited = explore(inputs);
            assert!(visited > 3 * inputs, "only {visited} states with {inputs} inputs");
        }
    }

    const SNAPSHOTS: u64 = 3;

    fn explore(inputs: usize) -> usize {
        let start = (Aligner::new(inputs, SnapshotId(0)), vec![(1, 0, false); inputs]);
        let mut seen = BTreeSet::from([start.clone()]);
        let mut open = vec![start];
        while let Some((aligner, places)) = open.pop() {
            let mut moves = 0;
            for input in 0..inputs {
                for arrival in possible(places[input]) {
                    moves += usize::from(!aligner.is_blocked(input));
                    if let Some(next) = step(&aligner, &places, input, arrival)
                        && seen.insert(next.clone())
                    {
                        open.push(next);
                    }
                }
            }
            let done = places.iter().all(|place| place.0 > SNAPSHOTS);
            assert!(moves > 0 || done, "stuck at {places:?}");
        }
        seen.len()
    }

    fn possible((next, records, ended): Place) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        if next <= SNAPSHOTS {
            arrivals.push(barrier(next));
        }
        if !ended {
            arrivals.push(END);
            if records == 0 {
                arrivals.push(Records);
            }
        }
        arrivals
    }

    fn step(
        aligner: &Aligner,
        places: &[Place],
        input: usize,
        arrival: Arrival,
    ) -> Option<(Aligner, Vec<Place>)> {
        let (mut aligner, mut places) = (aligner.clone(), places.to_vec());
        let delivered = |places: &[Place], n| places.iter().all(|place| place.0 > n);
        if aligner.is_blocked(input) {
            assert_eq!(aligner.clone().admit(input, Records), Ok(Verdict::Block));
            return None; // the inbox leaves a blocked input alone
        }
        let verdict = aligner.admit(input, arrival).expect("the script keeps the protocol");
        let place = &mut places[input];
        match arrival {
            Records => {
                assert_eq!(verdict, Verdict::Process);
                place.1 = 1;
            }
            END => {
                place.2 = true;
                let all = places.iter().all(|place| place.2);
                assert_eq!(verdict, if all { Verdict::AllEnded } else { Verdict::Noted });
            }
            Arrival::Control(Control::Barrier(n)) => {
                *place = (n.0 + 1, 0, place.2);
                let all = delivered(&places, n.0);
                assert_eq!(verdict, if all { Verdict::Capture(n) } else { Verdict::Noted });
                for (other, place) in places.iter().enumerate() {
                    let ahead = place.0 > n.0 && !all;
                    assert_eq!(aligner.is_blocked(other), ahead, "input {other} of {places:?}");
                }
            }
        }
        Some((aligner, places))
    }
}
