//! Keyed operators: reduce, fold and aggregate, over a table of one value per key.
//!
//! A batch is handled in two passes: hash every key and prefetch its slot, then update. With state
//! larger than the cache the memory latencies of a whole chunk overlap (measured: 1.5-2x).

use std::ops::Range;

use super::{Downstream, Flow, Part, Probe, Stage, Visitor};
use crate::config::BATCH_RECORDS;
use crate::error::Result;
use crate::id::{KEY_GROUPS, KeyGroup, SnapshotId, StateSlot};
use crate::key::Key;
use crate::record::{Batch, Data, Drain, append};
use crate::state::{Cursor, Drained, Evolution, KeyedTable, OperatorState, StateWriter};

/// Records whose slots are prefetched before the first of them is updated.
const CHUNK_RECORDS: usize = 128;

/// How a record's key is found: by value or by reference (no copy of a long key).
pub trait Select<T>: Clone + Send + 'static {
    /// What it finds.
    type Key: Key;

    /// Calls `use_key` with the key of `record`.
    fn with<R>(&mut self, record: &T, use_key: impl FnOnce(&Self::Key) -> R) -> R;

    /// The key itself.
    fn key(&mut self, record: &T) -> Self::Key {
        self.with(record, Self::Key::clone)
    }
}

/// A key that is computed from the record.
#[derive(Clone)]
pub struct ByValue<F>(pub F);

impl<T, K: Key, F: FnMut(&T) -> K + Clone + Send + 'static> Select<T> for ByValue<F> {
    type Key = K;

    #[inline]
    fn with<R>(&mut self, record: &T, use_key: impl FnOnce(&K) -> R) -> R {
        use_key(&(self.0)(record))
    }

    #[inline]
    fn key(&mut self, record: &T) -> K {
        (self.0)(record)
    }
}

/// A key that is a part of the record.
#[derive(Clone)]
pub struct ByReference<F>(pub F);

impl<T, K: Key, F: FnMut(&T) -> &K + Clone + Send + 'static> Select<T> for ByReference<F> {
    type Key = K;

    #[inline]
    fn with<R>(&mut self, record: &T, use_key: impl FnOnce(&K) -> R) -> R {
        use_key((self.0)(record))
    }
}

/// The table of a keyed stage, and the chunked pass over it.
pub struct Keyed<K: Key, V: Data, S> {
    name: String,
    select: S,
    /// The values.
    pub table: KeyedTable<K, V>,
    hashes: [u64; CHUNK_RECORDS],
}

impl<K: Key, V: Data, S> Keyed<K, V, S> {
    /// State of operator `name` for the keys of `groups`.
    #[must_use]
    pub fn new(name: String, select: S, groups: Range<u32>, evolution: Evolution<K, V>) -> Self {
        let table = KeyedTable::evolving(groups, evolution);
        Self { name, select, table, hashes: [0; CHUNK_RECORDS] }
    }

    /// Calls `update(selector, table, hash, record)` for the next chunk of `input`; the results
    /// are for whoever drives the iterator.
    #[inline]
    pub fn chunk<T, R>(
        &mut self,
        input: &mut Drain<'_, T>,
        mut update: impl FnMut(&mut S, &mut KeyedTable<K, V>, u64, T) -> R,
    ) -> impl ExactSizeIterator<Item = R>
    where
        S: Select<T, Key = K>,
    {
        let count = input.len().min(CHUNK_RECORDS);
        let hashes = &mut self.hashes[..count];
        for (hash, record) in hashes.iter_mut().zip(input.as_slice()) {
            *hash = self.select.with(record, Key::key_hash);
            self.table.prefetch(*hash);
        }
        let (select, table) = (&mut self.select, &mut self.table);
        hashes.iter().zip(input).map(move |(hash, record)| update(select, table, *hash, record))
    }

    /// Shows the table under the operator's name.
    ///
    /// # Errors
    /// The visitor's.
    pub fn visit(&mut self, visitor: &mut Visitor<'_>) -> Result<()> {
        visitor(Part::State(&self.name, &mut self.table))
    }
}

/// What a keyed aggregation does per record.
pub trait Fold<T, K: Key, V: Data, O>: Send {
    /// The value of `key`, made if it is new. `record` is taken in by the `update` that follows.
    fn entry<'a>(
        &mut self,
        table: &'a mut KeyedTable<K, V>,
        hash: u64,
        key: &K,
        record: &T,
    ) -> &'a mut V;

    /// Takes `record` into the value.
    fn update(&mut self, value: &mut V, record: T);

    /// What is emitted for the key.
    fn emit(&mut self, key: K, value: &V) -> O;
}

/// `fold` and `aggregate`: a value that begins as `init()` and takes records in.
#[derive(Clone)]
pub struct Aggregate<Init, Update, Emit> {
    /// The value of a new key.
    pub init: Init,
    /// Takes a record in.
    pub update: Update,
    /// What is emitted.
    pub emit: Emit,
}

