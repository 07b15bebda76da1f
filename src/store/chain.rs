//! The chain of indices behind a part, and the pages that it comes to.
//!
//! An index lists the pages written for its snapshot and names the index before it, back to a base
//! that lists all. Of two entries for the same hashes the later one counts.

use std::collections::BTreeMap;
use std::path::Path;

use hashbrown::HashMap;

use super::index::{self, Beginning, ENTRY_BYTES, Link};
use super::manifest::PartRef;
use super::read::{each_frame, segment_path};
use super::{LINKS_MAX, StateEntry};
use crate::disk::Disk;
use crate::disk::large::{self, long_list};
use crate::error::{Error, Result};
use crate::frame::FrameKind;
use crate::id::{SegmentId, SnapshotId};
use crate::state::{PageEntry, Place};

/// Of entries of one table, latest first, those that count, by first hash: of two for the same hashes the
/// later one.
///
/// Ranges of pages are those of a binary tree, so two either lie apart or one holds the other. In the
/// order of first hashes, wider ones first, those that hold an entry are a stack.
fn newest(written: &[PageEntry]) -> Vec<PageEntry> {
    // The entries are more than a cache holds, so until it is known which count only this is asked of them.
    let depths: Vec<u8> = written.iter().map(|entry| entry.depth as u8).collect();
    let order = order(written, &depths);
    let mut counts = vec![true; order.len()];
    // Places in the order, with the last hash of each.
    let mut holding: Vec<(usize, u64)> = Vec::new();
    for (place, at) in order.iter().enumerate() {
        let (prefix, depth) = (at & !INDEX, depths[index_in(*at)]);
        while holding.last().is_some_and(|(_, last)| *last < prefix) {
            holding.pop();
        }
        for (wider, _) in &holding {
            let is_older = index_in(*at) > index_in(order[*wider]);
            counts[if is_older { place } else { *wider }] = false;
        }
        holding.push((place, prefix | u64::MAX.checked_shr(depth.into()).unwrap_or(0)));
    }
    let mut entries = long_list(counts.iter().filter(|counts| **counts).count());
    let counted = order.iter().zip(&counts).filter(|(_, counts)| **counts);
    entries.extend(counted.map(|(at, _)| written[index_in(*at)]));
    entries
}

/// The bits of an element of [`order`] that are an index.
const INDEX: u64 = u32::MAX as u64;

/// The indices of entries in the order of first hashes, then wider ones first; above each index stand bits
/// of its hash. A restart waits for this, and a large table has hundreds of thousands of pages: so small
/// numbers are sorted, not entries, and digit by digit (a third of the time of a sort that compares).
fn order(entries: &[PageEntry], depths: &[u8]) -> Vec<u64> {
    // No page is so deep that the lower half of its first hash is not zero.
    let at = |(index, entry): (u32, &PageEntry)| entry.prefix | u64::from(index);
    let mut order: Vec<u64> = long_list(entries.len());
    order.extend((0..).zip(entries).map(at));
    radsort::sort_by_key(&mut order, |at| (at >> 32) as u32);
    for equal in order.chunk_by_mut(|one, other| one >> 32 == other >> 32) {
        equal.sort_by_key(|at| depths[index_in(*at)]);
    }
    order
}

fn index_in(at: u64) -> usize {
    (at & INDEX) as usize
}

/// What the state of a snapshot is made of.
#[derive(Default)]
pub(super) struct Content {
    pub(super) pieces: Vec<StateEntry>,
    /// By operator and schema; the pages of each by first hash.
    tables: BTreeMap<(String, u32), Vec<PageEntry>>,
    /// The segments that pages lie in, and where the last page in each ends. Whoever has read all parts
    /// counts it.
    pub(super) ends: BTreeMap<SegmentId, u64>,
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

    /// Counts where the last page of each segment ends.
    pub(super) fn find_ends(&mut self) {
        let mut ends: HashMap<SegmentId, u64> = HashMap::new();
        for PageEntry { place: Place { segment, offset }, bytes, .. } in self.pages() {
            let end = ends.entry(*segment).or_default();
            *end = (*end).max(offset.saturating_add((*bytes).into()));
        }
        self.ends = ends.into_iter().collect();
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
        let mut written = Written::default();
        let mut link = Some(Link::of(part, snapshot));
        while let Some(read) = link {
            let index = Index::read(disk, dir, snapshot, read, &mut written)?;
            written.values_mut().for_each(Table::turn);
            if read.snapshot == snapshot.0 {
                self.pieces.extend(index.pieces);
            }
            link = index.before;
        }
        for (table, Table { entries, .. }) in written {
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

/// By operator and schema.
type Written = BTreeMap<(String, u32), Table>;

/// The pages of one table that indices list, read from the newest to the base. The lists are long: they are
/// read to where they stay.
#[derive(Default)]
struct Table {
    entries: Vec<PageEntry>,
    /// Those that come before these, latest first.
    turned: usize,
}

impl Table {
    /// All entries of an index are there, in the order in which they were handed over: turns it around.
    fn turn(&mut self) {
        self.entries[self.turned..].reverse();
        self.turned = self.entries.len();
    }
}

/// One index, but for its pages.
struct Index {
    before: Option<Link>,
    pieces: Vec<StateEntry>,
}

impl Index {
    /// Its pages go to `written`, where those of later ones are.
    fn read(
        disk: &dyn Disk,
        dir: &Path,
        newest: SnapshotId,
        link: Link,
        written: &mut Written,
    ) -> Result<Self> {
        let path = segment_path(dir, link.segment);
        let damaged = |reason: &str| Error::corrupt(&path, link.offset, reason);
        if link.links > LINKS_MAX || link.snapshot > newest.0 {
            return Err(damaged("an index that cannot be one of this snapshot"));
        }
        let mut beginning: Option<Beginning> = None;
        let mut pieces = Vec::new();
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
                    let table = written.entry((header.owner.to_owned(), header.schema));
                    let Table { entries: listed, turned } = table.or_default();
                    let before = listed.len();
                    if before == *turned {
                        // No more can come of this index, so the list is moved once for each at most.
                        large::reserve(listed, link.bytes as usize / ENTRY_BYTES);
                    }
                    listed.extend(entries);
                    let is_strange = |e: &PageEntry| e.prefix as u32 != 0 || e.depth > 32;
                    if listed[before..].iter().any(is_strange) {
                        return Err("a page entry that no table writes".into());
                    }
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
        Ok(Self { before, pieces })
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
    Ok(Index::read(disk, dir, newest, link, &mut Written::default())?.before)
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
            let mut table = Table { entries: written.to_vec(), turned: 0 };
            table.turn();
            newest(&table.entries).iter().map(|entry| entry.bytes).collect::<Vec<_>>()
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
