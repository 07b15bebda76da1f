//! What records weigh: an estimate of their bytes in memory, with what they own on the heap.
//!
//! Every budget for records that wait (a backlog, a log, a loop) is a number of bytes. For plain records
//! that is their number times `size_of`. A string or a vector owns more than that, which Rust has no way
//! to ask for; its archive does have a length, so one record in 64 is archived, and the bytes
//! beyond its fixed part count as owned.
//!
//! Invariants
//! - A type that owns nothing (no drop glue) is never looked at: its weight is exact, and free.
//! - The estimate follows growth within a few looks, and forgets slowly: a record that is heavier counts
//!   half, a lighter one a sixteenth. Once records are heavy, every look takes a sample, so that a loop
//!   whose records grow each time round is seen before the next round.
//!
//! It is an estimate: capacity that is not used, and what is shared behind an `Arc`, are not seen as they
//! are.

use std::marker::PhantomData;
use std::mem;

use rkyv::Archive;

use crate::record::Record;

/// One record in so many is archived to learn its weight.
const LOOK_EVERY: usize = 64;
/// Owned bytes from which on every look takes a sample.
const HEAVY_BYTES: usize = 1 << 10;

/// The estimated weight of the records of one stream.
#[derive(Clone, Debug)]
pub struct Weight<T> {
    owned_bytes: usize,
    /// Records looked past since the last sample.
    passed: usize,
    /// Which record of a batch the next sample is: not always the first, which may always be the same.
    turn: usize,
    records: PhantomData<fn(T)>,
}

impl<T> Default for Weight<T> {
    fn default() -> Self {
        Self { owned_bytes: 0, passed: LOOK_EVERY, turn: 0, records: PhantomData }
    }
}

impl<T: Record> Weight<T> {
    /// Bytes of one record: its size, at least 1, and what it owns, about.
    #[inline]
    #[must_use]
    pub fn record_bytes(&self) -> usize {
        size_of::<T>().max(1) + self.owned_bytes
    }

    /// Looks at records that come by. Whether the estimate has changed.
    #[inline]
    pub fn look(&mut self, records: &[T]) -> bool {
        mem::needs_drop::<T>() && self.sample(records)
    }

    /// Whether it rests on a record that came by.
    #[must_use]
    pub fn is_known(&self) -> bool {
        !mem::needs_drop::<T>() || self.turn > 0
    }

    /// Learns the mean of all these records: to be sure before something is refused for their weight, as
    /// one record among many may have been the one that was looked at.
    pub fn learn<'a>(&mut self, records: impl Iterator<Item = &'a T>)
    where
        T: 'a,
    {
        if !mem::needs_drop::<T>() {
            return;
        }
        let (mut count, mut bytes) = (0_usize, 0_usize);
        for record in records {
            (count, bytes) = (count + 1, bytes + owned_bytes(record));
        }
        if count > 0 {
            self.owned_bytes = bytes.div_ceil(count);
        }
    }

    fn sample(&mut self, records: &[T]) -> bool {
        self.passed += records.len();
        if records.is_empty() || self.passed < LOOK_EVERY && self.owned_bytes < HEAVY_BYTES {
            return false;
        }
        self.passed = 0;
        self.turn = self.turn.wrapping_add(1);
        let owned = owned_bytes(&records[self.turn % records.len()]);
        let before = self.owned_bytes;
        self.owned_bytes = if owned > before {
            before + (owned - before).div_ceil(2)
        } else {
            before - (before - owned).div_ceil(16)
        };
        self.owned_bytes != before
    }
}

/// What a record owns. One that cannot be archived is an error where that is needed, not here.
fn owned_bytes<T: Record>(record: &T) -> usize {
    let bytes = record.to_archive().map_or(0, |archive| archive.len());
    bytes.saturating_sub(size_of::<<T as Archive>::Archived>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_records_weigh_their_size() {
        let mut weight = Weight::<(u64, u8)>::default();
        assert!(!weight.look(&[(1, 2); 100]));
        assert_eq!(weight.record_bytes(), 16);
        assert_eq!(Weight::<()>::default().record_bytes(), 1);
    }

    #[test]
    fn what_records_own_is_counted_and_forgotten_slowly() {
        let mut weight = Weight::<String>::default();
        let of = |bytes: usize, count: usize| vec!["x".repeat(bytes); count];
        assert!(weight.look(&of(1 << 20, 1)), "the first is looked at");
        let heavy = weight.record_bytes();
        assert!((1 << 19..1 << 20).contains(&heavy), "{heavy}");
        assert!(weight.look(&of(1 << 20, 1)), "heavy ones all are");
        weight.look(&of(0, 1));
        assert!(weight.record_bytes() > heavy, "{}", weight.record_bytes());
        while weight.look(&of(0, 64)) {}
        assert_eq!(weight.record_bytes(), size_of::<String>());
    }

    #[test]
    fn one_heavy_record_among_many_is_put_right_by_looking_at_all() {
        let mut weight = Weight::<String>::default();
        assert!(!weight.is_known());
        let mut all = vec!["x".repeat(100); 999];
        all.push("x".repeat(1 << 20));
        weight.look(&all[999..]);
        assert!(weight.is_known() && weight.record_bytes() > 1 << 19);
        weight.learn(all.iter());
        let mean = size_of::<String>() + 100 + (1 << 20) / 1000;
        assert!((mean - 10..mean + 10).contains(&weight.record_bytes()), "{weight:?}");
        weight.learn([].iter());
        assert!((mean - 10..mean + 10).contains(&weight.record_bytes()), "{weight:?}");
    }

    #[test]
    fn of_light_records_few_are_looked_at() {
        let mut weight = Weight::<String>::default();
        weight.look(&["a".repeat(100)]);
        let light = weight.record_bytes();
        (1..LOOK_EVERY).for_each(|_| assert!(!weight.look(&["a".repeat(300)])));
        assert!(weight.look(&["a".repeat(300)]) && weight.record_bytes() > light);
    }
}
