//! The pages of a table, found by the top bits of the hash: extendible hashing.
//!
//! A page of depth `d` covers the hashes that begin with its `d` prefix bits. The directory has an entry
//! for every value of the top `64 - shift` bits that its key groups have, and a page of smaller depth
//! stands in a run of entries. An entry carries what an update needs before it touches the page:
//! where its tags are, its size, and the version it was last protected for; so versioning costs an
//! update no cache miss.
//!
//! Invariants
//! - The pages' ranges tile the hashes of the table's key groups; entries in a page's range, and only
//!   they, refer to it. A page of less depth than a key group holds several, whole ones: so a small table is
//!   a few pages that are well filled, and its snapshot costs what its bytes cost.
//! - Growth touches one page at a time. Doubling the directory copies 16 bytes per page, less than
//!   a hundredth of the table (2 to 3 ms where it comes to 1 GB, `perf/0004-snapshots.md`); a directory per
//!   key group, the alternative, costs every update two more dependent loads.
//! - A page's room belongs to the directory it stands in and to nobody else, so the page may be moved.
//! - A page that is on disk only has entries of version [`UNLOADED`] that refer to an empty page, so
//!   that asking the cache for it does no harm. It is never looked into.
//! - Pages are numbered from 0; the first half of a page that splits keeps its number.

#![expect(unsafe_code, reason = "entries refer to pages by address: several to one")]

use std::ops::Range;
use std::ptr::NonNull;

use super::capture::{Pages, UNLOADED};
use super::exchange::Chunk;
use super::memory::{Holes, PAGE_ALIGN, PageMemory, Room};
use super::page::{HOMES_MIN, Header, Page, PageBox, PageMut, entries_max, slots_of};
use super::tiles::{
    DEPTH_MAX, GROUP_BITS, Tiles, empty_tiles, first_version, group_start, may_double,
};
use crate::disk::large::long_list;
use crate::id::KeyGroup;
use crate::key::Key;
use crate::record::Data;

/// The least depth of a page: one of all hashes would need a shift by all bits.
pub(super) const DEPTH_MIN: u32 = 1;

/// A page above this splits in two, unless it has few slots. Small enough to copy in well under a
/// microsecond.
const PAGE_BYTES_MAX: usize = 4864;

/// A page of fewer slots does not split: they would be half empty.
const SLOTS_MIN: usize = 12;

/// A table of fewer pages keeps a quarter of their slots vacant, so that searches are short: memory is no matter
/// then. Full pages took a job whose tables fit into a cache a sixth of its throughput.
const FEW_PAGES: u32 = 64;

/// What is moved with each page that grows, at most: enough that holes become fewer, too little for a pause.
const MOVED_BYTES: usize = 6 * PAGE_BYTES_MAX;

struct Entry {
    tags: NonNull<u8>,
    homes: u32,
    version: u32,
}

pub(super) struct Directory<K: Key, V: Data> {
    entries: Vec<Entry>,
    shift: u32,
    /// What `hash >> shift` is for the first entry.
    first: usize,
    next_id: u32,
    /// Where the pages are.
    memory: PageMemory,
    /// What entries of pages that are not loaded refer to.
    _blank: PageBox<K, V>,
    /// First hashes of second halves, until they are asked for.
    born: Vec<u64>,
}

/// Homes rise by an eighth, and by at least four, so that pages stay well filled: all pages of a table
/// that is filled evenly grow at the same time.
fn homes_after(homes: usize) -> usize {
    homes + (homes / 8).next_multiple_of(HOMES_MIN).max(HOMES_MIN)
}

impl<K: Key, V: Data> Directory<K, V> {
    /// Empty pages.
    pub fn new(groups: Range<u32>) -> Self {
        let pages = empty_tiles(groups.clone(), DEPTH_MIN);
        Self::with_pages(groups, &pages)
    }

