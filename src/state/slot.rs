//! How a key and a value lie in a slot of a page.
//!
//! Invariants
//! - A slot is the key, then the value, each at its alignment, no pointers.
//! - A byte-string key takes 16 bytes: up to [`INLINE_BYTES`] bytes lie in it; of a longer one, its
//!   length, its offset in the page's heap and 56 bits of its hash. Two inline keys are equal exactly
//!   if the 16 bytes are.

use std::marker::PhantomData;

use crate::key::Key;
use crate::record::Data;

/// Longest byte-string key that lies in its slot.
pub(super) const INLINE_BYTES: usize = 15;

/// The top byte of a slot whose key lies in the heap.
const LONG: u64 = 0xFF << 56;

/// Sizes of a slot of a `(K, V)`.
pub(super) struct SlotLayout<K, V>(PhantomData<(K, V)>);

impl<K: Key, V: Data> SlotLayout<K, V> {
    pub const KEY_BYTES: usize =
        if K::BYTES.is_some() { size_of::<ByteSlot>() } else { size_of::<K>() };
    const KEY_ALIGN: usize =
        if K::BYTES.is_some() { align_of::<ByteSlot>() } else { align_of::<K>() };
    const ALIGN: usize =
        if Self::KEY_ALIGN > align_of::<V>() { Self::KEY_ALIGN } else { align_of::<V>() };
    /// Where in the slot the value starts.
    pub const VALUE_AT: usize = Self::KEY_BYTES.next_multiple_of(align_of::<V>());
    /// From one slot to the next.
    pub const STRIDE: usize = (Self::VALUE_AT + size_of::<V>()).next_multiple_of(Self::ALIGN);
    /// Slots that share a home, so that a cache line that is loaded is used: as many as fit one line.
    pub const BUCKET: usize = match Self::STRIDE {
        0..=16 => 4,
        17..=32 => 2,
        _ => 1,
    };
}

/// A byte-string key as it lies in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct ByteSlot {
    low: u64,
    high: u64,
}

impl ByteSlot {
    /// The slot of a short key.
    #[inline]
    pub fn inline(bytes: &[u8]) -> Self {
        let len = bytes.len();
        debug_assert!(len <= INLINE_BYTES, "{len} bytes");
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let half = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        // Loads that overlap, the second shifted to where the first ends: no copy loop, and the
        // same branches that the hash has just taken.
        let (low, rest) = match len {
            9.. => (word(0), word(len - 8) >> (8 * (16 - len))),
            4.. => (u64::from(half(0)) | u64::from(half(len - 4)) << (8 * (len - 4)), 0),
            1.. => {
                let byte = |at: usize| u64::from(bytes[at]) << (8 * at);
                (byte(0) | byte(len / 2) | byte(len - 1), 0)
            }
            0 => (0, 0),
        };
        Self { low, high: rest | (len as u64) << 56 }
    }

    /// The slot of a long key that lies at `offset` of the heap.
    #[inline]
    pub fn long(len: usize, offset: usize, hash: u64) -> Self {
        Self { low: len as u64 | (offset as u64) << 32, high: hash | LONG }
    }

    /// Length and heap offset of a long key.
    #[inline]
    pub fn heap_range(self) -> Option<(usize, usize)> {
        (self.high >= LONG).then_some(((self.low as u32) as usize, (self.low >> 32) as usize))
    }

    /// Length of a short key.
    #[inline]
    pub fn inline_len(self) -> usize {
        (self.high >> 56) as usize
    }

    /// Whether `self` and `other` are long keys of the same length and hash.
    #[inline]
    pub fn resembles(self, other: Self) -> bool {
        self.high == other.high && self.low as u32 == other.low as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_key_lies_in_its_slot_byte_by_byte() {
        let bytes: Vec<u8> = (1..=15).collect();
        for len in 0..=INLINE_BYTES {
            let slot = ByteSlot::inline(&bytes[..len]);
            let mut expected = [0; 16];
            expected[..len].copy_from_slice(&bytes[..len]);
            expected[15] = len as u8;
            assert_eq!(slot.low.to_le_bytes(), expected[..8]);
            assert_eq!(slot.high.to_le_bytes(), expected[8..]);
            assert_eq!(slot.inline_len(), len);
            assert!(slot.heap_range().is_none());
        }
    }

    #[test]
    fn a_slot_of_a_byte_key_and_a_number_is_24_bytes() {
        assert_eq!(SlotLayout::<String, u64>::STRIDE, 24);
        assert_eq!(SlotLayout::<u64, u64>::STRIDE, 16);
        assert_eq!(SlotLayout::<u32, u64>::VALUE_AT, 8);
        assert_eq!(SlotLayout::<u64, ()>::STRIDE, 8);
    }
}
