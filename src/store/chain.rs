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

/// A page entry, and how late it was written.
type Dated = (PageEntry, u32);

/// Of entries of one table the ones that count, by first hash: of two for the same hashes the later one.
///
/// Ranges of pages are those of a binary tree, so two either lie apart or one holds the other. In the
/// order of first hashes, wider ones first, those that hold an entry are a stack.
fn newest(entries: Vec<Dated>) -> Vec<PageEntry> {
    let entries = sorted(entries);
    let mut counts = vec![true; entries.len()];
    let mut holding: Vec<usize> = Vec::new();
    for (index, (entry, date)) in entries.iter().enumerate() {
        while holding.last().is_some_and(|wider| last_hash(&entries[*wider].0) < entry.prefix) {
            holding.pop();
        }
        for wider in &holding {
            let older = if entries[*wider].1 > *date { index } else { *wider };
            counts[older] = false;
        }
        holding.push(index);
    }
    let counting = entries.iter().zip(counts).filter(|(_, counts)| *counts);
    counting.map(|((entry, _), _)| *entry).collect()
}

/// By first hash, wider ones first, then by date. A restart waits for this, and a large table has hundreds
/// of thousands of pages: so by radix, a third of the time of a comparison sort.
fn sorted(mut entries: Vec<Dated>) -> Vec<Dated> {
    const BITS: u32 = 11;
    // No page is so deep that the lower half of its first hash is not zero.
    for shift in [32, 32 + BITS, 32 + 2 * BITS] {
        let digit = |entry: &Dated| (entry.0.prefix >> shift) as usize & ((1 << BITS) - 1);
        let mut starts = [0_u32; (1 << BITS) + 1];
        entries.iter().for_each(|entry| starts[digit(entry) + 1] += 1);
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        let mut out = vec![Dated::default(); entries.len()];
        for entry in &entries {
            let start = &mut starts[digit(entry)];
            out[*start as usize] = *entry;
            *start += 1;
        }
        entries = out;
    }
    let same = |one: &Dated, other: &Dated| one.0.prefix == other.0.prefix;
    for equal in entries.chunk_by_mut(same).filter(|equal| equal.len() > 1) {
        equal.sort_unstable_by_key(|(entry, date)| (entry.depth, *date));
    }
    entries
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
        let newest_index = Index::read(disk, dir, snapshot, Link::of(part, snapshot))?;
        self.pieces.extend(newest_index.pieces);
        let mut links = vec![(newest_index.before, newest_index.tables)];
        while let Some(link) = links.last().and_then(|(before, _)| *before) {
            let index = Index::read(disk, dir, snapshot, link)?;
            links.push((index.before, index.tables));
        }
        let mut tables: BTreeMap<(String, u32), Vec<Dated>> = BTreeMap::new();
        let oldest_first = links.into_iter().rev().flat_map(|(_, tables)| tables);
        for (date, (operator, schema, entries)) in (0..).zip(oldest_first) {
            let table = tables.entry((operator, schema)).or_default();
            table.extend(entries.into_iter().map(|entry| (entry, date)));
        }
        for (table, entries) in tables {
            self.tables.entry(table).or_default().extend(newest(entries));
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
        let mut written = vec![
            (entry(0, 1, 1), 0),
            (entry(half, 1, 2), 0),
            (entry(0, 2, 3), 1),
            (entry(quarter, 2, 4), 1),
            (entry(half, 1, 5), 2),
        ];
        let sizes = |written: &[Dated]| {
            newest(written.to_vec()).iter().map(|entry| entry.bytes).collect::<Vec<_>>()
        };
        assert_eq!(sizes(&written), [3, 4, 5]);
        written.reverse();
        assert_eq!(sizes(&written), [3, 4, 5]);
        written.push((entry(0, 0, 6), 3));
        assert_eq!(sizes(&written), [6], "all are of the one");
        written.push((entry(quarter, 3, 7), 4));
        assert_eq!(sizes(&written), [7], "the rest is uncovered, which who restores it finds");
    }
}
