//! Loading the pages of a restored table: on demand, and in the background.
//!
//! Owns which pages are still on disk only and in which order they are read; where each lies is in the
//! [`Ledger`], by its number, which restored pages have in the order of their first hashes. A page that is asked for before it
//! is there is read at once, like a page fault, and with it those that lie behind it on disk: reading
//! some more costs less than to be asked for each. The others come in the order they lie on disk, several
//! with one read, in steps the caller asks for.
//!
//! Invariants
//! - A page is read at most once, straight into the memory it stays in.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::sync::Arc;

use hashbrown::HashMap;

use super::exchange::{PageEntry, PageSource, Place};
use super::ledger::Ledger;
use super::memory::{PAGE_ALIGN, PageMemory, Room};
use super::page::HEADER_BYTES;
use super::tiles::Tiles;
use crate::error::Error;
use crate::id::SegmentId;

/// Pages read at once: with the gaps between them below the system's bound of 1024 pieces.
const PAGES_PER_READ: usize = 256;

/// What is read at most with a page that is asked for, itself included, if it is not larger: what lies behind
/// it need not be asked for then. If one of them is damaged, that is found now and not later.
const FAULT_BYTES: usize = 64 << 10;

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
    /// Which of the restored pages, by number, are still on disk only, and how many.
    waiting: Vec<bool>,
    left: usize,
    segments: BTreeMap<SegmentId, OnDisk>,
    source: Arc<dyn PageSource>,
}

/// The pages that lie in one segment.
#[derive(Default)]
struct OnDisk {
    /// By [`on_disk`]; the first on disk comes last once they are in order, which they are when that is needed.
    pages: Vec<u64>,
    is_ordered: bool,
    /// Of all that were there.
    bytes: u64,
}

impl OnDisk {
    fn ordered(&mut self) -> &mut Vec<u64> {
        if !std::mem::replace(&mut self.is_ordered, true) {
            self.pages.sort_unstable_by(|one, other| other.cmp(one));
        }
        &mut self.pages
    }
}

/// The number of a page, and above it what orders it among those of its segment. Of a segment that is
/// larger than any is made the order is only less good.
fn on_disk(number: u32, page: &PageEntry) -> u64 {
    (page.place.offset / PAGE_ALIGN as u64) << 32 | u64::from(number)
}

impl Unloaded {
    /// Those of a table that is being restored.
    pub fn new(pages: &Tiles, source: Arc<dyn PageSource>) -> Self {
        let mut segments: HashMap<SegmentId, OnDisk> = HashMap::new();
        for (number, page) in (0..).zip(pages).filter(|(_, page)| page.bytes > 0) {
            let segment = segments.entry(page.place.segment).or_default();
            segment.pages.push(on_disk(number, page));
            segment.bytes += u64::from(page.bytes);
        }
        let waiting: Vec<bool> = pages.iter().map(|page| page.bytes > 0).collect();
        let left = segments.values().map(|segment| segment.pages.len()).sum();
        let segments = segments.into_iter().collect();
        Self { waiting, left, segments, source }
    }

    /// How many bytes of pages lie in each segment; to be asked before any is read.
    pub fn bytes(&self) -> impl Iterator<Item = (SegmentId, u64)> + '_ {
        self.segments.iter().map(|(segment, on_disk)| (*segment, on_disk.bytes))
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// Reads the page that `hash` belongs to, and some that lie behind it, into rooms of `memory`.
    pub fn fault(
        &mut self,
        hash: u64,
        ledger: &Ledger,
        memory: &mut PageMemory,
    ) -> Result<Vec<Read>, Error> {
        let id = ledger.restored_at(hash, self.waiting.len() as u32);
        assert!(self.waiting[id as usize], "a page is asked for once");
        let page = ledger.entry(id);
        let segment = self.segments.get_mut(&page.place.segment).expect("it waits in there");
        let (pages, this) = (segment.ordered(), on_disk(id, &page));
        let at = pages.binary_search_by(|other| this.cmp(other)).expect("it waits in there");
        let next: Vec<u64> = pages[..=at].iter().rev().take(PAGES_PER_READ).copied().collect();
        self.read(&next, FAULT_BYTES, ledger, memory)
    }

    /// Reads the next pages that lie one behind the other into rooms of `memory`, of `budget_bytes` at most
    /// or one; none if nothing is left.
    pub fn next(
        &mut self,
        budget_bytes: usize,
        ledger: &Ledger,
        memory: &mut PageMemory,
    ) -> Result<Vec<Read>, Error> {
        while let Some(mut segment) = self.segments.first_entry() {
            let pages = segment.get_mut().ordered();
            while pages.pop_if(|page| !self.waiting[*page as u32 as usize]).is_some() {}
            if pages.is_empty() {
                segment.remove();
                continue;
            }
            let next: Vec<u64> = pages.iter().rev().take(PAGES_PER_READ).copied().collect();
            return self.read(&next, budget_bytes, ledger, memory);
        }
        Ok(Vec::new())
    }

