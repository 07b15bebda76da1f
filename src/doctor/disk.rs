//! The snapshot directory: can it be written, does it last, how fast is it durable.
//!
//! Invariants
//! - The probe file is unlinked before anything is written to it, so nothing stays behind even if
//!   the process is killed.
//!
//! Fault model: any call may fail; the error becomes a finding, never a panic.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::Check;

const BLOCK_BYTES: usize = 4096;
const SYNCS: usize = 20;
/// Above this, a snapshot every few milliseconds cannot become durable in time.
const SYNC_NS_SLOW: u64 = 5_000_000;
/// Below this, nothing can have reached a medium.
const SYNC_NS_UNBELIEVABLE: u64 = 5_000;
const FREE_BYTES_MIN: u64 = 1 << 30;

pub(super) fn examine(directory: &Path, now_ns: &impl Fn() -> u64) -> Vec<Check> {
    let probe = match Probe::open(directory) {
        Ok(probe) => probe,
        Err(errno) => return vec![unusable(directory, errno)],
    };
    let mut checks = vec![
        Check::ok("directory", format!("{} can be written", directory.display())),
        direct(probe.write_direct()),
        fdatasync(probe.sync_latencies(now_ns)),
    ];
    if let Ok(found) = rustix::fs::fstatfs(&probe.buffered) {
        checks.push(file_system(found.f_type as u64));
        checks.push(free_space(found.f_bavail.saturating_mul(found.f_bsize as u64)));
    }
    checks
}

/// A file without a name in the directory, opened twice.
struct Probe {
    buffered: OwnedFd,
    direct: Result<OwnedFd, Errno>,
}

impl Probe {
    fn open(directory: &Path) -> Result<Self, Errno> {
        let path = directory.join(format!(".tidegate-doctor-{}", std::process::id()));
        let mode = Mode::RUSR | Mode::WUSR;
        let create = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let buffered = rustix::fs::open(&path, create, mode)?;
        let again = OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
        let direct = rustix::fs::open(&path, again, mode);
        rustix::fs::unlink(&path)?;
        Ok(Self { buffered, direct })
    }

    /// Writes one aligned block past the page cache.
    fn write_direct(&self) -> Result<(), Errno> {
        let file = self.direct.as_ref().map_err(|errno| *errno)?;
        let memory = vec![0_u8; 2 * BLOCK_BYTES];
        let start = memory.as_ptr().align_offset(BLOCK_BYTES);
        write_block(file, &memory[start..start + BLOCK_BYTES])
    }

    /// Overwrites one block again and again and says how long each took to be durable, in order.
    fn sync_latencies(&self, now_ns: &impl Fn() -> u64) -> Result<Vec<u64>, Errno> {
        let block = [1_u8; BLOCK_BYTES];
        // The first one allocates the block; a snapshot's cost is that of the later ones.
        write_block(&self.buffered, &block)?;
        rustix::fs::fsync(&self.buffered)?;
        let mut latencies = Vec::with_capacity(SYNCS);
        for _ in 0..SYNCS {
            let start = now_ns();
            write_block(&self.buffered, &block)?;
            rustix::fs::fdatasync(&self.buffered)?;
            latencies.push(now_ns() - start);
        }
        latencies.sort_unstable();
        Ok(latencies)
    }
}

fn write_block(file: &OwnedFd, block: &[u8]) -> Result<(), Errno> {
    match rustix::io::pwrite(file, block, 0)? {
        BLOCK_BYTES => Ok(()),
        // A short write of one block means that the next one would be refused.
        _ => Err(Errno::NOSPC),
    }
}

fn unusable(directory: &Path, errno: Errno) -> Check {
    let shown = directory.display();
    let remedy = match errno {
        Errno::NOENT => format!("create it: mkdir -p '{shown}'"),
        Errno::NOTDIR => "name a directory, not a file".to_string(),
        Errno::ACCESS | Errno::PERM => format!("give this user the right to write into '{shown}'"),
        Errno::ROFS => "choose a directory on a file system that is not mounted read-only".into(),
        Errno::NOSPC | Errno::DQUOT => "free some space or raise the quota".to_string(),
        _ => "choose another directory".to_string(),
    };
    Check::fail("directory", format!("cannot create a file in {shown}: {errno}"), remedy)
}

fn direct(written: Result<(), Errno>) -> Check {
    let name = "O_DIRECT";
    match written {
        Ok(()) => Check::ok(name, "a 4 KiB block was written past the page cache"),
        Err(errno) => Check::warn(
            name,
            format!("refused ({errno}); snapshots go through the page cache"),
            "put the snapshots on ext4 or XFS, not on tmpfs, overlayfs or a network",
        ),
    }
}

