//! One worker's bytes on their way into segments: placed at once, written in the background.
//!
//! Chunks of pages are written as they come, some at a time, large ones as they are, small ones gathered. An index
//! seals what it lists: it is written when all that came before is, or is with the disk in an earlier
//! index, behind it in the same write where that fits (so a small part costs one write and one fdatasync,
//! linked), and synced with it. One that is
//! larger than a chunk is a write of its own: to move it behind another took a worker 3 to 9 ms
//! (`perf/0004-snapshots.md`).
//!
//! Where a segment is full the next one has been made by somebody else, since making a file can take the disk a
//! tenth of a second: an index waits for it, and who hands over chunks is to ask [`Stream::is_backlogged`].
//!
//! Invariants
//! - An index is written only when every write numbered below its `upto` has ended well and is synced
//!   where it lies in another segment, or is with the disk as part of an earlier index: an index that is
//!   durable, with all before it, lists durable pages.
//! - Several indices may be with the disk, so that a slow flush does not hold up the next one, but
//!   they count as sealed in their order: each goes on from the one before it. One at a time where two
//!   syncs of a file may tell only one of them what both need: through the page cache, where one is told
//!   of a failed write back; and behind what was written before, where the file system notes which
//!   blocks are in use, and without a journal one sync may return while the other still writes that.
//! - A segment that was left is kept and not synced while an index in it is with the disk: should that fail,
//!   the file must not be used again.
//! - After a failed write or sync nothing that was not sealed before counts: all of it is reported as
//!   lost, its segments are left, and what still returns from the disk is ignored.

use std::collections::VecDeque;
use std::mem;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::segment::{BLOCK_BYTES, Directory, Segment, Spare};
use crate::disk::{Buffer, Bytes, Completion, DiskQueue, FileHandle, Operation, Ticket};
use crate::error::{Error, Result};
use crate::id::{SegmentId, SnapshotId};
use crate::state::{CHUNK_BYTES, Lost, Place};

/// Indices with the disk at once. What waits for a flush shares the next one: the kernel merges them.
const INDICES_MAX: usize = 4;
/// Operations with the disk at once: enough to keep a fast one busy with chunks.
const WRITES_MAX: usize = 16;
/// So many chunks set out together, as each alone costs a worker 10 us (`perf/0007-fewer-interruptions.md`); or fewer,
/// when the disk was looked at so often without another.
const CHUNKS_TOGETHER: usize = 4;
pub(super) const LOOKS_MAX: u32 = 1024;
/// Chunks that wait for the disk may be this many bytes, then no more should be handed over.
const WAITING_BYTES_MAX: usize = 16 << 20;
/// Buffers kept for use again: fresh memory for each chunk costs page faults.
const SPARE_BUFFERS_MAX: usize = WAITING_BYTES_MAX / CHUNK_BYTES;
/// While fewer parts go into a segment, the next one is made larger.
const PARTS_PER_SEGMENT_MIN: u32 = 16;

/// See the module's documentation.
pub(super) struct Stream {
    directory: Arc<Directory>,
    spare: Arc<Spare>,
    /// Before the segments: dropped first it waits for what it has accepted, and only then may a
    /// segment be used again.
    queue: Box<dyn DiskQueue>,
    segment: Option<Segment>,
    /// Number of the first write since `segment` was taken.
    segment_first: u64,
    /// Segments that are full, with bytes that are not synced.
    left: Vec<Left>,
    /// Small chunks, gathered: at the end of `segment`, not yet on their way.
    tail: Option<Write>,
    waiting: VecDeque<Write>,
    waiting_bytes: usize,
    /// How often the disk was looked at since the last of them came.
    looks: u32,
    in_flight: Vec<InFlight>,
    /// Indices that are with the disk, or behind one that is, oldest first.
    sealing: VecDeque<Sealing>,
    /// Number of the next write.
    next: u64,
    /// Writes below this one are sealed.
    sealed_below: u64,
    /// Writes below this one are of before a failure.
    ignored_below: u64,
    /// Segments of before a failure, kept from use until nothing of it is with the disk.
    dead: Vec<Segment>,
    /// What is not sealed, by number.
    extents: VecDeque<(u64, Lost)>,
    lost: Vec<Lost>,
    buffers: Vec<Buffer>,
    completions: Vec<Completion>,
    /// Indices given to the disk for `segment`.
    indices: u32,
    /// Whether the segment in reserve was taken since this was asked last.
    took_spare: bool,
}

