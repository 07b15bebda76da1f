//! The backlog against a `VecDeque`, then every way in which a disk can fail it.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::disk::{Disk, Faults, MemoryDisk, ThreadDisk, best_disk};
use crate::error::{Error, Result};
use crate::id::{Attempt, StateSlot, TaskId};

const DIRECTORY: &str = "/job/spill";

fn place(disk: Arc<dyn Disk>, directory: &Path) -> Place {
    Place {
        disk,
        path: directory.join(file_name(TaskId(3), 1, Attempt(2))),
        owner: "count".into(),
        slot: StateSlot::Task(0),
        input: 1,
    }
}

fn path() -> PathBuf {
    Path::new(DIRECTORY).join(file_name(TaskId(3), 1, Attempt(2)))
}

/// With room for `records` records in memory.
fn on_disk<T: Record>(disk: &MemoryDisk, records: usize, disk_bytes: u64) -> Backlog<T> {
    let limits = Limits { memory_bytes: records * size_of::<T>().max(1), disk_bytes };
    Backlog::new(limits, Some(place(Arc::new(disk.clone()), Path::new(DIRECTORY))))
}

/// Pushes until nothing is taken; how many were.
fn push<T: Record>(backlog: &mut Backlog<T>, records: Vec<T>) -> usize {
    let count = records.len();
    let mut buffer = Buffer::from(records);
    let taken = buffer.lend(|batch| backlog.push(batch));
    assert_eq!(buffer.len(), count - taken);
    taken
}

/// Polls until the disk has nothing to do: the disk in memory answers every second poll.
fn settle<T: Record>(backlog: &mut Backlog<T>) -> Result<()> {
    let mut idle = 0;
    while idle < 64 {
        idle = if backlog.poll()? { 0 } else { idle + 1 };
    }
    assert_eq!(backlog.moving_records, 0);
    Ok(())
}

/// Pushes the numbers from `first` on until nothing more goes in; the first that did not.
fn fill(backlog: &mut Backlog<u64>, first: u64) -> Result<u64> {
    let mut next = first;
    loop {
        settle(backlog)?;
        match push(backlog, (next..next + 5).collect()) {
            0 => return Ok(next),
            taken => next += taken as u64,
        }
    }
}

/// Takes out all numbers, which must be those of `expected`.
fn take_all(backlog: &mut Backlog<u64>, expected: std::ops::Range<u64>) -> Result<()> {
    let mut next = expected.start;
    while !backlog.is_empty() {
        match backlog.front() {
            Front::Records => backlog.lend(3, |batch| {
                for record in batch.drain(usize::MAX) {
                    assert_eq!(record, next);
                    next += 1;
                }
            }),
            Front::Waiting => settle(backlog)?,
            front @ (Front::Empty | Front::Control(_)) => panic!("{front:?} before {next}"),
        }
    }
    assert_eq!(next, expected.end);
    Ok(())
}

#[derive(Clone, Debug)]
enum Step {
    Push(usize),
    Mark,
    Lend { max: usize, take: usize },
    Poll(usize),
    RemoveBarrier,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..9_usize).prop_map(Step::Push),
        1 => Just(Step::Mark),
        4 => (1..6_usize, 0..6_usize).prop_map(|(max, take)| Step::Lend { max, take }),
        6 => (1..9_usize).prop_map(Step::Poll),
        1 => Just(Step::RemoveBarrier),
    ];
    prop::collection::vec(step, 1..200)
}

#[derive(Clone, Debug, PartialEq)]
enum Entry<T> {
    Record(T),
    Control(Control),
}

struct Model<T> {
    entries: VecDeque<Entry<T>>,
    next: u64,
    barrier: SnapshotId,
    oldest_barrier: SnapshotId,
}

