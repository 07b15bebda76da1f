//! Directories that are not what they should be, and directories that others have.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

fn refusal(dir: &Path) -> Error {
    let disk: Arc<dyn Disk> = Arc::new(ThreadDisk::new());
    try_open(&disk, dir).err().unwrap_or_else(|| panic!("{} was opened", dir.display()))
}

#[test]
fn the_second_process_is_told_who_has_the_directory_and_reading_needs_no_lock() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(ThreadDisk::new());
    let first = try_open(&disk, dir.path()).unwrap();
    let error = refusal(dir.path());
    assert!(matches!(error, Error::Locked { pid: Some(pid), .. } if pid == std::process::id()));
    assert!(verify(&*disk, dir.path()).unwrap().is_whole());
    drop(first);
    assert!(try_open(&disk, dir.path()).is_ok());
}

#[test]
fn another_job_is_told_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(ThreadDisk::new());
    drop(try_open(&disk, dir.path()).unwrap());
    let difference = |job: JobIdentity| match Store::open(disk.clone(), dir.path(), &job, 2) {
        Err(Error::OtherJob { difference, .. }) => difference,
        _ => panic!("another job was let in"),
    };
    let other = JobIdentity { name: "sum".into(), ..job() };
    assert_eq!(difference(other), "job 'count', not 'sum'");
    let other = JobIdentity { fingerprint: "source\nsum\nsink".into(), ..job() };
    assert_eq!(difference(other), "it was made of other operators: with count, now with sum");
    let other = JobIdentity { fingerprint: "source\ncount".into(), ..job() };
    let expected = "it was made of other operators: with sink, now with nothing";
    assert_eq!(difference(other), expected);
    let given = |text: &str| JobIdentity { fingerprint: text.into(), ..job() };
    for (old, new, expected) in [
        ("parameter --limit: 7", "parameter --limit: none", "--limit was 7, and now is none"),
        (
            "operator 'words': source a file of 8 bytes",
            "operator 'words': source a file of 9 bytes",
            "its input 'words' was a file of 8 bytes, and now is a file of 9 bytes",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        drop(Store::open(disk.clone(), dir.path(), &given(old), 2).unwrap());
        let error = Store::open(disk.clone(), dir.path(), &given(new), 2).err().unwrap();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn a_file_and_a_foreign_directory_are_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "precious").unwrap();
    assert!(matches!(refusal(&file), Error::Directory { .. }));
    assert!(matches!(refusal(&file.join("below")), Error::Directory { .. }));
    let error = refusal(dir.path());
    assert!(error.to_string().contains("'file'"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was written");
}

#[test]
fn foreign_files_in_a_directory_of_ours_are_left_alone() {
    let (disk, _) = after_snapshots(1, 2);
    disk.create_new(&Path::new(DIR).join("notes.txt")).unwrap();
    let mut running = Running::start(open(&disk).store).unwrap();
    running.snapshots(5);
    assert!(disk.list(Path::new(DIR)).unwrap().contains(&"notes.txt".to_owned()));
}

#[test]
fn a_directory_that_may_not_be_written_is_refused_with_a_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let closed = dir.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(closed.join("probe"), "").is_ok() {
        eprintln!("not tested: this user may write everywhere");
        return;
    }
    let error = refusal(&closed).to_string();
    assert!(error.contains("name another snapshot directory"), "{error}");
}

#[test]
fn a_full_disk_at_the_start_is_refused_with_a_way_out() {
    let disk = MemoryDisk::new(1);
    disk.set_faults(Faults { capacity_bytes: Some(600), ..Faults::default() });
    let error =
        try_open(&shared(&disk), Path::new(DIR)).and_then(|opened| opened.store.writer().map(drop));
    assert!(error.unwrap_err().to_string().contains("make room"));
}

#[test]
fn a_process_whose_lock_file_was_deleted_cannot_commit_over_its_successor() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(ThreadDisk::new());
    let mut stale = Running::start(try_open(&disk, dir.path()).unwrap().store).unwrap();
    stale.snapshot().unwrap();
    fs::remove_file(dir.path().join("LOCK")).unwrap();
    let mut successor = Running::start(try_open(&disk, dir.path()).unwrap().store).unwrap();
    let error = stale.snapshot().unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    let id = successor.snapshot().unwrap();
    drop((stale, successor));
    assert_eq!(try_open(&disk, dir.path()).unwrap().newest.unwrap().id(), id);
}

/// Both had begun with the same numbers, so the one whose directory was deleted wrote its manifests over
/// those of the one that had made a new directory in its place.
#[test]
fn a_process_whose_directory_was_deleted_cannot_commit_into_one_made_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("s");
    let disk: Arc<dyn Disk> = Arc::new(ThreadDisk::new());
    let mut stale = Running::start(try_open(&disk, &place).unwrap().store).unwrap();
    for _ in 0..6 {
        stale.snapshot().unwrap();
    }
    fs::remove_dir_all(&place).unwrap();
    let error = stale.snapshot().unwrap_err();
    assert!(matches!(error, Error::Directory { .. }), "{error}");
    let mut successor = Running::start(try_open(&disk, &place).unwrap().store).unwrap();
    let mut id = successor.snapshot().unwrap();
    for _ in 0..6 {
        let error = stale.snapshot().unwrap_err();
        assert!(matches!(error, Error::Locked { .. }), "{error}");
        id = successor.snapshot().unwrap();
    }
    // Names that the successor has are refused, and its files stay: the last line restores from them.
    stale.store.directory.next_segment.store(0, std::sync::atomic::Ordering::Relaxed);
    for _ in 0..20 {
        drop(stale.store.directory.create_segment(4096));
    }
    drop((stale, successor));
    assert_eq!(try_open(&disk, &place).unwrap().newest.unwrap().id(), id);
}
