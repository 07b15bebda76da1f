//! Bits flipped, files cut, files gone: detected, explained, and survived where that is possible.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::state::PageEntry;

fn flip(disk: &MemoryDisk, name: &str, bit: u64) {
    let file = disk.open(&Path::new(DIR).join(name)).unwrap();
    let mut byte = [0];
    assert_eq!(file.read_at(&mut byte, bit / 8).unwrap(), 1);
    byte[0] ^= 1 << (bit % 8);
    file.write_all_at(&byte, bit / 8).unwrap();
}

fn names(disk: &MemoryDisk) -> Vec<String> {
    disk.list(Path::new(DIR)).unwrap()
}

/// The slot that holds a snapshot.
fn slot_of(disk: &MemoryDisk, id: SnapshotId) -> String {
    let infos = list(disk, Path::new(DIR)).unwrap();
    infos.into_iter().find(|info| info.snapshot == Some(id.0)).expect("it is there").file
}

/// Bytes of segments, by name, that some snapshot in the directory needs.
fn needed(disk: &MemoryDisk, store: &mut Store) -> Vec<(String, std::ops::Range<u64>)> {
    let mut ranges = Vec::new();
    for info in list(disk, Path::new(DIR)).unwrap() {
        let manifest = info.manifest.unwrap();
        let name = |segment: u32| format!("segment-{segment}");
        for (_, _, pages) in store.load(&manifest).unwrap().pages {
            ranges.extend(pages.iter().map(|page| {
                let from = page.place.offset;
                (name(page.place.segment.0), from..from + u64::from(page.bytes))
            }));
        }
        for part in &manifest.parts {
            let mut link = Some(index::Link::of(part, manifest.id()));
            while let Some(index) = link {
                ranges.push((name(index.segment), index.offset..index.offset + index.bytes));
                link = chain::before(disk, Path::new(DIR), manifest.id(), index).unwrap();
            }
        }
    }
    ranges
}

#[test]
fn every_flipped_bit_of_a_directory_is_detected_or_lies_where_nothing_is() {
    let (disk, newest) = after_snapshots(1, 3);
    let older = SnapshotId(newest.0 - 1);
    let needed = needed(&disk, &mut open(&disk).store);
    for name in names(&disk) {
        if name == "LOCK" {
            continue;
        }
        let length = disk.len(&Path::new(DIR).join(&name)).unwrap();
        let manifest = disk.read(&Path::new(DIR).join(&name)).unwrap();
        // Behind a manifest its slot has zeros.
        let used = 16 * (1 + manifest.iter().rposition(|byte| *byte != 0).unwrap_or(0) as u64 / 16);
        for byte in 0..length {
            let is_needed = match name.as_str() {
                segment if segment.starts_with("segment-") => {
                    needed.iter().any(|(name, range)| name == segment && range.contains(&byte))
                }
                _ => byte < used || !name.starts_with("manifest-"),
            };
            // Free space is much and alike, and so are pages: every bit of a few bytes stands for it.
            if byte % if is_needed { 7 } else { 497 } != 0 {
                continue;
            }
            for bit in byte * 8..byte * 8 + 8 {
                flip(&disk, &name, bit);
                let report = verify(&disk, Path::new(DIR)).unwrap();
                assert_eq!(report.is_whole(), !is_needed, "{name} bit {bit}");
                flip(&disk, &name, bit);
            }
        }
    }
    // What an open makes of it, by kind of file.
    let manifest = slot_of(&disk, newest);
    let part = show(&disk, Path::new(DIR), newest).unwrap().parts[0].clone();
    let used = disk.read(&Path::new(DIR).join(&manifest)).unwrap();
    let used = used.iter().rposition(|byte| *byte != 0).unwrap() as u64;
    for bit in (0..used * 8).step_by(3) {
        flip(&disk, &manifest, bit);
        check_fallback(&disk, older, &manifest);
        flip(&disk, &manifest, bit);
    }
    let segment = format!("segment-{}", part.segment);
    for bit in (part.offset * 8..(part.offset + part.bytes) * 8).step_by(3) {
        flip(&disk, &segment, bit);
        check_fallback(&disk, older, &segment);
        flip(&disk, &segment, bit);
    }
    let before = disk.read(&Path::new(DIR).join("JOB")).unwrap();
    for bit in 0..before.len() as u64 * 8 {
        flip(&disk, "JOB", bit);
        let opened = open(&disk);
        assert!(opened.warnings[0].contains("JOB is corrupt at byte"), "{:?}", opened.warnings);
        assert_eq!(opened.newest.unwrap().id(), newest);
        assert_eq!(disk.read(&Path::new(DIR).join("JOB")).unwrap(), before, "made anew");
    }
    let before = disk.read(&Path::new(DIR).join("GENERATION")).unwrap();
    for bit in 0..before.len() as u64 * 8 {
        flip(&disk, "GENERATION", bit);
        let opened = open(&disk);
        assert!(opened.warnings[0].contains("GENERATION"), "{:?}", opened.warnings);
        assert_eq!(opened.newest.unwrap().id(), newest);
        assert!(opened.store.generation() > 1 && opened.store.next_snapshot() > newest);
        drop(opened.store);
        disk.remove(&Path::new(DIR).join("GENERATION")).unwrap();
        let file = disk.create_new(&Path::new(DIR).join("GENERATION")).unwrap();
        file.write_all_at(&before, 0).unwrap();
    }
}