impl<T: Record + PartialEq + Debug> Model<T> {
    fn step(&mut self, step: &Step, backlog: &mut Backlog<T>, make: fn(u64) -> T) {
        match *step {
            Step::Push(count) => {
                let records: Vec<T> = (self.next..).take(count).map(make).collect();
                let taken = push(backlog, records.clone());
                self.entries.extend(records.into_iter().take(taken).map(Entry::Record));
                self.next += taken as u64;
            }
            Step::Mark => {
                self.barrier = self.barrier.next();
                backlog.push_control(Control::Barrier(self.barrier));
                self.entries.push_back(Entry::Control(Control::Barrier(self.barrier)));
            }
            Step::Lend { max, take } => self.take(backlog, max, take),
            Step::Poll(times) => {
                for _ in 0..times {
                    backlog.poll().unwrap();
                }
            }
            Step::RemoveBarrier => {
                self.oldest_barrier = self.oldest_barrier.next();
                let gone = Entry::Control(Control::Barrier(self.oldest_barrier));
                let at = self.entries.iter().position(|entry| *entry == gone);
                assert_eq!(backlog.remove_barrier(self.oldest_barrier), at.is_some());
                at.map(|at| self.entries.remove(at));
            }
        }
        self.compare(backlog);
    }

    fn take(&mut self, backlog: &mut Backlog<T>, max: usize, take: usize) {
        match backlog.front() {
            Front::Empty => assert_eq!(self.entries.front(), None),
            Front::Waiting => {
                assert!(matches!(self.entries.front(), Some(Entry::Record(_))));
                assert!(!backlog.is_in_memory());
            }
            Front::Control(control) => {
                assert_eq!(backlog.pop_control(), Some(control));
                assert_eq!(self.entries.pop_front(), Some(Entry::Control(control)));
            }
            Front::Records => {
                assert_eq!(backlog.pop_control(), None);
                let (lent, taken) = backlog.lend(max, |batch| {
                    (batch.as_slice().to_vec(), batch.drain(take).collect::<Vec<_>>())
                });
                assert!(!lent.is_empty() && lent.len() <= max);
                assert_eq!(taken, lent[..take.min(lent.len())]);
                let expected = self.entries.iter().take(lent.len()).cloned();
                assert!(lent.into_iter().map(Entry::Record).eq(expected));
                self.entries.drain(..taken.len());
            }
        }
    }

    fn compare(&self, backlog: &Backlog<T>) {
        let is_record = |entry: &&Entry<T>| matches!(entry, Entry::Record(_));
        assert_eq!(backlog.is_empty(), self.entries.is_empty());
        assert_eq!(backlog.len(), self.entries.iter().filter(is_record).count());
        let records_max = backlog.sizes.push_max + SPILL_READ_AHEAD_CHUNKS * backlog.sizes.chunk;
        assert!(backlog.memory_bytes() <= records_max * size_of::<T>().max(1));
        let is_filled = matches!(backlog.items.back(), Some(Item::Held(_)));
        assert!(backlog.open_records == 0 || is_filled, "only the last chunk is filled");
        if backlog.is_in_memory() {
            let oldest = SnapshotId(self.oldest_barrier.0 + 1);
            let mark = Entry::Control(Control::Barrier(oldest));
            let expected = self.entries.iter().take_while(|entry| **entry != mark);
            let mut visited = Vec::new();
            let is_there =
                backlog.before(oldest, &mut |records| visited.extend_from_slice(records));
            let visited = visited.into_iter().map(Entry::Record);
            assert!(visited.eq(expected.filter(is_record).cloned()));
            assert_eq!(is_there, self.entries.contains(&mark));
        }
    }
}

/// Runs the steps, takes out what is left, and says how many records were spilled.
fn behaves_as_a_queue<T: Record + PartialEq + Debug>(
    (seed, records, disk_blocks): (u64, usize, u64),
    steps: &[Step],
    make: fn(u64) -> T,
) -> u64 {
    let disk = MemoryDisk::new(seed);
    let mut backlog = on_disk::<T>(&disk, records, disk_blocks * extents::BLOCK_BYTES);
    let mut model = Model {
        entries: VecDeque::new(),
        next: 0,
        barrier: SnapshotId(0),
        oldest_barrier: SnapshotId(0),
    };
    steps.iter().for_each(|step| model.step(step, &mut backlog, make));
    while !model.entries.is_empty() {
        settle(&mut backlog).unwrap();
        assert_ne!(backlog.front(), Front::Waiting, "all is read that is next");
        model.step(&Step::Lend { max: 4, take: 4 }, &mut backlog, make);
    }
    assert!(backlog.is_in_memory());
    let spilled = backlog.measured().records;
    drop(backlog);
    assert_eq!(disk.list(Path::new(DIRECTORY)).unwrap_or_default(), [""; 0]);
    spilled
}

