//! The snapshot directory: durable parts, and the manifest that makes them a snapshot.
//!
//! Owns the layout, the commit protocol, restore with fallback, and collection. Decides neither
//! when to snapshot nor what state means.
//!
//! ```text
//! LOCK                                  held with flock while a process runs; its pid as text
//! JOB                                   frame "job": JSON of JobIdentity; written once, and again from
//!                                       a manifest should it be damaged
//! GENERATION                            frame "generation": u64 generation, u64 first snapshot id;
//!                                       replaced by every open
//! worker-<w>-<generation>-<attempt>-<n>.part    segment: parts at multiples of 4096
//! snapshot-<20 digits>.manifest         frame "manifest": JSON of Manifest
//! snapshot-<20 digits>.manifest.passed-over     one that could not be restored, put aside
//! *.tmp                                 not decided yet; removed by the next open
//! ```
//!
//! A *part* is what one worker wrote for one snapshot: frames of kind "state" back to back, named
//! by a [`PartRef`] (file, offset, bytes, CRC32C, frames). Parts start on their own 4 KiB block, so
//! no later write touches a block that holds a durable part. Segments are preallocated, so that a
//! part costs one overwrite and one fdatasync; a part larger than a segment gets one of its size.
//!
//! Commit of snapshot n: parts written, each with fdatasync; manifest written to a temporary name,
//! fdatasync; rename; fsync of the directory. **The renamed manifest is the decision.** Case by
//! case, a crash
//! - before the rename leaves n-1 newest, and bytes that no manifest names;
//! - between rename and directory sync leaves n-1 or n, and n names only durable parts;
//! - after the directory sync leaves n.
//!
//! Invariants
//! - A manifest in the directory names only parts that were durable before it was written.
//! - A segment is deleted only when no manifest that may survive a crash names it (the removal of
//!   the last one was followed by a directory sync), no writer appends to it, and every snapshot
//!   written into it is older than a committed one.
//! - After a failed write or sync a segment takes no further part; a part is handed to the disk
//!   only after the one before it in the same segment is durable, so that no sync can swallow the
//!   error that another part should see.
//! - Snapshot ids rise over the life of the directory, also over those that were never committed.
//! - What could not be read is never deleted by the process that found it so.
//!
//! Fault model: that of [`crate::disk`]. Bit rot is detected by checksums and answered with the
//! previous snapshot and a warning. Two processes: the lock keeps the second out; should the lock
//! file be deleted under a running process, its next commit finds a foreign GENERATION and fails.

mod collect;
mod commit;
mod inspect;
mod layout;
mod manifest;
mod open;
mod part;
mod read;
mod segment;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Disk, DiskLock};
use crate::error::Result;
use crate::id::{Attempt, SnapshotId, StateSlot, WorkerId};

pub use inspect::{Condition, Report, SnapshotInfo, list, show, verify};
pub use manifest::{JobIdentity, MANIFEST_FORMAT, Manifest, OperatorEntry, PartRef};
pub use part::{PARTS_MAX, PartWriter};

/// Complete snapshots kept at least, whatever retention asks for: one to fall back to.
pub const RETENTION_MIN: usize = 2;

/// Most ids a process may use without committing one of them. The next process starts this many
/// further, so that no id is used twice. Whoever triggers fails the job before so many snapshots
/// in a row have failed.
pub const UNCOMMITTED_SNAPSHOTS_MAX: u64 = 256;

/// Bounds of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreLimits {
    /// Complete snapshots kept; at least [`RETENTION_MIN`] are, whatever it says.
    pub retention: usize,
    /// Size of a segment file; a part that is larger gets a segment of its own.
    pub segment_bytes: u64,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self { retention: 3, segment_bytes: 16 << 20 }
    }
}

/// The snapshot directory of one job, held by this process.
pub struct Store {
    directory: Arc<segment::Directory>,
    job: JobIdentity,
    retention: usize,
    first_snapshot: SnapshotId,
    /// The highest id a commit was tried for.
    tried: SnapshotId,
    /// Manifests in the directory that count, oldest first.
    kept: VecDeque<collect::Kept>,
    /// Manifests removed, whose removal the next commit makes durable.
    unlinked: Vec<collect::Kept>,
    /// Manifests whose removal is durable.
    released: Vec<collect::Kept>,
    /// Set when it is not known whether this snapshot is committed: nothing may follow.
    undecided: Option<SnapshotId>,
    _lock: DiskLock,
}

