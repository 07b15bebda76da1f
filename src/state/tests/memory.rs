//! Memory of pages: rooms do not touch each other, and holes do not pile up.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::shelf::Shelf;
use crate::id::SnapshotId;
use crate::key::Key;
use crate::state::memory::{Holes, PageMemory, Room};
use crate::state::{Drained, KeyedTable, OperatorState};

/// Takes a room of so many bytes, or gives one back, or moves one that is in the way.
#[derive(Clone, Copy, Debug)]
enum Step {
    Take(usize),
    GiveBack(usize),
    Move,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (64..3000_usize).prop_map(Step::Take),
        1 => (64..9000_usize).prop_map(Step::Take),
        5 => any::<usize>().prop_map(Step::GiveBack),
        9 => Just(Step::Move),
    ];
    prop::collection::vec(step, 1..600)
}

/// Rooms that are in use, and what was written into each.
#[derive(Default)]
struct Rooms {
    memory: PageMemory,
    taken: BTreeMap<usize, (Room, u8)>,
    next: u8,
}

impl Rooms {
    fn take(&mut self, bytes: usize, byte: u8) {
        let mut room = self.memory.take(bytes);
        assert_eq!(room.bytes().len(), bytes);
        room.bytes_mut().fill(byte);
        let begin = room.memory().addr().get();
        assert!(begin.is_multiple_of(64));
        assert!(self.taken.insert(begin, (room, byte)).is_none(), "handed out twice");
    }

    #[expect(unsafe_code, reason = "the room is one of this memory, and is dropped here")]
    fn give_back(&mut self, begin: usize) -> (usize, u8) {
        let (room, byte) = self.taken.remove(&begin).expect("it is in use");
        assert!(room.bytes().iter().all(|found| *found == byte), "it was written to by another");
        let bytes = room.bytes().len();
        // SAFETY: it was taken from there and is not used any more.
        unsafe { self.memory.give_back(room.memory(), bytes) };
        (bytes, byte)
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Take(bytes) => {
                self.next = self.next.wrapping_add(1);
                self.take(bytes, self.next);
            }
            Step::GiveBack(which) => {
                let begin = self.taken.keys().nth(which % self.taken.len().max(1)).copied();
                begin.into_iter().for_each(|begin| _ = self.give_back(begin));
            }
            Step::Move => {
                let Some((memory, size)) = self.memory.next_to_leave(Holes::Growing) else {
                    return;
                };
                if let Some((room, byte)) = self.taken.get(&memory.addr().get()) {
                    let (bytes, byte) = (room.bytes().len(), *byte);
                    assert_eq!(bytes.next_multiple_of(64), size);
                    self.take(bytes, byte);
                    self.give_back(memory.addr().get());
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn rooms_keep_what_was_written_into_them(steps in steps(), expected in 0..5_000_000_usize) {
        let mut rooms = Rooms::default();
        rooms.memory.expect(expected);
        steps.into_iter().for_each(|step| rooms.run(step));
        let all: Vec<usize> = rooms.taken.keys().copied().collect();
        all.into_iter().for_each(|begin| _ = rooms.give_back(begin));
    }
}

#[test]
fn a_table_that_grows_keeps_few_holes_and_every_version_exact() {
    let mut table = KeyedTable::<u64, [u64; 4]>::new(0..128);
    let mut alone = KeyedTable::<u64, [u64; 4]>::new(0..128);
    let mut shelf = Shelf::new();
    let keys = 250_000_u64;
    for key in 0..keys {
        *table.upsert(key.key_hash(), &key, || [key; 4]) = [key, 1, 2, 3];
        alone.insert(key.key_hash(), &key, [key, 1, 2, 3]);
        if key % 10_000 == 0 {
            while table.drain(64 << 10, &mut shelf).unwrap() == Drained::More {}
            shelf.finish();
            shelf.begin();
            table.mark(SnapshotId(key / 10_000 + 1));
        }
        if key % 64 == 0 {
            _ = table.drain(1 << 10, &mut shelf).unwrap();
        }
    }
    while table.drain(usize::MAX, &mut shelf).unwrap() == Drained::More {}
    shelf.finish();
    table.mark(SnapshotId(100));
    assert_eq!(table.drain(usize::MAX, &mut shelf).unwrap(), Drained::Done);
    let index = shelf.finish();
    let pages: usize = index.0.values().map(|entry| entry.bytes as usize).sum();
    let held = alone.memory_bytes();
    assert!(held < pages + pages / 6, "{held} bytes for {pages} of pages");
    let mut restored = shelf.restored::<u64, [u64; 4]>(&index, 0..128);
    while restored.load(100_000).unwrap() {}
    for key in 0..keys {
        let expected = Some(&[key, 1, 2, 3]);
        assert_eq!(table.get(key.key_hash(), &key), expected);
        assert_eq!(restored.get(key.key_hash(), &key), expected);
    }
}