fn settings() -> impl Strategy<Value = (u64, usize, u64)> {
    (any::<u64>(), 1..40_usize, prop_oneof![Just(0), 1..6_u64, Just(1000)])
}

proptest! {
    // A failure prints its input; nothing is written beside the sources.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_use_with_plain_records_behaves_as_a_queue(on in settings(), steps in steps()) {
        behaves_as_a_queue::<u64>(on, &steps, |i| i);
    }

    #[test]
    fn any_use_with_records_on_the_heap_behaves_as_a_queue(on in settings(), steps in steps()) {
        let make = |i: u64| "long ".repeat((i * i % 400) as usize) + &i.to_string();
        behaves_as_a_queue::<String>(on, &steps, make);
    }

    #[test]
    fn any_use_with_records_without_a_size_behaves_as_a_queue(on in settings(), steps in steps()) {
        behaves_as_a_queue::<()>(on, &steps, |_| ());
    }
}

#[test]
fn most_of_a_long_use_goes_through_the_disk() {
    // What the tests above rely on: their budgets do spill.
    let steps: Vec<Step> = (0..100)
        .flat_map(|i| [Step::Push(5), Step::Poll(4), Step::Lend { max: 9, take: 1 + i % 3 }])
        .collect();
    assert!(behaves_as_a_queue::<u64>((1, 8, 1000), &steps, |i| i) > 50);
    assert_eq!(behaves_as_a_queue::<u64>((1, 8, 0), &steps, |i| i), 0);
}

#[test]
fn a_budget_that_is_used_up_takes_nothing_and_loses_nothing() {
    let disk = MemoryDisk::new(1);
    // Chunks are of one record, and a frame takes a block.
    for (disk_blocks, expected) in [(0, 8..=8), (5, 9..=13), (40, 44..=48)] {
        let mut backlog = on_disk::<u64>(&disk, 8, disk_blocks * extents::BLOCK_BYTES);
        let end = fill(&mut backlog, 0).unwrap();
        assert!(expected.contains(&end), "{end} records with {disk_blocks} blocks");
        assert_eq!(backlog.measured().records, disk_blocks, "every block is used");
        take_all(&mut backlog, 0..end).unwrap();
        let again = fill(&mut backlog, end).unwrap();
        assert_eq!(again - end, end, "room is used again");
        take_all(&mut backlog, end..again).unwrap();
    }
}

#[test]
fn a_chunk_too_large_for_the_file_stays_in_memory() {
    let disk = MemoryDisk::new(1);
    let mut backlog = on_disk::<String>(&disk, 8, extents::BLOCK_BYTES);
    let records: Vec<String> = (0..9).map(|i| format!("{i}").repeat(9000)).collect();
    let taken = push(&mut backlog, records.clone());
    assert_eq!(taken, 6, "two are kept for reading");
    settle(&mut backlog).unwrap();
    assert!(backlog.is_in_memory());
    let mut found = Vec::new();
    while backlog.front() == Front::Records {
        backlog.lend(9, |batch| found.extend(batch.drain(9)));
    }
    assert_eq!(found, records[..taken]);
}

