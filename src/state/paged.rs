//! A keyed table of plain entries in pages, and the capture of one version of it.
//!
//! Owns a [`Directory`] and what a marked version needs: `mark` raises the version; a
//! page whose directory entry has another version is copied before its first write; `drain` walks
//! the marked version in the order of hashes, taking each page from where its captured bytes are.
//!
//! Invariants
//! - While a mark is open, a page whose entry has another version has not changed since the mark;
//!   of every other range of hashes not yet written, `preserved` holds the captured page.
//! - The captured pages tile the hashes, so the walk over live and preserved pages meets each once.
//! - Versions are compared for equality only. One would have to be abandoned 2^32 times in a row to
//!   come around: a completed drain stamps every page.

#![expect(unsafe_code, reason = "a value found in a page outlives the borrow that found it")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::ptr::NonNull;

use super::directory::{Directory, group_start, hash_after};
use super::keyed::Cursor;
use super::page::{Page, PageBox, PageMut, Place, heap_bytes_of};
use super::{Drained, SCHEMA_BYTE_PAGES, SCHEMA_PAGES, StateWriter, restore};
use crate::id::{KeyGroup, StateSlot};
use crate::key::Key;
use crate::record::Data;

/// A page of at least this many bytes is a piece by itself, straight from where it lies; smaller ones
/// of a group are gathered up to this size.
const PIECE_BYTES_MIN: usize = 2048;

pub(super) struct PagedTable<K: Key, V: Data> {
    directory: Directory<K, V>,
    groups: Range<u32>,
    len: usize,
    capture: Capture<K, V>,
}

/// What one marked version needs.
struct Capture<K: Key, V: Data> {
    version: u32,
    /// The first hash that is not yet written, while a mark is open.
    next: Option<u64>,
    /// Captured pages that were changed before they were written, by first hash.
    preserved: BTreeMap<u64, PageBox<K, V>>,
    /// Small pages of one group on their way out.
    piece: Vec<u8>,
}

impl<K: Key, V: Data> PagedTable<K, V> {
    pub fn new(groups: Range<u32>) -> Self {
        let capture =
            Capture { version: 0, next: None, preserved: BTreeMap::new(), piece: Vec::new() };
        Self { directory: Directory::new(groups.clone(), 0), groups, len: 0, capture }
    }

    pub const SCHEMA: u32 = if K::BYTES.is_some() { SCHEMA_BYTE_PAGES } else { SCHEMA_PAGES };

    pub fn len(&self) -> usize {
        self.len
    }

    /// The page of `hash`, its captured bytes safe.
    #[inline]
    fn page_mut(&mut self, hash: u64) -> PageMut<'_, K, V> {
        let Self { directory, capture, .. } = self;
        directory
            .page_protected(hash, capture.version, |directory| capture.protect(directory, hash))
    }

    #[inline]
    pub fn prefetch(&self, hash: u64) {
        self.directory.page(hash).prefetch(hash);
    }

    #[inline]
    pub fn upsert(&mut self, hash: u64, key: &K, init: impl FnOnce() -> V) -> &mut V {
        let page = self.page_mut(hash);
        let mut value = match page.find(hash, key) {
            Place::Found(index) => page.value_ptr(index),
            Place::Vacant(index) => self.fill(hash, key, index, init()),
        };
        // SAFETY: a live value in a page of this table, which stays borrowed.
        unsafe { value.as_mut() }
    }

    /// Puts a new entry into vacant slot `index` of its page, or wherever it is after growing.
    #[inline(never)]
    fn fill(&mut self, hash: u64, key: &K, index: usize, value: V) -> NonNull<V> {
        self.len += 1;
        let heap_bytes = heap_bytes_of(key);
        let mut index = index;
        if !self.directory.page(hash).has_room(index, heap_bytes) {
            index = self.directory.make_room(hash, heap_bytes, self.capture.version);
        }
        let mut page = self.directory.page_mut(hash);
        page.fill(index, hash, key, value);
        page.value_ptr(index)
    }

    #[inline]
    pub fn get(&self, hash: u64, key: &K) -> Option<&V> {
        let page = self.directory.page(hash);
        match page.find(hash, key) {
            Place::Found(index) => Some(page.value(index)),
            Place::Vacant(_) => None,
        }
    }

    #[inline]
    pub fn get_mut(&mut self, hash: u64, key: &K) -> Option<&mut V> {
        let page = self.page_mut(hash);
        match page.find(hash, key) {
            // SAFETY: a live value in a page of this table, which stays borrowed.
            Place::Found(index) => Some(unsafe { page.value_ptr(index).as_mut() }),
            Place::Vacant(_) => None,
        }
    }

    pub fn remove(&mut self, hash: u64, key: &K) -> Option<V> {
        let Place::Found(index) = self.directory.page(hash).find(hash, key) else { return None };
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
        let goal = out.len() + max;
        while let Some(after) = cursor.0 {
            if out.len() >= goal {
                return true;
            }
            let page = self.directory.page(group_start(group) + after);
            out.extend(page.live().map(|i| (page.key_at(i), page.value(i).clone())));
            let next = hash_after(page.header().prefix, page.header().depth);
            cursor.0 = next.map(|hash| hash - group_start(group));
        }
        false
    }

    pub fn mark(&mut self) {
        assert!(self.capture.next.is_none(), "a mark while one is open");
        self.capture.version = self.capture.version.wrapping_add(1);
        self.capture.next = Some(group_start(KeyGroup(self.groups.start)));
    }

    pub fn drain(&mut self, budget_bytes: usize, out: &mut dyn StateWriter) -> Drained {
        self.capture.drain(&mut self.directory, budget_bytes, out)
    }

    pub fn abandon(&mut self) {
        self.capture.next = None;
        self.capture.preserved.clear();
        self.capture.piece.clear();
    }

    /// Takes the pages of a piece.
    pub fn restore(&mut self, group: KeyGroup, bytes: &[u8]) -> Result<(), String> {
        if !self.groups.contains(&group.0) {
            return Err(format!("key group {} is not of this task", group.0));
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let (page, behind) = restore::page::<K, V>(group, rest)?;
            rest = behind;
            let entries = page.page().len();
            match self.directory.adopt(page, self.capture.version) {
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
                return Err(format!("a key of group {} comes twice", KeyGroup::of_hash(hash).0));
            }
            self.upsert(hash, &key, || page.value(index).clone());
        }
        Ok(())
    }

    /// Bytes of memory of the live state and of what is preserved.
    pub fn memory_bytes(&self) -> usize {
        let preserved = self.capture.preserved.values().map(|page| page.page().bytes().len());
        self.directory.memory_bytes() + preserved.sum::<usize>()
    }
}

