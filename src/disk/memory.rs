//! A disk in memory: deterministic from a seed, with faults and crashes.
//!
//! Owns the handles and the queue; what survives a crash is decided in [`medium`]. Clones of a
//! [`MemoryDisk`] share one medium, as processes share a disk.
//!
//! Invariants
//! - The same seed, faults and calls in the same order give the same results.
//! - A handle, lock or queue of before a [`MemoryDisk::crash`] belongs to a dead process: it fails
//!   ever after and holds nothing.

mod content;
mod medium;
mod random;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

pub use self::medium::Faults;
use self::medium::Medium;
use self::random::Random;
use super::{Completion, Disk, DiskLock, DiskQueue, FileHandle, Operation, Ticket};

/// A disk in memory; clones share the medium.
#[derive(Clone, Debug)]
pub struct MemoryDisk {
    medium: Arc<Mutex<Medium>>,
}

impl MemoryDisk {
    /// An empty medium whose chances are drawn from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { medium: Arc::new(Mutex::new(Medium::new(seed))) }
    }

    /// What goes wrong from now on; starts the count of [`Faults::power_lost_after`] again.
    pub fn set_faults(&self, faults: Faults) {
        self.medium().set_faults(faults);
    }

    /// How many operations that change the medium there were, over its whole life.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.medium().operations()
    }

    /// The power fails and comes back: what was not synced is lost, kept or torn, as the seed
    /// decides. Clears the faults. Afterwards the disk is used as by a new process.
    pub fn crash(&self) {
        self.medium().crash();
    }

    fn medium(&self) -> MutexGuard<'_, Medium> {
        lock(&self.medium)
    }

    fn handle(&self, inode: u64) -> FileHandle {
        let (life, handles) = self.medium().attach(inode);
        FileHandle::memory(MemoryFile {
            medium: self.medium.clone(),
            inode,
            life,
            _counted: handles,
        })
    }
}

/// The medium is consistent between calls, so a test thread that panicked elsewhere is no matter.
fn lock(medium: &Mutex<Medium>) -> MutexGuard<'_, Medium> {
    medium.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Disk for MemoryDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.medium().create_dir_all(path)
    }

    fn create_new(&self, path: &Path) -> io::Result<FileHandle> {
        let inode = self.medium().create_new(path)?;
        Ok(self.handle(inode))
    }

    fn open(&self, path: &Path) -> io::Result<FileHandle> {
        let inode = self.medium().find(path)?;
        Ok(self.handle(inode))
    }

    fn open_read(&self, path: &Path) -> io::Result<FileHandle> {
        self.open(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.medium().list(path)
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        let medium = self.medium();
        let inode = medium.find(path)?;
        Ok(medium.len_of(inode))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.open(path)?;
        let mut bytes = vec![0; self.len(path)? as usize];
        let read = file.read_at(&mut bytes, 0)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.medium().rename(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.medium().rename_new(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.medium().remove(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.medium().sync_dir(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<DiskLock>> {
        let Some(life) = self.medium().lock(path)? else { return Ok(None) };
        Ok(Some(DiskLock::new(HeldLock {
            medium: self.medium.clone(),
            path: path.to_path_buf(),
            life,
        })))
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        Ok(self.medium().free_bytes())
    }

    fn queue(&self, depth: usize) -> io::Result<Box<dyn DiskQueue>> {
        assert!(depth > 0, "a queue of depth 0");
        let random = self.medium().random.split();
        Ok(Box::new(MemoryQueue { random, depth, waiting: Vec::new(), next_ticket: 0 }))
    }
}

struct HeldLock {
    medium: Arc<Mutex<Medium>>,
    path: PathBuf,
    life: u64,
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        lock(&self.medium).unlock(&self.path, self.life);
    }
}

/// An open file of a [`MemoryDisk`].
#[derive(Clone, Debug)]
pub struct MemoryFile {
    medium: Arc<Mutex<Medium>>,
    inode: u64,
    life: u64,
    /// Keeps the content while it is open, though no name may be left.
    _counted: Arc<()>,
}

impl MemoryFile {
    fn medium(&self) -> io::Result<MutexGuard<'_, Medium>> {
        let medium = lock(&self.medium);
        medium.check_life(self.life)?;
        Ok(medium)
    }

    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.medium()?.write(self.inode, bytes, offset)
    }

    pub(super) fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.medium()?.read(self.inode, bytes, offset)
    }

    pub(super) fn sync_data(&self) -> io::Result<()> {
        self.medium()?.sync(self.inode)
    }

    pub(super) fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.medium()?.set_len(self.inode, bytes)
    }

    pub(super) fn preallocate(&self, bytes: u64) -> io::Result<()> {
        self.medium()?.preallocate(self.inode, bytes)
    }
}

/// Performs operations when polled, some of them, in an order drawn from the seed.
struct MemoryQueue {
    random: Random,
    depth: usize,
    waiting: Vec<(Ticket, Operation)>,
    next_ticket: u64,
}

impl DiskQueue for MemoryQueue {
    fn submit(&mut self, operation: Operation) -> Result<Ticket, Operation> {
        if self.waiting.len() == self.depth {
            return Err(operation);
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.waiting.push((ticket, operation));
        Ok(ticket)
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) {
        // One poll in two completes nothing; the other completes at least one.
        while !self.waiting.is_empty() && self.random.below(2) == 0 {
            let chosen = self.random.below(self.waiting.len() as u64) as usize;
            let (ticket, operation) = self.waiting.remove(chosen);
            let (buffer, result) = super::thread::perform(operation);
            completions.push(Completion { ticket, buffer, result });
        }
    }

    fn in_flight(&self) -> usize {
        self.waiting.len()
    }
}
