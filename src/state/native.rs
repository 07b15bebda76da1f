//! A keyed table of native values: for keys and values that are not plain.
//!
//! Owns small hash tables, *buckets*, that tile the hashes as pages do (see [`super::directory`]), and
//! are what a snapshot writes: a bucket that changed is archived with rkyv, entry by entry. A bucket is
//! archived at its first write after a mark or when it is drained, so what a record waits for is the
//! archive of one bucket: at most [`ENTRIES_MAX`] entries, and fewer where they are large, for
//! a bucket whose archive was above [`BUCKET_BYTES`] splits when it changes next. A single entry is
//! always archived as a whole.
//!
//! Invariants
//! - A key that does not serialise fails the snapshot; it is never left out.
//! - A bucket's bytes are sorted by hash and key, so the same entries are the same bytes.
//! - Bytes that come back are checked completely before any of them is used.

use std::ops::Range;
use std::sync::Arc;

use hashbrown::HashTable;

use super::capture::{CLEAN, Capture, Pages, UNLOADED};
use super::exchange::{Chunk, PageEntry, PageSource};
use super::keyed::Cursor;
use super::ledger::{Ledger, Lost};
use super::load::{Read, Unloaded};
use super::memory::PageMemory;
use super::tiles::{
    DEPTH_MAX, GROUP_BITS, Tiles, Tiling, empty_tiles, first_version, group_start, hash_after,
    may_double, tiled,
};
use super::{Drained, StateWriter};
use crate::config::ENTRY_BYTES_MAX;
use crate::error::Error;
use crate::guard;
use crate::id::KeyGroup;
use crate::key::Key;
use crate::record::Data;

/// Before each entry of a bucket: hash, length of the key, length of the value.
const ENTRY_HEADER_BYTES: usize = 16;
/// Before the first: how many there are, and zeros.
const HEADER_BYTES: usize = 64;
/// A bucket with more entries splits.
const ENTRIES_MAX: usize = 64;
/// So does one whose archive was larger, when it changes.
const BUCKET_BYTES: usize = 16 << 10;

struct Entry<K, V> {
    hash: u64,
    key: K,
    value: V,
}

struct Bucket<K, V> {
    prefix: u64,
    depth: u32,
    version: u32,
    /// Length of its last archive.
    bytes: usize,
    entries: HashTable<Entry<K, V>>,
}

impl<K, V> Bucket<K, V> {
    fn new(prefix: u64, depth: u32, version: u32) -> Self {
        Self { prefix, depth, version, bytes: 0, entries: HashTable::new() }
    }
}

pub(super) struct NativeTable<K, V> {
    groups: Range<u32>,
    buckets: Buckets<K, V>,
    len: usize,
    capture: Capture,
    unloaded: Option<Unloaded>,
}

/// The buckets, found by the top bits of the hash.
struct Buckets<K, V> {
    /// Number of the bucket for every value of the top `64 - shift` bits.
    directory: Vec<u32>,
    shift: u32,
    first: usize,
    /// By number.
    buckets: Vec<Bucket<K, V>>,
}

impl<K: Key, V: Data> NativeTable<K, V> {
    pub fn new(groups: Range<u32>) -> Self {
        let buckets = Buckets::new(&groups, &empty_tiles(groups.clone(), GROUP_BITS));
        Self { groups, buckets, len: 0, capture: Capture::default(), unloaded: None }
    }

    /// Entries; all of them once nothing is left to load.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The entries of the bucket of `hash`.
    fn bucket(&mut self, hash: u64) -> &HashTable<Entry<K, V>> {
        self.require(hash);
        &self.buckets.bucket(hash).entries
    }

    /// The entries of the bucket of `hash`, its captured version safe.
    fn bucket_mut(&mut self, hash: u64) -> &mut HashTable<Entry<K, V>> {
        self.require(hash);
        if self.buckets.bucket(hash).version != self.capture.version() {
            let first_hash = self.buckets.bucket(hash).prefix;
            self.capture.protect(&mut self.buckets, hash, first_hash);
            if self.buckets.bucket(hash).bytes > BUCKET_BYTES {
                self.split(hash);
            }
        }
        &mut self.buckets.bucket_mut(hash).entries
    }

    fn split(&mut self, hash: u64) {
        if let Some(first_hash) = self.buckets.split(hash) {
            self.capture.born(first_hash);
        }
    }

