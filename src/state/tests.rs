//! Random operations against a plain map: every captured version must come out exact.

use std::collections::BTreeMap;
use std::fmt::Debug;

use proptest::prelude::*;
use smallvec::SmallVec;

use super::{Cursor, Drained, KeyedTable, OperatorState, StateWriter};
use crate::id::{KeyGroup, SnapshotId, StateSlot};
use crate::key::Key;
use crate::record::Data;

/// Keeps what is written.
#[derive(Default, Clone, PartialEq, Debug)]
struct Pieces(Vec<(StateSlot, u32, Vec<u8>)>);

impl StateWriter for Pieces {
    fn write(&mut self, slot: StateSlot, schema: u32, bytes: &[u8]) {
        self.0.push((slot, schema, bytes.to_vec()));
    }
}

impl Pieces {
    /// The pieces of some key groups, in a new table.
    fn restored<K: Key, V: Data>(&self, groups: std::ops::Range<u32>) -> KeyedTable<K, V> {
        let mut table = KeyedTable::new(groups.clone());
        for (slot, schema, bytes) in &self.0 {
            let StateSlot::KeyGroup(group) = slot else { panic!("{slot:?}") };
            if groups.contains(&group.0) {
                table.restore(*slot, *schema, bytes).unwrap();
            }
        }
        table
    }
}

/// All entries of a table, by iteration in small steps.
fn contents<K: Key + Ord, V: Data>(table: &KeyedTable<K, V>) -> BTreeMap<K, V> {
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
    /// Go on with what the last complete snapshot holds, restored in two halves and joined.
    Restore(u32),
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
        1 => (1..128u32).prop_map(Step::Restore),
    ]
}

/// A table, the map it should equal, and the version that is marked.
struct Run<K: Key, V: Data> {
    table: KeyedTable<K, V>,
    model: BTreeMap<K, V>,
    marked: Option<BTreeMap<K, V>>,
    pieces: Pieces,
    complete: Option<(Pieces, BTreeMap<K, V>)>,
    snapshot: SnapshotId,
}

impl<K: Key + Ord + Debug, V: Data + PartialEq + Debug> Run<K, V> {
    fn new() -> Self {
        Self {
            table: KeyedTable::new(0..128),
            model: BTreeMap::new(),
            marked: None,
            pieces: Pieces::default(),
            complete: None,
            snapshot: SnapshotId::default(),
        }
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
                self.table.prefetch(key.key_hash());
                assert_eq!(self.table.get(key.key_hash(), &key), self.model.get(&key));
            }
            Step::Mark => self.mark(),
            Step::Drain(budget) => self.drain(budget),
            Step::Abandon => {
                self.table.abandon();
                self.marked = None;
                self.pieces.0.clear();
            }
            Step::Restore(split) => self.restore(split),
        }
    }

    fn upsert(&mut self, key: K, value: V) {
        let hash = key.key_hash();
        let init = value.clone();
        let present = self.table.upsert(hash, &key, || init);
        assert_eq!(present, self.model.get(&key).unwrap_or(&value));
        *present = value.clone();
        let replaced = self.table.insert(hash, &key, value.clone());
        assert_eq!(replaced.as_ref(), Some(&value));
        self.model.insert(key, value);
        assert_eq!(self.table.len(), self.model.len());
    }

    fn remove(&mut self, key: K) {
        assert_eq!(self.table.remove(key.key_hash(), &key), self.model.remove(&key));
    }

    fn mark(&mut self) {
        if self.marked.is_none() {
            self.snapshot = self.snapshot.next();
            self.table.mark(self.snapshot);
            self.marked = Some(self.model.clone());
        }
    }

    fn drain(&mut self, budget: usize) {
        if self.table.drain(budget, &mut self.pieces).unwrap() == Drained::More {
            return;
        }
        let pieces = std::mem::take(&mut self.pieces);
        if let Some(marked) = self.marked.take() {
            assert_eq!(contents(&pieces.restored::<K, V>(0..128)), marked);
            self.complete = Some((pieces, marked));
        } else {
            assert!(pieces.0.is_empty(), "written without a mark");
        }
    }

    fn restore(&mut self, split: u32) {
        let Some((pieces, complete)) = &self.complete else { return };
        let mut halves = contents(&pieces.restored::<K, V>(0..split));
        halves.extend(contents(&pieces.restored::<K, V>(split..128)));
        assert_eq!(&halves, complete);
        self.table = pieces.restored(0..128);
        self.model = halves;
        self.marked = None;
        self.pieces.0.clear();
    }

    fn finish(mut self) {
        assert_eq!(contents(&self.table), self.model);
        self.mark();
        while self.marked.is_some() {
            self.drain(10_000);
        }
        self.mark();
        self.drain(usize::MAX);
        assert_eq!(self.complete.unwrap().1, self.model);
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
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

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
fn a_marked_version_is_the_same_bytes_whatever_happens_meanwhile() {
    let fill = || {
        let mut table = KeyedTable::<Vec<u8>, u64>::new(0..128);
        for k in 0..20_000u16 {
            table.insert(word(k).key_hash(), &word(k), k.into());
        }
        table.mark(SnapshotId(1));
        table
    };
    let mut undisturbed = Pieces::default();
    assert_eq!(fill().drain(usize::MAX, &mut undisturbed).unwrap(), Drained::Done);
    let mut table = fill();
    let mut disturbed = Pieces::default();
    let mut k = 0;
    while table.drain(30_000, &mut disturbed).unwrap() == Drained::More {
        for _ in 0..700 {
            let (old, new) = (word(k % 20_000), word(k % 20_000 + 30_000));
            table.remove(old.key_hash(), &old);
            table.insert(new.key_hash(), &new, 0);
            k += 1;
        }
    }
    assert!(k > 5000, "the drain was disturbed only {k} times");
    assert_eq!(disturbed, undisturbed);
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
        let error = table.drain(usize::MAX, &mut Pieces::default()).unwrap_err().to_string();
        assert!(error.contains("snapshot 3 failed: an entry does not serialise"), "{error}");
        table.abandon();
        table.insert(7.key_hash(), &7, Moment(epoch));
        table.mark(SnapshotId(4));
        assert_eq!(table.drain(usize::MAX, &mut Pieces::default()).unwrap(), Drained::Done);
    }
}
