//! The spill file: chunks of archived records go out and come back, each in one checksummed frame.
//!
//! Knows nothing of the record type. A frame is of kind [`FrameKind::Spill`]; its payload is
//!
//! ```text
//! offset size
//!      0    8  number of the chunk, from 0
//!      8    4  records in it
//!     12    4  number of the input
//!     16       rkyv archive of a vector of records
//! ```
//!
//! Invariants
//! - A chunk is read back once; its extent is given back when it was.
//! - A chunk that comes back is the one asked for: owner, task, input, number and count of records
//!   are compared, so that a stale or misplaced frame is an error though its checksum matches.
//! - No more operations are in flight than [`SPILL_READ_AHEAD_CHUNKS`] reads and
//!   [`SPILL_WRITES_MAX`] writes.

use std::io::{self, ErrorKind};
use std::mem;
use std::path::PathBuf;
use std::sync::Arc;

use super::extents::{BLOCK_BYTES, Extents};
use super::{Place, Spilled};
use crate::clock::now_ns;
use crate::config::{SPILL_CHUNK_BYTES, SPILL_READ_AHEAD_CHUNKS, SPILL_WRITES_MAX};
use crate::disk::{Completion, Disk, DiskQueue, FileHandle, Operation, Ticket};
use crate::error::{Error, Result};
use crate::frame::{self, ALIGNMENT, FrameHeader, FrameKind};
use crate::id::SnapshotId;

const IN_FLIGHT_MAX: usize = SPILL_READ_AHEAD_CHUNKS + SPILL_WRITES_MAX;

/// A buffer that grew beyond this for records with much heap data is not kept for reuse.
const BUFFER_BYTES_MAX: usize = 4 * SPILL_CHUNK_BYTES;

/// A chunk in the file, or on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    /// Its number, by which it is told from every other.
    pub(super) number: u64,
    pub(super) records: usize,
    offset: u64,
    frame_bytes: usize,
}

impl Chunk {
    fn extent_bytes(&self) -> u64 {
        (self.frame_bytes as u64).next_multiple_of(BLOCK_BYTES)
    }
}

/// What has come to its end.
pub(super) enum Done {
    Written(Chunk),
    /// With the frame that was read.
    Read(Chunk, Vec<u8>),
}

/// A spill file and the queue to it. The order of the fields is that of their end: the queue waits
/// for what is in flight, then the file is closed and its name removed.
pub(super) struct SpillFile {
    queue: Box<dyn DiskQueue>,
    file: FileHandle,
    name: Name,
    place: Place,
    extents: Extents,
    in_flight: Vec<InFlight>,
    completions: Vec<Completion>,
    /// At most [`IN_FLIGHT_MAX`].
    buffers: Vec<Vec<u8>>,
    next_number: u64,
    /// Length of a frame that found no room.
    refused_bytes: Option<u64>,
    spilled: Spilled,
}

struct InFlight {
    ticket: Ticket,
    chunk: Chunk,
    way: Way,
    since_ns: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Out,
    Back,
}

/// The name of a file, removed when dropped.
struct Name {
    disk: Arc<dyn Disk>,
    path: PathBuf,
}

impl Drop for Name {
    fn drop(&mut self) {
        // A name that stays is removed with the leftovers at the next start.
        let _ = self.disk.remove(&self.path);
    }
}

impl SpillFile {
    /// Creates the file, its directory where missing, and the queue: a few synchronous calls.
    pub(super) fn create(place: Place, disk_bytes: u64) -> Result<Self> {
        let disk = &place.disk;
        if let Some(directory) = place.path.parent() {
            disk.create_dir_all(directory).map_err(Error::io("create directory", directory))?;
        }
        let file = disk.create_new(&place.path).map_err(Error::io("create", &place.path))?;
        let name = Name { disk: disk.clone(), path: place.path.clone() };
        let queue = disk.queue(IN_FLIGHT_MAX).map_err(Error::io("open a queue to", &place.path))?;
        Ok(Self {
            queue,
            file,
            name,
            place,
            extents: Extents::new(disk_bytes),
            in_flight: Vec::with_capacity(IN_FLIGHT_MAX),
            completions: Vec::with_capacity(IN_FLIGHT_MAX),
            buffers: Vec::with_capacity(IN_FLIGHT_MAX),
            next_number: 0,
            refused_bytes: None,
            spilled: Spilled::default(),
        })
    }

