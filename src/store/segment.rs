//! Segments: the files that state is written into, and who still needs each.
//!
//! Owns the table that writers (on workers) and the store (on the control thread) share.
//!
//! A segment that nothing needs any more is kept for use under another number: overwriting blocks that
//! have been written before takes the disk half the time of writing new ones, as the file system
//! has nothing to note (`perf/0004`).
//!
//! Invariants
//! - A segment is created, preallocated, synced and its name made durable before anything goes in.
//! - A number is never given twice while something may refer to its first bearer: numbers rise, and
//!   begin above those of all files in the directory.
//! - On a worker's path the table's lock is taken only to change segments, never across I/O.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::layout::{refused, segment_name};
use crate::disk::{Disk, FileHandle};
use crate::error::Result;
use crate::id::{SegmentId, SnapshotId};

/// What is written starts at multiples of this, the unit of the page cache and of direct writes.
pub(super) const BLOCK_BYTES: usize = crate::disk::DIRECT_BYTES;

/// No segment is made larger than this share of what is free.
const ROOM_FACTOR: u64 = 8;

/// Nor is one made smaller than this for it: a chunk fits twice.
const SMALL_SEGMENT_BYTES: u64 = 1 << 20;

/// Segments kept for use again, for each writer.
const FREE_PER_WRITER: usize = 4;

/// What GENERATION holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Generation {
    pub(super) generation: u64,
    /// The first id its process may use.
    pub(super) first_snapshot: u64,
    /// When it was opened: two directories that were made one after the other at the same place begin with
    /// the same numbers. 0 in one of a version before.
    pub(super) opened_ns: u64,
}

/// A snapshot directory as writers and store share it.
pub(super) struct Directory {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) path: PathBuf,
    /// What GENERATION holds while nobody else has the directory.
    pub(super) generation: Generation,
    /// Size of a writer's first segment, and of its largest.
    pub(super) segment_bytes: (u64, u64),
    pub(super) next_segment: AtomicU32,
    pub(super) table: Mutex<Table>,
}

/// Every segment in the directory, and every writer.
#[derive(Default)]
pub(super) struct Table {
    pub(super) segments: BTreeMap<SegmentId, Known>,
    /// Files that nothing needs, to be used again.
    pub(super) free: Vec<Free>,
    pub(super) writers: Vec<Weak<Spare>>,
}

/// A file that nothing needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Free {
    pub(super) segment: SegmentId,
    /// Its length.
    pub(super) capacity_bytes: u64,
    /// As far as this process has written it.
    pub(super) written_bytes: u64,
}

/// What the store knows of a segment.
#[derive(Default)]
pub(super) struct Known {
    pub(super) usage: Arc<Usage>,
    /// Length of the file.
    pub(super) capacity_bytes: u64,
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
    /// Highest snapshot that something was written for; 0 for none of this process.
    last_snapshot: AtomicU64,
    /// How far the file is written, once it is closed; 0 for one of an earlier process.
    written_bytes: AtomicU64,
    /// A write to it, or its sync, has failed.
    failed: AtomicBool,
}

impl Usage {
    /// Something is written for `snapshot`.
    pub(super) fn note(&self, snapshot: SnapshotId) {
        // Release pairs with `is_released`: who sees the segment closed sees this id too.
        self.last_snapshot.fetch_max(snapshot.0, Ordering::Release);
    }

    /// The file is not to be used again: what the system holds of it may not be what the disk does.
    pub(super) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    fn close(&self, written_bytes: u64) {
        self.written_bytes.store(written_bytes, Ordering::Relaxed);
        // Release pairs with `is_released`: who sees it closed sees how far it is written.
        self.live.store(false, Ordering::Release);
    }

    /// How far the file is written, as far as is known; to be asked once it is released.
    pub(super) fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    /// Whether no writer and no snapshot above `committed` needs it.
    pub(super) fn is_released(&self, committed: SnapshotId) -> bool {
        !self.live.load(Ordering::Acquire)
            && self.last_snapshot.load(Ordering::Acquire) <= committed.0
    }

    /// Whether it may serve under another number once nothing needs it.
    pub(super) fn is_sound(&self) -> bool {
        !self.failed.load(Ordering::Acquire)
    }
}

/// Where the store puts a segment for a writer before it needs one.
pub(super) struct Spare {
    /// How large the writer's next segment should be, where the disk has room.
    pub(super) wanted_bytes: AtomicU64,
    /// How large it has to be: what is to be written next belongs together.
    pub(super) needed_bytes: AtomicU64,
    made: Mutex<Option<Result<Segment>>>,
}

impl Spare {
    pub(super) fn new(wanted_bytes: u64) -> Self {
        let [wanted_bytes, needed_bytes] = [wanted_bytes, 0].map(AtomicU64::new);
        Self { wanted_bytes, needed_bytes, made: Mutex::new(None) }
    }

    fn made(&self) -> MutexGuard<'_, Option<Result<Segment>>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The segment, or why it could not be made.
    pub(super) fn take(&self) -> Option<Result<Segment>> {
        self.made().take()
    }

    pub(super) fn is_missing(&self) -> bool {
        self.made().is_none()
    }
}

/// A segment in the hands of its one writer.
pub(super) struct Segment {
    pub(super) id: SegmentId,
    pub(super) file: FileHandle,
    /// Where the next bytes go: a multiple of the block.
    pub(super) next: u64,
    pub(super) capacity_bytes: u64,
    /// Blocks below this were written, and synced, before the file served as this segment: writing them changes
    /// nothing that the file system notes of the file but its times.
    pub(super) written_bytes: u64,
    pub(super) usage: Arc<Usage>,
}

