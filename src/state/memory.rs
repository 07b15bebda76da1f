//! The memory of a table's pages: a log of pages that is cleaned, so that little of it lies idle.
//!
//! *Rooms* are handed out one behind the other in *regions* of fixed size. A page that grew or split gives its
//! room back, which leaves a hole. When holes come to more than a part of what is used, a region with many
//! of them is left: the pages that are still in it are moved into new rooms, a few with each page that
//! grows and each step that writes, and the region is empty again. This is log-structured memory (Rumble,
//! Kejriwal, Ousterhout, "Log-structured Memory for DRAM-based Storage", FAST 2014); a page may be moved
//! because only its directory refers to it.
//!
//! Why not the allocator: pages of a table that is filled evenly all grow by an eighth at the same time,
//! and the holes that they leave take none of those that have grown. With 1,154 MiB of pages glibc's kept
//! 1,398 MiB (`perf/0004-snapshots.md`). And a restart asks for large pages for all of it at once.
//!
//! Invariants
//! - Rooms that were handed out do not overlap, begin at multiples of [`PAGE_ALIGN`], and are initialised
//!   memory, though not zeros.
//! - A region is handed out again only when every room in it was given back.
//! - Finding a region to leave and leaving it takes bounded steps, however large the table is.

#![expect(
    unsafe_code,
    reason = "rooms are handed out by address, and their owner is moved between threads"
)]

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::{Advice, MmapMut};

use crate::disk::mapped;

/// Alignment of a page in memory, and the most a key or value may ask for.
pub(super) const PAGE_ALIGN: usize = 64;

/// Rooms of some sixty pages: so much is left at once. Small in tests, so that small tables have holes.
const REGION_BYTES: usize = if cfg!(test) { 32 << 10 } else { 256 << 10 };

/// Larger rooms have memory of their own.
const ROOM_BYTES_MAX: usize = REGION_BYTES / 8;

/// The most regions that the system is asked for at once.
const REGIONS_MAX: usize = 16;

/// How small a part of what is used holes may be, and a region besides.
#[derive(Clone, Copy)]
pub(super) enum Holes {
    /// While the table grows: to have fewer costs more moves for each page that grows (with a twelfth
    /// filling a table took a third longer).
    Growing = 6,
    /// While it is written anyway.
    Written = 24,
}

/// Regions that are looked at to find one to leave.
const CANDIDATES: usize = 64;

/// Memory for one page, of its holder alone. One that is dropped without being given back stays taken.
pub(super) struct Room {
    memory: NonNull<u8>,
    bytes: usize,
    /// What it is part of.
    alive: Arc<MmapMut>,
}

impl Room {
    /// A room of no table.
    pub fn alone(bytes: usize) -> Self {
        let mut mapping = mapped(bytes);
        let memory = NonNull::new(mapping.as_mut_ptr()).expect("memory is not at 0");
        Self { memory, bytes, alive: Arc::new(mapping) }
    }

    /// Where it begins.
    pub fn memory(&self) -> NonNull<u8> {
        self.memory
    }

    /// The bytes, of whatever was there before.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: initialised memory of that size, which is alive and of this room alone.
        unsafe { NonNull::slice_from_raw_parts(self.memory, self.bytes).as_ref() }
    }

    /// The bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, borrowed mutably.
        unsafe { NonNull::slice_from_raw_parts(self.memory, self.bytes).as_mut() }
    }
}

// SAFETY: memory that nobody else refers to.
unsafe impl Send for Room {}

struct Region {
    begin: NonNull<u8>,
    alive: Arc<MmapMut>,
    used: usize,
    live: usize,
    is_touched: bool,
    /// Sizes of the rooms in it, in [`PAGE_ALIGN`].
    rooms: Vec<u16>,
}

/// A region that is being left, and the next room in it.
struct Leaving {
    region: usize,
    room: usize,
    at: usize,
}

/// See the module's documentation.
#[derive(Default)]
pub(super) struct PageMemory {
    regions: Vec<Region>,
    /// Runs of regions that lie one behind the other: where one begins, and the number of its first.
    runs: BTreeMap<NonNull<u8>, usize>,
    /// Regions without a room, the next one last.
    empty: Vec<usize>,
    /// The region that rooms come from.
    open: Option<usize>,
    leaving: Option<Leaving>,
    /// The next region to look at.
    hand: usize,
    /// Bytes of rooms in regions.
    live: usize,
    /// Bytes of such and of the holes between them.
    used: usize,
    /// Regions that a room was ever in: the system gave memory for them.
    touched: usize,
    /// Rooms with memory of their own.
    large: BTreeMap<NonNull<u8>, Room>,
}

// SAFETY: memory that nobody else refers to.
unsafe impl Send for PageMemory {}

impl PageMemory {
    /// So many bytes of rooms will be asked for soon, all in all: asks the system for large pages.
    pub fn expect(&mut self, bytes: usize) {
        if bytes >= 2 << 20 {
            let mapping = self.map((bytes + bytes / 32).div_ceil(REGION_BYTES));
            // A system that has no large pages, or is told not to give any, gives small ones.
            _ = mapping.advise(Advice::HugePage);
        }
    }