    /// Reads the first of `pages`, and those behind it as far as they wait and lie one behind the other, of
    /// `budget_bytes` at most with it.
    fn read(
        &mut self,
        pages: &[u64],
        budget_bytes: usize,
        ledger: &Ledger,
        memory: &mut PageMemory,
    ) -> Result<Vec<Read>, Error> {
        let (mut run, mut bytes) = (Vec::<Read>::new(), 0);
        for id in pages.iter().map(|page| *page as u32) {
            let entry = ledger.entry(id);
            let is_next = run.last().is_none_or(|last| {
                behind(&last.entry) == entry.place && bytes + entry.bytes as usize <= budget_bytes
            });
            if !is_next || !self.waiting[id as usize] {
                break;
            }
            self.check(&entry)?;
            bytes += entry.bytes as usize;
            run.push(Read { id, entry, room: memory.take(entry.bytes as usize) });
        }
        self.fill(&mut run)?;
        for Read { id, .. } in &run {
            assert!(std::mem::take(&mut self.waiting[*id as usize]), "a page is loaded once");
        }
        self.left -= run.len();
        Ok(run)
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const PAGE: u64 = 4096;

    /// Pages that are full of their place's number; notes what is read.
    #[derive(Default)]
    struct Numbered(Mutex<Vec<(Place, usize)>>);

    impl PageSource for Numbered {
        fn read(&self, place: Place, memory: &mut [IoSliceMut<'_>]) -> Result<(), Error> {
            let mut at = place.offset;
            for part in memory.iter_mut() {
                for byte in part.iter_mut() {
                    *byte = (at / PAGE) as u8;
                    at += 1;
                }
            }
            self.0.lock().unwrap().push((place, (at - place.offset) as usize));
            Ok(())
        }

        fn corrupt(&self, place: Place, reason: String) -> Error {
            Error::corrupt("numbered", place.offset, reason)
        }
    }

    /// `count` pages of the top bits of a hash, each at the place on disk that `place` says.
    fn pages(bits: u32, place: impl Fn(u64) -> Place) -> Tiles {
        let page = |index| {
            let prefix = index << (64 - bits);
            PageEntry { prefix, depth: bits, bytes: PAGE as u32, crc32c: 0, place: place(index) }
        };
        (0..1 << bits).map(page).collect()
    }

    fn at(segment: u32, page: u64) -> Place {
        Place { segment: SegmentId(segment), offset: page * PAGE }
    }

    #[test]
    fn with_a_page_that_is_asked_for_come_those_behind_it_and_each_is_read_once() {
        // Page i lies at 5 i mod 64, those above 48 in another file.
        let place = |index| {
            let page = index * 5 % 64;
            if page < 48 { at(3, page) } else { at(2, page) }
        };
        let (source, pages) = (Arc::new(Numbered::default()), pages(6, place));
        let mut unloaded = Unloaded::new(&pages, source.clone());
        let bytes: Vec<_> = unloaded.bytes().map(|(segment, bytes)| (segment.0, bytes)).collect();
        assert_eq!(bytes, [(2, 16 * PAGE), (3, 48 * PAGE)]);
        let ledger = Ledger::restored(pages, unloaded.bytes());
        let mut memory = PageMemory::default();
        let mut runs = Vec::new();
        let mut take = |run: Vec<Read>| {
            let first = run[0].entry.place;
            for (read, page) in run.iter().zip(first.offset / PAGE..) {
                assert_eq!(read.entry.place, at(first.segment.0, page), "one behind the other");
                assert_eq!(read.entry.place, place(u64::from(read.id)), "by its number");
                assert!(read.room.bytes().iter().all(|byte| *byte == page as u8));
            }
            runs.push((first.offset / PAGE, run.len()));
            run[0].id
        };
        for index in [1, 0, 8, 12] {
            let run = unloaded.fault(u64::from(index) << 58 | 77, &ledger, &mut memory);
            assert_eq!(take(run.expect("they can be read")), index, "what was asked for is first");
        }
        while !unloaded.is_empty() {
            let run = unloaded.next(100 * PAGE as usize, &ledger, &mut memory);
            take(run.expect("they can be read"));
        }
        assert!(unloaded.next(1, &ledger, &mut memory).expect("nothing to read").is_empty());
        // 16 pages with a fault; up to one that is there; to the end of the file, twice; then the rest.
        assert_eq!(runs, [(5, 16), (0, 5), (40, 8), (60, 4), (48, 12), (21, 19)]);
        let read: Vec<usize> = source.0.lock().unwrap().iter().map(|(_, bytes)| *bytes).collect();
        assert_eq!(read, runs.iter().map(|(_, pages)| pages * PAGE as usize).collect::<Vec<_>>());
    }
}