    /// Pages which tile the key groups.
    pub fn with_pages(groups: Range<u32>, pages: &Tiles) -> Self {
        let depth = pages.iter().map(|page| page.depth).max().expect("a table has pages");
        let first = (group_start(KeyGroup(groups.start)) >> (64 - depth)) as usize;
        let small = PageBox::<K, V>::room_bytes(HOMES_MIN, 0);
        let blank = PageBox::new(Room::alone(small), HOMES_MIN, 0, 0, DEPTH_MIN);
        let mut memory = PageMemory::default();
        memory.expect(pages.iter().map(|page| page.bytes as usize).sum());
        let expected = groups.len() << depth >> GROUP_BITS;
        let mut entries = long_list(expected);
        for (id, entry) in pages.iter().enumerate() {
            let version = first_version(entry);
            let (tags, homes) = if version == UNLOADED {
                blank.page().raw()
            } else {
                let room = memory.take(small);
                let mut page = PageBox::<K, V>::new(room, HOMES_MIN, 0, entry.prefix, entry.depth);
                page.page_mut().set_id(id as u32);
                page.into_raw()
            };
            let run = 1 << (depth - entry.depth);
            entries.extend((0..run).map(|_| Entry { tags, homes, version }));
        }
        assert_eq!(entries.len(), expected, "pages tile the key groups");
        let (shift, next_id) = (64 - depth, pages.len() as u32);
        Self { entries, shift, first, next_id, memory, _blank: blank, born: Vec::new() }
    }

    /// Memory for pages that are read.
    pub fn memory(&mut self) -> &mut PageMemory {
        &mut self.memory
    }

