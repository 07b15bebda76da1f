//! A page: a small open-addressed table whose memory is what goes to disk and comes back.
//!
//! ```text
//! header (64 B) | slots: capacity x (key, value) | tags: capacity + 8 mirrored | heap of long keys
//! ```
//! A tag is 0 for an empty slot, else `0x80 | 7 bits` of the hash. An entry's home is the first slot
//! of a bucket (one cache line of slots); it lies in the first slot that was free from there on.
//! A lookup compares 8 tags at a time in one register.
//!
//! Invariants
//! - Every byte of a page is initialised: pages start zeroed and only plain data is written.
//! - Every slot from an entry's home to the entry is occupied (removal moves entries back).
//! - At least an eighth of the slots is empty, so every search ends.
//! - Tags `capacity..capacity + 8` repeat tags `0..8`, so that a window may wrap around.
//! - `K` and `V` are plain, or `K` has [`Key::BYTES`]: checked where a table is made.
//! - A byte key's slot refers to bytes inside the heap's used part.

#![expect(unsafe_code, reason = "a page is raw bytes with typed slots inside")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::slot::{ByteSlot, Probe, SlotLayout};
use crate::key::Key;
use crate::record::Data;

/// Alignment of a page in memory, and the most a key or value may ask for.
pub(super) const PAGE_ALIGN: usize = 64;

/// Bytes before the first slot.
pub(super) const HEADER_BYTES: usize = size_of::<Header>();

/// Tags that one step of a search compares.
const WINDOW: usize = 8;

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// What a page says of itself. All of it is written to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Header {
    /// [`Header::MAGIC`].
    pub magic: u32,
    /// Bits of the hash after the key group that all keys here share: the first of `prefix`.
    pub depth: u32,
    /// Those bits, left-aligned.
    pub prefix: u64,
    /// Key group.
    pub group: u32,
    /// Slots; a multiple of the slots per bucket.
    pub capacity: u32,
    /// Entries.
    pub len: u32,
    /// Size of a key's slot.
    pub key_bytes: u32,
    /// Size of a value.
    pub value_bytes: u32,
    /// Bytes of the heap handed out; what is written to disk ends here.
    pub heap_used: u32,
    /// Of those, bytes of keys that still exist.
    pub heap_live: u32,
    /// Bytes of the heap there are.
    pub heap_capacity: u32,
    /// For later versions; zero.
    pub reserved: [u32; 4],
}

impl Header {
    pub const MAGIC: u32 = u32::from_le_bytes(*b"TGP1");
}

/// Where a key is, or where it would go.
pub(super) enum Place {
    Found(usize),
    Vacant(usize),
}

/// The most entries a page of `capacity` slots takes.
#[inline]
pub(super) fn entries_max(capacity: usize) -> usize {
    capacity - capacity.div_ceil(8)
}

/// A page one may read.
pub(super) struct Page<'a, K, V> {
    base: NonNull<u8>,
    buckets: u32,
    entries: PhantomData<&'a (K, V)>,
}

/// A page one may change.
pub(super) struct PageMut<'a, K, V>(Page<'a, K, V>);

/// A page with its memory.
pub(super) struct PageBox<K: Key, V: Data> {
    base: NonNull<u8>,
    entries: PhantomData<(K, V)>,
}

impl<K: Key, V: Data> PageBox<K, V> {
    /// Offset of the heap, which is the page's size without one.
    pub fn heap_at(capacity: usize) -> usize {
        HEADER_BYTES + capacity * (SlotLayout::<K, V>::STRIDE + 1) + WINDOW
    }

    fn layout(capacity: usize, heap_capacity: usize) -> Layout {
        let bytes = Self::heap_at(capacity) + heap_capacity;
        Layout::from_size_align(bytes, PAGE_ALIGN).expect("a page of less than isize::MAX bytes")
    }

    /// An empty page like `like` except for its capacities.
    pub fn new(capacity: usize, heap_capacity: usize, like: &Header) -> Self {
        assert!(capacity >= WINDOW && capacity.is_multiple_of(SlotLayout::<K, V>::BUCKET));
        let layout = Self::layout(capacity, heap_capacity);
        // SAFETY: a page is never smaller than its header.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(memory) else { handle_alloc_error(layout) };
        let header = Header {
            magic: Header::MAGIC,
            capacity: u32::try_from(capacity).expect("fewer than 2^32 slots"),
            heap_capacity: u32::try_from(heap_capacity).expect("a heap below 4 GiB"),
            len: 0,
            heap_used: 0,
            heap_live: 0,
            key_bytes: SlotLayout::<K, V>::KEY_BYTES as u32,
            value_bytes: size_of::<V>() as u32,
            ..*like
        };
        // SAFETY: the memory starts with room for a header at an alignment above a header's.
        unsafe { base.cast().write(header) };
        Self { base, entries: PhantomData }
    }

