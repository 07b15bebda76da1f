//! Which parts of a spill file are free: first fit, neighbours merged.
//!
//! Invariants
//! - Free extents do not touch or overlap, are never empty, and lie below `end`.
//! - Every offset and length is a multiple of [`BLOCK_BYTES`]; `end` never passes `bytes_max`.
//! - When everything was given back, all of the file is one extent: whatever fits into `bytes_max`
//!   fits some time.

use std::collections::BTreeMap;

use crate::config::SPILL_SEGMENT_BYTES;

/// Chunks take whole blocks, the unit of the page cache.
pub(super) const BLOCK_BYTES: u64 = 4096;

pub(super) struct Extents {
    /// Length by offset.
    free: BTreeMap<u64, u64>,
    /// Length of the file.
    end: u64,
    bytes_max: u64,
}

impl Extents {
    /// Of an empty file that may grow to `bytes_max`, rounded down to blocks.
    pub(super) fn new(bytes_max: u64) -> Self {
        let bytes_max = bytes_max / BLOCK_BYTES * BLOCK_BYTES;
        Self { free: BTreeMap::new(), end: 0, bytes_max }
    }

    /// Length of the file.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Takes the first free extent of that length.
    pub(super) fn take(&mut self, bytes: u64) -> Option<u64> {
        debug_assert!(bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES), "{bytes} bytes");
        let (&offset, &length) = self.free.iter().find(|(_, length)| **length >= bytes)?;
        self.free.remove(&offset);
        if length > bytes {
            self.free.insert(offset + bytes, length - bytes);
        }
        Some(offset)
    }

    /// Gives back what was taken.
    pub(super) fn give_back(&mut self, offset: u64, bytes: u64) {
        let (mut offset, mut bytes) = (offset, bytes);
        assert!(offset + bytes <= self.end, "{offset} + {bytes} ends behind {}", self.end);
        if let Some((&before, &length)) = self.free.range(..=offset).next_back() {
            assert!(before + length <= offset, "byte {offset} was free already");
            if before + length == offset {
                (offset, bytes) = (before, length + bytes);
            }
        }
        if let Some((&behind, &length)) = self.free.range(offset + 1..).next() {
            assert!(offset + bytes <= behind, "byte {behind} was free already");
            if offset + bytes == behind {
                self.free.remove(&behind);
                bytes += length;
            }
        }
        self.free.insert(offset, bytes);
    }

    /// Where the file would have to end for that many bytes to be taken: where it ends if some fit
    /// now, `None` if it may not grow that far.
    pub(super) fn end_for(&self, bytes: u64) -> Option<u64> {
        if self.free.values().any(|length| *length >= bytes) {
            return Some(self.end);
        }
        let last = self.free.last_key_value().filter(|(at, length)| **at + **length == self.end);
        let start = last.map_or(self.end, |(at, _)| *at);
        let needed = start.checked_add(bytes).filter(|end| *end <= self.bytes_max)?;
        Some(needed.next_multiple_of(SPILL_SEGMENT_BYTES).min(self.bytes_max))
    }

    /// The file ends here now; what was added is free.
    pub(super) fn grow_to(&mut self, end: u64) {
        assert!((self.end..=self.bytes_max).contains(&end), "{end} of {}", self.bytes_max);
        let (start, bytes) = (self.end, end - self.end);
        self.end = end;
        if bytes > 0 {
            self.give_back(start, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: u64 = BLOCK_BYTES;

    fn of(blocks: u64) -> Extents {
        let mut extents = Extents::new(blocks * B + 1);
        extents.grow_to(extents.end_for(B).unwrap());
        assert_eq!(extents.end(), blocks * B);
        extents
    }

    #[test]
    fn what_is_given_back_in_any_order_becomes_one_extent_again() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut extents = of(6);
            let taken = [1, 2, 3].map(|blocks| (extents.take(blocks * B).unwrap(), blocks * B));
            assert_eq!(taken.map(|(offset, _)| offset), [0, B, 3 * B]);
            assert_eq!(extents.take(B), None);
            for at in order {
                extents.give_back(taken[at].0, taken[at].1);
            }
            assert_eq!(extents.free, BTreeMap::from([(0, 6 * B)]), "{order:?}");
        }
    }

    #[test]
    fn the_first_gap_that_is_large_enough_is_used() {
        let mut extents = of(6);
        let taken = [1, 1, 2, 1, 1].map(|blocks| extents.take(blocks * B).unwrap());
        extents.give_back(taken[0], B);
        extents.give_back(taken[2], 2 * B);
        assert_eq!(extents.end_for(3 * B), None);
        assert_eq!(extents.take(2 * B), Some(taken[2]));
        assert_eq!(extents.take(B), Some(0));
    }

    #[test]
    fn a_file_grows_by_segments_up_to_its_bound() {
        let bytes_max = SPILL_SEGMENT_BYTES + 3 * B;
        let mut extents = Extents::new(bytes_max);
        assert_eq!(extents.end_for(B), Some(SPILL_SEGMENT_BYTES));
        assert_eq!(extents.end_for(bytes_max), Some(bytes_max));
        assert_eq!(extents.end_for(bytes_max + B), None);
        extents.grow_to(SPILL_SEGMENT_BYTES);
        extents.take(SPILL_SEGMENT_BYTES - B).unwrap();
        assert_eq!(extents.end_for(2 * B), Some(bytes_max), "the free end counts");
        assert_eq!(extents.end_for(5 * B), None);
    }

    #[test]
    #[should_panic(expected = "was free already")]
    fn giving_back_twice_is_a_defect() {
        let mut extents = of(2);
        let taken = extents.take(B).unwrap();
        extents.give_back(taken, B);
        extents.give_back(taken, B);
    }
}