/// A damaged JOB was an error without a way out, though every manifest says whose the directory is.
#[test]
fn whose_a_directory_is_the_manifests_say_too() {
    let (disk, newest) = after_snapshots(1, 2);
    disk.remove(&Path::new(DIR).join("JOB")).unwrap();
    let other = JobIdentity { name: "other".into(), fingerprint: String::new() };
    let opened = Store::open_with(shared(&disk), Path::new(DIR), &other, limits());
    let error = opened.err().expect("refused");
    assert!(matches!(error, Error::OtherJob { .. }), "{error}");
    assert!(!names(&disk).contains(&"JOB".into()), "nothing is written for another job");
    // Where records are set aside is no foreign directory.
    disk.create_dir_all(&Path::new(DIR).join("spill")).unwrap();
    let opened = open(&disk);
    assert!(opened.warnings[0].contains("manifest of snapshot"), "{:?}", opened.warnings);
    assert_eq!(opened.newest.unwrap().id(), newest);
    drop(opened.store);
    assert!(open(&disk).warnings.is_empty());

    flip(&disk, "JOB", 400);
    for name in names(&disk).iter().filter(|name| name.starts_with("manifest-")) {
        flip(&disk, name, 400);
    }
    let error = try_open(&shared(&disk), Path::new(DIR)).err().expect("refused");
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    assert!(
        error.to_string().contains("JOB") && error.to_string().contains("start over"),
        "{error}"
    );
}

/// After a sync that failed a slot read as it was written, until a crash brought back what was there
/// before: a snapshot that had been put aside, or the one before the newest.
#[test]
fn what_an_open_finds_is_what_the_next_one_finds_though_the_power_fails_in_between() {
    for seed in 0..40 {
        let (disk, newest) = after_snapshots(seed, 3);
        let path = Path::new(DIR).join(slot_of(&disk, newest));
        let whole = disk.read(&path).unwrap();
        let write = |bytes: &[u8]| disk.open(&path).unwrap().write_all_at(bytes, 0).unwrap();
        write(&vec![0; whole.len()]);
        assert_eq!(open(&disk).newest.unwrap().id().0, newest.0 - 1);
        disk.crash();
        let opened = open(&disk);
        assert_eq!(opened.newest.unwrap().id().0, newest.0 - 1, "seed {seed}");
        let [warning] = &opened.warnings[..] else { panic!("seed {seed}: {:?}", opened.warnings) };
        assert!(warning.contains("is empty"), "seed {seed}: {warning}");
        drop(opened.store);
        write(&whole);
        assert_eq!(open(&disk).newest.unwrap().id(), newest);
        disk.crash();
        assert_eq!(open(&disk).newest.unwrap().id(), newest, "seed {seed}");
    }
}

