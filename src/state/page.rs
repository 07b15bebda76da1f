//! A page: a small open-addressed table whose memory is what goes to disk and comes back.
//!
//! ```text
//! header (64 B) | slots, the last one first: (key, value) | tags: one per slot, 8 zeros | heap of long keys
//! ```
//! A page is referred to by where its tags begin, so that both a tag and a slot are one addition away
//! and an update never reads the header. A tag is 0 for an empty slot, else `0x80 | 7 bits` of the
//! hash. An entry's home is the first slot of a bucket (one cache line of slots); it lies in the first
//! slot that was free from there on, and behind the last slot comes the first. Behind the homes are some
//! slots that are nobody's home, so that few searches go around. A lookup compares 8 tags at a time in
//! one register.
//!
//! Invariants
//! - Every byte of a page is initialised: pages start zeroed and only plain data is written.
//! - Every slot from an entry's home to the entry is occupied (removal moves entries back).
//! - The last 8 tags are 0, so every search ends: there, or when it gets there for the second time.
//! - `K` and `V` are plain, or `K` has [`Key::BYTES`]: checked where a table is made.
//! - A byte key's slot refers to bytes inside the heap's used part.

#![expect(unsafe_code, reason = "a page is raw bytes with typed slots inside")]

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::memory::{PAGE_ALIGN, Room};
use super::slot::{ByteSlot, INLINE_BYTES, SlotLayout};
use crate::key::Key;
use crate::record::Data;

/// Bytes before the first slot.
pub(super) const HEADER_BYTES: usize = size_of::<Header>();

/// Tags that one step of a search compares, and zeros behind the last.
const WINDOW: usize = 8;

/// Slots behind the homes of all but very small and large pages.
const TAIL: usize = 2;

/// Slots of a small page that stay vacant.
const VACANT_MIN: usize = 2;

/// The fewest homes of a page.
pub(super) const HOMES_MIN: usize = 4;

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// What a page says of itself. All of it is written to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Header {
    /// [`Header::MAGIC`].
    pub magic: u32,
    /// Bits of the hash that all keys here share.
    pub depth: u32,
    /// Those bits, left-aligned.
    pub prefix: u64,
    /// Homes; a multiple of the slots per bucket.
    pub homes: u32,
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
    /// The table's number of the page; means nothing to another table.
    pub id: u32,
    /// For later versions; zero.
    pub reserved: [u32; 4],
}

impl Header {
    pub const MAGIC: u32 = u32::from_le_bytes(*b"TGP3");
    /// That of pages in which nothing goes around: a search finds what is in them all the same.
    pub const MAGIC_2: u32 = u32::from_le_bytes(*b"TGP2");
}

/// Where a key is, or where it would go.
pub(super) enum Place {
    Found(usize),
    Vacant(usize),
}

/// How many slots a page with this many homes has.
#[inline]
pub(super) fn slots_of(homes: usize) -> usize {
    homes + homes.min(TAIL.max(homes / 24))
}

/// The most entries of a page with this many homes. Some slots stay vacant, so that searches stay short.
#[inline]
pub(super) fn entries_max(homes: usize) -> usize {
    let slots = slots_of(homes);
    slots - VACANT_MIN.max(slots / 32)
}

/// A page one may read.
pub(super) struct Page<'a, K, V> {
    tags: NonNull<u8>,
    homes: u32,
    entries: PhantomData<&'a (K, V)>,
}

/// A page one may change.
pub(super) struct PageMut<'a, K, V>(Page<'a, K, V>);

/// A page in a room of its own.
pub(super) struct PageBox<K: Key, V: Data> {
    tags: NonNull<u8>,
    homes: u32,
    _room: Room,
    entries: PhantomData<(K, V)>,
}

impl<K: Key, V: Data> PageBox<K, V> {
    /// Offset of the tags in the page's memory.
    fn tags_at(homes: usize) -> usize {
        let slots_bytes = slots_of(homes) * SlotLayout::<K, V>::STRIDE;
        HEADER_BYTES + slots_bytes.next_multiple_of(PAGE_ALIGN)
    }

