//! The pages of one key group, found by the hash bits behind the group's: extendible hashing.
//!
//! A *position* is a hash without its group bits, left-aligned (`hash << 7`). A page of depth `d` covers
//! the positions that begin with its `d` prefix bits; the directory has `2^depth` entries, and a page
//! of smaller depth stands in a run of them. An entry carries what an update needs before it
//! touches the page: its address, its size, and the version it was last protected for.
//!
//! Invariants
//! - The pages' ranges tile all positions; entries in a page's range, and only they, refer to it.
//! - Growth touches one page at a time; doubling the directory copies 16 bytes per page of one group.
//! - A page's memory belongs to the directory it stands in and to nobody else.

#![expect(unsafe_code, reason = "entries refer to pages by address: several to one")]

use std::marker::PhantomData;
use std::ptr::NonNull;

use super::page::{Page, PageBox, PageMut, entries_max};
use crate::id::KEY_GROUPS;
use crate::key::Key;
use crate::record::Data;

/// A page above this splits in two. Small enough to copy in well under a microsecond.
const PAGE_BYTES_MAX: usize = 4608;

/// Deepest page; above it, or where the next bit tells no keys apart, a page outgrows its bound.
/// Only a hash that is not well mixed comes here.
const DEPTH_MAX: u32 = 32;

/// Deepest page that is adopted as it is when it comes back; bounds the directory hostile bytes can
/// ask for to 1 MiB per group. 2^16 pages of one group are a quarter of a gigabyte.
const ADOPTED_DEPTH_MAX: u32 = 16;

struct Entry {
    base: NonNull<u8>,
    version: u32,
    buckets: u32,
}

pub(super) struct Directory<K: Key, V: Data> {
    entries: Vec<Entry>,
    /// 64 minus the directory's depth, which is at least 1.
    shift: u32,
    pages: PhantomData<PageBox<K, V>>,
}

/// The position of a hash.
#[inline]
pub(super) fn position_of(hash: u64) -> u64 {
    hash << KEY_GROUPS.ilog2()
}

/// The first position behind a page; `None` behind the last.
pub(super) fn position_after(prefix: u64, depth: u32) -> Option<u64> {
    if depth == 0 { None } else { prefix.checked_add(1 << (64 - depth)) }
}

/// Capacities rise by a half and a third in turn: 8, 12, 16, 24, ... so that pages stay well filled.
fn capacity_after(capacity: usize) -> usize {
    if capacity.is_power_of_two() { capacity / 2 * 3 } else { capacity / 3 * 4 }
}

/// The capacity for a page that starts with `entries` and will get more.
fn capacity_for(entries: usize) -> usize {
    let mut capacity = 8;
    while entries_max(capacity) < entries + entries / 4 + 1 {
        capacity = capacity_after(capacity);
    }
    capacity
}

impl<K: Key, V: Data> Directory<K, V> {
    pub fn new(group: u32, version: u32) -> Self {
        let page = PageBox::<K, V>::of_group(group);
        let buckets = page.buckets();
        let base = page.into_raw();
        let entries = (0..2).map(|_| Entry { base, version, buckets }).collect();
        Self { entries, shift: 63, pages: PhantomData }
    }

    #[inline]
    fn entry(&self, position: u64) -> &Entry {
        &self.entries[(position >> self.shift) as usize]
    }

    /// The version the page was last protected for.
    #[inline]
    pub fn version(&self, position: u64) -> u32 {
        self.entry(position).version
    }