fn check_fallback(disk: &MemoryDisk, expected: SnapshotId, file: &str) {
    let mut opened = open(disk);
    let warning = opened.warnings.first().expect("it is said");
    assert!(warning.contains(file) && warning.contains("corrupt at byte"), "{warning}");
    let newest = opened.newest.unwrap();
    assert_eq!(newest.id(), expected);
    check_state(&mut opened.store, &newest);
}

/// Each frame and all of them are under checksums; only their number is not what the manifest says.
#[test]
fn a_part_of_another_number_of_frames_is_fallen_back_from() {
    let disk = MemoryDisk::new(1);
    let mut running = Running::start(open(&disk).store).unwrap();
    running.snapshots(2);
    let older = running.store.slots.newest().unwrap();
    let id = running.store.next_snapshot();
    let mut parts = running.write(id).unwrap();
    parts[1].frames += 1;
    running.store.commit(&running.manifest(id, parts)).unwrap();
    drop(running);
    check_fallback(&disk, older, "were written");
}

#[test]
fn a_torn_newest_manifest_falls_back_with_a_message_and_is_kept_as_evidence() {
    let (disk, newest) = after_snapshots(1, 3);
    let name = slot_of(&disk, newest);
    let path = Path::new(DIR).join(&name);
    let length = disk.len(&path).unwrap();
    for kept in [0, 1, 47, 48, 300] {
        let (disk, _) = after_snapshots(1, 3);
        let file = disk.open(&path).unwrap();
        file.set_len(kept).unwrap();
        file.set_len(length).unwrap();
        if kept == 0 {
            file.write_all_at(b"not a manifest", 0).unwrap();
        }
        let torn = disk.read(&path).unwrap();
        check_fallback(&disk, SnapshotId(newest.0 - 1), &name);
        let mut opened = open(&disk);
        assert!(opened.fell_back);
        opened.store.put_aside(&opened.skipped).unwrap();
        let aside = names(&disk).into_iter().find(|name| name.ends_with(".passed-over")).unwrap();
        let mut running = Running::start(opened.store).unwrap();
        running.snapshots(6);
        drop(running);
        assert_eq!(disk.read(&Path::new(DIR).join(aside)).unwrap(), torn, "evidence stays");
        let opened = open(&disk);
        assert_eq!(opened.warnings, Vec::<String>::new(), "it is told once");
        assert!(opened.newest.unwrap().id() > newest);
    }
}

#[test]
fn until_it_was_put_aside_a_slot_that_cannot_be_read_is_not_overwritten() {
    let (disk, newest) = after_snapshots(1, 3);
    let name = slot_of(&disk, newest);
    flip(&disk, &name, 400);
    let before = disk.read(&Path::new(DIR).join(&name)).unwrap();
    let segments = |disk| names(disk).iter().filter(|name| name.starts_with("segment-")).count();
    let count = segments(&disk);
    let mut running = Running::start(open(&disk).store).unwrap();
    running.snapshots(6);
    assert_eq!(disk.read(&Path::new(DIR).join(&name)).unwrap(), before);
    assert!(segments(&disk) >= count, "nor is what it may have named deleted");
}

#[test]
fn a_missing_segment_falls_back_and_without_any_whole_snapshot_the_open_is_refused() {
    let disk = MemoryDisk::new(1);
    let mut running = Running::start(open(&disk).store).unwrap();
    running.snapshots(2);
    let old: Vec<String> = names(&disk);
    running.writers = vec![running.store.writer().unwrap(), running.store.writer().unwrap()];
    running.books.iter_mut().for_each(Book::forget);
    let newest = running.snapshot().unwrap();
    let part = show(&disk, Path::new(DIR), newest).unwrap().parts[0].clone();
    let segment = format!("segment-{}", part.segment);
    assert!(!old.contains(&segment), "a new writer has segments of its own");
    drop(running);
    disk.remove(&Path::new(DIR).join(&segment)).unwrap();
    assert_eq!(open(&disk).newest.unwrap().id().0, newest.0 - 1);
    for name in names(&disk).iter().filter(|name| name.starts_with("segment-")) {
        disk.remove(&Path::new(DIR).join(name)).unwrap();
    }
    let error = try_open(&shared(&disk), Path::new(DIR)).err().expect("refused");
    let Error::NothingToRestore { reason, .. } = &error else { panic!("{error}") };
    assert!(
        reason.contains("snapshot 3 cannot") && reason.contains("snapshot 2 cannot"),
        "{reason}"
    );
    assert!(!error.is_retryable());
}

