//! Tables of an older version, turned into this one's.

use std::ops::Range;

use super::shelf::{Index, Shelf};
use super::*;
use crate::error::Error;
use crate::state::{Evolution, Migration, PageEntry, Schema};

/// A table of `entries`, written.
fn written<K: Key, V: Data>(
    entries: &BTreeMap<K, V>,
    evolution: Evolution<K, V>,
) -> (Shelf, Index) {
    let mut table = KeyedTable::evolving(0..128, evolution);
    for (key, value) in entries {
        table.insert(key.key_hash(), key, value.clone());
    }
    let mut shelf = Shelf::new();
    let index = drained(&mut table, &mut shelf);
    (shelf, index)
}

fn drained<K: Key, V: Data>(table: &mut KeyedTable<K, V>, shelf: &mut Shelf) -> Index {
    shelf.begin();
    table.mark(SnapshotId(1));
    while table.drain(10_000, shelf).unwrap() != Drained::Done {}
    shelf.finish()
}

fn given<K: Key, V: Data>(
    (shelf, index): &(Shelf, Index),
    groups: Range<u32>,
    evolution: Evolution<K, V>,
) -> Result<KeyedTable<K, V>, String> {
    let mut table = KeyedTable::evolving(groups, evolution);
    let pages: Vec<PageEntry> = index.0.values().copied().collect();
    table.restore_pages(shelf.schema, &pages, &shelf.source())?;
    Ok(table)
}

fn version<K: Key, V: Data>(version: u32) -> Evolution<K, V> {
    Evolution { version, migrations: Vec::new() }
}

/// Every entry of version 2 is there once in version 5, over two tables, and is written as such.
fn check<K: Key + Ord + Debug, O: Data, V: Data + PartialEq + Debug>(
    key: fn(u64) -> K,
    old: fn(u64) -> O,
    convert: fn(O) -> V,
) {
    let entries: BTreeMap<K, O> = (0..3_000).map(|number| (key(number), old(number))).collect();
    let mut expected: BTreeMap<K, V> =
        entries.iter().map(|(key, old)| (key.clone(), convert(old.clone()))).collect();
    let before = written(&entries, version(2));
    let mut found = BTreeMap::new();
    for groups in [0..50, 50..128] {
        let migrations = vec![Migration::new(2, convert)];
        let evolution = Evolution { version: 5, migrations };
        let mut table = given(&before, groups.clone(), evolution).unwrap();
        table.migrate().unwrap();
        assert!(!table.load(usize::MAX).unwrap(), "nothing is on disk only");
        let mut shelf = Shelf::new();
        let index = drained(&mut table, &mut shelf);
        let layout = KeyedTable::<K, V>::types().layout;
        assert_eq!(Schema::of(shelf.schema), Some(Schema { layout, version: 5 }));
        let mut again = given(&(shelf, index), groups, version::<K, V>(5)).unwrap();
        again.migrate().unwrap();
        while again.load(10_000).unwrap() {}
        assert_eq!(contents(&mut again), contents(&mut table), "what is written is all of it");
        found.append(&mut contents(&mut table));
    }
    assert_eq!(found.len(), expected.len());
    found.into_iter().for_each(|(key, value)| assert_eq!(expected.remove(&key), Some(value)));
}

#[test]
fn every_entry_is_converted_once_whatever_layout_it_has_and_gets() {
    check(|n| n, |n| n, |old: u64| [old, 7]);
    check(|n| n, |n| n, |old: u64| old.to_string());
    check(|n| format!("a rather long key {n}"), |n| n as u32, u64::from);
    check(|n| n.to_string(), |n| vec![n; (n % 5) as usize], |old: Vec<u64>| old.len() as u64);
}

#[test]
fn a_page_that_is_damaged_is_corrupt_and_no_panic() {
    let entries = (0..900_u64).map(|number| (number, number)).collect();
    let before = written(&entries, version(1));
    let place = before.1.0.values().next_back().unwrap().place;
    before.0.damage(place, |byte| !byte);
    let migrations = vec![Migration::<u64, [u64; 2]>::new(1, |old: u64| [old; 2])];
    let mut table = given(&before, 0..128, Evolution { version: 2, migrations }).unwrap();
    assert!(matches!(table.migrate(), Err(Error::Corrupt { .. })));
}

#[test]
fn pages_of_a_version_that_is_not_known_or_of_two_are_refused() {
    let entries = (0..9_u64).map(|number| (number, number)).collect();
    let before = written(&entries, version(3));
    for evolution in [version::<u64, u64>(2), version(4)] {
        let reason = given(&before, 0..128, evolution).map(drop).unwrap_err();
        assert!(reason.contains("version: 3") && reason.contains("not known"), "{reason}");
    }
    let mut table = given(&before, 0..128, version::<u64, u64>(3)).unwrap();
    let twice = table.restore_pages(before.0.schema, &[], &before.0.source());
    assert!(twice.unwrap_err().contains("two versions"));
}
