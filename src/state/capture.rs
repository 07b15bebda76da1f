//! The capture of a version of a table: what changed, what must be preserved, what is handed over.
//!
//! Owns the versions, the lists of changed pages, the copies on their way out and the [`Ledger`]. The
//! pages themselves belong to the table, which lends them as [`Pages`].
//!
//! Every page carries a version, in one of four conditions:
//!
//! ```text
//!            first write                mark                 drain, or
//!   CLEAN ----------------> current ------------> captured ------------> CLEAN
//!     ^ what is in memory   in `changed`          in `marked`   first write: copied, then current
//!     | lies on disk too
//!   UNLOADED  what is on disk is not in memory yet
//! ```
//!
//! A write to a page of the current version costs one comparison. The first write after a mark, and
//! the drain, copy the page into the chunk that goes to disk; so each captured page is copied once,
//! by whoever comes first, and what was copied is what is written: there is no second buffer. Checksums
//! are the drain's alone: a write that had to take one too took its record half as long again.
//!
//! Invariants
//! - While a mark is open a page of an older version that is neither CLEAN nor UNLOADED has not
//!   changed since the mark, and is in `marked`.
//! - A page of the current version is in `changed`; a page that is in a list and of another
//!   condition than that list's was seen to already, and is passed over.
//! - What is handed over builds on what was handed over before, whether or not that snapshot was
//!   completed: its bytes are the same pages, not changed since. If they turn out not to be durable
//!   ([`Capture::lost`]), their pages count as changed.
//! - Versions are compared for equality only and come around after 2^32 - 2 marks; a page that was
//!   not touched in between is CLEAN by then.

use std::collections::VecDeque;

use super::exchange::Chunk;
use super::ledger::{Ledger, Lost};
use super::{Drained, StateWriter};

/// Version of a page that is on disk as it is in memory.
pub(super) const CLEAN: u32 = 0;
/// Version of a page that is on disk only.
pub(super) const UNLOADED: u32 = u32::MAX;

/// Chunks kept for use again, whatever the table's size; see [`Capture::keep_spare`].
const SPARE_CHUNKS_MIN: usize = 64;

/// Page numbers looked at in one step that writes pages again, and entries of one step of a map.
const ENTRIES_PER_STEP: u32 = 512;

/// What looking at a page counts that is then passed over, in bytes: so in one piece of a drain 8,192 are looked at,
/// which takes less than a millisecond though each is somewhere in memory. (Counted as nothing it was a
/// hundred thousand that writes had copied before, and 10 ms: `perf/0004-snapshots.md`.) Not more, as a
/// small table that writes have copied is to be handed over within
/// [`CAPTURE_DRAIN_BYTES_MAX`](crate::config::CAPTURE_DRAIN_BYTES_MAX).
const LOOK_COST_BYTES: usize = 32;
/// The same for an entry of the ledger, which lies behind the one before.
const ENTRY_COST_BYTES: usize = 8;
/// The same for a chunk that is handed over: some 5 us.
const HAND_OVER_COST_BYTES: usize = 8 << 10;

/// The pages of a table.
pub(super) trait Pages {
    /// The version of the page that `hash` belongs to.
    fn version(&self, hash: u64) -> u32;
    /// Sets it.
    fn stamp(&mut self, hash: u64, version: u32);
    /// Appends the page's bytes to `chunk`.
    ///
    /// # Errors
    /// It does not serialise.
    fn copy(&mut self, hash: u64, chunk: &mut Chunk) -> Result<(), String>;
}

/// How far the drain of a marked version is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No mark is open.
    Closed,
    /// Pages that changed.
    Changed,
    /// Pages that are written again to empty an old segment, from this page number on.
    Again(u32),
    /// The map of all pages, from this page number on.
    Map(u32),
    /// All is handed over but what the ledger says at the end: which segments are kept, and how much of each.
    Closing,
}

/// See the module's documentation.
pub(super) struct Capture {
    version: u32,
    phase: Phase,
    /// First hashes of pages that changed since the mark; also of those not written when a mark was
    /// abandoned.
    changed: Vec<u64>,
    /// First hashes of pages that had changed at the mark and may not be copied yet.
    marked: Vec<u64>,
    chunk: Chunk,
    full: VecDeque<Chunk>,
    spare: Vec<Chunk>,
    /// Why a page could not be copied: the snapshot fails.
    failed: Option<String>,
    pub ledger: Ledger,
}