/// What [`Store::open`] found.
pub struct Opened {
    /// The directory, locked.
    pub store: Store,
    /// The newest snapshot that can be restored, verified byte by byte; `None` in a new directory.
    pub newest: Option<Manifest>,
    /// What had to be skipped: which file, which byte, what was wrong with it.
    pub warnings: Vec<String>,
    /// Whether a snapshot newer than `newest` was skipped. Who restores `newest` then has to commit
    /// it under a new id *before* undoing anything that belongs to the skipped one, for that one may
    /// be readable again at the next open.
    pub fell_back: bool,
    /// Snapshots that were skipped, for [`Store::put_aside`].
    pub skipped: Vec<SnapshotId>,
}

/// One share of one operator's state, as it was appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateEntry {
    /// The operator's name.
    pub operator: String,
    /// Which share.
    pub slot: StateSlot,
    /// Version of the state's schema.
    pub schema: u32,
    /// The state.
    pub bytes: Vec<u8>,
}

impl Store {
    /// Opens or creates the snapshot directory of `job`, with `retention` snapshots kept.
    ///
    /// # Errors
    /// As [`open_with`](Self::open_with).
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        job: &JobIdentity,
        retention: usize,
    ) -> Result<Opened> {
        Self::open_with(disk, dir, job, StoreLimits { retention, ..StoreLimits::default() })
    }

    /// Opens or creates the snapshot directory of `job`: takes the lock, raises the generation
    /// durably and verifies the newest complete snapshot fully, falling back to the one before it
    /// with a warning. A crash meanwhile leaves the same snapshot restorable.
    ///
    /// # Errors
    /// [`Locked`](crate::error::Error::Locked): another process has it.
    /// [`OtherJob`](crate::error::Error::OtherJob): made by another job.
    /// [`Newer`](crate::error::Error::Newer): made by a newer program.
    /// [`NothingToRestore`](crate::error::Error::NothingToRestore): manifests, none usable.
    /// [`Corrupt`](crate::error::Error::Corrupt): neither JOB nor any manifest says whose it is.
    /// [`Directory`](crate::error::Error::Directory): not a directory for snapshots at all.
    /// [`Io`](crate::error::Error::Io): what the system says.
    pub fn open_with(
        disk: Arc<dyn Disk>,
        dir: &Path,
        job: &JobIdentity,
        limits: StoreLimits,
    ) -> Result<Opened> {
        open::open(disk, dir, job, limits)
    }

    /// Number of this open of the directory: above that of every process before.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.directory.generation
    }

    /// Gives manifests that were skipped another name: they count no more, so that they are neither
    /// warned of at every open nor come back, and are kept as evidence with the segments they name,
    /// until a person deletes them. To be called once a newer snapshot, or the one restored in their
    /// place, is durable; a crash in between only means that they are skipped again.
    ///
    /// # Errors
    /// What the system says.
    pub fn put_aside(&self, skipped: &[SnapshotId]) -> Result<()> {
        let (disk, dir) = (&*self.directory.disk, &self.directory.path);
        for &id in skipped {
            let path = dir.join(layout::manifest_name(id));
            let aside = dir.join(layout::passed_over_name(id));
            let renamed = disk.rename(&path, &aside);
            renamed.map_err(|source| layout::refused(disk, "put aside", path, source))?;
        }
        if skipped.is_empty() {
            return Ok(());
        }
        disk.sync_dir(dir).map_err(|source| layout::refused(disk, "sync", dir, source))
    }

    /// The first id this process may use, or the one after the last that was tried to commit:
    /// above every id ever used in the directory by other processes.
    #[must_use]
    pub fn next_snapshot(&self) -> SnapshotId {
        self.first_snapshot.max(self.tried.next())
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &PathBuf {
        &self.directory.path
    }

    /// A writer for one worker, with its first segment and its disk queue.
    ///
    /// # Errors
    /// What the system says, for example that the disk is full.
    pub fn writer(&self, worker: WorkerId, attempt: Attempt) -> Result<PartWriter> {
        PartWriter::new(self.directory.clone(), worker, attempt)
    }

    /// All state of a snapshot, in the order of its parts; every checksum is checked again.
    ///
    /// # Errors
    /// [`Corrupt`](crate::error::Error::Corrupt) or [`Io`](crate::error::Error::Io).
    pub fn load(&self, manifest: &Manifest) -> Result<Vec<StateEntry>> {
        read::load(&*self.directory.disk, &self.directory.path, manifest)
    }
}

#[cfg(test)]
mod tests;
