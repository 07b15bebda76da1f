//! A part while it is put together: what goes into the index of one worker's snapshot.

use std::collections::BTreeMap;
use std::mem;

use super::frames::Frames;
use super::index;
use crate::frame::{self, FrameHeader, FrameKind};
use crate::id::{SegmentId, SnapshotId, StateSlot};
use crate::state::{ChunkPage, PageEntry, Place};

/// Pages that do not lie where they are needed may be written again with any snapshot.
const REWRITE_BYTES_MIN: u64 = 256 << 10;

/// See the module's documentation.
pub(super) struct Part {
    pub(super) snapshot: SnapshotId,
    /// Whether it lists all pages, and the number of the base that it goes on from, or is.
    pub(super) is_base: bool,
    pub(super) base: u64,
    /// Whose state comes.
    owner: String,
    pages: Frames,
    pieces: Frames,
    map: Frames,
    /// Pages listed.
    pub(super) entries: u64,
    pub(super) mapped: u64,
    pub(super) keeps: BTreeMap<SegmentId, u64>,
    /// Bytes of chunks.
    pub(super) chunk_bytes: u64,
    rewritten_bytes: u64,
    /// Pages that lie there should be written again.
    pub(super) empties: Option<SegmentId>,
    /// Why it cannot become durable.
    pub(super) failed: Option<String>,
}

impl Part {
    pub(super) fn new(snapshot: SnapshotId, is_base: bool, base: u64) -> Self {
        Self {
            snapshot,
            is_base,
            base,
            owner: String::new(),
            pages: Frames::default(),
            pieces: Frames::default(),
            map: Frames::default(),
            entries: 0,
            mapped: 0,
            keeps: BTreeMap::new(),
            chunk_bytes: 0,
            rewritten_bytes: 0,
            empties: None,
            failed: None,
        }
    }

    pub(super) fn enter(&mut self, operator: &str) {
        self.owner.clear();
        self.owner.push_str(operator);
    }

    pub(super) fn piece(&mut self, slot: StateSlot, schema: u32, bytes: &[u8]) {
        let (owner, snapshot) = (self.owner.as_str(), self.snapshot);
        let header = FrameHeader { kind: FrameKind::State, owner, slot, schema, snapshot };
        self.pieces.push(|out| frame::encode(&header, bytes, out));
    }

    /// The pages of a chunk that lies at `place`.
    pub(super) fn chunk(&mut self, schema: u32, pages: &[ChunkPage], place: Place, bytes: u64) {
        let entries = pages.iter().map(|page| page.entry(place));
        let (owner, snapshot) = (self.owner.as_str(), self.snapshot);
        let kind = FrameKind::Pages;
        let append = |out: &mut _| {
            index::append_entries(kind, snapshot, owner, schema, entries, out);
        };
        self.pages.push(append);
        self.entries += pages.len() as u64;
        self.chunk_bytes += bytes;
    }

    pub(super) fn map(&mut self, schema: u32, entries: &[PageEntry]) {
        if entries.is_empty() {
            return;
        }
        self.mapped += entries.len() as u64;
        let (owner, snapshot) = (self.owner.as_str(), self.snapshot);
        let (kind, entries) = (FrameKind::Map, entries.iter().copied());
        let append = |out: &mut _| {
            index::append_entries(kind, snapshot, owner, schema, entries, out);
        };
        self.map.push(append);
    }

    /// No more is written again than was written anew, or little: a snapshot takes at most twice what
    /// changed.
    pub(super) fn may_rewrite(&mut self, bytes: u64) -> bool {
        let may = self.rewritten_bytes + bytes <= self.changed_bytes().max(REWRITE_BYTES_MIN);
        self.rewritten_bytes += if may { bytes } else { 0 };
        may
    }

    /// Bytes of pages that had changed.
    pub(super) fn changed_bytes(&self) -> u64 {
        self.chunk_bytes.saturating_sub(self.rewritten_bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pages.count() + self.pieces.count() == 0 && self.keeps.is_empty()
    }

    /// The page entries, for a later part.
    pub(super) fn into_carried(self) -> Carried {
        Carried { snapshot: self.snapshot, pages: self.pages, entries: self.entries }
    }

    /// Takes all of it, behind its beginning and what it carries.
    pub(super) fn take_index(
        &mut self,
        before: Option<index::Link>,
        carried: Vec<Carried>,
    ) -> Frames {
        let mut all = Frames::default();
        all.push(|out| index::begin(self.snapshot, before, out));
        let carried = carried.into_iter().map(|carried| carried.pages);
        for frames in
            carried.chain([&mut self.pages, &mut self.pieces, &mut self.map].map(mem::take))
        {
            all.append(frames);
        }
        all
    }
}

/// Where the pages lie that were written for a snapshot which was then given up: they are not
/// written again, so the next part lists them.
pub(super) struct Carried {
    pub(super) snapshot: SnapshotId,
    pages: Frames,
    pub(super) entries: u64,
}
