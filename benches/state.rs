//! Updates of keyed state: the paged table against a flat open-addressed table and hashbrown, and the
//! cost of capturing a version meanwhile. Each contender's answer is checked before it is timed;
//! rounds are interleaved and medians reported, with ratios to the flat table. Time is this thread's CPU
//! time, so that neighbours on a shared machine do not count; also of the longest steps.
//!
//! `cargo bench --bench state [filter]`; `cargo test --bench state` runs everything small.

#[path = "common/cpu_time.rs"]
mod cpu_time;

use std::hint::black_box;
use std::io::IoSliceMut;
use std::sync::Arc;

use cpu_time::{Start, median};
use hashbrown::HashTable;
use smallvec::SmallVec;
use tidegate::error::Error;
use tidegate::id::{SegmentId, SnapshotId, StateSlot};
use tidegate::key::{Key, hash_word};
use tidegate::record::Data;
use tidegate::state::{
    Chunk, Drained, KeyedTable, OperatorState, PageEntry, PageSource, Place, StateWriter,
};

/// Records per batch: prefetched together, then updated.
const BATCH: usize = 128;

/// What is measured: adds 1 to the count of every key of a batch.
trait Counter {
    fn update(&mut self, keys: &[u64]);
    fn count(&mut self, key: u64) -> u64;
}

/// Power-of-two capacity, linear probing, key 0 counted as 1 so that 0 marks an empty slot.
struct Flat {
    slots: Vec<(u64, u64)>,
}

impl Flat {
    fn new(keys: usize) -> Self {
        Self { slots: vec![(0, 0); (keys * 2).next_power_of_two()] }
    }

    #[inline]
    fn slot(&mut self, hash: u64, key: u64) -> &mut (u64, u64) {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        while self.slots[at].0 != key + 1 && self.slots[at].0 != 0 {
            at = (at + 1) & mask;
        }
        &mut self.slots[at]
    }
}

#[inline]
fn prefetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "a prefetch")]
    // SAFETY: a prefetch has no effect but on the cache.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(place).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

impl Counter for Flat {
    fn update(&mut self, keys: &[u64]) {
        let mut hashes = [0; BATCH];
        for (hash, key) in hashes.iter_mut().zip(keys) {
            *hash = hash_word(*key);
            prefetch(&self.slots[*hash as usize & (self.slots.len() - 1)]);
        }
        for (hash, key) in hashes.iter().zip(keys) {
            let slot = self.slot(*hash, *key);
            *slot = (key + 1, slot.1 + 1);
        }
    }

    fn count(&mut self, key: u64) -> u64 {
        self.slot(hash_word(key), key).1
    }
}

struct Brown(HashTable<(u64, u64)>);

impl Counter for Brown {
    fn update(&mut self, keys: &[u64]) {
        for key in keys {
            let rehash = |entry: &(u64, u64)| hash_word(entry.0);
            let entry = self.0.entry(hash_word(*key), |entry| entry.0 == *key, rehash);
            entry.or_insert((*key, 0)).into_mut().1 += 1;
        }
    }

    fn count(&mut self, key: u64) -> u64 {
        self.0.find(hash_word(key), |entry| entry.0 == key).map_or(0, |entry| entry.1)
    }
}

/// Ours; `PREFETCH` as for tables larger than the cache.
struct Paged<const PREFETCH: bool>(KeyedTable<u64, u64>);

impl<const PREFETCH: bool> Counter for Paged<PREFETCH> {
    fn update(&mut self, keys: &[u64]) {
        if !PREFETCH {
            for key in keys {
                *self.0.upsert(hash_word(*key), key, || 0) += 1;
            }
            return;
        }
        let mut hashes = [0; BATCH];
        for (hash, key) in hashes.iter_mut().zip(keys) {
            *hash = hash_word(*key);
            self.0.prefetch(*hash);
        }
        for (hash, key) in hashes.iter().zip(keys) {
            *self.0.upsert(*hash, key, || 0) += 1;
        }
    }

    fn count(&mut self, key: u64) -> u64 {
        self.0.get(hash_word(key), &key).copied().unwrap_or(0)
    }
}

/// Takes chunks as a disk would, into one segment; counts them, and keeps them if it is to be read.
#[derive(Default)]
struct Disk {
    is_kept: bool,
    schema: u32,
    pages: Vec<PageEntry>,
    chunks: usize,
    bytes: usize,
    segment: Vec<u8>,
}

impl StateWriter for Disk {
    fn enter(&mut self, operator: &str) {
        panic!("{operator} is no table");
    }

