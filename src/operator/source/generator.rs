//! Sources that make their records: a function of an index, or the items of a collection.

use std::sync::Arc;

use super::{Read, Reader, ReaderContext, Source};
use crate::error::Result;
use crate::record::Record;

/// Splits of a generated sequence: a multiple of every common number of cores.
const SPLITS: u32 = 64;

/// Records `f(0), f(1), .. f(records - 1)`, as fast as they are taken or at a rate
/// ([`Stream::rate`](crate::stream::Stream::rate)). Replayable if `f` is a function of its argument.
///
/// Split s of 64 is the index range `records * s / 64 .. records * (s + 1) / 64`.
pub struct Generator<F> {
    records: u64,
    make: Arc<F>,
    identity: String,
}

impl<T: Record, F: Fn(u64) -> T + Send + Sync + 'static> Generator<F> {
    /// `records` records made by `make`. `identity` names the sequence: a snapshot is only restored
    /// into a generator of the same identity and length.
    pub fn new(identity: impl Into<String>, records: u64, make: F) -> Self {
        Self { records, make: Arc::new(make), identity: identity.into() }
    }

    fn start_of(&self, split: u32) -> u64 {
        (u128::from(self.records) * u128::from(split) / u128::from(SPLITS)) as u64
    }
}

impl<T: Record, F: Fn(u64) -> T + Send + Sync + 'static> Source for Generator<F> {
    type Item = T;

    fn identity(&self, _context: &ReaderContext) -> Result<String> {
        Ok(format!("generator {} of {} records", self.identity, self.records))
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

impl<T, F: Fn(u64) -> T + Send + Sync> Reader<T> for Indices<F> {
    fn read(&mut self, max: usize, out: &mut Vec<T>) -> Result<Read> {
        let end = self.end.min(self.next + max as u64);
        out.extend((self.next..end).map(&*self.make));
        self.next = end;
        Ok(if end == self.end { Read::End } else { Read::More })
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
    fn read(&mut self, max: usize, out: &mut Vec<T>) -> Result<Read> {
        out.extend(self.items.by_ref().take(max));
        self.offset += out.len() as u64;
        Ok(if out.len() < max { Read::End } else { Read::More })
    }

    fn offset(&self) -> u64 {
        self.offset
    }
}
