//! Files: everything tidegate does to a disk goes through the [`Disk`] trait.
//!
//! Owns the control plane (synchronous: open, list, rename, lock) and the running path
//! ([`DiskQueue`]: submit, poll, never blocks the worker on the device). Knows no formats.
//!
//! Implementations: [`UringDisk`] (io_uring), [`ThreadDisk`] (one side thread per queue; the
//! fallback where io_uring is refused, for example by a container's seccomp profile), and
//! [`MemoryDisk`] (in memory, deterministic, with seeded faults and crashes).
//!
//! Invariants
//! - An operation in flight owns its buffer and its file; the buffer comes back in its
//!   [`Completion`], also when it failed. A dropped queue waits for what is in flight.
//! - A successful `Write { sync: true }` means all bytes are durable in the file: short writes are
//!   continued, and the sync is issued again behind the last one.
//! - Every accepted operation yields exactly one completion. Operations in flight are not ordered
//!   among each other.
//!
//! Fault model
//! - Any operation may fail. After a failed sync *the file must never be used again*: the kernel
//!   reports a lost page once and then calls it clean, so a later sync that succeeds proves
//!   nothing. [`MemoryDisk`] behaves the same way.
//! - A created or renamed name is durable only after [`Disk::sync_dir`], content only after a
//!   sync. Until then a crash may keep any part of it, torn by sectors.

mod buffer;
mod bytes;
mod file;
pub(crate) mod large;
mod lateness;
mod memory;
mod slice;
mod system;
mod thread;
mod uring;

use std::any::Any;
use std::io;
use std::path::Path;
use std::sync::Arc;

pub use buffer::Buffer;
pub(crate) use buffer::mapped;
pub use bytes::Bytes;
pub use file::FileHandle;
pub use lateness::Courtesy;
pub use memory::{Faults, MemoryDisk};
pub use slice::ShortSlice;
pub use system::SystemDisk;
pub use uring::place_kernel_threads;

/// Direct writes begin at multiples of this in file and memory, and are so long.
pub const DIRECT_BYTES: usize = 4096;

/// Disk over io_uring.
pub type UringDisk = SystemDisk<uring::UringQueue>;
/// Disk over plain positional I/O on a side thread per queue.
pub type ThreadDisk = SystemDisk<thread::ThreadQueue>;

/// The control plane of a disk. Synchronous; not for the running path of a worker.
pub trait Disk: Send + Sync + 'static {
    /// Creates a directory and its parents; a directory that exists is fine.
    ///
    /// # Errors
    /// What the system says.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Creates a file that must not exist, to read and write.
    ///
    /// # Errors
    /// `AlreadyExists`, or what the system says.
    fn create_new(&self, path: &Path) -> io::Result<FileHandle>;
    /// Opens a file that exists, to read and write.
    ///
    /// # Errors
    /// `NotFound`, or what the system says.
    fn open(&self, path: &Path) -> io::Result<FileHandle>;
    /// Opens a file that exists, to write whole multiples of [`DIRECT_BYTES`] from aligned memory
    /// past the page cache. Where the file system cannot do that, as [`open`](Self::open).
    ///
    /// # Errors
    /// `NotFound`, or what the system says.
    fn open_direct(&self, path: &Path) -> io::Result<FileHandle> {
        self.open(path)
    }
    /// Opens a file that exists, to read.
    ///
    /// # Errors
    /// `NotFound`, or what the system says.
    fn open_read(&self, path: &Path) -> io::Result<FileHandle>;
    /// Names of what is in a directory, sorted. A name that is not UTF-8 is given lossily.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`, or what the system says.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Length of a file in bytes.
    ///
    /// # Errors
    /// `NotFound`, or what the system says.
    fn len(&self, path: &Path) -> io::Result<u64>;
    /// Whole content of a (small) file.
    ///
    /// # Errors
    /// `NotFound`, or what the system says.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Renames a file, replacing what had the new name.
    ///
    /// # Errors
    /// What the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Renames a file to a name that nothing has. Where the file system cannot do that in one step,
    /// it looks first: whoever else may make that name has to be kept out by a lock.
    ///
    /// # Errors
    /// `AlreadyExists`, `NotFound`, or what the system says.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// `NotFound`, or what the system says.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes names created, renamed and removed in this directory durable.
    ///
    /// # Errors
    /// What the system says; names are then in doubt.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Takes the exclusive lock on a file (created if missing) and writes this process's id into
    /// it; `None` if another holder has it. Never waits. The file stays; a file of the
    /// system is empty once the lock is released in order.
    ///
    /// # Errors
    /// What the system says.
    fn lock(&self, path: &Path) -> io::Result<Option<DiskLock>>;
    /// Bytes an unprivileged process can still allocate where `path` is.
    ///
    /// # Errors
    /// What the system says.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
    /// A queue for at most `depth` operations in flight, to be moved to one worker.
    ///
    /// # Errors
    /// What the system says, for example when it is out of memory or threads.
    fn queue(&self, depth: usize) -> io::Result<Box<dyn DiskQueue>>;
}