#[test]
fn nothing_is_allocated_or_created_before_it_is_needed() {
    let disk = MemoryDisk::new(1);
    let mut backlog = on_disk::<u64>(&disk, 80, 1 << 20);
    assert!(!backlog.poll().unwrap());
    assert_eq!((backlog.items.capacity(), backlog.spare.capacity()), (0, 0));
    push(&mut backlog, (0..40).collect());
    assert!(!backlog.poll().unwrap(), "it fits");
    assert_eq!(disk.operations(), 0);
    push(&mut backlog, (40..60).collect());
    settle(&mut backlog).unwrap();
    assert_eq!(disk.list(Path::new(DIRECTORY)).unwrap(), [file_name(TaskId(3), 1, Attempt(2))]);
    take_all(&mut backlog, 0..60).unwrap();
    assert_eq!(backlog.memory_bytes(), 0);
}

#[test]
fn the_next_chunks_are_read_while_the_first_is_taken() {
    let disk = MemoryDisk::new(1);
    let mut backlog = on_disk::<u64>(&disk, 8, 1 << 20);
    let end = fill(&mut backlog, 0).unwrap();
    for next in 0..end {
        assert_eq!(backlog.front(), Front::Records);
        assert_eq!(backlog.lend(1, |batch| batch.drain(1).next()), Some(next));
        settle(&mut backlog).unwrap();
        let first = backlog.items.iter().take(SPILL_READ_AHEAD_CHUNKS);
        assert!(first.into_iter().all(|item| matches!(item, Item::Held(_))), "at {next}");
    }
}

#[test]
fn a_panic_while_lent_keeps_the_count() {
    let mut backlog = Backlog::new(Limits { memory_bytes: 1 << 10, disk_bytes: 0 }, None);
    push(&mut backlog, (0..3).map(|i| i.to_string()).collect());
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        backlog.lend(9, |batch| batch.drain(9).for_each(|record| assert_ne!(record, "1")));
    }));
    assert!(caught.is_err());
    assert_eq!(backlog.len(), 1);
    assert_eq!(backlog.lend(9, |batch| batch.drain(9).collect::<Vec<_>>()), ["2"]);
    assert!(backlog.is_empty());
}

#[test]
#[should_panic(expected = "chunks are not in memory")]
fn what_lies_before_a_barrier_is_only_shown_when_all_is_in_memory() {
    let mut backlog = on_disk::<u64>(&MemoryDisk::new(1), 8, 1 << 20);
    fill(&mut backlog, 0).unwrap();
    backlog.before(SnapshotId(1), &mut |_| ());
}

/// The error names the spill file and, in its text, all of `parts`.
fn assert_names_the_file(error: &Error, parts: &[&str]) {
    let text = error.to_string();
    assert!(text.contains(path().to_str().unwrap()), "{text}");
    for part in parts {
        assert!(text.contains(part), "no '{part}' in: {text}");
    }
}

/// With records on disk.
fn spilled(disk: &MemoryDisk) -> (Backlog<u64>, u64) {
    let mut backlog = on_disk::<u64>(disk, 8, 16 * extents::BLOCK_BYTES);
    let end = fill(&mut backlog, 0).unwrap();
    assert_eq!(backlog.measured().chunks, 16);
    (backlog, end)
}

#[test]
fn a_refused_write_is_an_error_that_stays() {
    let disk = MemoryDisk::new(1);
    disk.set_faults(Faults { write_error: 10_000, ..Faults::default() });
    let mut backlog = on_disk::<u64>(&disk, 8, 1 << 20);
    let error = fill(&mut backlog, 0).unwrap_err();
    assert_names_the_file(&error, &["cannot write", "at byte 0"]);
    disk.set_faults(Faults::default());
    assert_names_the_file(&backlog.poll().unwrap_err(), &["failed before", "at byte 0"]);
}

#[test]
fn a_full_disk_is_an_error_that_says_what_to_do() {
    let disk = MemoryDisk::new(1);
    disk.set_faults(Faults { capacity_bytes: Some(5000), ..Faults::default() });
    let mut backlog = on_disk::<u64>(&disk, 8, 1 << 20);
    let error = fill(&mut backlog, 0).unwrap_err();
    assert_names_the_file(&error, &["cannot extend", "5000 bytes are free", "make room"]);
    assert!(error.is_retryable());
}

