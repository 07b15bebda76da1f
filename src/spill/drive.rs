//! The disk's side of a backlog, one [`Backlog::poll`] at a time: which chunk goes out, which comes
//! back.
//!
//! Invariants
//! - The youngest chunk goes out first: it is needed last. What lies between chunks on disk is either
//!   at hand or on its way, so order is a matter of position in the queue alone.
//! - After an error nothing is tried again: a read that succeeds at the second attempt would hide
//!   that the disk is failing, and a chunk whose write failed is gone.

use std::io;
use std::mem;

use super::file::{Chunk, Done, SpillFile};
use super::{Backlog, Item, Phase};
use crate::config::SPILL_READ_AHEAD_CHUNKS;
use crate::error::{Error, Result};
use crate::record::{Buffer, Data, Record};

impl<T: Record> Backlog<T> {
    /// Takes in what the disk has done and gives it more to do; whether anything went on. Call it
    /// between two rounds of the task, also when nothing was pushed or lent. It returns at once as
    /// long as all fits into memory.
    ///
    /// # Errors
    /// [`Error::Io`] for an operation that was refused and [`Error::Corrupt`] for bytes that are not
    /// what was written, each naming the file and the byte. Every later call fails too.
    pub fn poll(&mut self) -> Result<bool> {
        if let Some((error, place)) = self.failed.as_ref().zip(self.place.as_ref()) {
            let before = io::Error::other(format!("it failed before: {error}"));
            return Err(Error::io("go on with", &place.path)(before));
        }
        if self.file.is_none() && self.held_records <= self.sizes.held_max {
            return Ok(false);
        }
        let polled = self.drive();
        if let Err(error) = &polled {
            self.failed = Some(error.to_string());
        }
        polled
    }

    fn drive(&mut self) -> Result<bool> {
        let completed = self.complete()?;
        let reading = self.read_ahead();
        let writing = self.write_out()?;
        Ok(completed || reading || writing)
    }

    /// Takes in what has been written and read.
    fn complete(&mut self) -> Result<bool> {
        let Some(file) = &mut self.file else { return Ok(false) };
        let mut done = mem::take(&mut self.done);
        file.poll(&mut done)?;
        let progressed = !done.is_empty();
        for done in done.drain(..) {
            match done {
                Done::Written(chunk) => {
                    self.moving_records -= chunk.records;
                    *self.away(&chunk, Phase::Writing) = Item::Away(chunk, Phase::OnDisk);
                }
                Done::Read(chunk, frame) => {
                    let records = self.unpack(&chunk, frame)?;
                    self.moving_records -= chunk.records;
                    self.held_records += chunk.records;
                    self.away_chunks -= 1;
                    *self.away(&chunk, Phase::Reading) = Item::Held(records.into());
                }
            }
        }
        self.done = done;
        Ok(progressed)
    }

    /// The records of a chunk that was read; its room in the file is free again.
    fn unpack(&mut self, chunk: &Chunk, frame: Vec<u8>) -> Result<Vec<T>> {
        let file = self.file.as_mut().expect("a chunk was read from it");
        let archive = file.archive(chunk, &frame)?;
        let records =
            Vec::<T>::from_archive(archive).map_err(|error| file.corrupt(chunk, error))?;
        if records.len() != chunk.records {
            let reason = format!("{} records of {}", records.len(), chunk.records);
            return Err(file.corrupt(chunk, reason));
        }
        file.release(chunk, frame);
        Ok(records)
    }

    /// The item of a chunk that is with the disk. One being read is near the front, one being
    /// written near the back.
    fn away(&mut self, chunk: &Chunk, phase: Phase) -> &mut Item<T> {
        let is_it = |item: &Item<T>| matches!(item, Item::Away(other, at) if other.number == chunk.number && *at == phase);
        let at = match phase {
            Phase::Reading => self.items.iter().position(is_it),
            Phase::Writing | Phase::OnDisk => self.items.iter().rposition(is_it),
        };
        &mut self.items[at.expect("the item stays until its chunk is back")]
    }

    /// Starts to read the chunks at the front that are on disk.
    fn read_ahead(&mut self) -> bool {
        let mut progressed = false;
        let end = self.ahead_end();
        for item in self.items.range_mut(..end) {
            if let (Item::Away(chunk, phase @ Phase::OnDisk), Some(file)) = (item, &mut self.file) {
                *phase = Phase::Reading;
                self.moving_records += chunk.records;
                file.read(*chunk);
                progressed = true;
            }
        }
        progressed
    }

    /// Starts to write the youngest chunks, as many as memory holds too many.
    fn write_out(&mut self) -> Result<bool> {
        let mut progressed = false;
        while self.held_records > self.sizes.held_max {
            if self.file.as_ref().is_some_and(|file| !file.can_write()) {
                break;
            }
            let Some(at) = self.youngest_whole() else { break };
            if !self.send(at)? {
                break;
            }
            progressed = true;
        }
        Ok(progressed)
    }

    /// Hands the chunk at `at` to the disk; whether the file had room for it.
    fn send(&mut self, at: usize) -> Result<bool> {
        let (Item::Held(held), Some(place)) = (&mut self.items[at], &self.place) else {
            unreachable!("only a held chunk of a backlog that spills is sent");
        };
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                none.insert(Box::new(SpillFile::create(place.clone(), self.limits.disk_bytes)?))
            }
        };
        let mut records = mem::replace(held, Buffer::with_capacity(0)).into_vec();
        let count = records.len();
        let archive = records.to_archive().map_err(|error| {
            let reason = format!("records of '{}' do not serialise: {error}", place.owner);
            Error::io("write", &place.path)(io::Error::new(io::ErrorKind::InvalidData, reason))
        })?;
        let Some(chunk) = file.write(&archive, count)? else {
            *held = records.into();
            return Ok(false);
        };
        self.items[at] = Item::Away(chunk, Phase::Writing);
        self.held_records -= count;
        self.moving_records += count;
        self.away_chunks += 1;
        if self.spare.capacity() < records.capacity() {
            records.clear();
            self.spare = records;
        }
        Ok(true)
    }

    /// The youngest chunk at hand that may go: not the one being filled, not one of the first.
    pub(super) fn youngest_whole(&self) -> Option<usize> {
        let end = self.items.len() - usize::from(self.open_records > 0);
        let may_go = |at: &usize| matches!(self.items[*at], Item::Held(_));
        (self.ahead_end()..end).rev().find(may_go)
    }

    /// The index behind the first [`SPILL_READ_AHEAD_CHUNKS`] chunks.
    fn ahead_end(&self) -> usize {
        let is_chunk = |item: &Item<T>| !matches!(item, Item::Control(_));
        let chunks = self.items.iter().enumerate().filter(|(_, item)| is_chunk(item));
        let last = chunks.take(SPILL_READ_AHEAD_CHUNKS).last();
        last.map_or(0, |(at, _)| at + 1)
    }
}
