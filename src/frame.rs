//! Frames: the self-describing unit of bytes on disk.
//!
//! Owns the encoding; does not know which file a frame is in. Little endian, version first-class:
//!
//! ```text
//! offset size
//!      0    4  magic "TGFR"
//!      4    2  version of this layout, 1
//!      6    1  kind: 1 job, 2 generation, 3 manifest, 4 state, 5 spill,
//!                6 index, 7 pages, 8 map
//!      7    1  slot: 1 key group, 2 split, 3 task
//!      8    4  number of the slot
//!     12    4  schema version of the payload
//!     16    8  snapshot; 0 for a spill
//!     24    8  payload bytes
//!     32    2  owner bytes
//!     34   10  zero
//!     44    4  CRC32C of bytes 0..44 and of 48 to the end of the frame
//!     48       owner (operator name, UTF-8), zeros up to a multiple of 16
//!              payload, zeros up to a multiple of 16
//! ```
//!
//! Invariants
//! - A frame's length is a multiple of 16 and so is the offset of its payload: state can be used
//!   in place when the first frame lies at a multiple of 16.
//! - Lengths are checked against what is there before they are used; bytes behind the last frame
//!   are corruption, not the end; every byte of a frame is under its checksum.
//! - In every later version the magic, the version, the lengths and the checksum stay where they
//!   are, so that a newer frame is told from a damaged one.

use std::fmt;

use crate::id::{KEY_GROUPS, KeyGroup, SnapshotId, StateSlot};

/// Version of the frame layout this program writes, and the newest it reads.
pub const FRAME_VERSION: u16 = 1;

/// Frames and payloads lie at multiples of this.
pub const ALIGNMENT: usize = 16;

const MAGIC: [u8; 4] = *b"TGFR";
const HEADER_BYTES: usize = 48;
const CHECKSUM: std::ops::Range<usize> = 44..48;

/// What a payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// Identity of the job a directory belongs to.
    Job,
    /// Generation number of a directory.
    Generation,
    /// Manifest of a snapshot.
    Manifest,
    /// State of an operator.
    State,
    /// Records that a task has not processed yet, out of memory for a while.
    Spill,
    /// Beginning of what one worker wrote for a snapshot: what it goes on from.
    Index,
    /// Where pages lie that were written for a snapshot.
    Pages,
    /// Where all pages of a table lie, as of a snapshot.
    Map,
}

/// What a frame says about its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader<'a> {
    /// What the payload is.
    pub kind: FrameKind,
    /// Whose it is: the operator's name; empty where no operator owns it. At most 65,535 bytes.
    pub owner: &'a str,
    /// Which share of the owner's state.
    pub slot: StateSlot,
    /// Version of the payload's schema, as the owner counts it.
    pub schema: u32,
    /// The snapshot it was written for.
    pub snapshot: SnapshotId,
}

/// Why bytes are not a frame, and where the frame starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameError {
    /// Offset of the frame's first byte in the bytes given.
    pub offset: u64,
    /// What is wrong.
    pub reason: FrameFault,
}

/// What can be wrong with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameFault {
    /// Fewer bytes than a header, or than the lengths in it say.
    Cut {
        /// Bytes needed.
        wanted: u64,
        /// Bytes there.
        found: u64,
    },
    /// Not the start of a frame.
    Magic,
    /// An intact frame of a newer program.
    Newer(u16),
    /// The checksum does not match.
    Checksum {
        /// The checksum in the header.
        expected: u32,
        /// That of the bytes.
        found: u32,
    },
    /// The checksum matches and a field has a value that no program writes.
    Field(&'static str),
}

impl fmt::Display for FrameFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut { wanted, found } => write!(f, "frame of {wanted} bytes, {found} are there"),
            Self::Magic => f.write_str("no frame starts here"),
            Self::Newer(version) => write!(f, "frame version {version}"),
            Self::Checksum { expected, found } => {
                write!(f, "checksum is {found:08x}, {expected:08x} was written")
            }
            Self::Field(name) => write!(f, "impossible value of field '{name}'"),
        }
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {}: {}", self.offset, self.reason)
    }
}

impl std::error::Error for FrameError {}

/// Appends a frame with this payload.
///
/// # Panics
/// If `out` does not end at a multiple of [`ALIGNMENT`], or the owner's name is too long.
pub fn encode(header: &FrameHeader<'_>, payload: &[u8], out: &mut Vec<u8>) {
    encode_with(header, out, |out| out.extend_from_slice(payload));
}

