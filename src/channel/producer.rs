//! The writing end of a ring.
//!
//! Owns the tail. Records are written into their slots in place and become visible together, by one
//! store per batch; item by item would send the line with the tail to and fro for each record.
//!
//! Invariants
//! - `published <= tail <= limit <= head + capacity`; slots `tail..limit` are ours to write.
//! - What `push` touches is in this one line, not behind the `Arc`: an outbox pushes to another
//!   producer with every record.

#![expect(unsafe_code, reason = "records are written into ring slots in place")]

use std::ptr::NonNull;

use super::shared::{CONTROLS_MAX, Mark, Shared};
use super::sync::{Arc, Ordering};
use crate::record::Control;

/// The writing end of a [`channel`](super::channel). Dropping it publishes what was pushed and
/// closes the ring.
#[repr(align(64))]
pub struct Producer<T> {
    /// Slot 0.
    slots: NonNull<T>,
    /// Capacity - 1.
    mask: usize,
    /// Position of the next record.
    tail: usize,
    /// Position that `tail` may reach: the last seen head + capacity.
    limit: usize,
    /// The tail the consumer can see.
    published: usize,
    /// Number of marks ever put.
    marks_tail: usize,
    /// Number of marks delivered, as last seen.
    marks_head: usize,
    shared: Arc<Shared<T>>,
}

impl<T> Producer<T> {
    pub(super) fn new(shared: Arc<Shared<T>>) -> Self {
        let capacity = shared.slots.capacity();
        Self {
            slots: shared.slots.base(),
            mask: capacity - 1,
            tail: 0,
            limit: capacity,
            published: 0,
            marks_tail: 0,
            marks_head: 0,
            shared,
        }
    }

    /// Number of free slots: at least `wanted` if that many are free now. Looks at the consumer's
    /// line only if what was free at the last look is not enough.
    #[inline]
    pub fn room(&mut self, wanted: usize) -> usize {
        if self.limit.wrapping_sub(self.tail) < wanted {
            // Acquire, pairs with the Release store in `Consumer::release`: the consumer's reads
            // from slots below this head happen before our writes into them.
            let head = self.shared.consumer.head.load(Ordering::Acquire);
            self.limit = head.wrapping_add(self.mask + 1);
        }
        self.limit.wrapping_sub(self.tail)
    }

    /// Writes `record` into the next free slot. The consumer sees it after [`publish`](Self::publish).
    ///
    /// # Panics
    /// Without [`room`](Self::room).
    #[inline]
    pub fn push(&mut self, record: T) {
        assert!(self.tail != self.limit, "push without room");
        let index = self.tail & self.mask;
        let mut access = self.shared.slots.access(index, 1);
        // SAFETY: index <= mask, inside the allocation, which `shared` keeps alive.
        let slot = unsafe { self.slots.add(index) };
        // SAFETY: tail is below limit, so the slot is ours and holds no record.
        unsafe { slot.write(record) };
        access.end();
        self.tail = self.tail.wrapping_add(1);
    }

    /// Makes everything pushed so far visible. Returns whether anything new was published.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.published == self.tail {
            return false;
        }
        // Release, pairs with the Acquire load in `Consumer::look`: the records are written before
        // they are seen, and so is every mark before them.
        self.shared.producer.tail.store(self.tail, Ordering::Release);
        self.published = self.tail;
        true
    }

    /// Puts `control` behind everything pushed so far, and publishes all of it. Needs no slot.
    ///
    /// # Errors
    /// Gives `control` back if [`CONTROLS_MAX`] controls are still on their way.
    pub fn control(&mut self, control: Control) -> Result<(), Control> {
        self.publish();
        if self.marks_tail.wrapping_sub(self.marks_head) == CONTROLS_MAX {
            // Acquire, pairs with the Release store in `Consumer::poll`: the consumer has read the
            // mark before we write over it.
            self.marks_head = self.shared.consumer.marks_head.load(Ordering::Acquire);
            if self.marks_tail.wrapping_sub(self.marks_head) == CONTROLS_MAX {
                return Err(control);
            }
        }
        let mark = Mark { position: self.tail, control };
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
        self.mask + 1
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
