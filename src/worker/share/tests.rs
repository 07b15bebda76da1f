use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::config::{DRAIN_BYTES_MAX, DRAIN_BYTES_MIN};
use crate::disk::MemoryDisk;
use crate::inbox::Pulled;
use crate::operator::{Flow, Part, Trace, Visitor};
use crate::state::{OperatorState, StateWriter};
use crate::store::{JobIdentity, Store, StoreLimits};
use crate::task::{Head, Progress};

/// An operator whose state takes so many steps to hand over, of which so many are left.
struct Stepwise {
    steps: Arc<AtomicU32>,
    left: u32,
    barrier: Option<SnapshotId>,
}

impl OperatorState for Stepwise {
    fn mark(&mut self, _snapshot: SnapshotId) {
        assert_eq!(self.left, 0, "what was captured before is not handed over");
        self.left = self.steps.load(Ordering::Relaxed);
    }

    fn drain(&mut self, _budget_bytes: usize, _out: &mut dyn StateWriter) -> Result<Drained> {
        self.left = self.left.saturating_sub(1);
        Ok(if self.left == 0 { Drained::Done } else { Drained::More })
    }

    fn abandon(&mut self) {
        self.left = 0;
    }
}

impl Head for Stepwise {
    fn pull(&mut self, _now_ns: u64) -> Result<(Pulled, Option<u64>)> {
        Ok((self.barrier.take().map_or(Pulled::Nothing, Pulled::Barrier), None))
    }

    fn flush(&mut self) -> Result<Flow> {
        Ok(Flow::Done)
    }

    fn finish(&mut self) -> Result<Flow> {
        Ok(Flow::Done)
    }

    fn visit(&mut self, visitor: &mut Visitor<'_>) -> Result<()> {
        visitor(Part::State("stepwise", self))
    }

    fn inject(&mut self, snapshot: SnapshotId, _pause: bool, _triggered_ns: u64) {
        self.barrier = Some(snapshot);
    }
}

/// The shares of a worker with one such operator, and what they tell.
struct Running {
    shares: Shares,
    tasks: Vec<Task>,
    steps: Arc<AtomicU32>,
    handover: Arc<Handover>,
}

impl Running {
    fn new() -> Self {
        let job = JobIdentity { name: "steps".into(), fingerprint: "stepwise".into() };
        let disk = Arc::new(MemoryDisk::new(1));
        let limits = StoreLimits::default();
        let opened = Store::open_with(disk, Path::new("/snapshots"), &job, limits).unwrap();
        let steps = Arc::new(AtomicU32::new(1));
        let head = Stepwise { steps: steps.clone(), left: 0, barrier: None };
        let names = Arc::from(["stepwise".to_string()]);
        let task = Task::new(Box::new(head), 0, names, Arc::new(Trace::default()));
        let handover = Arc::new(Handover::new(SnapshotId(0)));
        let shares = Shares::new(opened.store.writer().unwrap(), 1, handover.clone());
        Self { shares, tasks: vec![task], steps, handover }
    }

    /// A turn of the worker; whether no other snapshot is to be triggered then.
    fn turn(&mut self) -> bool {
        self.turn_with(DRAIN_BYTES_MAX)
    }

    fn turn_with(&mut self, piece_bytes: usize) -> bool {
        self.shares.drain_some(&mut self.tasks, piece_bytes).unwrap();
        self.shares.poll(&mut self.tasks).unwrap();
        self.handover.is_open(self.shares.heard_of)
    }

    /// `snapshot` is triggered and captured; what is told after the trigger and after each turn until all is
    /// handed over.
    fn snapshot(&mut self, snapshot: u64, steps: u32) -> Vec<bool> {
        self.snapshot_in_pieces(snapshot, steps, DRAIN_BYTES_MAX)
    }

