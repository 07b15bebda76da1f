//! Retention, collection, segments: what is deleted, what never is, and what is never reused.

use std::sync::Weak;
use std::sync::atomic::Ordering;

use super::*;
use crate::state::{CHUNK_BYTES, Chunk};
use crate::store::stream::LOOKS_MAX;

fn segments(disk: &MemoryDisk) -> Vec<String> {
    let mut names = disk.list(Path::new(DIR)).unwrap();
    names.retain(|name| name.starts_with("segment-"));
    names
}

#[test]
fn trap_29_collection_keeps_what_retention_asks_for_and_never_deletes_what_a_manifest_names() {
    let disk = MemoryDisk::new(2);
    let limits = StoreLimits { retention: 5, ..limits() };
    let opened = Store::open_with(shared(&disk), Path::new(DIR), &job(), limits).unwrap();
    let mut running = Running::start(opened.store).unwrap();
    for n in 1..=200 {
        running.snapshot().unwrap();
        let report = verify(&disk, Path::new(DIR)).unwrap();
        assert!(report.is_whole(), "{:?}", report.problems);
        assert_eq!(report.snapshots.len(), n.min(6), "five, and the one to be overwritten");
    }
    let files = segments(&disk).len();
    // Up to LINKS_MAX indices, one or two in a segment, for each worker, and as many again while a new
    // base is not the oldest kept.
    assert!(files <= 2 * 80, "{files} segments");
    assert_eq!(list(&disk, Path::new(DIR)).unwrap().last().unwrap().snapshot, Some(200));
}

#[test]
fn at_least_two_snapshots_are_kept() {
    let disk = MemoryDisk::new(2);
    let limits = StoreLimits { retention: 0, ..limits() };
    let opened = Store::open_with(shared(&disk), Path::new(DIR), &job(), limits).unwrap();
    let mut running = Running::start(opened.store).unwrap();
    running.snapshots(5);
    assert_eq!(list(&disk, Path::new(DIR)).unwrap().len(), 3, "two, and the one to be overwritten");
}

#[test]
fn a_page_that_does_not_change_any_more_is_kept() {
    let disk = MemoryDisk::new(2);
    let mut running = Running::start(open(&disk).store).unwrap();
    running.books[0].change(60, b"written once");
    running.snapshots(200);
    let newest = list(&disk, Path::new(DIR)).unwrap().pop().unwrap().manifest.unwrap();
    let loaded = running.store.load(&newest).unwrap();
    running.books.iter().for_each(|book| book.check(&loaded, "after 200 snapshots"));
    assert!(verify(&disk, Path::new(DIR)).unwrap().is_whole());
}

#[test]
fn a_part_of_a_snapshot_not_committed_yet_is_kept_though_its_segment_was_left() {
    let disk = MemoryDisk::new(2);
    let mut running = Running::start(open(&disk).store).unwrap();
    let early = running.write(SnapshotId(1)).unwrap();
    let later = running.write(SnapshotId(2)).unwrap();
    running.store.commit(&running.manifest(SnapshotId(1), early)).unwrap();
    running.writers.clear();
    running.store.collect().unwrap();
    running.store.commit(&running.manifest(SnapshotId(2), later)).unwrap();
    assert!(verify(&disk, Path::new(DIR)).unwrap().is_whole());
}

#[test]
fn what_a_crashed_process_left_is_collected_by_the_next() {
    let (disk, _) = after_snapshots(2, 2);
    disk.crash();
    for _ in 0..4 {
        // Each start makes segments and dies before it commits.
        drop(Running::start(open(&disk).store).unwrap());
        disk.crash();
    }
    let before = segments(&disk);
    assert!(before.len() > 8);
    let mut running = Running::start(open(&disk).store).unwrap();
    running.snapshots(6);
    let now = segments(&disk);
    let old = before.iter().filter(|name| now.contains(name)).count();
    assert!(old < before.len() && now.len() <= 16, "{before:?}, then {now:?}");
}