    fn write(&mut self, slot: StateSlot, schema: u32, _bytes: &[u8]) {
        panic!("a table has no piece {slot:?} of schema {schema}");
    }

    fn pages(&mut self, schema: u32, chunk: &mut Chunk) -> Place {
        assert!(chunk.is_summed(), "pages without a checksum");
        let place = Place { segment: SegmentId(1), offset: self.segment.len() as u64 };
        self.chunks += 1;
        self.bytes += chunk.bytes.len();
        if self.is_kept {
            self.schema = schema;
            self.segment.extend_from_slice(&chunk.bytes);
            self.pages.extend(chunk.pages.iter().map(|page| page.entry(place)));
        }
        place
    }

    fn wants_map(&self) -> bool {
        false
    }

    fn map(&mut self, schema: u32, entries: &[PageEntry]) {
        panic!("a map of {} pages of schema {schema}: nobody wants one", entries.len());
    }

    fn keeps(&mut self, _segment: SegmentId, _bytes: u64) {}

    fn empties(&self) -> Option<SegmentId> {
        None
    }

    fn may_rewrite(&mut self, _bytes: usize) -> bool {
        false
    }
}

/// A segment to restore from.
struct Segment(Vec<u8>);

impl PageSource for Segment {
    fn read(&self, place: Place, memory: &mut [IoSliceMut<'_>]) -> Result<(), Error> {
        let mut bytes = &self.0[place.offset as usize..];
        for part in memory {
            let (taken, rest) = bytes.split_at(part.len());
            part.copy_from_slice(taken);
            bytes = rest;
        }
        Ok(())
    }

    fn corrupt(&self, place: Place, reason: String) -> Error {
        panic!("{place:?}: {reason}")
    }
}

/// Keys in the half of the key space that one of two tasks owns.
fn owned_keys(count: usize) -> Vec<u64> {
    (0..)
        .map(|i: u64| i.wrapping_mul(0x9E37_79B9_7F4A_7C15))
        .filter(|k| hash_word(*k) >> 63 == 0)
        .filter(|k| *k != u64::MAX)
        .take(count)
        .collect()
}

/// A stream of keys, uniform or skewed (product of uniforms), the same every time.
fn stream(keys: &[u64], records: usize, is_skewed: bool) -> Vec<u64> {
    let mut state = 1u64;
    let mut next = move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        hash_word(state) as u32 as u64
    };
    let uniform = |x: u64| ((x * keys.len() as u64) >> 32) as usize;
    let skewed =
        |a: u64, b: u64, c: u64, d: u64| uniform((((a * b) >> 32) * ((c * d) >> 32)) >> 32);
    (0..records)
        .map(|_| {
            keys[if is_skewed { skewed(next(), next(), next(), next()) } else { uniform(next()) }]
        })
        .collect()
}

fn report(name: &str, rounds: &mut [f64], base: f64) {
    let middle = median(rounds);
    let (low, high) = (rounds[0], rounds[rounds.len() - 1]);
    println!("  {name:<34} {middle:7.2} ns  ({low:.2}..{high:.2})  x{:.2}", middle / base);
}

/// Interleaved rounds of all contenders over one stream.
fn compare(keys: usize, records: usize, rounds: usize, is_skewed: bool) {
    let owned = owned_keys(keys);
    let records = stream(&owned, records.next_multiple_of(BATCH), is_skewed);
    let mut contenders: [(&str, Box<dyn Counter>); 4] = [
        ("flat, prefetched", Box::new(Flat::new(keys))),
        ("hashbrown", Box::new(Brown(HashTable::new()))),
        ("paged", Box::new(Paged::<false>(KeyedTable::new(0..64)))),
        ("paged, prefetched", Box::new(Paged::<true>(KeyedTable::new(0..64)))),
    ];
    for (name, counter) in &mut contenders {
        records.chunks(BATCH).for_each(|batch| counter.update(batch));
        let total: u64 = owned.iter().map(|key| counter.count(*key)).sum();
        assert_eq!(total, records.len() as u64, "{name}");
    }
    let mut times = [const { Vec::new() }; 4];
    for _ in 0..rounds {
        for ((_, counter), times) in contenders.iter_mut().zip(&mut times) {
            let start = Start::now();
            records.chunks(BATCH).for_each(|batch| counter.update(black_box(batch)));
            times.push(start.elapsed_ns() / records.len() as f64);
        }
    }
    println!("{keys} keys, {}: per update", if is_skewed { "skewed" } else { "uniform" });
    let base = median(&mut times[0]);
    for ((name, _), times) in contenders.iter().zip(&mut times) {
        report(name, times, base);
    }
}