fn zero(disk: &MemoryDisk, name: &str) {
    let path = Path::new(DIR).join(name);
    let zeros = vec![0; disk.len(&path).unwrap() as usize];
    disk.open(&path).unwrap().write_all_at(&zeros, 0).unwrap();
}

/// Zeros are what a commit leaves that is taken back, so those of a lost block were taken for that; and a
/// directory that had only such manifests for a new one.
#[test]
fn a_manifest_of_zeros_is_mentioned_and_where_all_are_the_open_is_refused() {
    let (disk, newest) = after_snapshots(1, 4);
    zero(&disk, &slot_of(&disk, newest));
    let opened = open(&disk);
    assert_eq!(opened.newest.unwrap().id().0, newest.0 - 1);
    assert!(opened.warnings.iter().any(|w| w.contains("is empty")), "{:?}", opened.warnings);
    drop(opened.store);
    for name in names(&disk).iter().filter(|name| name.starts_with("manifest-")) {
        zero(&disk, name);
    }
    assert!(!verify(&disk, Path::new(DIR)).unwrap().is_whole());
    let error = try_open(&shared(&disk), Path::new(DIR)).err().expect("refused");
    assert!(matches!(error, Error::NothingToRestore { .. }), "{error}");
    assert!(error.to_string().contains("is empty"), "{error}");
}

/// A link in the middle of the chain is damaged: what is newer cannot be restored, what is older can.
#[test]
fn a_missing_link_falls_back_behind_it() {
    let disk = MemoryDisk::new(1);
    let mut running = Running::start(open(&disk).store).unwrap();
    running.snapshots(2);
    let older = running.store.slots.newest().unwrap();
    let (mut writers, id) = (std::mem::take(&mut running.writers), SnapshotId(older.0 + 1));
    // An index that is in no manifest, and one that goes on from it.
    let mut lost_link = None;
    for id in [id, id.next()] {
        let parts: Vec<PartRef> = writers
            .iter_mut()
            .zip(&mut running.books)
            .enumerate()
            .map(|(worker, (writer, book))| {
                writer.begin(id);
                append_state(writer, id, worker);
                book.change(id.0 as u32 % 4, &state(id, worker));
                book.write(writer);
                writer.finish().unwrap();
                wait(writer).remove(0).result.unwrap()
            })
            .collect();
        match &lost_link {
            None => lost_link = Some(parts[0].clone()),
            Some(_) => running.store.commit(&running.manifest(id, parts)).unwrap(),
        }
    }
    let lost = lost_link.unwrap();
    let (segment, bit) = (format!("segment-{}", lost.segment), lost.offset * 8 + 1000);
    drop((running, writers));
    assert_eq!(open(&disk).newest.unwrap().id(), id.next());
    flip(&disk, &segment, bit);
    check_fallback(&disk, older, &segment);
}

#[test]
fn a_damaged_page_is_found_when_pages_are_verified_and_then_fallen_back_from() {
    let (disk, newest) = after_snapshots(1, 3);
    let mut opened = open(&disk);
    let loaded = opened.store.load(opened.newest.as_ref().unwrap()).unwrap();
    let is_newest = |page: &&PageEntry| book::text(&*loaded.source, page) == state(newest, 0);
    let page = *loaded.pages[0].2.iter().find(is_newest).unwrap();
    drop(opened);
    let segment = format!("segment-{}", page.place.segment.0);
    flip(&disk, &segment, page.place.offset * 8 + 5);
    let opened = open(&disk);
    assert_eq!(opened.newest.unwrap().id(), newest, "an open does not read pages");
    drop(opened.store);
    let limits = StoreLimits { verify_pages: true, ..limits() };
    let opened = Store::open_with(shared(&disk), Path::new(DIR), &job(), limits).unwrap();
    assert!(opened.warnings[0].contains(&segment), "{:?}", opened.warnings);
    assert_eq!(opened.newest.unwrap().id().0, newest.0 - 1);
    assert!(!verify(&disk, Path::new(DIR)).unwrap().is_whole());
}

