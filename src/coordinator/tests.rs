use super::*;

const A: Attempt = Attempt(1);
const MS: u64 = 1_000_000;

fn started(workers: usize, tasks: usize) -> Coordinator<u32> {
    let mut coordinator = Coordinator::new(workers, Some(10 * MS), 1000 * MS);
    coordinator.start(A, tasks, SnapshotId(1), 0);
    coordinator
}

fn ack(c: &mut Coordinator<u32>, worker: usize, n: u64) -> (Ack, Vec<Action<u32>>) {
    c.ack(WorkerId(worker), SnapshotId(n), A, worker as u32)
}

/// A tick of a job that reads all the time.
fn tick(c: &mut Coordinator<u32>, now_ns: u64) -> Vec<Action<u32>> {
    c.tick(now_ns, now_ns, false)
}

fn inject(snapshot: SnapshotId) -> Action<u32> {
    Action::Inject { snapshot, pause: false }
}

fn inject_last(snapshot: SnapshotId) -> Action<u32> {
    Action::Inject { snapshot, pause: true }
}

fn commit(n: u64, parts: Vec<u32>, last: bool, triggered_ns: u64) -> Action<u32> {
    Action::Commit { snapshot: SnapshotId(n), parts, last, triggered_ns }
}

#[test]
fn a_snapshot_is_committed_when_every_worker_has_acked() {
    let mut c = started(2, 1);
    assert_eq!(tick(&mut c, 9 * MS), []);
    assert_eq!(tick(&mut c, 10 * MS), [inject(SnapshotId(1))]);
    assert_eq!(ack(&mut c, 1, 1), (Ack::Accepted, vec![]));
    assert_eq!(c.waiting_for(SnapshotId(1)), [0]);
    let (_, actions) = ack(&mut c, 0, 1);
    assert_eq!(actions, [commit(1, vec![0, 1], false, 10 * MS)]);
    let complete = Action::Complete { snapshot: SnapshotId(1), duration_ns: 2 * MS };
    assert_eq!(c.committed(SnapshotId(1), 12 * MS), [complete]);
}

#[test]
fn none_is_triggered_while_one_is_handed_over_and_with_none_pending_nothing_holds_it_back() {
    let mut c = started(1, 1);
    assert_eq!(c.tick(10 * MS, 1, true), [inject(SnapshotId(1))]);
    assert_eq!(c.tick(20 * MS, 2, true), []);
    assert_eq!(c.tick(20 * MS, 2, false), [inject(SnapshotId(2))]);
    c.failed(SnapshotId(1), A, "a test".into(), 20 * MS);
    c.failed(SnapshotId(2), A, "a test".into(), 20 * MS);
    assert_eq!(c.tick(70 * MS, 3, true), [inject(SnapshotId(3))]);
}

/// A job in which none was triggered for 5.6 of 6 s said that it had completed 357 of 386.
#[test]
fn intervals_without_a_snapshot_are_asked_too_whatever_the_reason() {
    let mut c = started(1, 1);
    tick(&mut c, 10 * MS);
    c.failed(SnapshotId(1), A, "a test".into(), 15 * MS);
    assert_eq!(tick(&mut c, 34 * MS), [], "it waits until 35 ms");
    assert_eq!(tick(&mut c, 35 * MS), [inject(SnapshotId(2))]);
    let Cadence { asked, paused, .. } = c.cadence();
    assert_eq!((asked, paused), (3, 1), "at 10, 20 and 30 ms");
    assert_eq!(c.tick(80 * MS, 80 * MS, true), [], "held back");
    assert_eq!(c.cadence().asked, 3);
    c.task_finished(A, 99 * MS);
    assert_eq!(c.cadence().asked, 9, "six more went by, of which none was made");
    let mut c = started(1, 1);
    tick(&mut c, 10 * MS);
    c.failed(SnapshotId(1), A, "a test".into(), 15 * MS);
    c.stop(26 * MS);
    assert_eq!(c.cadence().asked, 2, "what was not waited for any more does not count");
}

#[test]
fn trap_22_an_ack_counts_once_for_its_own_snapshot_and_attempt() {
    let mut c = started(2, 1);
    tick(&mut c, 10 * MS);
    tick(&mut c, 20 * MS);
    // An ack of the later snapshot is kept, not ignored.
    assert_eq!(ack(&mut c, 0, 2).0, Ack::Accepted);
    assert_eq!(ack(&mut c, 0, 2).0, Ack::Duplicate);
    assert_eq!(ack(&mut c, 0, 3).0, Ack::Unknown);
    assert_eq!(c.ack(WorkerId(0), SnapshotId(1), Attempt(0), 0).0, Ack::Stale);
    assert_eq!(ack(&mut c, 0, 1).0, Ack::Accepted);
    assert_eq!(ack(&mut c, 1, 1).1, [commit(1, vec![0, 1], false, 10 * MS)]);
    c.committed(SnapshotId(1), 21 * MS);
    assert_eq!(ack(&mut c, 1, 1).0, Ack::Stale);
    assert_eq!(ack(&mut c, 1, 2).1, [commit(2, vec![0, 1], false, 20 * MS)]);
}