    fn require(&mut self, hash: u64) {
        if self.buckets.bucket(hash).version == UNLOADED {
            let unloaded = self.unloaded.as_mut().expect("what is not loaded is on disk");
            let read = unloaded.fault(hash, &self.capture.ledger, &mut PageMemory::default());
            let loaded = read.and_then(|read| read.iter().try_for_each(|read| self.take_in(read)));
            loaded.unwrap_or_else(|error| guard::raise(error));
        }
    }

    fn take_in(&mut self, read: &Read) -> Result<(), Error> {
        let unloaded = self.unloaded.as_ref().expect("it was read from there");
        let corrupt = |reason| unloaded.corrupt(&read.entry, reason);
        let bytes = read.room.bytes();
        let found = crc32c::crc32c(bytes);
        if found != read.entry.crc32c {
            let expected = read.entry.crc32c;
            return Err(corrupt(format!("checksum is {found:08x}, {expected:08x} was written")));
        }
        let entries = parse::<K, V>(&read.entry, bytes).map_err(corrupt)?;
        let bucket = &mut self.buckets.buckets[read.id as usize];
        self.len += entries.len();
        (bucket.bytes, bucket.version, bucket.entries) = (bytes.len(), CLEAN, entries);
        Ok(())
    }

    pub fn upsert(&mut self, hash: u64, key: &K, init: impl FnOnce() -> V) -> &mut V {
        let equal = |entry: &Entry<K, V>| entry.hash == hash && entry.key == *key;
        let entries = self.bucket_mut(hash);
        if entries.find(hash, equal).is_none() {
            let is_full = entries.len() >= ENTRIES_MAX;
            self.len += 1;
            if is_full {
                self.split(hash);
            }
        }
        let make = || Entry { hash, key: key.clone(), value: init() };
        let entries = &mut self.buckets.bucket_mut(hash).entries;
        let entry = entries.entry(hash, equal, |entry| entry.hash).or_insert_with(make);
        &mut entry.into_mut().value
    }

    pub fn get(&mut self, hash: u64, key: &K) -> Option<&V> {
        let equal = |entry: &Entry<K, V>| entry.hash == hash && entry.key == *key;
        self.bucket(hash).find(hash, equal).map(|entry| &entry.value)
    }

    pub fn get_mut(&mut self, hash: u64, key: &K) -> Option<&mut V> {
        let equal = |entry: &Entry<K, V>| entry.hash == hash && entry.key == *key;
        self.bucket_mut(hash).find_mut(hash, equal).map(|entry| &mut entry.value)
    }

    pub fn remove(&mut self, hash: u64, key: &K) -> Option<V> {
        let equal = |entry: &Entry<K, V>| entry.hash == hash && entry.key == *key;
        self.bucket(hash).find(hash, equal)?;
        let entry = self.bucket_mut(hash).find_entry(hash, equal).ok()?;
        let (entry, _) = entry.remove();
        self.len -= 1;
        Some(entry.value)
    }

    pub fn entries(
        &mut self,
        group: KeyGroup,
        cursor: &mut Cursor,
        max: usize,
        out: &mut Vec<(K, V)>,
    ) -> bool {
        let goal = out.len() + max;
        while let Some(after) = cursor.0 {
            if out.len() >= goal {
                return true;
            }
            let hash = group_start(group) + after;
            let mut entries: Vec<_> = self.bucket(hash).iter().collect();
            entries.sort_by_key(|entry| entry.hash);
            out.extend(entries.iter().map(|entry| (entry.key.clone(), entry.value.clone())));
            let Bucket { prefix, depth, .. } = self.buckets.bucket(hash);
            cursor.0 = hash_after(*prefix, *depth).map(|hash| hash - group_start(group));
        }
        false
    }

    pub fn mark(&mut self) {
        self.capture.mark();
    }

    pub fn drain(
        &mut self,
        schema: u32,
        budget_bytes: usize,
        out: &mut dyn StateWriter,
    ) -> Result<Drained, String> {
        self.capture.drain(&mut self.buckets, schema, budget_bytes, out)
    }

    pub fn abandon(&mut self) {
        self.capture.abandon(&mut self.buckets);
    }

    pub fn lost(&mut self, lost: &[Lost]) {
        self.capture.lost(&mut self.buckets, lost);
    }