/// The running path of a disk: one owner, never waits for the device.
pub trait DiskQueue: Send {
    /// Starts an operation.
    ///
    /// # Errors
    /// The operation itself, when `depth` operations are in flight.
    fn submit(&mut self, operation: Operation) -> Result<Ticket, Operation>;
    /// Starts operations together: with one call of the system, where each would take one.
    ///
    /// # Panics
    /// If they are more than the queue takes.
    fn submit_all(&mut self, operations: Vec<Operation>) -> Vec<Ticket> {
        let started = operations.into_iter().map(|operation| self.submit(operation));
        started.map(|ticket| ticket.expect("the queue takes all of them")).collect()
    }
    /// Appends what has completed since the last call.
    fn poll(&mut self, completions: &mut Vec<Completion>);
    /// Operations accepted and not yet returned by [`poll`](Self::poll).
    fn in_flight(&self) -> usize;
}

/// Names one accepted operation; unique within its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What a queue can do.
#[derive(Debug)]
pub enum Operation {
    /// Writes all of the buffer.
    Write {
        /// Where to.
        file: FileHandle,
        /// First byte in the file.
        offset: u64,
        /// What. For a file opened with [`Disk::open_direct`] aligned, and like the offset a
        /// multiple of [`DIRECT_BYTES`] long.
        buffer: Bytes,
        /// Whether to make the file's data durable behind the write.
        sync: bool,
    },
    /// Reads until the buffer is full or the file ends.
    Read {
        /// Where from.
        file: FileHandle,
        /// First byte in the file.
        offset: u64,
        /// Its length is what is wanted.
        buffer: Bytes,
    },
    /// Makes the file's data durable.
    Sync {
        /// Which file.
        file: FileHandle,
    },
}

/// The end of one operation.
#[derive(Debug)]
pub struct Completion {
    /// Which operation.
    pub ticket: Ticket,
    /// Its buffer, handed back for reuse; for a read truncated to what was read.
    pub buffer: Bytes,
    /// Bytes written or read (0 for a sync).
    pub result: io::Result<usize>,
}

/// An exclusive lock, released when dropped.
pub struct DiskLock {
    _held: Box<dyn Any + Send + Sync>,
}

impl DiskLock {
    fn new(held: impl Any + Send + Sync) -> Self {
        Self { _held: Box::new(held) }
    }
}

impl std::fmt::Debug for DiskLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DiskLock")
    }
}

/// The best disk this system allows, and why io_uring is not used if it is not. Probes io_uring
/// once with a small ring.
#[must_use]
pub fn best_disk() -> (Arc<dyn Disk>, Option<String>) {
    match uring::probe() {
        Ok(()) => (Arc::new(UringDisk::new()), None),
        Err(reason) => (Arc::new(ThreadDisk::new()), Some(reason)),
    }
}

#[cfg(test)]
mod tests;