#[test]
fn after_a_failed_sync_the_segment_takes_no_further_part() {
    for faults in [
        Faults { sync_error: 10_000, ..Faults::default() },
        Faults { write_error: 10_000, ..Faults::default() },
    ] {
        let disk = MemoryDisk::new(3);
        // Room for more than this test writes: only the failure may end the segment.
        let (segment_bytes, segment_bytes_max) = (1 << 20, 1 << 20);
        let limits = StoreLimits { segment_bytes, segment_bytes_max, ..limits() };
        let opened = Store::open_with(shared(&disk), Path::new(DIR), &job(), limits).unwrap();
        let mut running = Running::start(opened.store).unwrap();
        running.snapshot().unwrap();
        let good = running.write(SnapshotId(2)).unwrap().remove(0);
        let writer = &mut running.writers[0];
        disk.set_faults(faults);
        writer.begin(SnapshotId(3));
        append_state(writer, SnapshotId(3), 0);
        writer.finish().unwrap();
        let Written { snapshot, result, .. } = wait(writer).remove(0);
        let error = result.unwrap_err();
        assert_eq!(snapshot, SnapshotId(3));
        assert!(matches!(error, Error::Snapshot { .. }) && error.to_string().contains(DIR));
        disk.set_faults(Faults::default());
        let lost = running.writers[0].take_lost();
        running.books[0].lose(&lost);
        let parts = running.write(SnapshotId(4)).unwrap();
        assert_ne!(parts[0].segment, good.segment);
        assert_eq!(parts[0].links, 0, "nothing is built on what failed");
        running.store.commit(&running.manifest(SnapshotId(4), parts)).unwrap();
        running.snapshots(6);
        let table = running.store.directory.table();
        let failed = SegmentId(good.segment);
        assert!(!table.segments.contains_key(&failed), "nothing needs it any more");
        let again = table.free.iter().any(|free| free.segment == failed);
        assert!(!again, "a file whose write failed is not used again");
        drop(table);
        disk.crash();
    }
}

#[test]
fn parts_queue_behind_the_one_being_written_up_to_a_bound() {
    let disk = MemoryDisk::new(3);
    let mut running = Running::start(open(&disk).store).unwrap();
    let writer = &mut running.writers[0];
    for id in 1..=PARTS_MAX as u64 + 1 {
        writer.begin(SnapshotId(id));
        append_state(writer, SnapshotId(id), 0);
        let finished = writer.finish();
        assert_eq!(finished.is_ok(), id <= PARTS_MAX as u64, "snapshot {id}");
    }
    assert_eq!(writer.in_flight(), PARTS_MAX);
    writer.abandon(SnapshotId(1));
    writer.abandon(SnapshotId(3));
    let ids: Vec<u64> = wait(writer).into_iter().map(|written| written.snapshot.0).collect();
    assert_eq!(ids, [2, 4, 5, 6]);
}

#[test]
fn a_part_larger_than_a_segment_gets_one_of_its_own() {
    let disk = MemoryDisk::new(3);
    let mut running = Running::start(open(&disk).store).unwrap();
    let large = vec![7; 3 * SEGMENT_BYTES as usize];
    let writer = &mut running.writers[0];
    writer.begin(SnapshotId(1));
    writer.enter("large");
    writer.write(StateSlot::Task(0), 1, &large);
    writer.finish().unwrap();
    let part = wait(writer).remove(0).result.unwrap();
    let manifest = running.manifest(SnapshotId(1), vec![part]);
    running.store.commit(&manifest).unwrap();
    assert_eq!(running.store.load(&manifest).unwrap().pieces[0].bytes, large);
}

#[test]
fn a_full_disk_fails_the_snapshot_and_says_so_and_room_mends_it() {
    let disk = MemoryDisk::new(3);
    let mut running = Running::start(open(&disk).store).unwrap();
    running.snapshot().unwrap();
    disk.set_faults(Faults { capacity_bytes: Some(0), ..Faults::default() });
    let error = loop {
        // Segments are preallocated, so the disk is felt full only by a new file.
        let id = running.store.next_snapshot();
        let commit =
            running.write(id).and_then(|parts| running.store.commit(&running.manifest(id, parts)));
        if let Err(error) = commit {
            break error;
        }
    };
    assert!(matches!(error, Error::Snapshot { .. }), "{error}");
    assert!(error.to_string().contains("make room"), "{error}");
    disk.set_faults(Faults::default());
    running.settle();
    let id = running.snapshot().unwrap();
    drop(running);
    assert_eq!(open(&disk).newest.unwrap().id(), id);
}

