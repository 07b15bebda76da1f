//! Commits that are under way at once.

use super::crash::check_restorable_with;
use super::*;
use crate::store::slots::Content;

/// Begins a commit of each of the next `count` snapshots.
fn begin(running: &mut Running, count: usize) -> Result<Vec<Commit>> {
    let commits = (0..count).map(|_| {
        let id = running.store.next_snapshot();
        let parts = running.write(id)?;
        running.store.begin_commit(&running.manifest(id, parts))
    });
    commits.collect()
}

/// Carries commits out in this order, and ends them in theirs: what came of each.
fn carry_out(
    running: &mut Running,
    commits: Vec<Commit>,
    order: &[usize],
) -> Vec<(u64, Result<()>)> {
    let mut commits: Vec<_> = commits.into_iter().map(Some).collect();
    let mut ended: Vec<_> = commits.iter().map(|_| None).collect();
    for at in order {
        ended[*at] = commits[*at].take().map(Commit::run);
    }
    let ended = ended.into_iter().flatten();
    ended.map(|one: Committed| (one.snapshot().0, running.store.end_commit(one))).collect()
}

#[test]
fn a_crash_at_any_operation_leaves_the_newest_that_was_durable_or_a_later_one_under_way() {
    const ORDERS: [[usize; 3]; 4] = [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]];
    let mut torn_and_later = 0;
    for (seed, order) in (0..).zip(ORDERS.repeat(6)) {
        for operations in 0.. {
            let disk = MemoryDisk::new(seed);
            disk.set_faults(Faults { power_lost_after: Some(operations), ..Faults::default() });
            let (mut committed, mut begun, mut failed) = (0, 0, 0);
            let run = (|| {
                let opened = try_open(&shared(&disk), Path::new(DIR))?;
                let mut running = Running::start(opened.store)?;
                for _ in 0..3 {
                    let commits = begin(&mut running, 3)?;
                    begun = running.store.next_snapshot().0 - 1;
                    for (id, result) in carry_out(&mut running, commits, &order) {
                        committed = if result.is_ok() { id } else { committed };
                        failed += u32::from(result.is_err());
                    }
                    running.store.collect()?;
                }
                Ok::<_, Error>(())
            })();
            disk.crash();
            let story = format!("seed {seed}, power lost after {operations} operations");
            let allowed: Vec<u64> = (committed..=begun.max(committed)).collect();
            let (found, torn) = check_restorable_with(&disk, &allowed, 3, &story);
            torn_and_later += u32::from(torn > 0 && found == begun);
            if run.is_ok() && failed == 0 {
                assert_eq!(committed, 9);
                break;
            }
        }
    }
    assert!(torn_and_later > 3, "a torn slot beside a newer manifest is met: {torn_and_later}");
}

#[test]
fn commits_on_threads_are_each_durable_whatever_becomes_of_the_others() {
    for seed in 0..40 {
        let disk = MemoryDisk::new(seed);
        let mut running = Running::start(open(&disk).store).unwrap();
        running.snapshots(4);
        let commits = begin(&mut running, 3).unwrap();
        disk.set_faults(Faults { power_lost_after: Some(seed % 20), ..Faults::default() });
        let ended: Vec<Committed> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                commits.into_iter().map(|commit| scope.spawn(|| commit.run())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut committed = 4;
        for one in ended {
            let id = one.snapshot().0;
            committed = running.store.end_commit(one).map_or(committed, |()| id);
        }
        drop(running);
        disk.crash();
        let allowed: Vec<u64> = (committed..=7).collect();
        check_restorable_with(&disk, &allowed, 3, &format!("seed {seed}"));
    }
}

#[test]
fn as_many_as_retention_asks_for_stay_while_commits_are_under_way() {
    let disk = MemoryDisk::new(1);
    let mut running = Running::start(open(&disk).store).unwrap();
    running.snapshots(5);
    let stay = |running: &Running| running.store.slots.valid(SnapshotId(0));
    assert_eq!(stay(&running), 3, "retention, and one that the next commit overwrites");
    for _ in 0..3 {
        let commits = begin(&mut running, 4).unwrap();
        assert_eq!((stay(&running), running.store.slots.taken()), (2, 4));
        let ended = carry_out(&mut running, commits, &[3, 0, 1, 2]);
        assert!(ended.iter().all(|(_, result)| result.is_ok()), "{ended:?}");
        running.store.collect().unwrap();
        assert_eq!(stay(&running), 6, "so that the next four need no new file");
    }
    running.snapshots(300);
    assert_eq!(stay(&running), 5, "one by one, they need fewer after a while");
    drop(running);
    let mut running = Running::start(open(&disk).store).unwrap();
    running.snapshot().unwrap();
    assert_eq!(stay(&running), 3, "a process that commits one by one keeps no more");
}

#[test]
fn a_commit_that_fails_leaves_its_slot_as_it_was_or_empty_and_the_others_complete() {
    let mut met = [0; 4];
    for seed in 0..60 {
        let disk = MemoryDisk::new(seed);
        let mut running = Running::start(open(&disk).store).unwrap();
        running.snapshots(4);
        let [first, second]: [Commit; 2] = begin(&mut running, 2).unwrap().try_into().unwrap();
        let first = {
            let (read_error, sync_error) = if seed % 2 == 0 { (10_000, 0) } else { (0, 5_000) };
            disk.set_faults(Faults { read_error, sync_error, ..Faults::default() });
            let ended = first.run();
            disk.set_faults(Faults::default());
            ended
        };
        let second = second.run();
        let free = |running: &Running| {
            let slots = running.store.slots.0.values();
            slots.filter(|content| matches!(content, Content::Free)).count()
        };
        match running.store.end_commit(first) {
            Err(Error::Snapshot { .. }) => {
                met[free(&running)] += 1;
                running.store.end_commit(second).unwrap();
                assert_eq!(running.store.slots.newest(), Some(SnapshotId(6)));
                assert_eq!(running.store.slots.taken(), 0);
                running.store.collect().unwrap();
                running.snapshots(3);
                drop(running);
                check_restorable_with(&disk, &[9], 0, &format!("seed {seed}"));
            }
            Ok(()) => {
                met[2] += 1;
                running.store.end_commit(second).unwrap();
            }
            Err(_) => {
                met[3] += 1;
                running.store.end_commit(second).unwrap();
                assert_eq!(running.store.collect().unwrap(), 0, "nothing is removed in doubt");
                let id = running.store.next_snapshot();
                let next = running.store.begin_commit(&running.manifest(id, Vec::new()));
                assert!(next.unwrap_err().to_string().contains("snapshot 5 is complete"));
                drop(running);
                disk.crash();
                check_restorable_with(&disk, &[6], 1, &format!("seed {seed}, in doubt"));
            }
        }
    }
    assert!(met.iter().all(|met| *met > 3), "untouched, emptied, durable, not known: {met:?}");
}