    /// First hashes of pages that came to be since this was asked last.
    pub fn take_born(&mut self) -> impl Iterator<Item = u64> + '_ {
        self.born.drain(..)
    }

    #[inline]
    fn index(&self, hash: u64) -> usize {
        ((hash >> self.shift) as usize).wrapping_sub(self.first)
    }

    /// Panics for a hash of a key group this table does not hold.
    #[inline]
    fn entry(&self, hash: u64) -> &Entry {
        &self.entries[self.index(hash)]
    }

    #[inline]
    pub fn page(&self, hash: u64) -> Page<'_, K, V> {
        let entry = self.entry(hash);
        // SAFETY: entries refer to pages of this directory, which is borrowed.
        unsafe { Page::from_raw(entry.tags, entry.homes) }
    }

    #[inline]
    pub fn page_mut(&mut self, hash: u64) -> PageMut<'_, K, V> {
        let entry = self.entry(hash);
        // SAFETY: entries refer to pages of this directory, which is borrowed mutably.
        unsafe { PageMut::from_raw(entry.tags, entry.homes) }
    }

    /// The entries that refer to the page with this prefix.
    fn run(&self, prefix: u64, depth: u32) -> Range<usize> {
        let first = self.index(prefix);
        first..first + (1 << (64 - self.shift - depth))
    }

    /// The most entries of a page with this many homes.
    fn entries_max(&self, homes: usize) -> usize {
        let most = entries_max(homes);
        if self.next_id < FEW_PAGES { most.min(slots_of(homes) * 3 / 4) } else { most }
    }

    /// The homes for a page that starts with `entries` and will get more.
    fn homes_for(&self, entries: usize) -> usize {
        let mut homes = HOMES_MIN;
        while self.entries_max(homes) < entries + entries / 8 + 1 {
            homes = homes_after(homes);
        }
        homes
    }

    /// Whether one more entry fits into slot `index` of its page, with `heap_bytes` of its key in the heap.
    pub fn has_room(&self, hash: u64, index: usize, heap_bytes: usize) -> bool {
        let page = self.page(hash);
        page.has_room(index, heap_bytes) && page.len() < self.entries_max(page.homes())
    }

    /// Makes room for an entry that is absent, with `heap_bytes` of key in the heap; its slot.
    pub fn make_room(&mut self, hash: u64, heap_bytes: usize, version: u32) -> usize {
        loop {
            let index = self.page(hash).vacancy(hash);
            if self.has_room(hash, index, heap_bytes) {
                return index;
            }
            self.grow(hash, heap_bytes, version);
            self.move_some(Holes::Growing, MOVED_BYTES);
        }
    }

    /// One step of growth: a larger page, or two of them.
    fn grow(&mut self, hash: u64, heap_bytes: usize, version: u32) {
        let page = self.page(hash);
        let header = *page.header();
        let is_full = !self.has_room(hash, page.vacancy(hash), 0);
        let homes = if is_full { homes_after(page.homes()) } else { page.homes() };
        let heap_wanted = header.heap_live as usize + heap_bytes;
        let heap_capacity = heap_wanted + heap_wanted / 4;
        let bytes = PageBox::<K, V>::room_bytes(homes, heap_capacity);
        let is_large = bytes > PAGE_BYTES_MAX && slots_of(homes) > SLOTS_MIN;
        if is_large && self.may_deepen(header.depth) && self.is_split_by_next_bit(hash) {
            self.split(hash, version);
            return;
        }
        let room = self.memory.take(bytes);
        let empty = PageBox::new(room, homes, heap_capacity, header.prefix, header.depth);
        let mut larger = gathered(self.page(hash), |_| true, empty);
        larger.page_mut().set_id(header.id);
        self.put(larger, version);
    }

    /// Whether a page of this depth may become two.
    fn may_deepen(&self, depth: u32) -> bool {
        let is_room =
            depth < 64 - self.shift || may_double(self.entries.len(), self.next_id as usize);
        depth < DEPTH_MAX && is_room
    }

    /// Whether the bit behind the prefix tells some entries of the page from others.
    fn is_split_by_next_bit(&self, hash: u64) -> bool {
        let page = self.page(hash);
        let depth = page.header().depth;
        let ones = page.live().filter(|index| bit(page.hash_at(*index), depth) == 1).count();
        ones > 0 && ones < page.len()
    }

    /// Replaces a page by two that cover half its hashes each.
    fn split(&mut self, hash: u64, version: u32) {
        if self.page(hash).header().depth == 64 - self.shift {
            self.deepen();
        }
        let page = self.page(hash);
        let (prefix, depth) = (page.header().prefix, page.header().depth);
        let belongs = |half| move |hash| bit(hash, depth) == half;
        let empty = [0, 1].map(|half| {
            let page = self.page(hash);
            let members = || page.live().filter(|index| belongs(half)(page.hash_at(*index)));
            let heap: usize = members().map(|index| page.heap_bytes_at(index)).sum();
            let (homes, heap_capacity) = (self.homes_for(members().count()), heap + heap / 4);
            let room = self.memory.take(PageBox::<K, V>::room_bytes(homes, heap_capacity));
            let prefix = prefix | half << (63 - depth);
            PageBox::new(room, homes, heap_capacity, prefix, depth + 1)
        });
        let page = self.page(hash);
        let mut half = 0..;
        let halves = empty.map(|empty| gathered(page, belongs(half.next().expect("two")), empty));
        let ids = [page.header().id, self.next_id];
        let (memory, bytes) = page.room();
        self.next_id += 1;
        for (mut half, id) in halves.into_iter().zip(ids) {
            half.page_mut().set_id(id);
            self.place(half, version);
        }
        self.born.push(prefix | 1 << (63 - depth));
        // SAFETY: this was a page of this directory and both halves of its run were overwritten.
        unsafe { self.memory.give_back(memory, bytes) };
    }

    /// Doubles the directory.
    fn deepen(&mut self) {
        let twice = |entry: &Entry| {
            [0, 1].map(|_| Entry { tags: entry.tags, homes: entry.homes, version: entry.version })
        };
        let mut entries = long_list(2 * self.entries.len());
        entries.extend(self.entries.iter().flat_map(twice));
        self.entries = entries;
        self.shift -= 1;
        self.first *= 2;
    }

    /// Replaces the page of the same range.
    fn put(&mut self, page: PageBox<K, V>, version: u32) {
        let (memory, bytes) = self.page(page.page().header().prefix).room();
        self.place(page, version);
        // SAFETY: this was a page of this directory and its run was overwritten.
        unsafe { self.memory.give_back(memory, bytes) };
    }

    /// Moves about `budget_bytes` of pages, if holes in the memory are more than they may be.
    pub fn move_some(&mut self, holes: Holes, budget_bytes: usize) {
        let mut moved = 0;
        while moved < budget_bytes {
            let Some((from, bytes)) = self.memory.next_to_leave(holes) else { return };
            moved += self.move_page(from, bytes);
        }
    }

    /// Moves the page that lives at `from`, if one does; how many bytes were moved.
    fn move_page(&mut self, from: NonNull<u8>, bytes: usize) -> usize {
        // SAFETY: a room, which is initialised memory, larger than a header and aligned for one.
        let Header { prefix, depth, .. } = unsafe { from.cast::<Header>().read() };
        let Some(entry) = self.entries.get(self.index(prefix)) else { return 0 };
        let Some(tags_at) = entry.tags.addr().get().checked_sub(from.addr().get()) else {
            return 0;
        };
        if tags_at >= bytes {
            return 0;
        }
        let (homes, version) = (entry.homes, entry.version);
        // SAFETY: the page of this entry begins at `from`.
        let (memory, page_bytes) = unsafe { Page::<K, V>::from_raw(entry.tags, homes) }.room();
        debug_assert_eq!((memory, page_bytes.next_multiple_of(PAGE_ALIGN)), (from, bytes));
        let room = self.memory.take(page_bytes);
        // SAFETY: two rooms of so many bytes.
        unsafe { room.memory().copy_from_nonoverlapping(from, page_bytes) };
        // SAFETY: the tags are as far from the beginning as they were.
        let tags = unsafe { room.memory().add(tags_at) };
        let run = self.run(prefix, depth);
        self.entries[run].fill_with(|| Entry { tags, homes, version });
        // SAFETY: this was the page's room, and no entry refers to it any more.
        unsafe { self.memory.give_back(from, page_bytes) };
        bytes
    }

    /// Lets the page's run refer to it; what it referred to is the caller's to free.
    fn place(&mut self, page: PageBox<K, V>, version: u32) {
        let header = *page.page().header();
        let (tags, homes) = page.into_raw();
        let run = self.run(header.prefix, header.depth);
        self.entries[run].fill_with(|| Entry { tags, homes, version });
    }

    /// Takes the page of a range that was not loaded.
    pub fn load(&mut self, page: PageBox<K, V>, version: u32) {
        debug_assert_eq!(self.version(page.page().header().prefix), UNLOADED);
        self.place(page, version);
    }

    /// Bytes of memory: pages and entries.
    pub fn memory_bytes(&self) -> usize {
        self.memory.bytes() + self.entries.capacity() * size_of::<Entry>()
    }
}