/// Segments double while few parts go into one. One for which there was no room failed all snapshots until
/// the job was started again, which went on so for ever.
#[test]
fn where_there_is_no_room_for_a_large_segment_a_small_one_is_taken() {
    let disk = MemoryDisk::new(3);
    let limits = StoreLimits { segment_bytes_max: 64 << 20, ..limits() };
    let opened = Store::open_with(shared(&disk), Path::new(DIR), &job(), limits).unwrap();
    let mut running = Running::start(opened.store).unwrap();
    disk.set_faults(Faults { capacity_bytes: Some(8 << 20), ..Faults::default() });
    let spares = running.store.directory.table().writers.clone();
    for spare in spares.iter().filter_map(Weak::upgrade) {
        spare.wanted_bytes.store(64 << 20, Ordering::Relaxed);
    }
    running.snapshots(100);
    let table = running.store.directory.table();
    let largest = table.segments.values().map(|known| known.capacity_bytes).max();
    assert!(largest.is_some_and(|bytes| bytes <= 1 << 20), "{largest:?}");
}

/// Writers asked for two files of 4 MiB each at every start, also where less was free.
#[test]
fn on_a_small_disk_first_segments_are_small_too() {
    let disk = MemoryDisk::new(3);
    disk.set_faults(Faults { capacity_bytes: Some(9 << 20), ..Faults::default() });
    let (first, limits) = (4 << 20, StoreLimits { segment_bytes: 4 << 20, ..limits() });
    let opened = Store::open_with(shared(&disk), Path::new(DIR), &job(), limits).unwrap();
    assert_eq!(opened.store.directory.affordable(first), 1 << 20);
    disk.set_faults(Faults::default());
    assert_eq!(opened.store.directory.affordable(first), first);
}

#[test]
fn short_writes_make_no_difference() {
    let disk = MemoryDisk::new(3);
    disk.set_faults(Faults { short_write: 9_000, ..Faults::default() });
    let mut running = Running::start(open(&disk).store).unwrap();
    let id = (0..20).map(|_| running.snapshot().unwrap()).last().unwrap();
    disk.crash();
    let mut opened = open(&disk);
    assert_eq!(opened.newest.as_ref().unwrap().id(), id);
    check_state(&mut opened.store, &opened.newest.unwrap());
}

#[test]
#[should_panic(expected = "commit of snapshot 1, the next is 2")]
fn an_id_that_does_not_rise_is_a_broken_promise() {
    let disk = MemoryDisk::new(3);
    let mut running = Running::start(open(&disk).store).unwrap();
    running.snapshot().unwrap();
    let manifest = running.manifest(SnapshotId(1), Vec::new());
    let _ = running.store.commit(&manifest);
}

#[test]
fn chunks_set_out_together_or_when_none_came_for_a_while() {
    let disk = MemoryDisk::new(1);
    let limits = StoreLimits { segment_bytes: 8 << 20, segment_bytes_max: 8 << 20, ..limits() };
    let opened = Store::open_with(shared(&disk), Path::new(DIR), &job(), limits).unwrap();
    let mut writer = opened.store.writer().unwrap();
    writer.begin(SnapshotId(1));
    writer.enter("count");
    let mut hand_over = || {
        let mut chunk = Chunk::default();
        chunk.push(0, 0, 7, &vec![7; CHUNK_BYTES]);
        while chunk.sum().is_some() {}
        writer.pages(3, &mut chunk);
        writer.with_disk()
    };
    assert_eq!([(); 5].map(|()| hand_over()), [0, 0, 0, 4, 4]);
    let mut looks = 0;
    while writer.is_waiting() {
        writer.poll();
        looks += 1;
        assert!(looks < 2 * LOOKS_MAX, "nobody is to wait for one that does not come");
    }
    assert!(looks >= LOOKS_MAX, "the last one waits for others");
}