impl<T, K, V, O, Init, Update, Emit> Fold<T, K, V, O> for Aggregate<Init, Update, Emit>
where
    K: Key,
    V: Data,
    Init: FnMut() -> V + Send,
    Update: FnMut(&mut V, T) + Send,
    Emit: FnMut(K, &V) -> O + Send,
{
    #[inline]
    fn entry<'a>(
        &mut self,
        table: &'a mut KeyedTable<K, V>,
        hash: u64,
        key: &K,
        _record: &T,
    ) -> &'a mut V {
        table.upsert(hash, key, &mut self.init)
    }

    #[inline]
    fn update(&mut self, value: &mut V, record: T) {
        (self.update)(value, record);
    }

    #[inline]
    fn emit(&mut self, key: K, value: &V) -> O {
        (self.emit)(key, value)
    }
}

/// `reduce`: the first record of a key is its value, the others are combined with it.
#[derive(Clone)]
pub struct Reduce<F> {
    combine: F,
    /// Whether the record at hand has become the value of a new key.
    taken: bool,
}

impl<F> Reduce<F> {
    /// Combines with `combine`.
    pub fn new(combine: F) -> Self {
        Self { combine, taken: false }
    }
}

impl<T: Data, K: Key, F: FnMut(&mut T, T) + Send> Fold<T, K, T, T> for Reduce<F> {
    #[inline]
    fn entry<'a>(
        &mut self,
        table: &'a mut KeyedTable<K, T>,
        hash: u64,
        key: &K,
        record: &T,
    ) -> &'a mut T {
        self.taken = false;
        table.upsert(hash, key, || {
            self.taken = true;
            record.clone()
        })
    }

    #[inline]
    fn update(&mut self, value: &mut T, record: T) {
        if !self.taken {
            (self.combine)(value, record);
        }
    }

    #[inline]
    fn emit(&mut self, _key: K, value: &T) -> T {
        value.clone()
    }
}

/// Emits a key's new value after every record.
pub struct EachUpdate<K: Key, V: Data, O, S, F> {
    keyed: Keyed<K, V, S>,
    fold: F,
    downstream: Downstream<O>,
    probe: Probe,
}

impl<K: Key, V: Data, O, S, F> EachUpdate<K, V, O, S, F> {
    /// Folds into `keyed`.
    #[must_use]
    pub fn new(keyed: Keyed<K, V, S>, fold: F, next: Box<dyn Stage<O>>, probe: Probe) -> Self {
        Self { keyed, fold, downstream: Downstream::new(next), probe }
    }
}

impl<T, K, V, O, S, F> Stage<T> for EachUpdate<K, V, O, S, F>
where
    K: Key,
    V: Data,
    O: Send,
    S: Select<T, Key = K>,
    F: Fold<T, K, V, O>,
{
    fn process(&mut self, input: &mut Batch<'_, T>) -> Result<Flow> {
        loop {
            if self.downstream.flush()? == Flow::Full {
                return Ok(Flow::Full);
            }
            if input.is_empty() {
                return Ok(Flow::Done);
            }
            self.probe.enter();
            let (fold, out) = (&mut self.fold, self.downstream.fill());
            let mut drain = input.drain(BATCH_RECORDS);
            while drain.len() > 0 {
                let updates = self.keyed.chunk(&mut drain, |select, table, hash, record| {
                    let key = select.key(&record);
                    let value = fold.entry(table, hash, &key, &record);
                    fold.update(value, record);
                    fold.emit(key, value)
                });
                append(out, updates);
            }
        }
    }

    fn flush(&mut self) -> Result<Flow> {
        self.downstream.flush()
    }

    fn finish(&mut self) -> Result<Flow> {
        self.downstream.finish()
    }

    fn visit(&mut self, visitor: &mut Visitor<'_>) -> Result<()> {
        self.keyed.visit(visitor)?;
        self.downstream.visit(visitor)
    }
}

/// Emits every key once, when the input has ended.
///
/// Which key groups have been emitted is part of the state, so a job restored after that does not
/// emit them again.
pub struct AtEnd<K: Key, V: Data, O, S, F> {
    keyed: Keyed<K, V, S>,
    fold: F,
    emitted: Emitted,
    cursor: Cursor,
    entries: Vec<(K, V)>,
    downstream: Downstream<O>,
    probe: Probe,
}

impl<K: Key, V: Data, O, S, F> AtEnd<K, V, O, S, F> {
    /// Folds into `keyed`, the state of `groups`.
    #[must_use]
    pub fn new(
        keyed: Keyed<K, V, S>,
        groups: Range<u32>,
        fold: F,
        next: Box<dyn Stage<O>>,
        probe: Probe,
    ) -> Self {
        let emitted = Emitted::new(&keyed.name, groups);
        let (cursor, entries) = (Cursor::default(), Vec::new());
        Self { keyed, fold, emitted, cursor, entries, downstream: Downstream::new(next), probe }
    }
}