#[test]
fn a_name_that_is_taken_is_an_error() {
    let disk = MemoryDisk::new(1);
    disk.create_dir_all(Path::new(DIRECTORY)).unwrap();
    disk.create_new(&path()).unwrap();
    let mut backlog = on_disk::<u64>(&disk, 8, 1 << 20);
    assert_names_the_file(&fill(&mut backlog, 0).unwrap_err(), &["cannot create"]);
}

#[test]
fn a_refused_read_is_an_error() {
    let disk = MemoryDisk::new(1);
    let (mut backlog, end) = spilled(&disk);
    disk.set_faults(Faults { read_error: 10_000, ..Faults::default() });
    let error = take_all(&mut backlog, 0..end).unwrap_err();
    assert_names_the_file(&error, &["cannot read", "at byte"]);
}

#[test]
fn a_file_cut_short_is_an_error() {
    let disk = MemoryDisk::new(1);
    let (mut backlog, end) = spilled(&disk);
    disk.open(&path()).unwrap().set_len(3 * extents::BLOCK_BYTES + 100).unwrap();
    let error = take_all(&mut backlog, 0..end).unwrap_err();
    assert_names_the_file(&error, &["corrupt at byte", "are there"]);
}

#[test]
fn a_flipped_bit_anywhere_in_a_frame_is_an_error() {
    let frame_bytes = 48 + 16 + 16 + 16;
    for byte in (0..frame_bytes).step_by(5) {
        let disk = MemoryDisk::new(byte);
        let (mut backlog, end) = spilled(&disk);
        let file = disk.open(&path()).unwrap();
        let offset = 7 * extents::BLOCK_BYTES + byte;
        let mut content = [0];
        file.read_at(&mut content, offset).unwrap();
        file.write_all_at(&[content[0] ^ 4], offset).unwrap();
        let error = take_all(&mut backlog, 0..end).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "byte {byte}: {error}");
        assert_names_the_file(&error, &["at byte 28672", "chunk 7"]);
    }
}

#[test]
fn chunks_in_each_others_place_and_stale_ones_are_errors() {
    let block = |file: &crate::disk::FileHandle, number: u64| {
        let mut content = vec![0; extents::BLOCK_BYTES as usize];
        file.read_at(&mut content, number * extents::BLOCK_BYTES).unwrap();
        content
    };
    let disk = MemoryDisk::new(1);
    let (mut backlog, end) = spilled(&disk);
    let file = disk.open(&path()).unwrap();
    let (third, fifth) = (block(&file, 3), block(&file, 5));
    file.write_all_at(&third, 5 * extents::BLOCK_BYTES).unwrap();
    file.write_all_at(&fifth, 3 * extents::BLOCK_BYTES).unwrap();
    let error = take_all(&mut backlog, 0..end).unwrap_err();
    assert_names_the_file(&error, &["found chunk"]);

    // The same chunk numbers, owner and input after the extents were used again.
    let disk = MemoryDisk::new(2);
    let (mut backlog, end) = spilled(&disk);
    let old = block(&disk.open(&path()).unwrap(), 3);
    take_all(&mut backlog, 0..end).unwrap();
    let again = fill(&mut backlog, end).unwrap();
    disk.open(&path()).unwrap().write_all_at(&old, 3 * extents::BLOCK_BYTES).unwrap();
    let error = take_all(&mut backlog, end..again).unwrap_err();
    assert_names_the_file(&error, &["at byte 12288", "found chunk 3 of input 1"]);
}

#[test]
fn the_frame_of_another_task_or_input_is_an_error() {
    let changes: [fn(&mut Place); 3] = [
        |place| place.owner += "er",
        |place| place.slot = StateSlot::Task(1),
        |place| place.input = 2,
    ];
    for change in changes {
        let disk = MemoryDisk::new(1);
        let (mut backlog, end) = spilled(&disk);
        let mut other = place(Arc::new(disk.clone()), Path::new("/other"));
        change(&mut other);
        let limits = Limits { memory_bytes: 64, disk_bytes: 16 * extents::BLOCK_BYTES };
        let mut foreign = Backlog::new(limits, Some(other.clone()));
        fill(&mut foreign, 0).unwrap();
        let content = disk.read(&other.path).unwrap();
        disk.open(&path()).unwrap().write_all_at(&content, 0).unwrap();
        let error = take_all(&mut backlog, 0..end).unwrap_err();
        assert_names_the_file(&error, &["found"]);
    }
}