/// Updates while a version is captured and drained in small steps, against updates without.
fn capture(keys: usize, records: usize, rounds: usize) {
    let budget_bytes = 64 << 10;
    let owned = owned_keys(keys);
    let records = stream(&owned, records.next_multiple_of(BATCH), false);
    let mut table = Paged::<true>(KeyedTable::new(0..64));
    owned.chunks(BATCH).for_each(|batch| table.update(batch));
    let memory = table.0.memory_bytes();
    let (mut plain, mut captured) = (Vec::new(), Vec::new());
    let mut longest = [0.0f64; 2];
    let mut disk = Disk::default();
    for round in 0..rounds {
        let start = Start::now();
        records.chunks(BATCH).for_each(|batch| table.update(batch));
        plain.push(start.elapsed_ns() / records.len() as f64);
        disk = Disk::default();
        let start = Start::now();
        table.0.mark(SnapshotId(round as u64 + 1));
        longest[0] = longest[0].max(start.elapsed_ns());
        let mut is_open = true;
        for batch in records.chunks(BATCH) {
            table.update(batch);
            if is_open {
                let step = Start::now();
                is_open = table.0.drain(budget_bytes, &mut disk).unwrap() == Drained::More;
                longest[1] = longest[1].max(step.elapsed_ns());
            }
        }
        while table.0.drain(budget_bytes, &mut disk).unwrap() == Drained::More {}
        captured.push(start.elapsed_ns() / records.len() as f64);
    }
    println!(
        "{keys} keys, one capture per {} updates, {budget_bytes} bytes per batch: per update",
        records.len()
    );
    let base = median(&mut plain);
    report("no capture", &mut plain, base);
    report("with capture", &mut captured, base);
    println!(
        "  memory {:.1} B per entry, written {:.1} B per entry in {} chunks; longest mark {:.0} ns, drain step {:.1} us",
        memory as f64 / keys as f64,
        disk.bytes as f64 / keys as f64,
        disk.chunks,
        longest[0],
        longest[1] / 1000.0
    );
}

/// Filling, writing, restoring.
fn load(keys: usize, rounds: usize) {
    let owned = owned_keys(keys);
    let (mut fill, mut flat_fill, mut back) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let start = Start::now();
        let mut flat = Flat { slots: vec![(0, 0); 16] };
        for (len, key) in owned.iter().enumerate() {
            if len * 2 > flat.slots.len() {
                let larger = vec![(0, 0); flat.slots.len() * 2];
                for slot in std::mem::replace(&mut flat.slots, larger) {
                    if slot.0 != 0 {
                        *flat.slot(hash_word(slot.0 - 1), slot.0 - 1) = slot;
                    }
                }
            }
            *flat.slot(hash_word(*key), *key) = (key + 1, 1);
        }
        black_box(&flat.slots);
        flat_fill.push(start.elapsed_ns() / keys as f64);
        let start = Start::now();
        let mut table = Paged::<true>(KeyedTable::new(0..64));
        owned.chunks(BATCH).for_each(|batch| table.update(batch));
        fill.push(start.elapsed_ns() / keys as f64);
        let mut disk = Disk { is_kept: true, ..Disk::default() };
        table.0.mark(SnapshotId(1));
        assert_eq!(table.0.drain(usize::MAX, &mut disk).unwrap(), Drained::Done);
        let segment: Arc<dyn PageSource> = Arc::new(Segment(disk.segment));
        let start = Start::now();
        let mut restored = KeyedTable::<u64, u64>::new(0..64);
        restored.restore_pages(disk.schema, &disk.pages, &segment).unwrap();
        while restored.load(1 << 20).unwrap() {}
        back.push(start.elapsed_ns() / keys as f64);
        assert_eq!(restored.len(), keys);
        for key in &owned {
            assert_eq!(restored.get(hash_word(*key), key), Some(&1));
        }
    }
    println!("{keys} keys: per entry");
    let base = median(&mut flat_fill);
    report("fill flat, doubling", &mut flat_fill, base);
    report("fill paged", &mut fill, base);
    report("restore paged", &mut back, base);
}

type Word = SmallVec<[u8; 16]>;

/// A table that counts words, and how long it took: per update, and per entry of a version written.
struct Words<V: Data> {
    table: KeyedTable<Word, V>,
    count: fn(&mut V) -> &mut u64,
    zero: fn() -> V,
    updates: Vec<f64>,
    written: Vec<f64>,
}

