//! Ways that keep one copy of the state and make another only to capture it.

use std::collections::VecDeque;

use crate::Capture;
use crate::disk::{CHUNK_BYTES, Chunk, Disk, Record, page_len};
use crate::{Bits, bump_all, bytes_of};

/// Captures nothing.
pub struct Nothing<const W: usize>(pub Vec<Record<W>>);

impl<const W: usize> Capture<W> for Nothing<W> {
    fn update(&mut self, keys: &[u32]) {
        bump_all(&mut self.0, keys);
    }

    fn mark(&mut self) {}

    fn drain(&mut self, _budget_bytes: usize, _disk: &mut Disk<W>) -> bool {
        false
    }

    fn record(&self, key: usize) -> Record<W> {
        self.0[key]
    }

    fn memory_bytes(&self) -> usize {
        bytes_of(&self.0)
    }
}

/// Copies everything at the mark.
pub struct StopAndCopy<const W: usize> {
    records: Vec<Record<W>>,
    copied: Vec<Chunk<W>>,
    spare: Vec<Chunk<W>>,
}

impl<const W: usize> StopAndCopy<W> {
    pub fn new(len: usize) -> Self {
        Self { records: vec![[0; W]; len], copied: Vec::new(), spare: Vec::new() }
    }
}

impl<const W: usize> Capture<W> for StopAndCopy<W> {
    fn update(&mut self, keys: &[u32]) {
        bump_all(&mut self.records, keys);
    }

    fn mark(&mut self) {
        let run = (CHUNK_BYTES / size_of::<Record<W>>()).min(self.records.len());
        for (i, records) in self.records.chunks(run).enumerate() {
            let mut chunk = self.spare.pop().unwrap_or_default();
            chunk.push(i * run, records);
            self.copied.push(chunk);
        }
    }

    fn drain(&mut self, _budget_bytes: usize, disk: &mut Disk<W>) -> bool {
        if let Some(mut chunk) = self.copied.pop() {
            disk.take(&mut chunk);
            self.spare.push(chunk);
        }
        !self.copied.is_empty()
    }

    fn record(&self, key: usize) -> Record<W> {
        self.records[key]
    }

    fn memory_bytes(&self) -> usize {
        let chunks = self.copied.iter().chain(&self.spare);
        bytes_of(&self.records) + chunks.map(Chunk::memory_bytes).sum::<usize>()
    }
}

/// Version of a unit that did not change since it was captured; the others are 1 and 2 in turn.
const CLEAN: u8 = 0;

/// Copies units of so many records before their first write after a mark; as `state::capture`, whose
/// unit is a page. With one record as the unit it is what CALC and CPR come to within one shard.
pub struct CopyOnUpdate<const W: usize, const UNIT: usize> {
    records: Vec<Record<W>>,
    versions: Vec<u8>,
    current: u8,
    is_open: bool,
    changed: Vec<u32>,
    marked: Vec<u32>,
    chunk: Chunk<W>,
    full: VecDeque<Chunk<W>>,
    spare: Vec<Chunk<W>>,
}

impl<const W: usize, const UNIT: usize> CopyOnUpdate<W, UNIT> {
    pub fn new(len: usize) -> Self {
        Self {
            records: vec![[0; W]; len],
            versions: vec![CLEAN; len / UNIT],
            current: CLEAN + 1,
            is_open: false,
            changed: Vec::new(),
            marked: Vec::new(),
            chunk: Chunk::default(),
            full: VecDeque::new(),
            spare: Vec::new(),
        }
    }

    /// The unit, not of the current version, is about to change.
    #[inline(never)]
    fn protect(&mut self, unit: usize) {
        if self.is_open && self.versions[unit] != CLEAN {
            self.copy(unit);
            if self.chunk.is_full() {
                let next = self.spare.pop().unwrap_or_default();
                self.full.push_back(std::mem::replace(&mut self.chunk, next));
            }
        }
        self.versions[unit] = self.current;
        self.changed.push(unit as u32);
    }

    fn copy(&mut self, unit: usize) -> usize {
        self.chunk.push(unit * UNIT, &self.records[unit * UNIT..][..UNIT])
    }
}

