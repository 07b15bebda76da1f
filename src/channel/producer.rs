//! The writing end of a ring.
//!
//! Owns the tail. Records are written into their slots in place and become visible together, by one
//! store per batch; item by item would send the line with the tail to and fro for each record.
//!
//! Invariants
//! - `published <= tail <= limit <= head + capacity`; slots `tail..limit` are ours to write.
//! - The tail is kept as a pointer: `next` is its slot, or the end of the slots before it wraps, and
//!   `next..end` are free. So a push is a comparison, a write and an addition, touches nothing but
//!   these two fields and the slot, and costs the same whichever of many producers it goes to.

#![expect(unsafe_code, reason = "records are written into ring slots in place")]

use std::ptr::NonNull;

use super::shared::{CONTROLS_MAX, Mark, Shared};
use super::slots::{Slots, prefetch_behind};
use super::sync::{Arc, Ordering};
use crate::record::Control;

/// The writing end of a [`channel`](super::channel). Dropping it publishes what was pushed and
/// closes the ring.
pub struct Producer<T> {
    /// Where the next record goes; equal to `end` if that has to be looked into first.
    next: NonNull<T>,
    /// Behind the last slot of this lap that is free; at most the end of the slots.
    end: NonNull<T>,
    /// Slot 0.
    base: NonNull<T>,
    capacity: usize,
    /// Position of slot 0 in this lap.
    lap: usize,
    /// Position that the tail may reach: the last seen head + capacity.
    limit: usize,
    /// The tail that the consumer can see.
    published: usize,
    /// Number of marks ever put.
    marks_tail: usize,
    /// Number of marks delivered, as last seen.
    marks_head: usize,
    shared: Arc<Shared<T>>,
}

impl<T> Producer<T> {
    pub(super) fn new(shared: Arc<Shared<T>>) -> Self {
        let (base, capacity) = (shared.slots.base(), shared.slots.capacity());
        let (lap, limit, published, marks_tail, marks_head) = (0, capacity, 0, 0, 0);
        let (next, end) = (base, base);
        let mut producer = Self {
            next,
            end,
            base,
            capacity,
            lap,
            limit,
            published,
            marks_tail,
            marks_head,
            shared,
        };
        producer.set_end();
        producer
    }

    /// Number of free slots: at least `wanted` if that many are free now. Looks at the consumer's
    /// line only if what was free at the last look is not enough.
    #[inline]
    pub fn room(&mut self, wanted: usize) -> usize {
        let tail = self.tail();
        if self.limit.wrapping_sub(tail) < wanted {
            // Acquire, pairs with the Release store in `Consumer::release`: the consumer's reads
            // from slots below this head happen before our writes into them.
            let head = self.shared.consumer.head.load(Ordering::Acquire);
            self.limit = head.wrapping_add(self.capacity);
            self.set_end();
        }
        self.limit.wrapping_sub(tail)
    }

    /// Writes `record` into the next free slot. The consumer sees it after
    /// [`publish`](Self::publish). For records that all go to one ring, [`fill`](Self::fill) is
    /// faster.
    ///
    /// # Panics
    /// If [`room`](Self::room) was not asked or is used up.
    #[inline]
    pub fn push(&mut self, record: T) {
        if self.next == self.end {
            self.wrap();
        }
        prefetch_behind(self.next);
        // SAFETY: next is below end, so it is a free slot.
        unsafe { self.write(self.next, record) };
        // SAFETY: next was below end, so one slot on is at most end.
        self.next = unsafe { self.next.byte_add(Slots::<T>::STRIDE) };
    }

    /// Writes `records` into the next free slots until they or the [`room`](Self::room) are used
    /// up. Returns how many it wrote; takes none out of `records` that it does not write.
    ///
    /// Keeps the tail in a register over the whole run, which matters: one store less per record
    /// (`perf/0002-ring.md`).
    #[inline]
    pub fn fill(&mut self, records: impl IntoIterator<Item = T>) -> usize {
        let (before, mut records) = (self.tail(), records.into_iter());
        while self.fill_stretch(&mut records) && self.tail() != self.limit {
            self.wrap();
        }
        self.tail().wrapping_sub(before)
    }