impl<T, K, V, O, S, F> Stage<T> for AtEnd<K, V, O, S, F>
where
    K: Key,
    V: Data,
    O: Send,
    S: Select<T, Key = K>,
    F: Fold<T, K, V, O>,
{
    fn process(&mut self, input: &mut Batch<'_, T>) -> Result<Flow> {
        self.probe.enter();
        let fold = &mut self.fold;
        let mut drain = input.drain(usize::MAX);
        while drain.len() > 0 {
            let updates = self.keyed.chunk(&mut drain, |select, table, hash, record| {
                let value = select.with(&record, |key| fold.entry(table, hash, key, &record));
                fold.update(value, record);
            });
            updates.for_each(drop);
        }
        Ok(Flow::Done)
    }

    fn flush(&mut self) -> Result<Flow> {
        self.downstream.flush()
    }

    fn finish(&mut self) -> Result<Flow> {
        let mut pauses = false;
        loop {
            if self.downstream.flush()? == Flow::Full {
                return Ok(Flow::Full);
            }
            let Some(group) = self.emitted.next() else { return self.downstream.finish() };
            if pauses {
                return Ok(Flow::Full);
            }
            self.probe.enter();
            let more = self.keyed.table.entries(
                KeyGroup(group),
                &mut self.cursor,
                BATCH_RECORDS,
                &mut self.entries,
            );
            pauses = self.probe.pauses_after(self.entries.len());
            let out = self.downstream.fill();
            out.extend(self.entries.drain(..).map(|(key, value)| self.fold.emit(key, &value)));
            if !more {
                self.emitted.set(group);
                self.cursor = Cursor::default();
            }
        }
    }

    fn visit(&mut self, visitor: &mut Visitor<'_>) -> Result<()> {
        self.keyed.visit(visitor)?;
        self.emitted.visit(visitor)?;
        self.downstream.visit(visitor)
    }
}

/// Which key groups [`AtEnd`] has emitted.
struct Emitted {
    name: String,
    state: EmittedState,
}

struct EmittedState {
    groups: Range<u32>,
    /// One bit per key group.
    emitted: u128,
    marked: Option<u128>,
}

const _: () = assert!(KEY_GROUPS == u128::BITS, "one bit per key group");

const SCHEMA_EMITTED: u32 = 1;

impl Emitted {
    /// None yet. `#` cannot be part of a user's operator name, so the name is free.
    fn new(operator: &str, groups: Range<u32>) -> Self {
        let state = EmittedState { groups, emitted: 0, marked: None };
        Self { name: format!("{operator}#emitted"), state }
    }

    /// The first group still to be emitted.
    fn next(&self) -> Option<u32> {
        let EmittedState { groups, emitted, .. } = &self.state;
        groups.clone().find(|group| emitted & (1 << group) == 0)
    }

    fn set(&mut self, group: u32) {
        self.state.emitted |= 1 << group;
    }

    fn visit(&mut self, visitor: &mut Visitor<'_>) -> Result<()> {
        visitor(Part::State(&self.name, &mut self.state))
    }
}

impl OperatorState for EmittedState {
    fn mark(&mut self, _snapshot: SnapshotId) {
        self.marked = Some(self.emitted);
    }

    fn drain(&mut self, _budget_bytes: usize, out: &mut dyn StateWriter) -> Result<Drained> {
        let marked = self.marked.take().unwrap_or(0);
        for group in self.groups.clone().filter(|group| marked & (1 << group) != 0) {
            out.write(StateSlot::KeyGroup(KeyGroup(group)), SCHEMA_EMITTED, &[1]);
        }
        Ok(Drained::Done)
    }

    fn abandon(&mut self) {
        self.marked = None;
    }

    fn restore(&mut self, slot: StateSlot, schema: u32, bytes: &[u8]) -> Result<(), String> {
        if schema != SCHEMA_EMITTED {
            return Err(format!(
                "emitted key groups have schema {schema}, known is {SCHEMA_EMITTED}"
            ));
        }
        match (slot, bytes) {
            (StateSlot::KeyGroup(group), [1]) if group.0 < KEY_GROUPS => {
                self.emitted |= 1 << group.0;
                Ok(())
            }
            _ => Err(format!("{slot:?} with {} bytes is not an emitted key group", bytes.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_key_groups_that_there_are_can_have_been_emitted() {
        let mut emitted = Emitted::new("count", 0..KEY_GROUPS);
        let mut restore = |group, schema, bytes: &[u8]| {
            emitted.state.restore(StateSlot::KeyGroup(KeyGroup(group)), schema, bytes)
        };
        assert_eq!(restore(KEY_GROUPS - 1, SCHEMA_EMITTED, &[1]), Ok(()));
        assert!(restore(KEY_GROUPS, SCHEMA_EMITTED, &[1]).is_err(), "it was shifted out: a panic");
        assert!(restore(0, SCHEMA_EMITTED + 1, &[1]).is_err(), "a later schema was taken for this");
        assert!(restore(0, SCHEMA_EMITTED, &[]).is_err());
        assert_eq!(emitted.state.emitted, 1 << (KEY_GROUPS - 1));
    }
}
