//! Loading the pages of a restored table: on demand, and in the background.
//!
//! Owns what is still on disk only and in which order it is read. A page that is asked for before it
//! is there is read at once, like a page fault; the others come in the order they lie on disk, several
//! with one read, in steps the caller asks for.
//!
//! Invariants
//! - A page is read at most once, straight into the memory it stays in.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::sync::Arc;

use hashbrown::HashMap;

use super::exchange::{PageEntry, PageSource, Place};
use super::memory::{PAGE_ALIGN, PageMemory, Room};
use super::page::HEADER_BYTES;
use super::tiles::Tiles;
use crate::error::Error;
use crate::id::SegmentId;

/// Pages read at once: with the gaps between them below the system's bound of 1024 pieces.
const PAGES_PER_READ: usize = 256;

/// A page that was read.
pub(super) struct Read {
    /// Its number.
    pub id: u32,
    /// What the index says of it.
    pub entry: PageEntry,
    /// Its bytes, not looked at yet.
    pub room: Room,
}

/// Pages that are on disk only. A large table has hundreds of thousands, and the job waits for this to be
/// made: so it is lists, and what need not be known yet is put off.
pub(super) struct Unloaded {
    /// By number, which is by first hash. Those of no bytes are not on disk.
    pages: Tiles,
    /// Which of them are still on disk only, and how many.
    waiting: Vec<bool>,
    left: usize,
    /// Numbers of pages by segment; and those of the segment that is being read, by offset, the first
    /// one last.
    segments: BTreeMap<SegmentId, Vec<u32>>,
    order: Vec<u32>,
    source: Arc<dyn PageSource>,
}

impl Unloaded {
    /// The pages of a restored table.
    pub fn new(pages: Tiles, source: Arc<dyn PageSource>) -> Self {
        debug_assert!(pages.is_sorted_by_key(|page| page.prefix));
        let mut segments: HashMap<SegmentId, Vec<u32>> = HashMap::new();
        for (number, page) in (0..).zip(&pages).filter(|(_, page)| page.bytes > 0) {
            segments.entry(page.place.segment).or_default().push(number);
        }
        let waiting: Vec<bool> = pages.iter().map(|page| page.bytes > 0).collect();
        let left = segments.values().map(Vec::len).sum();
        let segments = segments.into_iter().collect();
        Self { pages, waiting, left, segments, order: Vec::new(), source }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// Reads the page that `hash` belongs to into a room of `memory`.
    pub fn fault(&mut self, hash: u64, memory: &mut PageMemory) -> Result<Read, Error> {
        let behind = self.pages.partition_point(|page| page.prefix <= hash);
        let index = behind.checked_sub(1).expect("it is not loaded");
        let entry = self.pages[index];
        self.check(&entry)?;
        let mut read = Read { id: index as u32, entry, room: memory.take(entry.bytes as usize) };
        self.source.read(entry.place, &mut [IoSliceMut::new(read.room.bytes_mut())])?;
        self.take(index);
        Ok(read)
    }

    fn take(&mut self, index: usize) {
        assert!(std::mem::take(&mut self.waiting[index]), "a page is loaded once");
        self.left -= 1;
    }

    /// Reads the next pages that lie one behind the other into rooms of `memory`, about `budget_bytes` of
    /// them; none if nothing is left.
    pub fn next(
        &mut self,
        budget_bytes: usize,
        memory: &mut PageMemory,
    ) -> Result<Vec<Read>, Error> {
        let (mut run, mut bytes) = (Vec::<Read>::new(), 0);
        loop {
            let Some(&id) = self.order.last() else {
                if !run.is_empty() || !self.next_segment() {
                    break;
                }
                continue;
            };
            if !self.waiting[id as usize] {
                self.order.pop(); // it was asked for
                continue;
            }
            let entry = self.pages[id as usize];
            let is_next = run.last().is_none_or(|last| behind(&last.entry) == entry.place);
            if !is_next || run.len() == PAGES_PER_READ || bytes >= budget_bytes {
                break;
            }
            self.check(&entry)?;
            self.order.pop();
            bytes += entry.bytes as usize;
            run.push(Read { id, entry, room: memory.take(entry.bytes as usize) });
        }
        self.fill(&mut run)?;
        run.iter().for_each(|read| self.take(read.id as usize));
        Ok(run)
    }

    /// Puts the pages of the next segment in order; whether there is one.
    fn next_segment(&mut self) -> bool {
        let Some((_, order)) = self.segments.pop_first() else { return false };
        self.order = order;
        let pages = &self.pages;
        self.order.sort_unstable_by_key(|id| Reverse(pages[*id as usize].place.offset));
        true
    }

    /// Reads a run of pages into their memory, and the zeros between them into nowhere.
    fn fill(&self, run: &mut [Read]) -> Result<(), Error> {
        let Some(place) = run.first().map(|read| read.entry.place) else { return Ok(()) };
        let (mut gaps, last) = (vec![[0; PAGE_ALIGN]; run.len()], run.len() - 1);
        let mut memory = Vec::with_capacity(2 * run.len());
        for (index, (read, gap)) in run.iter_mut().zip(&mut gaps).enumerate() {
            let bytes = read.entry.bytes as usize;
            memory.push(IoSliceMut::new(read.room.bytes_mut()));
            let gap = &mut gap[..bytes.next_multiple_of(PAGE_ALIGN) - bytes];
            if index < last && !gap.is_empty() {
                memory.push(IoSliceMut::new(gap));
            }
        }
        self.source.read(place, &mut memory)
    }

    fn check(&self, entry: &PageEntry) -> Result<(), Error> {
        if entry.bytes as usize >= HEADER_BYTES {
            return Ok(());
        }
        Err(self.corrupt(entry, format!("a page of {} bytes", entry.bytes)))
    }

    /// The error for a page that is not what it should be.
    pub fn corrupt(&self, entry: &PageEntry, reason: String) -> Error {
        self.source.corrupt(entry.place, reason)
    }
}

/// Where a page would lie that follows `page` in its chunk.
fn behind(page: &PageEntry) -> Place {
    let bytes = u64::from(page.bytes).next_multiple_of(PAGE_ALIGN as u64);
    Place { offset: page.place.offset + bytes, ..page.place }
}
