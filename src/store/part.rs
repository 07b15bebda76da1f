//! A part while it is put together: what goes into the index of one worker's snapshot.

use std::collections::BTreeMap;

use super::index;
use crate::disk::Buffer;
use crate::frame::{self, FrameHeader, FrameKind};
use crate::id::{SegmentId, SnapshotId, StateSlot};
use crate::state::{ChunkPage, PageEntry, Place};

/// Pages that do not lie where they are needed may be written again with any snapshot.
const REWRITE_BYTES_MIN: u64 = 256 << 10;

/// Frames back to back.
#[derive(Clone, Default)]
pub(super) struct Frames {
    bytes: Vec<u8>,
    count: u64,
}

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
        frame::encode(&header, bytes, &mut self.pieces.bytes);
        self.pieces.count += 1;
    }

    /// The pages of a chunk that lies at `place`.
    pub(super) fn chunk(&mut self, schema: u32, pages: &[ChunkPage], place: Place, bytes: u64) {
        let entries = pages.iter().map(|page| page.entry(place));
        let Self { snapshot, owner, .. } = self;
        let out = &mut self.pages.bytes;
        index::append_entries(FrameKind::Pages, *snapshot, owner, schema, entries, out);
        self.pages.count += 1;
        self.entries += pages.len() as u64;
        self.chunk_bytes += bytes;
    }

    pub(super) fn map(&mut self, schema: u32, entries: &[PageEntry]) {
        if entries.is_empty() {
            return;
        }
        let Self { snapshot, owner, .. } = self;
        let (out, entries) = (&mut self.map.bytes, entries.iter().copied());
        self.mapped += entries.len() as u64;
        index::append_entries(FrameKind::Map, *snapshot, owner, schema, entries, out);
        self.map.count += 1;
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
        self.pages.count + self.pieces.count == 0 && self.keeps.is_empty()
    }

    /// The page entries, for a later part.
    pub(super) fn into_carried(self) -> Carried {
        Carried { snapshot: self.snapshot, pages: self.pages, entries: self.entries }
    }

    /// All of it, behind its beginning and what it carries; how many frames.
    pub(super) fn index(
        &self,
        before: Option<index::Link>,
        carried: &[Carried],
        out: &mut Buffer,
    ) -> u64 {
        let mut beginning = Vec::new();
        index::begin(self.snapshot, before, &mut beginning);
        out.extend_from_slice(&beginning);
        let carried = carried.iter().map(|carried| &carried.pages);
        let all = carried.chain([&self.pages, &self.pieces, &self.map]);
        // A base of a GB of state is 10 MB: not to be moved while it grows.
        out.reserve(out.len() + all.clone().map(|frames| frames.bytes.len()).sum::<usize>());
        let mut count = 1;
        for frames in all {
            out.extend_from_slice(&frames.bytes);
            count += frames.count;
        }
        count
    }
}

/// Where the pages lie that were written for a snapshot which was then given up: they are not
/// written again, so the next part lists them.
pub(super) struct Carried {
    pub(super) snapshot: SnapshotId,
    pages: Frames,
    pub(super) entries: u64,
}
