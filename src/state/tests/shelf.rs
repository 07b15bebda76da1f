//! A disk for tables: keeps chunks in segments and indices as a snapshot store would.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSliceMut;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use crate::error::Error;
use crate::id::{SegmentId, StateSlot};
use crate::key::Key;
use crate::record::Data;
use crate::state::{
    Chunk, KeyedTable, Lost, OperatorState, PageEntry, PageSource, Place, StateWriter,
};

/// Chunks go to another segment after so many bytes.
const SEGMENT_BYTES: usize = 100_000;

type Segments = Arc<Mutex<BTreeMap<SegmentId, Vec<u8>>>>;

/// Pages by first hash; what a newer one covers is gone.
#[derive(Clone, Default, Debug)]
pub struct Index(pub BTreeMap<u64, PageEntry>);

impl Index {
    fn put(&mut self, entry: PageEntry) {
        let last = entry.prefix + ((1 << (64 - entry.depth)) - 1);
        let covered: Vec<u64> = self.0.range(entry.prefix..=last).map(|(hash, _)| *hash).collect();
        covered.iter().for_each(|hash| _ = self.0.remove(hash));
        if let Some((hash, before)) = self.0.range(..entry.prefix).next_back() {
            let (hash, end) = (*hash, *hash + ((1 << (64 - before.depth)) - 1));
            if end >= entry.prefix {
                self.0.remove(&hash);
            }
        }
        self.0.insert(entry.prefix, entry);
    }
}

/// See the module's documentation.
#[derive(Default)]
pub struct Shelf {
    segments: Segments,
    /// The index as of the last part that was finished.
    pub index: Index,
    /// Whether there is no such part to go on from.
    pub is_broken: bool,
    /// What the part at hand, or one that was abandoned before it, wrote.
    delta: Vec<PageEntry>,
    map: Vec<PageEntry>,
    kept: BTreeSet<SegmentId>,
    /// Chunks of the last part.
    chunks: Vec<Lost>,
    pub schema: u32,
    pub written_bytes: usize,
    pub empties: bool,
    rewritten: usize,
}

impl StateWriter for Shelf {
    fn enter(&mut self, _operator: &str) {}

    fn write(&mut self, slot: StateSlot, _schema: u32, _bytes: &[u8]) {
        panic!("a table has no piece {slot:?}");
    }

    fn pages(&mut self, schema: u32, chunk: &mut Chunk) -> Place {
        assert!(chunk.is_summed(), "a page is handed over without its checksum");
        self.schema = schema;
        let mut segments = self.segments.lock().unwrap();
        let last = segments.last_key_value().filter(|last| last.1.len() < SEGMENT_BYTES);
        let segment = match last {
            Some((segment, _)) => *segment,
            None => SegmentId(segments.last_key_value().map_or(0, |last| last.0.0 + 1)),
        };
        let bytes = segments.entry(segment).or_default();
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        let place = Place { segment, offset: bytes.len() as u64 };
        bytes.extend_from_slice(&chunk.bytes);
        self.delta.extend(chunk.pages.iter().map(|page| page.entry(place)));
        self.written_bytes += chunk.bytes.len();
        self.chunks.push(Lost { place, bytes: chunk.bytes.len() as u64 });
        place
    }

    fn wants_map(&self) -> bool {
        self.is_broken
    }

    fn map(&mut self, schema: u32, entries: &[PageEntry]) {
        self.schema = schema;
        self.map.extend_from_slice(entries);
    }

    fn keeps(&mut self, segment: SegmentId, bytes: u64) {
        assert!(bytes > 0);
        self.kept.insert(segment);
    }

    fn empties(&self) -> Option<SegmentId> {
        self.segments.lock().unwrap().keys().next().copied().filter(|_| self.empties)
    }

    fn may_rewrite(&mut self, bytes: usize) -> bool {
        self.rewritten += bytes;
        self.rewritten < 60_000
    }
}

