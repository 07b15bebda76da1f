//! One page against a map, up to its last slot and back.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::key::Key;
use crate::state::memory::Room;
use crate::state::page::{PageBox, Place, entries_max, slots_of};

/// A key that brings its hash along.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Hashed {
    key: u64,
    hash: u64,
}

impl Key for Hashed {
    fn key_hash(&self) -> u64 {
        self.hash
    }
}

/// Puts a key in or takes it out.
#[derive(Clone, Copy, Debug)]
enum Step {
    Put(u64),
    Take(u64),
}

fn empty(homes: usize) -> PageBox<Hashed, u64> {
    let room = Room::alone(PageBox::<Hashed, u64>::room_bytes(homes, 0));
    PageBox::new(room, homes, 0, 0, 7)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step =
        prop_oneof![3 => (0..60_u64).prop_map(Step::Put), 2 => (0..60_u64).prop_map(Step::Take)];
    prop::collection::vec(step, 1..200)
}

proptest! {
    #[test]
    fn a_page_is_a_map_though_its_entries_go_around(steps in steps(), homes in 1..6_usize, kind in 0..3) {
        // As mixed hashes are, all with one home, and with homes at the end.
        let hash_of = |key: u64| match kind {
            0 => key.key_hash(),
            1 => u64::from(u32::MAX) | key << 32,
            _ => u64::from(u32::MAX - key as u32 * 20_000_000) | key << 32,
        };
        let homes = 4 * homes;
        let mut page = empty(homes);
        let mut expected = BTreeMap::new();
        for (number, step) in (0_u64..).zip(&steps) {
            let (Step::Put(key) | Step::Take(key)) = *step;
            let key = Hashed { key, hash: hash_of(key) };
            let found = page.page().find(key.hash, &key);
            match (step, found) {
                (Step::Put(_), Place::Vacant(index)) => {
                    let has_room = page.page().has_room(index, 0);
                    prop_assert_eq!(has_room, expected.len() < entries_max(homes));
                    prop_assert_eq!(index, page.page().vacancy(key.hash));
                    if has_room {
                        page.page_mut().fill(index, key.hash, &key, number);
                        prop_assert_eq!(expected.insert(key.key, number), None);
                    } else if index < slots_of(homes) {
                        // Pages of the format before may be as full as that.
                        let mut one = empty(4);
                        one.page_mut().fill(0, key.hash, &key, number);
                        page.page_mut().copy_entry(one.page(), 0, key.hash);
                        prop_assert_eq!(expected.insert(key.key, number), None);
                    }
                }
                (Step::Take(_), Place::Found(index)) => {
                    prop_assert_eq!(Some(page.page_mut().remove(index)), expected.remove(&key.key));
                }
                (Step::Put(_), Place::Found(index)) => {
                    prop_assert_eq!(Some(page.page().value(index)), expected.get(&key.key));
                }
                (Step::Take(_), Place::Vacant(_)) => prop_assert!(!expected.contains_key(&key.key)),
            }
            prop_assert_eq!(page.page().count_tags(), Some(expected.len()));
        }
        for key in 0..60 {
            let key = Hashed { key, hash: hash_of(key) };
            let found = match page.page().find(key.hash, &key) {
                Place::Found(index) => Some(page.page().value(index)),
                Place::Vacant(_) => None,
            };
            prop_assert_eq!(found, expected.get(&key.key));
        }
    }
}