/// Bytes with a place. Gathered chunks have one number each.
struct Write {
    numbers: RangeInclusive<u64>,
    place: Place,
    bytes: Buffer,
}

/// A segment that was left, with the numbers of writes that may be in it.
struct Left {
    segment: Segment,
    numbers: RangeInclusive<u64>,
    /// Its writes below this are synced.
    synced_below: u64,
    syncing: bool,
}

impl Left {
    /// Whether a write below `upto` is not synced.
    fn needs_sync(&self, upto: u64) -> bool {
        self.synced_below.max(*self.numbers.start()) < upto.min(self.numbers.end() + 1)
    }

    /// Whether one of these indices is in it.
    fn holds_one_of(&self, indices: &VecDeque<Sealing>) -> bool {
        indices.iter().any(|index| self.numbers.contains(&index.number))
    }
}

struct InFlight {
    ticket: Ticket,
    /// The first, if it has several.
    number: u64,
    what: What,
}

/// An index that seals all writes below a number.
struct Sealing {
    /// Its own.
    number: u64,
    upto: u64,
    is_durable: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Pages,
    /// Syncs a segment that was left, up to a number.
    Sync(SegmentId, u64),
    Index,
}

/// What [`Stream::poll`] found.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// So many of the oldest indices are durable.
    pub(super) sealed: usize,
    /// After that something failed, for this reason: all that was not sealed is lost.
    pub(super) failed: Option<String>,
}

impl Stream {
    pub(super) fn new(directory: Arc<Directory>) -> Result<Self> {
        let (first_bytes, _) = directory.segment_bytes;
        let segment = directory.create_segment(directory.affordable(first_bytes))?;
        let open = directory.disk.queue(WRITES_MAX);
        let queue = open.map_err(Error::io("open a queue", &directory.path))?;
        let spare = Arc::new(Spare::new(first_bytes));
        directory.table().writers.push(Arc::downgrade(&spare));
        Ok(Self {
            directory,
            spare,
            queue,
            segment: Some(segment),
            segment_first: 0,
            left: Vec::new(),
            tail: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            looks: 0,
            in_flight: Vec::with_capacity(WRITES_MAX),
            sealing: VecDeque::with_capacity(INDICES_MAX),
            next: 0,
            sealed_below: 0,
            ignored_below: 0,
            dead: Vec::new(),
            extents: VecDeque::new(),
            lost: Vec::new(),
            buffers: Vec::new(),
            completions: Vec::new(),
            indices: 0,
            took_spare: true,
        })
    }

    pub(super) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Number of the next write: what was handed over until now is below it.
    pub(super) fn end(&self) -> u64 {
        self.next
    }

    /// Segments that something may still be written into.
    pub(super) fn is_open(&self, segment: SegmentId) -> bool {
        let left = self.left.iter().map(|left| &left.segment);
        left.chain(&self.segment).any(|open| open.id == segment)
    }

    /// How large the next segment will be.
    pub(super) fn segment_bytes(&self) -> u64 {
        self.spare.wanted_bytes.load(Ordering::Relaxed)
    }

    /// Whether no more should be handed over for now: the disk has enough to do, or the next chunks
    /// need a segment that is still being made.
    pub(super) fn is_backlogged(&self) -> bool {
        // What is handed over at once may end one chunk and fill another.
        let fits = |segment: &Segment| {
            segment.has_room_for((2 * CHUNK_BYTES as u64).min(segment.capacity_bytes / 2))
        };
        self.waiting_bytes > WAITING_BYTES_MAX
            || (self.spare.is_missing() && !self.segment.as_ref().is_some_and(fits))
    }

    /// Whether another segment should be made for this writer; asked once for each.
    pub(super) fn wants_segment(&mut self) -> bool {
        mem::take(&mut self.took_spare)
    }

    /// Takes what turned out not to be durable since this was asked last.
    pub(super) fn take_lost(&mut self) -> Vec<Lost> {
        mem::take(&mut self.lost)
    }

    pub(super) fn has_lost(&self) -> bool {
        !self.lost.is_empty()
    }

