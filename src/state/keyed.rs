//! Keyed state: the table operators use, whichever way its entries are kept.
//!
//! Owns the choice between [`super::paged`] and [`super::native`], taken once, from the types alone.

use std::ops::Range;
use std::sync::Arc;

use super::exchange::{PageEntry, PageSource};
use super::ledger::Lost;
use super::migrate::{Evolution, OldPages};
use super::native::NativeTable;
use super::paged::PagedTable;
use super::plain::is_plain;
use super::schema::{Layout, Schema, StateTypes, TypeName};
use super::{Drained, OperatorState, StateWriter};
use crate::error::Error;
use crate::id::{KEY_GROUPS, KeyGroup, SnapshotId};
use crate::key::Key;
use crate::record::Data;

/// Values by key, for the key groups of one task.
///
/// Every method takes the key's [`Key::key_hash`], which the caller computes once per record. A hash of
/// a key group the table does not hold is a broken promise of the caller and panics, as does a byte
/// key of 4 GiB.
///
/// ```
/// use tidegate::key::Key;
/// use tidegate::state::KeyedTable;
///
/// let mut counts = KeyedTable::<u64, u64>::new(0..128);
/// for word in [7, 9, 7] {
///     *counts.upsert(word.key_hash(), &word, || 0) += 1;
/// }
/// assert_eq!(counts.get(7.key_hash(), &7), Some(&2));
/// assert_eq!(counts.len(), 2);
/// ```
pub struct KeyedTable<K: Key, V: Data> {
    groups: Range<u32>,
    table: Table<K, V>,
    marked: SnapshotId,
    evolution: Evolution<K, V>,
    is_restored: bool,
    /// What [`OperatorState::migrate`] has to turn into this version.
    old: Option<OldPages>,
}

#[expect(
    clippy::large_enum_variant,
    reason = "there are few, and every record goes through one: no box"
)]
enum Table<K: Key, V: Data> {
    Paged(PagedTable<K, V>),
    Native(NativeTable<K, V>),
}

/// Where an iteration over a key group stands; starts at [`Cursor::default`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor(pub(super) Option<u64>);

impl Default for Cursor {
    fn default() -> Self {
        Self(Some(0))
    }
}

impl<K: Key, V: Data> KeyedTable<K, V> {
    /// A constant once compiled.
    fn layout() -> Layout {
        let is_paged = (K::BYTES.is_some() || is_plain::<K>()) && is_plain::<V>();
        match (is_paged, K::BYTES.is_some()) {
            (true, true) => Layout::BytePages,
            (true, false) => Layout::Pages,
            (false, _) => Layout::Entries,
        }
    }

    /// An empty table for a range of key groups, of version 1.
    #[must_use]
    pub fn new(groups: Range<u32>) -> Self {
        Self::evolving(groups, Evolution::default())
    }

    /// An empty table of some version.
    #[must_use]
    pub fn evolving(groups: Range<u32>, evolution: Evolution<K, V>) -> Self {
        assert!(groups.start < groups.end && groups.end <= KEY_GROUPS, "key groups {groups:?}");
        let table = match Self::layout() {
            Layout::Entries => Table::Native(NativeTable::new(groups.clone())),
            _ => Table::Paged(PagedTable::new(groups.clone())),
        };
        let marked = SnapshotId(0);
        Self { groups, table, marked, evolution, is_restored: false, old: None }
    }

    /// What such a table is made of.
    #[must_use]
    pub fn types() -> StateTypes {
        StateTypes { layout: Self::layout(), key: TypeName::of::<K>(), value: TypeName::of::<V>() }
    }

    fn schema(&self) -> Schema {
        Schema { layout: Self::layout(), version: self.evolution.version }
    }

    /// The key groups this table holds.
    #[must_use]
    pub fn groups(&self) -> Range<u32> {
        self.groups.clone()
    }

