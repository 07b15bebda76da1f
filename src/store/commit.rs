//! The commit: where a snapshot becomes complete, or does not.

use std::io;

use super::Store;
use super::collect::Kept;
use super::layout::{LOCK, manifest_name, refused, temporary};
use super::manifest::{MANIFEST_FORMAT, Manifest, to_frame};
use super::open::{read_generation, read_pid};
use crate::error::{Error, Result};
use crate::frame::FrameKind;
use crate::id::SnapshotId;

impl Store {
    /// Makes a snapshot complete: durable once this returns `Ok`.
    ///
    /// # Errors
    /// [`Error::Snapshot`]: it certainly failed; the one before stays the newest, the job goes on.
    /// [`Error::Locked`]: another process has taken over the directory. Anything else: it is not
    /// known whether it is committed (the rename was made, its durability is in doubt). In these
    /// cases the job must neither commit nor abort what depends on it but stop and restore from
    /// the directory; every later commit is refused.
    ///
    /// # Panics
    /// If ids do not rise, the manifest is not of this job and generation, or names a part that is
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
        match self.write_manifest(manifest) {
            Ok(()) => {
                self.kept.push_back(kept);
                // The directory sync made the removals before it durable.
                self.released.append(&mut self.unlinked);
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

    fn write_manifest(&mut self, manifest: &Manifest) -> Result<()> {
        let id = manifest.id();
        let (disk, dir) = (&*self.directory.disk, &self.directory.path);
        let path = dir.join(manifest_name(id));
        let unfinished = dir.join(temporary(&manifest_name(id)));
        let bytes = to_frame(FrameKind::Manifest, id, manifest);
        let write = || {
            let file = disk.create_new(&unfinished)?;
            file.write_all_at(&bytes, 0)?;
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

    /// The lock already keeps others out. This catches a lock file deleted under us, for the price
    /// of reading 64 bytes that are in the page cache.
    fn check_generation(&self, snapshot: SnapshotId) -> Result<()> {
        let (disk, dir) = (&*self.directory.disk, &self.directory.path);
        let found = read_generation(disk, dir)
            .map_err(|error| Error::Snapshot { snapshot, reason: error.to_string() })?;
        if found.generation == self.directory.generation {
            return Ok(());
        }
        let pid = read_pid(disk, &dir.join(LOCK));
        Err(Error::Locked { path: dir.clone(), pid })
    }

    fn reference(&self, manifest: &Manifest) -> Kept {
        let kept = Kept::of(manifest);
        let mut table = self.directory.table();
        for file in &kept.files {
            let known = table.segments.get_mut(file);
            let known = known.unwrap_or_else(|| panic!("{file} is in no snapshot directory"));
            known.manifests += 1;
        }
        kept
    }
}