    /// Takes the buckets of a restored table, which stay where they are until they are needed.
    pub fn restore_pages(
        &mut self,
        pages: &[PageEntry],
        source: &Arc<dyn PageSource>,
    ) -> Result<(), String> {
        assert!(self.len == 0 && self.unloaded.is_none(), "a table is restored once, when new");
        let Tiling { tiles, shared } = tiled(self.groups.clone(), GROUP_BITS, pages)?;
        debug_assert!(shared.is_empty(), "a bucket belongs to one key group");
        self.buckets = Buckets::new(&self.groups, &tiles);
        let unloaded = Unloaded::new(&tiles, source.clone());
        self.capture.ledger = Ledger::restored(tiles, unloaded.bytes());
        self.unloaded = Some(unloaded);
        Ok(())
    }

    /// Loads about so many bytes; whether more is left.
    pub fn load(&mut self, budget_bytes: usize) -> Result<bool, Error> {
        let mut loaded = 0;
        while let Some(unloaded) = self.unloaded.as_mut().filter(|_| loaded < budget_bytes) {
            let (left, mut memory) = (budget_bytes - loaded, PageMemory::default());
            for read in unloaded.next(left, &self.capture.ledger, &mut memory)? {
                loaded += read.entry.bytes as usize;
                self.take_in(&read)?;
            }
            self.unloaded.take_if(|unloaded| unloaded.is_empty());
        }
        Ok(self.unloaded.is_some())
    }

    /// Bytes of memory but for what keys and values point to.
    pub fn memory_bytes(&self) -> usize {
        let entries: usize = self.buckets.buckets.iter().map(|b| b.entries.allocation_size()).sum();
        let buckets = self.buckets.buckets.capacity() * size_of::<Bucket<K, V>>();
        entries + buckets + self.buckets.directory.capacity() * 4 + self.capture.memory_bytes()
    }
}

impl<K: Key, V: Data> Buckets<K, V> {
    fn new(groups: &Range<u32>, tiles: &Tiles) -> Self {
        let depth = tiles.iter().map(|tile| tile.depth).max().expect("a table has buckets");
        let runs = tiles.iter().zip(0..).flat_map(|(tile, number)| {
            let run = 1 << (depth - tile.depth);
            std::iter::repeat_n(number, run)
        });
        Self {
            directory: runs.collect(),
            shift: 64 - depth,
            first: (groups.start as usize) << (depth - GROUP_BITS),
            buckets: tiles
                .iter()
                .map(|tile| Bucket::new(tile.prefix, tile.depth, first_version(tile)))
                .collect(),
        }
    }

    fn number(&self, hash: u64) -> usize {
        self.directory[((hash >> self.shift) as usize).wrapping_sub(self.first)] as usize
    }

    fn bucket(&self, hash: u64) -> &Bucket<K, V> {
        &self.buckets[self.number(hash)]
    }

    fn bucket_mut(&mut self, hash: u64) -> &mut Bucket<K, V> {
        let number = self.number(hash);
        &mut self.buckets[number]
    }

    /// Moves the upper half of a bucket's hashes to a new bucket of the same version: its first hash.
    /// `None` where it cannot be told from the lower half.
    fn split(&mut self, hash: u64) -> Option<u64> {
        let Bucket { prefix, depth, version, .. } = *self.bucket(hash);
        if depth == DEPTH_MAX || self.bucket(hash).entries.len() < 2 {
            return None;
        }
        if depth == 64 - self.shift {
            if !may_double(self.directory.len(), self.buckets.len()) {
                return None;
            }
            self.directory = self.directory.iter().flat_map(|number| [*number; 2]).collect();
            self.shift -= 1;
            self.first *= 2;
        }
        let middle = prefix | 1 << (63 - depth);
        let bucket = self.bucket_mut(hash);
        bucket.depth += 1;
        bucket.bytes /= 2;
        let mut upper = Bucket::new(middle, depth + 1, version);
        upper.bytes = bucket.bytes;
        for entry in bucket.entries.extract_if(|entry| entry.hash >= middle) {
            upper.entries.insert_unique(entry.hash, entry, |entry| entry.hash);
        }
        let number = self.buckets.len() as u32;
        let start = ((middle >> self.shift) as usize).wrapping_sub(self.first);
        let run = 1 << (64 - self.shift - depth - 1);
        self.directory[start..start + run].fill(number);
        self.buckets.push(upper);
        Some(middle)
    }
}

impl<K: Key, V: Data> Pages for Buckets<K, V> {
    fn version(&self, hash: u64) -> u32 {
        self.bucket(hash).version
    }

    fn stamp(&mut self, hash: u64, version: u32) {
        self.bucket_mut(hash).version = version;
    }

