//! The backup log: copies of the records that were in transit on late inputs at the cut.
//!
//! It is state of the task like any other: marked at the capture, drained into the task snapshot
//! when it is sealed, given back on a restore. A restored log is handled before any input is read;
//! ring contents are not restored beside it (trap 19).
//!
//! On another number of tasks a log is shared out anew, each record to one task. That of an input which is
//! partitioned by key goes by key group, as the state does: a key's records stay in order, and before those
//! that follow. Other inputs (forward, rebalanced) have no key here: the log of task i goes as a
//! whole to task i modulo the new number. Its order stays, but a later record of the same key, which some
//! operator upstream owns by key, may take its way through another task. If they meet again, at the next
//! operator that is keyed, the later one may have come first. It takes three things together: a task that
//! begins with an operator that is not keyed, behind a `union` or at the entrance of a loop; records in
//! transit to it at the cut, which only a timed snapshot or a loop has; and another number of tasks. None of
//! them is refused: nothing is lost or doubled, and where the order within a key matters the remedy is to key
//! before the `union`, or to go on once with the same number and take the next snapshot aligned.
//!
//! What was in transit on a broadcast edge belongs to every task, and some had handled it before the cut while
//! others had not: no way to share it out to another number of tasks is right, and it is refused.
//!
//! Invariants
//! - The records of one input keep their order, also of different keys, and also when the log is shared
//!   out by key group to another number of tasks: a piece is some that followed each other on one input, with
//!   their groups, pieces are handed over in order, and each task picks its own.
//! - A long log is handed over piece by piece, as other state is: serialising 64 MiB at once would be a pause.
//! - At most [`LOG_BYTES_MAX`], as [`Weight`] counts them, are kept for one snapshot; a log above that fails its snapshot, which is
//!   counted.

use std::collections::VecDeque;
use std::vec::IntoIter;

use crate::config::LOG_BYTES_MAX;
use crate::error::Error;
use crate::id::{KEY_GROUPS, KeyGroup, SnapshotId, StateSlot};
use crate::record::{Buffer, Data, Record};
use crate::state::{Drained, OperatorState, SCHEMA_LOG, StateWriter};
use crate::weight::Weight;

/// Which task the records of one input belong to.
pub enum Share<T> {
    /// Any task may take them.
    Any,
    /// The owner of the key group that this says.
    Group(Box<dyn FnMut(&T) -> KeyGroup + Send>),
    /// Every task has a copy of its own.
    Each,
}

/// Which copy of its operator a task is: (subtask, parallelism).
pub type Copy = (usize, usize);

/// The logs of one task's snapshots, and the one it was restored with.
pub struct Log<T> {
    copy: Copy,
    /// By input.
    shares: Vec<Share<T>>,
    /// Oldest first: at most the one being drained and the one being written.
    open: VecDeque<Snapshot<T>>,
    restored: Vec<T>,
    replay: Buffer<T>,
    weight: Weight<T>,
    /// Records copied so far, of all snapshots.
    logged: u64,
    /// Their bytes, about.
    logged_bytes: u64,
    /// Snapshots whose log could not be kept.
    failed: u64,
}

/// The log of one snapshot.
struct Snapshot<T> {
    id: SnapshotId,
    /// By input; none once it is being handed over.
    records: Vec<Vec<T>>,
    /// What is left of those then, with their inputs.
    left: VecDeque<(usize, IntoIter<T>)>,
    bytes: usize,
    /// Whether the capture has marked it: otherwise the snapshot was given up before.
    marked: bool,
    sealed: bool,
    /// Why it cannot be kept.
    failed: Option<String>,
}

impl<T: Record> Log<T> {
    /// For the task that is this copy of its operator, with these inputs.
    #[must_use]
    pub fn new(copy: Copy, shares: Vec<Share<T>>) -> Self {
        let (open, restored, replay) = (VecDeque::new(), Vec::new(), Buffer::with_capacity(0));
        let weight = Weight::default();
        Self { copy, shares, open, restored, replay, weight, logged: 0, logged_bytes: 0, failed: 0 }
    }

    /// The number of the task among the copies of its operator.
    #[must_use]
    pub fn subtask(&self) -> usize {
        self.copy.0
    }

