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

/// Of entries of one table, oldest first, those that count, by first hash: of two for the same hashes the
/// later one.
///
/// Ranges of pages are those of a binary tree, so two either lie apart or one holds the other. In the
/// order of first hashes, wider ones first, those that hold an entry are a stack.
fn newest(written: &[PageEntry]) -> Vec<PageEntry> {
    let order = order(written);
    let mut entries: Vec<PageEntry> = order.iter().map(|at| written[index_in(*at)]).collect();
    let mut counts = vec![true; entries.len()];
    let mut holding: Vec<usize> = Vec::new();
    for (at, entry) in entries.iter().enumerate() {
        while holding.last().is_some_and(|wider| last_hash(&entries[*wider]) < entry.prefix) {
            holding.pop();
        }
        for wider in &holding {
            let is_older = index_in(order[at]) < index_in(order[*wider]);
            counts[if is_older { at } else { *wider }] = false;
        }
        holding.push(at);
    }
    let mut counts = counts.into_iter();
    entries.retain(|_| counts.next().expect("one for each"));
    entries
}

/// The indices of entries in the order of first hashes, then wider ones first, then the older; above each
/// index stand bits of its hash. A restart waits for this, and a large table has hundreds of thousands
/// of pages: so small numbers are sorted, not entries.
fn order(entries: &[PageEntry]) -> Vec<u64> {
    // No page is so deep that the lower half of its first hash is not zero.
    let at = |(index, entry): (u32, &PageEntry)| entry.prefix | u64::from(index);
    let mut order: Vec<u64> = (0..).zip(entries).map(at).collect();
    order.sort_unstable();
    for equal in order.chunk_by_mut(|one, other| one >> 32 == other >> 32) {
        // Those of the same depth stay as they are, the older first.
        equal.sort_by_key(|at| entries[index_in(*at)].depth);
    }
    order
}

/// The lower half of an element of [`order`].
fn index_in(at: u64) -> usize {
    at as u32 as usize
}

fn last_hash(entry: &PageEntry) -> u64 {
    entry.prefix | u64::MAX.checked_shr(entry.depth).unwrap_or(0)
}

/// What the state of a snapshot is made of.
#[derive(Default)]
pub(super) struct Content {
    pub(super) pieces: Vec<StateEntry>,
    /// By operator and schema; the pages of each by first hash.
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
        let newest_index = Index::read(disk, dir, snapshot, Link::of(part, snapshot))?;
        self.pieces.extend(newest_index.pieces);
        let mut links = vec![(newest_index.before, newest_index.tables)];
        while let Some(link) = links.last().and_then(|(before, _)| *before) {
            let index = Index::read(disk, dir, snapshot, link)?;
            links.push((index.before, index.tables));
        }
        let all: usize =
            links.iter().flat_map(|(_, tables)| tables).map(|table| table.2.len()).sum();
        let mut written: BTreeMap<(String, u32), Vec<PageEntry>> = BTreeMap::new();
        for (operator, schema, entries) in links.into_iter().rev().flat_map(|(_, tables)| tables) {
            let table = written.entry((operator, schema));
            table.or_insert_with(|| Vec::with_capacity(all)).extend(entries);
        }
        for (table, entries) in written {
            self.add(table, newest(&entries));
        }
        Ok(())
    }

    /// Adds the pages of one part to those of the others; all are by first hash.
    fn add(&mut self, table: (String, u32), mut pages: Vec<PageEntry>) {
        let all = self.tables.entry(table).or_default();
        if all.is_empty() {
            *all = pages;
        } else {
            all.append(&mut pages);
            all.sort_by_key(|page| page.prefix); // which are a few runs
        }
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
                    let entries: Vec<PageEntry> = entries.collect();
                    if entries.iter().any(|entry| entry.prefix as u32 != 0 || entry.depth > 32) {
                        return Err("a page entry that no table writes".into());
                    }
                    tables.push((header.owner.to_owned(), header.schema, entries));
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
        let sizes = |written: &[PageEntry]| {
            newest(written).iter().map(|entry| entry.bytes).collect::<Vec<_>>()
        };
        let mut written = vec![
            entry(0, 1, 1),
            entry(half, 1, 2),
            entry(0, 2, 3),
            entry(quarter, 2, 4),
            entry(half, 1, 5),
        ];
        assert_eq!(sizes(&written), [3, 4, 5]);
        written.swap(2, 3);
        assert_eq!(sizes(&written), [3, 4, 5], "in whichever order it was handed over");
        written.swap(1, 4);
        assert_eq!(sizes(&written), [3, 4, 2], "the later one");
        written.push(entry(0, 0, 6));
        assert_eq!(sizes(&written), [6], "all are of the one");
        written.push(entry(quarter, 3, 7));
        assert_eq!(sizes(&written), [7], "the rest is uncovered, which who restores it finds");
    }
}
