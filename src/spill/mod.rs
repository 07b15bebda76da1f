//! A backlog: records and marks of one input that a task has taken in and not processed yet.
//!
//! A first-in-first-out queue with a budget: for an input that is blocked during an alignment, for a
//! back-edge, whose records must never be refused while the loop has budget, and for an input that
//! is taken in early for an unaligned snapshot. Records are moved in from a ring and kept in memory;
//! past the budget in memory the youngest go to disk, and they come back in order before they are
//! needed. Knows what a mark looks like, not what it means.
//!
//! ```text
//! front                                                                        back
//! [being taken] [read ahead] | [memory] [memory] | [disk] [disk] | [being written] [being filled]
//! ```
//!
//! Invariants
//! - What comes out is what went in: records and marks in their order, each once. Nothing that went
//!   in is dropped; without room nothing goes in, and the caller leaves it where it is.
//! - Records in memory, counted as their number times their [`Weight`], never exceed `memory_bytes`, or
//!   [`SPILL_RECORDS_MIN`] records if that is more, while the weight stays: where it grows, what is too
//!   much goes to disk, if there is one, but for the first chunks. Chunks being written or read count as
//!   in memory. The spill file never exceeds `disk_bytes`.
//! - With a place to spill to, [`SPILL_READ_AHEAD_CHUNKS`] chunks of the budget are kept from
//!   [`Backlog::push`], so that reading back never waits for room.
//! - Only whole chunks are spilled: never the one being filled, never the first
//!   [`SPILL_READ_AHEAD_CHUNKS`], which are what is read back. So no chunk is written twice.
//! - An empty backlog has allocated nothing; one that never spilled has no file and no queue.
//! - It never waits for the disk, with two exceptions, each a few short synchronous calls: the first
//!   spill creates the file (and later ones extend it by [`SPILL_SEGMENT_BYTES`]), and dropping
//!   a backlog waits for what is in flight and removes the file.
//!
//! Fault model
//! - Nothing is synced: a spill file does not outlive its process. What a killed process left is
//!   removed by [`remove_leftovers`], never read.
//! - A budget that is used up is backpressure: [`Backlog::push`] takes nothing. Whatever the disk
//!   refuses (also for lack of space), returns short or returns changed is an error of
//!   [`Backlog::poll`] that names file, byte and operation. Records may be lost with it, so from then
//!   on the backlog only fails; the task starts again from its snapshot.
//! - A frame in the wrong place is found like a damaged one: see `spill/file.rs` for the format.
//!
//! Room on disk is used again as chunks come back; the file itself does not shrink.
//!
//! ```
//! use tidegate::record::{Buffer, Control};
//! use tidegate::spill::{Backlog, Front, Limits};
//!
//! let limits = Limits { memory_bytes: 1 << 20, disk_bytes: 0 };
//! let mut backlog = Backlog::new(limits, None);
//! let mut records = Buffer::from(vec![1_u64, 2, 3]);
//! assert_eq!(records.lend(|batch| backlog.push(batch)), 3);
//! backlog.push_control(Control::End);
//!
//! assert_eq!(backlog.front(), Front::Records);
//! let first: Vec<u64> = backlog.lend(2, |batch| batch.drain(9).collect());
//! assert_eq!(first, [1, 2]);
//! assert_eq!(backlog.lend(9, |batch| batch.drain(9).collect::<Vec<_>>()), [3]);
//! assert_eq!(backlog.front(), Front::Control(Control::End));
//! assert_eq!(backlog.pop_control(), Some(Control::End));
//! assert!(backlog.is_empty());
//! ```
//!
//! [`SPILL_RECORDS_MIN`]: crate::config::SPILL_RECORDS_MIN
//! [`SPILL_SEGMENT_BYTES`]: crate::config::SPILL_SEGMENT_BYTES

mod drive;
mod extents;
mod file;
mod place;

use std::collections::VecDeque;
use std::ops::AddAssign;

pub use self::place::{Place, file_name, remove_leftovers};

