//! A keyed table of plain entries in pages.
//!
//! Owns a [`Directory`] of pages in memory, the [`Capture`] that says what a snapshot has to write, and
//! after a restore the pages that are still on disk. A page whose directory entry is not of the current
//! version takes the slow way once: it is loaded, preserved or noted as changed.
//!
//! Invariants
//! - A page is changed only after [`Capture::protect`] has seen to it in the current version.
//! - A page is looked into only when it is loaded.

#![expect(unsafe_code, reason = "a value found in a page outlives the borrow that found it")]

use std::io::IoSliceMut;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use super::capture::{CLEAN, Capture, Pages, UNLOADED};
use super::directory::{DEPTH_MIN, Directory};
use super::exchange::{PageEntry, PageSource};
use super::keyed::Cursor;
use super::ledger::{Ledger, Lost};
use super::load::{Read, Unloaded};
use super::memory::{Holes, Room};
use super::page::{PageMut, Place, heap_bytes_of};
use super::tiles::{GROUP_BITS, Tiling, group_start, hash_after, tiled};
use super::{Drained, StateWriter, restore};
use crate::config::KEY_BYTES_MAX;
use crate::error::Error;
use crate::guard;
use crate::id::KeyGroup;
use crate::key::Key;
use crate::record::Data;

/// Pages are moved once so many bytes may be: each move is of a page at least, of some KiB.
const MOVED_BYTES_MIN: usize = 4 << 10;

#[cold]
fn key_too_long(bytes: usize) -> Error {
    Error::Limit {
        what: format!("a key of {bytes} bytes"),
        limit: format!("{KEY_BYTES_MAX} bytes"),
        remedy: "key by something shorter, such as a hash or a number of it".into(),
    }
}

pub(super) struct PagedTable<K: Key, V: Data> {
    directory: Directory<K, V>,
    groups: Range<u32>,
    /// Entries in loaded pages.
    len: usize,
    capture: Capture,
    unloaded: Option<Unloaded>,
    /// Pages of the restored table that are not its own alone, to be [taken](Self::take_shared).
    shared: Option<(Vec<PageEntry>, Arc<dyn PageSource>)>,
    /// Bytes of pages that may be moved for what was handed over since some were.
    movable_bytes: usize,
}

impl<K: Key, V: Data> PagedTable<K, V> {
    pub fn new(groups: Range<u32>) -> Self {
        let directory = Directory::new(groups.clone());
        let capture = Capture::default();
        let (unloaded, shared) = (None, None);
        Self { directory, groups, len: 0, capture, unloaded, shared, movable_bytes: 0 }
    }

