//! The commit: where a snapshot becomes complete, or does not.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::layout::{
    GENERATION, LOCK, SlotNumber, manifest_name, passed_over_name, refused, replace, temporary,
};
use super::manifest::{MANIFEST_FORMAT, Manifest, to_frame};
use super::open::{read_generation, read_pid};
use super::segment::Directory;
use super::slots::{Content, Kept, SLOT_BYTES, Slots};
use super::{Skipped, Store};
use crate::disk::{Buffer, DIRECT_BYTES, Disk, FileHandle};
use crate::error::{Error, Result};
use crate::frame::FrameKind;
use crate::guard;
use crate::id::SnapshotId;

/// A manifest on its way into its slot: [`Store::begin_commit`] makes it, [`run`](Self::run) writes it, and
/// [`Store::end_commit`] is told what came of it.
pub struct Commit {
    directory: Arc<Directory>,
    id: SnapshotId,
    slot: SlotNumber,
    is_new: bool,
    bytes: Buffer,
    kept: Kept,
    holds: SnapshotId,
}

impl fmt::Debug for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Commit")
            .field("id", &self.id)
            .field("slot", &self.slot)
            .finish_non_exhaustive()
    }
}

/// What came of a [`Commit`].
#[derive(Debug)]
pub struct Committed {
    commit: Commit,
    outcome: Outcome,
}

#[derive(Debug)]
enum Outcome {
    Durable,
    /// It failed before anything was changed.
    Untouched(Error),
    /// It failed, and the slot is empty.
    Emptied(Error),
    /// Whether it will be there is not known.
    Unknown(Error),
}

impl Committed {
    /// Of which snapshot it is.
    #[must_use]
    pub fn snapshot(&self) -> SnapshotId {
        self.commit.id
    }
}

impl Commit {
    /// Writes it and waits until it is durable, or not. On any thread, and beside others: each has a slot of its
    /// own.
    #[must_use]
    pub fn run(self) -> Committed {
        let outcome = guard::caught(|| self.write()).unwrap_or_else(|caught| {
            Outcome::Unknown(caught.into_error(|message| Error::SupervisorPanicked { message }))
        });
        Committed { commit: self, outcome }
    }

    fn write(&self) -> Outcome {
        match self.directory.check_generation(self.id) {
            Err(error) => Outcome::Untouched(error),
            Ok(()) if self.is_new => self.make_slot(),
            Ok(()) => self.overwrite_slot(),
        }
    }

    /// Makes a slot with this content: written beside it, and renamed. **The rename is the decision**.
    fn make_slot(&self) -> Outcome {
        let (disk, dir) = (&*self.directory.disk, &self.directory.path);
        let path = dir.join(manifest_name(self.slot));
        let unfinished = dir.join(temporary(&manifest_name(self.slot)));
        let write = || {
            let file = disk.create_new(&unfinished)?;
            file.write_all_at(&self.bytes, 0)?;
            file.sync_data()
        };
        if let Err(source) = write() {
            // If this fails too the next open removes it: a temporary name decides nothing.
            let _ = disk.remove(&unfinished);
            let reason = refused(disk, "write", unfinished, source).to_string();
            return Outcome::Untouched(Error::Snapshot { snapshot: self.id, reason });
        }
        let decide = || disk.rename(&unfinished, &path).and_then(|()| disk.sync_dir(dir));
        match decide() {
            Ok(()) => Outcome::Durable,
            Err(source) => Outcome::Unknown(refused(disk, "make durable", path, source)),
        }
    }