use self::file::{Chunk, Done, SpillFile};
use crate::config::{
    SPILL_CHUNK_BYTES, SPILL_READ_AHEAD_CHUNKS, SPILL_RECORDS_MIN, SPILL_WRITES_MAX,
};
use crate::id::SnapshotId;
use crate::record::{Batch, Buffer, Control, Record};
use crate::weight::Weight;

/// The budget of one backlog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of records in memory, with what they own on the heap, about: see [`Weight`].
    pub memory_bytes: usize,
    /// Bytes of the spill file; 0: never to disk.
    pub disk_bytes: u64,
}

/// What is next in a backlog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    /// Nothing is in it.
    Empty,
    /// Records that are on disk: [`Backlog::poll`] brings them.
    Waiting,
    /// Records, at least one: [`Backlog::lend`] lends them.
    Records,
    /// This mark: [`Backlog::pop_control`] takes it.
    Control(Control),
}

/// What a backlog has spilled over its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spilled {
    /// Chunks written.
    pub chunks: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes written for them.
    pub bytes: u64,
    /// Time from handing a chunk to the disk to seeing it written, summed, ns.
    pub write_ns: u64,
    /// Time from asking for a chunk to seeing it read, summed, ns.
    pub read_ns: u64,
}

impl AddAssign for Spilled {
    fn add_assign(&mut self, other: Self) {
        self.chunks += other.chunks;
        self.records += other.records;
        self.bytes += other.bytes;
        self.write_ns += other.write_ns;
        self.read_ns += other.read_ns;
    }
}

/// Records and marks of one input, in order. See the [module](self).
pub struct Backlog<T> {
    items: VecDeque<Item<T>>,
    /// Records that the last item still takes; 0 if it is no chunk being filled.
    open_records: usize,
    /// All records.
    records: usize,
    /// Those of them in memory and at hand.
    held_records: usize,
    /// Those of them being written or read.
    moving_records: usize,
    /// Chunks being written, on disk, or being read.
    away_chunks: usize,
    limits: Limits,
    weight: Weight<T>,
    sizes: Sizes,
    /// An empty vector kept for the next chunk to be filled.
    spare: Vec<T>,
    /// Where to spill; `None`: never.
    place: Option<Place>,
    file: Option<Box<SpillFile>>,
    done: Vec<Done>,
    /// What the disk failed with.
    failed: Option<String>,
}

enum Item<T> {
    Control(Control),
    /// At least one record, except while it is lent.
    Held(Buffer<T>),
    Away(Chunk, Phase),
}

/// Where a chunk that is not at hand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Writing,
    OnDisk,
    Reading,
}

/// The budget in records.
#[derive(Clone, Copy)]
struct Sizes {
    chunk: usize,
    /// In memory, for [`Backlog::push`] to fill.
    push_max: usize,
    /// At hand, before the youngest are spilled.
    held_max: usize,
}

impl Sizes {
    fn new(record_bytes: usize, memory_bytes: usize, spills: bool) -> Self {
        let record_bytes = record_bytes.max(1);
        let total = (memory_bytes / record_bytes).max(SPILL_RECORDS_MIN);
        let chunk = (SPILL_CHUNK_BYTES / record_bytes).min(total / SPILL_RECORDS_MIN).max(1);
        if !spills {
            return Self { chunk, push_max: total, held_max: usize::MAX };
        }
        let push_max = total - SPILL_READ_AHEAD_CHUNKS * chunk;
        let held_max = push_max - SPILL_WRITES_MAX * chunk;
        assert!(held_max > SPILL_READ_AHEAD_CHUNKS * chunk, "{total} records, {chunk} a chunk");
        Self { chunk, push_max, held_max }
    }
}

