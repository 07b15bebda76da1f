//! Whether the pages of a restored table cover its hashes.

use std::ops::Range;

use super::capture::{CLEAN, UNLOADED};
use super::directory::group_start;
use super::exchange::PageEntry;
use crate::id::KeyGroup;

/// Deepest page; there, or where the next bit tells no keys apart, a page outgrows its bound.
/// Only a hash that is not well mixed comes here.
pub(super) const DEPTH_MAX: u32 = 32;

/// First hash, depth and version of each page of a table, in order: its place in the list is its
/// number.
pub(super) type Tiles = Vec<(u64, u32, u32)>;

/// The pages that a table of these key groups has to be made of, and those of them that lie on disk.
/// A key group of which nothing was ever written is one empty page.
///
/// # Errors
/// The pages of a group leave a gap, or overlap.
pub(super) fn tiled(
    groups: Range<u32>,
    group_bits: u32,
    pages: &[PageEntry],
) -> Result<(Tiles, Vec<(u32, PageEntry)>), String> {
    let mine = |page: &&PageEntry| groups.contains(&KeyGroup::of_hash(page.prefix).0);
    let mut pages: Vec<PageEntry> = pages.iter().filter(mine).copied().collect();
    pages.sort_unstable_by_key(|page| page.prefix);
    let (mut tiles, mut on_disk) = (Tiles::new(), Vec::with_capacity(pages.len()));
    let mut pages = pages.into_iter().peekable();
    for group in groups {
        let mut next = Some(group_start(KeyGroup(group)));
        if pages.peek().is_none_or(|page| KeyGroup::of_hash(page.prefix).0 != group) {
            tiles.push((group_start(KeyGroup(group)), group_bits, CLEAN));
            continue;
        }
        while let Some(page) = pages.next_if(|page| KeyGroup::of_hash(page.prefix).0 == group) {
            let is_depth = (group_bits..=DEPTH_MAX).contains(&page.depth);
            let is_start = is_depth && page.prefix << page.depth == 0;
            if !is_start || next != Some(page.prefix) {
                return Err(format!(
                    "the pages of key group {group} do not fit together at hash {:x} of {} bits",
                    page.prefix, page.depth
                ));
            }
            next = super::directory::hash_after(page.prefix, page.depth);
            on_disk.push((tiles.len() as u32, page));
            tiles.push((page.prefix, page.depth, UNLOADED));
        }
        if let Some(hash) = next {
            return Err(format!("key group {group} has no page for hash {hash:x}"));
        }
    }
    Ok((tiles, on_disk))
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
        let (tiles, on_disk) =
            tiled(1..4, 7, &[page(group(2) + half, 8), page(group(2), 8)]).unwrap();
        let expected = [
            (group(1), 7, CLEAN),
            (group(2), 8, UNLOADED),
            (group(2) + half, 8, UNLOADED),
            (group(3), 7, CLEAN),
        ];
        assert_eq!(tiles, expected);
        assert_eq!(on_disk, [(1, page(group(2), 8)), (2, page(group(2) + half, 8))]);
        let refused = |pages: &[PageEntry]| tiled(1..4, 7, pages).unwrap_err();
        assert!(refused(&[page(group(2), 8)]).contains("key group 2 has no page for hash"));
        assert!(refused(&[page(group(2) + half, 8)]).contains("do not fit together"));
        let twice = [page(group(2), 8), page(group(2), 7)];
        assert!(refused(&twice).contains("do not fit together"));
        assert!(refused(&[page(group(2), 40)]).contains("do not fit together"));
        assert!(refused(&[page(group(2) + 1, 8)]).contains("do not fit together"));
        assert!(tiled(0..1, 7, &[page(group(2), 8)]).unwrap().1.is_empty(), "of another task");
    }
}
