//! What travels between tasks: records, batches of them, and the control marks between them.
//!
//! Owns the bound every record meets ([`Record`]), a borrowed run of owned records ([`Batch`]), where user
//! code puts those it makes ([`Collector`]), and the in-band marks ([`Control`]). Knows nothing of channels.
//!
//! Invariants
//! - A [`Batch`] owns the records it still holds: each is taken out exactly once, or stays where
//!   it was (in the ring, in the buffer) for its next batch. A panic in the middle of a batch
//!   loses at most the record that was taken out.

#![expect(unsafe_code, reason = "a batch moves records out of ring slots and buffers in place")]

mod collector;

use std::marker::PhantomData;
use std::ptr::NonNull;

use rkyv::Archive;
use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;

pub use self::collector::Collector;

use crate::id::SnapshotId;

/// The errors of rkyv with their reasons: its default error drops them in release builds.
mod rancor {
    pub use rkyv::rancor::BoxedError as Error;
}

/// Data that can be written as rkyv bytes, checked, and read back.
///
/// Every type with the three rkyv derives (`Archive, Serialize, Deserialize`) has it; integers,
/// floats, strings, vectors, options and tuples of such types have it too. A vector of any `Data` is
/// `Data`, also in generic code.
pub trait Data:
    Archive<
        Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>
                      + rkyv::Deserialize<Self, HighDeserializer<rancor::Error>>,
    > + for<'a> rkyv::Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>
    + Clone
    + Send
    + 'static
{
    /// The archived bytes of this value.
    ///
    /// # Errors
    /// What the serialiser says, for example of a value nested too deep.
    fn to_archive(&self) -> Result<AlignedVec, rancor::Error> {
        rkyv::to_bytes(self)
    }

    /// The value in `bytes`, structurally checked first. Integrity is the frame's business: rkyv's
    /// check accepts most bit flips in numbers.
    ///
    /// # Errors
    /// Bytes that are not an archive of this type.
    fn from_archive(bytes: &[u8]) -> Result<Self, rancor::Error>
    where
        Self: Sized,
    {
        // An archive is read in place, so it must lie at its alignment; frames do not promise that.
        let mut aligned = AlignedVec::<16>::with_capacity(bytes.len());
        aligned.extend_from_slice(bytes);
        rkyv::from_bytes(&aligned)
    }
}

impl<T> Data for T where
    T: Archive<
            Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>
                          + rkyv::Deserialize<T, HighDeserializer<rancor::Error>>,
        > + for<'a> rkyv::Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>
        + Clone
        + Send
        + 'static
{
}

/// One data unit on a channel. The same bound as [`Data`]: a record may have to be spilled to
/// disk or logged inside a snapshot.
pub trait Record: Data {}

impl<T: Data> Record for T {}

/// A mark between two records of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// What lies before belongs to this snapshot; what lies behind does not.
    Barrier(SnapshotId),
    /// No record follows. Barriers still may: see [`crate::task`].
    End,
}

/// A run of records that lies contiguous in a ring or a buffer, to be taken out by value.
///
/// Whoever lends the batch asks [`Batch::taken`] afterwards and releases that many slots. So a batch
/// must come back as it was lent, and cannot be exchanged for another:
///
/// ```compile_fail
/// # use tidegate::record::{Batch, Buffer};
/// let mut buffer = Buffer::<String>::with_capacity(1);
/// buffer.lend(|batch| std::mem::replace(batch, Batch::empty()).drain(1).for_each(drop));
/// ```
pub struct Batch<'a, T> {
    slots: NonNull<T>,
    len: usize,
    taken: usize,
    /// Invariant in the lifetime: a batch cannot be swapped for one of another lender.
    lender: PhantomData<fn(&'a T) -> &'a T>,
    records: PhantomData<&'a mut T>,
}

impl<'a, T> Batch<'a, T> {
    /// Lends `len` initialised records that start at `slots`.
    ///
    /// # Safety
    /// `slots..slots + len` must be initialised records that nobody else touches for `'a`, and the
    /// lender must treat the first [`taken`](Self::taken) of them as moved out afterwards.
    #[must_use]
    pub unsafe fn from_raw(slots: NonNull<T>, len: usize) -> Self {
        Self { slots, len, taken: 0, lender: PhantomData, records: PhantomData }
    }