// SAFETY: a directory owns its pages.
unsafe impl<K: Key, V: Data> Send for Directory<K, V> {}

impl<K: Key, V: Data> Pages for Directory<K, V> {
    fn version(&self, hash: u64) -> u32 {
        self.entry(hash).version
    }

    fn stamp(&mut self, hash: u64, version: u32) {
        debug_assert_ne!(self.version(hash), UNLOADED, "a page that is not loaded");
        let header = self.page(hash).header();
        let run = self.run(header.prefix, header.depth);
        self.entries[run].iter_mut().for_each(|entry| entry.version = version);
    }

    fn copy(&mut self, hash: u64, chunk: &mut Chunk) -> Result<(), String> {
        let page = self.page(hash);
        let header = page.header();
        chunk.push(header.id, header.prefix, header.depth, page.bytes());
        Ok(())
    }
}

/// Bit `index` of a hash, from the top.
fn bit(hash: u64, index: u32) -> u64 {
    hash << index >> 63
}

/// `empty` with those entries of `page` whose hash `belongs`.
fn gathered<K: Key, V: Data>(
    page: Page<'_, K, V>,
    belongs: impl Fn(u64) -> bool,
    empty: PageBox<K, V>,
) -> PageBox<K, V> {
    let mut gathered = empty;
    for index in page.live() {
        let hash = page.hash_at(index);
        if belongs(hash) {
            gathered.page_mut().copy_entry(page, index, hash);
        }
    }
    gathered
}
