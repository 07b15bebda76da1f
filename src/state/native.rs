//! A keyed table of native values: for keys and values that are not plain.
//!
//! Owns one hash table per key group. Slower than pages where snapshots are concerned: the unit of
//! copy on first write is a whole key group, which is serialised at its first write after a mark
//! (the work its drain would have done anyway), so the longest stop is one key group's.
//!
//! Invariants
//! - While a mark is open, a group with another version has not changed since the mark; `preserved`
//!   holds the serialised bytes of every other group that is not yet written.
//! - A key that does not serialise fails the snapshot; it is never left out.
//! - A piece is sorted by hash and key, so the same entries are the same bytes.

use std::collections::BTreeMap;
use std::ops::Range;

use hashbrown::HashTable;

use super::keyed::Cursor;
use super::{Drained, SCHEMA_ENTRIES, StateWriter};
use crate::error::Error;
use crate::id::{KeyGroup, SnapshotId, StateSlot};
use crate::key::Key;
use crate::record::Data;

/// Before each entry of a piece: hash, length of the key, length of the value.
const ENTRY_HEADER_BYTES: usize = 16;

struct Entry<K, V> {
    hash: u64,
    key: K,
    value: V,
}

struct Group<K, V> {
    version: u32,
    entries: HashTable<Entry<K, V>>,
}

pub(super) struct NativeTable<K, V> {
    first_group: u32,
    groups: Vec<Group<K, V>>,
    len: usize,
    version: u32,
    snapshot: SnapshotId,
    /// Index of the group that is drained next, while a mark is open.
    next: Option<usize>,
    preserved: BTreeMap<usize, Result<Vec<u8>, String>>,
}