    /// Begins the log of `snapshot`, whose trigger has come.
    pub fn begin(&mut self, snapshot: SnapshotId) {
        self.open.retain(|open| open.marked);
        let records = self.shares.iter().map(|_| Vec::new()).collect();
        self.open.push_back(Snapshot {
            id: snapshot,
            records,
            left: VecDeque::new(),
            bytes: 0,
            marked: false,
            sealed: false,
            failed: None,
        });
    }

    /// Copies what a late input has brought.
    pub fn append(&mut self, input: usize, records: &[T]) {
        self.weight.look(records);
        let Some(open) = self.open.back_mut().filter(|open| open.failed.is_none()) else { return };
        let mut bytes = records.len() * self.weight.record_bytes();
        if open.bytes + bytes > LOG_BYTES_MAX {
            // The one that was looked at may have been the one that is heavy: now all are.
            self.weight.learn(open.records.iter().flatten().chain(records));
            let count: usize = open.records.iter().map(Vec::len).sum();
            bytes = records.len() * self.weight.record_bytes();
            open.bytes = count * self.weight.record_bytes();
        }
        open.bytes += bytes;
        if open.bytes > LOG_BYTES_MAX {
            open.records.iter_mut().for_each(|records| *records = Vec::new());
            self.failed += 1;
            open.failed = Some(format!(
                "more than {LOG_BYTES_MAX} bytes were in transit to one task; a loop that holds \
                 that much, or an input that far behind, cannot be logged"
            ));
            return;
        }
        open.records[input].extend_from_slice(records);
        self.logged += records.len() as u64;
        self.logged_bytes += bytes as u64;
    }

    /// Of what was appended last, the last `count` records were not taken after all.
    pub fn retract(&mut self, input: usize, count: usize) {
        let Some(open) = self.open.back_mut().filter(|open| open.failed.is_none()) else { return };
        let kept = open.records[input].len() - count;
        let bytes = count * self.weight.record_bytes();
        open.bytes = open.bytes.saturating_sub(bytes); // the weight may have changed since
        open.records[input].truncate(kept);
        self.logged -= count as u64;
        self.logged_bytes = self.logged_bytes.saturating_sub(bytes as u64);
    }

    /// Records copied so far, of all snapshots.
    #[must_use]
    pub fn logged(&self) -> u64 {
        self.logged
    }

    /// Bytes of those, about.
    #[must_use]
    pub fn logged_bytes(&self) -> u64 {
        self.logged_bytes
    }

    /// Snapshots so far whose log could not be kept.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed
    }

    /// No input is late any more: the log begun last is complete, if it was not before.
    pub fn seal(&mut self) {
        if let Some(open) = self.open.back_mut() {
            open.sealed = true;
        }
    }

    /// The restored records that have not been handled yet.
    pub fn replay(&mut self) -> Option<&mut Buffer<T>> {
        if !self.restored.is_empty() {
            self.replay.fill().append(&mut self.restored);
        }
        (!self.replay.is_empty()).then_some(&mut self.replay)
    }

    /// How many records were restored, before any is handled.
    #[must_use]
    pub fn restored(&self) -> usize {
        self.restored.len()
    }

    /// The records of one input as a piece: to how many tasks each of them went, if each has a copy, or
    /// 0; how many have a key group (all or none), which; and the records.
    fn piece(&mut self, input: usize, records: &Vec<T>) -> Result<Vec<u8>, String> {
        let (tasks, groups): (usize, Vec<u8>) = match &mut self.shares[input] {
            Share::Any => (0, Vec::new()),
            Share::Group(group_of) => (0, records.iter().map(|r| group_of(r).0 as u8).collect()),
            Share::Each => (self.copy.1, Vec::new()),
        };
        let archive = records.to_archive().map_err(|error| error.to_string())?;
        let [tasks, count] = [tasks, groups.len()].map(|number| (number as u64).to_le_bytes());
        Ok([&tasks, &count, &groups[..], &archive[..]].concat())
    }
}

/// What is in a [`piece`](Log::piece).
pub(super) struct Piece<T> {
    /// How many tasks have a copy of each record; 0: it is the only one.
    tasks: u64,
    /// None, or one for each record.
    groups: Vec<KeyGroup>,
    pub(super) records: Vec<T>,
}