#[test]
fn the_file_is_gone_when_a_backlog_is_dropped_in_the_middle() {
    for polls in 0..40 {
        let disk = MemoryDisk::new(polls);
        let mut backlog = on_disk::<u64>(&disk, 8, 1 << 20);
        for poll in 0..polls {
            push(&mut backlog, (0..3).collect());
            backlog.poll().unwrap();
            if poll % 3 == 0 && backlog.front() == Front::Records {
                backlog.lend(1, |batch| batch.drain(1).for_each(drop));
            }
        }
        drop(backlog);
        assert_eq!(disk.list(Path::new(DIRECTORY)).unwrap_or_default(), [""; 0]);
    }
}

#[test]
fn a_file_left_behind_is_removed_and_its_name_used_again() {
    let disk = MemoryDisk::new(1);
    std::mem::forget(spilled(&disk));
    assert_eq!(remove_leftovers(&disk, Path::new(DIRECTORY)).unwrap(), 1);
    let (mut backlog, end) = spilled(&disk);
    take_all(&mut backlog, 0..end).unwrap();
}

#[test]
fn real_disks_give_back_what_was_spilled() {
    for disk in [best_disk().0, Arc::new(ThreadDisk::new())] {
        let directory = tempfile::tempdir().unwrap();
        let limits = Limits { memory_bytes: 64 << 10, disk_bytes: 2 << 20 };
        let mut backlog = Backlog::new(limits, Some(place(disk, directory.path())));
        let (mut pushed, mut taken) = (0_u64, 0_u64);
        for (push_to, leave) in [(150_000, 300), (300_000, 0)] {
            while pushed < push_to {
                let count = push(&mut backlog, (pushed..pushed + 100).collect());
                pushed += count as u64;
                if !backlog.poll().unwrap() && count == 0 {
                    std::thread::yield_now();
                }
            }
            while backlog.len() > leave {
                if !backlog.poll().unwrap() && backlog.front() == Front::Waiting {
                    std::thread::yield_now();
                }
                if backlog.front() == Front::Records {
                    backlog.lend(usize::MAX, |batch| {
                        for record in batch.drain(usize::MAX) {
                            assert_eq!(record, taken);
                            taken += 1;
                        }
                    });
                }
            }
        }
        assert_eq!(taken, pushed);
        // All but what memory holds, both times.
        assert!(backlog.measured().records > 250_000, "{:?}", backlog.measured());
        drop(backlog);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}

/// What was set aside while records were light kept all room for heavier ones, and was first, so that it did not
/// go to disk: a back-edge took nothing more, for ever.
#[test]
fn records_that_become_heavier_find_room_as_long_as_the_disk_has_some() {
    let disk = MemoryDisk::new(1);
    let limits = Limits { memory_bytes: 64 << 10, disk_bytes: 1 << 24 };
    let place = place(Arc::new(disk), Path::new(DIRECTORY));
    let mut backlog = Backlog::new(limits, Some(place));
    let mut put = |bytes: usize| {
        let records = vec!["x".repeat(bytes); 4];
        backlog.weigh(&records);
        let taken = push(&mut backlog, records);
        settle(&mut backlog).unwrap();
        taken
    };
    (0..100).for_each(|_| assert_eq!(put(10), 4));
    let taken: usize = (0..200).map(|_| put(10_000)).sum();
    assert!(taken > 200, "{taken} of 800 heavy records were taken");
    let mut lengths = Vec::new();
    while !backlog.is_empty() {
        settle(&mut backlog).unwrap();
        backlog.lend(9, |batch| lengths.extend(batch.drain(9).map(|record| record.len())));
    }
    assert_eq!(lengths, [vec![10; 400], vec![10_000; taken]].concat());
}
