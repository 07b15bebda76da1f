//! Newtype ids: what a number counts is part of its type.
//!
//! Owns the words for "which snapshot, which task, which slice of the keys". Knows nothing of
//! channels, files or threads.
//!
//! Invariants
//! - A [`SnapshotId`] rises by one per trigger and is never used twice within one snapshot
//!   directory, whatever process wrote it.
//! - [`KEY_GROUPS`] is part of the on-disk format: state is written, found and redistributed per
//!   key group, so it never changes for an existing directory.

use std::fmt;

/// How many slices the key space has. Fixed for the life of a job; also the largest parallelism of
/// a keyed operator.
pub const KEY_GROUPS: u32 = 128;

/// Number of one global snapshot; the first is 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(pub u64);

impl SnapshotId {
    /// The id after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Which start of the job's tasks this is: rises with every restart inside a process, so that a
/// message or file of an earlier attempt is recognised as stale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt(pub u64);

/// Index of a worker (a pinned thread), from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub usize);

/// Index of a task in the plan, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub usize);

/// A fixed slice of the key space: the top seven bits of a key's hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyGroup(pub u32);

impl KeyGroup {
    /// The group of a key with this [`Key::key_hash`](crate::key::Key::key_hash).
    #[inline]
    #[must_use]
    pub fn of_hash(hash: u64) -> Self {
        Self((hash >> (64 - KEY_GROUPS.ilog2())) as u32)
    }

    /// Which of `parallelism` tasks owns this group: contiguous, balanced ranges.
    #[inline]
    #[must_use]
    pub fn owner(self, parallelism: usize) -> usize {
        self.0 as usize * parallelism / KEY_GROUPS as usize
    }

    /// The groups that task `subtask` of `parallelism` owns.
    #[must_use]
    pub fn owned_by(subtask: usize, parallelism: usize) -> std::ops::Range<u32> {
        let groups = KEY_GROUPS as usize;
        assert!(subtask < parallelism && parallelism <= groups, "{subtask} of {parallelism}");
        let first = |task: usize| (task * groups).div_ceil(parallelism) as u32;
        first(subtask)..first(subtask + 1)
    }
}

/// A file of a snapshot directory that state lies in. No two files that a kept snapshot needs have
/// the same number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(pub u32);

/// Which share of an operator's state some bytes are: what decides who takes them on a restore with
/// another parallelism.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StateSlot {
    /// Keyed state of one key group: goes to the group's owner.
    KeyGroup(KeyGroup),
    /// One split of a source: goes to task `split % parallelism`.
    Split(u32),
    /// What one task knew: handed to all tasks of the operator, which know what it means.
    Task(u32),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_is_owned_by_exactly_the_task_that_owner_names() {
        for parallelism in 1..=KEY_GROUPS as usize {
            for subtask in 0..parallelism {
                for group in KeyGroup::owned_by(subtask, parallelism) {
                    assert_eq!(KeyGroup(group).owner(parallelism), subtask);
                }
            }
            let total: usize =
                (0..parallelism).map(|s| KeyGroup::owned_by(s, parallelism).len()).sum();
            assert_eq!(total, KEY_GROUPS as usize);
        }
    }
}
