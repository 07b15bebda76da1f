//! Memory for bytes on their way to or from a disk, at an alignment that direct I/O takes.
//!
//! Each buffer is a mapping of its own, not memory of the allocator: while a disk is slow, a table copies as
//! much as it is large, and an allocator that cuts small pieces from what is freed then keeps all of it
//! (2.3 times the state stayed resident; mapped, it goes back to the system). Who needs a buffer again
//! and again keeps it: fresh memory costs a page fault for each 4 KiB.

use std::alloc::{Layout, handle_alloc_error};
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

use super::DIRECT_BYTES;

/// Bytes that grow, at a multiple of [`DIRECT_BYTES`] in memory.
#[derive(Debug, Default)]
pub struct Buffer {
    /// `None`: there is no memory yet.
    memory: Option<MmapMut>,
    len: usize,
}

impl Buffer {
    /// An empty one without memory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty one with memory for so many bytes.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self { memory: (bytes > 0).then(|| mapped(bytes)), len: 0 }
    }

    /// Bytes there is memory for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.memory.as_ref().map_or(0, |memory| memory.len())
    }

    /// Forgets the bytes and keeps the memory.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Makes it so long: cuts it off, or appends `byte`s.
    pub fn resize(&mut self, len: usize, byte: u8) {
        if len > self.len {
            self.reserve(len);
            let before = self.len;
            self.len = len;
            self[before..].fill(byte);
        }
        self.len = len;
    }

    /// Appends bytes.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let before = self.len;
        self.reserve(before + bytes.len());
        self.len += bytes.len();
        self[before..].copy_from_slice(bytes);
    }

    /// Sees to it that there is memory for so many bytes.
    pub fn reserve(&mut self, bytes: usize) {
        if bytes > self.capacity() {
            let mut larger = mapped(bytes.max(2 * self.capacity()));
            larger[..self.len].copy_from_slice(self);
            self.memory = Some(larger);
        }
    }
}

/// New memory, zeros; as where an allocator has none, the process ends if the system has none.
#[must_use]
pub(crate) fn mapped(bytes: usize) -> MmapMut {
    let bytes = bytes.next_multiple_of(DIRECT_BYTES);
    MmapMut::map_anon(bytes).unwrap_or_else(|_| {
        let layout = Layout::from_size_align(bytes, DIRECT_BYTES).expect("less than isize::MAX");
        handle_alloc_error(layout)
    })
}

impl Deref for Buffer {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.memory.as_ref().map_or(&[], |memory| &memory[..self.len])
    }
}

impl DerefMut for Buffer {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Some(memory) => &mut memory[..self.len],
            None => &mut [],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_vector_at_an_aligned_address_whose_memory_is_kept() {
        let mut buffer = Buffer::new();
        let mut vector = Vec::new();
        for round in 0..2000_usize {
            let bytes = vec![round as u8; round * 7 % 97];
            buffer.extend_from_slice(&bytes);
            vector.extend_from_slice(&bytes);
            if round % 5 == 0 {
                let len = vector.len().next_multiple_of(64) - round % 3;
                buffer.resize(len, round as u8);
                vector.resize(len, round as u8);
            }
            if round % 700 == 699 {
                let before = buffer.capacity();
                buffer.clear();
                vector.clear();
                assert_eq!(buffer.capacity(), before);
            }
            assert_eq!(buffer[..], vector[..], "round {round}");
            assert!(buffer.is_empty() || buffer.as_ptr().addr().is_multiple_of(DIRECT_BYTES));
        }
        assert!(Buffer::with_capacity(5).is_empty());
        assert_eq!(Buffer::with_capacity(5).capacity(), DIRECT_BYTES);
    }
}
