//! The chain of indices behind a part, and the pages that it comes to.
//!
//! An index lists the pages written for its snapshot and names the index before it, back to a base
//! that lists all. Of two entries for the same hashes the later one counts.

use std::collections::BTreeMap;
use std::path::Path;

use super::index::{self, Beginning, Link};
use super::manifest::PartRef;
use super::read::{each_frame, segment_path};
use super::{LINKS_MAX, StateEntry};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::frame::FrameKind;
use crate::id::SnapshotId;
use crate::state::PageEntry;

/// The pages of one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pages(BTreeMap<u64, PageEntry>);

impl Pages {
    /// A later entry: it takes the place of those that it overlaps.
    fn put(&mut self, entry: PageEntry) {
        let last = last_hash(&entry);
        let before = self.0.range(..entry.prefix).next_back();
        if let Some((&prefix, _)) = before.filter(|(_, e)| last_hash(e) >= entry.prefix) {
            self.0.remove(&prefix);
        }
        let within: Vec<u64> = self.0.range(entry.prefix..=last).map(|(at, _)| *at).collect();
        within.iter().for_each(|prefix| _ = self.0.remove(prefix));
        self.0.insert(entry.prefix, entry);
    }
}

fn last_hash(entry: &PageEntry) -> u64 {
    entry.prefix | u64::MAX.checked_shr(entry.depth).unwrap_or(0)
}

/// What the state of a snapshot is made of.
#[derive(Default)]
pub(super) struct Content {
    pub(super) pieces: Vec<StateEntry>,
    /// By operator and schema.
    tables: BTreeMap<(String, u32), Vec<PageEntry>>,
}

impl Content {
    /// Pages by operator and schema.
    pub(super) fn into_pages(self) -> impl Iterator<Item = (String, u32, Vec<PageEntry>)> {
        self.tables.into_iter().map(|((operator, schema), pages)| (operator, schema, pages))
    }

    /// All pages.
    pub(super) fn pages(&self) -> impl Iterator<Item = &PageEntry> {
        self.tables.values().flatten()
    }

    /// Takes in the part of one worker; every checksum but those of pages is checked.
    pub(super) fn read(
        &mut self,
        disk: &dyn Disk,
        dir: &Path,
        snapshot: SnapshotId,
        part: &PartRef,
    ) -> Result<()> {
        if part.bytes == 0 {
            return Ok(());
        }
        let mut tables: BTreeMap<(String, u32), Pages> = BTreeMap::new();
        let mut links = Vec::new();
        let newest = Index::read(disk, dir, snapshot, Link::of(part, snapshot))?;
        self.pieces.extend(newest.pieces);
        links.push((newest.before, newest.tables));
        while let Some(link) = links.last().and_then(|(before, _)| *before) {
            let index = Index::read(disk, dir, snapshot, link)?;
            links.push((index.before, index.tables));
        }
        for (operator, schema, entries) in links.into_iter().rev().flat_map(|(_, tables)| tables) {
            let table = tables.entry((operator, schema)).or_default();
            entries.into_iter().for_each(|entry| table.put(entry));
        }
        for (table, Pages(pages)) in tables {
            self.tables.entry(table).or_default().extend(pages.into_values());
        }
        Ok(())
    }
}

/// One index.
struct Index {
    before: Option<Link>,
    pieces: Vec<StateEntry>,
    /// Operator, schema and pages, in the order in which they were handed over.
    tables: Vec<(String, u32, Vec<PageEntry>)>,
}

impl Index {
    fn read(disk: &dyn Disk, dir: &Path, newest: SnapshotId, link: Link) -> Result<Self> {
        let path = segment_path(dir, link.segment);
        let damaged = |reason: &str| Error::corrupt(&path, link.offset, reason);
        if link.links > LINKS_MAX || link.snapshot > newest.0 {
            return Err(damaged("an index that cannot be one of this snapshot"));
        }
        let mut beginning: Option<Beginning> = None;
        let (mut pieces, mut tables) = (Vec::new(), Vec::new());
        each_frame(disk, dir, &link, |header, payload| {
            match header.kind {
                FrameKind::Index if beginning.is_none() => {
                    let read = serde_json::from_slice(payload);
                    beginning =
                        Some(read.map_err(|error| format!("checksum matches, but: {error}"))?);
                }
                _ if beginning.is_none() => return Err("an index without a beginning".into()),
                FrameKind::State => pieces.push(StateEntry {
                    operator: header.owner.to_owned(),
                    slot: header.slot,
                    schema: header.schema,
                    bytes: payload.to_vec(),
                }),
                FrameKind::Pages | FrameKind::Map => {
                    let entries = index::entries(payload).ok_or("half a page entry")?;
                    tables.push((header.owner.to_owned(), header.schema, entries.collect()));
                }
                kind => return Err(format!("a {kind:?} frame in an index")),
            }
            Ok(())
        })?;
        let Some(Beginning { before }) = beginning else { return Err(damaged("no frame")) };
        let expected = before.map_or(0, |before| before.links.saturating_add(1));
        let is_earlier = before.is_none_or(|before| before.snapshot < link.snapshot);
        if link.links != expected || !is_earlier {
            return Err(damaged("an index that goes on from one that cannot be the one before"));
        }
        Ok(Self { before, pieces, tables })
    }
}

/// The index that `link` goes on from.
#[cfg(test)]
pub(super) fn before(
    disk: &dyn Disk,
    dir: &Path,
    newest: SnapshotId,
    link: Link,
) -> Result<Option<Link>> {
    Ok(Index::read(disk, dir, newest, link)?.before)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(prefix: u64, depth: u32, bytes: u32) -> PageEntry {
        PageEntry { prefix, depth, bytes, ..PageEntry::default() }
    }

    #[test]
    fn of_two_pages_for_the_same_hashes_the_later_counts() {
        let (half, quarter) = (1 << 63, 1 << 62);
        let mut pages = Pages::default();
        pages.put(entry(0, 1, 1));
        pages.put(entry(half, 1, 2));
        pages.put(entry(0, 2, 3));
        assert_eq!(pages.0.keys().copied().collect::<Vec<_>>(), [0, half], "half is uncovered");
        pages.put(entry(quarter, 2, 4));
        pages.put(entry(half, 1, 5));
        let bytes: Vec<u32> = pages.0.values().map(|entry| entry.bytes).collect();
        assert_eq!(bytes, [3, 4, 5]);
        pages.put(entry(0, 0, 6));
        assert_eq!(pages.0.len(), 1, "all are of the one");
    }
}