    /// Overwrites a slot. **The sync is the decision**; if it fails, or the write does, the slot is made
    /// empty and synced again, which is certain too, or the outcome is not known.
    fn overwrite_slot(&self) -> Outcome {
        let (disk, dir, snapshot) = (&*self.directory.disk, &self.directory.path, self.id);
        let path = dir.join(manifest_name(self.slot));
        let file = match disk.open_direct(&path) {
            Ok(file) => file,
            Err(source) => {
                let reason = refused(disk, "open", &path, source).to_string();
                return Outcome::Untouched(Error::Snapshot { snapshot, reason });
            }
        };
        let Err(source) = file.write_all_at(&self.bytes, 0).and_then(|()| file.sync_data()) else {
            return Outcome::Durable;
        };
        let error = refused(disk, "make durable", path, source);
        // A file must not be written again after a failed sync: what of it is clean is not known.
        // Opened anew its blocks are, once they are overwritten and synced without an error.
        match disk.open(&dir.join(manifest_name(self.slot))).and_then(|file| empty(&file)) {
            Ok(()) => Outcome::Emptied(Error::Snapshot { snapshot, reason: error.to_string() }),
            Err(_) => Outcome::Unknown(error),
        }
    }
}

impl Directory {
    /// The lock already keeps others out. This catches a lock file deleted under us, for the price
    /// of reading 64 bytes that are in the page cache.
    fn check_generation(&self, snapshot: SnapshotId) -> Result<()> {
        self.check_there()?;
        let found = read_generation(&*self.disk, &self.path)
            .map_err(|error| Error::Snapshot { snapshot, reason: error.to_string() })?;
        if found == self.generation {
            return Ok(());
        }
        let pid = read_pid(&*self.disk, &self.path.join(LOCK));
        Err(Error::Locked { path: self.path.clone(), pid })
    }

    fn check_there(&self) -> Result<()> {
        match self.disk.len(&self.path.join(GENERATION)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::Directory {
                path: self.path.clone(),
                reason: "its snapshots are gone, it was deleted or moved away while the job ran; put it \
                         back, or start over with new snapshot and output directories"
                    .into(),
            }),
            _ => Ok(()), // what else is wrong is found by whoever needs it
        }
    }
}

impl Store {
    /// Makes a snapshot complete: durable once this returns `Ok`.
    ///
    /// # Errors
    /// As [`end_commit`](Self::end_commit).
    ///
    /// # Panics
    /// As [`begin_commit`](Self::begin_commit).
    pub fn commit(&mut self, manifest: &Manifest) -> Result<()> {
        let commit = self.begin_commit(manifest)?;
        self.end_commit(commit.run())
    }

    /// Begins to make a snapshot complete. Several may be under way: each goes into a slot of its own, beside
    /// as many that stay as retention asks for.
    ///
    /// # Errors
    /// Whether an earlier one is committed is not known: nothing may follow it.
    ///
    /// # Panics
    /// If ids do not rise, the manifest is not of this job and generation, or names a segment that is
    /// not in the directory.
    pub fn begin_commit(&mut self, manifest: &Manifest) -> Result<Commit> {
        let id = manifest.id();
        let next = self.next_snapshot();
        assert!(id >= next, "commit of snapshot {id}, the next is {next}");
        assert_eq!(manifest.generation, self.generation(), "generation of snapshot {id}");
        assert_eq!((manifest.format, &manifest.job), (MANIFEST_FORMAT, &self.job), "snapshot {id}");
        if let Some(before) = self.undecided {
            let reason = format!("whether snapshot {before} is complete is not known; restart");
            return Err(Error::io("commit to", self.path())(io::Error::other(reason)));
        }
        self.tried = id;
        let kept = self.reference(manifest);
        let (slot, is_new) = self.slots.take_next(self.retention, manifest.holds());
        if self.slots.taken() >= self.side_by_side {
            (self.side_by_side, self.collected) = (self.slots.taken(), 0);
        }
        let mut bytes = self.buffers.pop().unwrap_or_default();
        bytes.extend_from_slice(&to_frame(FrameKind::Manifest, id, manifest));
        let multiple = if is_new { SLOT_BYTES } else { DIRECT_BYTES };
        bytes.resize(bytes.len().next_multiple_of(multiple), 0);
        let (directory, holds) = (self.directory.clone(), manifest.holds());
        Ok(Commit { directory, id, slot, is_new, bytes, kept, holds })
    }