    fn copy(&mut self, hash: u64, chunk: &mut Chunk) -> Result<(), String> {
        let number = self.number(hash);
        let bucket = &mut self.buckets[number];
        let bytes = serialise(&bucket.entries)?;
        bucket.bytes = bytes.len();
        chunk.push(number as u32, bucket.prefix, bucket.depth, &bytes);
        Ok(())
    }
}

/// The entries of a bucket as bytes.
fn serialise<K: Key, V: Data>(table: &HashTable<Entry<K, V>>) -> Result<Vec<u8>, String> {
    let archive =
        |entry: &Entry<K, V>| Ok((entry.hash, entry.key.to_archive()?, entry.value.to_archive()?));
    let archives: Result<Vec<_>, rkyv::rancor::BoxedError> = table.iter().map(archive).collect();
    let mut archives = archives.map_err(|error| format!("an entry does not serialise: {error}"))?;
    archives.sort_by(|(a, a_key, _), (b, b_key, _)| (a, &a_key[..]).cmp(&(b, &b_key[..])));
    let mut bytes = vec![0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&(archives.len() as u64).to_le_bytes());
    for (hash, key, value) in &archives {
        if key.len() + value.len() > ENTRY_BYTES_MAX {
            let (entry, limit) = (key.len() + value.len(), ENTRY_BYTES_MAX >> 20);
            return Err(format!(
                "an entry of {entry} bytes, at most {limit} MiB can be: spread it over several keys"
            ));
        }
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(|_| too_long(bytes.len()));
        bytes.extend_from_slice(&hash.to_le_bytes());
        bytes.extend_from_slice(&len(key)?.to_le_bytes());
        bytes.extend_from_slice(&len(value)?.to_le_bytes());
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(value);
    }
    if u32::try_from(bytes.len()).is_err() {
        return Err(too_long(bytes.len()));
    }
    Ok(bytes)
}

fn too_long(bytes: usize) -> String {
    format!("a key, a value or a bucket of them of {bytes} bytes is above the limit of 4 GiB")
}

/// The entries that the bytes of a bucket are.
fn parse<K: Key, V: Data>(
    place: &PageEntry,
    bytes: &[u8],
) -> Result<HashTable<Entry<K, V>>, String> {
    let (header, mut rest) = bytes.split_at_checked(HEADER_BYTES).ok_or("a bucket is cut off")?;
    let (count, zeros) = header.split_at(8);
    let count = u64::from_le_bytes(count.try_into().expect("8 bytes"));
    let mut entries = HashTable::new();
    while !rest.is_empty() {
        let entry = take_entry::<K, V>(place, &mut rest)?;
        let equal = |other: &Entry<K, V>| other.hash == entry.hash && other.key == entry.key;
        if entries.find(entry.hash, equal).is_some() {
            return Err(format!("a key of prefix {:x} comes twice", place.prefix));
        }
        entries.insert_unique(entry.hash, entry, |entry| entry.hash);
    }
    if entries.len() as u64 != count || zeros.iter().any(|zero| *zero != 0) {
        return Err(format!("a bucket of {count} entries has {}", entries.len()));
    }
    Ok(entries)
}

/// Takes one entry off the front of a bucket's bytes.
fn take_entry<K: Key, V: Data>(place: &PageEntry, rest: &mut &[u8]) -> Result<Entry<K, V>, String> {
    let header = rest.get(..ENTRY_HEADER_BYTES).ok_or("an entry is cut off in its header")?;
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    let hash = u64::from(word(0)) | u64::from(word(4)) << 32;
    let (key_bytes, value_bytes) = (word(8) as usize, word(12) as usize);
    let behind = &rest[ENTRY_HEADER_BYTES..];
    if key_bytes.checked_add(value_bytes).is_none_or(|bytes| bytes > behind.len()) {
        return Err(format!("an entry of {key_bytes} and {value_bytes} bytes is cut off"));
    }
    let (key, behind) = behind.split_at(key_bytes);
    let (value, behind) = behind.split_at(value_bytes);
    let key = K::from_archive(key).map_err(|error| format!("a key: {error}"))?;
    let value = V::from_archive(value).map_err(|error| format!("a value: {error}"))?;
    let is_here = hash >> (64 - place.depth) == place.prefix >> (64 - place.depth);
    if key.key_hash() != hash || !is_here {
        return Err(format!("a key of hash {hash:x} in prefix {:x}", place.prefix));
    }
    *rest = behind;
    Ok(Entry { hash, key, value })
}