    /// Offset of the heap, which is the page's size without one.
    pub fn heap_at(homes: usize) -> usize {
        Self::tags_at(homes) + slots_of(homes) + WINDOW
    }

    /// The room that such a page takes.
    pub fn room_bytes(homes: usize, heap_capacity: usize) -> usize {
        Self::heap_at(homes) + heap_capacity
    }

    /// An empty page for the hashes that begin with the first `depth` bits of `prefix`, in a room that is
    /// large enough.
    pub fn new(room: Room, homes: usize, heap_capacity: usize, prefix: u64, depth: u32) -> Self {
        assert!(homes >= HOMES_MIN && homes.is_multiple_of(SlotLayout::<K, V>::BUCKET), "{homes}");
        let header = Header {
            magic: Header::MAGIC,
            depth,
            prefix,
            homes: u32::try_from(homes).expect("fewer than 2^32 slots"),
            len: 0,
            key_bytes: SlotLayout::<K, V>::KEY_BYTES as u32,
            value_bytes: size_of::<V>() as u32,
            heap_used: 0,
            heap_live: 0,
            heap_capacity: u32::try_from(heap_capacity).expect("a heap below 4 GiB"),
            id: 0,
            reserved: [0; 4],
        };
        let mut room = room;
        assert_eq!(room.bytes().len(), Self::room_bytes(homes, heap_capacity));
        room.bytes_mut().fill(0);
        // SAFETY: the room is larger than a header, at an alignment above a header's.
        unsafe { room.memory().cast().write(header) };
        // SAFETY: it is a page of `homes` homes.
        unsafe { Self::in_room(room, header.homes) }
    }

    /// # Safety
    /// In the room is a page of so many homes.
    unsafe fn in_room(room: Room, homes: u32) -> Self {
        // SAFETY: the tags lie inside the room.
        let tags = unsafe { room.memory().add(Self::tags_at(homes as usize)) };
        Self { tags, homes, _room: room, entries: PhantomData }
    }

    /// Where the page's tags are and how many homes it has. Its room stays taken.
    pub fn into_raw(self) -> (NonNull<u8>, u32) {
        (self.tags, self.homes)
    }

    #[inline]
    pub fn page(&self) -> Page<'_, K, V> {
        // SAFETY: the memory holds a page as long as this box lives.
        unsafe { Page::from_raw(self.tags, self.homes) }
    }

    #[inline]
    pub fn page_mut(&mut self) -> PageMut<'_, K, V> {
        // SAFETY: the memory holds a page as long as this box lives, which is borrowed mutably.
        unsafe { PageMut::from_raw(self.tags, self.homes) }
    }
}

impl Header {
    /// The header in the bytes of a page.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER_BYTES)?;
        let half = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        Some(Self {
            magic: half(0),
            depth: half(4),
            prefix: u64::from(half(8)) | u64::from(half(12)) << 32,
            homes: half(16),
            len: half(20),
            key_bytes: half(24),
            value_bytes: half(28),
            heap_used: half(32),
            heap_live: half(36),
            heap_capacity: half(40),
            id: half(44),
            reserved: [half(48), half(52), half(56), half(60)],
        })
    }
}

impl<K: Key, V: Data> PageBox<K, V> {
    /// The page that the bytes in a room are.
    ///
    /// # Safety
    /// `header` must be the header in the bytes, with valid homes, and its homes and used heap must
    /// come to exactly this many bytes. Tags and slots must be proven before they are used.
    pub unsafe fn restored(room: Room, header: &Header) -> Self {
        let size = Self::room_bytes(header.homes as usize, header.heap_used as usize);
        assert_eq!(room.bytes().len(), size, "a page is as large as its header says");
        let (magic, heap_capacity) = (Header::MAGIC, header.heap_used);
        // SAFETY: the room begins with room for a header; the page's heap ends where the room does.
        unsafe { room.memory().cast().write(Header { magic, heap_capacity, ..*header }) };
        // SAFETY: as promised, it is a page of `homes` homes.
        unsafe { Self::in_room(room, header.homes) }
    }
}

