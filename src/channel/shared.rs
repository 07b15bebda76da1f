//! What the two ends of a ring share: slots, marks, and the positions that pass them on.
//!
//! Owns the layout (each line is written by one side only) and the last drop. The protocol is in
//! `producer` and `consumer`, next to each load and store.
//!
//! Invariants
//! - Only the producer writes `ProducerLine`, only the consumer writes `ConsumerLine`.
//! - When the last end goes, slots `head..tail` hold exactly the records nobody took.

#![expect(unsafe_code, reason = "records left in the ring are dropped in place")]

use crossbeam_utils::CachePadded;

use super::slots::Slots;
use super::sync::{AtomicBool, AtomicUsize, Ordering, UnsafeCell};
use crate::record::Control;

/// How many marks may be on their way in one channel. A snapshot puts one mark on each channel, so
/// this also bounds how many snapshots may be in flight over it. A power of two.
pub const CONTROLS_MAX: usize = if cfg!(all(test, tidegate_loom)) { 2 } else { 8 };

/// A control and where it stands.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    /// Position of the first record behind it.
    pub(super) position: usize,
    pub(super) control: Control,
}

/// Positions the producer writes and the consumer reads, together because they are read together.
pub(super) struct ProducerLine {
    /// Position behind the last published record.
    pub(super) tail: AtomicUsize,
    /// Number of marks ever put.
    pub(super) marks_tail: AtomicUsize,
    /// The producer was dropped; nothing changes any more.
    pub(super) gone: AtomicBool,
}

/// Positions the consumer writes and the producer reads.
pub(super) struct ConsumerLine {
    /// Position of the first record not yet taken.
    pub(super) head: AtomicUsize,
    /// Number of marks ever delivered.
    pub(super) marks_head: AtomicUsize,
    /// The consumer was dropped; nothing will be read any more.
    pub(super) gone: AtomicBool,
}

/// The part of a ring that lives as long as either end.
pub(super) struct Shared<T> {
    pub(super) producer: CachePadded<ProducerLine>,
    pub(super) consumer: CachePadded<ConsumerLine>,
    pub(super) marks: CachePadded<[UnsafeCell<Mark>; CONTROLS_MAX]>,
    pub(super) slots: Slots<T>,
}

impl<T> Shared<T> {
    pub(super) fn new(capacity: usize) -> Self {
        let unused = Mark { position: 0, control: Control::End };
        Self {
            producer: CachePadded::new(ProducerLine {
                tail: AtomicUsize::new(0),
                marks_tail: AtomicUsize::new(0),
                gone: AtomicBool::new(false),
            }),
            consumer: CachePadded::new(ConsumerLine {
                head: AtomicUsize::new(0),
                marks_head: AtomicUsize::new(0),
                gone: AtomicBool::new(false),
            }),
            marks: CachePadded::new(std::array::from_fn(|_| UnsafeCell::new(unused))),
            slots: Slots::new(capacity),
        }
    }

    /// The cell of the mark with this number.
    #[inline]
    pub(super) fn mark(&self, number: usize) -> &UnsafeCell<Mark> {
        &self.marks[number % CONTROLS_MAX]
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // Relaxed: dropping the last Arc ordered everything both ends did before this.
        let tail = self.producer.tail.load(Ordering::Relaxed);
        let mut head = self.consumer.head.load(Ordering::Relaxed);
        while head != tail {
            let index = head & (self.slots.capacity() - 1);
            let mut access = self.slots.access(|| index..index + 1);
            // SAFETY: index < capacity, inside the allocation.
            let slot = unsafe { self.slots.base().add(index) };
            // SAFETY: head..tail hold initialised records and both ends are gone.
            unsafe { slot.drop_in_place() };
            access.end();
            head = head.wrapping_add(1);
        }
    }
}

// SAFETY: records go from one thread to another through the slots, which T: Send allows; nothing
// hands out a reference to a record on both sides at once.
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: as above; the slots are owned.
unsafe impl<T: Send> Send for Shared<T> {}
