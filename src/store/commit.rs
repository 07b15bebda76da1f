//! The commit: where a snapshot becomes complete, or does not.

use std::io;
use std::path::Path;

use super::layout::{
    GENERATION, LOCK, SlotNumber, manifest_name, passed_over_name, refused, replace, temporary,
};
use super::manifest::{MANIFEST_FORMAT, Manifest, to_frame};
use super::open::{read_generation, read_pid};
use super::slots::{Content, Kept, SLOT_BYTES, Slots};
use super::{Skipped, Store};
use crate::disk::{DIRECT_BYTES, Disk, FileHandle};
use crate::error::{Error, Result};
use crate::frame::FrameKind;
use crate::id::SnapshotId;

impl Store {
    /// Makes a snapshot complete: durable once this returns `Ok`.
    ///
    /// # Errors
    /// [`Error::Snapshot`]: it certainly failed; the one before stays the newest, the job goes on.
    /// [`Error::Locked`]: another process has taken over the directory. [`Error::Directory`]: it is
    /// gone. Anything else: it is not known whether it is committed. In these cases the job must neither
    /// commit nor abort what depends on it but stop and restore from the directory; every later commit is
    /// refused.
    ///
    /// # Panics
    /// If ids do not rise, the manifest is not of this job and generation, or names a segment that is
    /// not in the directory.
    pub fn commit(&mut self, manifest: &Manifest) -> Result<()> {
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
        self.check_generation(id)?;
        let kept = self.reference(manifest);
        let mut bytes = to_frame(FrameKind::Manifest, id, manifest);
        let (slot, is_new) = self.slots.next(self.retention, manifest.holds());
        let written = if is_new {
            bytes.resize(bytes.len().next_multiple_of(SLOT_BYTES), 0);
            self.make_slot(slot, id, &bytes)
        } else {
            self.overwrite_slot(slot, id, &bytes)
        };
        match written {
            Ok(()) => {
                self.held = manifest.holds();
                let before = self.slots.set(slot, Content::Valid(kept));
                before.iter().for_each(|before| self.release(before));
                Ok(())
            }
            Err(error) => {
                if self.undecided.is_none() {
                    self.release(&kept);
                }
                Err(error)
            }
        }
    }

    /// Makes a slot with this content: written beside it, and renamed. **The rename is the decision**.
    fn make_slot(&mut self, slot: SlotNumber, id: SnapshotId, bytes: &[u8]) -> Result<()> {
        let (disk, dir) = (&*self.directory.disk, &self.directory.path);
        let path = dir.join(manifest_name(slot));
        let unfinished = dir.join(temporary(&manifest_name(slot)));
        let write = || {
            let file = disk.create_new(&unfinished)?;
            file.write_all_at(bytes, 0)?;
            file.sync_data()
        };
        if let Err(source) = write() {
            // If this fails too the next open removes it: a temporary name decides nothing.
            let _ = disk.remove(&unfinished);
            let reason = refused(disk, "write", unfinished, source).to_string();
            return Err(Error::Snapshot { snapshot: id, reason });
        }
        let decide = || disk.rename(&unfinished, &path).and_then(|()| disk.sync_dir(dir));
        decide().map_err(|source| {
            self.undecided = Some(id);
            refused(disk, "make durable", path, source)
        })
    }

    /// Overwrites a slot. **The sync is the decision**; if it fails, or the write does, the slot is made
    /// empty and synced again, which is certain too, or the outcome is not known.
    fn overwrite_slot(&mut self, slot: SlotNumber, id: SnapshotId, bytes: &[u8]) -> Result<()> {
        let (disk, dir) = (&*self.directory.disk, &self.directory.path);
        let path = dir.join(manifest_name(slot));
        let opened = disk.open_direct(&path);
        let file = opened.map_err(|source| {
            let reason = refused(disk, "open", &path, source).to_string();
            Error::Snapshot { snapshot: id, reason }
        })?;
        self.aligned.clear();
        self.aligned.extend_from_slice(bytes);
        self.aligned.resize(bytes.len().next_multiple_of(DIRECT_BYTES), 0);
        let Err(source) = file.write_all_at(&self.aligned, 0).and_then(|()| file.sync_data())
        else {
            return Ok(());
        };
        let error = refused(disk, "make durable", path, source);
        // A file must not be written again after a failed sync: what of it is clean is not known.
        // Opened anew its blocks are, once they are overwritten and synced without an error.
        let emptied = disk.open(&dir.join(manifest_name(slot))).and_then(|file| empty(&file));
        if emptied.is_err() {
            self.undecided = Some(id);
            return Err(error);
        }
        let before = self.slots.set(slot, Content::Free);
        before.iter().for_each(|before| self.release(before));
        Err(Error::Snapshot { snapshot: id, reason: error.to_string() })
    }

    /// The lock already keeps others out. This catches a lock file deleted under us, for the price
    /// of reading 64 bytes that are in the page cache.
    fn check_generation(&self, snapshot: SnapshotId) -> Result<()> {
        self.check_there()?;
        let (disk, dir) = (&*self.directory.disk, &self.directory.path);
        let found = read_generation(disk, dir)
            .map_err(|error| Error::Snapshot { snapshot, reason: error.to_string() })?;
        if found == self.directory.generation {
            return Ok(());
        }
        let pid = read_pid(disk, &dir.join(LOCK));
        Err(Error::Locked { path: dir.clone(), pid })
    }

    /// Looks whether the directory still is where it was: after that nothing can become durable, however
    /// long the job runs on.
    ///
    /// # Errors
    /// [`Error::Directory`]: it was removed or moved away.
    pub fn check_there(&self) -> Result<()> {
        let (disk, path) = (&*self.directory.disk, &self.directory.path);
        match disk.len(&path.join(GENERATION)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::Directory {
                path: path.clone(),
                reason: "its snapshots are gone, it was deleted or moved away while the job ran; put it \
                         back, or start over with new snapshot and output directories"
                    .into(),
            }),
            _ => Ok(()), // what else is wrong is found by whoever needs it
        }
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
            Content::Valid(_) | Content::Skipped => Ok(()),
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
