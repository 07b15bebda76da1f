//! An inbox over real rings, with a stage that takes as much as the test lets it.

mod bounds;

use std::time::Duration;

use super::log::in_piece;
use super::*;
use crate::channel::{CONTROLS_MAX, Producer, channel};
use crate::config::DISK_POLL_NS;
use crate::disk::MemoryDisk;
use crate::error::Error;
use crate::id::StateSlot;
use crate::operator::Visitor;
use crate::spill::{Limits, Place};
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
    let log = Log::new((0, 1), kinds.iter().map(|_| Share::Any).collect());
    let flight = kinds.contains(&InputKind::BackEdge).then(|| Arc::new(Flight::new(1)));
    let setting = Setting {
        operator: "again".into(),
        captured: SnapshotId(0),
        flight,
        mode,
        spill: true,
        loop_limit: "little".into(),
        loop_bytes_max: memory_bytes / 8,
        flight_bytes_max: memory_bytes / 2,
        aloft_bytes_max: 8 * memory_bytes,
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
        let drained = self.inbox.log().drain(1 << 20, &mut pieces).unwrap();
        let records = pieces.0.iter().flat_map(|piece| in_piece::<u64>(&piece.2).unwrap().records);
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
fn trap_06_a_barrier_that_comes_back_from_disk_blocks_what_was_spilled_behind_it() {
    let mut bench = bench(&[Regular, Regular], Mode::Abs, 0);
    bench.inbox.inputs[0].backlog = on_disk(0, 16 * size_of::<u64>());
    bench.barrier(0, ONE);
    bench.pull_all();
    let spill = |bench: &mut Bench, from: u64| {
        (0..200).fold(from, |sent, _| {
            let room = bench.senders[0].room(SLOTS) as u64;
            bench.send(0, sent..sent + room);
            bench.pull();
            sent + room
        })
    };
    let cut = spill(&mut bench, 0);
    bench.barrier(0, TWO);
    let end = spill(&mut bench, cut);
    assert!(cut > 100 && end > cut + 100, "{cut} before the barrier, {end} in all");
    assert!(!bench.inbox.inputs[0].backlog.is_in_memory(), "most are on disk, on both sides of it");
    for (snapshot, before) in [(ONE, 0..cut), (TWO, cut..end)] {
        bench.barrier(1, snapshot);
        while bench.pull() != Pulled::Barrier(snapshot) {}
        (0..100 * end).for_each(|_| _ = bench.pull());
        assert_eq!(bench.taken(), before.collect::<Vec<_>>(), "up to the next barrier");
    }
    assert!(bench.inbox.inputs[0].backlog.is_empty());
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
    bench.inbox.announce(ONE, 0);
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

/// The barrier of a late input was seen in its ring and left there. A ring holds eight marks, so while its
/// records stayed the ninth snapshot waited for the stage.
#[test]
fn more_snapshots_than_a_ring_holds_marks_complete_while_its_records_wait_for_the_stage() {
    let mut bench = bench(&[Regular], AFTER, 1 << 10);
    bench.stage.room = 0;
    bench.send(0, 0..3);
    for number in 1..=3 * CONTROLS_MAX as u64 {
        let snapshot = SnapshotId(number);
        if number % 8 == 0 {
            bench.send(0, [2 + number / 8]);
        }
        bench.inbox.announce(snapshot, bench.now_ns);
        bench.barrier(0, snapshot);
        bench.now_ns += 100;
        while bench.pull() != Pulled::Barrier(snapshot) {}
        bench.inbox.log().mark(snapshot);
        assert_eq!(bench.pull(), Pulled::Stuck);
        assert_eq!(bench.logged(), (Drained::Done, (0..3 + number / 8).collect()));
    }
    assert!(bench.taken().is_empty());
    assert_eq!(bench.inbox.inputs[0].backlog.len(), 0, "they are in the ring");
    bench.stage.room = usize::MAX;
    assert_eq!(bench.pull_all(), Pulled::Nothing);
    assert_eq!(bench.taken(), (0..6).collect::<Vec<_>>());
}

fn on_disk(input: u32, memory_bytes: usize) -> Backlog<u64> {
    let place = Place {
        disk: Arc::new(MemoryDisk::new(1)),
        path: "/spill/file".into(),
        owner: "again".into(),
        slot: StateSlot::Task(0),
        input,
    };
    Backlog::new(Limits { memory_bytes, disk_bytes: 1 << 20 }, Some(place))
}

/// Nobody but the disk says when it has read; a worker that was not told to look again slept.
#[test]
fn while_the_disk_is_at_work_for_an_input_it_is_looked_at_soon() {
    let mut bench = bench(&[Regular, Regular], Mode::Abs, 0);
    bench.inbox.inputs[0].backlog = on_disk(0, 16 * size_of::<u64>());
    bench.barrier(0, ONE);
    bench.pull_all();
    let mut sent = 0;
    let mut waits = 0;
    let mut pull = |bench: &mut Bench| {
        bench.now_ns += 1_000;
        let (pulled, again_ns) = bench.inbox.pull(bench.now_ns, &mut bench.stage).unwrap();
        let moves = bench.inbox.inputs[0].backlog.is_moving();
        if pulled == Pulled::Nothing {
            assert_eq!(again_ns, moves.then_some(bench.now_ns + DISK_POLL_NS));
            assert_eq!(bench.inbox.look_at_ns(bench.now_ns), again_ns, "for a stage that is full");
            waits += usize::from(moves);
        }
        pulled
    };
    for _ in 0..200 {
        let room = bench.senders[0].room(SLOTS) as u64;
        bench.send(0, sent..sent + room);
        sent += room;
        pull(&mut bench);
    }
    assert!(!bench.inbox.inputs[0].backlog.is_in_memory(), "of {sent} some are on disk");
    // No more is sent: what is being written is seen to be written all the same.
    while pull(&mut bench) != Pulled::Nothing || bench.inbox.inputs[0].backlog.is_moving() {}
    bench.barrier(1, ONE);
    while pull(&mut bench) != Pulled::Barrier(ONE) {}
    while !bench.inbox.inputs[0].backlog.is_empty() || !bench.inbox.inputs[0].ring.is_empty() {
        pull(&mut bench);
    }
    assert_eq!(bench.taken(), (0..sent).collect::<Vec<_>>());
    assert!(waits > 10, "it waited {waits} times");
}

/// A snapshot failed if part of what was in transit was on disk; and a timed one waited for its alignment.
#[test]
fn what_is_on_disk_at_the_capture_is_logged_as_it_comes_back_and_handled_once() {
    let mut bench = bench(&[Regular, Regular], AFTER, 0);
    bench.inbox.inputs[1].backlog = on_disk(1, 16 * size_of::<u64>());
    bench.inbox.announce(ONE, 0);
    bench.barrier(0, ONE);
    bench.now_ns = 100;
    let mut sent = 0;
    for _ in 0..200 {
        let room = bench.senders[1].room(SLOTS) as u64;
        bench.send(1, sent..sent + room);
        sent += room;
        bench.inbox.relieve(bench.now_ns).unwrap();
    }
    assert!(!bench.inbox.inputs[1].backlog.is_in_memory(), "of {sent} some are on disk");
    assert_eq!(bench.pull(), Pulled::Barrier(ONE), "a timed capture waits for none of them");
    bench.inbox.log().mark(ONE);
    bench.barrier(1, ONE);
    bench.send(1, []);
    let mut behind = false;
    for turn in 0..100 * sent {
        // The stage is slow, and some come behind the barrier before those in front are handled.
        bench.stage.room = (turn % 3) as usize;
        bench.pull();
        bench.inbox.relieve(bench.now_ns).unwrap();
        if !behind && bench.senders[1].room(SLOTS) > 0 {
            bench.send(1, [sent]);
            behind = true;
        }
    }
    assert_eq!(bench.taken(), (0..=sent).collect::<Vec<_>>());
    assert_eq!(bench.logged(), (Drained::Done, (0..sent).collect()));
    let measured = bench.inbox.measured();
    assert_eq!((measured.logged_records, measured.logs_failed), (sent, 0));
    assert_eq!(measured.logged_bytes, sent * 8);
    assert_eq!(measured.timeouts_refused, 0);
}

#[test]
fn after_a_log_that_was_too_long_the_next_snapshot_waits_for_its_alignment_and_that_is_counted() {
    let mut bench = bench(&[Regular, Regular], AFTER, 1 << 10);
    bench.inbox.timed.sealed(1, ONE);
    bench.inbox.announce(ONE, 0);
    bench.inbox.announce(TWO, 50);
    bench.now_ns = 200;
    bench.barrier(0, ONE);
    assert_eq!(bench.pull_all(), Pulled::Nothing);
    bench.barrier(1, ONE);
    assert_eq!(bench.pull_all(), Pulled::Barrier(ONE), "aligned");
    assert_eq!(bench.pull_all(), Pulled::Barrier(TWO), "by time");
    assert_eq!(bench.inbox.measured().timeouts_refused, 1);
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

/// It was a panic, and so was put down to the operator, with the advice to mend it.
#[test]
fn a_sender_that_breaks_the_protocol_is_an_error_that_blames_tidegate_and_not_the_operator() {
    let mut bench = bench(&[Regular, Regular], Mode::Abs, 1 << 10);
    bench.barrier(1, TWO);
    let error = bench.inbox.pull(0, &mut bench.stage).expect_err("one is missing");
    let Error::Fault { place, .. } = &error else { panic!("{error}") };
    assert!(place.contains("'again'"), "{error}");
    assert!(error.to_string().contains("input 1 delivered barrier 2, expected 1"), "{error}");
    assert!(error.to_string().contains("a fault of tidegate, not of the job"), "{error}");
}
