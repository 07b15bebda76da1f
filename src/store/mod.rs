//! The snapshot directory: durable parts, and the manifest that makes them a snapshot.
//!
//! Owns the layout, the commit protocol, restore with fallback, and collection. Decides neither
//! when to snapshot nor what state means.
//!
//! ```text
//! LOCK                     held with flock while a process runs; its pid as text
//! JOB                      frame "job": JSON of JobIdentity; written once, and again from a manifest
//!                          should it be damaged
//! GENERATION               frame "generation": u64 generation, u64 first snapshot id, u64 time of the
//!                          open, ns since the machine came up; replaced by every open
//! manifest-<slot>          frame "manifest": JSON of Manifest; zeros, or what is left of a longer
//!                          manifest, behind it. All zeros: free
//! manifest-<slot>-<generation>.passed-over    copy of one that could not be restored
//! segment-<n>              pages, and indices that list them, at multiples of 4096
//! *.tmp                    not decided yet; removed by the next open
//! ```
//!
//! **A snapshot is incremental.** A *part* is what one worker wrote for one snapshot. Its pages (see
//! [`crate::state`]) lie in segments as they lie in memory; its `index` lists those written for
//! this snapshot, holds what is small, and names the index before it, back to a *base* that lists all
//! pages wherever they lie (`chain`). A [`PartRef`] names the newest index and every segment needed.
//! Indices go back [`LINKS_MAX`] at most; segments with little left in them are emptied by writing
//! again what is (`writer`).
//!
//! **Commit of snapshot n.** On each worker pages are written as they are handed over, some at a time; when all
//! are on disk and those in other segments synced, the index is written and fdatasync follows, linked;
//! then the worker acks. With all acks the manifest is written over the oldest one in the directory
//! that retention does not ask for, and fdatasync follows: **that is the decision** (`commit`; the
//! first manifests, as long as there is none to overwrite, are renamed into place). Several may be under way,
//! so that a slow flush does not bound the cadence: each has a slot of its own, and which of them a crash leaves
//! does not matter, as each names only what is durable without the others. They end in their order. Case by
//! case, a crash
//! - before a part is durable leaves bytes that no manifest names, not through a later index either: a part is
//!   acked only when its index and all that it goes on from are durable, with all that they list;
//! - while the manifest is being written leaves n-1 newest and a slot that is torn, or n, or a later one that
//!   was under way with it; n names only what is durable. The slot held a manifest beyond retention, and no
//!   segment that only it named is used again before the overwrite was synced;
//! - afterwards leaves n.
//!
//! A torn slot cannot be told from one that was damaged later. So the open that finds it warns, keeps a
//! copy, and treats the snapshot before as one that was fallen back to (see [`Opened::fell_back`]),
//! which is right in both cases.
//!
//! Invariants
//! - A manifest in the directory names only what was durable before it was written.
//! - A segment is used again or deleted only when no manifest that may survive a crash names it, no
//!   writer appends to it, and every snapshot written into it is older than a committed one. That
//!   is enough although tables go on referring to pages from one snapshot to the next: a page that lies
//!   in a segment no one writes to was there for the last committed snapshot too, which names it.
//! - After a failed write or sync a segment takes no further bytes, and nothing is built on what
//!   was not durable by then (`stream`).
//! - What an open finds (an empty slot, the newest manifest) it makes durable before anything is made of
//!   it: after a sync that failed files read as they will not be after a crash.
//! - Snapshot ids rise over the life of the directory, also over those that were never committed.
//! - What could not be read is never deleted by the process that found it so.
//!
//! Fault model: that of [`crate::disk`]. Bit rot is detected by checksums and answered with the
//! previous snapshot and a warning: of indices and manifests by the open, of pages when they are
//! loaded, whereupon the job restarts and the open looks at every page ([`StoreLimits::verify_pages`]).
//! So the snapshots that were there at a restore stay until all of its pages were read, while others are taken
//! that refer to them unread ([`Manifest::unread_since`]), by whichever process that is.
//! It helps only where the two do not share the damaged bytes: a page that did not change in between, or
//! an index that both go back to, lies on disk once.
//! Two processes: the lock keeps the second out; should the lock file be deleted under a running
//! process, or all of the directory and another be made in its place, its next commit finds a foreign
//! GENERATION and fails.

mod chain;
mod collect;
mod commit;
mod frames;
mod index;
mod inspect;
mod layout;
mod manifest;
mod open;
mod part;
mod read;
mod segment;
mod slots;
mod stream;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Buffer, Disk, DiskLock};
use crate::error::Result;
use crate::id::{SnapshotId, StateSlot};
use crate::state::{PageEntry, PageSource};

pub use commit::{Commit, Committed};
pub use inspect::{Condition, Report, SnapshotInfo, list, show, verify};
pub(crate) use layout::SPILL;
pub use manifest::{JobIdentity, MANIFEST_FORMAT, Manifest, OperatorEntry, PartRef};
pub use writer::{PARTS_MAX, PartWriter, Written};

