//! The memory of a ring: a power of two of slots, raw.
//!
//! Owns the allocation, not the records in it: who may touch which slot, and which hold a record,
//! is the business of the positions in `shared`.
//!
//! Invariants
//! - The memory starts on a cache line of its own, so that no neighbour shares one with a slot.
//! - Two rings never have the same base, not even for records of size 0.

#![expect(unsafe_code, reason = "raw slot memory")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use super::sync::{Access, Accesses};

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
    pub(super) fn new(capacity: usize) -> Self {
        assert!(capacity.is_power_of_two(), "{capacity} slots");
        let layout = Layout::array::<T>(capacity)
            .and_then(|records| Layout::from_size_align(records.size().max(1), LINE_BYTES))
            .and_then(|bytes| bytes.align_to(align_of::<T>()))
            .unwrap_or_else(|_| panic!("{capacity} slots of {} bytes", size_of::<T>()))
            .pad_to_align();
        // SAFETY: the size is at least 1.
        let memory = unsafe { alloc_zeroed(layout) };
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

    /// Tells the model check that `count` slots from slot `first` on are used from now on.
    #[inline]
    pub(super) fn access(&self, first: usize, count: usize) -> Access {
        self.accesses.begin(first, count)
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
