//! A keyed table of plain entries in pages, and the capture of one version of it.
//!
//! Owns a [`Directory`] per key group and what a marked version needs: `mark` raises the version; a
//! page whose directory entry has another version is copied before its first write; `drain` walks
//! the marked version in the order of positions, taking each page from where its captured bytes are.
//!
//! Invariants
//! - While a mark is open, a page whose entry has another version has not changed since the mark;
//!   of every other range of positions not yet written, `preserved` holds the captured page.
//! - The captured pages tile the positions, so the walk over live and preserved pages meets each once.
//! - Versions are compared for equality only. One would have to be abandoned 2^32 times in a row to
//!   come around: a completed drain stamps every page.

#![expect(unsafe_code, reason = "a value found in a page outlives the borrow that found it")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::ptr::NonNull;

use super::directory::{Directory, position_after, position_of};
use super::keyed::Cursor;
use super::page::{Page, PageBox, PageMut, Place};
use super::slot::Probe;
use super::{Drained, SCHEMA_BYTE_PAGES, SCHEMA_PAGES, StateWriter, restore};
use crate::id::{KeyGroup, StateSlot};
use crate::key::Key;
use crate::record::Data;

/// A page of at least this many bytes is a piece by itself, straight from where it lies; smaller ones
/// of a group are gathered up to this size.
const PIECE_BYTES_MIN: usize = 2048;

pub(super) struct PagedTable<K: Key, V: Data> {
    first_group: u32,
    groups: Vec<Directory<K, V>>,
    len: usize,
    capture: Capture<K, V>,
}

/// What one marked version needs.
struct Capture<K: Key, V: Data> {
    version: u32,
    /// Where the drain stands, while a mark is open: index of the group, position.
    next: Option<(usize, u64)>,
    /// Captured pages that were changed before they were written, by group and first position.
    preserved: BTreeMap<(u32, u64), PageBox<K, V>>,
    /// Small pages of one group on their way out.
    piece: Vec<u8>,
}

impl<K: Key, V: Data> PagedTable<K, V> {
    pub fn new(groups: Range<u32>) -> Self {
        let capture =
            Capture { version: 0, next: None, preserved: BTreeMap::new(), piece: Vec::new() };
        Self {
            first_group: groups.start,
            groups: groups.map(|group| Directory::new(group, 0)).collect(),
            len: 0,
            capture,
        }
    }

    pub const SCHEMA: u32 = if K::BYTES.is_some() { SCHEMA_BYTE_PAGES } else { SCHEMA_PAGES };

    pub fn len(&self) -> usize {
        self.len
    }

    #[inline]
    fn group_of(&self, hash: u64) -> usize {
        KeyGroup::of_hash(hash).0.wrapping_sub(self.first_group) as usize
    }