impl<T: Record> Backlog<T> {
    /// An empty backlog; allocates nothing. Without a place, or with no bytes on disk, it stays in
    /// memory.
    #[must_use]
    pub fn new(limits: Limits, place: Option<Place>) -> Self {
        let place = place.filter(|_| limits.disk_bytes > 0);
        Self {
            items: VecDeque::new(),
            open_records: 0,
            records: 0,
            held_records: 0,
            moving_records: 0,
            away_chunks: 0,
            limits,
            sizes: Sizes::new(size_of::<T>(), limits.memory_bytes, place.is_some()),
            weight: Weight::default(),
            spare: Vec::new(),
            place,
            file: None,
            done: Vec::new(),
            failed: None,
        }
    }

    /// Whether neither a record nor a mark is in it. One load.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Records in it, wherever they are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records
    }

    /// Bytes of the records in memory, as the budget counts them.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        (self.held_records + self.moving_records) * self.weight.record_bytes()
    }

    /// Bytes of one record, about.
    #[inline]
    #[must_use]
    pub fn record_bytes(&self) -> usize {
        self.weight.record_bytes()
    }

    /// Learns from records that come by, or are about to be [pushed](Self::push), what they weigh, and
    /// what there is [`room`](Self::room) for.
    #[inline]
    pub fn weigh(&mut self, records: &[T]) {
        if self.weight.look(records) {
            self.size();
        }
    }

    fn size(&mut self) {
        let bytes = self.weight.record_bytes();
        self.sizes = Sizes::new(bytes, self.limits.memory_bytes, self.place.is_some());
        self.open_records = self.open_records.min(self.sizes.chunk);
    }

    /// Whether what it has been shown says what records weigh.
    #[inline]
    #[must_use]
    pub fn is_weight_known(&self) -> bool {
        self.weight.is_known()
    }

    /// Whether nothing of it is on disk or on its way there or back.
    #[must_use]
    pub fn is_in_memory(&self) -> bool {
        self.away_chunks == 0
    }

    /// Whether the disk is at work for it: then [`poll`](Self::poll) has something to do soon, though
    /// nothing is pushed or lent.
    #[inline]
    #[must_use]
    pub fn is_moving(&self) -> bool {
        self.moving_records > 0
    }

    /// What it has spilled.
    #[must_use]
    pub fn measured(&self) -> Spilled {
        self.file.as_ref().map_or_else(Spilled::default, |file| file.spilled())
    }

    /// How many records [`push`](Self::push) would take now.
    #[must_use]
    pub fn room(&self) -> usize {
        let room = self.sizes.push_max.saturating_sub(self.held_records + self.moving_records);
        if room > 0 || self.moving_records > 0 || self.is_disk_full() {
            return room;
        }
        // What was put in while records were light may be more than is kept for them now, and be first, which
        // does not go to disk. Then one chunk more is taken, and goes: a back-edge must not stand still.
        match self.youngest_whole() {
            Some(_) => 0,
            None if self.open_records > 0 => self.open_records,
            None => self.sizes.chunk,
        }
    }

    /// Whether there is no room and none will come before records are taken: memory is full, nothing
    /// is on its way to the disk, and the disk takes no more.
    #[must_use]
    pub fn is_exhausted(&mut self) -> bool {
        let seems = |own: &Self| own.room() == 0 && own.moving_records == 0 && own.is_disk_full();
        if !seems(self) {
            return false;
        }
        // What was looked at may have been the one that is heavy: before it is refused for that, all are.
        let held = self.items.iter().filter_map(|item| match item {
            Item::Held(records) => Some(records.as_slice()),
            _ => None,
        });
        self.weight.learn(held.flatten());
        self.size();
        seems(self)
    }

    /// Whether nothing more can go to disk.
    fn is_disk_full(&self) -> bool {
        match (&self.place, &self.file) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(_), Some(file)) => file.is_full(),
        }
    }

    /// Moves in as many records of `batch` as there is room for, and says how many. 0: the budget is
    /// used up or the disk is behind; what the batch still holds stays where it is.
    pub fn push(&mut self, batch: &mut Batch<'_, T>) -> usize {
        let taken = batch.len().min(self.room());
        let mut left = taken;
        while left > 0 {
            let count = left.min(self.open_records);
            match self.items.back_mut() {
                Some(Item::Held(last)) if count > 0 => last.append(batch.drain(count)),
                _ => {
                    self.items.push_back(Item::Held(std::mem::take(&mut self.spare).into()));
                    self.open_records = self.sizes.chunk;
                    continue;
                }
            }
            self.open_records -= count;
            left -= count;
        }
        self.records += taken;
        self.held_records += taken;
        taken
    }

    /// Puts a mark behind what is in it. There is always room: marks are as few as the snapshots
    /// that are under way.
    pub fn push_control(&mut self, control: Control) {
        self.items.push_back(Item::Control(control));
        self.open_records = 0;
    }

    /// What is next.
    #[must_use]
    pub fn front(&self) -> Front {
        match self.items.front() {
            None => Front::Empty,
            Some(Item::Control(control)) => Front::Control(*control),
            Some(Item::Held(_)) => Front::Records,
            Some(Item::Away(..)) => Front::Waiting,
        }
    }

    /// Lends up to `max` of the records at the front; those that `take` leaves stay first.
    ///
    /// # Panics
    /// If the front is not [`Front::Records`].
    pub fn lend<R>(&mut self, max: usize, take: impl FnOnce(&mut Batch<'_, T>) -> R) -> R {
        /// Counts what was taken when `take` returns or panics.
        struct Lent<'a, T: Record> {
            backlog: &'a mut Backlog<T>,
            before: usize,
        }
        impl<T: Record> Lent<'_, T> {
            fn first(&mut self) -> &mut Buffer<T> {
                match self.backlog.items.front_mut() {
                    Some(Item::Held(first)) => first,
                    _ => panic!("no records at the front to lend"),
                }
            }
        }
        impl<T: Record> Drop for Lent<'_, T> {
            fn drop(&mut self) {
                let left = self.first().len();
                self.backlog.took(self.before - left, left);
            }
        }
        let Some(Item::Held(first)) = self.items.front() else {
            panic!("no records at the front to lend, but {:?}", self.front());
        };
        let before = first.len();
        Lent { backlog: self, before }.first().lend_at_most(max, take)
    }

    /// Takes the mark at the front; `None` if none is there.
    pub fn pop_control(&mut self) -> Option<Control> {
        let Front::Control(control) = self.front() else { return None };
        self.items.pop_front();
        Some(control)
    }

    /// Visits the records in front of the barrier of `snapshot`, in order, or all if it is not in
    /// here; whether it is.
    ///
    /// # Panics
    /// If not all of it [is in memory](Self::is_in_memory).
    pub fn before(&self, snapshot: SnapshotId, visit: &mut dyn FnMut(&[T])) -> bool {
        assert!(self.is_in_memory(), "{} chunks are not in memory", self.away_chunks);
        for item in &self.items {
            match item {
                Item::Control(control) if *control == Control::Barrier(snapshot) => return true,
                Item::Control(_) => {}
                Item::Held(records) => visit(records.as_slice()),
                Item::Away(..) => unreachable!("all is in memory"),
            }
        }
        false
    }

    /// Takes out the barrier of `snapshot`, wherever it stands; whether it was in here.
    pub fn remove_barrier(&mut self, snapshot: SnapshotId) -> bool {
        let is_it = |item: &Item<T>| matches!(item, Item::Control(control) if *control == Control::Barrier(snapshot));
        let at = self.items.iter().position(is_it);
        at.is_some_and(|at| self.items.remove(at).is_some())
    }

    /// `taken` records of the first chunk are gone, `left` are there.
    fn took(&mut self, taken: usize, left: usize) {
        self.records -= taken;
        self.held_records -= taken;
        if left > 0 {
            return;
        }
        if let Some(Item::Held(first)) = self.items.pop_front() {
            let emptied = first.into_vec();
            if emptied.capacity() > self.spare.capacity() {
                self.spare = emptied;
            }
        }
        if self.items.is_empty() {
            self.open_records = 0;
        }
    }
}

#[cfg(test)]
mod tests;
