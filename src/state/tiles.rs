//! Whether the pages of a restored table cover its hashes, and which of them it shares with others.
//!
//! Hashes are shared out to tasks by key group, and a page may hold several. Where a job goes on with another
//! parallelism, a page may so have hashes of two tables and more: each reads it and takes what is its own.

use std::ops::Range;

use super::capture::{CLEAN, UNLOADED};
use super::exchange::PageEntry;
use crate::disk::large::long_list;
use crate::id::{KEY_GROUPS, KeyGroup};

/// Bits of the hash that are the key group.
pub(super) const GROUP_BITS: u32 = KEY_GROUPS.ilog2();

/// Deepest page; there, or where the next bit tells no keys apart, or where the directory may not
/// double, a page outgrows its bound. Only a hash that is not well mixed comes here, or keys that somebody
/// has chosen.
pub(super) const DEPTH_MAX: u32 = 32;

/// Entries of a directory that every table may have, and for each of its pages. Of well-mixed hashes the
/// deepest page is two or three bits deeper than most.
const DIRECTORY_MIN: usize = 1 << 16;
const DIRECTORY_PER_PAGE: usize = 64;

/// Whether a directory of so many entries may double, for so many pages: a few keys of equal first bits
/// must not take memory by the gigabyte.
pub(super) fn may_double(entries: usize, pages: usize) -> bool {
    2 * entries <= (DIRECTORY_PER_PAGE * pages).max(DIRECTORY_MIN)
}

/// The pages of a table, in order: the place of each in the list is its number. A page of no bytes is
/// nowhere on disk, and empty.
pub(super) type Tiles = Vec<PageEntry>;

/// What a restored table is made of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tiling {
    /// Its pages.
    pub tiles: Tiles,
    /// Pages that it has a part of only: what of them is its own goes into tiles that are empty.
    pub shared: Vec<PageEntry>,
}

/// First hash of a key group.
pub(super) fn group_start(group: KeyGroup) -> u64 {
    u64::from(group.0) << (64 - GROUP_BITS)
}

/// The first hash behind a page, if it is in the same key group.
pub(super) fn hash_after(prefix: u64, depth: u32) -> Option<u64> {
    let after = prefix.checked_add(1 << (64 - depth))?;
    (KeyGroup::of_hash(after) == KeyGroup::of_hash(prefix)).then_some(after)
}

/// The last hash of a page.
fn last_hash(page: &PageEntry) -> u64 {
    page.prefix | u64::MAX.checked_shr(page.depth).unwrap_or(0)
}

/// The pages of a new table, as few as can be of at least this depth.
pub(super) fn empty_tiles(groups: Range<u32>, depth_min: u32) -> Tiles {
    let mut tiles = Tiles::new();
    let mut group = groups.start;
    while group < groups.end {
        let width = |depth: u32| 1 << (GROUP_BITS - depth);
        let fits = |depth: &u32| {
            group.is_multiple_of(width(*depth)) && group + width(*depth) <= groups.end
        };
        let depth = (depth_min..GROUP_BITS).find(fits).unwrap_or(GROUP_BITS);
        let prefix = group_start(KeyGroup(group));
        tiles.push(PageEntry { prefix, depth, ..PageEntry::default() });
        group += width(depth);
    }
    tiles
}

/// The version that a page of a table begins with.
pub(super) fn first_version(page: &PageEntry) -> u32 {
    if page.bytes == 0 { CLEAN } else { UNLOADED }
}

/// Those of `pages`, which are in the order of first hashes, that hold a hash of these key groups.
pub(super) fn holding<'a>(groups: &Range<u32>, pages: &'a [PageEntry]) -> &'a [PageEntry] {
    let start = group_start(KeyGroup(groups.start));
    let end = pages.partition_point(|page| KeyGroup::of_hash(page.prefix).0 < groups.end);
    let pages = &pages[..end];
    &pages[pages.partition_point(|page| last_hash(page) < start)..]
}

/// What a table of these key groups has to be made of, out of all pages there are by first hash. Key
/// groups of which nothing was ever written are empty pages.
///
/// # Errors
/// The pages of a group leave a gap, overlap, are out of order, less deep than `depth_min` or have no bytes.
pub(super) fn tiled(
    groups: Range<u32>,
    depth_min: u32,
    pages: &[PageEntry],
) -> Result<Tiling, String> {
    let pages = holding(&groups, pages);
    let mut tiling = Tiling { tiles: long_list(pages.len() + groups.len()), shared: Vec::new() };
    let (start, end) = (bound(groups.start), bound(groups.end));
    // The first hash that no page has held so far.
    let mut next = start;
    for page in pages {
        let (page_start, page_end) = (u128::from(page.prefix), u128::from(last_hash(page)) + 1);
        let from = page_start.max(start);
        let is_depth = (depth_min..=DEPTH_MAX).contains(&page.depth);
        let is_page = is_depth && page.prefix << page.depth == 0 && page.bytes > 0;
        let is_next = from == next || (from > next && from == bound(group_of(from)));
        if !is_page || !is_next {
            return Err(format!(
                "the pages of key group {} do not fit together at hash {:x} of {} bits",
                group_of(from),
                page.prefix,
                page.depth
            ));
        }
        fill(&mut tiling.tiles, next, from, depth_min)?;
        next = page_end.min(end);
        if page_start < start || page_end > end {
            fill(&mut tiling.tiles, from, next, depth_min)?;
            tiling.shared.push(*page);
        } else {
            tiling.tiles.push(*page);
        }
    }
    fill(&mut tiling.tiles, next, end, depth_min)?;
    Ok(tiling)
}

