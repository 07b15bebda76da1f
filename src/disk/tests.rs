//! The same behaviour asked of every disk, then what only the disk in memory can show.

use std::io::{ErrorKind, IoSliceMut};
use std::path::PathBuf;

use rustix::io::Errno;

use super::*;

/// Runs a test on every disk, each with an empty directory.
fn on_every_disk(test: impl Fn(&dyn Disk, &Path)) {
    let system = tempfile::tempdir().unwrap();
    let thread = system.path().join("thread");
    let ring = system.path().join("ring");
    ThreadDisk::new().create_dir_all(&thread).unwrap();
    test(&ThreadDisk::new(), &thread);
    if let Err(reason) = uring::probe() {
        eprintln!("io_uring is not tested: {reason}");
    } else {
        UringDisk::new().create_dir_all(&ring).unwrap();
        test(&UringDisk::new(), &ring);
    }
    for seed in 0..20 {
        let disk = MemoryDisk::new(seed);
        let dir = PathBuf::from("/memory");
        disk.create_dir_all(&dir).unwrap();
        test(&disk, &dir);
    }
}

/// Polls until nothing is in flight.
fn drain(queue: &mut dyn DiskQueue) -> Vec<Completion> {
    let mut completions = Vec::new();
    while queue.in_flight() > 0 {
        queue.poll(&mut completions);
        std::thread::yield_now();
    }
    completions
}

#[test]
fn what_a_queue_wrote_it_reads_back_and_every_buffer_returns() {
    on_every_disk(|disk, dir| {
        let file = disk.create_new(&dir.join("a")).unwrap();
        let mut queue = disk.queue(3).unwrap();
        let mut tickets = Vec::new();
        for i in 0..3_u8 {
            let (buffer, offset) = (vec![i + 1; 100_000].into(), u64::from(i) * 100_000);
            let file = file.clone();
            let write = Operation::Write { file, offset, buffer, sync: i != 1 };
            tickets.push(queue.submit(write).unwrap());
        }
        let refused = queue.submit(Operation::Sync { file: file.clone() });
        assert!(matches!(refused, Err(Operation::Sync { .. })), "a full queue hands it back");
        let mut done = drain(&mut *queue);
        done.sort_unstable_by_key(|completion| completion.ticket);
        assert_eq!(done.iter().map(|d| d.ticket).collect::<Vec<_>>(), tickets);
        for (i, completion) in done.into_iter().enumerate() {
            assert_eq!(completion.result.unwrap(), 100_000);
            assert_eq!(*completion.buffer, vec![i as u8 + 1; 100_000]);
        }
        let buffer = vec![0; 150_000].into();
        queue.submit(Operation::Read { file: file.clone(), offset: 200_000, buffer }).unwrap();
        let read = drain(&mut *queue).remove(0);
        assert_eq!(read.result.unwrap(), 100_000, "cut at the end of the file");
        assert_eq!(*read.buffer, vec![3; 100_000]);
        queue.submit(Operation::Sync { file }).unwrap();
        assert_eq!(drain(&mut *queue).remove(0).result.unwrap(), 0);
    });
}

#[test]
fn operations_that_start_together_are_each_done_and_told() {
    on_every_disk(|disk, dir| {
        let file = disk.create_new(&dir.join("a")).unwrap();
        let mut queue = disk.queue(5).unwrap();
        let write = |i: u8| {
            let (buffer, offset) = (vec![i + 1; 9_000].into(), u64::from(i) * 9_000);
            Operation::Write { file: file.clone(), offset, buffer, sync: i.is_multiple_of(2) }
        };
        let mut tickets = queue.submit_all((0..4).map(write).collect());
        tickets.push(queue.submit(write(4)).unwrap());
        let mut done = drain(&mut *queue);
        done.sort_unstable_by_key(|completion| completion.ticket);
        assert_eq!(done.iter().map(|d| d.ticket).collect::<Vec<_>>(), tickets);
        assert!(done.iter().all(|done| matches!(done.result, Ok(9_000))));
        let mut bytes = vec![0; 45_000];
        assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
        assert!(bytes.iter().enumerate().all(|(at, byte)| *byte as usize == at / 9_000 + 1));
        assert_eq!(queue.submit_all(Vec::new()), []);
    });
}

#[test]
fn operations_without_bytes_complete() {
    on_every_disk(|disk, dir| {
        let file = disk.create_new(&dir.join("a")).unwrap();
        let mut queue = disk.queue(2).unwrap();
        let write =
            Operation::Write { file: file.clone(), offset: 0, buffer: vec![].into(), sync: true };
        queue.submit(write).unwrap();
        queue.submit(Operation::Read { file, offset: 9, buffer: vec![].into() }).unwrap();
        assert!(drain(&mut *queue).iter().all(|done| matches!(done.result, Ok(0))));
    });
}

