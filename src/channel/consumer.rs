//! The reading end of a ring.
//!
//! Owns the head. Hands out what is next in order: a run of records that ends at the next mark, or
//! the mark, so that the loop over a run never asks "is this a barrier".
//!
//! Invariants
//! - `head <= run_end <= tail`; slots `head..tail` are ours to read.
//! - No undelivered mark lies in `head..run_end`, though one may stand at `run_end`.
//! - The cells of marks `marks_head..marks_tail` are ours to read and to write; undelivered marks stand
//!   in them in the order in which they were put.
//! - While records are lent, `head` is already behind them: a loan that is forgotten leaks its
//!   records, it does not hand them out twice.

#![expect(unsafe_code, reason = "records are lent from ring slots in place")]

use std::ptr::NonNull;

use super::lent::Lent;
use super::shared::{Mark, Shared};
use super::sync::{Access, Arc, Ordering};
use crate::record::{Batch, Control};

/// What is next in a channel.
pub enum Polled<'a, T> {
    /// Nothing yet.
    Empty,
    /// Nothing, and the producer is gone: nothing will follow.
    Closed,
    /// Records, at least one.
    Records(Lent<'a, T>),
    /// The mark that all records before it have been taken for. It is not delivered again.
    Control(Control),
}

/// The reading end of a [`channel`](super::channel).
pub struct Consumer<T> {
    /// Slot 0.
    slots: NonNull<T>,
    /// Capacity - 1.
    mask: usize,
    /// Position of the first record that is neither taken nor lent.
    head: usize,
    /// Position that `head` may reach before the next look at marks and producer.
    run_end: usize,
    /// The published tail as last seen.
    tail: usize,
    /// Number of marks delivered.
    marks_head: usize,
    /// Number of marks put, as last seen; covers every mark below `tail`.
    marks_tail: usize,
    /// Whether the producer was gone at the last look.
    closed: bool,
    shared: Arc<Shared<T>>,
}

impl<T> Consumer<T> {
    pub(super) fn new(shared: Arc<Shared<T>>) -> Self {
        let slots = shared.slots.base();
        let mask = shared.slots.capacity() - 1;
        let (head, run_end, tail, marks_head, marks_tail) = (0, 0, 0, 0, 0);
        let closed = false;
        Self { slots, mask, head, run_end, tail, marks_head, marks_tail, closed, shared }
    }

