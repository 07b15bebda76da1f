//! A table as the store sees one: pages that change, and a ledger of where they lie.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSliceMut;

use super::*;
use crate::state::{Chunk, Lost, PageEntry};

/// Bits of hash that pages share.
const DEPTH: u32 = 7;
/// So that a snapshot hands over several chunks, of which one may have no place.
const PAGES_PER_CHUNK: usize = 3;
/// Ranges of one table.
const RANGES: u32 = 64;

/// Pages by the number of their range.
#[derive(Clone, Default)]
pub(super) struct Book {
    /// Which of the workers' tables it is: pages of no two have the same range.
    pub(super) base: u32,
    pub(super) pages: BTreeMap<u32, Vec<u8>>,
    changed: BTreeSet<u32>,
    ledger: BTreeMap<u32, PageEntry>,
}

pub(super) fn prefix(page: u32) -> u64 {
    u64::from(page) << (64 - DEPTH)
}

impl Book {
    pub(super) fn of(base: u32) -> Self {
        Self { base, ..Self::default() }
    }

    pub(super) fn change(&mut self, page: u32, bytes: &[u8]) {
        self.pages.insert(page, bytes.to_vec());
        self.changed.insert(page);
    }

    /// Hands over what has changed, and what else a snapshot wants to know.
    pub(super) fn write(&mut self, writer: &mut PartWriter) {
        writer.enter("table");
        self.write_pages(writer);
        if let Some(segment) = writer.empties() {
            let there = |entry: &PageEntry| entry.place.segment == segment;
            let pages: Vec<u32> =
                self.ledger.iter().filter(|(_, e)| there(e)).map(|(page, _)| *page).collect();
            for page in pages {
                if writer.may_rewrite(self.pages[&page].len()) {
                    self.changed.insert(page);
                }
            }
            self.write_pages(writer);
        }
        if writer.wants_map() {
            writer.map(7, &self.ledger.values().copied().collect::<Vec<_>>());
        }
        let mut kept: BTreeMap<SegmentId, u64> = BTreeMap::new();
        for entry in self.ledger.values() {
            *kept.entry(entry.place.segment).or_default() += u64::from(entry.bytes);
        }
        kept.into_iter().for_each(|(segment, bytes)| writer.keeps(segment, bytes));
    }

    fn write_pages(&mut self, writer: &mut PartWriter) {
        let changed: Vec<u32> = std::mem::take(&mut self.changed).into_iter().collect();
        changed.chunks(PAGES_PER_CHUNK).for_each(|pages| self.write_chunk(pages, writer));
    }

    fn write_chunk(&mut self, pages: &[u32], writer: &mut PartWriter) {
        let mut chunk = Chunk::default();
        for page in pages {
            chunk.push(*page, prefix(self.base + page), DEPTH, &self.pages[page]);
        }
        while chunk.sum().is_some() {}
        let place = writer.pages(7, &mut chunk);
        assert_eq!(chunk.pages.len(), pages.len(), "the list stays");
        chunk.pages.iter().for_each(|page| _ = self.ledger.insert(page.id, page.entry(place)));
    }

    /// Pages that lie in what is lost count as changed.
    pub(super) fn lose(&mut self, lost: &[Lost]) {
        let is_lost = |entry: &PageEntry| {
            lost.iter().any(|lost| {
                let from = lost.place.offset;
                lost.place.segment == entry.place.segment
                    && (from..from + lost.bytes).contains(&entry.place.offset)
            })
        };
        let gone: Vec<u32> =
            self.ledger.iter().filter(|(_, e)| is_lost(e)).map(|(page, _)| *page).collect();
        for page in gone {
            self.ledger.remove(&page);
            self.changed.insert(page);
        }
    }

    /// As after a restart: nothing is known to lie anywhere.
    pub(super) fn forget(&mut self) {
        self.ledger.clear();
        self.changed = self.pages.keys().copied().collect();
    }

    /// Checks that a loaded snapshot has just these pages.
    pub(super) fn check(&self, loaded: &Loaded, story: &str) {
        let mut found = BTreeMap::new();
        for page in loaded.pages.iter().flat_map(|(_, _, pages)| pages) {
            let number = (page.prefix >> (64 - DEPTH)) as u32;
            if let Some(number) = number.checked_sub(self.base).filter(|n| *n < RANGES) {
                found.insert(number, text(&*loaded.source, page));
            }
        }
        assert!(found == self.pages, "{story}: pages differ");
    }
}

/// What a page says, its checksum checked.
pub(super) fn text(source: &dyn PageSource, page: &PageEntry) -> Vec<u8> {
    let mut bytes = vec![0; page.bytes as usize];
    source.read(page.place, &mut [IoSliceMut::new(&mut bytes)]).unwrap();
    assert_eq!(crc32c::crc32c(&bytes), page.crc32c);
    bytes
}