    /// How many entries there are; in a restored table, of those that are loaded.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.table {
            Table::Paged(table) => table.len(),
            Table::Native(table) => table.len(),
        }
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Asks the cache for what an access to this hash reads first. Worth it for tables larger than
    /// the cache: prefetch a batch of 64 to 256 keys, then update them.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        if let Table::Paged(table) = &self.table {
            table.prefetch(hash);
        }
    }

    /// The value of a key, made by `init` if there is none.
    #[inline]
    pub fn upsert(&mut self, hash: u64, key: &K, init: impl FnOnce() -> V) -> &mut V {
        debug_assert_eq!(hash, key.key_hash());
        match &mut self.table {
            Table::Paged(table) => table.upsert(hash, key, init),
            Table::Native(table) => table.upsert(hash, key, init),
        }
    }

    /// The value of a key.
    #[inline]
    pub fn get(&mut self, hash: u64, key: &K) -> Option<&V> {
        match &mut self.table {
            Table::Paged(table) => table.get(hash, key),
            Table::Native(table) => table.get(hash, key),
        }
    }

    /// The value of a key, to change it.
    #[inline]
    pub fn get_mut(&mut self, hash: u64, key: &K) -> Option<&mut V> {
        match &mut self.table {
            Table::Paged(table) => table.get_mut(hash, key),
            Table::Native(table) => table.get_mut(hash, key),
        }
    }

    /// Sets the value of a key; the value it had.
    pub fn insert(&mut self, hash: u64, key: &K, value: V) -> Option<V> {
        if let Some(old) = self.get_mut(hash, key) {
            return Some(std::mem::replace(old, value));
        }
        self.upsert(hash, key, || value);
        None
    }

    /// Takes a key out; the value it had.
    pub fn remove(&mut self, hash: u64, key: &K) -> Option<V> {
        match &mut self.table {
            Table::Paged(table) => table.remove(hash, key),
            Table::Native(table) => table.remove(hash, key),
        }
    }

    /// Appends entries of `group` from `cursor` on, until at least `max` were appended or the group
    /// is at its end; whether there are more.
    ///
    /// It stops between pages only, so up to a page more than `max` are appended. In return an entry that exists all the time is met exactly
    /// once, whatever is changed between the calls.
    pub fn entries(
        &mut self,
        group: KeyGroup,
        cursor: &mut Cursor,
        max: usize,
        out: &mut Vec<(K, V)>,
    ) -> bool {
        assert!(self.groups.contains(&group.0), "{group:?} of a table of {:?}", self.groups);
        match &mut self.table {
            Table::Paged(table) => table.entries(group, cursor, max, out),
            Table::Native(table) => table.entries(group, cursor, max, out),
        }
    }
}

impl<K: Key, V: Data> OperatorState for KeyedTable<K, V> {
    fn mark(&mut self, snapshot: SnapshotId) {
        self.marked = snapshot;
        match &mut self.table {
            Table::Paged(table) => table.mark(),
            Table::Native(table) => table.mark(),
        }
    }

    fn drain(&mut self, budget_bytes: usize, out: &mut dyn StateWriter) -> Result<Drained, Error> {
        let schema = self.schema().word();
        let drained = match &mut self.table {
            Table::Paged(table) => table.drain(schema, budget_bytes, out),
            Table::Native(table) => table.drain(schema, budget_bytes, out),
        };
        drained.map_err(|reason| Error::Snapshot { snapshot: self.marked, reason })
    }

    fn abandon(&mut self) {
        match &mut self.table {
            Table::Paged(table) => table.abandon(),
            Table::Native(table) => table.abandon(),
        }
    }

    fn lost(&mut self, lost: &[Lost]) {
        match &mut self.table {
            Table::Paged(table) => table.lost(lost),
            Table::Native(table) => table.lost(lost),
        }
    }

    fn restore_pages(
        &mut self,
        schema: u32,
        pages: &[PageEntry],
        source: &Arc<dyn PageSource>,
    ) -> Result<(), String> {
        if std::mem::replace(&mut self.is_restored, true) {
            return Err("its pages come in two versions".into());
        }
        let own = self.schema();
        let found =
            Schema::of(schema).ok_or_else(|| format!("no layout has number {schema:#x}"))?;
        if found.version != own.version {
            if !self.evolution.migrations.iter().any(|migration| migration.reads(found)) {
                return Err(format!("{found:?} is not known, {own:?} is"));
            }
            let (pages, source) = (pages.to_vec(), source.clone());
            self.old = Some(OldPages { version: found.version, pages, source });
            return Ok(());
        }
        if found != own {
            return Err(format!("{found:?}, expected {own:?} for these types"));
        }
        match &mut self.table {
            Table::Paged(table) => table.restore_pages(pages, source),
            Table::Native(table) => table.restore_pages(pages, source),
        }
    }

    fn migrate(&mut self) -> Result<(), Error> {
        if let Table::Paged(table) = &mut self.table {
            table.take_shared()?;
        }
        let Some(old) = self.old.take() else { return Ok(()) };
        let mut migrations = std::mem::take(&mut self.evolution.migrations);
        let migration = migrations.iter_mut().find(|migration| migration.from().0 == old.version);
        let migration = migration.expect("it was found when the pages were taken");
        let groups = self.groups.clone();
        migration.read(old, groups, |key, value| _ = self.insert(key.key_hash(), key, value))
    }

    fn load(&mut self, budget_bytes: usize) -> Result<bool, Error> {
        match &mut self.table {
            Table::Paged(table) => table.load(budget_bytes),
            Table::Native(table) => table.load(budget_bytes),
        }
    }

    fn memory_bytes(&self) -> usize {
        match &self.table {
            Table::Paged(table) => table.memory_bytes(),
            Table::Native(table) => table.memory_bytes(),
        }
    }
}