    #[inline]
    fn page(&self, hash: u64) -> Page<'_, K, V> {
        self.groups[self.group_of(hash)].page(position_of(hash))
    }

    /// The page of `hash`, its captured bytes safe.
    #[inline]
    fn page_mut(&mut self, hash: u64) -> PageMut<'_, K, V> {
        let group = self.group_of(hash);
        let directory = &mut self.groups[group];
        if directory.version(position_of(hash)) != self.capture.version {
            self.capture.protect(directory, position_of(hash));
        }
        directory.page_mut(position_of(hash))
    }

    #[inline]
    pub fn prefetch(&self, hash: u64) {
        self.page(hash).prefetch(hash);
    }

    #[inline]
    pub fn upsert(&mut self, hash: u64, key: &K, init: impl FnOnce() -> V) -> &mut V {
        let probe = Probe::new(key, hash);
        let page = self.page_mut(hash);
        let mut value = match page.find(hash, &probe) {
            Place::Found(index) => page.value_ptr(index),
            Place::Vacant(index) => self.fill(hash, &probe, index, init()),
        };
        // SAFETY: a live value in a page of this table, which stays borrowed.
        unsafe { value.as_mut() }
    }

    /// Puts a new entry into vacant slot `index` of its page, or wherever it is after growing.
    #[inline(never)]
    fn fill(&mut self, hash: u64, probe: &Probe<'_, K>, index: usize, value: V) -> NonNull<V> {
        self.len += 1;
        let (position, version) = (position_of(hash), self.capture.version);
        let group = self.group_of(hash);
        let directory = &mut self.groups[group];
        let mut index = index;
        if !directory.page(position).has_room_for(probe.heap_bytes()) {
            directory.make_room(position, probe.heap_bytes(), version);
            index = directory.page(position).vacancy(hash);
        }
        let mut page = directory.page_mut(position);
        page.fill(index, hash, probe, value);
        page.value_ptr(index)
    }

    #[inline]
    pub fn get(&self, hash: u64, key: &K) -> Option<&V> {
        let page = self.page(hash);
        match page.find(hash, &Probe::new(key, hash)) {
            Place::Found(index) => Some(page.value(index)),
            Place::Vacant(_) => None,
        }
    }

    #[inline]
    pub fn get_mut(&mut self, hash: u64, key: &K) -> Option<&mut V> {
        let page = self.page_mut(hash);
        match page.find(hash, &Probe::new(key, hash)) {
            // SAFETY: a live value in a page of this table, which stays borrowed.
            Place::Found(index) => Some(unsafe { page.value_ptr(index).as_mut() }),
            Place::Vacant(_) => None,
        }
    }

    pub fn remove(&mut self, hash: u64, key: &K) -> Option<V> {
        let probe = Probe::new(key, hash);
        let Place::Found(index) = self.page(hash).find(hash, &probe) else { return None };
        self.len -= 1;
        Some(self.page_mut(hash).remove(index))
    }

    pub fn entries(
        &self,
        group: KeyGroup,
        cursor: &mut Cursor,
        max: usize,
        out: &mut Vec<(K, V)>,
    ) -> bool {
        let directory = &self.groups[(group.0 - self.first_group) as usize];
        let goal = out.len() + max;
        while let Some(at) = cursor.0 {
            if out.len() >= goal {
                return true;
            }
            let page = directory.page(at);
            out.extend(page.live().map(|i| (page.key_at(i), page.value(i).clone())));
            cursor.0 = position_after(page.header().prefix, page.header().depth);
        }
        false
    }

    pub fn mark(&mut self) {
        assert!(self.capture.next.is_none(), "a mark while one is open");
        self.capture.version = self.capture.version.wrapping_add(1);
        self.capture.next = Some((0, 0));
    }

    pub fn drain(&mut self, budget_bytes: usize, out: &mut dyn StateWriter) -> Drained {
        self.capture.drain(&mut self.groups, self.first_group, budget_bytes, out)
    }

    pub fn abandon(&mut self) {
        self.capture.next = None;
        self.capture.preserved.clear();
        self.capture.piece.clear();
    }

    /// Takes the pages of a piece.
    pub fn restore(&mut self, group: KeyGroup, bytes: &[u8]) -> Result<(), String> {
        let index = (group.0.wrapping_sub(self.first_group)) as usize;
        if index >= self.groups.len() {
            return Err(format!("key group {} is not of this task", group.0));
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let (page, behind) = restore::page::<K, V>(group, rest)?;
            rest = behind;
            let entries = page.page().len();
            match self.groups[index].adopt(page, self.capture.version) {
                Ok(()) => self.len += entries,
                Err(page) => self.take_entries(page.page())?,
            }
        }
        Ok(())
    }

    /// Takes a page's entries one by one: its range is taken already.
    fn take_entries(&mut self, page: Page<'_, K, V>) -> Result<(), String> {
        for index in page.live() {
            let (hash, key) = (page.hash_at(index), page.key_at(index));
            if self.get(hash, &key).is_some() {
                return Err(format!("a key of group {} comes twice", page.header().group));
            }
            self.upsert(hash, &key, || page.value(index).clone());
        }
        Ok(())
    }

    /// Bytes of memory of the live state and of what is preserved.
    pub fn memory_bytes(&self) -> usize {
        let preserved = self.capture.preserved.values().map(|page| page.page().bytes().len());
        self.groups.iter().map(Directory::memory_bytes).sum::<usize>() + preserved.sum::<usize>()
    }
}

impl<K: Key, V: Data> Capture<K, V> {
    /// Makes the page at `position` safe to change.
    #[cold]
    #[inline(never)]
    fn protect(&mut self, directory: &mut Directory<K, V>, position: u64) {
        let page = directory.page(position);
        let header = page.header();
        if self.next.is_some() {
            self.preserved.insert((header.group, header.prefix), PageBox::copy_of(page));
        }
        directory.stamp(position, self.version);
    }

    fn drain(
        &mut self,
        groups: &mut [Directory<K, V>],
        first_group: u32,
        budget_bytes: usize,
        out: &mut dyn StateWriter,
    ) -> Drained {
        let mut written = 0;
        while let Some((group, position)) = self.next {
            let Some(directory) = groups.get_mut(group) else {
                debug_assert!(self.preserved.is_empty());
                self.next = None;
                break;
            };
            if written >= budget_bytes {
                return Drained::More;
            }
            let (bytes, behind) =
                self.write_page(directory, KeyGroup(first_group + group as u32), position, out);
            written += bytes;
            self.next = Some(behind.map_or((group + 1, 0), |position| (group, position)));
        }
        Drained::Done
    }

    /// Writes the captured page at `position`; its size, and the position behind it.
    fn write_page(
        &mut self,
        directory: &mut Directory<K, V>,
        group: KeyGroup,
        position: u64,
        out: &mut dyn StateWriter,
    ) -> (usize, Option<u64>) {
        let is_changed = directory.version(position) == self.version;
        let preserved = is_changed.then(|| {
            self.preserved.remove(&(group.0, position)).expect("captured pages tile the positions")
        });
        let page = match &preserved {
            Some(page) => page.page(),
            None => directory.page(position),
        };
        let header = *page.header();
        let bytes = if page.len() == 0 { 0 } else { page.bytes().len() };
        let behind = position_after(header.prefix, header.depth);
        let slot = StateSlot::KeyGroup(group);
        if bytes >= PIECE_BYTES_MIN {
            self.flush(slot, out);
            out.write(slot, PagedTable::<K, V>::SCHEMA, page.bytes());
        } else if bytes > 0 {
            self.piece.extend_from_slice(page.bytes());
        }
        if self.piece.len() >= PIECE_BYTES_MIN || behind.is_none() {
            self.flush(slot, out);
        }
        if preserved.is_none() {
            directory.stamp(position, self.version);
        }
        (bytes, behind)
    }

    fn flush(&mut self, slot: StateSlot, out: &mut dyn StateWriter) {
        if !self.piece.is_empty() {
            out.write(slot, PagedTable::<K, V>::SCHEMA, &self.piece);
            self.piece.clear();
        }
    }
}