impl Segment {
    pub(super) fn has_room_for(&self, bytes: u64) -> bool {
        self.next + bytes <= self.capacity_bytes
    }

    /// Whether the next `bytes` go where something was written before.
    pub(super) fn overwrites(&self, bytes: u64) -> bool {
        self.next + bytes <= self.written_bytes
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.usage.close(self.next.max(self.written_bytes));
    }
}

impl Directory {
    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How large a segment should be made if one of `wanted` bytes would do: where the disk gets full, large
    /// ones would take the room in which small ones can go round.
    pub(super) fn affordable(&self, wanted: u64) -> u64 {
        let free = self.disk.free_bytes(&self.path).unwrap_or(u64::MAX);
        let (mut bytes, small) = (wanted, self.segment_bytes.0.min(SMALL_SEGMENT_BYTES));
        while bytes > small && bytes > free / ROOM_FACTOR {
            bytes /= 2;
        }
        bytes.max(small)
    }

    /// A segment with room for that many bytes, its name durable: a file that nothing needs any
    /// more, or a new one.
    pub(super) fn create_segment(&self, bytes: u64) -> Result<Segment> {
        let id = SegmentId(self.next_segment.fetch_add(1, Ordering::Relaxed));
        let path = self.path.join(segment_name(id));
        let usage = Arc::new(Usage::default());
        usage.live.store(true, Ordering::Release);
        let old = {
            let mut table = self.table();
            let old = table.take_free(bytes);
            let capacity_bytes = old.map_or(bytes, |old| old.capacity_bytes);
            // Known before it exists, so that a half-made segment is collected like any other.
            let known = Known { usage: usage.clone(), capacity_bytes, ..Known::default() };
            table.segments.insert(id, known);
            old
        };
        let mut made = false;
        let mut create = || {
            match old {
                Some(old) => {
                    self.disk.rename(&self.path.join(segment_name(old.segment)), &path)?;
                    // What was written last may have been synced by nobody.
                    self.disk.open(&path)?.sync_data()?;
                }
                None => {
                    let file = self.disk.create_new(&path)?;
                    made = true;
                    file.preallocate(bytes)?;
                    file.sync_data()?;
                }
            }
            self.disk.sync_dir(&self.path)?;
            self.disk.open_direct(&path)
        };
        let capacity_bytes = old.map_or(bytes, |old| old.capacity_bytes);
        let written_bytes = old.map_or(0, |old| old.written_bytes);
        match create() {
            Ok(file) => Ok(Segment { id, file, next: 0, capacity_bytes, written_bytes, usage }),
            Err(source) => {
                usage.close(0);
                // What there is of it may take the room that a smaller one needs. If it cannot be removed
                // now it is collected later, and not used again as if it had been made. A file that was
                // there before is not ours: the directory may be another process's by now.
                let removed = made && self.disk.remove(&path).is_ok();
                let mut table = self.table();
                if removed {
                    table.segments.remove(&id);
                } else if let Some(known) = table.segments.get_mut(&id) {
                    known.capacity_bytes = 0;
                }
                drop(table);
                Err(refused(&*self.disk, "create", path, source))
            }
        }
    }

    /// Makes a segment for every writer that has none in reserve. What goes wrong the writer is told
    /// when it comes to need it.
    pub(super) fn refill(&self) {
        let spares: Vec<Arc<Spare>> = {
            let mut table = self.table();
            table.writers.retain(|writer| writer.strong_count() > 0);
            table.writers.iter().filter_map(Weak::upgrade).collect()
        };
        for spare in spares.iter().filter(|spare| spare.is_missing()) {
            let wanted = spare.wanted_bytes.load(Ordering::Relaxed);
            let needed = spare.needed_bytes.load(Ordering::Relaxed);
            let made = self.create_segment(self.affordable(wanted).max(needed));
            *spare.made() = Some(made);
        }
    }

    /// A name for bytes that could not be written anywhere.
    pub(super) fn nowhere(&self) -> SegmentId {
        SegmentId(u32::MAX)
    }

    /// The length of a segment's file.
    pub(super) fn capacity_bytes(&self, segment: SegmentId) -> u64 {
        self.table().segments.get(&segment).map_or(0, |known| known.capacity_bytes)
    }
}

impl Table {
    /// A file for so many bytes that is not much too large.
    fn take_free(&mut self, bytes: u64) -> Option<Free> {
        let fits = |free: &Free| (bytes..=bytes.saturating_mul(4)).contains(&free.capacity_bytes);
        let fitting = self.free.iter().enumerate().filter(|(_, free)| fits(free));
        let (at, _) = fitting.min_by_key(|(_, free)| free.capacity_bytes)?;
        Some(self.free.swap_remove(at))
    }

    /// Whether a file that nothing needs is worth keeping for use again.
    pub(super) fn keeps_free(&self, bytes: u64) -> bool {
        let wanted =
            |writer: &Weak<Spare>| Some(writer.upgrade()?.wanted_bytes.load(Ordering::Relaxed));
        let largest = self.writers.iter().filter_map(wanted).max().unwrap_or(0);
        self.free.len() < FREE_PER_WRITER * self.writers.len()
            && bytes >= (largest / 2).max(1)
            && bytes <= largest
    }
}