    /// What came of a commit; in the order in which they were begun.
    ///
    /// # Errors
    /// [`Error::Snapshot`]: it certainly failed; the one before stays the newest, the job goes on.
    /// [`Error::Locked`]: another process has taken over the directory. [`Error::Directory`]: it is
    /// gone. Anything else: it is not known whether it is committed. In these cases the job must neither
    /// commit nor abort what depends on it but stop and restore from the directory; every later commit is
    /// refused.
    pub fn end_commit(&mut self, committed: Committed) -> Result<()> {
        let Committed { commit: Commit { id, slot, mut bytes, kept, holds, .. }, outcome } =
            committed;
        bytes.clear();
        self.buffers.push(bytes);
        let (content, result) = match outcome {
            Outcome::Unknown(error) => {
                self.undecided = Some(id);
                return Err(error);
            }
            Outcome::Durable => {
                self.held = holds;
                (Content::Valid(kept), Ok(()))
            }
            Outcome::Untouched(error) => {
                self.release(&kept);
                self.slots.give_back(slot);
                return Err(error);
            }
            Outcome::Emptied(error) => {
                self.release(&kept);
                (Content::Free, Err(error))
            }
        };
        let before = self.slots.set(slot, content);
        before.iter().for_each(|before| self.release(before));
        result
    }

    /// Looks whether the directory still is where it was: after that nothing can become durable, however
    /// long the job runs on.
    ///
    /// # Errors
    /// [`Error::Directory`]: it was removed or moved away.
    pub fn check_there(&self) -> Result<()> {
        self.directory.check_there()
    }

    fn reference(&self, manifest: &Manifest) -> Kept {
        let kept = Kept::of(manifest);
        let mut table = self.directory.table();
        for segment in &kept.segments {
            let known = table.segments.get_mut(segment);
            let known = known.unwrap_or_else(|| panic!("{segment:?} is in no snapshot directory"));
            known.manifests += 1;
        }
        kept
    }

    /// Copies manifests that were skipped to another name and empties their slots: they count no
    /// more, so that they are neither warned of at every open nor come back, and are kept as
    /// evidence with the segments they name, until a person deletes them. To be called before anything
    /// is made of the snapshot restored in their place: after a crash in between, or an error, any of
    /// them may be the newest again.
    ///
    /// # Errors
    /// What the system says; then nothing may be made of it.
    pub fn put_aside(&mut self, skipped: &[Skipped]) -> Result<()> {
        let (disk, dir) = (&*self.directory.disk, &self.directory.path);
        for Skipped(slot) in skipped {
            let path = dir.join(manifest_name(*slot));
            let say = |source| refused(disk, "put aside", &path, source);
            let bytes = disk.read(&path).map_err(say)?;
            replace(disk, dir, &passed_over_name(*slot, self.generation()), &bytes)?;
            disk.open(&path).and_then(|file| empty(&file)).map_err(say)?;
            self.slots.0.insert(*slot, Content::Free);
        }
        Ok(())
    }
}

/// Makes durable what a new process takes for true: that a slot is empty, and which snapshot is the newest.
/// After a sync that failed a file reads as it was written until a crash brings back what was there
/// before; so they are written and synced again, before anything is made of them.
pub(super) fn settle(disk: &dyn Disk, dir: &Path, slots: &Slots) -> Result<()> {
    let newest = slots.newest();
    for (slot, content) in &slots.0 {
        let path = dir.join(manifest_name(*slot));
        let settled = match content {
            Content::Free => disk.open(&path).and_then(|file| empty(&file)),
            Content::Valid(kept) if Some(kept.snapshot) == newest => {
                disk.read(&path).and_then(|bytes| {
                    let file = disk.open(&path)?;
                    file.write_all_at(&bytes, 0)?;
                    file.sync_data()
                })
            }
            Content::Valid(_) | Content::Taken { .. } | Content::Skipped => Ok(()),
        };
        settled.map_err(|source| refused(disk, "make durable", path, source))?;
    }
    Ok(())
}

/// Makes all of a slot zeros, durably.
fn empty(file: &FileHandle) -> io::Result<()> {
    let mut bytes = vec![0; SLOT_BYTES];
    let mut length = 0;
    loop {
        let read = file.read_at(&mut bytes, length)?;
        length += read as u64;
        if read < bytes.len() {
            break;
        }
    }
    file.write_all_at(&vec![0; length as usize], 0)?;
    file.sync_data()
}