    /// How many records are left in it.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len - self.taken
    }

    /// Whether no record is left in it.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.taken == self.len
    }

    /// How many records were taken out of it.
    #[inline]
    #[must_use]
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// The records left in it, to look at.
    #[inline]
    #[must_use]
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: taken <= len, so the start stays inside the lent run or one past it.
        let start = unsafe { self.slots.add(self.taken) };
        // SAFETY: the records from `taken` on are initialised and lent to this batch.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), self.len()) }
    }

    /// Takes out the first `count` records (or all that are left), by value. A record the iterator
    /// is dropped before reaching stays in the batch.
    #[inline]
    pub fn drain(&mut self, count: usize) -> Drain<'_, T> {
        let count = count.min(self.len());
        // SAFETY: taken <= len, so the start stays inside the lent run or one past it.
        let next = unsafe { self.slots.add(self.taken) };
        // All of them count as taken until the drain gives back what it has left: a drain that is
        // forgotten leaks records rather than leaving them to be taken twice.
        self.taken += count;
        Drain { next, left: count, taken: &mut self.taken, lender: PhantomData }
    }
}

impl<T> Batch<'static, T> {
    /// A batch without records: what resumes an operator that still owes output.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            slots: NonNull::dangling(),
            len: 0,
            taken: 0,
            lender: PhantomData,
            records: PhantomData,
        }
    }
}

// SAFETY: a batch is a mutable borrow of records, so it may go where the records may.
unsafe impl<T: Send> Send for Batch<'_, T> {}

/// Iterator of [`Batch::drain`].
pub struct Drain<'a, T> {
    next: NonNull<T>,
    left: usize,
    taken: &'a mut usize,
    lender: PhantomData<&'a mut T>,
}

impl<T> Drain<'_, T> {
    /// The records still to come.
    #[inline]
    #[must_use]
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: `left` initialised records of the batch start at `next`.
        unsafe { std::slice::from_raw_parts(self.next.as_ptr(), self.left) }
    }
}

impl<T> Iterator for Drain<'_, T> {
    type Item = T;

    #[inline]
    fn next(&mut self) -> Option<T> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        // SAFETY: `left` was above 0, so `next` points at an initialised record of the batch.
        let record = unsafe { self.next.read() };
        // SAFETY: at most one past the lent run.
        self.next = unsafe { self.next.add(1) };
        Some(record)
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<T> ExactSizeIterator for Drain<'_, T> {}

impl<T> Drop for Drain<'_, T> {
    #[inline]
    fn drop(&mut self) {
        *self.taken -= self.left;
    }
}

/// Appends `records` with one look at the capacity for all of them (`Vec::extend` looks before
/// each, because it may not trust an iterator's length; this does not trust it either, but asks once and
/// takes no more than that). A speed measure: `perf/0001-throughput.md`.
#[inline]
pub fn append<T>(out: &mut Vec<T>, records: impl ExactSizeIterator<Item = T>) {
    /// Notes what was written, also when `records` panics.
    struct Written<'a, T> {
        out: &'a mut Vec<T>,
        len: usize,
    }
    impl<T> Drop for Written<'_, T> {
        #[inline]
        fn drop(&mut self) {
            // SAFETY: the slots before `len` are written and within the capacity.
            unsafe { self.out.set_len(self.len) };
        }
    }
    let room = records.len(); // asked for once: it is safe code that says so, and may say anything
    out.reserve(room);
    let len = out.len();
    let mut slot = out.as_mut_ptr().wrapping_add(len);
    let mut written = Written { len, out };
    for record in records.take(room) {
        // SAFETY: at most `room` records are written, and room for them was reserved.
        unsafe { slot.write(record) };
        slot = slot.wrapping_add(1);
        written.len += 1;
    }
}

/// Records in memory between who made or read them and who takes them, in order.
pub struct Buffer<T> {
    records: Vec<T>,
    head: usize,
}