/// Appends a frame whose payload `write` appends directly, without a copy.
///
/// # Panics
/// As [`encode`]; also if `write` shortens the vector.
pub fn encode_with(header: &FrameHeader<'_>, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    assert!(start.is_multiple_of(ALIGNMENT), "a frame at byte {start}");
    let owner_bytes =
        u16::try_from(header.owner.len()).expect("owner name of at most 65,535 bytes");
    let (slot, number) = slot_to_wire(header.slot);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&FRAME_VERSION.to_le_bytes());
    out.extend_from_slice(&[kind_to_wire(header.kind), slot]);
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&header.schema.to_le_bytes());
    out.extend_from_slice(&header.snapshot.0.to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&owner_bytes.to_le_bytes());
    out.extend_from_slice(&[0; 14]);
    debug_assert_eq!(out.len() - start, HEADER_BYTES);
    out.extend_from_slice(header.owner.as_bytes());
    pad(out);
    let payload_start = out.len();
    write(out);
    assert!(out.len() >= payload_start, "the payload writer removed bytes");
    let payload_bytes = (out.len() - payload_start) as u64;
    pad(out);
    let frame = &mut out[start..];
    frame[24..32].copy_from_slice(&payload_bytes.to_le_bytes());
    let checksum = checksum(frame);
    frame[CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
}

fn checksum(frame: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&frame[..CHECKSUM.start]), &frame[HEADER_BYTES..])
}

fn kind_to_wire(kind: FrameKind) -> u8 {
    match kind {
        FrameKind::Job => 1,
        FrameKind::Generation => 2,
        FrameKind::Manifest => 3,
        FrameKind::State => 4,
        FrameKind::Spill => 5,
        FrameKind::Index => 6,
        FrameKind::Pages => 7,
        FrameKind::Map => 8,
    }
}

fn kind_from_wire(kind: u8) -> Option<FrameKind> {
    Some(match kind {
        1 => FrameKind::Job,
        2 => FrameKind::Generation,
        3 => FrameKind::Manifest,
        4 => FrameKind::State,
        5 => FrameKind::Spill,
        6 => FrameKind::Index,
        7 => FrameKind::Pages,
        8 => FrameKind::Map,
        _ => return None,
    })
}

fn slot_to_wire(slot: StateSlot) -> (u8, u32) {
    match slot {
        StateSlot::KeyGroup(group) => (1, group.0),
        StateSlot::Split(split) => (2, split),
        StateSlot::Task(task) => (3, task),
    }
}

fn slot_from_wire(slot: u8, number: u32) -> Option<StateSlot> {
    Some(match slot {
        1 if number < KEY_GROUPS => StateSlot::KeyGroup(KeyGroup(number)),
        2 => StateSlot::Split(number),
        3 => StateSlot::Task(number),
        _ => return None,
    })
}

/// The frames that `bytes` consist of. Ends after the first error.
#[must_use]
pub fn frames(bytes: &[u8]) -> Frames<'_> {
    Frames { bytes, offset: 0 }
}

/// Iterator of [`frames`].
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    bytes: &'a [u8],
    /// At most `bytes.len()`; equal to it at the end.
    offset: usize,
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<(FrameHeader<'a>, &'a [u8]), FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = &self.bytes[self.offset..];
        if rest.is_empty() {
            return None;
        }
        Some(match decode(rest) {
            Ok((header, payload, frame_bytes)) => {
                self.offset += frame_bytes;
                Ok((header, payload))
            }
            Err(reason) => {
                let offset = self.offset as u64;
                self.offset = self.bytes.len();
                Err(FrameError { offset, reason })
            }
        })
    }
}

/// The frame that `bytes` start with, and its length.
fn decode(bytes: &[u8]) -> Result<(FrameHeader<'_>, &[u8], usize), FrameFault> {
    let cut = |wanted| FrameFault::Cut { wanted, found: bytes.len() as u64 };
    let header: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(cut(HEADER_BYTES as u64))?;
    if header[..4] != MAGIC {
        return Err(FrameFault::Magic);
    }
    let owner_bytes = usize::from(u16::from_le_bytes([header[32], header[33]]));
    let payload_bytes = u64_at(header, 24);
    let payload_start = HEADER_BYTES + owner_bytes.next_multiple_of(ALIGNMENT);
    let frame_bytes = payload_bytes
        .checked_next_multiple_of(ALIGNMENT as u64)
        .and_then(|padded| padded.checked_add(payload_start as u64))
        .ok_or(FrameFault::Field("payload bytes"))?;
    if frame_bytes > bytes.len() as u64 {
        return Err(cut(frame_bytes));
    }
    let frame = &bytes[..frame_bytes as usize];
    let expected = u32_at(header, CHECKSUM.start);
    let found = checksum(frame);
    if found != expected {
        return Err(FrameFault::Checksum { expected, found });
    }
    let version = u16::from_le_bytes([header[4], header[5]]);
    if version != FRAME_VERSION {
        return Err(FrameFault::Newer(version));
    }
    let kind = kind_from_wire(header[6]).ok_or(FrameFault::Field("kind"))?;
    let slot = slot_from_wire(header[7], u32_at(header, 8)).ok_or(FrameFault::Field("slot"))?;
    let owner = std::str::from_utf8(&frame[HEADER_BYTES..HEADER_BYTES + owner_bytes])
        .map_err(|_| FrameFault::Field("owner"))?;
    let snapshot = SnapshotId(u64_at(header, 16));
    let payload = &frame[payload_start..payload_start + payload_bytes as usize];
    let schema = u32_at(header, 12);
    Ok((FrameHeader { kind, owner, slot, schema, snapshot }, payload, frame.len()))
}