    #[inline]
    pub fn page(&self, position: u64) -> Page<'_, K, V> {
        let entry = self.entry(position);
        // SAFETY: entries refer to pages of this directory, which is borrowed.
        unsafe { Page::from_raw(entry.base, entry.buckets) }
    }

    #[inline]
    pub fn page_mut(&mut self, position: u64) -> PageMut<'_, K, V> {
        let entry = self.entry(position);
        // SAFETY: entries refer to pages of this directory, which is borrowed mutably.
        unsafe { PageMut::from_raw(entry.base, entry.buckets) }
    }

    /// The entries that refer to the page with this prefix.
    fn run(&self, prefix: u64, depth: u32) -> std::ops::Range<usize> {
        let first = (prefix >> self.shift) as usize;
        first..first + (1 << (64 - self.shift - depth))
    }

    /// Notes that the page is protected for `version`.
    pub fn stamp(&mut self, position: u64, version: u32) {
        let header = self.page(position).header();
        let run = self.run(header.prefix, header.depth);
        self.entries[run].iter_mut().for_each(|entry| entry.version = version);
    }

    /// Makes room for one more entry at `position` with `heap_bytes` of key in the heap.
    pub fn make_room(&mut self, position: u64, heap_bytes: usize, version: u32) {
        while !self.page(position).has_room_for(heap_bytes) {
            self.grow(position, heap_bytes, version);
        }
    }

    /// One step of growth: a larger page, or two of them.
    fn grow(&mut self, position: u64, heap_bytes: usize, version: u32) {
        let page = self.page(position);
        let header = *page.header();
        let is_full = page.len() == entries_max(page.capacity());
        let capacity = if is_full { capacity_after(page.capacity()) } else { page.capacity() };
        let heap_wanted = header.heap_live as usize + heap_bytes;
        let heap_capacity = heap_wanted + heap_wanted / 2;
        let bytes = PageBox::<K, V>::heap_at(capacity) + heap_capacity;
        if bytes > PAGE_BYTES_MAX && self.is_split_by_next_bit(position) {
            self.split(position, version);
        } else {
            let mut larger = PageBox::new(capacity, heap_capacity, &header);
            page.live().for_each(|i| larger.page_mut().copy_entry(page, i, page.hash_at(i)));
            self.put(larger, version);
        }
    }

    /// Whether the bit behind the prefix tells some entries of the page from others.
    fn is_split_by_next_bit(&self, position: u64) -> bool {
        let page = self.page(position);
        let depth = page.header().depth;
        let bit = |index| position_of(page.hash_at(index)) << depth >> 63;
        let ones = page.live().filter(|index| bit(*index) == 1).count();
        depth < DEPTH_MAX && ones > 0 && ones < page.len()
    }

    /// Replaces a page by two that cover half its positions each.
    fn split(&mut self, position: u64, version: u32) {
        let header = *self.page(position).header();
        if header.depth == 64 - self.shift {
            self.deepen();
        }
        let page = self.page(position);
        let halves = [0u64, 1].map(|bit| {
            let belongs = |i: &usize| position_of(page.hash_at(*i)) << header.depth >> 63 == bit;
            let heap_bytes = |i| page.heap_bytes_at(i);
            let entries = page.live().filter(belongs).count();
            let heap: usize = page.live().filter(belongs).map(heap_bytes).sum();
            let mut half = PageBox::new(capacity_for(entries), heap + heap / 2, &header);
            let prefix = header.prefix | bit << (63 - header.depth);
            half.page_mut().set_prefix(prefix, header.depth + 1);
            let copied = page.live().filter(belongs);
            copied.for_each(|i| half.page_mut().copy_entry(page, i, page.hash_at(i)));
            half
        });
        let old = self.page(position).base();
        for half in halves {
            self.place(half, version);
        }
        // SAFETY: `old` was a page of this directory and both halves of its run were overwritten.
        drop(unsafe { PageBox::<K, V>::from_raw(old) });
    }

    /// Doubles the directory.
    fn deepen(&mut self) {
        let copies = |entry: &Entry| {
            [0, 1].map(|_| Entry {
                base: entry.base,
                version: entry.version,
                buckets: entry.buckets,
            })
        };
        self.entries = self.entries.iter().flat_map(copies).collect();
        self.shift -= 1;
    }

    /// Replaces the page of the same range.
    fn put(&mut self, page: PageBox<K, V>, version: u32) {
        let old = self.page(page.page().header().prefix).base();
        self.place(page, version);
        // SAFETY: `old` was a page of this directory and its run was overwritten.
        drop(unsafe { PageBox::<K, V>::from_raw(old) });
    }

    /// Lets the page's run refer to it; what it referred to is the caller's to free.
    fn place(&mut self, page: PageBox<K, V>, version: u32) {
        let header = *page.page().header();
        let buckets = page.buckets();
        let base = page.into_raw();
        let run = self.run(header.prefix, header.depth);
        self.entries[run].fill_with(|| Entry { base, version, buckets });
    }

    /// Takes a page as it is if nothing is in its range yet, else gives it back.
    pub fn adopt(&mut self, page: PageBox<K, V>, version: u32) -> Result<(), PageBox<K, V>> {
        let header = *page.page().header();
        let present = self.page(header.prefix);
        let is_free = present.len() == 0 && present.header().depth <= header.depth;
        if !is_free || header.depth > ADOPTED_DEPTH_MAX {
            return Err(page);
        }
        while self.page(header.prefix).header().depth < header.depth {
            self.split(header.prefix, version);
        }
        self.put(page, version);
        Ok(())
    }

    /// Bytes of memory: pages and entries.
    pub fn memory_bytes(&self) -> usize {
        let mut bytes = self.entries.len() * size_of::<Entry>();
        let mut position = Some(0);
        while let Some(at) = position {
            let header = self.page(at).header();
            bytes += PageBox::<K, V>::heap_at(header.capacity as usize);
            bytes += header.heap_capacity as usize;
            position = position_after(header.prefix, header.depth);
        }
        bytes
    }
}

impl<K: Key, V: Data> Drop for Directory<K, V> {
    fn drop(&mut self) {
        let mut position = Some(0);
        while let Some(at) = position {
            let page = self.page(at);
            let (header, base) = (*page.header(), page.base());
            // SAFETY: pages tile the positions, so each is met once, and nobody uses it afterwards.
            drop(unsafe { PageBox::<K, V>::from_raw(base) });
            position = position_after(header.prefix, header.depth);
        }
    }
}

// SAFETY: a directory owns its pages.
unsafe impl<K: Key, V: Data> Send for Directory<K, V> {}