    /// The first page of a key group.
    pub fn of_group(group: u32) -> Self {
        let like = Header {
            magic: Header::MAGIC,
            depth: 0,
            prefix: 0,
            group,
            capacity: 0,
            len: 0,
            key_bytes: 0,
            value_bytes: 0,
            heap_used: 0,
            heap_live: 0,
            heap_capacity: 0,
            reserved: [0; 4],
        };
        Self::new(WINDOW, 0, &like)
    }

    /// A page whose bytes are `bytes`.
    ///
    /// # Safety
    /// `header` must be the header in `bytes`, with its capacity valid, its heap as large as used,
    /// and `bytes` of exactly that size. The tags and slots must be proven before they are used.
    pub unsafe fn from_bytes(header: &Header, bytes: &[u8]) -> Self {
        let page = Self::new(header.capacity as usize, header.heap_used as usize, header);
        let header = Header { heap_capacity: header.heap_used, ..*header };
        // SAFETY: the caller promises `bytes` to be as long as the page that was just made of its
        // header, which overlaps nothing.
        unsafe { page.base.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
        // SAFETY: as in `new`.
        unsafe { page.base.cast().write(header) };
        page
    }

    #[inline]
    pub fn page(&self) -> Page<'_, K, V> {
        // SAFETY: the memory holds a page as long as this box lives.
        unsafe { Page::from_raw(self.base, self.buckets()) }
    }

    #[inline]
    pub fn page_mut(&mut self) -> PageMut<'_, K, V> {
        // SAFETY: the memory holds a page as long as this box lives, which is borrowed mutably.
        unsafe { PageMut::from_raw(self.base, self.buckets()) }
    }

    /// Buckets of the page, for [`Page::from_raw`].
    pub fn buckets(&self) -> u32 {
        // SAFETY: the memory starts with an initialised header.
        let header = unsafe { self.base.cast::<Header>().as_ref() };
        header.capacity / SlotLayout::<K, V>::BUCKET as u32
    }

    /// The page's memory, no longer freed with this box.
    pub fn into_raw(self) -> NonNull<u8> {
        std::mem::ManuallyDrop::new(self).base
    }

    /// Takes back what [`into_raw`](Self::into_raw) gave.
    ///
    /// # Safety
    /// `base` must come from `into_raw` of this type and not be used by anyone else from now on.
    pub unsafe fn from_raw(base: NonNull<u8>) -> Self {
        Self { base, entries: PhantomData }
    }

    /// A copy of `page`, byte by byte.
    pub fn copy_of(page: Page<'_, K, V>) -> Self {
        // SAFETY: header and bytes are those of a valid page.
        unsafe { Self::from_bytes(page.header(), page.bytes()) }
    }
}

impl<K: Key, V: Data> Drop for PageBox<K, V> {
    fn drop(&mut self) {
        let header = self.page();
        let layout = Self::layout(header.capacity(), header.header().heap_capacity as usize);
        // SAFETY: `new` allocated the page with the layout of the capacities in its header.
        unsafe { dealloc(self.base.as_ptr(), layout) };
    }
}

// SAFETY: a page is keys and values by value.
unsafe impl<K: Key, V: Data> Send for PageBox<K, V> {}

impl<K, V> Clone for Page<'_, K, V> {
    #[inline]
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, V> Copy for Page<'_, K, V> {}

impl<'a, K: Key, V: Data> Page<'a, K, V> {
    /// # Safety
    /// `base` must be a page of `(K, V)` with `buckets` buckets that nobody changes for `'a`.
    #[inline]
    pub unsafe fn from_raw(base: NonNull<u8>, buckets: u32) -> Self {
        Self { base, buckets, entries: PhantomData }
    }

