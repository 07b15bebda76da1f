//! The memory of a ring: a power of two of slots, raw.
//!
//! Owns the allocation, not the records in it: who may touch which slot, and which hold a record,
//! is the business of the positions in `shared`.
//!
//! Invariants
//! - Slot `i` lies `i * STRIDE` bytes behind the base and is aligned for a record.
//! - The slots start on cache lines of their own, and [`AHEAD_BYTES`] behind them are unused, so
//!   that neither a write nor a prefetch ever takes a neighbour's line from another core.
//! - Two rings never have the same base, not even for records of size 0.

#![expect(unsafe_code, reason = "raw slot memory")]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ops::Range;
use std::ptr::NonNull;

use super::sync::{Access, Accesses};

/// How far before a write its line is asked for. The lines ahead were last read by the consumer, so
/// a store there waits for the other core; asked for early, several waits overlap. 512 to 2048
/// bytes measured alike (`perf/0002-ring.md`).
const AHEAD_BYTES: usize = 1024;
/// Two lines, because the hardware fetches them in pairs.
const LINE_BYTES: usize = 128;
/// The smallest page the system maps.
const PAGE_BYTES: usize = 4096;

/// Raw slots for `capacity` records.
pub(super) struct Slots<T> {
    base: NonNull<T>,
    layout: Layout,
    /// A power of two.
    capacity: usize,
    accesses: Accesses,
}

impl<T> Slots<T> {
    /// Bytes from one slot to the next: a record's size, and not 0 for records without one, so that
    /// a pointer into the slots always tells which slot it is at.
    pub(super) const STRIDE: usize =
        if size_of::<T>() == 0 { align_of::<T>() } else { size_of::<T>() };

    pub(super) fn new(capacity: usize) -> Self {
        assert!(capacity.is_power_of_two(), "{capacity} slots");
        let layout = capacity
            .checked_mul(Self::STRIDE)
            .and_then(|slots| slots.checked_add(AHEAD_BYTES))
            .and_then(|bytes| Layout::from_size_align(bytes, LINE_BYTES.max(align_of::<T>())).ok())
            .unwrap_or_else(|| panic!("{capacity} slots of {} bytes", Self::STRIDE));
        // SAFETY: the size is at least AHEAD_BYTES, not 0.
        let memory = unsafe { alloc(layout) };
        let Some(memory) = NonNull::new(memory) else { handle_alloc_error(layout) };
        prefault(memory, layout.size());
        Self { base: memory.cast(), layout, capacity, accesses: Accesses::new(capacity) }
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Slot 0.
    pub(super) fn base(&self) -> NonNull<T> {
        self.base
    }

    /// Tells the model check that these slots are used from now on. Free in a real build, where
    /// `indices` is not called.
    #[inline]
    pub(super) fn access(&self, indices: impl FnOnce() -> Range<usize>) -> Access {
        self.accesses.begin(indices)
    }
}

impl<T> Drop for Slots<T> {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, freed only here.
        unsafe { dealloc(self.base.as_ptr().cast(), self.layout) };
    }
}

/// Touches every page, so that the first lap over the ring does not pay the page faults.
fn prefault(memory: NonNull<u8>, bytes: usize) {
    for offset in (0..bytes).step_by(PAGE_BYTES) {
        // SAFETY: offset < bytes, inside the allocation.
        let byte = unsafe { memory.add(offset) };
        // SAFETY: the byte is allocated and nobody else knows of it yet.
        unsafe { byte.write_volatile(0) };
    }
}

/// Asks for the line that will be written [`AHEAD_BYTES`] after this slot, to be written.
#[inline]
pub(super) fn prefetch_behind<T>(slot: NonNull<T>) {
    // `_mm_prefetch` becomes a prefetch *to read* unless the build targets a newer processor, and a
    // line fetched to read is fetched again to be written.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch changes no memory and no register and does not fault, whatever the address;
    // processors without the instruction treat it as a no-op.
    unsafe {
        std::arch::asm!(
            "prefetchw [{address} + {ahead}]",
            address = in(reg) slot.addr().get(),
            ahead = const AHEAD_BYTES,
            options(nomem, nostack, preserves_flags),
        );
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = slot;
}