impl Default for Capture {
    fn default() -> Self {
        Self {
            version: CLEAN + 1,
            phase: Phase::Closed,
            changed: Vec::new(),
            marked: Vec::new(),
            chunk: Chunk::default(),
            full: VecDeque::new(),
            spare: Vec::new(),
            failed: None,
            ledger: Ledger::default(),
        }
    }
}

impl Capture {
    /// The version that writes belong to.
    #[inline]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The page of `hash`, which is loaded and not of the current version, is about to change.
    pub fn protect(&mut self, pages: &mut impl Pages, hash: u64, first_hash: u64) {
        if self.is_captured(pages.version(hash)) {
            if let Err(reason) = pages.copy(hash, &mut self.chunk) {
                self.failed.get_or_insert(reason);
            }
            self.turn_full_chunk();
        }
        pages.stamp(hash, self.version);
        self.changed.push(first_hash);
    }

    /// A page that begins with this hash came to be, of the current version.
    pub fn born(&mut self, first_hash: u64) {
        self.changed.push(first_hash);
    }

    fn is_captured(&self, version: u32) -> bool {
        self.phase != Phase::Closed && ![CLEAN, UNLOADED, self.version].contains(&version)
    }

    pub fn mark(&mut self) {
        assert_eq!(self.phase, Phase::Closed, "a mark while one is open");
        self.phase = Phase::Changed;
        self.version = if self.version + 1 == UNLOADED { CLEAN + 1 } else { self.version + 1 };
        debug_assert!(self.marked.is_empty() && self.chunk.is_empty() && self.full.is_empty());
        std::mem::swap(&mut self.marked, &mut self.changed);
    }

    /// Hands about `budget_bytes` of the marked version over.
    pub fn drain(
        &mut self,
        pages: &mut impl Pages,
        schema: u32,
        budget_bytes: usize,
        out: &mut dyn StateWriter,
    ) -> Result<Drained, String> {
        let mut done = 0;
        loop {
            if let Some(reason) = self.failed.take() {
                return Err(reason);
            }
            if self.phase == Phase::Closed && self.full.is_empty() {
                return Ok(Drained::Done);
            }
            if done >= budget_bytes && self.phase != Phase::Closing {
                return Ok(Drained::More);
            }
            if let Some(chunk) = self.full.front_mut() {
                // A checksum alone counts half of a copy with its checksum.
                done += match chunk.sum() {
                    Some(bytes) => bytes / 2,
                    None => self.hand_over(schema, out),
                };
                continue;
            }
            match self.phase {
                Phase::Closed => unreachable!("then nothing is left to hand over"),
                Phase::Changed => done += self.take_changed(pages, out)?,
                Phase::Again(from) => {
                    done += self.take_again(pages, from, budget_bytes - done, out)?;
                }
                Phase::Map(from) => done += self.map(from, schema, out),
                Phase::Closing => {
                    self.ledger.segments().for_each(|(segment, bytes)| out.keeps(segment, bytes));
                    self.phase = Phase::Closed;
                }
            }
        }
    }

    fn take_changed(
        &mut self,
        pages: &mut impl Pages,
        out: &mut dyn StateWriter,
    ) -> Result<usize, String> {
        let Some(hash) = self.marked.pop() else {
            self.phase = Phase::Again(0);
            if out.empties().is_some() {
                // The ledger has to know of them before old segments are looked through.
                self.turn_chunk();
            }
            return Ok(0);
        };
        if !self.is_captured(pages.version(hash)) {
            return Ok(LOOK_COST_BYTES); // copied when it was written to, or named twice
        }
        let before = self.chunk.bytes.len();
        if let Err(reason) = pages.copy(hash, &mut self.chunk) {
            self.marked.push(hash);
            return Err(reason);
        }
        pages.stamp(hash, CLEAN);
        let bytes = self.chunk.bytes.len() - before;
        self.sum_one();
        Ok(bytes)
    }

