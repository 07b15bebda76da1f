//! Random operations against a plain map: every captured version must come out exact.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;

use proptest::prelude::*;
use smallvec::SmallVec;

use self::shelf::{Index, Shelf};
use super::{Cursor, Drained, KeyedTable, OperatorState};
use crate::config::{ENTRY_BYTES_MAX, KEY_BYTES_MAX};
use crate::guard;
use crate::id::{KeyGroup, SnapshotId};
use crate::key::Key;
use crate::record::Data;

mod memory;
mod migrate;
mod page;
pub(crate) mod pieces;
mod shelf;
mod steps;

/// All entries of a table, by iteration in small steps.
fn contents<K: Key + Ord, V: Data>(table: &mut KeyedTable<K, V>) -> BTreeMap<K, V> {
    let mut all = BTreeMap::new();
    let mut found = Vec::new();
    for group in table.groups() {
        let mut cursor = Cursor::default();
        while table.entries(KeyGroup(group), &mut cursor, 3, &mut found) {}
        for (key, value) in found.drain(..) {
            assert_eq!(KeyGroup::of_hash(key.key_hash()), KeyGroup(group));
            assert!(all.insert(key, value).is_none(), "an entry was met twice");
        }
    }
    assert_eq!(all.len(), table.len());
    all
}

/// One step of a random history; numbers choose keys and values.
#[derive(Clone, Debug)]
enum Step {
    Upsert(u16, u64),
    UpsertMany(u16, u16),
    Remove(u16),
    RemoveMany(u16, u16),
    Get(u16),
    Mark,
    Drain(usize),
    Abandon,
    /// The last complete version turns out not to be on disk.
    Lose,
    /// Go on with what the last complete snapshot holds, restored in two halves and as a whole.
    Restore(u32),
    /// Some of what was restored is loaded.
    Load(usize),
    /// From now on old segments are emptied, or are not.
    Empty(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..3000u16;
    prop_oneof![
        20 => (key.clone(), any::<u64>()).prop_map(|(k, v)| Step::Upsert(k, v)),
        4 => (key.clone(), 1..1500u16).prop_map(|(k, n)| Step::UpsertMany(k, n)),
        6 => key.clone().prop_map(Step::Remove),
        2 => (key.clone(), 1..600u16).prop_map(|(k, n)| Step::RemoveMany(k, n)),
        4 => key.prop_map(Step::Get),
        5 => Just(Step::Mark),
        9 => (1..60_000usize).prop_map(Step::Drain),
        1 => Just(Step::Abandon),
        1 => Just(Step::Lose),
        1 => (1..128u32).prop_map(Step::Restore),
        2 => (1..9_000usize).prop_map(Step::Load),
        1 => any::<bool>().prop_map(Step::Empty),
    ]
}

/// A table, the map it should equal, and the version that is marked.
struct Run<K: Key, V: Data> {
    table: KeyedTable<K, V>,
    model: BTreeMap<K, V>,
    marked: Option<BTreeMap<K, V>>,
    shelf: Shelf,
    /// Complete versions that a restore may ask for: the last, and the one before.
    complete: Vec<(Index, BTreeMap<K, V>)>,
    snapshot: SnapshotId,
    /// Whether all of the table is loaded.
    is_loaded: bool,
    /// The key groups of the table: all of them, until a restore goes on with a part.
    groups: Range<u32>,
}

impl<K: Key + Ord + Debug, V: Data + PartialEq + Debug> Run<K, V> {
    fn new() -> Self {
        Self {
            table: KeyedTable::new(0..128),
            model: BTreeMap::new(),
            marked: None,
            shelf: Shelf::new(),
            complete: Vec::new(),
            snapshot: SnapshotId::default(),
            is_loaded: true,
            groups: 0..128,
        }
    }

    fn holds(&self, key: &K) -> bool {
        self.groups.contains(&KeyGroup::of_hash(key.key_hash()).0)
    }

    fn take(&mut self, step: &Step, key: fn(u16) -> K, value: fn(u64) -> V) {
        match *step {
            Step::Upsert(k, v) => self.upsert(key(k), value(v)),
            Step::UpsertMany(k, n) => {
                (k..k + n).for_each(|k| self.upsert(key(k), value(u64::from(k) + 1)));
            }
            Step::Remove(k) => self.remove(key(k)),
            Step::RemoveMany(k, n) => (k..k + n).for_each(|k| self.remove(key(k))),
            Step::Get(k) => {
                let key = key(k);
                if self.holds(&key) {
                    self.table.prefetch(key.key_hash());
                    assert_eq!(self.table.get(key.key_hash(), &key), self.model.get(&key));
                }
            }
            Step::Mark => self.mark(),
            Step::Drain(budget) => self.drain(budget),
            Step::Abandon => {
                self.table.abandon();
                self.shelf.abandon();
                self.marked = None;
            }
            Step::Lose => self.lose(),
            Step::Restore(split) => self.restore(split),
            Step::Load(budget) => self.is_loaded = !self.table.load(budget).unwrap(),
            Step::Empty(empties) => self.shelf.empties = empties,
        }
    }