#[test]
fn an_operation_that_fails_says_so_and_hands_its_buffer_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    ThreadDisk::new().create_new(&path).unwrap();
    let memory = MemoryDisk::new(1);
    memory.create_dir_all(dir.path()).unwrap();
    memory.create_new(&path).unwrap();
    memory.set_faults(Faults { write_error: 10_000, ..Faults::default() });
    for disk in [&ThreadDisk::new() as &dyn Disk, &UringDisk::new(), &memory] {
        let Ok(mut queue) = disk.queue(1) else { continue };
        // A file of the system opened to read refuses the write; the disk in memory is told to.
        let file = disk.open_read(&path).unwrap();
        queue
            .submit(Operation::Write { file, offset: 0, buffer: vec![7; 9].into(), sync: true })
            .unwrap();
        let done = drain(&mut *queue).remove(0);
        assert!(done.result.is_err());
        assert_eq!(*done.buffer, [7; 9]);
    }
}

#[test]
fn a_full_device_is_an_error_also_with_a_sync_behind_it() {
    for disk in [&ThreadDisk::new() as &dyn Disk, &UringDisk::new()] {
        let Ok(mut queue) = disk.queue(1) else { continue };
        let file = disk.open(Path::new("/dev/full")).unwrap();
        let write = Operation::Write { file, offset: 0, buffer: vec![1; 10].into(), sync: true };
        queue.submit(write).unwrap();
        let error = drain(&mut *queue).remove(0).result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    }
}

#[test]
fn a_dropped_queue_of_the_system_finishes_what_it_accepted() {
    let dir = tempfile::tempdir().unwrap();
    for (name, disk) in [("t", &ThreadDisk::new() as &dyn Disk), ("u", &UringDisk::new())] {
        let Ok(mut queue) = disk.queue(8) else { continue };
        let path = dir.path().join(name);
        let file = disk.create_new(&path).unwrap();
        for i in 0..8_u64 {
            let (file, buffer) = (file.clone(), vec![i as u8; 1 << 20].into());
            queue.submit(Operation::Write { file, offset: i << 20, buffer, sync: true }).unwrap();
        }
        drop(queue);
        let bytes = disk.read(&path).unwrap();
        assert_eq!(bytes.len(), 8 << 20);
        assert!(
            bytes.chunks(1 << 20).enumerate().all(|(i, chunk)| chunk == vec![i as u8; 1 << 20])
        );
    }
}