impl<K, V> Clone for Page<'_, K, V> {
    #[inline]
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, V> Copy for Page<'_, K, V> {}

impl<'a, K: Key, V: Data> Page<'a, K, V> {
    /// # Safety
    /// `tags` must be those of a page of `(K, V)` with `homes` homes that nobody changes for `'a`.
    #[inline]
    pub unsafe fn from_raw(tags: NonNull<u8>, homes: u32) -> Self {
        Self { tags, homes, entries: PhantomData }
    }

    /// What [`from_raw`](Self::from_raw) takes.
    pub fn raw(&self) -> (NonNull<u8>, u32) {
        (self.tags, self.homes)
    }

    /// The room that the page takes, by where it begins and its size.
    pub fn room(&self) -> (NonNull<u8>, usize) {
        let heap_capacity = self.header().heap_capacity as usize;
        (self.memory(), PageBox::<K, V>::room_bytes(self.homes(), heap_capacity))
    }

    /// Where the page's memory begins: its header.
    fn memory(&self) -> NonNull<u8> {
        // SAFETY: the tags lie this far behind the header.
        unsafe { self.tags.sub(PageBox::<K, V>::tags_at(self.homes())) }
    }

    pub fn header(&self) -> &'a Header {
        // SAFETY: a page starts with an initialised header.
        unsafe { self.memory().cast().as_ref() }
    }

    #[inline]
    pub fn homes(&self) -> usize {
        self.homes as usize
    }

    #[inline]
    pub fn slots(&self) -> usize {
        slots_of(self.homes())
    }

    #[inline]
    pub fn len(&self) -> usize {
        self.header().len as usize
    }

    /// Whether one more entry fits into slot `index`, with `heap_bytes` of its key in the heap.
    pub fn has_room(&self, index: usize, heap_bytes: usize) -> bool {
        let header = self.header();
        index < self.slots()
            && self.len() < entries_max(self.homes())
            && heap_bytes <= (header.heap_capacity - header.heap_used) as usize
    }

    /// Everything that goes to disk.
    pub fn bytes(&self) -> &'a [u8] {
        let len = PageBox::<K, V>::heap_at(self.homes()) + self.header().heap_used as usize;
        // SAFETY: the page is at least that large, and every byte of it is initialised.
        unsafe { NonNull::slice_from_raw_parts(self.memory(), len).as_ref() }
    }

    #[inline]
    fn slot(&self, index: usize) -> NonNull<u8> {
        debug_assert!(index < self.slots(), "slot {index} of {}", self.slots());
        // SAFETY: slots lie before the tags, `STRIDE` bytes each; `index` is one of them.
        unsafe { self.tags.sub((index + 1) * SlotLayout::<K, V>::STRIDE) }
    }

    /// Where the tag of slot `index` lies.
    #[inline]
    fn tag_ptr(&self, index: usize) -> NonNull<u8> {
        debug_assert!(index < self.slots() + WINDOW, "tag {index} of {}", self.slots());
        // SAFETY: there are `slots + WINDOW` tags.
        unsafe { self.tags.add(index) }
    }

    /// The tag of slot `index`; 0 behind the last.
    #[inline]
    pub fn tag(&self, index: usize) -> u8 {
        // SAFETY: tags are initialised bytes of the page.
        unsafe { self.tag_ptr(index).read() }
    }

    /// How many tags are those of entries; `None` if the tags are not as they must be. Reads eight at a
    /// time.
    pub fn count_tags(&self) -> Option<usize> {
        let slots = self.slots();
        let mut live = 0;
        for at in (0..slots).step_by(WINDOW) {
            // The window of the last slots reaches into the zeros behind them.
            let window = self.window(at);
            let highs = window & HIGHS;
            // Below each high bit all may be set; where it is not, none may be.
            if window & !((highs >> 7) * 0xFF) != 0 {
                return None;
            }
            live += highs.count_ones() as usize;
        }
        (self.window(slots) == 0).then_some(live)
    }

    /// Eight tags from slot `index` on.
    #[inline]
    fn window(&self, index: usize) -> u64 {
        debug_assert!(index <= self.slots(), "window {index} of {}", self.slots());
        // SAFETY: eight tags from any slot on, or from behind the last, lie within the tags.
        u64::from_le_bytes(unsafe { self.tag_ptr(index).cast::<[u8; WINDOW]>().read() })
    }

    #[inline]
    fn home(&self, hash: u64) -> usize {
        let scaled = (u64::from(hash as u32) * u64::from(self.homes)) >> 32;
        scaled as usize / SlotLayout::<K, V>::BUCKET * SlotLayout::<K, V>::BUCKET
    }

    /// Asks the cache for what a lookup of `hash` reads first.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        let home = self.home(hash);
        prefetch(self.tag_ptr(home));
        prefetch(self.slot(home));
    }

    /// Looks for a key.
    #[inline]
    pub fn find(&self, hash: u64, key: &K) -> Place {
        match K::BYTES {
            None => self.search(hash, |index| self.plain_key(index) == key),
            Some(byte_key) => self.find_bytes(hash, (byte_key.bytes)(key)),
        }
    }

    /// Looks for a byte-string key.
    #[inline]
    fn find_bytes(&self, hash: u64, bytes: &[u8]) -> Place {
        if bytes.len() <= INLINE_BYTES {
            let slot = ByteSlot::inline(bytes);
            self.search(hash, |index| self.byte_slot(index) == slot)
        } else {
            self.find_long(hash, bytes)
        }
    }

    #[inline(never)]
    fn find_long(&self, hash: u64, bytes: &[u8]) -> Place {
        let slot = ByteSlot::long(bytes.len(), 0, hash);
        self.search(hash, |index| {
            self.byte_slot(index).resembles(slot) && self.key_bytes(index) == bytes
        })
    }

    /// Looks for the slot that `is_wanted`. One copy per kind of key, inside its loop.
    #[inline(always)]
    fn search(&self, hash: u64, is_wanted: impl Fn(usize) -> bool) -> Place {
        match self.search_from(self.home(hash), tag_of(hash), &is_wanted) {
            Place::Vacant(index) if index >= self.homes() => self.around(index, hash, &is_wanted),
            place => place,
        }
    }

    /// Goes on with a search that has found slot `index` vacant, which may be that behind the last.
    #[cold]
    #[inline(never)]
    fn around(&self, index: usize, hash: u64, is_wanted: &impl Fn(usize) -> bool) -> Place {
        if index < self.slots() {
            return Place::Vacant(index);
        }
        self.search_from(0, tag_of(hash), is_wanted)
    }

    /// Looks for the slot that `is_wanted` from slot `at` up to the first that is vacant.
    #[inline(always)]
    fn search_from(&self, at: usize, tag: u8, is_wanted: &impl Fn(usize) -> bool) -> Place {
        let mut at = at;
        loop {
            let window = self.window(at);
            let mut hits = hits_in(window, tag);
            while hits != 0 {
                let index = at + hits.trailing_zeros() as usize / 8;
                if is_wanted(index) {
                    return Place::Found(index);
                }
                hits &= hits - 1;
            }
            let empty = !window & HIGHS;
            if empty != 0 {
                return Place::Vacant(at + empty.trailing_zeros() as usize / 8);
            }
            at += WINDOW;
        }
    }

    /// Where an entry with this hash goes that is known to be absent; the number of slots if there is
    /// no slot left.
    pub fn vacancy(&self, hash: u64) -> usize {
        let vacant_from = |from: usize| {
            let mut at = from;
            loop {
                let empty = !self.window(at) & HIGHS;
                if empty != 0 {
                    return at + empty.trailing_zeros() as usize / 8;
                }
                at += WINDOW;
            }
        };
        let index = vacant_from(self.home(hash));
        if index < self.slots() { index } else { vacant_from(0) }
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
        let start = unsafe { self.tags.add(self.slots() + WINDOW + offset) };
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
        (0..self.slots()).filter(move |index| self.tag(*index) != 0)
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
    /// `tags` must be those of a page of `(K, V)` with `homes` homes that nobody else uses meanwhile.
    #[inline]
    pub unsafe fn from_raw(tags: NonNull<u8>, homes: u32) -> Self {
        // SAFETY: as promised by the caller.
        Self(unsafe { Page::from_raw(tags, homes) })
    }

    #[inline]
    fn header_mut(&mut self) -> &mut Header {
        // SAFETY: a page starts with an initialised header.
        unsafe { self.memory().cast().as_mut() }
    }

    /// Gives the page a number.
    pub fn set_id(&mut self, id: u32) {
        self.header_mut().id = id;
    }

    /// Fills the vacant slot that [`Page::find`] named; there must be room.
    pub fn fill(&mut self, index: usize, hash: u64, key: &K, value: V) {
        debug_assert!(self.tag(index) == 0 && self.has_room(index, heap_bytes_of(key)));
        match K::BYTES {
            // SAFETY: the key is plain, so a copy of its bytes is a key; a reference to it cannot
            // overlap a vacant slot.
            None => unsafe {
                self.slot(index).cast::<K>().copy_from_nonoverlapping(NonNull::from(key), 1);
            },
            Some(byte_key) => match (byte_key.bytes)(key) {
                bytes if bytes.len() <= INLINE_BYTES => {
                    self.write_byte_slot(index, ByteSlot::inline(bytes));
                }
                bytes => self.write_long_key(index, hash, bytes),
            },
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
        let start = unsafe { self.tags.add(self.slots() + WINDOW + offset) };
        // SAFETY: as above; `bytes` is borrowed, so it does not lie in this page.
        unsafe { start.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
        self.write_byte_slot(index, ByteSlot::long(bytes.len(), offset, hash));
        let header = self.header_mut();
        header.heap_used += bytes.len() as u32;
        header.heap_live += bytes.len() as u32;
    }

    #[inline]
    fn set_tag(&mut self, index: usize, tag: u8) {
        debug_assert!(index < self.slots());
        // SAFETY: tags are bytes of the page.
        unsafe { self.tag_ptr(index).write(tag) };
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

    /// Moves entries behind the slot `emptied` back so that none is cut off from its home; the hole that is
    /// left.
    fn close_gap(&mut self, emptied: usize) -> usize {
        let slots = self.slots();
        // From one slot to another, going around.
        let steps = |from: usize, to: usize| if to < from { to + slots - from } else { to - from };
        let (mut hole, mut next) = (emptied, emptied);
        loop {
            next = if next + 1 == slots { 0 } else { next + 1 };
            if next == emptied || self.tag(next) == 0 {
                return hole;
            }
            if steps(self.home(self.hash_at(next)), next) >= steps(hole, next) {
                let (from, to, tag) = (self.slot(next), self.slot(hole), self.tag(next));
                // SAFETY: two different slots of `STRIDE` bytes; entries are plain.
                unsafe { to.copy_from_nonoverlapping(from, SlotLayout::<K, V>::STRIDE) };
                self.set_tag(hole, tag);
                hole = next;
            }
        }
    }

    /// Copies the entry in live slot `index` of `from`; there must be room and no such key.
    pub fn copy_entry(&mut self, from: Page<'_, K, V>, index: usize, hash: u64) {
        let to = self.vacancy(hash);
        assert!(to < self.slots(), "a page of {} slots for more entries", self.slots());
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

/// Bytes of the heap that a key takes.
pub(super) fn heap_bytes_of<K: Key>(key: &K) -> usize {
    let bytes = K::BYTES.map_or(0, |byte_key| (byte_key.bytes)(key).len());
    if bytes > INLINE_BYTES { bytes } else { 0 }
}

#[inline]
fn tag_of(hash: u64) -> u8 {
    (hash >> 32) as u8 | 0x80
}

/// The high bits of those tags of a window that equal `tag`. There may be a false hit behind a true
/// one, on a tag that differs in its last bit only, so never on an empty slot.
#[inline]
fn hits_in(window: u64, tag: u8) -> u64 {
    let difference = window ^ (ONES * u64::from(tag));
    difference.wrapping_sub(ONES) & !difference & HIGHS
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
