//! `process`: user code with one value of state per key and any number of outputs per record.

use super::keyed::{Keyed, Select};
use super::{Downstream, Flow, Probe, Stage, Visitor};
use crate::config::BATCH_RECORDS;
use crate::error::Result;
use crate::key::Key;
use crate::record::{Batch, Collector, Data};
use crate::state::KeyedTable;

/// The state of the key at hand.
///
/// # State that expires
/// There are no timers: what a record does depends on records and state alone, so that a replay after a
/// restore does the same. A value that should live for a time carries the time of its last use, taken
/// from the records, and a record that meets one that is too old begins anew. Only a record of the key
/// can [remove](Self::remove) its value: a key that never comes again keeps its place.
///
/// ```
/// # use tidegate::{config::Config, operator::{sink::Collect, source::Items}, stream::Job};
/// const TTL: u64 = 10;
/// # let job = Job::new("visits");
/// # let (sink, results) = Collect::new();
/// # let visits = [("ann", 0_u64), ("bob", 2), ("ann", 9), ("ann", 20)];
/// # let visits = move || visits.map(|(name, time)| (name.to_owned(), time)).into_iter();
/// job.source("visits", Items::new("visits", visits))
///     .key_by(|(name, _)| name.clone())
///     // Visits in a row, and when the last one was.
///     .process("rows", |(name, now), row, out| {
///         if row.get().is_some_and(|(_, last)| now.saturating_sub(*last) > TTL) {
///             row.remove();
///         }
///         let (visits, last) = row.or_insert_with(|| (0_u64, 0));
///         (*visits, *last) = (*visits + 1, now.max(*last));
///         out.push((name, now, *visits));
///     })
///     .sink("out", sink);
/// # job.run(&Config::workers(1))?;
/// # let mut rows = results.take();
/// # rows.sort();
/// # let rows: Vec<_> = rows.iter().map(|(name, now, visits)| (name.as_str(), *now, *visits)).collect();
/// assert_eq!(rows, [("ann", 0, 1), ("ann", 9, 2), ("ann", 20, 1), ("bob", 2, 1)]);
/// # Ok::<(), tidegate::error::Error>(())
/// ```
pub struct KeyState<'a, K: Key, V: Data> {
    table: &'a mut KeyedTable<K, V>,
    hash: u64,
    key: &'a K,
}

impl<K: Key, V: Data> KeyState<'_, K, V> {
    /// The key.
    #[must_use]
    pub fn key(&self) -> &K {
        self.key
    }

    /// The value, if the key has one.
    #[must_use]
    pub fn get(&mut self) -> Option<&V> {
        self.table.get(self.hash, self.key)
    }

    /// The value to change in place, if the key has one.
    #[must_use]
    pub fn get_mut(&mut self) -> Option<&mut V> {
        self.table.get_mut(self.hash, self.key)
    }

    /// The value to change in place; `init` makes it where there is none.
    pub fn or_insert_with(&mut self, init: impl FnOnce() -> V) -> &mut V {
        self.table.upsert(self.hash, self.key, init)
    }

    /// Replaces the value.
    pub fn set(&mut self, value: V) {
        let mut value = Some(value);
        let slot = self.table.upsert(self.hash, self.key, || value.take().expect("set once"));
        if let Some(value) = value {
            *slot = value;
        }
    }

    /// Takes the value away; the key has no state afterwards.
    pub fn remove(&mut self) -> Option<V> {
        self.table.remove(self.hash, self.key)
    }
}

/// The stage of `process`. What a chunk of records (at most 128) emits is held in memory until its
/// successor has room.
pub struct Process<K: Key, V: Data, O, S, F> {
    keyed: Keyed<K, V, S>,
    apply: F,
    downstream: Downstream<O>,
    probe: Probe,
}

impl<K: Key, V: Data, O, S, F> Process<K, V, O, S, F> {
    /// Calls `apply(record, state, out)` for each record.
    #[must_use]
    pub fn new(keyed: Keyed<K, V, S>, apply: F, next: Box<dyn Stage<O>>, probe: Probe) -> Self {
        Self { keyed, apply, downstream: Downstream::new(next), probe }
    }
}

impl<T, K, V, O, S, F> Stage<T> for Process<K, V, O, S, F>
where
    K: Key,
    V: Data,
    O: Send,
    S: Select<T, Key = K>,
    F: FnMut(T, &mut KeyState<'_, K, V>, &mut Collector<O>) + Send,
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
            let (apply, out) = (&mut self.apply, Collector::over(self.downstream.fill()));
            let mut drain = input.drain(BATCH_RECORDS);
            while drain.len() > 0 && out.len() < BATCH_RECORDS {
                let calls = self.keyed.chunk(&mut drain, |select, table, hash, record| {
                    let key = select.key(&record);
                    apply(record, &mut KeyState { table, hash, key: &key }, out);
                });
                calls.for_each(drop);
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