#[test]
fn a_newer_format_is_refused_not_fallen_back_from() {
    let (disk, newest) = after_snapshots(1, 2);
    let path = Path::new(DIR).join(slot_of(&disk, newest));
    let mut bytes = disk.read(&path).unwrap();
    bytes[12] = 9;
    let payload = u64::from_le_bytes(bytes[24..32].try_into().unwrap()).next_multiple_of(16);
    let end = 48 + payload as usize;
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..44]), &bytes[48..end]);
    bytes[44..48].copy_from_slice(&checksum.to_le_bytes());
    disk.open(&path).unwrap().write_all_at(&bytes, 0).unwrap();
    let error = try_open(&shared(&disk), Path::new(DIR)).err().expect("refused");
    assert!(matches!(error, Error::Newer { found: 9, supported: 3, .. }), "{error}");
}

#[test]
fn an_unreadable_newest_snapshot_falls_back_but_a_refusal_of_the_system_does_not() {
    let (disk, _) = after_snapshots(1, 2);
    disk.set_faults(Faults { read_error: 10_000, ..Faults::default() });
    let error = try_open(&shared(&disk), Path::new(DIR)).err().expect("refused");
    assert!(matches!(error, Error::Io { .. }), "JOB cannot be read: {error}");
    disk.set_faults(Faults { power_lost_after: Some(0), ..Faults::default() });
    assert!(try_open(&shared(&disk), Path::new(DIR)).is_err());
    disk.set_faults(Faults::default());
    assert!(open(&disk).warnings.is_empty());
}

#[test]
fn a_directory_that_a_job_has_just_begun_is_whole() {
    let disk = MemoryDisk::new(1);
    drop(open(&disk));
    for (removed, is_whole) in [("GENERATION", true), ("JOB", false)] {
        disk.remove(&Path::new(DIR).join(removed)).unwrap();
        match verify(&disk, Path::new(DIR)) {
            Ok(report) => {
                assert_eq!((report.is_whole(), report.generation), (is_whole, None), "{report:?}");
            }
            Err(error) => assert!(!is_whole && error.to_string().contains("neither"), "{error}"),
        }
    }
    let (disk, _) = after_snapshots(1, 1);
    disk.remove(&Path::new(DIR).join("GENERATION")).unwrap();
    let report = verify(&disk, Path::new(DIR)).unwrap();
    assert!(!report.is_whole() && report.problems[0].contains("GENERATION"), "{report:?}");
}

/// It was taken for damaged when all of its snapshots were overwritten while they were read.
#[test]
fn a_job_that_runs_is_whole_whenever_it_is_verified() {
    let disk = MemoryDisk::new(1);
    let mut running = Running::start(open(&disk).store).unwrap();
    running.snapshots(4);
    let (looks_at, is_over) = (disk.clone(), &AtomicBool::new(false));
    let overwritten = &AtomicU64::new(0);
    std::thread::scope(|scope| {
        let looker = scope.spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                let report = verify(&looks_at, Path::new(DIR)).unwrap();
                assert!(report.is_whole(), "{report:?}");
                overwritten.fetch_add(report.overwritten, Ordering::Relaxed);
            }
        });
        for _ in 0..100_000 {
            running.snapshot().unwrap();
            if overwritten.load(Ordering::Relaxed) > 50 || looker.is_finished() {
                break;
            }
        }
        is_over.store(true, Ordering::Relaxed);
        looker.join().expect("whole");
    });
    assert!(overwritten.load(Ordering::Relaxed) > 50, "nothing was seen while it was overwritten");
}