    /// Copies pages that did not change, to empty the segment they lie in: about `budget_bytes` of them.
    fn take_again(
        &mut self,
        pages: &mut impl Pages,
        from: u32,
        budget_bytes: usize,
        out: &mut dyn StateWriter,
    ) -> Result<usize, String> {
        let (mut done, mut next) = (0, None);
        if let Some(segment) = out.empties() {
            let to = self.ledger.len().min(from + ENTRIES_PER_STEP);
            next = Some(to).filter(|to| *to < self.ledger.len());
            for id in from..to {
                if done >= budget_bytes || !self.full.is_empty() {
                    next = Some(id);
                    break;
                }
                done += ENTRY_COST_BYTES;
                let entry = self.ledger.entry(id);
                if entry.bytes == 0 || entry.place.segment != segment {
                    continue;
                }
                if pages.version(entry.prefix) != CLEAN {
                    done += LOOK_COST_BYTES;
                    continue;
                }
                if !out.may_rewrite(entry.bytes as usize) {
                    next = None;
                    break;
                }
                pages.copy(entry.prefix, &mut self.chunk)?;
                self.sum_one();
                done += entry.bytes as usize;
            }
        }
        self.phase = match next {
            Some(next) => Phase::Again(next),
            None => {
                self.turn_chunk();
                if out.wants_map() { Phase::Map(0) } else { Phase::Closing }
            }
        };
        Ok(done)
    }

    fn map(&mut self, from: u32, schema: u32, out: &mut dyn StateWriter) -> usize {
        let (entries, next) = self.ledger.slice(from, ENTRIES_PER_STEP);
        out.map(schema, &entries);
        self.phase = if next < self.ledger.len() { Phase::Map(next) } else { Phase::Closing };
        size_of_val(&entries[..])
    }

    /// Takes a checksum for the page that was just copied: of it, or of one that a write had copied before.
    fn sum_one(&mut self) {
        self.chunk.sum();
        self.turn_full_chunk();
    }

    fn turn_full_chunk(&mut self) {
        if self.chunk.is_full() {
            self.turn_chunk();
        }
    }

    /// What is in the chunk is to be handed over.
    fn turn_chunk(&mut self) {
        if !self.chunk.is_empty() {
            let next = self.spare.pop().unwrap_or_default();
            self.full.push_back(std::mem::replace(&mut self.chunk, next));
        }
    }

    /// Gives the first chunk away and notes where its pages lie from now on.
    fn hand_over(&mut self, schema: u32, out: &mut dyn StateWriter) -> usize {
        let mut chunk = self.full.pop_front().expect("the caller has seen it");
        let place = out.pages(schema, &mut chunk);
        chunk.pages.iter().for_each(|page| self.ledger.set(page.id, page.entry(place)));
        chunk.clear();
        self.keep_spare(chunk);
        HAND_OVER_COST_BYTES
    }

    /// Keeps a chunk for use again: fresh memory for each costs page faults. As many as the table
    /// would need if a sixty-fourth of it were copied at once.
    fn keep_spare(&mut self, chunk: Chunk) {
        let state: u64 = self.ledger.segments().map(|(_, bytes)| bytes).sum();
        let max = state as usize / 64 / super::exchange::CHUNK_BYTES;
        if self.spare.len() < max.max(SPARE_CHUNKS_MIN) {
            self.spare.push(chunk);
        }
    }

    /// The marked version is given up: what of it was not handed over counts as changed.
    pub fn abandon(&mut self, pages: &mut impl Pages) {
        self.phase = Phase::Closed;
        self.failed = None;
        let mut kept = std::mem::take(&mut self.full);
        kept.push_back(std::mem::take(&mut self.chunk));
        for mut chunk in kept {
            for page in &chunk.pages {
                if pages.version(page.prefix) == CLEAN {
                    pages.stamp(page.prefix, self.version);
                    self.changed.push(page.prefix);
                }
            }
            chunk.clear();
            self.keep_spare(chunk);
        }
        // Pages that are still to be copied keep their version: older than that of the next mark,
        // and in its list.
        self.changed.append(&mut self.marked);
    }

    /// What was handed over is not on disk as it should be. No mark may be open.
    pub fn lost(&mut self, pages: &mut impl Pages, lost: &[Lost]) {
        assert_eq!(self.phase, Phase::Closed, "losing while a mark is open");
        for entry in self.ledger.lose(lost) {
            if pages.version(entry.prefix) == CLEAN {
                pages.stamp(entry.prefix, self.version);
                self.changed.push(entry.prefix);
            }
        }
    }

    /// Bytes of memory: copies, whether waiting or kept for use again, and the ledger.
    pub fn memory_bytes(&self) -> usize {
        let chunks = self.full.iter().chain(&self.spare).chain([&self.chunk]);
        chunks.map(|chunk| chunk.bytes.capacity()).sum::<usize>() + self.ledger.memory_bytes()
    }
}
