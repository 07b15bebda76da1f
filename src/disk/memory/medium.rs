//! What is on the medium, what is only cached, and what a crash makes of it.
//!
//! Content is kept twice per file, as sparse sectors: as the running system sees it, and as it is
//! durable. Names likewise. Directories themselves are durable at once.
//!
//! Fault model
//! - A crash keeps of each file's unsynced sectors all, none or any, each sector whole; of its
//!   unsynced length either; of unsynced names all, none or any change.
//! - A failed sync forgets what was unsynced: it is readable until a crash, never written.
//! - When space runs out a write goes short first, then fails.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use super::content::{File, Survival};
use super::random::Random;

/// What goes wrong on a [`MemoryDisk`](super::MemoryDisk). Chances are in 1 of 10,000 operations.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Chance of EIO on a read.
    pub read_error: u32,
    /// Chance of EIO on a write; any prefix of it may have been written.
    pub write_error: u32,
    /// Chance of EIO on a sync of a file or a directory.
    pub sync_error: u32,
    /// Chance that a write stops early and says so.
    pub short_write: u32,
    /// Space on the medium; unlimited if `None`.
    pub capacity_bytes: Option<u64>,
    /// How many changing operations still succeed before the power fails: the one after them
    /// reaches the cache and is answered with an error, and so is everything behind it until
    /// [`crash`](super::MemoryDisk::crash).
    pub power_lost_after: Option<u64>,
}

#[derive(Clone, Debug)]
enum Change {
    Link(PathBuf, u64),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, u64),
}

#[derive(Debug)]
pub(super) struct Medium {
    pub(super) random: Random,
    faults: Faults,
    operations: u64,
    /// Value of `operations` from which on the power is gone.
    power_ends: Option<u64>,
    /// Rises with every crash.
    life: u64,
    files: BTreeMap<u64, File>,
    next_inode: u64,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    /// Changes since the last sync of their directory, oldest first.
    unsynced: Vec<Change>,
    directories: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
}

/// What became of an operation that changes the medium.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Power {
    On,
    /// The power fails during this operation: do it, then say it failed.
    Fails,
}