    /// What is next in order: up to `max` records that lie contiguous in memory, or the mark that
    /// stands before the next record.
    #[inline]
    pub fn poll(&mut self, max: usize) -> Polled<'_, T> {
        debug_assert!(max > 0, "a poll for no records");
        if self.head == self.run_end {
            if let Some(control) = self.next_control() {
                return Polled::Control(control);
            }
            if self.head == self.run_end {
                return if self.closed { Polled::Closed } else { Polled::Empty };
            }
        }
        let first = self.head & self.mask;
        let run = self.run_end.wrapping_sub(self.head);
        self.lend(first, run.min(self.mask + 1 - first).min(max))
    }

    /// Takes the mark `wanted` off, if it is there, before the records in front of it are taken: these
    /// are returned, oldest first, in two runs where they lie around the end of the slots. They stay,
    /// as do other marks that were put before it.
    pub fn overtake(&mut self, wanted: Control) -> Option<[&[T]; 2]> {
        let found = self.find(wanted).or_else(|| {
            self.look();
            self.find(wanted)
        });
        let (passed, position) = found?;
        self.take_mark_behind(passed);
        let count = position.wrapping_sub(self.head);
        if self.tail.wrapping_sub(self.head) < count {
            self.look(); // the mark was seen with a tail that was read before it
        }
        assert!(count <= self.tail.wrapping_sub(self.head), "a mark comes behind its records");
        let first = self.head & self.mask;
        let behind = count.min(self.mask + 1 - first);
        let mut accesses = [first..first + behind, 0..count - behind]
            .map(|indices| self.shared.slots.access(|| indices));
        // SAFETY: first <= mask, inside the allocation.
        let start = unsafe { self.slots.add(first) };
        // SAFETY: the slots of head..tail are initialised, seen by Acquire, and ours until the head
        // moves, which the borrow of `self` forbids; `behind` of them lie contiguous from `first`.
        let older = unsafe { std::slice::from_raw_parts(start.as_ptr(), behind) };
        // SAFETY: as above; the rest lie from slot 0 on, below `first`.
        let younger = unsafe { std::slice::from_raw_parts(self.slots.as_ptr(), count - behind) };
        accesses.iter_mut().for_each(Access::end);
        Some([older, younger])
    }

    /// The first undelivered mark of this kind among those seen: how many stand before it, and its
    /// position.
    fn find(&self, wanted: Control) -> Option<(usize, usize)> {
        let seen = self.marks_tail.wrapping_sub(self.marks_head);
        let mut marks = (0..seen).map(|n| (n, self.mark(self.marks_head.wrapping_add(n))));
        marks.find(|(_, mark)| mark.control == wanted).map(|(n, mark)| (n, mark.position))
    }

    /// Number of published records not yet taken.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        // Relaxed: a number to look at; no record is read on the strength of it.
        self.shared.producer.tail.load(Ordering::Relaxed).wrapping_sub(self.head)
    }

    /// Whether neither a record nor a mark is waiting.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        // Relaxed: as in `len`.
        let marks_tail = self.shared.producer.marks_tail.load(Ordering::Relaxed);
        self.len() == 0 && marks_tail == self.marks_head
    }

    /// Number of slots.
    #[inline]
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.mask + 1
    }

    /// The mark at the head, taken off; otherwise extends the run, looking at the producer if what
    /// was seen of it is used up.
    fn next_control(&mut self) -> Option<Control> {
        debug_assert_eq!(self.head, self.run_end);
        if self.head == self.tail && self.marks_head == self.marks_tail {
            self.look();
        }
        if self.marks_head == self.marks_tail {
            self.run_end = self.tail;
            return None;
        }
        let mark = self.peek();
        let records_before = mark.position.wrapping_sub(self.head);
        if records_before == 0 {
            self.take_mark();
            return Some(mark.control);
        }
        if self.head == self.tail {
            // The mark was seen with a tail that was read before it: records lie between.
            self.look();
        }
        let visible = self.tail.wrapping_sub(self.head);
        self.run_end = self.head.wrapping_add(visible.min(records_before));
        None
    }

    /// Looks at the producer's line.
    ///
    /// The order of the loads matters. `gone` first: if it is set, the tail and the marks read after
    /// it are the last. `tail` before `marks_tail`: a mark is stored before any tail above it, so
    /// the marks read cover that tail.
    fn look(&mut self) {
        self.release_forgotten();
        let line = &self.shared.producer;
        // Acquire, pairs with the Release store in `Producer::drop`.
        self.closed = line.gone.load(Ordering::Acquire);
        // Acquire, pairs with the Release store in `Producer::publish`: the records below are
        // written.
        self.tail = line.tail.load(Ordering::Acquire);
        // Acquire, pairs with the Release store in `Producer::control`: the marks below are written.
        self.marks_tail = line.marks_tail.load(Ordering::Acquire);
    }

    /// The first undelivered mark. There must be one.
    fn peek(&self) -> Mark {
        debug_assert_ne!(self.marks_head, self.marks_tail);
        self.mark(self.marks_head)
    }

    /// The undelivered mark with this number, which must be in `marks_head..marks_tail`.
    fn mark(&self, number: usize) -> Mark {
        debug_assert!(
            number.wrapping_sub(self.marks_head) < self.marks_tail.wrapping_sub(self.marks_head)
        );
        // SAFETY: it is in marks_head..marks_tail, so it is written and the producer leaves it alone.
        self.shared.mark(number).with(|cell| unsafe { cell.read() })
    }

    /// Takes off the mark that `passed` others stand before: each of those moves up by one cell, which
    /// leaves the first cell to be given back.
    fn take_mark_behind(&mut self, passed: usize) {
        for number in (0..passed).rev().map(|n| self.marks_head.wrapping_add(n)) {
            let (mark, above) = (self.mark(number), self.shared.mark(number.wrapping_add(1)));
            // SAFETY: the cell is in marks_head..marks_tail, so the producer leaves it alone until
            // `take_mark` has given it back.
            above.with_mut(|cell| unsafe { cell.write(mark) });
        }
        self.take_mark();
    }

    /// Marks the first mark as delivered.
    fn take_mark(&mut self) {
        self.marks_head = self.marks_head.wrapping_add(1);
        // Release, pairs with the Acquire load in `Producer::control`: the mark was read before its
        // cell is written again.
        self.shared.consumer.marks_head.store(self.marks_head, Ordering::Release);
    }

    /// Lends `count` records from slot `first` on, which is the slot of `head`.
    #[inline]
    fn lend(&mut self, first: usize, count: usize) -> Polled<'_, T> {
        let access = self.shared.slots.access(|| first..first + count);
        self.head = self.head.wrapping_add(count);
        // SAFETY: first <= mask, inside the allocation.
        let start = unsafe { self.slots.add(first) };
        // SAFETY: the slots lie in head..run_end: initialised, seen by Acquire, contiguous, and not
        // released before the loan ends. `Lent` checks on return that it got this batch back.
        let batch = unsafe { Batch::from_raw(start, count) };
        Polled::Records(Lent::new(self, batch, start, count, access))
    }

    /// Ends a loan: `left` records at its end stay; the slots before them, if `taken` says that there
    /// are any, go to the producer.
    #[inline]
    pub(super) fn end_loan(&mut self, left: usize, taken: bool) {
        self.head = self.head.wrapping_sub(left);
        if taken {
            self.release();
        }
    }

    /// Gives back the slots of loans that never ended; as none is alive now, none ever will.
    fn release_forgotten(&self) {
        // Relaxed: only we write it.
        if self.shared.consumer.head.load(Ordering::Relaxed) != self.head {
            self.release();
        }
    }

    /// Gives the slots before the head to the producer.
    #[inline]
    fn release(&self) {
        // Release, pairs with the Acquire load in `Producer::room`: our reads from these slots
        // happen before the producer's next writes.
        self.shared.consumer.head.store(self.head, Ordering::Release);
    }
}

impl<T> Drop for Consumer<T> {
    fn drop(&mut self) {
        // The last drop must leave forgotten records alone.
        self.release_forgotten();
        // Relaxed: see `Producer::is_closed`.
        self.shared.consumer.gone.store(true, Ordering::Relaxed);
    }
}

// SAFETY: the pointer is to the slots that `shared` owns; records move with T: Send.
unsafe impl<T: Send> Send for Consumer<T> {}
