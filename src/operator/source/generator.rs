//! Sources that make their records: a function of an index, or the items of a collection.

use std::marker::PhantomData;
use std::sync::Arc;

use super::{Read, Reader, ReaderContext, Source};
use crate::config::BATCH_RECORDS;
use crate::error::Result;
use crate::record::{Collector, Record};

/// Splits of a generated sequence: a multiple of every common number of cores.
const SPLITS: u32 = 64;

/// Records made from the indices 0, 1, .. as fast as they are taken or at a rate
/// ([`Stream::rate`](crate::stream::Stream::rate)). Replayable if they are a function of the index.
///
/// Split s of 64 is the index range `indices * s / 64 .. indices * (s + 1) / 64`.
pub struct Generator<T, F> {
    indices: u64,
    make: Arc<F>,
    identity: String,
    record: PhantomData<fn() -> T>,
}

impl<T: Record, F: Fn(u64, &mut Collector<T>) + Send + Sync + 'static> Generator<T, F> {
    /// What `make(index, out)` pushes for each of `indices` indices. `identity` names the sequence:
    /// a snapshot is only restored into a generator of the same identity and length.
    pub fn new(identity: impl Into<String>, indices: u64, make: F) -> Self {
        Self { indices, make: Arc::new(make), identity: identity.into(), record: PhantomData }
    }

    fn start_of(&self, split: u32) -> u64 {
        (u128::from(self.indices) * u128::from(split) / u128::from(SPLITS)) as u64
    }
}

impl<T: Record, F: Fn(u64, &mut Collector<T>) + Send + Sync + 'static> Source for Generator<T, F> {
    type Item = T;

    fn identity(&self, _context: &ReaderContext) -> Result<String> {
        Ok(format!("generator {} of {} indices", self.identity, self.indices))
    }

    fn splits(&self) -> u32 {
        SPLITS
    }

    fn reader(
        &self,
        split: u32,
        offset: Option<u64>,
        _context: &ReaderContext,
    ) -> Result<Box<dyn Reader<T>>> {
        let next = offset.unwrap_or(self.start_of(split));
        let make = self.make.clone();
        Ok(Box::new(Indices { next, end: self.start_of(split + 1), make }))
    }
}

struct Indices<F> {
    next: u64,
    end: u64,
    make: Arc<F>,
}

impl<T, F: Fn(u64, &mut Collector<T>) + Send + Sync> Reader<T> for Indices<F> {
    fn read(&mut self, max: usize, out: &mut Collector<T>) -> Result<(Read, usize)> {
        let (start, end) = (self.next, self.end.min(self.next.saturating_add(max as u64)));
        while self.next < end && out.len() < BATCH_RECORDS {
            (self.make)(self.next, out);
            self.next += 1;
        }
        let read = if self.next == self.end { Read::End } else { Read::More };
        Ok((read, (self.next - start) as usize))
    }

    fn offset(&self) -> u64 {
        self.next
    }
}

/// The items of an iterator, in order, in one task. Replayable: after a restore the iterator is
/// made anew and the items before the offset are skipped.
pub struct Items<F> {
    make: F,
    identity: String,
}

impl<T: Record, I: Iterator<Item = T> + Send, F: Fn() -> I + Send + Sync + 'static> Items<F> {
    /// The items of the iterator that `make` returns; it must return the same items each time.
    pub fn new(identity: impl Into<String>, make: F) -> Self {
        Self { make, identity: identity.into() }
    }
}

impl<T, I, F> Source for Items<F>
where
    T: Record,
    I: Iterator<Item = T> + Send + 'static,
    F: Fn() -> I + Send + Sync + 'static,
{
    type Item = T;

    fn identity(&self, _context: &ReaderContext) -> Result<String> {
        Ok(format!("items {}", self.identity))
    }

    fn splits(&self) -> u32 {
        1
    }

    fn reader(
        &self,
        _split: u32,
        offset: Option<u64>,
        _context: &ReaderContext,
    ) -> Result<Box<dyn Reader<T>>> {
        let offset = offset.unwrap_or(0);
        let items = (self.make)().skip(offset as usize);
        Ok(Box::new(Counted { items, offset }))
    }
}

struct Counted<I> {
    items: I,
    offset: u64,
}

impl<T, I: Iterator<Item = T> + Send> Reader<T> for Counted<I> {
    fn read(&mut self, max: usize, out: &mut Collector<T>) -> Result<(Read, usize)> {
        let (before, max) = (out.len(), max.min(BATCH_RECORDS));
        out.extend(self.items.by_ref().take(max));
        let count = out.len() - before;
        self.offset += count as u64;
        Ok((if count < max { Read::End } else { Read::More }, count))
    }

    fn offset(&self) -> u64 {
        self.offset
    }
}
