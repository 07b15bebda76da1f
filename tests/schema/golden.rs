//! Golden snapshot directories: files of this repository in a disk in memory, and back.

use std::path::Path;

use tidegate::disk::{Disk, MemoryDisk};

/// Files end at multiples of this; what is behind the last byte that is not zero was preallocated.
const BLOCK_BYTES: usize = 4096;

/// Every file of the snapshot directory but the lock, as far as it was written.
pub fn files(disk: &MemoryDisk) -> Vec<(String, Vec<u8>)> {
    let directory: &Path = "/snapshots".as_ref();
    let names = disk.list(directory).expect("a snapshot directory").into_iter();
    let read = |name: String| Some((name.clone(), disk.read(&directory.join(name)).ok()?));
    let used = |(name, mut bytes): (String, Vec<u8>)| {
        let end = bytes.iter().rposition(|byte| *byte != 0)? + 1;
        bytes.truncate(end.next_multiple_of(BLOCK_BYTES));
        Some((name, bytes))
    };
    names.filter(|name| name != "LOCK").filter_map(read).filter_map(used).collect()
}

/// Writes them to a directory of this machine.
pub fn write(disk: &MemoryDisk, directory: &Path) {
    std::fs::create_dir_all(directory).expect("a directory");
    for (name, bytes) in files(disk) {
        std::fs::write(directory.join(name), bytes).expect("a file of it");
    }
}

/// A disk with the golden directory `name` as `/snapshots`.
pub fn read(name: &str) -> MemoryDisk {
    let disk = MemoryDisk::new(1);
    let (from, to): (_, &Path) = (Path::new("tests/golden").join(name), "/snapshots".as_ref());
    disk.create_dir_all(to).expect("a directory in memory");
    for entry in std::fs::read_dir(&from).expect("golden files") {
        let path = entry.expect("a golden file").path();
        let bytes = std::fs::read(&path).expect("a golden file");
        let file = disk.create_new(&to.join(path.file_name().expect("a name"))).expect("a file");
        file.write_all_at(&bytes, 0).and_then(|()| file.sync_data()).expect("bytes in memory");
    }
    disk.sync_dir(to).expect("a directory in memory");
    disk
}