#[test]
fn trap_23_completing_a_snapshot_gives_up_the_older_pending_one() {
    let mut c = started(1, 1);
    tick(&mut c, 10 * MS);
    tick(&mut c, 20 * MS);
    let (_, actions) = ack(&mut c, 0, 2);
    assert!(matches!(actions[0], Action::Abort { snapshot: SnapshotId(1), .. }));
    assert_eq!(actions[1], commit(2, vec![0], false, 20 * MS));
    assert_eq!(ack(&mut c, 0, 1).0, Ack::Stale);
}

#[test]
fn one_that_is_being_committed_is_not_given_up_for_a_later_one() {
    let mut c = started(1, 1);
    (1..=3).for_each(|n| _ = tick(&mut c, n * 10 * MS));
    assert_eq!(ack(&mut c, 0, 1).1, [commit(1, vec![0], false, 10 * MS)]);
    let (_, actions) = ack(&mut c, 0, 3);
    assert!(matches!(actions[0], Action::Abort { snapshot: SnapshotId(2), .. }));
    assert_eq!(actions[1..], [commit(3, vec![0], false, 30 * MS)]);
    let late = 5000 * MS;
    assert_eq!(tick(&mut c, late), [inject(SnapshotId(4))], "no timeout takes a commit back");
    assert_eq!(c.wake_at_ns(), Some(late + 10 * MS), "nor is it waited for");
    let complete = |n, duration_ns| Action::Complete { snapshot: SnapshotId(n), duration_ns };
    assert_eq!(c.committed(SnapshotId(1), late), [complete(1, late - 10 * MS)]);
    let failed = c.failed(SnapshotId(3), A, "a test".into(), late);
    assert!(matches!(failed[..], [Action::Abort { snapshot: SnapshotId(3), .. }]));
    assert_eq!(c.cadence().completed, 1);
}

#[test]
fn so_many_are_pending_at_most_and_missed_intervals_are_counted() {
    let mut c = started(1, 1);
    let most = SNAPSHOTS_PENDING_MAX as u64;
    (1..=most).for_each(|n| _ = tick(&mut c, n * 10 * MS));
    let late = (most + 2) * 10 * MS + 5;
    assert_eq!(tick(&mut c, late), []);
    ack(&mut c, 0, 1);
    c.committed(SnapshotId(1), late);
    assert_eq!(tick(&mut c, late), [inject(SnapshotId(most + 1))]);
    let cadence =
        Cadence { asked: most + 2, triggered: most + 1, completed: 1, ..Cadence::default() };
    assert_eq!(c.cadence(), cadence);
    assert_eq!(tick(&mut c, late + 4), []);
}

#[test]
fn a_timeout_names_the_workers_that_did_not_ack() {
    let mut c = started(2, 1);
    tick(&mut c, 10 * MS);
    ack(&mut c, 0, 1);
    let actions = tick(&mut c, 1010 * MS);
    let Action::Abort { snapshot: SnapshotId(1), reason } = &actions[0] else {
        panic!("{actions:?}")
    };
    assert!(reason.contains("[1]"), "{reason}");
    assert_eq!(actions.len(), 1, "a failure is followed by a pause");
    assert_eq!(tick(&mut c, 1029 * MS), []);
    assert_eq!(tick(&mut c, 1030 * MS), [inject(SnapshotId(2))]);
}

#[test]
fn trap_03_the_job_ends_only_after_a_snapshot_that_began_after_the_last_finish() {
    let mut c = started(1, 2);
    tick(&mut c, 10 * MS);
    c.task_finished(A, 11 * MS);
    c.task_finished(A, 12 * MS);
    // Snapshot 1 was triggered before the end, so it is not the last one.
    assert_eq!(tick(&mut c, 12 * MS), []);
    ack(&mut c, 0, 1);
    assert_eq!(c.committed(SnapshotId(1), 13 * MS).len(), 1);
    assert_eq!(tick(&mut c, 13 * MS), [inject_last(SnapshotId(2))]);
    assert_eq!(ack(&mut c, 0, 2).1, [commit(2, vec![0], false, 13 * MS)]);
    assert_eq!(c.committed(SnapshotId(2), 14 * MS).len(), 1);
    // Sinks have committed 2; 3 lists nothing that is still to be committed.
    assert_eq!(tick(&mut c, 14 * MS), [inject_last(SnapshotId(3))]);
    assert_eq!(ack(&mut c, 0, 3).1, [commit(3, vec![0], true, 14 * MS)]);
    assert_eq!(c.committed(SnapshotId(3), 15 * MS)[1], Action::Finish { complete: true });
    assert_eq!(tick(&mut c, 99 * MS), []);
}