impl<T> Buffer<T> {
    /// An empty buffer with room for `capacity` records.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self { records: Vec::with_capacity(capacity), head: 0 }
    }

    /// Whether its successor has taken all.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// How many records are in it.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        // An empty buffer's head is 0; otherwise the length counts the records taken too.
        self.records.len() - self.head
    }

    /// The records in it, to look at.
    #[must_use]
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: head <= the vector's length, inside the allocation.
        let first = unsafe { self.records.as_ptr().add(self.head) };
        // SAFETY: the records from the head on are initialised and not lent, as `self` is borrowed.
        unsafe { std::slice::from_raw_parts(first, self.len()) }
    }

    /// Appends behind the records that are in it. The slots of taken ones are used again only when
    /// it was empty in between: who appends without end bounds it himself.
    #[inline]
    pub fn append(&mut self, records: impl ExactSizeIterator<Item = T>) {
        append(&mut self.records, records);
    }

    /// The records in it as a vector; without a copy if none was taken or none is left.
    #[must_use]
    pub fn into_vec(mut self) -> Vec<T> {
        if self.head == 0 {
            return std::mem::take(&mut self.records);
        }
        let mut records = Vec::with_capacity(self.len());
        self.lend(|batch| append(&mut records, batch.drain(usize::MAX)));
        records
    }

    /// The vector to append to. Only an empty buffer is filled, so order is kept.
    #[inline]
    pub fn fill(&mut self) -> &mut Vec<T> {
        debug_assert!(self.is_empty(), "{} records still to be taken", self.records.len());
        &mut self.records
    }

    /// Lends the records to `take` and keeps those that it does not take out.
    #[inline]
    pub fn lend<R>(&mut self, take: impl FnOnce(&mut Batch<'_, T>) -> R) -> R {
        self.lend_at_most(usize::MAX, take)
    }

    /// As [`lend`](Self::lend), with no more than the first `max` records.
    #[inline]
    pub fn lend_at_most<R>(&mut self, max: usize, take: impl FnOnce(&mut Batch<'_, T>) -> R) -> R {
        /// Puts the length back when `take` returns or panics.
        struct Lent<'a, T> {
            buffer: &'a mut Buffer<T>,
            end: usize,
            batch: Batch<'a, T>,
        }
        impl<T> Drop for Lent<'_, T> {
            fn drop(&mut self) {
                let head = self.buffer.head + self.batch.taken();
                if head == self.end {
                    self.buffer.head = 0;
                } else {
                    self.buffer.head = head;
                    // SAFETY: 0..end was initialised before the loan; 0..head was moved out and is
                    // skipped by every later loan and by Drop.
                    unsafe { self.buffer.records.set_len(self.end) };
                }
            }
        }
        let end = self.records.len();
        // SAFETY: 0 is within the capacity; the records are handed to the batch below.
        unsafe { self.records.set_len(0) };
        let start =
            NonNull::new(self.records.as_mut_ptr()).expect("a vector's pointer is not null");
        // SAFETY: head <= end, inside the allocation.
        let slots = unsafe { start.add(self.head) };
        let count = max.min(end - self.head);
        // SAFETY: head..end is initialised and, with the length at 0, out of the vector's hands.
        let batch = unsafe { Batch::from_raw(slots, count) };
        let mut lent = Lent { buffer: self, end, batch };
        take(&mut lent.batch)
    }
}

impl<T> From<Vec<T>> for Buffer<T> {
    fn from(records: Vec<T>) -> Self {
        Self { records, head: 0 }
    }
}