    fn upsert(&mut self, key: K, value: V) {
        if !self.holds(&key) {
            return;
        }
        let hash = key.key_hash();
        let init = value.clone();
        let present = self.table.upsert(hash, &key, || init);
        assert_eq!(present, self.model.get(&key).unwrap_or(&value));
        *present = value.clone();
        let replaced = self.table.insert(hash, &key, value.clone());
        assert_eq!(replaced.as_ref(), Some(&value));
        self.model.insert(key, value);
        if self.is_loaded {
            assert_eq!(self.table.len(), self.model.len());
        }
    }

    fn remove(&mut self, key: K) {
        if self.holds(&key) {
            assert_eq!(self.table.remove(key.key_hash(), &key), self.model.remove(&key));
        }
    }

    fn mark(&mut self) {
        if self.marked.is_none() {
            self.snapshot = self.snapshot.next();
            self.shelf.begin();
            self.table.mark(self.snapshot);
            self.marked = Some(self.model.clone());
        }
    }

    fn drain(&mut self, budget: usize) {
        if self.table.drain(budget, &mut self.shelf).unwrap() == Drained::More {
            return;
        }
        let Some(marked) = self.marked.take() else { return };
        let index = self.shelf.finish();
        let groups = self.groups.clone();
        assert_eq!(contents(&mut self.shelf.restored::<K, V>(&index, groups)), marked);
        self.complete.insert(0, (index, marked));
        self.complete.truncate(2);
        let kept: Vec<&Index> = self.complete.iter().map(|complete| &complete.0).collect();
        self.shelf.forget_others(&kept);
    }

    fn lose(&mut self) {
        if self.marked.is_some() || self.complete.is_empty() {
            return;
        }
        let lost = self.shelf.lose();
        self.table.lost(&lost);
        self.complete.remove(0);
        self.shelf.begin();
    }

    fn restore(&mut self, split: u32) {
        let Some((index, complete)) = self.complete.first() else { return };
        let Range { start, end } = self.groups;
        let middle = start + split % (end - start);
        let mut both = BTreeMap::new();
        for groups in [start..middle, middle..end].into_iter().filter(|groups| !groups.is_empty()) {
            let mut half = self.shelf.restored::<K, V>(index, groups.clone());
            // What it writes is all that it has, also where a page was of both halves.
            let mut shelf = self.shelf.other();
            half.mark(self.snapshot);
            while half.drain(10_000, &mut shelf).unwrap() != Drained::Done {}
            let written = shelf.finish();
            let found = contents(&mut half);
            assert_eq!(contents(&mut shelf.restored::<K, V>(&written, groups)), found);
            both.extend(found);
        }
        assert_eq!(&both, complete);
        // Mostly it goes on with all, else with a part as a task of more than before does.
        self.groups = match split % 4 {
            0 if middle > start => start..middle,
            1 => middle..end,
            _ => start..end,
        };
        self.table = self.shelf.restored(index, self.groups.clone());
        self.shelf.abandon();
        self.shelf.restart();
        let groups = self.groups.clone();
        let is_held = |key: &K| groups.contains(&KeyGroup::of_hash(key.key_hash()).0);
        self.complete.iter_mut().for_each(|(_, of)| of.retain(|key, _| is_held(key)));
        both.retain(|key, _| is_held(key));
        self.model = both;
        self.marked = None;
        self.is_loaded = false;
    }

