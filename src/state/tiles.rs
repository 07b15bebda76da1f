//! Whether the pages of a restored table cover its hashes.

use std::ops::Range;

use super::capture::{CLEAN, UNLOADED};
use super::directory::group_start;
use super::exchange::PageEntry;
use crate::disk::large::long_list;
use crate::id::KeyGroup;

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

/// The empty page that a key group begins with.
fn empty(group: u32, group_bits: u32) -> PageEntry {
    let prefix = group_start(KeyGroup(group));
    PageEntry { prefix, depth: group_bits, ..PageEntry::default() }
}

/// The pages of a new table.
pub(super) fn empty_tiles(groups: Range<u32>, group_bits: u32) -> Tiles {
    groups.map(|group| empty(group, group_bits)).collect()
}

/// The version that a page of a table begins with.
pub(super) fn first_version(page: &PageEntry) -> u32 {
    if page.bytes == 0 { CLEAN } else { UNLOADED }
}

/// The pages that a table of these key groups has to be made of, out of all there are by first hash.
/// A key group of which nothing was ever written is one empty page.
///
/// # Errors
/// The pages of a group leave a gap, overlap, are out of order or have no bytes.
pub(super) fn tiled(
    groups: Range<u32>,
    group_bits: u32,
    pages: &[PageEntry],
) -> Result<Tiles, String> {
    let first = pages.partition_point(|page| KeyGroup::of_hash(page.prefix).0 < groups.start);
    let end = pages.partition_point(|page| KeyGroup::of_hash(page.prefix).0 < groups.end);
    let mut tiles: Tiles = long_list(end - first + groups.len());
    let mut pages = pages[first..end].iter().peekable();
    for group in groups {
        let mut next = Some(group_start(KeyGroup(group)));
        if pages.peek().is_none_or(|page| KeyGroup::of_hash(page.prefix).0 != group) {
            tiles.push(empty(group, group_bits));
            continue;
        }
        while let Some(page) = pages.next_if(|page| KeyGroup::of_hash(page.prefix).0 == group) {
            let is_depth = (group_bits..=DEPTH_MAX).contains(&page.depth);
            let is_page = is_depth && page.prefix << page.depth == 0 && page.bytes > 0;
            if !is_page || next != Some(page.prefix) {
                return Err(format!(
                    "the pages of key group {group} do not fit together at hash {:x} of {} bits",
                    page.prefix, page.depth
                ));
            }
            next = super::directory::hash_after(page.prefix, page.depth);
            tiles.push(*page);
        }
        if let Some(hash) = next {
            return Err(format!("key group {group} has no page for hash {hash:x}"));
        }
    }
    Ok(tiles)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(prefix: u64, depth: u32) -> PageEntry {
        PageEntry { prefix, depth, bytes: 100, ..PageEntry::default() }
    }

    #[test]
    fn pages_cover_their_groups_or_are_refused() {
        let group = |group| group_start(KeyGroup(group));
        let half = group(1) / 2;
        let tiles =
            tiled(1..4, 7, &[page(0, 7), page(group(2), 8), page(group(2) + half, 8)]).unwrap();
        let expected = [empty(1, 7), page(group(2), 8), page(group(2) + half, 8), empty(3, 7)];
        assert_eq!(tiles, expected);
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
        assert!(tiled(0..1, 7, &[page(group(2), 8)]).unwrap() == [empty(0, 7)], "of another task");
    }
}