    pub(super) fn spilled(&self) -> Spilled {
        self.spilled
    }

    /// Whether the last frame found no room, and would find none now.
    pub(super) fn is_full(&self) -> bool {
        self.refused_bytes.is_some_and(|bytes| self.extents.end_for(bytes).is_none())
    }

    /// Whether a write may be tried: one is free, and a frame like the last would find room.
    pub(super) fn can_write(&self) -> bool {
        let writes = self.in_flight.iter().filter(|flight| flight.way == Way::Out).count();
        writes < SPILL_WRITES_MAX && !self.is_full()
    }

    /// Starts to write a chunk; `None` if the file has no room for it.
    pub(super) fn write(&mut self, archive: &[u8], records: usize) -> Result<Option<Chunk>> {
        let mut buffer = self.buffers.pop().unwrap_or_default();
        buffer.clear();
        let number = self.next_number;
        frame::encode_with(&header(&self.place), &mut buffer, |out| {
            out.extend_from_slice(&number.to_le_bytes());
            out.extend_from_slice(&(records as u32).to_le_bytes());
            out.extend_from_slice(&self.place.input.to_le_bytes());
            debug_assert_eq!(out.len() % ALIGNMENT, 0);
            out.extend_from_slice(archive);
        });
        let frame_bytes = buffer.len();
        // Whole blocks, so that the kernel need not read what it overwrites.
        buffer.resize(frame_bytes.next_multiple_of(BLOCK_BYTES as usize), 0);
        let bytes = buffer.len() as u64;
        let Some(offset) = self.room_for(bytes)? else {
            self.refused_bytes = Some(bytes);
            self.recycle(buffer);
            return Ok(None);
        };
        self.refused_bytes = None;
        self.next_number += 1;
        let chunk = Chunk { number, records, offset, frame_bytes };
        let file = self.file.clone();
        let write = Operation::Write { file, offset, buffer: buffer.into(), sync: false };
        self.submit(write, chunk, Way::Out);
        Ok(Some(chunk))
    }

    /// Starts to read a chunk that was written.
    pub(super) fn read(&mut self, chunk: Chunk) {
        let mut buffer = self.buffers.pop().unwrap_or_default();
        buffer.resize(chunk.frame_bytes, 0);
        let (file, offset) = (self.file.clone(), chunk.offset);
        let read = Operation::Read { file, offset, buffer: buffer.into() };
        self.submit(read, chunk, Way::Back);
    }

    /// Appends what has come to its end.
    pub(super) fn poll(&mut self, done: &mut Vec<Done>) -> Result<()> {
        if self.in_flight.is_empty() {
            return Ok(());
        }
        let mut completions = mem::take(&mut self.completions);
        self.queue.poll(&mut completions);
        for completion in completions.drain(..) {
            done.push(self.complete(completion)?);
        }
        self.completions = completions;
        Ok(())
    }