/// Complete snapshots kept at least, whatever retention asks for: one to fall back to.
pub const RETENTION_MIN: usize = 2;

/// Most indices that an index goes back to. Each is one read when the job is restored.
pub const LINKS_MAX: u32 = 64;

/// Most ids a process may use without committing one of them. The next process starts this many
/// further, so that no id is used twice. Whoever triggers fails the job before so many snapshots
/// in a row have failed.
pub const UNCOMMITTED_SNAPSHOTS_MAX: u64 = 256;

/// Bounds of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreLimits {
    /// Complete snapshots kept; at least [`RETENTION_MIN`] are, whatever it says, and one more, which
    /// the next commit overwrites, or as many as were committed side by side. As many from before a restore stay beside them until all of it was read.
    pub retention: usize,
    /// Size of a writer's first segment file, where the disk has room; each later one is twice as large, up to
    /// `segment_bytes_max`.
    pub segment_bytes: u64,
    /// Size of the largest; only for bytes that belong together there may be a larger one.
    pub segment_bytes_max: u64,
    /// Whether the open reads every page of the newest snapshot, not only what lists them: for when
    /// one was found damaged. Takes as long as reading all state.
    pub verify_pages: bool,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self {
            retention: 3,
            segment_bytes: 4 << 20,
            segment_bytes_max: 64 << 20,
            verify_pages: false,
        }
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
    slots: slots::Slots,
    /// Snapshots up to this one stay, whatever retention asks for ([`Manifest::unread_since`]).
    held: SnapshotId,
    /// Set when it is not known whether this snapshot is committed: nothing may follow.
    undecided: Option<SnapshotId>,
    /// The most commits that were under way at once, of late.
    side_by_side: usize,
    /// Collections since so many were.
    collected: u32,
    /// Memory for manifests, kept: giving it back each time, the system interrupts every processor that runs a
    /// worker.
    buffers: Vec<Buffer>,
    /// What the open has read of the newest snapshot, for whoever loads it.
    verified: Option<(Vec<PartRef>, chain::Content)>,
    _lock: DiskLock,
}

/// What [`Store::open`] found.
pub struct Opened {
    /// The directory, locked.
    pub store: Store,
    /// The newest snapshot that can be restored, as far as it was looked at; `None` in a new directory.
    pub newest: Option<Manifest>,
    /// What had to be skipped: which file, which byte, what was wrong with it.
    pub warnings: Vec<String>,
    /// Whether a snapshot was skipped that may have been newer than `newest`. Who restores `newest` then has to
    /// [put it aside](Store::put_aside) *before* undoing anything that belongs to it, for it may be
    /// readable again at the next open.
    pub fell_back: bool,
    /// Snapshots that were skipped, for [`Store::put_aside`].
    pub skipped: Vec<Skipped>,
}

/// A manifest that cannot be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skipped(layout::SlotNumber);

/// All state of a snapshot.
pub struct Loaded {
    /// What is small, as it was handed over.
    pub pieces: Vec<StateEntry>,
    /// Tables: operator, schema, and where their pages are, by first hash.
    pub pages: Vec<(String, u32, Vec<PageEntry>)>,
    /// Where pages are read from.
    pub source: Arc<dyn PageSource>,
}

/// One share of one operator's state, as it was handed over.
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
    /// durably and verifies the newest complete snapshot (all that lists its pages; the pages
    /// themselves with [`StoreLimits::verify_pages`]), falling back to the one before it with a warning. A crash meanwhile leaves the same snapshot restorable.
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
        Self::open_if(disk, dir, job, limits, &|_| Ok(()))
    }

    /// As [`open_with`](Self::open_with), asking `takes` whether the newest snapshot can be taken
    /// before the generation is raised: if not, the directory stays as it is.
    ///
    /// # Errors
    /// Those of `takes`, too.
    pub fn open_if(
        disk: Arc<dyn Disk>,
        dir: &Path,
        job: &JobIdentity,
        limits: StoreLimits,
        takes: &dyn Fn(&Manifest) -> Result<()>,
    ) -> Result<Opened> {
        open::open(disk, dir, job, limits, takes)
    }

    /// Number of this open of the directory: above that of every process before.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.directory.generation.generation
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
    pub fn writer(&self) -> Result<PartWriter> {
        PartWriter::new(self.directory.clone())
    }

    /// All state of a snapshot: pieces in the order of its parts, and where its pages lie; every
    /// checksum but those of pages has been checked.
    ///
    /// # Errors
    /// [`Corrupt`](crate::error::Error::Corrupt) or [`Io`](crate::error::Error::Io).
    pub fn load(&mut self, manifest: &Manifest) -> Result<Loaded> {
        let verified = self.verified.take().filter(|(parts, _)| *parts == manifest.parts);
        let (disk, dir) = (&*self.directory.disk, &self.directory.path);
        let content = match verified {
            Some((_, content)) => content,
            None => read::content(disk, dir, manifest, read::Depth::Indices)?,
        };
        read::load(disk, dir, content)
    }
}

#[cfg(test)]
mod tests;
