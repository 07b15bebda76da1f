//! Slots: the files that manifests are in.
//!
//! A slot is made whole, by a rename, and from then on overwritten in place: one write and one
//! fdatasync of blocks that exist, without a change of names for the file system to make durable.
//! The slot that a commit overwrites holds the oldest of more manifests than have to be kept, so
//! that a commit that is cut short costs nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::layout::SlotNumber;
use super::manifest::Manifest;
use crate::id::{SegmentId, SnapshotId};

/// Slots are made this long, and longer manifests rounded up to a multiple: a length that stays
/// need not be made durable again.
pub(super) const SLOT_BYTES: usize = 16 << 10;

/// A manifest and the segments it names.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) snapshot: SnapshotId,
    pub(super) segments: BTreeSet<SegmentId>,
}

impl Kept {
    pub(super) fn of(manifest: &Manifest) -> Self {
        Self { snapshot: manifest.id(), segments: manifest.segments() }
    }
}

/// What is in a slot.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// Nothing, or a commit that was taken back.
    Free,
    /// A manifest that counts.
    Valid(Kept),
    /// A commit is under way into it; the manifest that counted in it before may still do so after a crash.
    Taken { before: Option<Kept>, is_new: bool },
    /// What cannot be restored: not touched until it was put aside.
    Skipped,
}

/// The slots of a directory.
#[derive(Debug, Default)]
pub(super) struct Slots(pub(super) BTreeMap<SlotNumber, Content>);

impl Slots {
    fn kept(&self) -> impl Iterator<Item = (SlotNumber, &Kept)> {
        self.0.iter().filter_map(|(slot, content)| match content {
            Content::Valid(kept) => Some((*slot, kept)),
            Content::Free | Content::Taken { .. } | Content::Skipped => None,
        })
    }

    /// How many manifests count of snapshots after `held`: those up to it stay.
    pub(super) fn valid(&self, held: SnapshotId) -> usize {
        self.kept().filter(|(_, kept)| kept.snapshot > held).count()
    }

    /// Newest snapshot that is complete.
    pub(super) fn newest(&self) -> Option<SnapshotId> {
        self.kept().map(|(_, kept)| kept.snapshot).max()
    }

    /// The slot of the oldest after `held`.
    pub(super) fn oldest(&self, held: SnapshotId) -> Option<SlotNumber> {
        let others = self.kept().filter(|(_, kept)| kept.snapshot > held);
        others.min_by_key(|(_, kept)| kept.snapshot).map(|(slot, _)| slot)
    }

    /// How many commits are under way.
    pub(super) fn taken(&self) -> usize {
        self.0.values().filter(|content| matches!(content, Content::Taken { .. })).count()
    }

    /// Takes the slot where the next manifest goes so that all up to `held` and `retention` of the others that
    /// are there stay; which, and whether it has to be made.
    pub(super) fn take_next(&mut self, retention: usize, held: SnapshotId) -> (SlotNumber, bool) {
        let mut free = self.0.iter().filter(|(_, content)| matches!(content, Content::Free));
        let free = free.next().map(|(slot, _)| *slot);
        let oldest = || self.oldest(held).filter(|_| self.valid(held) > retention);
        let slot = free.or_else(oldest);
        let unused = || (0..).find(|slot| !self.0.contains_key(slot));
        let taken = slot.or_else(unused).expect("there are more numbers than files");
        let (before, is_new) = (self.remove(taken), slot.is_none());
        self.0.insert(taken, Content::Taken { before, is_new });
        (taken, is_new)
    }

    /// A slot that was taken holds what it held before.
    pub(super) fn give_back(&mut self, slot: SlotNumber) {
        let content = match self.0.remove(&slot) {
            Some(Content::Taken { before: Some(kept), .. }) => Content::Valid(kept),
            Some(Content::Taken { before: None, is_new: false }) => Content::Free,
            _ => return, // it was never made
        };
        self.0.insert(slot, content);
    }

    /// Notes what is in a slot now; the manifest that was in it before.
    pub(super) fn set(&mut self, slot: SlotNumber, content: Content) -> Option<Kept> {
        let before = self.remove(slot);
        self.0.insert(slot, content);
        before
    }

    /// A slot is gone; the manifest that was in it.
    pub(super) fn remove(&mut self, slot: SlotNumber) -> Option<Kept> {
        match self.0.remove(&slot)? {
            Content::Valid(kept) => Some(kept),
            Content::Taken { before, .. } => before,
            Content::Free | Content::Skipped => None,
        }
    }
}
