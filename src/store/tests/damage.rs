//! Bits flipped, files cut, files gone: detected, explained, and survived where that is possible.

use super::*;

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

/// The bytes of a segment that some manifest names.
fn is_named(infos: &[SnapshotInfo], name: &str, byte: u64) -> Vec<u64> {
    let names = |part: &&PartRef| {
        part.file == name && (part.offset..part.offset + part.bytes).contains(&byte)
    };
    let naming = infos.iter().filter(|info| {
        info.manifest.as_ref().is_some_and(|manifest| manifest.parts.iter().any(|p| names(&p)))
    });
    naming.map(|info| info.snapshot).collect()
}

#[test]
fn every_flipped_bit_of_a_directory_is_detected_or_lies_where_nothing_is() {
    let (disk, newest) = after_snapshots(1, 3);
    let infos = list(&disk, Path::new(DIR)).unwrap();
    let older = SnapshotId(infos[infos.len() - 2].snapshot);
    for name in names(&disk) {
        if name == "LOCK" {
            continue;
        }
        let length = disk.len(&Path::new(DIR).join(&name)).unwrap();
        let is_part = name.ends_with(".part");
        for byte in 0..length {
            let named = if is_part { is_named(&infos, &name, byte) } else { vec![0] };
            // Free space is many and alike: every bit of every 97th byte stands for it.
            if named.is_empty() && byte % 97 != 0 {
                continue;
            }
            for bit in byte * 8..byte * 8 + 8 {
                flip(&disk, &name, bit);
                let report = verify(&disk, Path::new(DIR)).unwrap();
                assert_eq!(report.is_whole(), named.is_empty(), "{name} bit {bit}");
                flip(&disk, &name, bit);
            }
        }
    }
    // What an open makes of it, by kind of file.
    let manifest = format!("snapshot-{newest:0>20}.manifest", newest = newest.0);
    let part = infos.last().unwrap().manifest.as_ref().unwrap().parts[0].clone();
    for bit in 0..disk.len(&Path::new(DIR).join(&manifest)).unwrap() * 8 {
        flip(&disk, &manifest, bit);
        check_fallback(&disk, older, &manifest);
        flip(&disk, &manifest, bit);
    }
    for bit in part.offset * 8..(part.offset + part.bytes) * 8 {
        flip(&disk, &part.file, bit);
        check_fallback(&disk, older, &part.file);
        flip(&disk, &part.file, bit);
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
    let opened = open(&disk);
    assert!(opened.warnings[0].contains("manifest of snapshot"), "{:?}", opened.warnings);
    assert_eq!(opened.newest.unwrap().id(), newest);
    drop(opened.store);
    assert!(open(&disk).warnings.is_empty());

    flip(&disk, "JOB", 400);
    for name in names(&disk).iter().filter(|name| name.ends_with(".manifest")) {
        flip(&disk, name, 400);
    }
    let error = try_open(&shared(&disk), Path::new(DIR)).err().expect("refused");
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    assert!(
        error.to_string().contains("JOB") && error.to_string().contains("start over"),
        "{error}"
    );
}

fn check_fallback(disk: &MemoryDisk, expected: SnapshotId, file: &str) {
    let opened = open(disk);
    let warning = opened.warnings.first().expect("it is said");
    assert!(warning.contains(file) && warning.contains("corrupt at byte"), "{warning}");
    let newest = opened.newest.unwrap();
    assert_eq!(newest.id(), expected);
    check_state(&opened.store, &newest);
}

#[test]
fn a_torn_newest_manifest_falls_back_with_a_message_and_stays_as_evidence() {
    let (disk, newest) = after_snapshots(1, 3);
    let name = format!("snapshot-{:020}.manifest", newest.0);
    let path = Path::new(DIR).join(&name);
    let length = disk.len(&path).unwrap();
    for kept in [0, 1, 47, 48, length / 2, length - 1] {
        let (disk, _) = after_snapshots(1, 3);
        disk.open(&path).unwrap().set_len(kept).unwrap();
        check_fallback(&disk, SnapshotId(newest.0 - 1), &name);
        let parts = names(&disk).iter().filter(|name| name.ends_with(".part")).count();
        let mut running = Running::start(open(&disk).store).unwrap();
        running.snapshots(6);
        assert!(names(&disk).contains(&name), "what is damaged is not deleted");
        let now = names(&disk).iter().filter(|name| name.ends_with(".part")).count();
        assert!(now >= parts, "nor is what it may have named");
        drop(running);
        let opened = open(&disk);
        assert!(opened.warnings[0].contains("older snapshot"), "{:?}", opened.warnings);
        assert!(opened.newest.unwrap().id() > newest);
    }
}

#[test]
fn a_missing_segment_falls_back_and_without_any_whole_snapshot_the_open_is_refused() {
    let (disk, newest) = after_snapshots(1, 3);
    let of = |id: SnapshotId| show(&disk, Path::new(DIR), id).unwrap().parts[0].file.clone();
    let (older, newer) = (of(SnapshotId(newest.0 - 1)), of(newest));
    assert_ne!(older, newer, "two parts fill a segment");
    disk.remove(&Path::new(DIR).join(&newer)).unwrap();
    assert_eq!(open(&disk).newest.unwrap().id().0, newest.0 - 1);
    disk.remove(&Path::new(DIR).join(&older)).unwrap();
    let error = try_open(&shared(&disk), Path::new(DIR)).err().expect("refused");
    let Error::NothingToRestore { reason, .. } = &error else { panic!("{error}") };
    assert!(
        reason.contains("snapshot 3 cannot") && reason.contains("snapshot 2 cannot"),
        "{reason}"
    );
    assert!(!error.is_retryable());
}

#[test]
fn a_newer_format_is_refused_not_fallen_back_from() {
    let (disk, newest) = after_snapshots(1, 2);
    let path = Path::new(DIR).join(format!("snapshot-{:020}.manifest", newest.0));
    let mut bytes = disk.read(&path).unwrap();
    bytes[12] = 9;
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..44]), &bytes[48..]);
    bytes[44..48].copy_from_slice(&checksum.to_le_bytes());
    disk.open(&path).unwrap().write_all_at(&bytes, 0).unwrap();
    let error = try_open(&shared(&disk), Path::new(DIR)).err().expect("refused");
    assert!(matches!(error, Error::Newer { found: 9, supported: 1, .. }), "{error}");
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
fn a_manifest_that_names_a_file_elsewhere_is_corrupt() {
    let disk = MemoryDisk::new(1);
    let mut running = Running::start(open(&disk).store).unwrap();
    let mut parts = running.write(SnapshotId(1)).unwrap();
    parts[0].file = "../../etc/passwd".into();
    let manifest = running.manifest(SnapshotId(1), parts);
    assert!(matches!(running.store.load(&manifest), Err(Error::Corrupt { .. })));
}
