//! Cases, each a row of arrivals with their verdicts; then every reachable state against the definition.

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

/// The second fault: a barrier that comes before the loop has closed the last one. The example of the
/// module's documentation.
#[test]
fn the_next_barrier_waits_until_the_loop_has_closed_the_last() {
    let aligner = script(
        &[Regular, BackEdge],
        &[
            (0, Records, Verdict::Process),
            (0, barrier(1), Verdict::Capture(ONE)),
            (0, Records, Verdict::Process),
            (1, Records, Verdict::Log(ONE)),
            (0, barrier(2), Verdict::Noted),
            (0, Records, Verdict::Block),
            (1, Records, Verdict::Log(ONE)),
            (1, barrier(1), Verdict::Capture(TWO)),
            (0, Records, Verdict::Process),
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
        let verdict = world.aligner.admit(input, arrival).expect("the script keeps the protocol");
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
                assert_eq!(verdict, if now && !was { Verdict::AllEnded } else { Verdict::Noted });
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