    /// Writes records up to `end`. Returns whether it got there.
    #[inline]
    fn fill_stretch(&mut self, records: &mut impl Iterator<Item = T>) -> bool {
        /// Notes what was written when the stretch is done, or when `records` panics.
        struct Tail<'a, T> {
            producer: &'a mut Producer<T>,
            next: NonNull<T>,
        }
        impl<T> Drop for Tail<'_, T> {
            fn drop(&mut self) {
                self.producer.next = self.next;
            }
        }
        let (next, end) = (self.next, self.end);
        let mut tail = Tail { producer: self, next };
        while tail.next != end {
            let Some(record) = records.next() else { return false };
            // SAFETY: next is below end, so it is a free slot.
            unsafe { tail.producer.write(tail.next, record) };
            // SAFETY: next was below end, so one slot on is at most end.
            tail.next = unsafe { tail.next.byte_add(Slots::<T>::STRIDE) };
        }
        true
    }

    /// Makes everything pushed so far visible. Returns whether anything new was published.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let tail = self.tail();
        if self.published == tail {
            return false;
        }
        // Release, pairs with the Acquire load in `Consumer::look`: the records are written before
        // they are seen, and so is every mark before them.
        self.shared.producer.tail.store(tail, Ordering::Release);
        self.published = tail;
        true
    }

    /// Puts `control` behind everything pushed so far, and publishes all of it. Needs no slot.
    ///
    /// # Errors
    /// Gives `control` back if [`CONTROLS_MAX`] controls are still on their way.
    pub fn control(&mut self, control: Control) -> Result<(), Control> {
        self.publish();
        if self.marks_tail.wrapping_sub(self.marks_head) == CONTROLS_MAX {
            // Acquire, pairs with the Release store in `Consumer::take_mark`: the consumer has done
            // with the cell before we write over it.
            self.marks_head = self.shared.consumer.marks_head.load(Ordering::Acquire);
            if self.marks_tail.wrapping_sub(self.marks_head) == CONTROLS_MAX {
                return Err(control);
            }
        }
        let mark = Mark { position: self.tail(), control };
        // SAFETY: fewer than CONTROLS_MAX marks are on their way, so this cell is ours.
        self.shared.mark(self.marks_tail).with_mut(|cell| unsafe { cell.write(mark) });
        self.marks_tail = self.marks_tail.wrapping_add(1);
        // Release, pairs with the Acquire load in `Consumer::look`: the mark is written before it
        // is seen. Any later `publish` is a later Release store, so whoever sees a record behind
        // this mark sees this store as well.
        self.shared.producer.marks_tail.store(self.marks_tail, Ordering::Release);
        Ok(())
    }

    /// Whether the consumer is gone. What is pushed then is never read.
    #[inline]
    #[must_use]
    pub fn is_closed(&self) -> bool {
        // Relaxed: nothing of the consumer's is read on the strength of it.
        self.shared.consumer.gone.load(Ordering::Relaxed)
    }

    /// Number of slots.
    #[inline]
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Position of the next record.
    #[inline]
    fn tail(&self) -> usize {
        self.lap.wrapping_add(self.index(self.next))
    }

    /// Which slot this is; the capacity for the end of the slots.
    #[inline]
    fn index(&self, slot: NonNull<T>) -> usize {
        (slot.addr().get() - self.base.addr().get()) / Slots::<T>::STRIDE
    }

    /// Moves `end` to the limit, or to the end of the slots if that comes first.
    #[inline]
    fn set_end(&mut self) {
        let count = self.limit.wrapping_sub(self.lap).min(self.capacity);
        // SAFETY: count <= capacity, so this is at most the end of the slots.
        self.end = unsafe { self.base.byte_add(count * Slots::<T>::STRIDE) };
    }

    /// Begins the next lap.
    #[cold]
    fn wrap(&mut self) {
        assert!(self.tail() != self.limit, "push without room");
        // Short of the limit, `end` is the end of the slots.
        debug_assert_eq!(self.index(self.next), self.capacity);
        self.lap = self.lap.wrapping_add(self.capacity);
        self.next = self.base;
        self.set_end();
    }

    /// Writes `record` into `slot`.
    ///
    /// # Safety
    /// `slot` must be a free slot of ours: in `next..end`.
    #[inline]
    unsafe fn write(&self, slot: NonNull<T>, record: T) {
        let mut access = self.shared.slots.access(|| self.index(slot)..self.index(slot) + 1);
        // SAFETY: the caller vouches for it; `shared` keeps the slots alive.
        unsafe { slot.write(record) };
        access.end();
    }
}

impl<T> Drop for Producer<T> {
    fn drop(&mut self) {
        self.publish();
        // Release, pairs with the Acquire load in `Consumer::look`: who sees us gone sees our last
        // tail and our last mark.
        self.shared.producer.gone.store(true, Ordering::Release);
    }
}

// SAFETY: the pointer is to the slots that `shared` owns; records move with T: Send.
unsafe impl<T: Send> Send for Producer<T> {}