    /// The archive in a frame that was read, checked to be that of `chunk`.
    pub(super) fn archive<'a>(&self, chunk: &Chunk, frame: &'a [u8]) -> Result<&'a [u8]> {
        let mut frames = frame::frames(frame);
        let (found, payload) = match frames.next() {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Err(self.corrupt(chunk, error.reason)),
            None => return Err(self.corrupt(chunk, "nothing is there")),
        };
        let wanted = header(&self.place);
        if found != wanted {
            return Err(self.corrupt(chunk, format!("found {found:?}, wrote {wanted:?}")));
        }
        let Some((head, archive)) = payload.split_first_chunk::<ALIGNMENT>() else {
            return Err(self.corrupt(chunk, "its payload is too short"));
        };
        let word = |at| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let number = u64::from(word(4)) << 32 | u64::from(word(0));
        let (records, input) = (word(8) as usize, word(12));
        if (number, records, input) != (chunk.number, chunk.records, self.place.input) {
            let reason =
                format!("found chunk {number} of input {input} with {records} records instead");
            return Err(self.corrupt(chunk, reason));
        }
        Ok(archive)
    }

    /// Gives back the room of a chunk that was read, and the buffer it came in.
    pub(super) fn release(&mut self, chunk: &Chunk, buffer: Vec<u8>) {
        self.extents.give_back(chunk.offset, chunk.extent_bytes());
        self.recycle(buffer);
    }

    /// The error for bytes that are not those of the chunk.
    pub(super) fn corrupt(&self, chunk: &Chunk, reason: impl std::fmt::Display) -> Error {
        let reason = format!("spilled chunk {}: {reason}", chunk.number);
        Error::corrupt(&self.name.path, chunk.offset, reason)
    }

    /// Takes an extent, extending the file if it may grow.
    fn room_for(&mut self, bytes: u64) -> Result<Option<u64>> {
        let Some(end) = self.extents.end_for(bytes) else { return Ok(None) };
        if end > self.extents.end() {
            let grown = self.file.preallocate(end);
            grown.map_err(|source| self.refused("extend", self.extents.end(), source))?;
            self.extents.grow_to(end);
        }
        Ok(self.extents.take(bytes))
    }

    fn submit(&mut self, operation: Operation, chunk: Chunk, way: Way) {
        let since_ns = now_ns();
        let ticket = self.queue.submit(operation).expect("reads and writes are both bounded");
        self.in_flight.push(InFlight { ticket, chunk, way, since_ns });
    }

    fn complete(&mut self, completion: Completion) -> Result<Done> {
        let Completion { ticket, buffer, result } = completion;
        let buffer = buffer.into_plain();
        let at = self.in_flight.iter().position(|flight| flight.ticket == ticket);
        let InFlight { chunk, way, since_ns, .. } =
            self.in_flight.swap_remove(at.expect("a completion of ours"));
        let took_ns = now_ns() - since_ns;
        match (way, result) {
            (Way::Out, Err(source)) => Err(self.refused("write", chunk.offset, source)),
            (Way::Back, Err(source)) => Err(self.refused("read", chunk.offset, source)),
            (Way::Out, Ok(written)) => {
                assert_eq!(written, buffer.len(), "a write that succeeds is whole");
                self.spilled.chunks += 1;
                self.spilled.records += chunk.records as u64;
                self.spilled.bytes += written as u64;
                self.spilled.write_ns += took_ns;
                self.recycle(buffer);
                Ok(Done::Written(chunk))
            }
            (Way::Back, Ok(read)) if read < chunk.frame_bytes => {
                let reason = format!("{} bytes were written, {read} are there", chunk.frame_bytes);
                Err(self.corrupt(&chunk, reason))
            }
            (Way::Back, Ok(_)) => {
                self.spilled.read_ns += took_ns;
                Ok(Done::Read(chunk, buffer))
            }
        }
    }

    /// The error for a refused operation, with its place and what to do about it.
    fn refused(&self, action: &'static str, offset: u64, source: io::Error) -> Error {
        let Name { disk, path } = &self.name;
        let remedy = match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                let free = path.parent().and_then(|parent| disk.free_bytes(parent).ok());
                let free = free.map_or(String::new(), |bytes| format!("{bytes} bytes are free, "));
                format!("; {free}make room or allow less to be spilled")
            }
            _ => String::new(),
        };
        let reason = format!("at byte {offset}: {source}{remedy}");
        Error::io(action, path)(io::Error::new(source.kind(), reason))
    }

    fn recycle(&mut self, buffer: Vec<u8>) {
        if self.buffers.len() < IN_FLIGHT_MAX && buffer.capacity() <= BUFFER_BYTES_MAX {
            self.buffers.push(buffer);
        }
    }
}

/// The header of every frame in the file.
fn header(place: &Place) -> FrameHeader<'_> {
    let snapshot = SnapshotId(0);
    FrameHeader {
        kind: FrameKind::Spill,
        owner: &place.owner,
        slot: place.slot,
        schema: 0,
        snapshot,
    }
}