#[test]
fn the_control_plane_behaves_the_same_everywhere() {
    on_every_disk(|disk, dir| {
        let (a, b) = (dir.join("a"), dir.join("b"));
        assert_eq!(disk.open(&a).unwrap_err().kind(), ErrorKind::NotFound);
        let file = disk.create_new(&b).unwrap();
        assert_eq!(disk.create_new(&b).unwrap_err().kind(), ErrorKind::AlreadyExists);
        file.write_all_at(b"hello", 3).unwrap();
        file.sync_data().unwrap();
        assert_eq!(disk.read(&b).unwrap(), b"\0\0\0hello");
        file.preallocate(5000).unwrap();
        assert_eq!(disk.len(&b).unwrap(), 5000);
        file.set_len(4).unwrap();
        file.set_len(6).unwrap();
        assert_eq!(disk.read(&b).unwrap(), b"\0\0\0h\0\0");
        disk.create_new(&a).unwrap();
        assert_eq!(disk.list(dir).unwrap(), ["a", "b"]);
        disk.rename(&b, &a).unwrap();
        assert_eq!(disk.list(dir).unwrap(), ["a"]);
        disk.sync_dir(dir).unwrap();
        assert!(disk.free_bytes(dir).unwrap() > 0);
        assert_eq!(disk.create_dir_all(&a).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(disk.create_dir_all(&a.join("x")).unwrap_err().kind(), ErrorKind::NotADirectory);
        disk.remove(&a).unwrap();
        assert_eq!(disk.remove(&a).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(file.read_at(&mut [0; 8], 0).unwrap(), 6, "an open file outlives its name");
    });
}

#[test]
fn a_rename_to_a_new_name_replaces_nothing() {
    on_every_disk(|disk, dir| {
        let [a, b, c] = ["a", "b", "c"].map(|name| dir.join(name));
        disk.create_new(&a).unwrap().write_all_at(b"a", 0).unwrap();
        disk.create_new(&b).unwrap().write_all_at(b"b", 0).unwrap();
        assert_eq!(disk.rename_new(&a, &b).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!((disk.read(&a).unwrap(), disk.read(&b).unwrap()), (b"a".into(), b"b".into()));
        assert_eq!(disk.rename_new(&c, &c).unwrap_err().kind(), ErrorKind::NotFound);
        disk.rename_new(&a, &c).unwrap();
        assert_eq!(
            (disk.list(dir).unwrap(), disk.read(&c).unwrap()),
            (["b", "c"].map(String::from).into(), b"a".into())
        );
    });
}

#[test]
fn a_lock_is_held_by_one_and_says_by_whom() {
    on_every_disk(|disk, dir| {
        let path = dir.join("LOCK");
        let lock = disk.lock(&path).unwrap().expect("free");
        assert!(disk.lock(&path).unwrap().is_none());
        let pid = String::from_utf8(disk.read(&path).unwrap()).unwrap();
        assert_eq!(pid.trim(), std::process::id().to_string());
        drop(lock);
        assert!(disk.lock(&path).unwrap().is_some());
    });
}

#[test]
fn the_best_disk_works() {
    let (disk, reason) = best_disk();
    eprintln!("io_uring: {}", reason.as_deref().unwrap_or("used"));
    assert!(disk.queue(1).is_ok());
}

/// A disk in memory with a directory and a synced file in it.
fn memory(seed: u64) -> (MemoryDisk, PathBuf, FileHandle) {
    let disk = MemoryDisk::new(seed);
    let path = PathBuf::from("/m/file");
    disk.create_dir_all(Path::new("/m")).unwrap();
    let file = disk.create_new(&path).unwrap();
    file.write_all_at(&[1; 4096], 0).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir(Path::new("/m")).unwrap();
    (disk, path, file)
}

#[test]
fn a_crash_keeps_what_was_synced_and_may_tear_the_rest_by_sectors() {
    let mut outcomes = std::collections::BTreeSet::new();
    for seed in 0..64 {
        let (disk, path, file) = memory(seed);
        file.write_all_at(&[2; 4096], 0).unwrap();
        disk.crash();
        assert!(file.write_all_at(&[3], 0).is_err(), "a handle of before the crash is dead");
        let bytes = disk.read(&path).unwrap();
        assert_eq!(bytes.len(), 4096);
        let sectors = bytes.chunks(512).map(|sector| {
            assert!(sector == [1; 512] || sector == [2; 512], "a sector is whole");
            sector[0]
        });
        outcomes.insert(sectors.collect::<Vec<u8>>());
    }
    assert!(outcomes.contains(&vec![1; 8]) && outcomes.contains(&vec![2; 8]));
    assert!(outcomes.len() > 10, "torn in many ways: {}", outcomes.len());
}

#[test]
fn names_survive_a_crash_for_certain_only_behind_a_directory_sync() {
    let (mut old, mut new) = (0, 0);
    for seed in 0..64 {
        let (disk, path, _file) = memory(seed);
        let other = path.with_file_name("other");
        disk.rename(&path, &other).unwrap();
        disk.crash();
        let names = disk.list(Path::new("/m")).unwrap();
        old += usize::from(names == ["file"]);
        new += usize::from(names == ["other"]);
        disk.remove(&Path::new("/m").join(&names[0])).unwrap();
        disk.sync_dir(Path::new("/m")).unwrap();
        disk.crash();
        assert!(disk.list(Path::new("/m")).unwrap().is_empty());
    }
    assert!(old > 0 && new > 0 && old + new == 64, "{old} {new}");
}

#[test]
fn a_failed_sync_loses_the_bytes_for_good_though_a_later_sync_succeeds() {
    let (disk, path, file) = memory(1);
    file.write_all_at(&[2; 512], 0).unwrap();
    disk.set_faults(Faults { sync_error: 10_000, ..Faults::default() });
    assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(Errno::IO.raw_os_error()));
    disk.set_faults(Faults::default());
    file.sync_data().unwrap();
    assert_eq!(disk.read(&path).unwrap()[0], 2, "the running system still sees it");
    disk.crash();
    assert_eq!(disk.read(&path).unwrap()[0], 1, "the medium never did");
}

#[test]
fn a_full_medium_writes_short_and_then_fails() {
    let (disk, path, file) = memory(1);
    disk.set_faults(Faults { capacity_bytes: Some(5000), ..Faults::default() });
    let error = file.write_all_at(&[2; 2000], 4000).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert_eq!(disk.len(&path).unwrap(), 5000);
    assert_eq!(file.preallocate(6000).unwrap_err().kind(), ErrorKind::StorageFull);
    disk.remove(&path).unwrap();
    disk.sync_dir(Path::new("/m")).unwrap();
    drop(file);
    let again = disk.create_new(&path).unwrap();
    again.preallocate(5000).unwrap();
}

#[test]
fn short_writes_are_continued() {
    let (disk, path, file) = memory(1);
    disk.set_faults(Faults { short_write: 8_000, ..Faults::default() });
    let mut queue = disk.queue(1).unwrap();
    let buffer: Vec<u8> = (0..4000).map(|i| i as u8).collect();
    let write = buffer.clone().into();
    queue.submit(Operation::Write { file, offset: 0, buffer: write, sync: true }).unwrap();
    assert_eq!(drain(&mut *queue).remove(0).result.unwrap(), 4000);
    disk.crash();
    assert_eq!(disk.read(&path).unwrap()[..4000], buffer);
}

#[test]
fn when_the_power_is_gone_everything_fails_until_the_crash() {
    let (disk, path, file) = memory(1);
    disk.set_faults(Faults { power_lost_after: Some(1), ..Faults::default() });
    file.write_all_at(&[2], 0).unwrap();
    assert!(file.sync_data().is_err(), "the operation it goes out in");
    assert!(disk.read(&path).is_err() && disk.list(Path::new("/m")).is_err());
    disk.crash();
    assert!(disk.read(&path).is_ok());
}

#[test]
fn aligned_memory_is_written_past_the_cache_and_read_back_in_pieces() {
    on_every_disk(|disk, dir| {
        let path = dir.join("a");
        let file = disk.create_new(&path).unwrap();
        file.preallocate(1 << 20).unwrap();
        let mut queue = disk.queue(2).unwrap();
        let direct = disk.open_direct(&path).unwrap();
        for (offset, value) in [(8192_u64, 5_u8), (65_536, 6)] {
            let mut buffer = Buffer::new();
            buffer.resize(40_960, value);
            let (file, buffer) = (direct.clone(), buffer.into());
            queue.submit(Operation::Write { file, offset, buffer, sync: true }).unwrap();
        }
        for done in drain(&mut *queue) {
            assert_eq!(done.result.unwrap(), 40_960);
            assert!(done.buffer.into_aligned().is_some_and(|buffer| buffer.capacity() >= 40_960));
        }
        let read = disk.open_read(&path).unwrap();
        let (mut a, mut b, mut none) = ([0; 100], [0; 3000], [0; 0]);
        let mut memory = [&mut none[..], &mut a[..], &mut b[..]].map(IoSliceMut::new);
        assert_eq!(read.read_vectored_at(&mut memory, 65_536 - 100).unwrap(), 3100);
        assert_eq!((a, b), ([0; 100], [6; 3000]));
        let mut memory = [&mut a[..], &mut b[..]].map(IoSliceMut::new);
        assert_eq!(read.read_vectored_at(&mut memory, (1 << 20) - 150).unwrap(), 150);
    });
}

/// They took a worker from its records for 50 to 250 us with every chunk, while another core was idle.
#[test]
fn the_kernels_threads_run_where_they_are_told_to() {
    let mine = rustix::thread::sched_getaffinity(None).unwrap();
    let core = (0..rustix::thread::CpuSet::MAX_CPU).rfind(|core| mine.is_set(*core)).unwrap();
    if uring::probe().is_err() || mine.count() < 2 {
        eprintln!("not tested: no io_uring here, or one core only");
        return;
    }
    assert!(place_kernel_threads(&[core, 100_000]).is_err(), "more than a set has room for");
    place_kernel_threads(&[core]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = UringDisk::new().create_new(&dir.path().join("a")).unwrap();
    let mut queue = UringDisk::new().queue(1).unwrap();
    let write = Operation::Write { file, offset: 0, buffer: vec![1; 4096].into(), sync: true };
    assert!(queue.submit(write).is_ok());
    drain(&mut *queue).remove(0).result.unwrap();
    // They wait for more to do for some seconds.
    let name = format!("Name:\tiou-wrk-{}", rustix::thread::gettid().as_raw_nonzero());
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let status =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("status")).ok());
    let threads: Vec<String> = status.filter(|status| status.starts_with(&name)).collect();
    assert!(!threads.is_empty(), "a sync goes to a thread of the kernel");
    for status in threads {
        assert!(status.contains(&format!("Cpus_allowed_list:\t{core}\n")), "{status}");
    }
}