#[test]
fn trap_02_a_trigger_that_races_with_the_finish_still_completes() {
    let mut c = started(1, 1);
    assert_eq!(tick(&mut c, 10 * MS), [inject(SnapshotId(1))]);
    c.task_finished(A, 10 * MS);
    assert_eq!(ack(&mut c, 0, 1).1, [commit(1, vec![0], false, 10 * MS)]);
    c.committed(SnapshotId(1), 11 * MS);
    assert_eq!(tick(&mut c, 11 * MS), [inject_last(SnapshotId(2))]);
}

#[test]
fn a_failed_last_snapshot_is_tried_again_and_then_fails_the_job() {
    let mut c = started(1, 1);
    c.task_finished(A, 0);
    let mut now = 0;
    for attempt in 1..=LAST_ATTEMPTS_MAX {
        let snapshot = SnapshotId(u64::from(attempt));
        assert_eq!(tick(&mut c, now), [inject_last(snapshot)]);
        let actions = c.failed(snapshot, A, "disk full".into(), now);
        assert!(matches!(actions[0], Action::Abort { .. }));
        let failed = matches!(actions.get(1), Some(Action::Fail(_)));
        assert_eq!(failed, attempt == LAST_ATTEMPTS_MAX);
        assert_eq!(tick(&mut c, now), [], "it waits before it tries again");
        now += LAST_RETRY_NS;
    }
}

#[test]
fn a_stop_takes_two_snapshots_and_leaves_the_job_incomplete() {
    let mut c = started(1, 1);
    c.stop(3 * MS);
    assert_eq!(c.wake_at_ns(), Some(3 * MS));
    for n in 1..=2 {
        assert_eq!(tick(&mut c, 3 * MS), [inject_last(SnapshotId(n))]);
        // The manifest of a stop says that the job is not complete.
        assert_eq!(ack(&mut c, 0, n).1, [commit(n, vec![0], false, 3 * MS)]);
        let finish = c.committed(SnapshotId(n), 3 * MS).pop();
        assert_eq!(finish == Some(Action::Finish { complete: false }), n == 2);
    }
}

#[test]
fn without_an_interval_the_job_ends_without_a_snapshot() {
    let mut c = Coordinator::<u32>::new(1, None, MS);
    c.start(A, 1, SnapshotId(1), 0);
    assert_eq!(tick(&mut c, 5 * MS), []);
    c.task_finished(A, 5 * MS);
    assert_eq!(tick(&mut c, 5 * MS), [Action::Finish { complete: true }]);
}

/// The last snapshot of a job failed as often as it may, the job was restarted, and then waited
/// for ever: the new attempt took over that the old one had nothing more to do.
#[test]
fn an_attempt_after_a_failed_or_uncommitted_end_takes_snapshots_again() {
    let mut c = started(1, 1);
    c.task_finished(A, 0);
    let mut now = 0;
    for n in 1..=u64::from(LAST_ATTEMPTS_MAX) {
        assert_eq!(tick(&mut c, now), [inject_last(SnapshotId(n))]);
        let actions = c.failed(SnapshotId(n), A, "full".into(), now);
        let fails = matches!(actions.last(), Some(Action::Fail(_)));
        assert_eq!(fails, n == u64::from(LAST_ATTEMPTS_MAX));
        now += LAST_RETRY_NS;
    }
    assert_eq!(tick(&mut c, now), []);
    c.start(Attempt(2), 1, SnapshotId(300), now);
    c.task_finished(Attempt(2), now);
    assert_eq!(tick(&mut c, now), [inject_last(SnapshotId(300))]);
}

#[test]
fn a_new_attempt_forgets_what_was_pending() {
    let mut c = started(1, 1);
    tick(&mut c, 10 * MS);
    c.start(Attempt(2), 1, SnapshotId(2), 20 * MS);
    assert_eq!(ack(&mut c, 0, 1).0, Ack::Stale);
    assert_eq!(tick(&mut c, 30 * MS), [inject(SnapshotId(2))]);
    assert_eq!(c.cadence().aborted, 1);
}

#[test]
fn an_idle_job_takes_one_snapshot_a_second() {
    let mut c = started(1, 1);
    let mut triggered = Vec::new();
    for ms in 0..2500 {
        for action in c.tick(ms * MS, 7, false) {
            let Action::Inject { snapshot, .. } = action else { panic!("{action:?}") };
            triggered.push(ms);
            c.ack(WorkerId(0), snapshot, A, 0);
            c.committed(snapshot, ms * MS);
        }
    }
    assert_eq!(triggered, [10, 1010, 2010]);
    assert_eq!(c.tick(2510 * MS, 8, false).len(), 1, "something was read");
}
