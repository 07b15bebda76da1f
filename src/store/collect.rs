//! Collection: manifests beyond retention go, then segments that nothing needs any more.
//!
//! The steps are spread over commits so that they cost no sync of their own: a manifest removed
//! after commit n is durably gone with the directory sync of commit n+1, and only then do the
//! segments it named lose its claim.

use std::io::ErrorKind;

use super::Store;
use super::layout::{manifest_name, refused};
use super::manifest::Manifest;
use crate::error::Result;
use crate::id::SnapshotId;

/// A manifest and the segments it names, each once.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) snapshot: SnapshotId,
    pub(super) files: Vec<String>,
}

impl Kept {
    pub(super) fn of(manifest: &Manifest) -> Self {
        let named = manifest.parts.iter().filter(|part| part.bytes > 0);
        let mut files: Vec<String> = named.map(|part| part.file.clone()).collect();
        files.sort_unstable();
        files.dedup();
        Self { snapshot: manifest.id(), files }
    }
}

impl Store {
    /// Removes manifests beyond retention and segments that nothing needs, and prepares the next
    /// segment of every writer. Returns how many files it removed. To be called after a commit,
    /// off the workers; looks at no file and no directory that it does not change.
    ///
    /// # Errors
    /// What the system says. Nothing is lost by it: the next call goes on where this one stopped.
    pub fn collect(&mut self) -> Result<usize> {
        if self.undecided.is_some() {
            return Ok(0);
        }
        let mut removed = 0;
        while self.kept.len() > self.retention {
            let name = manifest_name(self.kept[0].snapshot);
            self.remove(&name)?;
            self.unlinked.extend(self.kept.pop_front());
            removed += 1;
        }
        for kept in std::mem::take(&mut self.released) {
            self.release(&kept);
        }
        for name in self.unneeded() {
            self.remove(&name)?;
            self.directory.table().segments.remove(&name);
            removed += 1;
        }
        self.directory.refill()?;
        Ok(removed)
    }

    /// Newest snapshot that is complete; 0 if there is none.
    pub(super) fn newest(&self) -> SnapshotId {
        self.kept.back().map_or(SnapshotId(0), |kept| kept.snapshot)
    }

    /// Takes back the claim of a manifest that cannot come back.
    pub(super) fn release(&self, kept: &Kept) {
        let mut table = self.directory.table();
        for file in &kept.files {
            let known = table.segments.get_mut(file).expect("a segment that is named is known");
            assert!(known.manifests > 0, "{file} is released more often than it is named");
            known.manifests -= 1;
        }
    }

    fn unneeded(&self) -> Vec<String> {
        let committed = self.newest();
        let table = self.directory.table();
        let unneeded = table.segments.iter().filter(|(_, known)| {
            known.manifests == 0 && !known.pinned && known.usage.is_released(committed)
        });
        unneeded.map(|(name, _)| name.clone()).collect()
    }

    fn remove(&self, name: &str) -> Result<()> {
        let path = self.directory.path.join(name);
        match self.directory.disk.remove(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(refused(&*self.directory.disk, "remove", path, error))
            }
            _ => Ok(()),
        }
    }
}