/// Judges latencies in rising order.
fn fdatasync(latencies_ns: Result<Vec<u64>, Errno>) -> Check {
    let name = "fdatasync";
    let latencies = match latencies_ns {
        Ok(latencies) => latencies,
        Err(Errno::NOSPC | Errno::DQUOT) => {
            return Check::fail(name, "no space left", "free some space or raise the quota");
        }
        Err(errno) => {
            let found = format!("failed: {errno}; nothing can be made durable");
            return Check::fail(name, found, "choose another directory, and look at dmesg");
        }
    };
    let median = latencies[latencies.len() / 2];
    let max = latencies[latencies.len() - 1];
    let millis = |ns: u64| ns as f64 / 1e6;
    let found = format!("4 KiB durable in {:.3} ms, at most {:.3}", millis(median), millis(max));
    if median < SYNC_NS_UNBELIEVABLE {
        let found = format!("{found}: too fast for a medium, data may not outlive a power cut");
        Check::warn(name, found, "put the snapshots on a disk, not on tmpfs or with barriers off")
    } else if median > SYNC_NS_SLOW {
        // Two syncs are in a commit: the data, then the manifest.
        let interval_ms = (3 * median).div_ceil(1_000_000);
        let remedy = format!("use --interval {interval_ms}ms or more, or a faster disk");
        Check::warn(name, format!("{found}: too slow for snapshots every 10 ms"), remedy)
    } else {
        Check::ok(name, found)
    }
}

/// Judges the magic number of statfs(2).
fn file_system(magic: u64) -> Check {
    let name = "file system";
    let remedy = "put the snapshots on a local disk";
    let volatile =
        |kind| Check::warn(name, format!("{kind}: gone after a reboot or a power cut"), remedy);
    let remote = |kind| {
        let found = format!("{kind}: locks and fsync may promise more than they keep");
        Check::warn(name, found, remedy)
    };
    // The kernel's 32-bit constants; some architectures sign-extend them.
    match magic as u32 {
        0x0102_1994 => volatile("tmpfs"),
        0x8584_58F6 => volatile("ramfs"),
        0x6969 => remote("NFS"),
        0xFF53_4D42 | 0xFE53_4D42 => remote("SMB"),
        0x0102_1997 => remote("9p"),
        0x6573_5546 => remote("FUSE"),
        0x794C_7630 => Check::warn(
            name,
            "overlayfs: in a container it is gone when the container is",
            "mount a volume for the snapshots",
        ),
        0xEF53 => Check::ok(name, "ext4 (or ext2, ext3)"),
        0x5846_5342 => Check::ok(name, "XFS"),
        0x9123_683E => Check::ok(name, "Btrfs"),
        other => Check::ok(name, format!("of type {other:#x}")),
    }
}

fn free_space(free_bytes: u64) -> Check {
    let name = "free space";
    let found = format!("{:.1} GiB", free_bytes as f64 / (1_u64 << 30) as f64);
    if free_bytes >= FREE_BYTES_MIN {
        return Check::ok(name, found);
    }
    let remedy = "free some: three snapshots are kept while the next one is written";
    Check::warn(name, found, remedy)
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn a_directory_that_is_missing_or_a_file_fails_with_the_way_out() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("file");
        std::fs::write(&file, "").expect("a file");
        let time = || 0;
        for (place, remedy) in
            [(directory.path().join("missing"), "mkdir -p"), (file, "not a file")]
        {
            let checks = examine(&place, &time);
            assert_eq!((checks.len(), checks[0].status), (1, Status::Fail), "{checks:?}");
            assert!(checks[0].remedy.as_ref().is_some_and(|text| text.contains(remedy)));
        }
    }

    #[test]
    fn latencies_are_measured_with_the_clock_that_is_passed_in() {
        let directory = tempfile::tempdir().expect("a directory");
        let time = std::cell::Cell::new(0);
        let probe = Probe::open(directory.path()).expect("a probe");
        let latencies = probe.sync_latencies(&|| time.replace(time.get() + 1_000_000));
        assert_eq!(latencies, Ok(vec![1_000_000; SYNCS]));
    }

    #[test]
    fn a_slow_and_an_unbelievably_fast_disk_are_told_apart_from_a_good_one() {
        let judged = |ns| fdatasync(Ok(vec![ns; 3]));
        assert_eq!(judged(300_000).status, Status::Ok);
        assert_eq!(judged(1_000).status, Status::Warn);
        let slow = judged(12_000_000);
        assert_eq!(slow.status, Status::Warn);
        assert!(slow.remedy.is_some_and(|text| text.contains("--interval 36ms")));
        assert_eq!(fdatasync(Err(Errno::NOSPC)).status, Status::Fail);
        assert_eq!(fdatasync(Err(Errno::IO)).status, Status::Fail);
    }

    #[test]
    fn a_file_system_that_forgets_or_is_remote_is_flagged() {
        for magic in [0x0102_1994, 0x8584_58F6, 0x6969, 0xFFFF_FFFF_FF53_4D42, 0x794C_7630] {
            assert_eq!(file_system(magic).status, Status::Warn, "{magic:#x}");
        }
        for magic in [0xEF53, 0x5846_5342, 0x1234] {
            assert_eq!(file_system(magic).status, Status::Ok, "{magic:#x}");
        }
        assert_eq!(direct(Err(Errno::INVAL)).status, Status::Warn);
        assert_eq!(free_space(1 << 20).status, Status::Warn);
    }
}