pub(super) fn in_piece<T: Record>(bytes: &[u8]) -> Result<Piece<T>, String> {
    let none = "logged records that are none";
    let (tasks, rest) = bytes.split_first_chunk().ok_or(none)?;
    let (count, rest) = rest.split_first_chunk().ok_or(none)?;
    let count = usize::try_from(u64::from_le_bytes(*count)).map_err(|_| none)?;
    let (groups, archive) = rest.split_at_checked(count).ok_or(none)?;
    let records = Vec::<T>::from_archive(archive).map_err(|error| format!("{none}: {error}"))?;
    let groups: Vec<KeyGroup> = groups.iter().map(|group| KeyGroup((*group).into())).collect();
    let is_known = groups.iter().all(|group| group.0 < KEY_GROUPS);
    if !is_known || (count > 0 && count != records.len()) {
        return Err(format!("{none}: {count} key groups for {} records", records.len()));
    }
    Ok(Piece { tasks: u64::from_le_bytes(*tasks), groups, records })
}

impl<T: Record> OperatorState for Log<T> {
    fn mark(&mut self, snapshot: SnapshotId) {
        if let Some(open) = self.open.back_mut().filter(|open| open.id == snapshot) {
            open.marked = true;
        }
    }

    fn drain(&mut self, budget_bytes: usize, out: &mut dyn StateWriter) -> Result<Drained, Error> {
        let Some(open) = self.open.front_mut().filter(|open| open.marked) else {
            return Ok(Drained::Done);
        };
        let snapshot = open.id;
        if let Some(reason) = &open.failed {
            return Err(Error::Snapshot { snapshot, reason: reason.clone() });
        }
        if !open.sealed {
            return Ok(Drained::Waiting);
        }
        let records = open.records.iter_mut().map(std::mem::take).enumerate();
        let records = records.filter(|(_, records)| !records.is_empty());
        open.left.extend(records.map(|(input, records)| (input, records.into_iter())));
        let mut count = (budget_bytes / self.weight.record_bytes().max(1)).max(1);
        while let Some((input, records)) = self.open.front_mut().and_then(|o| o.left.front_mut()) {
            if count == 0 {
                return Ok(Drained::More);
            }
            let (input, records) = (*input, records.by_ref().take(count).collect::<Vec<T>>());
            count -= records.len();
            let bytes = self.piece(input, &records).map_err(|error| {
                let reason = format!("a logged record does not serialise: {error}");
                Error::Snapshot { snapshot, reason }
            })?;
            out.write(StateSlot::Task(self.copy.0 as u32), SCHEMA_LOG, &bytes);
            let left = &mut self.open.front_mut().expect("it was there").left;
            left.pop_front_if(|(_, records)| records.len() == 0);
        }
        self.open.pop_front();
        Ok(Drained::Done)
    }

    fn abandon(&mut self) {
        self.open.retain(|open| !open.marked);
    }