    #[inline]
    pub fn header(&self) -> &'a Header {
        // SAFETY: a page starts with an initialised header.
        unsafe { self.base.cast().as_ref() }
    }

    /// Where the page lies.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    #[inline]
    pub fn capacity(&self) -> usize {
        self.buckets as usize * SlotLayout::<K, V>::BUCKET
    }

    #[inline]
    pub fn len(&self) -> usize {
        self.header().len as usize
    }

    /// Whether one more entry with a key of `heap_bytes` in the heap fits.
    #[inline]
    pub fn has_room_for(&self, heap_bytes: usize) -> bool {
        let header = self.header();
        self.len() < entries_max(self.capacity())
            && heap_bytes <= (header.heap_capacity - header.heap_used) as usize
    }

    /// Everything that goes to disk.
    pub fn bytes(&self) -> &'a [u8] {
        let len = PageBox::<K, V>::heap_at(self.capacity()) + self.header().heap_used as usize;
        // SAFETY: the page is at least that large, and every byte of it is initialised.
        unsafe { NonNull::slice_from_raw_parts(self.base, len).as_ref() }
    }

    #[inline]
    fn slot(&self, index: usize) -> NonNull<u8> {
        debug_assert!(index < self.capacity(), "slot {index} of {}", self.capacity());
        // SAFETY: slots lie behind the header, `STRIDE` bytes each; `index` is one of them.
        unsafe { self.base.add(HEADER_BYTES + index * SlotLayout::<K, V>::STRIDE) }
    }

    #[inline]
    fn tags(&self) -> NonNull<u8> {
        // SAFETY: the tags follow the slots.
        unsafe { self.base.add(HEADER_BYTES + self.capacity() * SlotLayout::<K, V>::STRIDE) }
    }

    /// The tag of slot `index`, which may be mirrored.
    #[inline]
    pub fn tag(&self, index: usize) -> u8 {
        debug_assert!(index < self.capacity() + WINDOW, "tag {index} of {}", self.capacity());
        // SAFETY: there are `capacity + WINDOW` tags.
        let tag = unsafe { self.tags().add(index) };
        // SAFETY: tags are initialised bytes of the page.
        unsafe { tag.read() }
    }

    /// Eight tags from slot `index` on.
    #[inline]
    fn window(&self, index: usize) -> u64 {
        debug_assert!(index < self.capacity(), "window {index} of {}", self.capacity());
        // SAFETY: there are `capacity + WINDOW` tags.
        let tags = unsafe { self.tags().add(index) };
        // SAFETY: eight tags from any slot on lie within the tags.
        u64::from_le_bytes(unsafe { tags.cast::<[u8; WINDOW]>().read() })
    }

    #[inline]
    fn home(&self, hash: u64) -> usize {
        let bucket = (u64::from(hash as u32) * u64::from(self.buckets)) >> 32;
        bucket as usize * SlotLayout::<K, V>::BUCKET
    }

    #[inline]
    fn wrap(&self, index: usize) -> usize {
        if index >= self.capacity() { index - self.capacity() } else { index }
    }

    /// Asks the cache for what a lookup of `hash` reads first.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        let home = self.home(hash);
        prefetch(self.slot(home));
        // SAFETY: home is a slot, so its tag lies within the page.
        prefetch(unsafe { self.tags().add(home) });
    }

    /// Looks for a key.
    #[inline]
    pub fn find(&self, hash: u64, probe: &Probe<'_, K>) -> Place {
        let wanted = ONES * u64::from(tag_of(hash));
        let mut at = self.home(hash);
        loop {
            let window = self.window(at);
            let difference = window ^ wanted;
            // A false hit needs a tag that differs in its last bit only, so it is never empty.
            let mut hits = difference.wrapping_sub(ONES) & !difference & HIGHS;
            while hits != 0 {
                let index = self.wrap(at + hits.trailing_zeros() as usize / 8);
                if self.key_matches(index, probe) {
                    return Place::Found(index);
                }
                hits &= hits - 1;
            }
            let empty = !window & HIGHS;
            if empty != 0 {
                return Place::Vacant(self.wrap(at + empty.trailing_zeros() as usize / 8));
            }
            at = self.wrap(at + WINDOW);
        }
    }

    /// Where an entry with this hash goes that is known to be absent.
    pub fn vacancy(&self, hash: u64) -> usize {
        let mut at = self.home(hash);
        while self.tag(at) != 0 {
            at = self.wrap(at + 1);
        }
        at
    }

    #[inline]
    fn key_matches(&self, index: usize, probe: &Probe<'_, K>) -> bool {
        match probe {
            Probe::Plain(key) => self.plain_key(index) == *key,
            probe => probe.matches_bytes(self.byte_slot(index), |len, at| self.heap(len, at)),
        }
    }

    /// The key in a live slot; only where keys are plain.
    #[inline]
    fn plain_key(&self, index: usize) -> &'a K {
        debug_assert!(self.tag(index) != 0 && K::BYTES.is_none());
        // SAFETY: a live slot starts with a valid key.
        unsafe { self.slot(index).cast().as_ref() }
    }

    /// The key's slot; only where keys are byte strings.
    #[inline]
    pub fn byte_slot(&self, index: usize) -> ByteSlot {
        // SAFETY: a slot starts with a byte slot, for which any bytes are valid.
        unsafe { self.slot(index).cast().read() }
    }

    /// Some bytes of the heap.
    #[inline]
    fn heap(&self, len: usize, offset: usize) -> &'a [u8] {
        debug_assert!(offset + len <= self.header().heap_used as usize);
        // SAFETY: byte slots refer to the used part of the heap.
        let start = unsafe { self.base.add(PageBox::<K, V>::heap_at(self.capacity()) + offset) };
        // SAFETY: as above; the bytes are initialised.
        unsafe { NonNull::slice_from_raw_parts(start, len).as_ref() }
    }

    /// The bytes of a byte-string key.
    pub fn key_bytes(&self, index: usize) -> &'a [u8] {
        let slot = self.byte_slot(index);
        match slot.heap_range() {
            Some((len, offset)) => self.heap(len, offset),
            // SAFETY: an inline key lies at the start of its slot.
            None => unsafe {
                NonNull::slice_from_raw_parts(self.slot(index), slot.inline_len()).as_ref()
            },
        }
    }

    /// Bytes of the heap that the key in a live slot takes.
    pub fn heap_bytes_at(&self, index: usize) -> usize {
        if K::BYTES.is_none() {
            return 0;
        }
        self.byte_slot(index).heap_range().map_or(0, |(len, _)| len)
    }

    /// The hash of the key in a live slot.
    pub fn hash_at(&self, index: usize) -> u64 {
        match K::BYTES {
            Some(byte_key) => (byte_key.hash)(self.key_bytes(index)),
            None => self.plain_key(index).key_hash(),
        }
    }

    /// The key in a live slot.
    pub fn key_at(&self, index: usize) -> K {
        match K::BYTES {
            Some(byte_key) => {
                (byte_key.from_bytes)(self.key_bytes(index)).expect("a key was made of these bytes")
            }
            None => self.plain_key(index).clone(),
        }
    }

    /// Whether the entry in live slot `index` is where a search for it ends, under `hash`.
    pub fn is_in_place(&self, index: usize, hash: u64) -> bool {
        let place = match K::BYTES {
            Some(_) => self.find(hash, &Probe::of_bytes(self.key_bytes(index), hash)),
            None => self.find(hash, &Probe::Plain(self.plain_key(index))),
        };
        self.tag(index) == tag_of(hash) && matches!(place, Place::Found(found) if found == index)
    }

    /// Where the value of a slot lies, valid or not.
    #[inline]
    pub fn value_ptr(&self, index: usize) -> NonNull<V> {
        // SAFETY: the value lies inside the slot.
        unsafe { self.slot(index).add(SlotLayout::<K, V>::VALUE_AT) }.cast()
    }

    /// Where the plain key of a slot lies, valid or not.
    pub fn key_ptr(&self, index: usize) -> NonNull<K> {
        self.slot(index).cast()
    }

    /// The value in a live slot.
    #[inline]
    pub fn value(&self, index: usize) -> &'a V {
        debug_assert!(self.tag(index) != 0);
        // SAFETY: a live slot holds a valid value.
        unsafe { self.value_ptr(index).as_ref() }
    }

    /// The live slots, in order.
    pub fn live(self) -> impl Iterator<Item = usize> + use<'a, K, V> {
        (0..self.capacity()).filter(move |index| self.tag(*index) != 0)
    }
}

