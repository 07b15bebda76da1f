//! One worker's writing end: state bytes into a buffer, the buffer to the disk, a [`PartRef`] back.
//!
//! Invariants
//! - Per snapshot one write with one fdatasync, submitted and polled, never waited for.
//! - At most [`PARTS_MAX`] parts are being built, and as many on their way to the disk.
//! - One part at a time is with the disk: see the module doc of [`super`] for why.
//! - A segment that failed a write or a sync is left at once and never written to again.
//!
//! Changing to the next segment normally takes the spare that [`Store::collect`] prepared. Without
//! one (a burst, or a part larger than a segment) the worker creates it here, which blocks it for
//! a few file operations.
//!
//! [`Store::collect`]: super::Store::collect

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;

use super::manifest::PartRef;
use super::segment::{BLOCK_BYTES, Directory, Segment, Spare};
use crate::disk::{Completion, DiskQueue, Operation, Ticket};
use crate::error::{Error, Result};
use crate::frame::{self, FrameHeader, FrameKind};
use crate::id::{Attempt, SnapshotId, StateSlot, WorkerId};

/// Most parts of one worker being built, and most on their way to the disk.
pub const PARTS_MAX: usize = 4;

/// Buffers kept for reuse.
const SPARE_BUFFERS_MAX: usize = 2;

/// Writes the parts of one worker.
pub struct PartWriter {
    directory: Arc<Directory>,
    spare: Arc<Spare>,
    queue: Box<dyn DiskQueue>,
    segment: Option<Segment>,
    /// Parts that are appended to; the one that was begun last is the last.
    building: Vec<Part>,
    /// Finished parts, oldest first.
    waiting: VecDeque<Part>,
    writing: Option<Writing>,
    /// Results not handed out yet.
    finished: Vec<(SnapshotId, Result<PartRef>)>,
    buffers: Vec<Vec<u8>>,
    completions: Vec<Completion>,
}

struct Part {
    snapshot: SnapshotId,
    buffer: Vec<u8>,
    frames: u64,
}

struct Writing {
    ticket: Ticket,
    snapshot: SnapshotId,
    part: PartRef,
    abandoned: bool,
}

impl PartWriter {
    pub(super) fn new(
        directory: Arc<Directory>,
        worker: WorkerId,
        attempt: Attempt,
    ) -> Result<Self> {
        let segment = directory.create_segment(worker, attempt, 0)?;
        let queue = directory.disk.queue(1).map_err(Error::io("open a queue", &directory.path))?;
        let spare = Arc::new(Spare { worker, attempt, segment: Default::default() });
        directory.table().writers.push(Arc::downgrade(&spare));
        Ok(Self {
            directory,
            spare,
            queue,
            segment: Some(segment),
            building: Vec::with_capacity(PARTS_MAX),
            waiting: VecDeque::with_capacity(PARTS_MAX),
            writing: None,
            finished: Vec::new(),
            buffers: Vec::with_capacity(SPARE_BUFFERS_MAX),
            completions: Vec::new(),
        })
    }

    /// Starts the part of a snapshot, or goes on with one that is being built: what is appended
    /// from now on belongs to it.
    ///
    /// # Panics
    /// If [`PARTS_MAX`] other parts are being built.
    pub fn begin(&mut self, snapshot: SnapshotId) {
        if let Some(at) = self.building.iter().position(|part| part.snapshot == snapshot) {
            let part = self.building.remove(at);
            self.building.push(part);
            return;
        }
        let others = self.building.len();
        assert!(others < PARTS_MAX, "snapshot {snapshot} begun while {others} are being built");
        let buffer = self.buffers.pop().unwrap_or_default();
        self.building.push(Part { snapshot, buffer, frames: 0 });
    }

    /// Appends one share of an operator's state to the part begun last.
    ///
    /// # Panics
    /// If no part is being built.
    pub fn append(&mut self, operator: &str, slot: StateSlot, schema: u32, bytes: &[u8]) {
        self.append_with(operator, slot, schema, |out| out.extend_from_slice(bytes));
    }

    /// As [`append`](Self::append), with the bytes appended to the vector by `write`. They lie at a
    /// multiple of 16 in the file; the vector must not be shortened.
    ///
    /// # Panics
    /// If no part is being built, or `write` shortened the vector.
    pub fn append_with(
        &mut self,
        operator: &str,
        slot: StateSlot,
        schema: u32,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let part = self.building.last_mut().expect("a part was begun");
        let snapshot = part.snapshot;
        let header =
            FrameHeader { kind: FrameKind::State, owner: operator, slot, schema, snapshot };
        frame::encode_with(&header, &mut part.buffer, write);
        part.frames += 1;
    }

