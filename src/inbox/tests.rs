//! An inbox over real rings, with a stage that takes as much as the test lets it.

use std::time::Duration;

use super::*;
use crate::channel::{Producer, channel};
use crate::operator::Visitor;
use crate::record::Data;
use crate::spill::Limits;
use crate::state::tests::pieces::Pieces;
use crate::state::{Drained, OperatorState};

const SLOTS: usize = 8;
const ONE: SnapshotId = SnapshotId(1);
const TWO: SnapshotId = SnapshotId(2);

/// Takes `room` records, and remembers them.
struct Taker {
    room: usize,
    taken: Vec<u64>,
}

impl Stage<u64> for Taker {
    fn process(&mut self, input: &mut Batch<'_, u64>) -> Result<Flow> {
        let before = self.taken.len();
        self.taken.extend(input.drain(self.room));
        self.room -= self.taken.len() - before;
        Ok(if input.is_empty() { Flow::Done } else { Flow::Full })
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

struct Bench {
    inbox: Inbox<u64>,
    stage: Taker,
    senders: Vec<Producer<u64>>,
    now_ns: u64,
}

fn bench(kinds: &[InputKind], mode: Mode, memory_bytes: usize) -> Bench {
    let (mut inputs, mut senders) = (Vec::new(), Vec::new());
    for &kind in kinds {
        let (sender, ring) = channel(SLOTS);
        let backlog = Backlog::new(Limits { memory_bytes, disk_bytes: 0 }, None);
        let inside = kind == InputKind::BackEdge;
        inputs.push(Input { ring, kind, inside, backlog, unlogged: false });
        senders.push(sender);
    }
    let log = Log::new((0, 1), kinds.iter().map(|_| None).collect());
    let flight = kinds.contains(&InputKind::BackEdge).then(|| Arc::new(Flight::new(1)));
    let setting = Setting {
        operator: "again".into(),
        captured: SnapshotId(0),
        flight,
        mode,
        spill: true,
        loop_limit: "little".into(),
        loop_bytes_max: memory_bytes / 8,
    };
    let inbox = Inbox::new(inputs, log, setting);
    Bench { inbox, stage: Taker { room: usize::MAX, taken: Vec::new() }, senders, now_ns: 0 }
}

impl Bench {
    fn send(&mut self, input: usize, records: impl IntoIterator<Item = u64>) {
        for record in records {
            assert!(self.senders[input].room(1) > 0, "the ring of input {input} is full");
            if self.inbox.inputs[input].inside {
                self.inbox.setting.flight.as_ref().unwrap().sent(1);
            }
            self.senders[input].push(record);
        }
        self.senders[input].publish();
    }

    fn barrier(&mut self, input: usize, snapshot: SnapshotId) {
        self.senders[input].control(Control::Barrier(snapshot)).unwrap();
    }

    fn pull(&mut self) -> Pulled {
        self.inbox.pull(self.now_ns, &mut self.stage).unwrap().0
    }

    /// Pulls until there is nothing, or something else than work.
    fn pull_all(&mut self) -> Pulled {
        loop {
            match self.pull() {
                Pulled::Worked => {}
                other => return other,
            }
        }
    }

    fn taken(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.stage.taken)
    }

    /// What the log of `snapshot`, captured now or before, comes to.
    fn logged(&mut self) -> (Drained, Vec<u64>) {
        let mut pieces = Pieces::default();
        let drained = self.inbox.log().drain(1, &mut pieces).unwrap();
        let records = pieces.0.iter().flat_map(|piece| Vec::from_archive(&piece.2).unwrap());
        (drained, records.collect())
    }
}

use InputKind::{BackEdge, Regular};

const AFTER: Mode = Mode::Unaligned { after: Duration::from_nanos(100) };

#[test]
fn trap_06_what_was_set_aside_is_admitted_like_the_rest_the_next_barrier_with_it() {
    let mut bench = bench(&[Regular, Regular], Mode::Abs, 1 << 10);
    bench.barrier(0, ONE);
    bench.pull_all();
    bench.send(0, 10..17);
    assert_eq!(bench.pull_all(), Pulled::Nothing);
    assert_eq!(bench.inbox.inputs[0].ring.len(), 0, "set aside: the sender goes on");
    bench.barrier(0, TWO);
    bench.send(0, 17..24);
    bench.pull_all();
    bench.send(1, [1]);
    bench.barrier(1, ONE);
    assert_eq!(bench.pull_all(), Pulled::Barrier(ONE));
    assert_eq!(bench.taken(), [1]);
    assert_eq!(bench.pull_all(), Pulled::Nothing);
    assert_eq!(bench.taken(), (10..17).collect::<Vec<_>>(), "up to the next barrier");
    bench.barrier(1, TWO);
    assert_eq!(bench.pull_all(), Pulled::Barrier(TWO));
    assert_eq!(bench.pull_all(), Pulled::Nothing);
    assert_eq!(bench.taken(), (17..24).collect::<Vec<_>>());
}

#[test]
fn with_no_room_to_set_aside_a_blocked_input_feels_backpressure_and_loses_nothing() {
    let mut bench = bench(&[Regular, Regular], Mode::Abs, 9 * size_of::<u64>());
    bench.barrier(0, ONE);
    bench.pull_all();
    bench.send(0, 0..8);
    bench.pull_all();
    bench.send(0, 8..16);
    bench.pull_all();
    assert_eq!(bench.senders[0].room(SLOTS), 1, "nine are set aside, seven in the ring");
    bench.barrier(1, ONE);
    assert_eq!(bench.pull_all(), Pulled::Barrier(ONE));
    bench.pull_all();
    assert_eq!(bench.taken(), (0..16).collect::<Vec<_>>());
}

#[test]
fn a_back_edge_is_logged_from_the_capture_to_its_barrier() {
    let mut bench = bench(&[Regular, BackEdge], Mode::Abs, 1 << 10);
    bench.send(1, [1]);
    bench.pull_all();
    bench.send(1, [2]);
    bench.barrier(0, ONE);
    // Whether 2 is before or behind the cut is up to the inbox: it is in one of the two.
    assert_eq!(bench.pull_all(), Pulled::Barrier(ONE));
    bench.inbox.log().mark(ONE);
    let before = bench.taken();
    bench.send(1, [3]);
    assert_eq!(bench.pull_all(), Pulled::Nothing);
    assert_eq!(bench.logged().0, Drained::Waiting);
    bench.send(1, [4]);
    bench.barrier(1, ONE);
    bench.send(1, [5]);
    assert_eq!(bench.pull_all(), Pulled::Nothing);
    let (drained, logged) = bench.logged();
    assert_eq!(drained, Drained::Done);
    assert_eq!([before.clone(), logged].concat(), [1, 2, 3, 4]);
    assert_eq!([before, bench.taken()].concat(), [1, 2, 3, 4, 5], "each is handled once");
}

#[test]
fn an_overdue_snapshot_is_captured_and_what_is_in_transit_logged_though_the_stage_is_stuck() {
    let mut bench = bench(&[Regular, Regular], AFTER, 1 << 10);
    bench.inbox.announce(ONE);
    bench.pull();
    bench.barrier(0, ONE);
    bench.send(0, [50]);
    bench.send(1, 0..8);
    bench.stage.room = 3;
    assert_eq!(bench.pull_all(), Pulled::Full);
    // Not overdue yet: the slow stage holds its input up.
    assert!(!bench.inbox.relieve(bench.now_ns).unwrap());
    bench.now_ns = 100;
    assert!(bench.inbox.relieve(bench.now_ns).unwrap(), "so that senders can bring their barriers");
    assert_eq!(bench.pull(), Pulled::Barrier(ONE));
    bench.inbox.log().mark(ONE);
    bench.send(1, [8]);
    bench.barrier(1, ONE);
    bench.send(1, [9]);
    bench.stage.room = 0;
    while bench.pull() != Pulled::Stuck {}
    bench.inbox.relieve(bench.now_ns).unwrap();
    assert_eq!(bench.logged(), (Drained::Done, (3..9).collect()), "sealed without being handled");
    bench.stage.room = usize::MAX;
    assert_eq!(bench.pull_all(), Pulled::Nothing);
    let mut taken = bench.taken();
    taken.retain(|record| *record != 50);
    assert_eq!(taken, (0..10).collect::<Vec<_>>());
}

#[test]
fn trap_18_a_stuck_stage_does_not_keep_a_back_edge_from_being_emptied() {
    let mut bench = bench(&[Regular, BackEdge], Mode::Abs, 1 << 10);
    bench.stage.room = 0;
    for round in 0..4 {
        bench.send(1, round * 8..round * 8 + 8);
        assert_eq!(bench.pull(), Pulled::Stuck);
        assert!(bench.inbox.relieve(0).unwrap());
    }
    bench.stage.room = usize::MAX;
    bench.pull_all();
    assert_eq!(bench.taken(), (0..32).collect::<Vec<_>>());
}

#[test]
fn a_loop_lets_nothing_in_while_much_goes_round() {
    let mut bench = bench(&[Regular, BackEdge], Mode::Abs, 1 << 10);
    bench.stage.room = 0;
    for _ in 0..3 {
        bench.send(1, 0..8);
        bench.pull();
        bench.inbox.relieve(0).unwrap();
    }
    bench.send(0, [100]);
    bench.stage.room = 1;
    bench.pull();
    assert_eq!(bench.taken(), [0], "the loop's own first");
    bench.stage.room = usize::MAX;
    bench.pull_all();
    assert!(bench.taken().contains(&100));
}

#[test]
fn a_loop_that_makes_more_than_it_lets_out_is_an_error_that_names_it() {
    let mut bench = bench(&[Regular, BackEdge], Mode::Abs, 16 * size_of::<u64>());
    bench.stage.room = 0;
    let error = loop {
        let room = bench.senders[1].room(SLOTS) as u64;
        bench.send(1, 0..room);
        if let Err(error) = bench.inbox.relieve(0) {
            break error;
        }
    };
    assert!(error.to_string().contains("loop 'again'"), "{error}");
    assert!(!error.is_retryable());
}

#[test]
fn trap_20_the_end_comes_when_nothing_goes_round_any_more_however_long_that_takes() {
    let mut bench = bench(&[Regular, BackEdge], Mode::Abs, 1 << 10);
    let flight = bench.inbox.setting.flight.clone().unwrap();
    flight.sent(1); // somewhere in the loop's body
    bench.senders[0].control(Control::End).unwrap();
    for _ in 0..1_000 {
        bench.now_ns += 1_000_000_000;
        assert_ne!(bench.pull(), Pulled::Ended);
    }
    flight.handled(1);
    assert_eq!(bench.pull(), Pulled::Ended);
    assert_eq!(bench.pull(), Pulled::Nothing, "once");
}

#[test]
fn a_slow_stage_is_given_fewer_records_at_once_and_an_idle_step_does_not_change_that() {
    let mut bench = bench(&[Regular], Mode::Abs, 1 << 10);
    bench.inbox.start_small();
    let mut step = |records: usize, ns: u64| {
        bench.inbox.records_max = bench.inbox.records_max.min(SLOTS);
        bench.send(0, (0..records as u64).collect::<Vec<_>>());
        bench.pull();
        let taken = bench.taken().len();
        bench.inbox.took(ns);
        while bench.pull() == Pulled::Worked {}
        // What emptied the ring is no step of the test.
        bench.taken();
        bench.inbox.taken_most = 0;
        (taken, bench.inbox.records_max)
    };
    assert_eq!(step(SLOTS, STEP_NS_MAX + 1), (8, 4));
    assert_eq!(step(SLOTS, STEP_NS_MAX + 1), (4, 2));
    for _ in 0..9 {
        assert_eq!(step(0, 10), (0, 2), "an idle step says nothing");
    }
    assert_eq!(step(1, 10), (1, 2), "nor one that had little to take");
    assert_eq!(step(SLOTS, 10), (2, 4));
    assert_eq!(step(0, STEP_NS_MAX + 1), (0, 4), "something else took long");
}