    /// Takes the bytes and leaves the buffer empty. Where they will lie.
    ///
    /// # Errors
    /// There is no room for them, and none could be made: they are lost.
    pub(super) fn push(&mut self, snapshot: SnapshotId, bytes: &mut Buffer) -> Result<Place> {
        bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        if let Err(error) = self.make_room_for(bytes.len() as u64) {
            bytes.clear();
            return Err(error);
        }
        let segment = self.segment.as_mut().expect("there is room");
        segment.usage.note(snapshot);
        let place = Place { segment: segment.id, offset: segment.next };
        segment.next += bytes.len() as u64;
        self.extents.push_back((self.next, Lost { place, bytes: bytes.len() as u64 }));
        if let Some(tail) =
            self.tail.as_mut().filter(|t| t.bytes.len() + bytes.len() <= CHUNK_BYTES)
        {
            tail.bytes.extend_from_slice(bytes);
            tail.numbers = *tail.numbers.start()..=self.next;
            bytes.clear();
        } else {
            self.flush_tail();
            let buffer = self.buffers.pop().unwrap_or_default();
            let numbers = self.next..=self.next;
            let write = Write { numbers, place, bytes: mem::replace(bytes, buffer) };
            if write.bytes.len() < CHUNK_BYTES / 2 {
                self.tail = Some(write);
            } else {
                self.send(write);
            }
        }
        self.next += 1;
        self.submit_together();
        Ok(place)
    }

    fn flush_tail(&mut self) {
        if let Some(tail) = self.tail.take() {
            self.send(tail);
        }
    }

    fn send(&mut self, write: Write) {
        self.looks = 0;
        self.waiting_bytes += write.bytes.len();
        self.waiting.push_back(write);
    }

    /// Gives the disk what it can take, but for an index, if it is enough or was waited for long enough.
    fn submit_together(&mut self) {
        let room = (WRITES_MAX - 1).saturating_sub(self.in_flight.len());
        if room.min(self.waiting.len()) >= CHUNKS_TOGETHER || self.looks >= LOOKS_MAX {
            self.submit();
        }
    }

    /// Gives the disk what it can take, but for an index.
    fn submit(&mut self) {
        let room = (WRITES_MAX - 1).saturating_sub(self.in_flight.len());
        let writes = self.waiting.drain(..room.min(self.waiting.len())).collect::<Vec<_>>();
        if writes.is_empty() {
            return;
        }
        let numbers: Vec<u64> = writes.iter().map(|write| *write.numbers.start()).collect();
        let operation = |Write { place, bytes, .. }: Write| {
            self.waiting_bytes -= bytes.len();
            let (file, buffer) = (self.file(place.segment), Bytes::from(bytes));
            Operation::Write { file, offset: place.offset, buffer, sync: false }
        };
        let operations = writes.into_iter().map(operation).collect();
        let started = self.queue.submit_all(operations).into_iter().zip(numbers);
        let flight = |(ticket, number)| InFlight { ticket, number, what: What::Pages };
        self.in_flight.extend(started.map(flight));
    }

    fn file(&self, id: SegmentId) -> FileHandle {
        let left = self.left.iter().map(|left| &left.segment);
        let mut open = left.chain(&self.segment).filter(|segment| segment.id == id);
        open.next().expect("what is not written keeps its segment").file.clone()
    }

    fn start(&mut self, operation: Operation, number: u64, what: What) {
        let ticket = self.queue.submit(operation);
        let ticket = ticket.expect("fewer are in flight than the queue takes");
        self.in_flight.push(InFlight { ticket, number, what });
    }

    /// Whether the segment has room: this one, or the one in reserve. If not, one that has is asked for.
    ///
    /// # Errors
    /// It could not be made.
    fn has_room_for(&mut self, bytes: u64) -> Result<bool> {
        if self.segment.as_ref().is_some_and(|segment| segment.has_room_for(bytes)) {
            return Ok(true);
        }
        if self.spare.is_missing() {
            // It is being made, or asked for; too small perhaps, which is seen when it is there.
            return Ok(false);
        }
        let made = self.spare.take().transpose();
        self.took_spare = true;
        // Of what is asked for now, also if more could not be made: that may not be needed any more.
        self.spare.needed_bytes.store(bytes, Ordering::Relaxed);
        match made? {
            Some(segment) if segment.has_room_for(bytes) => {
                self.go_on_in(segment);
                Ok(true)
            }
            // It is collected as any that nothing is in.
            _ => Ok(false),
        }
    }

    /// Sees to it that the segment has room: this one, the one in reserve, or a new one, which is a pause.
    fn make_room_for(&mut self, bytes: u64) -> Result<()> {
        if self.has_room_for(bytes)? {
            return Ok(());
        }
        let bytes = self.directory.affordable(self.segment_bytes()).max(bytes);
        let made = self.directory.create_segment(bytes);
        self.go_on_in(made?);
        Ok(())
    }

