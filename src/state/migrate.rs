//! State of an older version, turned into this one's when a job is restored.
//!
//! A table that is given pages of an older version keeps them aside; [`Migration::read`] then reads
//! them, one key group after the other, and every entry goes into the new table as if a record had
//! put it there. So all of it has changed, and the next snapshot writes all of it, in the new version.
//!
//! It takes the time of reading, converting and once writing the operator's state, before the first
//! record. Page by page on demand would spread that, at the price of two types behind one table for
//! as long as the job lives.
//!
//! Invariants
//! - In memory is the new state and one key group of the old.
//! - The old pages are not changed, and not referred to by the new table.

use std::ops::Range;
use std::sync::Arc;

use super::exchange::{PageEntry, PageSource};
use super::schema::{Schema, StateTypes};
use super::tiles::holding;
use super::{Cursor, KeyedTable, OperatorState};
use crate::error::Error;
use crate::id::KeyGroup;
use crate::key::Key;
use crate::record::Data;

/// Bytes of pages read at once.
const READ_BYTES: usize = 1 << 20;
/// Entries converted at once.
const ENTRIES: usize = 1024;

/// Pages of an older version.
pub(super) struct OldPages {
    pub version: u32,
    pub pages: Vec<PageEntry>,
    pub source: Arc<dyn PageSource>,
}

type Read<K, V> = Box<dyn FnMut(OldGroup<'_>, &mut dyn FnMut(&K, V)) -> Result<(), Error> + Send>;

/// One key group of them.
struct OldGroup<'a> {
    schema: Schema,
    group: u32,
    pages: &'a [PageEntry],
    source: &'a Arc<dyn PageSource>,
}

/// The way from one older version of a state to this one.
pub struct Migration<K: Key, V: Data> {
    from: u32,
    types: StateTypes,
    read: Read<K, V>,
}

impl<K: Key, V: Data> Migration<K, V> {
    /// From values of version `from`, which `convert` turns into this version's.
    #[must_use]
    pub fn new<O: Data>(from: u32, convert: impl FnMut(O) -> V + Send + 'static) -> Self {
        let mut convert = convert;
        let read = move |old: OldGroup<'_>, take: &mut dyn FnMut(&K, V)| {
            each_entry::<K, O>(&old, |key, value| take(key, convert(value)))
        };
        Self { from, types: KeyedTable::<K, O>::types(), read: Box::new(read) }
    }

    /// The version it leads from, and what that is made of.
    #[must_use]
    pub fn from(&self) -> (u32, StateTypes) {
        (self.from, self.types.clone())
    }

    /// Whether it reads state of this schema.
    pub(super) fn reads(&self, schema: Schema) -> bool {
        schema == Schema { layout: self.types.layout, version: self.from }
    }

    /// Gives every entry of these key groups to `take`.
    pub(super) fn read(
        &mut self,
        mut old: OldPages,
        groups: Range<u32>,
        mut take: impl FnMut(&K, V),
    ) -> Result<(), Error> {
        let schema = Schema { layout: self.types.layout, version: self.from };
        old.pages.sort_unstable_by_key(|page| page.prefix);
        for group in groups {
            let pages = holding(&(group..group + 1), &old.pages);
            if !pages.is_empty() {
                (self.read)(OldGroup { schema, group, pages, source: &old.source }, &mut take)?;
            }
        }
        Ok(())
    }
}

fn each_entry<K: Key, O: Data>(
    old: &OldGroup<'_>,
    mut take: impl FnMut(&K, O),
) -> Result<(), Error> {
    let OldGroup { schema, group, pages, source } = old;
    let mut table = KeyedTable::<K, O>::evolving(
        *group..group + 1,
        Evolution { version: schema.version, migrations: Vec::new() },
    );
    let restored = table.restore_pages(schema.word(), pages, source);
    restored.map_err(|reason| source.corrupt(pages[0].place, reason))?;
    table.migrate()?;
    while table.load(READ_BYTES)? {}
    let (mut cursor, mut entries) = (Cursor::default(), Vec::new());
    loop {
        let more = table.entries(KeyGroup(*group), &mut cursor, ENTRIES, &mut entries);
        entries.drain(..).for_each(|(key, value)| take(&key, value));
        if !more {
            return Ok(());
        }
    }
}

/// Which version a table writes, and which older ones it reads.
pub struct Evolution<K: Key, V: Data> {
    /// Version of the state.
    pub version: u32,
    /// From older versions.
    pub migrations: Vec<Migration<K, V>>,
}

impl<K: Key, V: Data> Default for Evolution<K, V> {
    fn default() -> Self {
        Self { version: 1, migrations: Vec::new() }
    }
}