    /// New regions.
    fn map(&mut self, count: usize) -> Arc<MmapMut> {
        let mut mapping = mapped(count * REGION_BYTES);
        let memory = NonNull::new(mapping.as_mut_ptr()).expect("memory is not at 0");
        let alive = Arc::new(mapping);
        let first = self.regions.len();
        self.runs.insert(memory, first);
        self.regions.extend((0..count).map(|number| Region {
            // SAFETY: the mapping is as long as so many regions.
            begin: unsafe { memory.add(number * REGION_BYTES) },
            alive: alive.clone(),
            used: 0,
            live: 0,
            is_touched: false,
            rooms: Vec::new(),
        }));
        self.empty.extend((first..first + count).rev());
        alive
    }

    /// A room of `bytes` bytes.
    pub fn take(&mut self, bytes: usize) -> Room {
        let size = bytes.next_multiple_of(PAGE_ALIGN);
        if size > ROOM_BYTES_MAX {
            let room = Room::alone(bytes);
            let again = Room { alive: room.alive.clone(), ..room };
            self.large.insert(room.memory, again);
            return room;
        }
        let number = match self.open {
            Some(open) if self.regions[open].used + size <= REGION_BYTES => open,
            _ => self.next_region(),
        };
        let region = &mut self.regions[number];
        // SAFETY: the region has room for `size` bytes more.
        let memory = unsafe { region.begin.add(region.used) };
        region.rooms.push((size / PAGE_ALIGN) as u16);
        region.used += size;
        region.live += size;
        self.used += size;
        self.live += size;
        Room { memory, bytes, alive: region.alive.clone() }
    }

    fn next_region(&mut self) -> usize {
        if self.empty.is_empty() {
            self.map(self.regions.len().clamp(1, REGIONS_MAX));
        }
        let next = self.empty.pop().expect("regions were just made");
        self.touched += usize::from(!std::mem::replace(&mut self.regions[next].is_touched, true));
        let last = self.open.replace(next);
        last.into_iter().for_each(|last| self.empty_if_left(last));
        next
    }

    /// Takes the room back that begins at `memory`.
    ///
    /// # Safety
    /// It is one of `bytes` bytes that was taken from here, and nobody uses it from now on.
    pub unsafe fn give_back(&mut self, memory: NonNull<u8>, bytes: usize) {
        let size = bytes.next_multiple_of(PAGE_ALIGN);
        if size > ROOM_BYTES_MAX {
            self.large.remove(&memory).expect("a room of this memory");
            return;
        }
        let number = self.region_of(memory);
        self.regions[number].live -= size;
        self.live -= size;
        self.empty_if_left(number);
    }

    fn region_of(&self, memory: NonNull<u8>) -> usize {
        let (begin, first) = self.runs.range(..=memory).next_back().expect("memory of a region");
        first + (memory.addr().get() - begin.addr().get()) / REGION_BYTES
    }

    /// If no room of the region is left it may be handed out again, unless it is open or looked through.
    fn empty_if_left(&mut self, number: usize) {
        let region = &mut self.regions[number];
        let is_left = self.leaving.as_ref().is_some_and(|leaving| leaving.region == number);
        if region.live > 0 || region.used == 0 || is_left {
            return;
        }
        self.used -= std::mem::take(&mut region.used);
        region.rooms.clear();
        if self.open != Some(number) {
            self.empty.push(number);
        }
    }

    /// The next room to be looked at, by where it begins and its size: if a page lives in it, that is to be
    /// moved, and the room given back. `None`: there are few holes, or all of a region was looked at.
    pub fn next_to_leave(&mut self, holes: Holes) -> Option<(NonNull<u8>, usize)> {
        if self.leaving.is_none() && self.is_wasteful(holes) {
            let region = self.region_to_leave(holes)?;
            self.leaving = Some(Leaving { region, room: 0, at: 0 });
        }
        let leaving = self.leaving.as_mut()?;
        let region = &self.regions[leaving.region];
        let Some(size) = region.rooms.get(leaving.room) else {
            let Leaving { region, .. } = self.leaving.take().expect("as just seen");
            self.empty_if_left(region);
            return None;
        };
        let size = usize::from(*size) * PAGE_ALIGN;
        // SAFETY: rooms lie one behind the other in their region.
        let memory = unsafe { region.begin.add(leaving.at) };
        leaving.room += 1;
        leaving.at += size;
        Some((memory, size))
    }

    fn is_wasteful(&self, holes: Holes) -> bool {
        self.used - self.live > self.live / holes as usize + REGION_BYTES
    }

    /// Of the next candidates the one with the most holes, if it has as many as there may be.
    fn region_to_leave(&mut self, holes: Holes) -> Option<usize> {
        let (hand, all) = (self.hand, self.regions.len());
        let count = all.min(CANDIDATES);
        self.hand = (hand + count) % all;
        let holey = |number: &usize| {
            let Region { used, live, .. } = &self.regions[*number];
            Some(*number) != self.open && used - live > used / holes as usize
        };
        let candidates = (hand..hand + count).map(|at| at % all).filter(holey);
        candidates.min_by_key(|number| self.regions[*number].live)
    }

    /// Bytes that were handed out, or were once.
    pub fn bytes(&self) -> usize {
        let large: usize = self.large.values().map(|room| room.bytes).sum();
        self.touched * REGION_BYTES + large
    }
}