    fn snapshot_in_pieces(&mut self, snapshot: u64, steps: u32, piece_bytes: usize) -> Vec<bool> {
        self.steps.store(steps, Ordering::Relaxed);
        let snapshot = SnapshotId(snapshot);
        self.shares.triggered(snapshot, 0);
        let mut told = vec![self.turn()];
        self.tasks[0].inject(snapshot, false, 0);
        while self.tasks[0].step(0).unwrap() != Progress::Due(snapshot) {}
        let captured = self.shares.capture(&mut self.tasks, 0, snapshot).unwrap();
        assert!(captured.is_some(), "{:?}", self.shares.take_outcomes());
        told.extend((0..steps).map(|_| self.turn_with(piece_bytes)));
        told
    }
}

/// With a snapshot of large state under way another was triggered that had to be given up.
#[test]
fn after_a_large_snapshot_none_is_asked_for_between_a_trigger_and_the_end_of_handing_over() {
    let mut worker = Running::new();
    assert_eq!(worker.snapshot(1, 1), [true, false], "it might have been large");
    assert_eq!(
        worker.snapshot(2, 3),
        [false, true, true, false],
        "nobody knows yet that it is large"
    );
    assert_eq!(worker.snapshot(3, 2), [true, true, false]);
    assert_eq!(worker.snapshot(4, 1), [true, false], "small again");
    assert_eq!(worker.snapshot(5, 1), [false, false]);
}

/// In pieces of a page every snapshot took more than one, and the next was held back though it could have been
/// finished at the next barrier.
#[test]
fn a_snapshot_is_large_by_its_bytes_and_not_by_the_pieces_it_was_handed_over_in() {
    let mut worker = Running::new();
    worker.snapshot(1, 1);
    let most = (CAPTURE_DRAIN_BYTES_MAX / DRAIN_BYTES_MIN) as u32;
    let told = worker.snapshot_in_pieces(2, most, DRAIN_BYTES_MIN);
    assert_eq!(told, vec![false; most as usize + 1]);
    let told = worker.snapshot_in_pieces(3, most + 2, DRAIN_BYTES_MIN);
    assert_eq!(
        told.iter().filter(|open| **open).count(),
        2,
        "from the last piece that is little on"
    );
    assert_eq!(told.last(), Some(&false));
    assert_eq!(worker.snapshot(4, 1), [true, false], "the one before was large");
}

/// The thread that triggers told one worker, and lost its processor before it told the next. The barrier was faster
/// there, so that the trigger was waited for to be captured, which it had been: none was triggered ever again.
#[test]
fn a_barrier_that_comes_before_the_word_of_it_is_not_waited_for_again() {
    let mut worker = Running::new();
    worker.snapshot(1, 2);
    for (snapshot, fails) in [(2, false), (3, true), (4, false)] {
        let snapshot = SnapshotId(snapshot);
        worker.steps.store(3, Ordering::Relaxed);
        worker.tasks[0].inject(snapshot, false, 0);
        while worker.tasks[0].step(0).unwrap() != Progress::Due(snapshot) {}
        if fails {
            worker.shares.fail(&mut worker.tasks, snapshot, "a test".into()).unwrap();
        }
        let captured = worker.shares.capture(&mut worker.tasks, 0, snapshot).unwrap();
        assert_eq!(captured.is_none(), fails, "{:?}", worker.shares.take_outcomes());
        worker.shares.triggered(snapshot, 0);
        let open = (0..4).filter(|_| worker.turn()).count();
        assert_eq!(open, if fails { 0 } else { 2 }, "{snapshot}");
        assert!(!worker.turn(), "{snapshot} is waited for");
    }
    assert_eq!(worker.snapshot(5, 1), [true, false]);
}

#[test]
fn a_large_snapshot_that_is_given_up_before_it_is_captured_is_not_waited_for() {
    let mut worker = Running::new();
    worker.snapshot(1, 2);
    worker.shares.triggered(SnapshotId(2), 0);
    assert!(worker.turn());
    worker.shares.give_up(&mut worker.tasks, SnapshotId(2)).unwrap();
    assert!(!worker.turn());
    assert_eq!(worker.snapshot(3, 2), [true, true, false]);
}