    /// Leaves the segment for another one.
    fn go_on_in(&mut self, segment: Segment) {
        self.leave();
        // Small parts go round in small segments, which soon have all been written before; large
        // parts are not to change files all the time.
        if mem::take(&mut self.indices) < PARTS_PER_SEGMENT_MIN {
            let larger = (self.segment_bytes() * 2).min(self.directory.segment_bytes.1);
            self.spare.wanted_bytes.store(larger, Ordering::Relaxed);
        }
        self.spare.needed_bytes.store(0, Ordering::Relaxed);
        self.segment = Some(segment);
    }

    /// Nothing more goes into the segment.
    fn leave(&mut self) {
        self.flush_tail();
        self.submit();
        if let Some(segment) = self.segment.take() {
            let first = self.segment_first.max(self.sealed_below);
            if first < self.next {
                let numbers = first..=self.next - 1;
                self.left.push(Left { segment, numbers, synced_below: 0, syncing: false });
            }
        }
        self.segment_first = self.next;
    }

    /// Writes an index that seals all writes numbered below `upto`, if their time has come and there is
    /// room; where. Takes the buffer then.
    ///
    /// # Errors
    /// There is no room for it, and none could be made: what it should seal may still be sealed by
    /// another.
    pub(super) fn seal(
        &mut self,
        snapshot: SnapshotId,
        upto: u64,
        index: &mut Buffer,
    ) -> Result<Option<Place>> {
        // All that it lists was handed over: nothing more is to be waited for.
        self.submit();
        index.resize(index.len().next_multiple_of(BLOCK_BYTES), 0);
        let index_bytes = index.len() as u64;
        if self.sealing.len() == INDICES_MAX
            || !self.has_room_for(index_bytes)?
            || !(self.sealing.is_empty() || self.syncs_beside_others(index_bytes))
        {
            return Ok(None);
        }
        let is_tail_last = self.tail.as_ref().is_none_or(|tail| *tail.numbers.end() < upto);
        let joins_tail = is_tail_last && index_bytes <= CHUNK_BYTES as u64;
        if !joins_tail && self.tail.as_ref().is_some_and(|tail| *tail.numbers.start() < upto) {
            self.flush_tail();
            self.submit();
        }
        let waits = self.waiting.iter().any(|write| *write.numbers.start() < upto);
        let flies = self.in_flight.iter().any(|flight| {
            flight.what == What::Pages && (self.ignored_below..upto).contains(&flight.number)
        });
        if waits || flies || !self.is_synced(upto) || self.in_flight.len() == WRITES_MAX {
            return Ok(None);
        }
        let mut index = mem::take(index);
        let segment = self.segment.as_mut().expect("there is room");
        segment.usage.note(snapshot);
        let place = Place { segment: segment.id, offset: segment.next };
        segment.next += index_bytes;
        let file = segment.file.clone();
        let (offset, buffer) = match self.tail.take() {
            Some(mut tail) if joins_tail => {
                debug_assert_eq!(tail.place.offset + tail.bytes.len() as u64, place.offset);
                tail.bytes.extend_from_slice(&index);
                index.clear();
                self.keep_buffer(index);
                (tail.place.offset, tail.bytes)
            }
            tail => {
                self.tail = tail;
                // The tail does not go on behind an index.
                self.flush_tail();
                (place.offset, index)
            }
        };
        let write = Operation::Write { file, offset, buffer: buffer.into(), sync: true };
        self.start(write, self.next, What::Index);
        self.sealing.push_back(Sealing { number: self.next, upto, is_durable: false });
        self.indices += 1;
        self.next += 1;
        self.submit();
        Ok(Some(place))
    }

    /// Indices that are with the disk, or behind one that is.
    #[cfg(test)]
    pub(super) fn sealing(&self) -> usize {
        self.sealing.len()
    }

