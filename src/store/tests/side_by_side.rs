//! Several indices with the disk at once: they count in their order, and a crash or a failure leaves no gap.

use super::links::{Run, small};
use super::*;

/// Of each acked part the snapshot is committed, as if this worker were the only one. The power fails while others
/// are on their way, of which later ones may be on disk and earlier ones not.
#[test]
fn what_was_acked_is_there_after_a_crash_whatever_else_was_on_its_way() {
    let (mut together, mut failures, mut unfinished) = (0, 0, 0);
    for seed in 0..200 {
        let mut run = small(seed);
        let mut begun: Vec<(SnapshotId, Book)> = Vec::new();
        for _ in 0..80 {
            let faults = match run.random.below(30) {
                0 | 1 => Faults { sync_error: 3_000, write_error: 1_000, ..Faults::default() },
                2 => Faults { capacity_bytes: Some(0), ..Faults::default() },
                _ => Faults::default(),
            };
            run.disk.set_faults(faults);
            for _ in 0..=run.random.below(4) {
                run.change_some(8);
                let id = run.next();
                run.begin(id);
                if run.random.below(10) == 0 {
                    run.running.writers[0].abandon(id);
                } else if run.running.writers[0].finish().is_ok() {
                    begun.push((id, run.running.books[0].clone()));
                }
            }
            if run.random.below(10) == 0 && !begun.is_empty() {
                let given_up = run.random.below(begun.len() as u32) as usize;
                run.running.writers[0].abandon(begun.remove(given_up).0);
            }
            for _ in 0..run.random.below(24) {
                let written = poll(&mut run.running.writers[0]);
                together += u32::from(written.iter().filter(|w| w.result.is_ok()).count() > 1);
                failures += u32::from(written.iter().any(|w| w.result.is_err()));
                commit_acked(&mut run, &mut begun, written);
            }
            run.running.writers[0].refill();
            run.disk.set_faults(Faults::default());
        }
        unfinished += run.running.writers[0].in_flight();
        run.disk.crash();
        check_newest(&run);
    }
    assert!(
        together > 100 && failures > 50 && unfinished > 100,
        "{together} {failures} {unfinished}"
    );
}

fn commit_acked(run: &mut Run, begun: &mut Vec<(SnapshotId, Book)>, written: Vec<Written>) {
    let lost = run.running.writers[0].take_lost();
    run.running.books[0].lose(&lost);
    for Written { snapshot, result, .. } in written {
        let told = |(id, _): &(SnapshotId, Book)| *id == snapshot;
        let at = begun.iter().position(told).expect("begun, not given up, and not told of yet");
        let (id, pages) = begun.remove(at);
        if let Ok(part) = result {
            assert_eq!(at, 0, "{}: {id} before an older one", run.story);
            // The control thread's own writes succeed: theirs are tested elsewhere.
            run.disk.set_faults(Faults::default());
            run.commit(id, part, pages);
        }
    }
}

fn check_newest(run: &Run) {
    let opened = Store::open_with(shared(&run.disk), Path::new(DIR), &job(), limits()).unwrap();
    let mut store = opened.store;
    assert!(opened.warnings.is_empty(), "{}: {:?}", run.story, opened.warnings);
    let Some((id, pages)) = run.committed.last() else { return };
    let newest = opened.newest.expect("one was committed");
    assert_eq!(newest.id(), *id, "{}", run.story);
    let loaded = store.load(&newest).unwrap_or_else(|error| panic!("{}: {error}", run.story));
    pages.check(&loaded, &run.story);
}

/// Hands over the parts of three snapshots at once; how many indices were with the disk then.
fn burst(running: &mut Running) -> usize {
    let first = running.store.next_snapshot().0;
    for id in (first..first + 3).map(SnapshotId) {
        let writer = &mut running.writers[0];
        writer.begin(id);
        append_state(writer, id, 0);
        writer.finish().unwrap();
        while writer.join(0) > 0 {}
    }
    let sealing = running.writers[0].sealing();
    for Written { snapshot, result, .. } in wait(&mut running.writers[0]) {
        running.store.commit(&running.manifest(snapshot, vec![result.unwrap()])).unwrap();
        running.store.collect().unwrap();
    }
    sealing
}

/// Behind what was written before a sync has more to write than the blocks, which another beside it may miss.
#[test]
fn several_are_with_the_disk_only_where_blocks_were_written_before() {
    let disk = MemoryDisk::new(11);
    for _ in 0..2 {
        let limits = StoreLimits { segment_bytes: 1 << 17, segment_bytes_max: 1 << 17, ..limits() };
        let opened = Store::open_with(shared(&disk), Path::new(DIR), &job(), limits).unwrap();
        let mut running = Running::start(opened.store).unwrap();
        // A part takes a block here, and a segment 32 of them.
        let found: Vec<usize> = (0..100).map(|_| burst(&mut running)).collect();
        assert!(found[..10].iter().all(|sealing| *sealing == 1), "in a new file: {found:?}");
        let later = found[50..].iter().filter(|sealing| **sealing == 3).count();
        assert!(later > 30, "where files were written before: {found:?}");
    }
}