impl<const W: usize, const UNIT: usize> Capture<W> for CopyOnUpdate<W, UNIT> {
    fn update(&mut self, keys: &[u32]) {
        // In two passes the second is as short as without capture, and its cache misses overlap.
        for key in keys {
            let unit = *key as usize / UNIT;
            if self.versions[unit] != self.current {
                self.protect(unit);
            }
        }
        bump_all(&mut self.records, keys);
    }

    fn mark(&mut self) {
        assert!(!self.is_open, "a mark while one is open");
        self.is_open = true;
        self.current = 3 - self.current;
        std::mem::swap(&mut self.marked, &mut self.changed);
    }

    fn drain(&mut self, budget_bytes: usize, disk: &mut Disk<W>) -> bool {
        let mut done = 0;
        while done < budget_bytes && self.is_open {
            if let Some(mut chunk) = self.full.pop_front() {
                done += chunk.bytes();
                disk.take(&mut chunk);
                self.spare.push(chunk);
                continue;
            }
            let Some(unit) = self.marked.pop() else {
                disk.take(&mut self.chunk);
                self.is_open = false;
                break;
            };
            done += 1;
            if self.versions[unit as usize] == 3 - self.current {
                done += self.copy(unit as usize);
                self.versions[unit as usize] = CLEAN;
                disk.take_if_full(&mut self.chunk);
            }
        }
        self.is_open
    }

    fn record(&self, key: usize) -> Record<W> {
        self.records[key]
    }

    fn memory_bytes(&self) -> usize {
        let chunks = self.full.iter().chain(&self.spare).chain([&self.chunk]);
        let lists = self.changed.capacity() + self.marked.capacity();
        bytes_of(&self.records)
            + self.versions.len()
            + lists * size_of::<u32>()
            + chunks.map(Chunk::memory_bytes).sum::<usize>()
    }
}

/// CALC (Ren et al., SIGMOD 2016) within one shard: a place for a stable copy beside every record,
/// and a bit that says whether it is settled which of the two is the version's.
pub struct Calc<const W: usize> {
    live: Vec<Record<W>>,
    stable: Vec<Record<W>>,
    settled: Bits,
    /// What a bit of `settled` is if it is so; the other way round with each mark.
    polarity: bool,
    /// The first record that is still to be written; all are when none is captured.
    next: usize,
    chunk: Chunk<W>,
}

impl<const W: usize> Calc<W> {
    pub fn new(len: usize) -> Self {
        Self {
            live: vec![[0; W]; len],
            stable: vec![[0; W]; len],
            settled: Bits::new(len),
            polarity: false,
            next: len,
            chunk: Chunk::default(),
        }
    }
}

impl<const W: usize> Capture<W> for Calc<W> {
    fn update(&mut self, keys: &[u32]) {
        if self.next < self.live.len() {
            for key in keys.iter().map(|key| *key as usize) {
                if self.settled.get(key) != self.polarity {
                    self.stable[key] = self.live[key];
                    self.settled.set(key, self.polarity);
                }
            }
        }
        bump_all(&mut self.live, keys);
    }

    fn mark(&mut self) {
        assert_eq!(self.next, self.live.len(), "a mark while one is open");
        self.polarity = !self.polarity;
        self.next = 0;
    }

    fn drain(&mut self, budget_bytes: usize, disk: &mut Disk<W>) -> bool {
        let mut done = 0;
        while done < budget_bytes && self.next < self.live.len() {
            let Self { live, stable, settled, polarity, .. } = self;
            done += self.chunk.push_page(self.next, |key| {
                if settled.get(key) == *polarity { stable[key] } else { live[key] }
            });
            let end = self.next + page_len::<W>();
            self.settled.fill(self.next..end, self.polarity);
            self.next = end;
            disk.take_if_full(&mut self.chunk);
        }
        if self.next == self.live.len() {
            disk.take(&mut self.chunk);
        }
        self.next < self.live.len()
    }

    fn record(&self, key: usize) -> Record<W> {
        self.live[key]
    }

    fn memory_bytes(&self) -> usize {
        bytes_of(&self.live)
            + bytes_of(&self.stable)
            + self.settled.bytes()
            + self.chunk.memory_bytes()
    }
}
