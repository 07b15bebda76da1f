//! Power lost at every operation of a run, of an open, and beside a failing sync.

use super::*;

/// Opens after a crash and checks that the newest snapshot is one of these, whole.
fn check_restorable(disk: &MemoryDisk, allowed: &[u64], story: &str) -> u64 {
    check_restorable_with(disk, allowed, 1, story).0
}

/// The same where up to `torn_max` commits were under way; and how many slots are torn.
pub(super) fn check_restorable_with(
    disk: &MemoryDisk,
    allowed: &[u64],
    torn_max: usize,
    story: &str,
) -> (u64, usize) {
    let mut opened = open(disk);
    // A slot that was being overwritten may be torn, and nothing but that.
    assert!(opened.warnings.len() <= torn_max, "{story}: {:?}", opened.warnings);
    let is_slot = |warning: &String| warning.contains("manifest-") && warning.contains("cut short");
    assert!(opened.warnings.iter().all(is_slot), "{story}: {:?}", opened.warnings);
    let torn = opened.warnings.len();
    let found = opened.newest.as_ref().map_or(0, |manifest| manifest.snapshot);
    assert!(allowed.contains(&found), "{story}: snapshot {found} instead of {allowed:?}");
    if let Some(manifest) = &opened.newest {
        check_state(&mut opened.store, manifest);
        assert!(opened.store.next_snapshot() > manifest.id());
    }
    let report = verify(disk, Path::new(DIR)).unwrap();
    assert_eq!(report.is_whole(), torn == 0, "{story}: {:?}", report.problems);
    (found, torn)
}

#[test]
fn trap_24_a_crash_at_any_operation_leaves_the_last_committed_snapshot_or_the_one_being_committed()
{
    const SNAPSHOTS: u64 = 6;
    let mut both = [0, 0];
    for seed in 0..8 {
        for operations in 0.. {
            let disk = MemoryDisk::new(seed);
            disk.set_faults(Faults { power_lost_after: Some(operations), ..Faults::default() });
            let mut committed = 0;
            let run = (|| {
                let opened = try_open(&shared(&disk), Path::new(DIR))?;
                let mut running = Running::start(opened.store)?;
                for id in 1..=SNAPSHOTS {
                    let parts = running.write(SnapshotId(id))?;
                    running.store.commit(&running.manifest(SnapshotId(id), parts))?;
                    committed = id;
                    running.store.collect()?;
                }
                Ok::<_, Error>(())
            })();
            disk.crash();
            let story = format!("seed {seed}, power lost after {operations} operations");
            let found = check_restorable(&disk, &[committed, committed + 1], &story);
            both[(found - committed) as usize] += 1;
            if run.is_ok() {
                assert_eq!(committed, SNAPSHOTS);
                break;
            }
        }
    }
    assert!(both[0] > 100 && both[1] > 3, "both outcomes are met: {both:?}");
}

#[test]
fn a_crash_at_any_operation_of_an_open_leaves_the_same_snapshot_restorable() {
    for seed in 0..8 {
        for operations in 0.. {
            let (disk, newest) = after_snapshots(seed, 3);
            disk.crash();
            disk.set_faults(Faults { power_lost_after: Some(operations), ..Faults::default() });
            let reopened = try_open(&shared(&disk), Path::new(DIR));
            let generation = reopened.as_ref().map_or(0, |opened| opened.store.generation());
            let done = reopened.is_ok();
            drop(reopened);
            disk.crash();
            let story = format!("seed {seed}, power lost after {operations} operations");
            check_restorable(&disk, &[newest.0], &story);
            if done {
                let again = open(&disk).store.generation();
                assert!(again > generation + 1, "{story}: generation {again}");
                break;
            }
        }
    }
}

#[test]
fn a_commit_in_doubt_stops_the_store_and_leaves_either_snapshot() {
    let mut found = [0, 0];
    for seed in 0..32 {
        let (disk, _) = (MemoryDisk::new(seed), ());
        let mut running = Running::start(open(&disk).store).unwrap();
        running.snapshot().unwrap();
        let parts = running.write(SnapshotId(2)).unwrap();
        let manifest = running.manifest(SnapshotId(2), parts.clone());
        // Create, write, sync and rename succeed; the power goes with the directory sync.
        disk.set_faults(Faults { power_lost_after: Some(4), ..Faults::default() });
        let error = running.store.commit(&manifest).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "not a certain failure: {error}");
        let next = running.manifest(SnapshotId(3), parts);
        assert!(running.store.commit(&next).unwrap_err().to_string().contains("restart"));
        assert_eq!(running.store.collect().unwrap(), 0);
        disk.crash();
        let story = format!("seed {seed}");
        found[check_restorable(&disk, &[1, 2], &story) as usize - 1] += 1;
    }
    assert!(found[0] > 0 && found[1] > 0, "{found:?}");
}

#[test]
fn a_commit_that_certainly_failed_is_told_apart_and_the_next_one_succeeds() {
    let disk = MemoryDisk::new(5);
    let mut running = Running::start(open(&disk).store).unwrap();
    running.snapshot().unwrap();
    for faults in [
        Faults { write_error: 10_000, ..Faults::default() },
        Faults { sync_error: 10_000, ..Faults::default() },
        Faults { read_error: 10_000, ..Faults::default() },
    ] {
        let id = running.store.next_snapshot();
        let parts = running.write(id).unwrap();
        disk.set_faults(faults.clone());
        let error = running.store.commit(&running.manifest(id, parts)).unwrap_err();
        assert!(matches!(error, Error::Snapshot { .. }), "{faults:?}: {error}");
        disk.set_faults(Faults::default());
    }
    let id = running.snapshot().unwrap();
    drop(running);
    disk.crash();
    check_restorable(&disk, &[id.0], "after three failed commits");
}

#[test]
fn random_faults_never_lose_a_committed_snapshot() {
    for seed in 0..200 {
        let disk = MemoryDisk::new(seed);
        let mut running = Running::start(open(&disk).store).unwrap();
        disk.set_faults(Faults {
            write_error: 300,
            sync_error: 300,
            short_write: 2_000,
            power_lost_after: Some(20 + seed),
            ..Faults::default()
        });
        let mut committed = 0;
        for id in 1..40 {
            let commit = running.write(SnapshotId(id)).and_then(|parts| {
                let manifest = running.manifest(SnapshotId(id), parts);
                running.store.commit(&manifest)
            });
            match commit {
                Ok(()) => committed = id,
                Err(Error::Snapshot { .. }) => {}
                Err(_) => break,
            }
            let _ = running.store.collect();
            running.settle();
        }
        disk.crash();
        let mut opened = open(&disk);
        let found = opened.newest.as_ref().map_or(0, |manifest| manifest.snapshot);
        assert!(found >= committed, "seed {seed}: {found} after {committed}");
        opened.newest.iter().for_each(|manifest| check_state(&mut opened.store, manifest));
    }
}
