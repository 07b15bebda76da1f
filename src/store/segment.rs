//! Segments: the files that parts are appended to, and who still needs each.
//!
//! Owns the table that writers (on workers) and the store (on the control thread) share.
//!
//! Invariants
//! - A segment is created, preallocated, synced and its name made durable before a part goes in.
//! - On a worker's path the table's lock is taken only to change segments, never across I/O.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::layout::{part_name, refused};
use crate::disk::{Disk, FileHandle};
use crate::error::Result;
use crate::id::{Attempt, SnapshotId, WorkerId};

/// Parts start at multiples of this, the unit of the page cache.
pub(super) const BLOCK_BYTES: usize = 4096;

/// A snapshot directory as writers and store share it.
pub(super) struct Directory {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) path: PathBuf,
    pub(super) generation: u64,
    pub(super) segment_bytes: u64,
    pub(super) next_number: AtomicU64,
    pub(super) table: Mutex<Table>,
}

/// Every segment in the directory, and every writer.
#[derive(Default)]
pub(super) struct Table {
    pub(super) segments: BTreeMap<String, Known>,
    pub(super) writers: Vec<Weak<Spare>>,
}

/// What the store knows of a segment.
#[derive(Default)]
pub(super) struct Known {
    pub(super) usage: Arc<Usage>,
    /// Manifests that name it and may survive a crash.
    pub(super) manifests: usize,
    /// Kept though nothing names it: evidence of damage.
    pub(super) pinned: bool,
}

/// What a writer says of its segment.
#[derive(Default)]
pub(super) struct Usage {
    /// A writer appends to it, or will.
    live: AtomicBool,
    /// Highest snapshot with a part in it; 0 for none of this process.
    last_snapshot: AtomicU64,
}

impl Usage {
    /// A part of `snapshot` goes in.
    pub(super) fn note(&self, snapshot: SnapshotId) {
        // Release pairs with `is_released`: who sees the segment closed sees this id too.
        self.last_snapshot.fetch_max(snapshot.0, Ordering::Release);
    }

    /// Its writer has left it.
    pub(super) fn close(&self) {
        self.live.store(false, Ordering::Release);
    }

    /// Whether no writer and no snapshot above `committed` needs it.
    pub(super) fn is_released(&self, committed: SnapshotId) -> bool {
        !self.live.load(Ordering::Acquire)
            && self.last_snapshot.load(Ordering::Acquire) <= committed.0
    }
}

/// A segment made ready for a writer before it needs one.
pub(super) struct Spare {
    pub(super) worker: WorkerId,
    pub(super) attempt: Attempt,
    pub(super) segment: Mutex<Option<Segment>>,
}

impl Spare {
    pub(super) fn take(&self) -> Option<Segment> {
        self.segment.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn is_missing(&self) -> bool {
        self.segment.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    pub(super) fn put(&self, segment: Segment) {
        *self.segment.lock().unwrap_or_else(PoisonError::into_inner) = Some(segment);
    }
}

/// A segment in the hands of its one writer.
pub(super) struct Segment {
    pub(super) name: String,
    pub(super) file: FileHandle,
    /// Where the next part starts: a multiple of the block.
    pub(super) next: u64,
    pub(super) capacity_bytes: u64,
    pub(super) usage: Arc<Usage>,
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.usage.close();
    }
}

impl Directory {
    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new segment with room for a part of `part_bytes`, its name durable.
    pub(super) fn create_segment(
        &self,
        worker: WorkerId,
        attempt: Attempt,
        part_bytes: u64,
    ) -> Result<Segment> {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let name = part_name(worker, self.generation, attempt, number);
        let path = self.path.join(&name);
        let capacity_bytes = self.segment_bytes.max(part_bytes);
        let usage = Arc::new(Usage::default());
        usage.live.store(true, Ordering::Release);
        let known = Known { usage: usage.clone(), ..Known::default() };
        let create = || {
            let file = self.disk.create_new(&path)?;
            file.preallocate(capacity_bytes)?;
            file.sync_data()?;
            self.disk.sync_dir(&self.path)?;
            Ok(file)
        };
        // Known before it exists, so that a half-made segment is collected like any other.
        self.table().segments.insert(name.clone(), known);
        match create() {
            Ok(file) => Ok(Segment { name, file, next: 0, capacity_bytes, usage }),
            Err(source) => {
                usage.close();
                Err(refused(&*self.disk, "create", path, source))
            }
        }
    }

    /// Makes a spare segment for every writer that has none.
    pub(super) fn refill(&self) -> Result<()> {
        let spares: Vec<Arc<Spare>> = {
            let mut table = self.table();
            table.writers.retain(|writer| writer.strong_count() > 0);
            table.writers.iter().filter_map(Weak::upgrade).collect()
        };
        for spare in spares.iter().filter(|spare| spare.is_missing()) {
            spare.put(self.create_segment(spare.worker, spare.attempt, 0)?);
        }
        Ok(())
    }
}
