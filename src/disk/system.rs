//! The disk of the operating system: one control plane, whatever queue runs beside it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::marker::PhantomData;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{CWD, FlockOperation, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::{Disk, DiskLock, DiskQueue, FileHandle};

/// Files of the operating system, with running-path queues of kind `Q`.
pub struct SystemDisk<Q> {
    queue: PhantomData<fn() -> Q>,
}

impl<Q> SystemDisk<Q> {
    /// The file system this process sees.
    #[must_use]
    pub fn new() -> Self {
        Self { queue: PhantomData }
    }
}

impl<Q> Default for SystemDisk<Q> {
    fn default() -> Self {
        Self::new()
    }
}

/// A locked file. Released in order, it is left empty: it names nobody who is gone, and a run that
/// changed nothing leaves it as it was.
struct HeldLock(File);

impl Drop for HeldLock {
    fn drop(&mut self) {
        // What stays in it is an old pid, which whoever takes the lock next replaces.
        _ = self.0.set_len(0);
    }
}

/// A queue over system files.
pub trait SystemQueue: DiskQueue + Sized + 'static {
    /// A queue for at most `depth` operations in flight.
    ///
    /// # Errors
    /// What the system says.
    fn with_depth(depth: usize) -> io::Result<Self>;
}

impl<Q: SystemQueue> Disk for SystemDisk<Q> {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn create_new(&self, path: &Path) -> io::Result<FileHandle> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(FileHandle::system(file))
    }

    fn open(&self, path: &Path) -> io::Result<FileHandle> {
        Ok(FileHandle::system(OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn open_direct(&self, path: &Path) -> io::Result<FileHandle> {
        let flags = OFlags::DIRECT.bits() as i32;
        match OpenOptions::new().read(true).write(true).custom_flags(flags).open(path) {
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                self.open(path)
            }
            opened => Ok(FileHandle::direct(opened?)),
        }
    }

    fn open_read(&self, path: &Path) -> io::Result<FileHandle> {
        Ok(FileHandle::system(File::open(path)?))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = fs::read_dir(path)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort_unstable();
        Ok(names)
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        Ok(fs::metadata(path)?.len())
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => match fs::symlink_metadata(to) {
                Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => fs::rename(from, to),
                Err(error) => Err(error),
            },
            renamed => Ok(renamed?),
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<Option<DiskLock>> {
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Some(DiskLock::new(HeldLock(file))))
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let space = rustix::fs::statvfs(path)?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    fn queue(&self, depth: usize) -> io::Result<Box<dyn DiskQueue>> {
        Ok(Box::new(Q::with_depth(depth)?))
    }
}
