//! The index: what one worker wrote for one snapshot, as frames back to back.
//!
//! ```text
//! frame "index"   JSON of Beginning: the index that this one goes on from
//! frame "pages"*  page entries of one operator's table, written for this snapshot
//! frame "state"*  what every snapshot holds whole: small state, offsets, logs
//! frame "map"*    entries of all pages of a table; only in a base, which goes on from nothing
//! ```
//! A page entry is 32 bytes, little endian: prefix u64, offset u64, segment u32, bytes u32,
//! CRC32C u32, depth u32. The pages themselves lie in segments as they lie in memory, without
//! a frame: their entry has their checksum, and the index has the entry under its own.

use serde::{Deserialize, Serialize};

use super::manifest::PartRef;
use crate::frame::{self, FrameHeader, FrameKind};
use crate::id::{SegmentId, SnapshotId, StateSlot};
use crate::state::{PageEntry, Place};

pub(super) const ENTRY_BYTES: usize = 32;

/// An earlier index, and where it lies.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// The snapshot that it was written for.
    pub(super) snapshot: u64,
    pub(super) segment: u32,
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) crc32c: u32,
    pub(super) frames: u64,
    /// How many more it goes on from.
    pub(super) links: u32,
}

impl Link {
    pub(super) fn of(part: &PartRef, snapshot: SnapshotId) -> Self {
        let PartRef { segment, offset, bytes, crc32c, frames, links, .. } = *part;
        Self { snapshot: snapshot.0, segment, offset, bytes, crc32c, frames, links }
    }
}

/// What an index begins with.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Beginning {
    /// `None` for a base, which says where every page is.
    pub(super) before: Option<Link>,
}

/// Appends the frame an index begins with.
pub(super) fn begin(snapshot: SnapshotId, before: Option<Link>, out: &mut Vec<u8>) {
    let json = serde_json::to_vec(&Beginning { before }).expect("plain numbers are JSON");
    let slot = StateSlot::Task(0);
    let header = FrameHeader { kind: FrameKind::Index, owner: "", slot, schema: 1, snapshot };
    frame::encode(&header, &json, out);
}

/// Appends a frame of page entries.
pub(super) fn append_entries(
    kind: FrameKind,
    snapshot: SnapshotId,
    owner: &str,
    schema: u32,
    entries: impl Iterator<Item = PageEntry>,
    out: &mut Vec<u8>,
) {
    let header = FrameHeader { kind, owner, slot: StateSlot::Task(0), schema, snapshot };
    frame::encode_with(&header, out, |out| {
        for PageEntry { prefix, depth, bytes, crc32c, place } in entries {
            out.extend_from_slice(&prefix.to_le_bytes());
            out.extend_from_slice(&place.offset.to_le_bytes());
            for half in [place.segment.0, bytes, crc32c, depth] {
                out.extend_from_slice(&half.to_le_bytes());
            }
        }
    });
}

/// The page entries in a payload; `None` if it is not made of such.
pub(super) fn entries(payload: &[u8]) -> Option<impl Iterator<Item = PageEntry> + '_> {
    let (entries, rest) = payload.as_chunks::<ENTRY_BYTES>();
    rest.is_empty().then(|| entries.iter().map(entry))
}

fn entry(bytes: &[u8; ENTRY_BYTES]) -> PageEntry {
    let half = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    let whole = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    let place = Place { segment: SegmentId(half(16)), offset: whole(8) };
    PageEntry { prefix: whole(0), depth: half(28), bytes: half(20), crc32c: half(24), place }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_as_they_were_and_part_of_one_is_none() {
        let entry = |n: u32| PageEntry {
            prefix: u64::from(n) << 60,
            depth: n + 7,
            bytes: n * 1000,
            crc32c: !n,
            place: Place { segment: SegmentId(n), offset: 1 << 40 },
        };
        let mut out = Vec::new();
        let snapshot = SnapshotId(4);
        append_entries(FrameKind::Pages, snapshot, "count", 3, (1..9).map(entry), &mut out);
        let (header, payload) = frame::frames(&out).next().unwrap().unwrap();
        assert_eq!((header.kind, header.owner, header.schema), (FrameKind::Pages, "count", 3));
        assert!(entries(payload).unwrap().eq((1..9).map(entry)));
        assert!(entries(&payload[1..]).is_none());
    }
}