    /// Operations that are with the disk.
    #[cfg(test)]
    pub(super) fn with_disk(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether an index of so many bytes may be with the disk while others are.
    fn syncs_beside_others(&self, index_bytes: u64) -> bool {
        self.segment.as_ref().is_some_and(|segment| {
            segment.file.reports_to_every_sync() && segment.overwrites(index_bytes)
        })
    }

    /// Whether the segments that were left are synced as far as this, and sees to it.
    fn is_synced(&mut self, upto: u64) -> bool {
        let mut all = true;
        for at in 0..self.left.len() {
            let left = &mut self.left[at];
            if !left.needs_sync(upto) {
                continue;
            }
            all = false;
            if !left.syncing
                && !left.holds_one_of(&self.sealing)
                && self.in_flight.len() < WRITES_MAX
            {
                left.syncing = true;
                let (segment, file) = (left.segment.id, left.segment.file.clone());
                self.start(Operation::Sync { file }, self.next, What::Sync(segment, upto));
                self.next += 1;
            }
        }
        all
    }

    /// Looks at what the disk has done.
    pub(super) fn poll(&mut self) -> Progress {
        let mut progress = Progress::default();
        self.looks = self.looks.saturating_add(1);
        if self.in_flight.is_empty() {
            self.submit_together();
            return progress;
        }
        let mut completions = mem::take(&mut self.completions);
        self.queue.poll(&mut completions);
        for completion in completions.drain(..) {
            self.complete(completion, &mut progress);
        }
        self.completions = completions;
        self.submit_together();
        progress
    }

    fn complete(&mut self, completion: Completion, progress: &mut Progress) {
        let Completion { ticket, buffer, result } = completion;
        let at = self.in_flight.iter().position(|flight| flight.ticket == ticket);
        let InFlight { number, what, .. } = self.in_flight.swap_remove(at.expect("one of ours"));
        if let Some(buffer) = buffer.into_aligned() {
            self.keep_buffer(buffer);
        }
        if number < self.ignored_below {
            if !self.in_flight.iter().any(|flight| flight.number < self.ignored_below) {
                self.dead.clear();
            }
            return;
        }
        match (result, what) {
            (Err(error), _) => {
                let (path, disk) = (self.directory.path.clone(), &*self.directory.disk);
                let error = super::layout::refused(disk, "write to", path, error);
                progress.failed = Some(error.to_string());
                self.fail();
            }
            (Ok(_), What::Pages) => {}
            (Ok(_), What::Sync(segment, upto)) => {
                for left in self.left.iter_mut().filter(|left| left.segment.id == segment) {
                    (left.syncing, left.synced_below) = (false, upto);
                }
                self.left.retain(|left| {
                    let stays = left.needs_sync(u64::MAX);
                    debug_assert!(stays || !left.holds_one_of(&self.sealing));
                    stays
                });
            }
            (Ok(_), What::Index) => {
                let mut sealing = self.sealing.iter_mut();
                let index =
                    sealing.find(|index| index.number == number).expect("it is with the disk");
                index.is_durable = true;
                progress.sealed += self.take_sealed();
            }
        }
    }

    /// What is sealed by indices that are durable, with all before them; how many they are.
    fn take_sealed(&mut self) -> usize {
        let mut sealed = 0;
        while let Some(Sealing { upto, .. }) = self.sealing.pop_front_if(|next| next.is_durable) {
            self.sealed_below = upto;
            while self.extents.pop_front_if(|(number, _)| *number < upto).is_some() {}
            sealed += 1;
        }
        sealed
    }

    fn fail(&mut self) {
        self.ignored_below = self.next;
        self.tail = None;
        self.sealing.clear();
        self.dead.extend(self.left.drain(..).map(|left| left.segment));
        self.dead.extend(self.segment.take());
        self.dead.iter().for_each(|segment| segment.usage.fail());
        if self.in_flight.is_empty() {
            self.dead.clear();
        }
        self.waiting.clear();
        self.waiting_bytes = 0;
        self.lost.extend(self.extents.drain(..).map(|(_, lost)| lost));
    }

    /// Bytes that could not be placed, as if they were.
    pub(super) fn push_nowhere(&mut self, bytes: usize) -> Place {
        let place =
            Place { segment: self.directory.nowhere(), offset: self.next * BLOCK_BYTES as u64 };
        self.next += (bytes as u64).div_ceil(BLOCK_BYTES as u64).max(1);
        self.lost.push(Lost { place, bytes: bytes as u64 });
        place
    }

    /// One that an index has grown large is not kept: it would go round as the memory of a chunk.
    fn keep_buffer(&mut self, mut buffer: Buffer) {
        if self.buffers.len() < SPARE_BUFFERS_MAX && buffer.capacity() <= 2 * CHUNK_BYTES {
            buffer.clear();
            self.buffers.push(buffer);
        }
    }

    /// Memory for an index.
    pub(super) fn buffer(&mut self) -> Buffer {
        self.buffers.pop().unwrap_or_default()
    }

    /// Whether the disk has nothing of ours.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.waiting.is_empty()
    }
}