impl<'a, K, V> Deref for PageMut<'a, K, V> {
    type Target = Page<'a, K, V>;
    #[inline]
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<K: Key, V: Data> PageMut<'_, K, V> {
    /// # Safety
    /// `base` must be a page of `(K, V)` with `buckets` buckets that nobody else uses meanwhile.
    #[inline]
    pub unsafe fn from_raw(base: NonNull<u8>, buckets: u32) -> Self {
        // SAFETY: as promised by the caller.
        Self(unsafe { Page::from_raw(base, buckets) })
    }

    #[inline]
    fn header_mut(&mut self) -> &mut Header {
        // SAFETY: a page starts with an initialised header.
        unsafe { self.base.cast().as_mut() }
    }

    /// Narrows the page to keys with this prefix; it must be empty.
    pub fn set_prefix(&mut self, prefix: u64, depth: u32) {
        let header = self.header_mut();
        (header.prefix, header.depth) = (prefix, depth);
    }

    /// Fills the vacant slot that [`Page::find`] named; there must be room.
    #[inline]
    pub fn fill(&mut self, index: usize, hash: u64, probe: &Probe<'_, K>, value: V) {
        debug_assert!(self.tag(index) == 0 && self.has_room_for(probe.heap_bytes()));
        match probe {
            // SAFETY: the key is plain, so a copy of its bytes is a key; a reference to it cannot
            // overlap a vacant slot.
            Probe::Plain(key) => unsafe {
                self.slot(index).cast::<K>().copy_from_nonoverlapping(NonNull::from(*key), 1);
            },
            Probe::Inline(slot) => self.write_byte_slot(index, *slot),
            Probe::Long(_, bytes) => self.write_long_key(index, hash, bytes),
        }
        // SAFETY: the value's place lies inside the slot, at its alignment.
        unsafe { self.value_ptr(index).write(value) };
        self.set_tag(index, tag_of(hash));
        self.header_mut().len += 1;
    }