    /// Hands the part begun last to the disk. Its end comes out of [`poll`](Self::poll).
    ///
    /// # Errors
    /// [`Error::Snapshot`] if [`PARTS_MAX`] parts are on their way: the disk is too slow for the
    /// interval. The part is dropped.
    ///
    /// # Panics
    /// If no part is being built.
    pub fn finish(&mut self) -> Result<()> {
        let part = self.building.pop().expect("a part was begun");
        if self.in_flight() >= PARTS_MAX {
            let snapshot = part.snapshot;
            self.recycle(part.buffer);
            let reason = format!("{PARTS_MAX} earlier snapshots are still being written to disk");
            return Err(Error::Snapshot { snapshot, reason });
        }
        self.waiting.push_back(part);
        self.start();
        Ok(())
    }

    /// Parts that are durable, or failed, since the last call. A part that failed leaves its
    /// segment abandoned; the next goes to a new one.
    pub fn poll(&mut self) -> Vec<(SnapshotId, Result<PartRef>)> {
        if self.writing.is_some() {
            let mut completions = mem::take(&mut self.completions);
            self.queue.poll(&mut completions);
            for completion in completions.drain(..) {
                self.complete(completion);
            }
            self.completions = completions;
            self.start();
        }
        mem::take(&mut self.finished)
    }

    /// Parts finished whose end [`poll`](Self::poll) has not returned.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.waiting.len() + usize::from(self.writing.is_some()) + self.finished.len()
    }

    /// Forgets a snapshot wherever its part is; `poll` will not mention it.
    pub fn abandon(&mut self, snapshot: SnapshotId) {
        if let Some(at) = self.building.iter().position(|part| part.snapshot == snapshot) {
            let part = self.building.remove(at);
            self.recycle(part.buffer);
        }
        if let Some(at) = self.waiting.iter().position(|part| part.snapshot == snapshot) {
            let part = self.waiting.remove(at).expect("just found");
            self.recycle(part.buffer);
        }
        if let Some(writing) = self.writing.as_mut().filter(|part| part.snapshot == snapshot) {
            writing.abandoned = true;
        }
        self.finished.retain(|(finished, _)| *finished != snapshot);
    }

    /// Gives the disk the next part if it has none.
    fn start(&mut self) {
        while self.writing.is_none() {
            let Some(part) = self.waiting.pop_front() else { return };
            let snapshot = part.snapshot;
            if let Err(error) = self.submit(part) {
                let reason = error.to_string();
                self.finished.push((snapshot, Err(Error::Snapshot { snapshot, reason })));
            }
        }
    }

    fn submit(&mut self, part: Part) -> Result<()> {
        let Part { snapshot, mut buffer, frames } = part;
        let bytes = buffer.len() as u64;
        if bytes == 0 {
            let part = PartRef { file: String::new(), offset: 0, bytes, crc32c: 0, frames };
            self.finished.push((snapshot, Ok(part)));
            self.recycle(buffer);
            return Ok(());
        }
        let crc32c = crc32c::crc32c(&buffer);
        // Whole blocks, so that the kernel need not read what it overwrites.
        buffer.resize(buffer.len().next_multiple_of(BLOCK_BYTES), 0);
        let segment = self.room_for(buffer.len() as u64)?;
        segment.usage.note(snapshot);
        let (file, offset) = (segment.file.clone(), segment.next);
        segment.next += buffer.len() as u64;
        let part = PartRef { file: segment.name.clone(), offset, bytes, crc32c, frames };
        let ticket = self.queue.submit(Operation::Write { file, offset, buffer, sync: true });
        let ticket = ticket.expect("the queue is empty: one part at a time");
        self.writing = Some(Writing { ticket, snapshot, part, abandoned: false });
        Ok(())
    }

    /// The segment with room for that many bytes more: this one, the spare, or a new one.
    fn room_for(&mut self, bytes: u64) -> Result<&mut Segment> {
        let fits = |segment: &Segment| segment.next + bytes <= segment.capacity_bytes;
        let segment = match self.segment.take().filter(fits) {
            Some(segment) => segment,
            None if bytes <= self.directory.segment_bytes
                && let Some(spare) = self.spare.take() =>
            {
                spare
            }
            None => self.directory.create_segment(self.spare.worker, self.spare.attempt, bytes)?,
        };
        Ok(self.segment.insert(segment))
    }

    fn complete(&mut self, completion: Completion) {
        let Completion { ticket, buffer, result } = completion;
        let writing = self.writing.take().expect("a completion of the part with the disk");
        assert_eq!(writing.ticket, ticket, "one part at a time is with the disk");
        let snapshot = writing.snapshot;
        let result = match result {
            Ok(written) => {
                assert_eq!(written, buffer.len(), "a write that succeeds is whole");
                Ok(writing.part)
            }
            Err(error) => {
                self.segment = None;
                let path = self.directory.path.join(&writing.part.file);
                let error = super::layout::refused(&*self.directory.disk, "write", path, error);
                Err(Error::Snapshot { snapshot, reason: error.to_string() })
            }
        };
        self.recycle(buffer);
        if !writing.abandoned {
            self.finished.push((snapshot, result));
        }
    }

    fn recycle(&mut self, mut buffer: Vec<u8>) {
        if self.buffers.len() < SPARE_BUFFERS_MAX {
            buffer.clear();
            self.buffers.push(buffer);
        }
    }
}