    fn restore(&mut self, slot: StateSlot, schema: u32, bytes: &[u8]) -> Result<(), String> {
        if schema != SCHEMA_LOG {
            return Err(format!("schema {schema}, expected {SCHEMA_LOG} (logged records)"));
        }
        let StateSlot::Task(of) = slot else {
            return Err(format!("{slot:?} is not the log of a task"));
        };
        // Shown to every task. Those without a key are shared out in turn.
        let (subtask, parallelism) = self.copy;
        let Piece { tasks, groups, records } = in_piece::<T>(bytes)?;
        if tasks > 0 && tasks != parallelism as u64 {
            return Err(format!(
                "records were in transit to each of {tasks} tasks, and {parallelism} tasks cannot share \
                 them: go on with as many workers as before, or from a snapshot of mode abs"
            ));
        }
        if groups.is_empty() {
            let is_mine = of as usize % parallelism == subtask;
            self.restored.extend(records.into_iter().filter(|_| is_mine));
        } else {
            let mine = groups.iter().map(|group| group.owner(parallelism) == subtask);
            let mine = records.into_iter().zip(mine).filter(|(_, is_mine)| *is_mine);
            self.restored.extend(mine.map(|(record, _)| record));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::pieces::Pieces;

    const ONE: SnapshotId = SnapshotId(1);

    fn by_key(copy: Copy) -> Log<String> {
        let group = |word: &String| KeyGroup(u32::from(word.as_bytes()[0] & 127));
        Log::new(copy, vec![Share::Group(Box::new(group)), Share::Any])
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    fn handled(log: &mut Log<String>) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(replay) = log.replay() {
            replay.lend(|batch| all.extend(batch.drain(1)));
        }
        all
    }

    #[test]
    fn one_heavy_record_among_many_does_not_make_a_log_too_long() {
        let mut log = by_key((0, 1));
        log.begin(ONE);
        log.mark(ONE);
        let mut batch = words(&["a"; 500]);
        batch[1] = "h".repeat(2 << 20); // which is the one that is looked at first
        log.append(0, &batch);
        assert_eq!((log.failed(), log.logged()), (0, 500));
        let heavy = ["h".repeat(2 << 20)];
        (0..40).for_each(|_| log.append(0, &heavy));
        assert_eq!(log.failed(), 1, "80 MiB are too much");
    }

    #[test]
    fn trap_19_a_log_is_replayed_once_by_whoever_owns_its_keys() {
        let mut log = by_key((1, 2));
        log.begin(ONE);
        log.mark(ONE);
        log.append(0, &words(&["z0", "a1", "z1"]));
        let mut pieces = Pieces::default();
        assert_eq!(log.drain(1, &mut pieces).unwrap(), Drained::Waiting, "not sealed");
        log.append(1, &words(&["else"]));
        log.append(0, &words(&["a2"]));
        log.seal();
        assert_eq!(log.drain(1 << 20, &mut pieces).unwrap(), Drained::Done);
        assert!(log.replay().is_none(), "the running task handles them as they come");

        // On one task all come back; on four, each record to one.
        for parallelism in [1, 2, 4] {
            let mut all = Vec::new();
            for subtask in 0..parallelism {
                let mut log = by_key((subtask, parallelism));
                for (slot, schema, bytes) in &pieces.0 {
                    log.restore(*slot, *schema, bytes).unwrap(); // it picks
                }
                let mine = handled(&mut log);
                // Of one input, of whatever keys, in the order in which they came.
                let sent = ["z0", "a1", "z1", "a2"];
                let places = mine.iter().filter_map(|word| sent.iter().position(|s| s == word));
                assert!(places.is_sorted(), "{mine:?}");
                all.extend(mine);
            }
            all.sort();
            assert_eq!(all, ["a1", "a2", "else", "z0", "z1"]);
        }
    }

    #[test]
    fn a_long_log_is_handed_over_piece_by_piece_and_comes_back_in_order() {
        let group = |n: &u64| KeyGroup((n % 128) as u32);
        let shares = || vec![Share::Group(Box::new(group)), Share::Any];
        let mut log = Log::<u64>::new((0, 1), shares());
        log.begin(ONE);
        log.mark(ONE);
        let sent: Vec<u64> = (0..10_000).collect();
        log.append(0, &sent);
        log.append(1, &[77; 50]);
        log.seal();
        let (mut pieces, mut steps) = (Pieces::default(), 1);
        while log.drain(8_000, &mut pieces).unwrap() == Drained::More {
            steps += 1;
            assert_eq!(pieces.0.len(), steps - 1, "one in each");
        }
        assert_eq!((steps, pieces.0.len()), (11, 11), "of 1,000 records, and the other input's");
        assert!(pieces.0.iter().all(|(.., bytes)| bytes.len() < 10_000));
        assert_eq!(log.drain(8_000, &mut pieces).unwrap(), Drained::Done, "nothing is open");
        let mut restored = Log::<u64>::new((0, 1), shares());
        for (slot, schema, bytes) in &pieces.0 {
            restored.restore(*slot, *schema, bytes).unwrap();
        }
        let mut all = Vec::new();
        while let Some(replay) = restored.replay() {
            replay.lend(|batch| all.extend(batch.drain(1)));
        }
        assert!(all[..10_000] == sent && all[10_000..] == [77; 50]);
    }

    /// It was held for a snapshot that nobody wanted any more.
    #[test]
    fn a_log_that_is_given_up_half_handed_over_leaves_nothing_for_the_next() {
        let mut log = Log::<u64>::new((0, 1), vec![Share::Any]);
        log.begin(ONE);
        log.mark(ONE);
        log.append(0, &[1; 100]);
        log.seal();
        assert_eq!(log.drain(80, &mut Pieces::default()).unwrap(), Drained::More);
        log.abandon();
        log.begin(SnapshotId(2));
        log.mark(SnapshotId(2));
        log.append(0, &[2; 3]);
        log.seal();
        let mut pieces = Pieces::default();
        assert_eq!(log.drain(80, &mut pieces).unwrap(), Drained::Done);
        let [(.., bytes)] = &pieces.0[..] else { panic!("{} pieces", pieces.0.len()) };
        assert_eq!(in_piece::<u64>(bytes).unwrap().records, [2; 3]);
    }

    /// On more tasks the new ones missed it, on fewer one of them handled it twice.
    #[test]
    fn what_went_to_each_task_comes_back_to_each_and_to_no_other_number_of_them() {
        let mut pieces = Pieces::default();
        let log = |subtask, tasks| Log::<String>::new((subtask, tasks), vec![Share::Each]);
        for (subtask, word) in [(0, "late"), (1, "later")] {
            let mut log = log(subtask, 2);
            log.begin(ONE);
            log.mark(ONE);
            log.append(0, &words(&[word]));
            log.seal();
            assert_eq!(log.drain(1 << 20, &mut pieces).unwrap(), Drained::Done);
        }
        for (subtask, word) in [(0, "late"), (1, "later")] {
            let mut log = log(subtask, 2);
            for (slot, schema, bytes) in &pieces.0 {
                log.restore(*slot, *schema, bytes).unwrap();
            }
            assert_eq!(handled(&mut log), [word]);
        }
        for tasks in [1, 3] {
            let (slot, schema, bytes) = &pieces.0[0];
            let refused = log(0, tasks).restore(*slot, *schema, bytes).unwrap_err();
            assert!(refused.contains("each of 2 tasks"), "{refused}");
        }
    }

    #[test]
    fn a_log_above_its_bound_fails_its_snapshot_and_not_the_next() {
        let mut log = Log::<[u64; 1 << 10]>::new((0, 1), vec![Share::Any]);
        let block = vec![[7; 1 << 10]; 128];
        log.begin(ONE);
        log.mark(ONE);
        for _ in 0..=LOG_BYTES_MAX / size_of_val(&block[..]) {
            log.append(0, &block);
        }
        let mut pieces = Pieces::default();
        let error = log.drain(1, &mut pieces).unwrap_err();
        assert!(error.to_string().contains("in transit"), "{error}");
        log.abandon();
        log.append(0, &block);
        assert_eq!(log.failed(), 1, "that it could not be kept is counted once");
        log.seal();
        log.begin(SnapshotId(2));
        log.mark(SnapshotId(2));
        log.append(0, &block[..1]);
        log.seal();
        assert_eq!(log.drain(1 << 20, &mut pieces).unwrap(), Drained::Done);
        assert_eq!((pieces.0.len(), log.failed()), (1, 1));
    }

    #[test]
    fn a_log_whose_snapshot_was_given_up_before_the_capture_is_dropped() {
        let mut log = by_key((0, 1));
        log.begin(ONE);
        log.append(0, &words(&["lost"]));
        log.seal();
        log.begin(SnapshotId(2));
        log.mark(SnapshotId(2));
        log.seal();
        let mut pieces = Pieces::default();
        assert_eq!(log.drain(1 << 20, &mut pieces).unwrap(), Drained::Done);
        assert!(pieces.0.is_empty());
    }

    #[test]
    fn bytes_that_are_no_log_are_an_error() {
        let mut log = by_key((0, 1));
        assert!(log.restore(StateSlot::Split(0), SCHEMA_LOG, &[]).is_err());
        assert!(log.restore(StateSlot::Task(0), 1, &[]).unwrap_err().contains("schema 1"));
        let count = |count: u64, group: u8| [&[0; 8], &count.to_le_bytes()[..], &[group]].concat();
        for bytes in [&[1; 7][..], &[1; 40], &[0xFF; 40], &count(1, 200), &count(u64::MAX, 1)] {
            assert!(log.restore(StateSlot::Task(0), SCHEMA_LOG, bytes).is_err(), "{bytes:?}");
        }
    }
}