    #[inline]
    fn write_byte_slot(&mut self, index: usize, slot: ByteSlot) {
        // SAFETY: a slot starts with room for a byte slot at its alignment.
        unsafe { self.slot(index).cast().write(slot) };
    }

    fn write_long_key(&mut self, index: usize, hash: u64, bytes: &[u8]) {
        let offset = self.header().heap_used as usize;
        assert!(offset + bytes.len() <= self.header().heap_capacity as usize);
        // SAFETY: the heap has room for the bytes at its used part's end, as just asserted.
        let start = unsafe { self.base.add(PageBox::<K, V>::heap_at(self.capacity()) + offset) };
        // SAFETY: as above; `bytes` is borrowed, so it does not lie in this page.
        unsafe { start.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
        self.write_byte_slot(index, ByteSlot::long(bytes.len(), offset, hash));
        let header = self.header_mut();
        header.heap_used += bytes.len() as u32;
        header.heap_live += bytes.len() as u32;
    }

    #[inline]
    fn set_tag(&mut self, index: usize, tag: u8) {
        debug_assert!(index < self.capacity());
        // SAFETY: there are `capacity + WINDOW` tags.
        let place = unsafe { self.tags().add(index) };
        // SAFETY: as above.
        unsafe { place.write(tag) };
        if index < WINDOW {
            // SAFETY: the mirrored tags follow the others.
            let mirror = unsafe { self.tags().add(self.capacity() + index) };
            // SAFETY: as above.
            unsafe { mirror.write(tag) };
        }
    }

    /// Takes the entry of a live slot out.
    pub fn remove(&mut self, index: usize) -> V {
        debug_assert!(self.tag(index) != 0);
        // SAFETY: a live slot holds a valid value, and plain values may be copied.
        let value = unsafe { self.value_ptr(index).read() };
        let heap_bytes = self.heap_bytes_at(index);
        self.header_mut().heap_live -= heap_bytes as u32;
        let hole = self.close_gap(index);
        // SAFETY: the slot is `STRIDE` bytes.
        unsafe { self.slot(hole).write_bytes(0, SlotLayout::<K, V>::STRIDE) };
        self.set_tag(hole, 0);
        self.header_mut().len -= 1;
        value
    }

    /// Moves entries behind `hole` back so that none is cut off from its home; the hole that is left.
    fn close_gap(&mut self, mut hole: usize) -> usize {
        let mut next = self.wrap(hole + 1);
        while self.tag(next) != 0 {
            let home = self.home(self.hash_at(next));
            let distance = |from: usize| self.wrap(next + self.capacity() - from);
            if distance(home) >= distance(hole) {
                let (from, to, tag) = (self.slot(next), self.slot(hole), self.tag(next));
                // SAFETY: two different slots of `STRIDE` bytes; entries are plain.
                unsafe { to.copy_from_nonoverlapping(from, SlotLayout::<K, V>::STRIDE) };
                self.set_tag(hole, tag);
                hole = next;
            }
            next = self.wrap(next + 1);
        }
        hole
    }

    /// Copies the entry in live slot `index` of `from`; there must be room and no such key.
    pub fn copy_entry(&mut self, from: Page<'_, K, V>, index: usize, hash: u64) {
        let to = self.vacancy(hash);
        let (source, target) = (from.slot(index), self.slot(to));
        // SAFETY: slots of two pages, `STRIDE` bytes each; entries are plain.
        unsafe { target.copy_from_nonoverlapping(source, SlotLayout::<K, V>::STRIDE) };
        if from.heap_bytes_at(index) > 0 {
            self.write_long_key(to, hash, from.key_bytes(index));
        }
        self.set_tag(to, tag_of(hash));
        self.header_mut().len += 1;
    }
}

impl<K: Key, V: Data> DerefMut for PageMut<'_, K, V> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

#[inline]
fn tag_of(hash: u64) -> u8 {
    (hash >> 32) as u8 | 0x80
}

#[inline]
fn prefetch(place: NonNull<u8>) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch has no effect but on the cache, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}