    /// Entries; all of them once nothing is left to load.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The page of `hash`, loaded, its captured bytes safe.
    #[inline]
    fn page_mut(&mut self, hash: u64) -> PageMut<'_, K, V> {
        if self.directory.version(hash) != self.capture.version() {
            self.protect(hash);
        }
        self.directory.page_mut(hash)
    }

    #[cold]
    #[inline(never)]
    fn protect(&mut self, hash: u64) {
        assert!(self.shared.is_none(), "what others share was not taken");
        self.require(hash);
        let first_hash = self.directory.page(hash).header().prefix;
        self.capture.protect(&mut self.directory, hash, first_hash);
    }

    /// Sees to it that the page of `hash` is loaded. It is on a path of the user's code that cannot
    /// fail: an error unwinds to the task.
    #[inline]
    fn require(&mut self, hash: u64) {
        if self.directory.version(hash) == UNLOADED {
            self.fault(hash);
        }
    }

    #[cold]
    #[inline(never)]
    fn fault(&mut self, hash: u64) {
        let unloaded = self.unloaded.as_mut().expect("a page that is not loaded is on disk");
        let memory = self.directory.memory();
        let read = unloaded.fault(hash, &self.capture.ledger, memory);
        let loaded = read.and_then(|read| read.into_iter().try_for_each(|read| self.take_in(read)));
        loaded.unwrap_or_else(|error| guard::raise(error));
    }

    fn take_in(&mut self, Read { id, entry, room }: Read) -> Result<(), Error> {
        let unloaded = self.unloaded.as_ref().expect("it was read from there");
        let page = restore::page::<K, V>(&entry, room);
        let mut page = page.map_err(|reason| unloaded.corrupt(&entry, reason))?;
        page.page_mut().set_id(id);
        self.len += page.page().len();
        self.directory.load(page, CLEAN);
        Ok(())
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
        let heap_bytes = heap_bytes_of(key);
        if heap_bytes > KEY_BYTES_MAX {
            guard::raise(key_too_long(heap_bytes));
        }
        self.len += 1;
        let mut index = index;
        if !self.directory.has_room(hash, index, heap_bytes) {
            index = self.directory.make_room(hash, heap_bytes, self.capture.version());
            self.directory.take_born().for_each(|first_hash| self.capture.born(first_hash));
        }
        let mut page = self.directory.page_mut(hash);
        page.fill(index, hash, key, value);
        page.value_ptr(index)
    }

    #[inline]
    pub fn get(&mut self, hash: u64, key: &K) -> Option<&V> {
        self.require(hash);
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
        self.require(hash);
        let Place::Found(index) = self.directory.page(hash).find(hash, key) else { return None };
        self.len -= 1;
        Some(self.page_mut(hash).remove(index))
    }

    pub fn entries(
        &mut self,
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
            let hash = group_start(group) + after;
            self.require(hash);
            let page = self.directory.page(hash);
            let (prefix, depth) = (page.header().prefix, page.header().depth);
            let is_alone = depth >= GROUP_BITS;
            let of_group = |i: &usize| is_alone || KeyGroup::of_hash(page.hash_at(*i)) == group;
            let entries = page.live().filter(of_group);
            out.extend(entries.map(|i| (page.key_at(i), page.value(i).clone())));
            let next = hash_after(prefix, depth);
            cursor.0 = next.map(|hash| hash - group_start(group));
        }
        false
    }

    pub fn mark(&mut self) {
        assert!(self.shared.is_none(), "what others share was not taken");
        self.capture.mark();
    }

    pub fn drain(
        &mut self,
        schema: u32,
        budget_bytes: usize,
        out: &mut dyn StateWriter,
    ) -> Result<Drained, String> {
        let drained = self.capture.drain(&mut self.directory, schema, budget_bytes, out);
        if matches!(drained, Ok(Drained::More)) {
            self.movable_bytes += budget_bytes / 8;
            if self.movable_bytes >= MOVED_BYTES_MIN {
                self.directory.move_some(Holes::Written, self.movable_bytes);
                self.movable_bytes = 0;
            }
        }
        drained
    }

    pub fn abandon(&mut self) {
        self.capture.abandon(&mut self.directory);
    }

    pub fn lost(&mut self, lost: &[Lost]) {
        self.capture.lost(&mut self.directory, lost);
    }

    /// Takes the pages of a restored table, which stay where they are until they are needed.
    pub fn restore_pages(
        &mut self,
        pages: &[PageEntry],
        source: &Arc<dyn PageSource>,
    ) -> Result<(), String> {
        assert!(self.len == 0 && self.unloaded.is_none(), "a table is restored once, when new");
        let Tiling { tiles, shared } = tiled(self.groups.clone(), DEPTH_MIN, pages)?;
        self.directory = Directory::with_pages(self.groups.clone(), &tiles);
        let unloaded = Unloaded::new(&tiles, source.clone());
        self.capture.ledger = Ledger::restored(tiles, unloaded.bytes());
        self.unloaded = Some(unloaded);
        self.shared = Some((shared, source.clone())).filter(|(shared, _)| !shared.is_empty());
        Ok(())
    }

    /// Reads the pages that hold key groups of other tables too, and takes what is of this one, as if records
    /// had put it there. They are small tables' and few: two at most if the table is in one piece.
    pub fn take_shared(&mut self) -> Result<(), Error> {
        let Some((pages, source)) = self.shared.take() else { return Ok(()) };
        for entry in pages {
            let mut room = Room::alone(entry.bytes as usize);
            source.read(entry.place, &mut [IoSliceMut::new(room.bytes_mut())])?;
            let corrupt = |reason| source.corrupt(entry.place, reason);
            let page = restore::page::<K, V>(&entry, room).map_err(corrupt)?;
            let page = page.page();
            for index in page.live() {
                let hash = page.hash_at(index);
                if self.groups.contains(&KeyGroup::of_hash(hash).0) {
                    self.upsert(hash, &page.key_at(index), || page.value(index).clone());
                }
            }
        }
        Ok(())
    }

    /// Loads about so many bytes; whether more is left.
    pub fn load(&mut self, budget_bytes: usize) -> Result<bool, Error> {
        let mut loaded = 0;
        while let Some(unloaded) = self.unloaded.as_mut().filter(|_| loaded < budget_bytes) {
            let (left, memory) = (budget_bytes - loaded, self.directory.memory());
            for read in unloaded.next(left, &self.capture.ledger, memory)? {
                loaded += read.entry.bytes as usize;
                self.take_in(read)?;
            }
            self.unloaded.take_if(|unloaded| unloaded.is_empty());
        }
        Ok(self.unloaded.is_some())
    }

    /// Bytes of memory: loaded pages, copies of captured ones, copies kept for use again, and what is
    /// known of each page.
    pub fn memory_bytes(&self) -> usize {
        self.directory.memory_bytes() + self.capture.memory_bytes()
    }
}
