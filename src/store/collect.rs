//! Collection: segments that nothing needs any more become free, and reserves are filled up.
//!
//! A manifest beyond retention loses its claim when the slot that it was in has been overwritten and
//! synced (see [`super::commit`]); nothing here has to make a removal durable first.

use std::io::ErrorKind;

use super::Store;
use super::layout::{manifest_name, refused, segment_name};
use super::segment::{Free, Known};
use super::slots::Kept;
use crate::error::Result;
use crate::id::{SegmentId, SnapshotId};

/// After so many commits, of which none needed the last slot, there is one less.
const COLLECTED_MAX: u32 = 256;

impl Store {
    /// Frees segments that nothing needs, for use again or by removing them, and makes the next segment
    /// of every writer. Returns how many files it removed. To be called after a commit, off the
    /// workers; looks at no file and no directory that it does not change.
    ///
    /// # Errors
    /// What the system says, of the first file that could not be removed. Nothing is lost by it: the
    /// others are seen to, and the next call tries again.
    pub fn collect(&mut self) -> Result<usize> {
        if self.undecided.is_some() {
            return Ok(0);
        }
        self.need_fewer_slots();
        let (mut removed, mut result) = (self.remove_slots_beyond_retention()?, Ok(()));
        for (segment, reusable) in self.unneeded() {
            let mut table = self.directory.table();
            let keeps = |free: &Free| table.keeps_free(free.capacity_bytes);
            if let Some(free) = reusable.filter(keeps) {
                table.segments.remove(&segment);
                table.free.push(free);
                continue;
            }
            drop(table);
            match self.remove(&segment_name(segment)) {
                Ok(()) => {
                    self.directory.table().segments.remove(&segment);
                    removed += 1;
                }
                Err(error) => result = result.and(Err(error)),
            }
        }
        self.directory.refill();
        result.map(|()| removed)
    }

    /// Makes the next segment of every writer that has none in reserve. To be called often, off the
    /// workers: one that writes a lot waits for it.
    pub fn refill(&self) {
        self.directory.refill();
    }

    /// Commits that were side by side once may be so again soon, and making a slot takes a while; but their
    /// manifests keep bytes, and not for good.
    fn need_fewer_slots(&mut self) {
        self.collected += 1;
        if self.collected == COLLECTED_MAX && self.side_by_side > 1 {
            (self.collected, self.side_by_side) = (0, self.side_by_side - 1);
        }
    }

    /// Where an earlier process, or this one in need of a slot, left more than are used now; and those that
    /// had to stay until all pages were read.
    fn remove_slots_beyond_retention(&mut self) -> Result<usize> {
        let mut removed = 0;
        while self.slots.valid(self.held) > self.retention + self.side_by_side {
            let oldest = self.slots.oldest(self.held).expect("there are some");
            let path = self.directory.path.join(manifest_name(oldest));
            self.remove(&manifest_name(oldest))?;
            let synced = self.directory.disk.sync_dir(&self.directory.path);
            synced.map_err(|source| refused(&*self.directory.disk, "remove", path, source))?;
            if let Some(kept) = self.slots.remove(oldest) {
                self.release(&kept);
            }
            removed += 1;
        }
        Ok(removed)
    }

    /// Takes back the claim of a manifest that cannot come back.
    pub(super) fn release(&self, kept: &Kept) {
        let mut table = self.directory.table();
        for segment in &kept.segments {
            let known = table.segments.get_mut(segment).expect("a segment that is named is known");
            assert!(known.manifests > 0, "{segment:?} is released more often than it is named");
            known.manifests -= 1;
        }
    }

    /// Segments that nothing needs, and whether their files may be used again.
    fn unneeded(&self) -> Vec<(SegmentId, Option<Free>)> {
        let committed = self.slots.newest().unwrap_or(SnapshotId(0));
        let table = self.directory.table();
        let unneeded = table.segments.iter().filter(|(_, known)| {
            known.manifests == 0 && !known.pinned && known.usage.is_released(committed)
        });
        let reusable = |segment, known: &Known| {
            let (capacity_bytes, written_bytes) =
                (known.capacity_bytes, known.usage.written_bytes());
            known.usage.is_sound().then_some(Free { segment, capacity_bytes, written_bytes })
        };
        unneeded.map(|(segment, known)| (*segment, reusable(*segment, known))).collect()
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
