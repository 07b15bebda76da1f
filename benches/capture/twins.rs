//! Ways that keep two or three copies of every record all the time (Cao et al., "Fast Checkpoint
//! Recovery Algorithms for Frequently Consistent Applications", SIGMOD 2011).
//!
//! `TOGETHER`: the copies of a record lie side by side, and share a cache line; else each copy is an
//! array of its own.

use crate::Capture;
use crate::disk::{Chunk, Disk, Record, page_len};
use crate::{Bits, bump, bytes_of};

/// So many copies of every record.
struct Copies<const W: usize, const COPIES: usize, const TOGETHER: bool> {
    records: Vec<Record<W>>,
    len: usize,
}

impl<const W: usize, const COPIES: usize, const TOGETHER: bool> Copies<W, COPIES, TOGETHER> {
    fn new(len: usize) -> Self {
        Self { records: vec![[0; W]; len * COPIES], len }
    }

    #[inline]
    fn place(&self, key: usize, copy: usize) -> usize {
        if TOGETHER { key * COPIES + copy } else { copy * self.len + key }
    }

    #[inline]
    fn get(&self, key: usize, copy: usize) -> Record<W> {
        self.records[self.place(key, copy)]
    }

    #[inline]
    fn set(&mut self, key: usize, copy: usize, record: Record<W>) {
        let place = self.place(key, copy);
        self.records[place] = record;
    }
}

/// Two copies; a bit says which to read, another which to write. What is not written to is the version.
pub struct Zigzag<const W: usize, const TOGETHER: bool> {
    copies: Copies<W, 2, TOGETHER>,
    read: Bits,
    write: Bits,
    next: usize,
    chunk: Chunk<W>,
}

impl<const W: usize, const TOGETHER: bool> Zigzag<W, TOGETHER> {
    pub fn new(len: usize) -> Self {
        let (copies, chunk) = (Copies::new(len), Chunk::default());
        Self { copies, read: Bits::new(len), write: Bits::new(len), next: len, chunk }
    }
}

impl<const W: usize, const TOGETHER: bool> Capture<W> for Zigzag<W, TOGETHER> {
    fn update(&mut self, keys: &[u32]) {
        for key in keys {
            let key = *key as usize;
            let mut record = self.copies.get(key, usize::from(self.read.get(key)));
            bump(&mut record);
            let write = self.write.get(key);
            self.copies.set(key, usize::from(write), record);
            self.read.set(key, write);
        }
    }

    fn mark(&mut self) {
        assert_eq!(self.next, self.copies.len, "a mark while one is open");
        self.write.set_to_inverse(&self.read);
        self.next = 0;
    }

    fn drain(&mut self, budget_bytes: usize, disk: &mut Disk<W>) -> bool {
        let mut done = 0;
        while done < budget_bytes && self.next < self.copies.len {
            let Self { copies, write, .. } = self;
            let version = |key| copies.get(key, usize::from(!write.get(key)));
            done += self.chunk.push_page(self.next, version);
            self.next += page_len::<W>();
            disk.take_if_full(&mut self.chunk);
        }
        if self.next == self.copies.len {
            disk.take(&mut self.chunk);
        }
        self.next < self.copies.len
    }

    fn record(&self, key: usize) -> Record<W> {
        self.copies.get(key, usize::from(self.read.get(key)))
    }

    fn memory_bytes(&self) -> usize {
        let bits = self.read.bytes() + self.write.bytes();
        bytes_of(&self.copies.records) + bits + self.chunk.memory_bytes()
    }
}

/// The state, and beside it an odd and an even copy of what was written since the mark, or between
/// that and the mark before. Every update writes twice; a version is what changed.
pub struct PingPong<const W: usize, const TOGETHER: bool> {
    copies: Copies<W, 3, TOGETHER>,
    /// Records of copy 1 and of copy 2 that were written.
    dirty: [Bits; 2],
    /// The copy that is written to, less 1.
    current: usize,
    /// The next word of the other copy's bits to look at.
    next: usize,
    chunk: Chunk<W>,
}

impl<const W: usize, const TOGETHER: bool> PingPong<W, TOGETHER> {
    pub fn new(len: usize) -> Self {
        let dirty = [Bits::new(len), Bits::new(len)];
        let next = dirty[0].words.len();
        Self { copies: Copies::new(len), dirty, current: 0, next, chunk: Chunk::default() }
    }
}

impl<const W: usize, const TOGETHER: bool> Capture<W> for PingPong<W, TOGETHER> {
    fn update(&mut self, keys: &[u32]) {
        let current = self.current;
        for key in keys {
            let key = *key as usize;
            let mut record = self.copies.get(key, 0);
            bump(&mut record);
            self.copies.set(key, 0, record);
            self.copies.set(key, 1 + current, record);
            self.dirty[current].set(key, true);
        }
    }

    fn mark(&mut self) {
        assert_eq!(self.next, self.dirty[0].words.len(), "a mark while one is open");
        self.current = 1 - self.current;
        self.next = 0;
    }

    fn drain(&mut self, budget_bytes: usize, disk: &mut Disk<W>) -> bool {
        let other = 1 - self.current;
        let mut done = 0;
        while done < budget_bytes && self.next < self.dirty[other].words.len() {
            let mut word = std::mem::take(&mut self.dirty[other].words[self.next]);
            while word != 0 {
                let key = self.next * 64 + word.trailing_zeros() as usize;
                word &= word - 1;
                done += self.chunk.push(key, &[self.copies.get(key, 1 + other)]);
            }
            done += size_of::<u64>();
            self.next += 1;
            disk.take_if_full(&mut self.chunk);
        }
        if self.next == self.dirty[other].words.len() {
            disk.take(&mut self.chunk);
        }
        self.next < self.dirty[other].words.len()
    }

    fn record(&self, key: usize) -> Record<W> {
        self.copies.get(key, 0)
    }

    fn memory_bytes(&self) -> usize {
        let bits: usize = self.dirty.iter().map(Bits::bytes).sum();
        bytes_of(&self.copies.records) + bits + self.chunk.memory_bytes()
    }
}