impl<V: Data> Words<V> {
    fn new(zero: fn() -> V, count: fn(&mut V) -> &mut u64) -> Self {
        let table = KeyedTable::new(0..128);
        Self { table, count, zero, updates: Vec::new(), written: Vec::new() }
    }

    fn round(&mut self, records: &[Word], version: u64) {
        let start = Start::now();
        for batch in records.chunks(BATCH) {
            let mut hashes = [0; BATCH];
            for (hash, word) in hashes.iter_mut().zip(batch) {
                *hash = word.key_hash();
                self.table.prefetch(*hash);
            }
            for (hash, word) in hashes.iter().zip(batch) {
                *(self.count)(self.table.upsert(*hash, word, self.zero)) += 1;
            }
        }
        self.updates.push(start.elapsed_ns() / records.len() as f64);
        let (start, mut disk) = (Start::now(), Disk::default());
        self.table.mark(SnapshotId(version));
        while self.table.drain(64 << 10, &mut disk).unwrap() == Drained::More {}
        self.written.push(start.elapsed_ns() / self.table.len() as f64);
        assert!(disk.bytes > 0);
    }

    fn check(&mut self, expected: &HashTable<(Word, u64)>) {
        assert_eq!(self.table.len(), expected.len());
        for (word, count) in expected {
            let found = self.table.get_mut(word.key_hash(), word).map(self.count);
            assert_eq!(found, Some(&mut { *count }));
        }
    }
}

/// Word count: short byte strings in pages and in the tables of native values, against a hashbrown map of
/// the same; all of a table is written after each round.
fn words(count: usize, records: usize, rounds: usize) {
    let words: Vec<Word> = (0..count as u64)
        .map(|i| {
            let text = format!("{:x}", hash_word(i));
            Word::from_slice(&text.as_bytes()[..2 + (hash_word(!i) % 10) as usize])
        })
        .collect();
    let indices: Vec<u64> = (0..count as u64).collect();
    let records: Vec<Word> =
        stream(&indices, records, true).iter().map(|i| words[*i as usize].clone()).collect();
    let mut paged = Words::<u64>::new(|| 0, |count| count);
    let mut native = Words::<Vec<u64>>::new(|| vec![0], |counts| &mut counts[0]);
    let mut brown: HashTable<(Word, u64)> = HashTable::new();
    let mut theirs = Vec::new();
    for round in 1..=rounds as u64 {
        let start = Start::now();
        for word in &records {
            let entry = brown.entry(word.key_hash(), |e| e.0 == *word, |e| e.0.key_hash());
            entry.or_insert_with(|| (word.clone(), 0)).into_mut().1 += 1;
        }
        theirs.push(start.elapsed_ns() / records.len() as f64);
        paged.round(&records, round);
        native.round(&records, round);
    }
    paged.check(&brown);
    native.check(&brown);
    println!("{} words, skewed: per update with hashing", brown.len());
    let base = median(&mut theirs);
    report("hashbrown", &mut theirs, base);
    report("strings in pages, prefetched", &mut paged.updates, base);
    report("strings to vectors, native", &mut native.updates, base);
    println!("per entry of a version of all, written");
    let base = median(&mut paged.written);
    report("strings in pages", &mut paged.written, base);
    report("strings to vectors, native", &mut native.written, base);
}

fn main() {
    let is_small = !std::env::args().any(|argument| argument == "--bench");
    let wanted = |name: &str| {
        let mut filters = std::env::args().skip(1).filter(|a| !a.starts_with('-')).peekable();
        filters.peek().is_none() || filters.any(|filter| name.contains(&filter))
    };
    let (records, rounds) = if is_small { (10_000, 1) } else { (4_000_000, 9) };
    let sizes: &[usize] = if is_small { &[100] } else { &[1000, 500_000] };
    for keys in sizes {
        if wanted(&format!("update/{keys}")) {
            compare(*keys, records, rounds, false);
            compare(*keys, records, rounds, true);
        }
        if wanted(&format!("load/{keys}")) {
            load(*keys, rounds);
        }
        if wanted(&format!("capture/{keys}")) {
            capture(*keys, records / 8, 4 * rounds);
            capture(*keys, records, rounds);
        }
    }
    if !is_small && wanted("load/1000000") {
        load(1_000_000, rounds);
    }
    if !is_small && wanted("capture/1000000") {
        capture(1_000_000, records / 8, 4 * rounds);
        capture(1_000_000, records, rounds);
    }
    if wanted("words") {
        words(if is_small { 100 } else { 100_000 }, records, rounds);
    }
}