impl Medium {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            faults: Faults::default(),
            operations: 0,
            power_ends: None,
            life: 0,
            files: BTreeMap::new(),
            next_inode: 0,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            unsynced: Vec::new(),
            directories: BTreeSet::from([PathBuf::from("/"), PathBuf::new()]),
            locks: BTreeSet::new(),
        }
    }

    pub(super) fn set_faults(&mut self, faults: Faults) {
        self.power_ends = faults.power_lost_after.map(|more| self.operations + more);
        self.faults = faults;
    }

    pub(super) fn operations(&self) -> u64 {
        self.operations
    }

    pub(super) fn check_life(&self, life: u64) -> io::Result<()> {
        if life == self.life { self.check_power() } else { Err(power_lost()) }
    }

    /// The life a new handle belongs to, and its count.
    pub(super) fn attach(&self, inode: u64) -> (u64, Arc<()>) {
        (self.life, self.files[&inode].handles.clone())
    }

    fn check_power(&self) -> io::Result<()> {
        let lost = self.power_ends.is_some_and(|end| self.operations > end);
        if lost { Err(power_lost()) } else { Ok(()) }
    }

    /// Counts an operation that changes the medium.
    fn count(&mut self) -> io::Result<Power> {
        self.check_power()?;
        self.operations += 1;
        Ok(if self.check_power().is_ok() { Power::On } else { Power::Fails })
    }

    fn strikes(&mut self, chance: u32) -> bool {
        chance > 0 && self.random.below(10_000) < u64::from(chance)
    }

    fn file(&mut self, inode: u64) -> &mut File {
        self.files.get_mut(&inode).expect("an open file is kept")
    }

    pub(super) fn find(&self, path: &Path) -> io::Result<u64> {
        self.check_power()?;
        if self.directories.contains(path) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub(super) fn len_of(&self, inode: u64) -> u64 {
        self.files[&inode].cached.length
    }

    pub(super) fn free_bytes(&mut self) -> u64 {
        let Some(capacity) = self.faults.capacity_bytes else { return u64::MAX };
        self.drop_unnamed();
        let used: u64 = self.files.values().map(|file| file.charged_bytes).sum();
        capacity.saturating_sub(used)
    }

    pub(super) fn create_dir_all(&mut self, path: &Path) -> io::Result<()> {
        self.check_power()?;
        if let Some(file) = path.ancestors().find(|part| self.names.contains_key(*part)) {
            let exact = file == path;
            return Err(if exact {
                io::ErrorKind::AlreadyExists.into()
            } else {
                io::ErrorKind::NotADirectory.into()
            });
        }
        self.directories.extend(path.ancestors().map(Path::to_path_buf));
        Ok(())
    }

    pub(super) fn create_new(&mut self, path: &Path) -> io::Result<u64> {
        let power = self.count()?;
        if self.names.contains_key(path) || self.directories.contains(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if !path.parent().is_some_and(|parent| self.directories.contains(parent)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inode = self.next_inode;
        self.next_inode += 1;
        self.files.insert(inode, File::default());
        self.names.insert(path.to_path_buf(), inode);
        self.unsynced.push(Change::Link(path.to_path_buf(), inode));
        answer(power, inode)
    }

    pub(super) fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.check_power()?;
        if !self.directories.contains(path) {
            let kind = if self.names.contains_key(path) {
                io::ErrorKind::NotADirectory
            } else {
                io::ErrorKind::NotFound
            };
            return Err(kind.into());
        }
        let inside = self.names.keys().chain(&self.directories);
        let inside = inside.filter(|name| name.parent() == Some(path));
        let mut names: Vec<String> = inside
            .filter_map(|name| Some(name.file_name()?.to_string_lossy().into_owned()))
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let power = self.count()?;
        let inode = self.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        self.names.insert(to.to_path_buf(), inode);
        self.unsynced.push(Change::Rename(from.to_path_buf(), to.to_path_buf(), inode));
        self.drop_unnamed();
        answer(power, ())
    }

    pub(super) fn rename_new(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.check_power()?;
        if self.names.contains_key(to) || self.directories.contains(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.rename(from, to)
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        let power = self.count()?;
        self.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        self.unsynced.push(Change::Unlink(path.to_path_buf()));
        self.drop_unnamed();
        answer(power, ())
    }

    pub(super) fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        let power = self.count()?;
        if self.strikes(self.faults.sync_error) {
            return Err(Errno::IO.into());
        }
        if power == Power::Fails {
            return Err(power_lost());
        }
        let inside = |change: &Change| match change {
            Change::Link(name, _) | Change::Unlink(name) | Change::Rename(_, name, _) => {
                name.parent() == Some(path)
            }
        };
        for change in self.unsynced.extract_if(.., |change| inside(change)) {
            apply(&mut self.durable_names, change);
        }
        self.drop_unnamed();
        Ok(())
    }

    pub(super) fn lock(&mut self, path: &Path) -> io::Result<Option<u64>> {
        self.check_power()?;
        if self.locks.contains(path) {
            return Ok(None);
        }
        if !self.names.contains_key(path) {
            let inode = self.create_new(path)?;
            self.write(inode, format!("{}\n", std::process::id()).as_bytes(), 0)?;
        }
        self.locks.insert(path.to_path_buf());
        Ok(Some(self.life))
    }

    pub(super) fn unlock(&mut self, path: &Path, life: u64) {
        if life == self.life {
            self.locks.remove(path);
        }
    }

    pub(super) fn read(&mut self, inode: u64, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.check_power()?;
        if self.strikes(self.faults.read_error) {
            return Err(Errno::IO.into());
        }
        Ok(self.file(inode).cached.read(bytes, offset))
    }

    /// Writes a prefix of `bytes` and says how long it was.
    pub(super) fn write(&mut self, inode: u64, bytes: &[u8], offset: u64) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let power = self.count()?;
        let fails = self.strikes(self.faults.write_error);
        let short = self.strikes(self.faults.short_write);
        let mut length = bytes.len() as u64;
        if fails || short || power == Power::Fails {
            length = 1 + self.random.below(length);
        }
        let free = self.free_bytes();
        let file = self.file(inode);
        let room = file.charged_bytes.saturating_add(free).saturating_sub(offset);
        if room == 0 {
            return Err(Errno::NOSPC.into());
        }
        let length = length.min(room) as usize;
        file.write(&bytes[..length], offset);
        if fails {
            return Err(Errno::IO.into());
        }
        answer(power, length)
    }

    pub(super) fn sync(&mut self, inode: u64) -> io::Result<()> {
        let power = self.count()?;
        let fails = self.strikes(self.faults.sync_error);
        let file = self.file(inode);
        if power == Power::Fails {
            return Err(power_lost());
        }
        if fails {
            file.dirty.clear();
            return Err(Errno::IO.into());
        }
        file.sync();
        Ok(())
    }

    pub(super) fn set_len(&mut self, inode: u64, bytes: u64) -> io::Result<()> {
        let power = self.count()?;
        self.file(inode).set_len(bytes);
        answer(power, ())
    }

    pub(super) fn preallocate(&mut self, inode: u64, bytes: u64) -> io::Result<()> {
        let power = self.count()?;
        let free = self.free_bytes();
        let file = self.file(inode);
        if bytes > file.charged_bytes.saturating_add(free) {
            return Err(Errno::NOSPC.into());
        }
        file.charged_bytes = file.charged_bytes.max(bytes);
        if bytes > file.cached.length {
            file.set_len(bytes);
        }
        answer(power, ())
    }

    pub(super) fn crash(&mut self) {
        let mut random = self.random.split();
        for file in self.files.values_mut() {
            file.crash(&mut random);
        }
        let keeps = Survival::draw(&mut random);
        for change in std::mem::take(&mut self.unsynced) {
            if keeps.one(&mut random) {
                apply(&mut self.durable_names, change);
            }
        }
        self.names = self.durable_names.clone();
        let named: BTreeSet<u64> = self.names.values().copied().collect();
        self.files.retain(|inode, _| named.contains(inode));
        self.locks.clear();
        self.life += 1;
        self.set_faults(Faults::default());
    }

    /// Forgets files that no name, no unsynced change and no handle leads to.
    fn drop_unnamed(&mut self) {
        let mut named: BTreeSet<u64> = self.names.values().copied().collect();
        named.extend(self.durable_names.values());
        named.extend(self.unsynced.iter().filter_map(|change| match change {
            Change::Link(_, inode) | Change::Rename(_, _, inode) => Some(*inode),
            Change::Unlink(_) => None,
        }));
        self.files
            .retain(|inode, file| named.contains(inode) || Arc::strong_count(&file.handles) > 1);
    }
}

fn apply(names: &mut BTreeMap<PathBuf, u64>, change: Change) {
    match change {
        Change::Link(name, inode) => {
            names.insert(name, inode);
        }
        Change::Unlink(name) => {
            names.remove(&name);
        }
        Change::Rename(from, to, inode) => {
            if names.get(&from) == Some(&inode) {
                names.remove(&from);
            }
            names.insert(to, inode);
        }
    }
}

fn answer<T>(power: Power, value: T) -> io::Result<T> {
    match power {
        Power::On => Ok(value),
        Power::Fails => Err(power_lost()),
    }
}

fn power_lost() -> io::Error {
    io::Error::other("the power of the disk in memory was lost")
}