    fn finish(mut self) {
        self.mark();
        while self.marked.is_some() {
            self.drain(10_000);
        }
        while self.table.load(5_000).unwrap() {}
        assert_eq!(self.table.len(), self.model.len());
        assert_eq!(contents(&mut self.table), self.model);
        for _ in 0..2 {
            self.mark();
            self.drain(usize::MAX);
            assert_eq!(self.complete[0].1, self.model);
        }
        if !self.shelf.empties {
            assert_eq!(self.shelf.written_bytes, 0, "nothing had changed");
        }
    }
}

fn run<K, V>(steps: &[Step], key: fn(u16) -> K, value: fn(u64) -> V)
where
    K: Key + Ord + Debug,
    V: Data + PartialEq + Debug,
{
    let mut run = Run::new();
    steps.iter().for_each(|step| run.take(step, key, value));
    run.finish();
}

/// A word of 0 to 40 bytes, so that some lie in their slot and some in the heap.
fn word(k: u16) -> Vec<u8> {
    let len = usize::from(k % 41);
    let mut bytes = k.to_string().into_bytes();
    bytes.resize(bytes.len().max(len), b'x');
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn numbers_to_numbers_come_out_exact(steps in prop::collection::vec(step(), 1..120)) {
        run(&steps, u64::from, |v| v);
    }

    #[test]
    fn words_to_numbers_come_out_exact(steps in prop::collection::vec(step(), 1..120)) {
        run::<SmallVec<[u8; 16]>, u64>(&steps, |k| word(k).into(), |v| v);
    }

    #[test]
    fn strings_to_tuples_come_out_exact(steps in prop::collection::vec(step(), 1..120)) {
        let key = |k| String::from_utf8(word(k)).unwrap();
        run::<String, (u64, u64)>(&steps, key, |v| (v, !v));
    }

    #[test]
    fn numbers_to_arrays_come_out_exact(steps in prop::collection::vec(step(), 1..120)) {
        run::<i32, [u64; 2]>(&steps, |k| i32::from(k) - 1000, |v| [v, v ^ 1]);
    }

    #[test]
    fn pairs_to_flags_come_out_exact(steps in prop::collection::vec(step(), 1..120)) {
        run::<(u64, u64), bool>(&steps, |k| (k.into(), 7), |v| v % 2 == 0);
    }

    #[test]
    fn numbers_to_large_arrays_come_out_exact(steps in prop::collection::vec(step(), 1..60)) {
        run::<u8, [u64; 200]>(&steps, |k| k as u8, |v| [v; 200]);
    }

    #[test]
    fn numbers_to_native_values_come_out_exact(steps in prop::collection::vec(step(), 1..60)) {
        run::<u64, Vec<String>>(&steps, u64::from, |v| vec![v.to_string(); (v % 3) as usize]);
    }

    #[test]
    fn native_keys_come_out_exact(steps in prop::collection::vec(step(), 1..60)) {
        run::<(u64, String), u64>(&steps, |k| (k.into(), k.to_string()), |v| v);
    }
}

#[test]
fn a_snapshot_writes_the_pages_that_changed_and_no_others() {
    let mut run = Run::<u64, u64>::new();
    (0..20_000u64).for_each(|key| run.upsert(key, key));
    run.mark();
    run.drain(usize::MAX);
    let all = run.shelf.written_bytes;
    for key in [7, 7, 4711] {
        run.upsert(key, 1);
    }
    run.mark();
    run.upsert(9, 2);
    run.drain(usize::MAX);
    let some = run.shelf.written_bytes;
    assert!((1..=3 * 4096).contains(&some), "{some} of {all} bytes were written for two pages");
    run.mark();
    run.drain(usize::MAX);
    assert!((1..=2 * 4096).contains(&run.shelf.written_bytes), "key 9 had changed after the mark");
    run.finish();
}

#[test]
fn a_page_that_was_damaged_on_disk_is_an_error_when_it_is_needed() {
    let mut run = Run::<u64, u64>::new();
    (0..2000u64).for_each(|key| run.upsert(key, key));
    run.mark();
    run.drain(usize::MAX);
    let index = run.complete[0].0.clone();
    let entry = *index.0.values().nth(5).unwrap();
    for bit in (0..u64::from(entry.bytes) * 8).step_by(11) {
        let place = super::Place { offset: entry.place.offset + bit / 8, ..entry.place };
        run.shelf.damage(place, |byte| byte ^ 1 << (bit % 8));
        let mut table = run.shelf.restored::<u64, u64>(&index, 0..128);
        let error = std::iter::repeat_with(|| table.load(1000)).find_map(Result::err).unwrap();
        assert!(error.to_string().contains("is corrupt at byte"), "{error}");
        let key = (0..2000)
            .find(|key: &u64| {
                key.key_hash() >> (64 - entry.depth) == entry.prefix >> (64 - entry.depth)
            })
            .unwrap();
        let mut table = run.shelf.restored::<u64, u64>(&index, 0..128);
        let met = crate::guard::caught(|| table.get(key.key_hash(), &key).copied());
        let error = met.unwrap_err().into_error(|_| unreachable!()).to_string();
        assert!(error.contains("is corrupt at byte") && error.contains("checksum"), "{error}");
        run.shelf.damage(place, |byte| byte ^ 1 << (bit % 8));
    }
}

/// A key whose hash is not mixed at all.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Clashing(u64);

impl Key for Clashing {
    fn key_hash(&self) -> u64 {
        u64::MAX
    }
}

#[test]
fn keys_of_one_hash_are_slow_but_right() {
    let mut table = KeyedTable::<Clashing, u64>::new(127..128);
    for k in 0..300 {
        *table.upsert(u64::MAX, &Clashing(k), || 0) += k;
    }
    for k in (0..300).step_by(2) {
        assert_eq!(table.remove(u64::MAX, &Clashing(k)), Some(k));
    }
    for k in 0..300 {
        let expected = (k % 2 == 1).then_some(k);
        assert_eq!(table.get(u64::MAX, &Clashing(k)).copied(), expected);
    }
}

/// A key whose hash shares its first bits with that of many others.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Crowded(u64);

impl Key for Crowded {
    fn key_hash(&self) -> u64 {
        self.0 << 33
    }
}

#[test]
fn chosen_keys_do_not_make_a_table_take_memory_by_the_gigabyte() {
    let mut table = KeyedTable::<Crowded, [u64; 4]>::new(0..128);
    let mut words = KeyedTable::<Crowded, String>::new(0..128);
    // One key on the other side of each bit that the others share, and then those.
    let keys = || (11..31).map(|bit| 1 << bit).chain(0..2000);
    for k in keys() {
        let key = Crowded(k);
        table.upsert(key.key_hash(), &key, || [k; 4]);
        words.upsert(key.key_hash(), &key, || k.to_string());
    }
    let bytes = [table.memory_bytes(), words.memory_bytes()];
    assert!(bytes.iter().all(|bytes| *bytes < 4 << 20), "{bytes:?} bytes");
    for k in keys() {
        assert_eq!(table.get(Crowded(k).key_hash(), &Crowded(k)), Some(&[k; 4]));
        assert_eq!(words.get(Crowded(k).key_hash(), &Crowded(k)), Some(&k.to_string()));
    }
}

#[test]
#[should_panic(expected = "index out of bounds")]
fn a_key_of_another_task_is_refused() {
    let mut table = KeyedTable::<Clashing, u64>::new(0..64);
    table.upsert(u64::MAX, &Clashing(0), || 0);
}

/// A value that does not serialise before 1970.
#[derive(Clone, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Moment(#[rkyv(with = rkyv::with::AsUnixTime)] std::time::SystemTime);

#[test]
fn a_value_that_does_not_serialise_fails_the_snapshot() {
    for changes_after_mark in [false, true] {
        let mut table = KeyedTable::<u64, Moment>::new(0..128);
        let epoch = std::time::SystemTime::UNIX_EPOCH;
        let before = Moment(epoch - std::time::Duration::from_secs(1));
        table.insert(7.key_hash(), &7, before);
        table.mark(SnapshotId(3));
        if changes_after_mark {
            table.insert(7.key_hash(), &7, Moment(epoch));
        }
        let error = table.drain(usize::MAX, &mut Shelf::new()).unwrap_err().to_string();
        assert!(error.contains("snapshot 3 failed: an entry does not serialise"), "{error}");
        table.abandon();
        table.insert(7.key_hash(), &7, Moment(epoch));
        table.mark(SnapshotId(4));
        assert_eq!(table.drain(usize::MAX, &mut Shelf::new()).unwrap(), Drained::Done);
    }
}

#[test]
fn a_key_above_its_limit_is_an_error_that_says_what_to_do_and_one_below_is_not() {
    let mut table = KeyedTable::<String, u64>::new(0..128);
    let mut insert = |bytes: usize| {
        let key = "k".repeat(bytes);
        guard::caught(|| *table.upsert(key.key_hash(), &key, || 1))
    };
    assert_eq!(insert(KEY_BYTES_MAX).unwrap(), 1);
    let Err(guard::Caught::Error(error)) = insert(KEY_BYTES_MAX + 1) else { panic!("it is taken") };
    let text = error.to_string();
    assert!(text.contains("a key of 1048577 bytes") && text.contains("shorter"), "{text}");
}

#[test]
fn a_value_above_its_limit_fails_the_snapshot_and_says_what_to_do() {
    let mut table = KeyedTable::<u64, Vec<u8>>::new(0..128);
    table.insert(7.key_hash(), &7, vec![1; ENTRY_BYTES_MAX]);
    table.mark(SnapshotId(3));
    let error = table.drain(usize::MAX, &mut Shelf::new()).unwrap_err().to_string();
    assert!(error.contains("at most 64 MiB can be: spread it over several keys"), "{error}");
    table.abandon();
    table.insert(7.key_hash(), &7, vec![1]);
    table.mark(SnapshotId(4));
    assert_eq!(table.drain(usize::MAX, &mut Shelf::new()).unwrap(), Drained::Done);
}
