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
//!   they, refer to it. A page is at least as deep as a key group, so it belongs to one.
//! - Growth touches one page at a time. Doubling the directory copies 16 bytes per page, less than
//!   a hundredth of the table; a directory per key group, the alternative, costs every update two
//!   more dependent loads.
//! - A page's memory belongs to the directory it stands in and to nobody else.

#![expect(unsafe_code, reason = "entries refer to pages by address: several to one")]

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;

use super::page::{HOMES_MIN, Page, PageBox, PageMut, entries_max};
use crate::id::{KEY_GROUPS, KeyGroup};
use crate::key::Key;
use crate::record::Data;

/// Bits of the hash that are the key group: the least depth of a page.
pub(super) const GROUP_BITS: u32 = KEY_GROUPS.ilog2();

/// A page above this splits in two. Small enough to copy in well under a microsecond.
const PAGE_BYTES_MAX: usize = 4864;

/// Deepest page; there, or where the next bit tells no keys apart, a page outgrows its bound.
/// Only a hash that is not well mixed comes here.
const DEPTH_MAX: u32 = 32;

/// Deepest page that is adopted as it is when it comes back; bounds the directory hostile bytes can
/// ask for to 128 MiB. With pages of this depth a table of all key groups is above 10 GiB.
const ADOPTED_DEPTH_MAX: u32 = 23;

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
    pages: PhantomData<PageBox<K, V>>,
}

/// First hash of a key group.
pub(super) fn group_start(group: KeyGroup) -> u64 {
    u64::from(group.0) << (64 - GROUP_BITS)
}

/// The first `depth` bits of `hash`; `depth` is above 0.
pub(super) fn prefix_of(hash: u64, depth: u32) -> u64 {
    hash >> (64 - depth) << (64 - depth)
}

/// The first hash behind a page, if it is in the same key group.
pub(super) fn hash_after(prefix: u64, depth: u32) -> Option<u64> {
    let after = prefix.checked_add(1 << (64 - depth))?;
    (KeyGroup::of_hash(after) == KeyGroup::of_hash(prefix)).then_some(after)
}

/// Homes rise by a half and a third in turn: 4, 8, 12, 16, 24, ... so that pages stay well filled.
fn homes_after(homes: usize) -> usize {
    match homes {
        HOMES_MIN => 2 * HOMES_MIN,
        _ if homes.is_power_of_two() => homes / 2 * 3,
        _ => homes / 3 * 4,
    }
}

/// The homes for a page that starts with `entries` and will get more.
fn homes_for(entries: usize) -> usize {
    let mut homes = HOMES_MIN;
    while entries_max(homes) < entries + entries / 4 + 1 {
        homes = homes_after(homes);
    }
    homes
}

impl<K: Key, V: Data> Directory<K, V> {
    /// One empty page per key group.
    pub fn new(groups: Range<u32>, version: u32) -> Self {
        let empty = |group| {
            let start = group_start(KeyGroup(group));
            let (tags, homes) = PageBox::<K, V>::new(HOMES_MIN, 0, start, GROUP_BITS).into_raw();
            Entry { tags, homes, version }
        };
        Self {
            first: groups.start as usize,
            entries: groups.map(empty).collect(),
            shift: 64 - GROUP_BITS,
            pages: PhantomData,
        }
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

    /// Whether the table holds the key group of `hash`.
    pub fn holds(&self, hash: u64) -> bool {
        self.index(hash) < self.entries.len()
    }

    #[inline]
    pub fn page(&self, hash: u64) -> Page<'_, K, V> {
        let entry = self.entry(hash);
        // SAFETY: entries refer to pages of this directory, which is borrowed.
        unsafe { Page::from_raw(entry.tags, entry.homes) }
    }

    /// The version the page was last protected for.
    pub fn version(&self, hash: u64) -> u32 {
        self.entry(hash).version
    }

    /// The page of `hash`, after `protect` if it is not yet protected for `version`.
    #[inline]
    pub fn page_protected(
        &mut self,
        hash: u64,
        version: u32,
        protect: impl FnOnce(&mut Self),
    ) -> PageMut<'_, K, V> {
        let entry = self.entry(hash);
        let (tags, homes) = if entry.version == version {
            (entry.tags, entry.homes)
        } else {
            protect(self);
            self.page(hash).raw()
        };
        // SAFETY: entries refer to pages of this directory, which is borrowed mutably.
        unsafe { PageMut::from_raw(tags, homes) }
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

    /// Notes that the page is protected for `version`.
    pub fn stamp(&mut self, hash: u64, version: u32) {
        let header = self.page(hash).header();
        let run = self.run(header.prefix, header.depth);
        self.entries[run].iter_mut().for_each(|entry| entry.version = version);
    }

    /// Makes room for an entry that is absent, with `heap_bytes` of key in the heap; its slot.
    pub fn make_room(&mut self, hash: u64, heap_bytes: usize, version: u32) -> usize {
        loop {
            let page = self.page(hash);
            let index = page.vacancy(hash);
            if page.has_room(index, heap_bytes) {
                return index;
            }
            self.grow(hash, heap_bytes, version);
        }
    }

    /// One step of growth: a larger page, or two of them.
    fn grow(&mut self, hash: u64, heap_bytes: usize, version: u32) {
        let page = self.page(hash);
        let header = *page.header();
        let is_full = !page.has_room(page.vacancy(hash), 0);
        let homes = if is_full { homes_after(page.homes()) } else { page.homes() };
        let heap_wanted = header.heap_live as usize + heap_bytes;
        let heap_capacity = heap_wanted + heap_wanted / 2;
        let bytes = PageBox::<K, V>::heap_at(homes) + heap_capacity;
        if bytes > PAGE_BYTES_MAX && self.is_split_by_next_bit(hash) {
            self.split(hash, version);
            return;
        }
        let all = |_| true;
        let larger = gathered(page, all, homes, heap_capacity, header.prefix, header.depth);
        self.put(larger, version);
    }