fn u32_at(header: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(header: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNERS: [&str; 3] = ["count", "", "an operator with a long name"];

    fn header(owner: &str, number: u32) -> FrameHeader<'_> {
        FrameHeader {
            kind: FrameKind::State,
            owner,
            slot: StateSlot::KeyGroup(KeyGroup(number)),
            schema: 3,
            snapshot: SnapshotId(7),
        }
    }

    fn sample() -> Vec<u8> {
        let mut bytes = Vec::new();
        for (i, owner) in OWNERS.iter().enumerate() {
            encode(&header(owner, i as u32), &vec![i as u8 + 1; i * 13], &mut bytes);
        }
        bytes
    }

    #[test]
    fn what_is_encoded_is_read_back_and_lies_aligned() {
        let bytes = sample();
        let read: Vec<_> = frames(&bytes).map(Result::unwrap).collect();
        assert_eq!(read.len(), OWNERS.len());
        for (i, (found, payload)) in read.iter().enumerate() {
            assert_eq!(*found, header(OWNERS[i], i as u32));
            assert_eq!(*payload, vec![i as u8 + 1; i * 13]);
            assert_eq!((payload.as_ptr() as usize - bytes.as_ptr() as usize) % ALIGNMENT, 0);
        }
        for slot in [StateSlot::Split(9), StateSlot::Task(0)] {
            let mut bytes = Vec::new();
            encode(&FrameHeader { slot, ..header("source", 0) }, b"x", &mut bytes);
            assert_eq!(frames(&bytes).next().unwrap().unwrap().0.slot, slot);
        }
    }

    #[test]
    fn every_single_bit_flip_is_detected() {
        let good = sample();
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let fault = frames(&bytes).find_map(Result::err);
            let fault = fault.unwrap_or_else(|| panic!("bit {bit} was not noticed"));
            assert!(!matches!(fault.reason, FrameFault::Newer(_)), "bit {bit}: {fault}");
        }
    }

    #[test]
    fn every_cut_but_one_between_frames_is_detected_and_so_is_trailing_garbage() {
        let good = sample();
        let ends: Vec<usize> = (1..=3)
            .map(|n| {
                let mut frames = frames(&good);
                frames.by_ref().take(n).for_each(|frame| assert!(frame.is_ok()));
                frames.offset
            })
            .collect();
        for length in 1..good.len() {
            let fails = frames(&good[..length]).any(|frame| frame.is_err());
            assert_eq!(fails, !ends.contains(&length), "cut at {length}");
        }
        for garbage in [&[0; 1][..], &[0; 64], b"TGFR"] {
            let bytes = [&good[..], garbage].concat();
            let fault = frames(&bytes).find_map(Result::err).expect("garbage is noticed");
            assert_eq!(fault.offset, good.len() as u64);
        }
    }

    /// Such a group has no owner: its state went to nobody without a word.
    #[test]
    fn a_key_group_that_there_is_not_is_no_slot() {
        let mut bytes = Vec::new();
        encode(&header("count", KEY_GROUPS), b"payload", &mut bytes);
        let fault = frames(&bytes).next().unwrap().unwrap_err();
        assert_eq!(fault.reason, FrameFault::Field("slot"));
    }

    #[test]
    fn an_intact_frame_of_a_newer_version_is_told_from_a_damaged_one() {
        let mut bytes = Vec::new();
        encode(&header("count", 1), b"payload", &mut bytes);
        bytes[4] = 2;
        let new_checksum = checksum(&bytes);
        bytes[CHECKSUM].copy_from_slice(&new_checksum.to_le_bytes());
        let fault = frames(&bytes).next().unwrap().unwrap_err();
        assert_eq!(fault, FrameError { offset: 0, reason: FrameFault::Newer(2) });
    }
}