impl<K: Key, V: Data> Capture<K, V> {
    /// Makes the page at `position` safe to change.
    #[cold]
    #[inline(never)]
    fn protect(&mut self, directory: &mut Directory<K, V>, hash: u64) {
        let page = directory.page(hash);
        if self.next.is_some() {
            self.preserved.insert(page.header().prefix, PageBox::copy_of(page));
        }
        directory.stamp(hash, self.version);
    }

    fn drain(
        &mut self,
        directory: &mut Directory<K, V>,
        budget_bytes: usize,
        out: &mut dyn StateWriter,
    ) -> Drained {
        let mut written = 0;
        while let Some(hash) = self.next {
            if written >= budget_bytes {
                return Drained::More;
            }
            let (bytes, behind) = self.write_page(directory, hash, out);
            written += bytes;
            self.next = behind;
        }
        debug_assert!(self.preserved.is_empty());
        Drained::Done
    }

    /// Writes the captured page that begins with `hash`; its size, and the first hash behind it.
    fn write_page(
        &mut self,
        directory: &mut Directory<K, V>,
        hash: u64,
        out: &mut dyn StateWriter,
    ) -> (usize, Option<u64>) {
        let is_changed = directory.version(hash) == self.version;
        let preserved = is_changed
            .then(|| self.preserved.remove(&hash).expect("captured pages tile the hashes"));
        let page = preserved.as_ref().map_or_else(|| directory.page(hash), PageBox::page);
        let bytes = if page.len() == 0 { &[][..] } else { page.bytes() };
        let behind = hash_after(page.header().prefix, page.header().depth);
        let slot = StateSlot::KeyGroup(KeyGroup::of_hash(hash));
        if bytes.len() >= PIECE_BYTES_MIN {
            self.flush(slot, out);
            out.write(slot, PagedTable::<K, V>::SCHEMA, bytes);
        } else {
            self.piece.extend_from_slice(bytes);
        }
        if self.piece.len() >= PIECE_BYTES_MIN || behind.is_none() {
            self.flush(slot, out);
        }
        let written = bytes.len();
        if !is_changed {
            directory.stamp(hash, self.version);
        }
        (written, behind.or_else(|| next_group(directory, hash)))
    }

    fn flush(&mut self, slot: StateSlot, out: &mut dyn StateWriter) {
        if !self.piece.is_empty() {
            out.write(slot, PagedTable::<K, V>::SCHEMA, &self.piece);
            self.piece.clear();
        }
    }
}

/// The first hash of the key group behind that of `hash`, if the table holds it.
fn next_group<K: Key, V: Data>(directory: &Directory<K, V>, hash: u64) -> Option<u64> {
    let next = group_start(KeyGroup::of_hash(hash)).checked_add(group_start(KeyGroup(1)))?;
    directory.holds(next).then_some(next)
}