impl Shelf {
    /// An empty one: the first index has to list every page.
    pub fn new() -> Self {
        Self { is_broken: true, ..Self::default() }
    }

    /// Another one with the same segments, as a second worker has.
    pub fn other(&self) -> Self {
        Self { segments: self.segments.clone(), schema: self.schema, ..Self::new() }
    }

    /// The part at hand is written: what a restore would find.
    pub fn finish(&mut self) -> Index {
        if std::mem::take(&mut self.is_broken) {
            self.index = Index::default();
            std::mem::take(&mut self.map).into_iter().for_each(|entry| self.index.put(entry));
        }
        for entry in std::mem::take(&mut self.delta) {
            self.index.put(entry);
        }
        let kept = std::mem::take(&mut self.kept);
        let needed = self.index.0.values().map(|entry| entry.place.segment).collect();
        assert_eq!(kept, needed, "the segments that are kept are those that are needed");
        self.rewritten = 0;
        self.index.clone()
    }

    /// A part begins.
    pub fn begin(&mut self) {
        self.chunks.clear();
        self.written_bytes = 0;
    }

    /// The last part's bytes turn out to be lost, and so is the way back to those before.
    pub fn lose(&mut self) -> Vec<Lost> {
        let mut segments = self.segments.lock().unwrap();
        for Lost { place, bytes } in &self.chunks {
            let segment = segments.get_mut(&place.segment).unwrap();
            segment[place.offset as usize..][..*bytes as usize].fill(0xEE);
        }
        self.is_broken = true;
        self.delta.clear();
        self.chunks.clone()
    }

    /// The part at hand is given up before it was finished.
    pub fn abandon(&mut self) {
        self.map.clear();
        self.kept.clear();
        self.rewritten = 0;
    }

    /// A new process, which has no index of its own to go on from.
    pub fn restart(&mut self) {
        self.is_broken = true;
        self.delta.clear();
        self.begin();
    }

    /// Empties every segment that none of these indices needs.
    pub fn forget_others(&self, needed: &[&Index]) {
        let entries = needed.iter().flat_map(|index| index.0.values());
        let needed: BTreeSet<SegmentId> = entries.map(|entry| entry.place.segment).collect();
        for (segment, bytes) in self.segments.lock().unwrap().iter_mut() {
            if !needed.contains(segment) {
                bytes.fill(0xDD);
            }
        }
    }

    /// A table with the pages of some key groups.
    pub fn restored<K: Key, V: Data>(&self, index: &Index, groups: Range<u32>) -> KeyedTable<K, V> {
        let mut table = KeyedTable::new(groups);
        let pages: Vec<PageEntry> = index.0.values().copied().collect();
        table.restore_pages(self.schema, &pages, &self.source()).unwrap();
        table.migrate().unwrap();
        table
    }

    /// Where pages are read from.
    pub fn source(&self) -> Arc<dyn PageSource> {
        Arc::new(Source(self.segments.clone()))
    }

    /// Changes one byte of a segment.
    pub fn damage(&self, place: Place, change: impl FnOnce(u8) -> u8) {
        let mut segments = self.segments.lock().unwrap();
        let byte = &mut segments.get_mut(&place.segment).unwrap()[place.offset as usize];
        *byte = change(*byte);
    }
}

struct Source(Segments);

impl PageSource for Source {
    fn read(&self, place: Place, memory: &mut [IoSliceMut<'_>]) -> Result<(), Error> {
        let segments = self.0.lock().unwrap();
        let mut bytes = &segments[&place.segment][place.offset as usize..];
        for part in memory {
            let (taken, rest) = bytes.split_at(part.len());
            part.copy_from_slice(taken);
            bytes = rest;
        }
        Ok(())
    }

    fn corrupt(&self, place: Place, reason: String) -> Error {
        Error::corrupt(format!("segment {}", place.segment.0), place.offset, reason)
    }
}