impl<T> Drop for Buffer<T> {
    /// If a record panics, those behind it leak: dropping them while it unwinds could panic again,
    /// which would end the process.
    fn drop(&mut self) {
        let left = self.head..self.records.len();
        let start = self.records.as_mut_ptr();
        // SAFETY: 0 is within the capacity; the vector, dropped next, must not drop records again
        // that were moved out or that panicked.
        unsafe { self.records.set_len(0) };
        for index in left {
            // SAFETY: index is below the length the vector had.
            let slot = unsafe { start.add(index) };
            // SAFETY: head..end were initialised and not moved out; each is dropped once.
            unsafe { slot.drop_in_place() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    #[test]
    fn an_iterator_that_says_something_else_each_time_writes_into_no_other_memory() {
        /// Says that it has none, and then that it has thousands.
        struct Liar(std::cell::Cell<usize>, u64);
        impl Iterator for Liar {
            type Item = u64;
            fn next(&mut self) -> Option<u64> {
                self.1 += 1;
                (self.1 < 5_000).then_some(self.1)
            }
            fn size_hint(&self) -> (usize, Option<usize>) {
                let said = self.0.replace(10_000);
                (said, Some(said))
            }
        }
        impl ExactSizeIterator for Liar {}
        for first in [0_usize, 3] {
            let mut out = vec![7];
            append(&mut out, Liar(first.into(), 0));
            assert_eq!(out[0], 7);
            assert!(out[1..].iter().copied().eq(1..=first as u64), "{out:?}");
        }
    }

    #[test]
    fn what_is_not_taken_stays_for_the_next_loan() {
        let mut buffer = Buffer::with_capacity(4);
        buffer.fill().extend(["a", "b", "c"].map(String::from));
        let first: Vec<String> = buffer.lend(|batch| batch.drain(2).collect());
        assert_eq!(first, ["a", "b"]);
        assert!(!buffer.is_empty());
        let rest: Vec<String> = buffer.lend(|batch| batch.drain(9).collect());
        assert_eq!(rest, ["c"]);
        assert!(buffer.is_empty());
        buffer.fill().push("d".into());
        assert_eq!(buffer.lend(|batch| batch.as_slice().to_vec()), ["d"]);
    }

    /// A record panicked while its buffer was dropped. The vector inside dropped all records a
    /// second time, those taken out long before included.
    #[test]
    fn a_record_that_panics_in_a_dropped_buffer_is_not_dropped_again_nor_is_one_taken_before() {
        struct Touchy(u64, #[expect(dead_code, reason = "held, and counted from outside")] Rc<()>);
        impl Drop for Touchy {
            fn drop(&mut self) {
                assert_ne!(self.0, 1, "as asked");
            }
        }
        let probe = Rc::new(());
        let mut buffer = Buffer::with_capacity(4);
        buffer.fill().extend((0..4).map(|i| Touchy(i, probe.clone())));
        buffer.lend(|batch| batch.drain(1).for_each(drop));
        assert_eq!(Rc::strong_count(&probe), 4);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(buffer)));
        assert!(caught.is_err());
        assert_eq!(Rc::strong_count(&probe), 3, "the two behind it are leaked");
    }

    #[test]
    fn a_partly_taken_buffer_is_looked_at_appended_to_and_turned_into_a_vector() {
        let name = |i: u32| format!("record {i}");
        let mut buffer = Buffer::from(Vec::from_iter((0..3).map(name)));
        let taken: Vec<String> = buffer.lend_at_most(2, |batch| batch.drain(9).collect());
        assert_eq!(taken, [name(0), name(1)]);
        buffer.append((3..9).map(name));
        assert_eq!(buffer.len(), 7);
        assert_eq!(buffer.as_slice(), Vec::from_iter((2..9).map(name)));
        assert_eq!(buffer.lend_at_most(1, |batch| batch.len()), 1);
        assert_eq!(buffer.into_vec(), Vec::from_iter((2..9).map(name)));
        assert_eq!(Buffer::<String>::with_capacity(1).into_vec(), [""; 0]);
    }

    #[test]
    fn a_panic_in_the_middle_drops_every_record_once() {
        let probe = Rc::new(());
        let mut buffer = Buffer::with_capacity(4);
        buffer.fill().extend((0..4).map(|i| (i, probe.clone())));
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            buffer.lend(|batch| batch.drain(4).for_each(|(i, _)| assert!(i < 1, "at {i}")));
        }));
        assert!(caught.is_err());
        assert_eq!(Rc::strong_count(&probe), 3, "two records are left");
        drop(buffer);
        assert_eq!(Rc::strong_count(&probe), 1);
    }
}