/// The first hash of a key group, or that behind all there are.
fn bound(group: u32) -> u128 {
    u128::from(group) << (64 - GROUP_BITS)
}

/// The key group of a hash, or the number of groups.
fn group_of(hash: u128) -> u32 {
    (hash >> (64 - GROUP_BITS)) as u32
}

/// Appends empty pages for the hashes from one bound of a key group to another.
fn fill(tiles: &mut Tiles, from: u128, to: u128, depth_min: u32) -> Result<(), String> {
    let group = group_of(from);
    if from < to && from != bound(group) {
        return Err(format!("key group {group} has no page for hash {from:x}"));
    }
    tiles.extend(empty_tiles(group..group_of(to), depth_min));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(prefix: u64, depth: u32) -> PageEntry {
        PageEntry { prefix, depth, bytes: 100, ..PageEntry::default() }
    }

    fn empty(group: u32, depth: u32) -> PageEntry {
        PageEntry { bytes: 0, ..page(group_start(KeyGroup(group)), depth) }
    }

    #[test]
    fn pages_cover_their_groups_or_are_refused() {
        let group = |group| group_start(KeyGroup(group));
        let half = group(1) / 2;
        let Tiling { tiles, shared } =
            tiled(1..4, 7, &[page(0, 7), page(group(2), 8), page(group(2) + half, 8)]).unwrap();
        let expected = [empty(1, 7), page(group(2), 8), page(group(2) + half, 8), empty(3, 7)];
        assert_eq!((&tiles[..], &shared[..]), (&expected[..], &[][..]));
        let versions: Vec<u32> = tiles.iter().map(first_version).collect();
        assert_eq!(versions, [CLEAN, UNLOADED, UNLOADED, CLEAN]);
        let refused = |pages: &[PageEntry]| tiled(1..4, 7, pages).unwrap_err();
        assert!(refused(&[page(group(2), 8)]).contains("key group 2 has no page for hash"));
        assert!(refused(&[page(group(2) + half, 8)]).contains("do not fit together"));
        assert!(refused(&[page(group(2) + half, 8), page(group(2), 8)]).contains("do not fit"));
        let no_bytes = PageEntry { bytes: 0, ..page(group(2), 7) };
        assert!(refused(&[no_bytes]).contains("do not fit together"));
        let twice = [page(group(2), 8), page(group(2), 7)];
        assert!(refused(&twice).contains("do not fit together"));
        assert!(refused(&[page(group(2), 40)]).contains("do not fit together"));
        assert!(refused(&[page(group(2) + 1, 8)]).contains("do not fit together"));
        assert!(refused(&[page(group(2), 6)]).contains("do not fit together"), "not deep enough");
        let other = tiled(0..1, 7, &[page(group(2), 8)]).unwrap();
        assert_eq!(other.tiles, [empty(0, 7)], "of another task");
    }

    #[test]
    fn a_new_table_has_as_few_pages_as_its_groups_allow() {
        let depths = |groups: Range<u32>, depth_min| {
            let tiles = empty_tiles(groups, depth_min);
            tiles.iter().map(|tile| tile.depth).collect::<Vec<_>>()
        };
        assert_eq!(depths(0..128, 1), [1, 1]);
        assert_eq!(depths(64..128, 1), [1]);
        assert_eq!(depths(0..43, 1), [2, 4, 6, 7]);
        assert_eq!(depths(43..86, 1), [7, 5, 3, 3, 5, 6]);
        assert_eq!(depths(3..6, 7), [7, 7, 7]);
    }

    #[test]
    fn a_page_that_belongs_to_several_tables_is_shared_and_its_place_is_empty() {
        let group = |group| group_start(KeyGroup(group));
        let wide = page(group(32), 2); // of groups 32 to 63
        let pages = [page(group(0), 3), wide, page(group(64), 1)];
        let tiling = |groups| tiled(groups, 1, &pages).unwrap();
        let Tiling { tiles, shared } = tiling(0..43);
        assert_eq!(tiles, [pages[0], empty(16, 3), empty(32, 4), empty(40, 6), empty(42, 7)]);
        assert_eq!(shared, [wide]);
        let Tiling { tiles, shared } = tiling(44..66);
        assert_eq!(tiles, [empty(44, 5), empty(48, 3), empty(64, 6)]);
        assert_eq!(shared, [wide, pages[2]]);
        assert_eq!(tiling(40..41).shared, [wide]);
        assert_eq!(tiling(32..128), Tiling { tiles: pages[1..].to_vec(), shared: vec![] });
        let overlapping = tiled(40..50, 1, &[wide, page(group(40), 7)]);
        assert!(overlapping.unwrap_err().contains("key group 40 do not fit together"));
    }
}