impl<K: Key, V: Data> NativeTable<K, V> {
    pub fn new(groups: Range<u32>) -> Self {
        let group = |_| Group { version: 0, entries: HashTable::new() };
        Self {
            first_group: groups.start,
            groups: groups.map(group).collect(),
            len: 0,
            version: 0,
            snapshot: SnapshotId::default(),
            next: None,
            preserved: BTreeMap::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    fn index_of(&self, hash: u64) -> usize {
        KeyGroup::of_hash(hash).0.wrapping_sub(self.first_group) as usize
    }

    fn group(&self, hash: u64) -> &HashTable<Entry<K, V>> {
        &self.groups[self.index_of(hash)].entries
    }

    /// The group of `hash`, its captured entries safe.
    fn group_mut(&mut self, hash: u64) -> &mut HashTable<Entry<K, V>> {
        let index = self.index_of(hash);
        let group = &mut self.groups[index];
        if group.version != self.version {
            group.version = self.version;
            if self.next.is_some() {
                self.preserved.insert(index, serialise(&group.entries));
            }
        }
        &mut group.entries
    }

    pub fn upsert(&mut self, hash: u64, key: &K, init: impl FnOnce() -> V) -> &mut V {
        let before = self.group(hash).len();
        let equal = |entry: &Entry<K, V>| entry.hash == hash && entry.key == *key;
        let found = self.group(hash).find(hash, equal).is_some();
        self.len += usize::from(!found);
        let table = self.group_mut(hash);
        debug_assert_eq!(table.len(), before);
        let make = || Entry { hash, key: key.clone(), value: init() };
        let entry = table.entry(hash, equal, |entry| entry.hash).or_insert_with(make);
        &mut entry.into_mut().value
    }

    pub fn get(&self, hash: u64, key: &K) -> Option<&V> {
        let equal = |entry: &Entry<K, V>| entry.hash == hash && entry.key == *key;
        self.group(hash).find(hash, equal).map(|entry| &entry.value)
    }

    pub fn get_mut(&mut self, hash: u64, key: &K) -> Option<&mut V> {
        let equal = |entry: &Entry<K, V>| entry.hash == hash && entry.key == *key;
        self.group_mut(hash).find_mut(hash, equal).map(|entry| &mut entry.value)
    }

    pub fn remove(&mut self, hash: u64, key: &K) -> Option<V> {
        let equal = |entry: &Entry<K, V>| entry.hash == hash && entry.key == *key;
        let entry = self.group_mut(hash).find_entry(hash, equal).ok()?;
        let (entry, _) = entry.remove();
        self.len -= 1;
        Some(entry.value)
    }

    pub fn entries(&self, group: KeyGroup, cursor: &mut Cursor, out: &mut Vec<(K, V)>) -> bool {
        let table = &self.groups[(group.0 - self.first_group) as usize].entries;
        if cursor.0.take().is_some() {
            let mut entries: Vec<_> = table.iter().collect();
            entries.sort_by_key(|entry| entry.hash);
            out.extend(entries.iter().map(|entry| (entry.key.clone(), entry.value.clone())));
        }
        false
    }

    pub fn mark(&mut self, snapshot: SnapshotId) {
        assert!(self.next.is_none(), "a mark while one is open");
        self.version = self.version.wrapping_add(1);
        self.snapshot = snapshot;
        self.next = Some(0);
    }

    pub fn drain(
        &mut self,
        budget_bytes: usize,
        out: &mut dyn StateWriter,
    ) -> Result<Drained, Error> {
        let mut written = 0;
        while let Some(index) = self.next {
            let Some(group) = self.groups.get_mut(index) else {
                self.next = None;
                break;
            };
            if written >= budget_bytes {
                return Ok(Drained::More);
            }
            let piece = if group.version == self.version {
                self.preserved.remove(&index).expect("a changed group was preserved")
            } else {
                group.version = self.version;
                serialise(&group.entries)
            };
            let snapshot = self.snapshot;
            let piece = piece.map_err(|reason| Error::Snapshot { snapshot, reason })?;
            if !piece.is_empty() {
                let slot = StateSlot::KeyGroup(KeyGroup(self.first_group + index as u32));
                out.write(slot, SCHEMA_ENTRIES, &piece);
            }
            written += piece.len();
            self.next = Some(index + 1);
        }
        Ok(Drained::Done)
    }

    pub fn abandon(&mut self) {
        self.next = None;
        self.preserved.clear();
    }

    pub fn restore(&mut self, group: KeyGroup, bytes: &[u8]) -> Result<(), String> {
        if group.0.wrapping_sub(self.first_group) as usize >= self.groups.len() {
            return Err(format!("key group {} is not of this task", group.0));
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let (key, value) = take_entry::<K, V>(group, &mut rest)?;
            let hash = key.key_hash();
            if self.get(hash, &key).is_some() {
                return Err(format!("a key of group {} comes twice", group.0));
            }
            self.upsert(hash, &key, || value);
        }
        Ok(())
    }
}

/// The entries of a group as a piece.
fn serialise<K: Key, V: Data>(table: &HashTable<Entry<K, V>>) -> Result<Vec<u8>, String> {
    let archive =
        |entry: &Entry<K, V>| Ok((entry.hash, entry.key.to_archive()?, entry.value.to_archive()?));
    let archives: Result<Vec<_>, rkyv::rancor::BoxedError> = table.iter().map(archive).collect();
    let mut archives = archives.map_err(|error| format!("an entry does not serialise: {error}"))?;
    archives.sort_by(|(a, a_key, _), (b, b_key, _)| (a, &a_key[..]).cmp(&(b, &b_key[..])));
    let mut piece = Vec::new();
    for (hash, key, value) in &archives {
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(|_| too_long(bytes.len()));
        piece.extend_from_slice(&hash.to_le_bytes());
        piece.extend_from_slice(&len(key)?.to_le_bytes());
        piece.extend_from_slice(&len(value)?.to_le_bytes());
        piece.extend_from_slice(key);
        piece.extend_from_slice(value);
    }
    Ok(piece)
}

fn too_long(bytes: usize) -> String {
    format!("a key or value of {bytes} bytes is above the limit of 4 GiB")
}

/// Takes one entry off the front of a piece.
fn take_entry<K: Key, V: Data>(group: KeyGroup, rest: &mut &[u8]) -> Result<(K, V), String> {
    let (header, behind) =
        rest.split_at_checked(ENTRY_HEADER_BYTES).ok_or("an entry is cut off in its header")?;
    let half = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    let hash = u64::from(half(0)) | u64::from(half(4)) << 32;
    let cut_off = || format!("an entry of {} and {} bytes is cut off", half(8), half(12));
    let (key, behind) = behind.split_at_checked(half(8) as usize).ok_or_else(cut_off)?;
    let (value, behind) = behind.split_at_checked(half(12) as usize).ok_or_else(cut_off)?;
    let key = K::from_archive(key).map_err(|error| format!("a key is not valid: {error}"))?;
    let value = V::from_archive(value).map_err(|error| format!("a value is not valid: {error}"))?;
    if key.key_hash() != hash || KeyGroup::of_hash(hash) != group {
        return Err(format!("a key does not belong to key group {}", group.0));
    }
    *rest = behind;
    Ok((key, value))
}
