//! The ledger of a table: where the durable copy of each page lies.
//!
//! Owns one [`PageEntry`] per page that was ever handed to a snapshot, by the page's number, and the
//! bytes that lie in each segment. It changes only when pages are handed over, never when records
//! come: so between two snapshots it is the map of the last one, and can be written out as such.
//!
//! Invariants
//! - Entries of pages that were restored are in the order of their first hashes, whatever becomes of them.
//! - The entries tile what was handed over last: a page that has split keeps the entry of before
//!   until both halves, which have both changed, are handed over together.
//! - `segments` is the sum of the entries, by segment; a segment without bytes is not in it.

use std::collections::BTreeMap;

use super::exchange::{PageEntry, Place};
use super::tiles::Tiles;
use crate::id::SegmentId;

/// Bytes on disk that turned out not to be what was handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Where they begin.
    pub place: Place,
    /// How many there are.
    pub bytes: u64,
}

impl Lost {
    fn holds(&self, place: Place) -> bool {
        let Place { segment, offset } = self.place;
        place.segment == segment && (offset..offset + self.bytes).contains(&place.offset)
    }
}

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Ledger {
    /// By page number; an entry of no bytes stands for none.
    entries: Vec<PageEntry>,
    segments: BTreeMap<SegmentId, u64>,
}

impl Ledger {
    /// That of a table that was just restored: its pages, and how many bytes of them lie in each segment.
    pub fn restored(pages: Tiles, segments: impl Iterator<Item = (SegmentId, u64)>) -> Self {
        debug_assert!(pages.is_sorted_by_key(|page| page.prefix));
        Self { entries: pages, segments: segments.collect() }
    }

    /// Of the first `restored` pages, which are those of a table that was restored, the number of the one whose
    /// range held `hash` then. A page keeps its number and its first hash when it splits.
    pub fn restored_at(&self, hash: u64, restored: u32) -> u32 {
        let behind = self.entries[..restored as usize].partition_point(|page| page.prefix <= hash);
        behind.checked_sub(1).expect("pages begin with a key group") as u32
    }

    /// Numbers there may be an entry for: 0 up to here.
    pub fn len(&self) -> u32 {
        self.entries.len() as u32
    }

    /// Where page `id` lies; of no bytes if nowhere.
    pub fn entry(&self, id: u32) -> PageEntry {
        self.entries.get(id as usize).copied().unwrap_or_default()
    }

    /// Page `id` lies there from now on.
    pub fn set(&mut self, id: u32, entry: PageEntry) {
        let index = id as usize;
        if self.entries.len() <= index {
            self.entries.resize(index + 1, PageEntry::default());
        }
        let old = std::mem::replace(&mut self.entries[index], entry);
        self.take_off(old);
        if entry.bytes > 0 {
            *self.segments.entry(entry.place.segment).or_default() += u64::from(entry.bytes);
        }
    }

    fn take_off(&mut self, old: PageEntry) {
        if old.bytes == 0 {
            return;
        }
        let segment = old.place.segment;
        let kept = self.segments.get_mut(&segment).expect("every entry was counted");
        *kept -= u64::from(old.bytes);
        if *kept == 0 {
            self.segments.remove(&segment);
        }
    }

    /// Pages that lie in what is lost: they lie nowhere from now on.
    pub fn lose(&mut self, lost: &[Lost]) -> Vec<PageEntry> {
        let is_lost =
            |entry: &PageEntry| entry.bytes > 0 && lost.iter().any(|lost| lost.holds(entry.place));
        let ids = 0..self.len();
        let ids: Vec<u32> = ids.filter(|id| is_lost(&self.entries[*id as usize])).collect();
        ids.into_iter()
            .map(|id| {
                let entry = self.entry(id);
                self.set(id, PageEntry { bytes: 0, ..entry });
                entry
            })
            .collect()
    }

    /// Segments that pages lie in, with their bytes.
    pub fn segments(&self) -> impl Iterator<Item = (SegmentId, u64)> + '_ {
        self.segments.iter().map(|(segment, bytes)| (*segment, *bytes))
    }

    /// Entries from page number `from` on, at most `max` of them; and where to go on.
    pub fn slice(&self, from: u32, max: u32) -> (Vec<PageEntry>, u32) {
        let to = self.len().min(from + max);
        let entries = &self.entries[from as usize..to as usize];
        (entries.iter().filter(|entry| entry.bytes > 0).copied().collect(), to)
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<PageEntry>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(segment: u32, offset: u64, bytes: u32) -> PageEntry {
        let place = Place { segment: SegmentId(segment), offset };
        PageEntry { bytes, place, ..PageEntry::default() }
    }

    fn segments(ledger: &Ledger) -> Vec<(u32, u64)> {
        ledger.segments().map(|(segment, bytes)| (segment.0, bytes)).collect()
    }

    #[test]
    fn a_segment_is_kept_as_long_as_a_page_lies_in_it() {
        let mut ledger = Ledger::default();
        ledger.set(2, entry(1, 0, 10));
        ledger.set(0, entry(1, 64, 20));
        ledger.set(1, entry(2, 0, 5));
        assert_eq!(segments(&ledger), [(1, 30), (2, 5)]);
        ledger.set(0, entry(2, 64, 7));
        ledger.set(2, entry(3, 0, 1));
        assert_eq!(segments(&ledger), [(2, 12), (3, 1)]);
        assert_eq!(ledger.slice(1, 9), (vec![entry(2, 0, 5), entry(3, 0, 1)], 3));
    }

    #[test]
    fn what_is_lost_lies_nowhere() {
        let mut ledger = Ledger::default();
        ledger.set(0, entry(1, 0, 64));
        ledger.set(1, entry(1, 64, 64));
        ledger.set(2, entry(2, 64, 64));
        let lost = Lost { place: Place { segment: SegmentId(1), offset: 64 }, bytes: 4096 };
        assert_eq!(ledger.lose(&[lost]), [entry(1, 64, 64)]);
        assert_eq!(ledger.entry(1), PageEntry { bytes: 0, ..entry(1, 64, 64) });
        assert_eq!(segments(&ledger), [(1, 64), (2, 64)]);
    }
}
