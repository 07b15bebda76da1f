//! Frames back to back, and one buffer with all of them, filled piece by piece: the index of a base of a
//! GB of state is 10 MB, which took 3 to 25 ms to copy and sum up in one step of a worker
//! (`perf/0004-snapshots.md`).
//!
//! Invariants
//! - What is joined is the frames in the order in which they were pushed and appended.
//! - The checksum is that of all that was copied, and the buffer is not moved while it grows.

use std::collections::VecDeque;

use crate::disk::Buffer;

/// Bytes copied in one step at most. A block of frames that is as long gets no more of them: none is moved while more
/// come, and each goes back to the allocator by itself. Small in tests, so that small indices take steps.
const STEP_BYTES: usize = if cfg!(test) { 512 } else { 64 << 10 };
/// And at least: some 10 us. The index of a small snapshot takes one step.
const STEP_BYTES_MIN: usize = if cfg!(test) { 128 } else { 16 << 10 };

/// Frames in memory, in blocks.
#[derive(Default)]
pub(super) struct Frames {
    blocks: VecDeque<Vec<u8>>,
    count: u64,
}

impl Frames {
    /// One more, which `write` appends.
    pub(super) fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if self.blocks.back().is_none_or(|block| block.len() >= STEP_BYTES) {
            self.blocks.push_back(Vec::new());
        }
        write(self.blocks.back_mut().expect("there is a block"));
        self.count += 1;
    }

    /// How many.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    fn bytes(&self) -> usize {
        self.blocks.iter().map(Vec::len).sum()
    }

    /// These behind those that are there.
    pub(super) fn append(&mut self, mut more: Self) {
        self.blocks.append(&mut more.blocks);
        self.count += more.count;
    }
}

/// Frames on their way into a buffer, and the checksum of what is there.
#[derive(Default)]
pub(super) struct Joining {
    rest: VecDeque<Vec<u8>>,
    /// Bytes of the first that are in `out`.
    copied: usize,
    pub(super) out: Buffer,
    pub(super) crc32c: u32,
}

impl Joining {
    /// Into `out`, which is empty, and gets memory for `frames` and up to a multiple of `multiple`.
    pub(super) fn new(frames: Frames, mut out: Buffer, multiple: usize) -> Self {
        out.reserve(frames.bytes().next_multiple_of(multiple));
        Self { rest: frames.blocks, copied: 0, out, crc32c: 0 }
    }

    /// Copies the next `budget_bytes`, within bounds; how many that were, and whether that was all.
    pub(super) fn step(&mut self, budget_bytes: usize) -> (usize, bool) {
        let before = self.out.len();
        let mut left = budget_bytes.clamp(STEP_BYTES_MIN, STEP_BYTES);
        while let Some(block) = self.rest.front().filter(|_| left > 0) {
            let piece = &block[self.copied..];
            let piece = &piece[..piece.len().min(left)];
            self.out.extend_from_slice(piece);
            self.crc32c = crc32c::crc32c_append(self.crc32c, piece);
            self.copied += piece.len();
            left -= piece.len();
            if self.copied == block.len() {
                self.rest.pop_front();
                self.copied = 0;
            }
        }
        (self.out.len() - before, self.rest.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(sizes: &[usize]) -> (Frames, Vec<u8>) {
        let (mut frames, mut all) = (Frames::default(), Vec::new());
        for (n, size) in sizes.iter().enumerate() {
            let bytes: Vec<u8> = (0..*size).map(|at| (at + n) as u8).collect();
            frames.push(|out| out.extend_from_slice(&bytes));
            all.extend_from_slice(&bytes);
        }
        (frames, all)
    }

    #[test]
    fn what_is_joined_is_all_in_order_and_a_step_copies_little() {
        let sizes: Vec<usize> = (0..300).map(|n| n * 7919 % 5000).chain([1 << 20, 3]).collect();
        let (mut joined, mut all) = frames(&sizes);
        let (more, behind) = frames(&[16, 0, STEP_BYTES, STEP_BYTES - 1, 1]);
        all.extend_from_slice(&behind);
        joined.append(more);
        assert_eq!(joined.count(), 307);
        let mut joining = Joining::new(joined, Buffer::new(), 4096);
        let capacity = joining.out.capacity();
        let mut copied = 0;
        for budget_bytes in [0, 300, 1 << 20].into_iter().cycle() {
            let (bytes, is_whole) = joining.step(budget_bytes);
            copied += bytes;
            assert_eq!(joining.out.len(), copied);
            if is_whole {
                break;
            }
            assert_eq!(bytes, budget_bytes.clamp(STEP_BYTES_MIN, STEP_BYTES));
        }
        assert_eq!(joining.out[..], all[..]);
        assert_eq!(joining.crc32c, crc32c::crc32c(&all));
        assert_eq!(joining.out.capacity(), capacity, "it was not moved");
    }

    #[test]
    fn nothing_is_joined_at_once() {
        let mut joining = Joining::new(Frames::default(), Buffer::new(), 4096);
        assert_eq!(joining.step(0), (0, true));
        assert!(joining.out.is_empty());
    }
}