    /// Whether the bit behind the prefix tells some entries of the page from others.
    fn is_split_by_next_bit(&self, hash: u64) -> bool {
        let page = self.page(hash);
        let depth = page.header().depth;
        let ones = page.live().filter(|index| bit(page.hash_at(*index), depth) == 1).count();
        depth < DEPTH_MAX && ones > 0 && ones < page.len()
    }

    /// Replaces a page by two that cover half its hashes each.
    fn split(&mut self, hash: u64, version: u32) {
        if self.page(hash).header().depth == 64 - self.shift {
            self.deepen();
        }
        let page = self.page(hash);
        let (prefix, depth) = (page.header().prefix, page.header().depth);
        let halves = [0, 1].map(|half| {
            let belongs = |hash| bit(hash, depth) == half;
            let members = || page.live().filter(|index| belongs(page.hash_at(*index)));
            let heap: usize = members().map(|index| page.heap_bytes_at(index)).sum();
            let homes = homes_for(members().count());
            let prefix = prefix | half << (63 - depth);
            gathered(page, belongs, homes, heap + heap / 2, prefix, depth + 1)
        });
        let (tags, homes) = page.raw();
        for half in halves {
            self.place(half, version);
        }
        // SAFETY: this was a page of this directory and both halves of its run were overwritten.
        drop(unsafe { PageBox::<K, V>::from_raw(tags, homes) });
    }

    /// Doubles the directory.
    fn deepen(&mut self) {
        let twice = |entry: &Entry| {
            [0, 1].map(|_| Entry { tags: entry.tags, homes: entry.homes, version: entry.version })
        };
        self.entries = self.entries.iter().flat_map(twice).collect();
        self.shift -= 1;
        self.first *= 2;
    }

    /// Replaces the page of the same range.
    fn put(&mut self, page: PageBox<K, V>, version: u32) {
        let (tags, homes) = self.page(page.page().header().prefix).raw();
        self.place(page, version);
        // SAFETY: this was a page of this directory and its run was overwritten.
        drop(unsafe { PageBox::<K, V>::from_raw(tags, homes) });
    }

    /// Lets the page's run refer to it; what it referred to is the caller's to free.
    fn place(&mut self, page: PageBox<K, V>, version: u32) {
        let header = *page.page().header();
        let (tags, homes) = page.into_raw();
        let run = self.run(header.prefix, header.depth);
        self.entries[run].fill_with(|| Entry { tags, homes, version });
    }

    /// Takes a page as it is if nothing is in its range yet, else gives it back.
    pub fn adopt(&mut self, page: PageBox<K, V>, version: u32) -> Result<(), PageBox<K, V>> {
        let (prefix, depth) = (page.page().header().prefix, page.page().header().depth);
        let present = self.page(prefix);
        let is_free = present.len() == 0 && present.header().depth <= depth;
        if !is_free || depth > ADOPTED_DEPTH_MAX {
            return Err(page);
        }
        while self.page(prefix).header().depth < depth {
            self.split(prefix, version);
        }
        self.put(page, version);
        Ok(())
    }

    /// The pages, in order.
    pub fn pages(&self) -> impl Iterator<Item = Page<'_, K, V>> {
        let mut next = 0;
        std::iter::from_fn(move || {
            let entry = self.entries.get(next)?;
            // SAFETY: entries refer to pages of this directory, which is borrowed.
            let page = unsafe { Page::from_raw(entry.tags, entry.homes) };
            next += 1 << (64 - self.shift - page.header().depth);
            Some(page)
        })
    }

    /// Bytes of memory: pages and entries.
    pub fn memory_bytes(&self) -> usize {
        let of_page = |page: Page<'_, K, V>| {
            PageBox::<K, V>::heap_at(page.homes()) + page.header().heap_capacity as usize
        };
        self.pages().map(of_page).sum::<usize>() + self.entries.len() * size_of::<Entry>()
    }
}

impl<K: Key, V: Data> Drop for Directory<K, V> {
    fn drop(&mut self) {
        let pages: Vec<_> = self.pages().map(|page| page.raw()).collect();
        for (tags, homes) in pages {
            // SAFETY: each page is met once, and nobody uses it afterwards.
            drop(unsafe { PageBox::<K, V>::from_raw(tags, homes) });
        }
    }
}

// SAFETY: a directory owns its pages.
unsafe impl<K: Key, V: Data> Send for Directory<K, V> {}

/// Bit `index` of a hash, from the top.
fn bit(hash: u64, index: u32) -> u64 {
    hash << index >> 63
}

/// A page with those entries of `page` whose hash `belongs`, with at least `homes` homes.
fn gathered<K: Key, V: Data>(
    page: Page<'_, K, V>,
    belongs: impl Fn(u64) -> bool,
    homes: usize,
    heap_capacity: usize,
    prefix: u64,
    depth: u32,
) -> PageBox<K, V> {
    let mut gathered = PageBox::new(homes, heap_capacity, prefix, depth);
    for index in page.live() {
        let hash = page.hash_at(index);
        // A cluster may reach the page's end though there are empty slots: then a larger page.
        if belongs(hash) && !gathered.page_mut().copy_entry(page, index, hash) {
            drop(gathered);
            return self::gathered(page, belongs, homes_after(homes), heap_capacity, prefix, depth);
        }
    }
    gathered
}
