//! The traps of Asynchronous Barrier Snapshotting, each with a test named for it: those that need
//! the engine here, the others where their code is.
//!
//! | trap | test |
//! |---|---|
//! | 1 finished input | `align::tests`: `trap_01_..` |
//! | 2 trigger races with finish, 3 last commit | `coordinator`: `trap_02_..`, `trap_03_..`; through the engine `trap_03_..` here |
//! | 4 idle source, 5 batch ends at a barrier | here |
//! | 6 replay of buffers | `inbox::tests`: `trap_06_..`, from memory and from disk |
//! | 7 fairness, 8 expansion, 9 diamond | here; a full output beside a free one `task`: `trap_09_..` |
//! | 10 repeated barrier | `align::tests`: `trap_10_..` |
//! | 11 offset at the barrier | here |
//! | 12 timers, watermarks, requests | here, for what an operator waits for by itself: the engine has no timers, watermarks or asynchronous calls yet |
//! | 13 what stages hold back | here; a stage that pre-aggregates empties itself in `Stage::flush` |
//! | 14 no emission between capture and barrier | here |
//! | 15 in-place state | `state::tests`: `a_marked_version_is_the_same_bytes_whatever_happens_meanwhile`; after an abort here |
//! | 16 serialisation error | `state::tests`: `a_value_that_does_not_serialise_fails_the_snapshot`; through the engine here |
//! | 17 replays differ | here, and `simulated`: `the_same_seed_takes_the_same_steps` |
//! | 18 full loops | `inbox::tests`: `trap_18_..`; through the engine `tests/loops.rs`: `trap_18_a_loop_that_doubles_..`, and `simulated`, rings of one slot |
//! | 19 the log is replayed once | `inbox::log`: `trap_19_..`; through the engine `tests/loops.rs`: `trap_19_records_in_transit_..` |
//! | 20 end of a loop | `inbox::tests`: `trap_20_..`; through the engine `tests/loops.rs`: `trap_20_a_loop_ends_..` |
//! | 21 nested and several loops | `loops`: `trap_21_..`; through the engine `tests/loops.rs`: `trap_21_nested_loops_..`, and `simulated` |
//! | 22 acks, 23 older pending ones | `coordinator`: `trap_22_..`, `trap_23_..` |
//! | 24 order of the commit | `store::tests::crash`: `trap_24_..`; `store::tests::damage`: `a_torn_newest_manifest_..`; `store::tests::bounds`: `after_a_failed_sync_..`; `recovery`: `a_snapshot_that_was_passed_over_once_..` |
//! | 25 sinks commit again, 26 tagged when written | here |
//! | 27 stale process | `store::tests::places`: `a_process_whose_lock_file_was_deleted_..`; here |
//! | 28 crash during restore | `store::tests::crash`: `a_crash_at_any_operation_of_an_open_..`; here with sinks |
//! | 29 retention | `store::tests::bounds`: `trap_29_..`, `at_least_two_..` |
//! | 30 short writes | `store::tests::bounds`: `short_writes_..`; `disk::tests`: `short_writes_are_continued`; here with a sink |

mod common;

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use common::run::{Run, Told, config, lines, visible};
use rkyv::{Archive, Deserialize, Serialize};
use tidegate::channel::channel;
use tidegate::config::{Config, INPUT_RECORDS_MAX};
use tidegate::disk::{Faults, MemoryDisk};
use tidegate::engine::End;
use tidegate::error::{Error, Result};
use tidegate::graph::Graph;
use tidegate::id::{SnapshotId, StateSlot};
use tidegate::inbox::{Inbox, Pulled};
use tidegate::operator::process::KeyState;
use tidegate::operator::sink::{Collect, Collected, Files, Roll};
use tidegate::operator::source::{Generator, Items};
use tidegate::operator::split::Side;
use tidegate::operator::{Flow, Output, Part, Stage, Trace, Visitor};
use tidegate::record::{Batch, Collector, Control};
use tidegate::state::{Drained, OperatorState, StateWriter};
use tidegate::stream::{Job, Stream};
use tidegate::task::{Head, Progress, Task};

type Update = (u64, u64);

fn numbers(job: &Job, name: &str, records: u64) -> Stream<u64> {
    job.source(
        name,
        Generator::new("numbers", records, |index, out: &mut Collector<u64>| out.push(index)),
    )
}

/// Counts by `number % keys`.
fn count(stream: Stream<u64>, keys: u64) -> Stream<Update> {
    stream.key_by(move |number| number % keys).fold("count", || 0_u64, |count, _| *count += 1)
}

fn collected(job: Job, updates: Stream<Update>) -> (Graph, Collected<Update>) {
    let (sink, collected) = Collect::new();
    updates.sink("out", sink);
    (job.build().expect("well formed"), collected)
}

/// The counts 1 to C of each key, each once; `times[key]` is C.
#[track_caller]
fn assert_exact(mut found: Vec<Update>, times: &[u64]) {
    found.sort_unstable();
    let counts = (0..).zip(times).flat_map(|(key, &times)| (1..=times).map(move |n| (key, n)));
    assert_eq!(found, counts.collect::<Vec<_>>());
}

#[track_caller]
fn complete(run: &mut Run<'_>) {
    assert_eq!(run.end().expect("nothing goes wrong").end, End::Complete);
}

fn with(workers: usize, ring_slots: usize) -> Config {
    Config { ring_slots, ..config(workers) }
}

#[test]
fn trap_03_the_last_records_are_committed_though_their_snapshot_fails_at_first() {
    let job = Job::new("last");
    let updates = count(numbers(&job, "numbers", 100), 5);
    let (graph, out) = collected(job, updates);
    let disk = MemoryDisk::new(1);
    let mut config = config(2);
    config.snapshots.as_mut().expect("it takes snapshots").interval = Duration::from_secs(1);
    let mut run = Run::open(&graph, &config, &disk);
    run.supervise();
    disk.set_faults(Faults { capacity_bytes: Some(1), ..Faults::default() });
    run.until("two tries", |run| {
        run.told.iter().filter(|t| matches!(t, Told::Aborted(..))).count() == 2
    });
    disk.set_faults(Faults::default());
    complete(&mut run);
    assert_exact(out.take(), &[20; 5]);
}

#[test]
fn trap_04_a_source_that_never_emits_still_sends_the_barrier_on() {
    let job = Job::new("idle");
    let idle = numbers(&job, "idle", 10).rate(0.0);
    let slow = numbers(&job, "slow", 10).rate(1.0);
    let updates = count(idle.union(slow).union(numbers(&job, "quick", 100)), 1);
    let (graph, out) = collected(job, updates);
    let mut run = Run::open(&graph, &with(2, 1), &MemoryDisk::new(1));
    run.until_completed(20);
    run.handle.stop();
    assert_eq!(run.end().expect("it stops").end, End::Stopped);
    let found = out.take();
    assert!(found.len() >= 101, "{} updates", found.len());
    assert_exact(found.clone(), &[found.len() as u64]);
}

/// The last stage of a chain that keeps what comes, at most `room` records per call.
struct Keep {
    kept: Arc<Mutex<Vec<u64>>>,
}

impl Stage<u64> for Keep {
    fn process(&mut self, input: &mut Batch<'_, u64>) -> Result<Flow> {
        self.kept.lock().expect("no panic").extend(input.drain(usize::MAX));
        Ok(Flow::Done)
    }

    fn flush(&mut self) -> Result<Flow> {
        Ok(Flow::Done)
    }

    fn finish(&mut self) -> Result<Flow> {
        Ok(Flow::Done)
    }

    fn visit(&mut self, _visitor: &mut Visitor<'_>) -> Result<()> {
        Ok(())
    }
}

fn keep() -> (Keep, Arc<Mutex<Vec<u64>>>) {
    let kept: Arc<Mutex<Vec<u64>>> = Arc::default();
    (Keep { kept: kept.clone() }, kept)
}

#[test]
fn trap_05_a_batch_ends_at_the_barrier_and_nothing_behind_it_is_touched() {
    let (mut sender, receiver) = channel::<u64>(16);
    let (mut stage, kept) = keep();
    let mut inbox = Inbox::acyclic(vec![receiver], SnapshotId(0));
    assert!(sender.room(6) >= 6);
    (0..3).for_each(|number| sender.push(number));
    sender.control(Control::Barrier(SnapshotId(1))).expect("room for a mark");
    (3..6).for_each(|number| sender.push(number));
    sender.publish();
    assert_eq!(inbox.pull(0, &mut stage).unwrap().0, Pulled::Worked);
    assert_eq!(*kept.lock().unwrap(), [0, 1, 2]);
    assert_eq!(inbox.pull(0, &mut stage).unwrap().0, Pulled::Barrier(SnapshotId(1)));
    assert_eq!(*kept.lock().unwrap(), [0, 1, 2]);
    assert_eq!(inbox.pull(0, &mut stage).unwrap().0, Pulled::Worked);
    assert_eq!(*kept.lock().unwrap(), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn trap_07_after_an_alignment_no_input_starves_and_none_floods() {
    const FLOOD: usize = 1 << 14;
    let (mut senders, receivers): (Vec<_>, Vec<_>) = (0..3).map(|_| channel::<u64>(FLOOD)).unzip();
    let (mut stage, kept) = keep();
    let mut inbox = Inbox::acyclic(receivers, SnapshotId(0));
    // Input 0 was blocked for long and is full; the others have little.
    senders[0].control(Control::Barrier(SnapshotId(1))).expect("room for a mark");
    assert!(senders[0].room(FLOOD) >= FLOOD);
    (0..FLOOD).for_each(|_| senders[0].push(0));
    senders[0].publish();
    while inbox.pull(0, &mut stage).unwrap().0 != Pulled::Nothing {}
    assert!(kept.lock().unwrap().is_empty(), "it is blocked");
    for (sender, input) in senders.iter_mut().zip(0..).skip(1) {
        sender.control(Control::Barrier(SnapshotId(1))).expect("room for a mark");
        assert!(sender.room(5) >= 5);
        (0..5).for_each(|_| sender.push(input));
        sender.publish();
    }
    while inbox.pull(0, &mut stage).unwrap().0 != Pulled::Barrier(SnapshotId(1)) {}
    assert_eq!(inbox.pull(0, &mut stage).unwrap().0, Pulled::Worked);
    let kept = kept.lock().unwrap();
    let of = |input| kept.iter().filter(|record| **record == input).count();
    assert_eq!((of(1), of(2)), (5, 5), "each gets its turn");
    assert_eq!(of(0), INPUT_RECORDS_MAX, "a turn has a bound");
}

#[test]
fn trap_08_one_record_of_a_hundred_thousand_passes_rings_of_one_slot_and_the_barrier_waits() {
    const PIECES: u64 = 100_000;
    let job = Job::new("expansion");
    let one = job.source("one", Items::new("two records", || [0_u64, 1].into_iter()));
    let (graph, out) = {
        let updates = count(one.flat_map("expand", |_| 0..PIECES), 10);
        collected(job, updates)
    };
    let disk = MemoryDisk::new(1);
    let mut run = Run::open(&graph, &with(2, 1), &disk);
    run.until("a snapshot that waits", |run| run.now_ns > 20_000_000);
    assert!(run.completed().is_empty(), "the barrier overtook the expansion");
    complete(&mut run);
    assert_exact(out.take(), &[PIECES / 5; 10]);
}

#[test]
fn trap_09_a_diamond_with_a_full_blocked_branch_neither_deadlocks_nor_loses() {
    let job = Job::new("diamond");
    let trunk = numbers(&job, "numbers", 3_000);
    let long = trunk
        .clone()
        .rebalance()
        .map("long", |number| number)
        .rebalance()
        .map("longer", |number| number);
    let updates = count(trunk.union(long), 4);
    let (graph, out) = collected(job, updates);
    let mut run = Run::open(&graph, &with(3, 1), &MemoryDisk::new(1));
    run.supervise();
    let mut steps = 0;
    while run.ended.is_none() {
        // Each worker by turns is the one that hardly runs.
        let slow = steps / 5_000 % 3;
        (0..3)
            .filter(|worker| *worker != slow || steps % 40 == 0)
            .for_each(|worker| run.step(worker));
        run.supervise();
        steps += 1;
        assert!(steps < 400_000, "stuck; told: {:?}", run.told);
    }
    assert!(run.completed().len() > 10, "{:?}", run.told);
    assert_exact(out.take(), &[1_500; 4]);
}

/// The first snapshots are each restored from: what they hold of the source is what they hold of
/// the count.
fn restarted_at_snapshots(graph: &Graph, disk: &MemoryDisk, rings: usize) {
    for life in 0..20 {
        let mut run = Run::open(graph, &with(1 + life % 2, rings), disk);
        run.until_completed(1);
    }
    complete(&mut Run::open(graph, &with(3, rings), disk));
}

#[test]
fn trap_11_the_offset_is_taken_at_the_barrier_though_a_batch_is_half_emitted() {
    let job = Job::new("offsets");
    let updates = count(numbers(&job, "numbers", 3_000), 1);
    let (graph, out) = collected(job, updates);
    restarted_at_snapshots(&graph, &MemoryDisk::new(1), 1);
    assert_exact(out.take(), &[3_000]);
}

/// A window of seven records per key: the timer that is running (how many are still to come) and the time
/// so far (windows closed) are in the state, or a restart in its middle would shift all that follow.
#[test]
fn trap_12_what_an_operator_waits_for_is_state_and_goes_on_after_a_restart() {
    let job = Job::new("timers");
    let by_key = numbers(&job, "numbers", 3_000).key_by(|number| number % 4);
    let updates =
        by_key.process("window", |number, state: &mut KeyState<'_, u64, (u64, u64)>, out| {
            let (left, closed) = state.or_insert_with(|| (7, 0));
            *left -= 1;
            if *left == 0 {
                (*left, *closed) = (7, *closed + 1);
                out.push((number % 4, *closed));
            }
        });
    let (graph, out) = collected(job, updates);
    restarted_at_snapshots(&graph, &MemoryDisk::new(1), 2);
    assert_exact(out.take(), &[750 / 7; 4]);
}

#[test]
fn trap_13_what_stages_hold_back_leaves_before_the_barrier() {
    let job = Job::new("buffers");
    let (even, odd) = numbers(&job, "numbers", 1_200)
        .flat_map("thrice", |number| vec![number; 3])
        .split(
            "parity",
            |number| if number % 2 == 0 { Side::Left(number) } else { Side::Right(number) },
        );
    let again = odd.clone().map("again", |number| number);
    let updates = count(even.union(odd).union(again), 2);
    let (graph, out) = collected(job, updates);
    restarted_at_snapshots(&graph, &MemoryDisk::new(2), 2);
    assert_exact(out.take(), &[1_800, 3_600]);
}

/// A chain that writes down in which order it is asked for what.
struct Diary {
    log: Arc<Mutex<Vec<&'static str>>>,
    due: bool,
    full: usize,
}

impl Diary {
    fn note(&self, what: &'static str) {
        self.log.lock().expect("no panic").push(what);
    }
}

impl Head for Diary {
    fn pull(&mut self, _now_ns: u64) -> Result<(Pulled, Option<u64>)> {
        self.note("pull");
        let due = std::mem::take(&mut self.due);
        Ok((if due { Pulled::Barrier(SnapshotId(1)) } else { Pulled::Worked }, None))
    }

    fn flush(&mut self) -> Result<Flow> {
        self.note("flush");
        Ok(Flow::Done)
    }

    fn finish(&mut self) -> Result<Flow> {
        Ok(Flow::Done)
    }

    fn visit(&mut self, visitor: &mut Visitor<'_>) -> Result<()> {
        visitor(Part::State("diary", &mut Captured(self.log.clone())))?;
        visitor(Part::Output(self))
    }
}

impl Output for Diary {
    fn control(&mut self, _control: Control) -> Flow {
        self.note("barrier");
        if self.full == 0 {
            return Flow::Done;
        }
        self.full -= 1;
        Flow::Full
    }
}

struct Captured(Arc<Mutex<Vec<&'static str>>>);

impl OperatorState for Captured {
    fn mark(&mut self, _snapshot: SnapshotId) {
        self.0.lock().expect("no panic").push("capture");
    }

    fn drain(&mut self, _budget: usize, _out: &mut dyn StateWriter) -> Result<Drained, Error> {
        Ok(Drained::Done)
    }

    fn abandon(&mut self) {}

    fn restore(&mut self, _: StateSlot, _: u32, _: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

#[test]
fn trap_14_nothing_is_emitted_between_the_capture_and_the_barrier() {
    let log: Arc<Mutex<Vec<&'static str>>> = Arc::default();
    let diary = Diary { log: log.clone(), due: true, full: 2 };
    let names = Arc::from(["diary".to_string()]);
    let mut task = Task::new(Box::new(diary), 0, names, Arc::new(Trace::default()));
    assert_eq!(task.step(0).unwrap(), Progress::Due(SnapshotId(1)));
    task.capture(SnapshotId(1)).unwrap();
    (0..3).for_each(|_| _ = task.step(0).unwrap());
    let expected = ["pull", "flush", "capture", "barrier", "barrier", "barrier", "pull"];
    assert_eq!(*log.lock().unwrap(), expected);
}

#[test]
fn trap_15_after_a_snapshot_was_given_up_the_next_one_holds_all_of_the_state() {
    let job = Job::new("abort");
    let updates = count(numbers(&job, "numbers", 20_000).rate(1_000_000.0), 3_000);
    let (graph, out) = collected(job, updates);
    let disk = MemoryDisk::new(1);
    let mut run = Run::open(&graph, &config(2), &disk);
    for _ in 0..3 {
        run.until_completed(1);
        disk.set_faults(Faults { capacity_bytes: Some(1), ..Faults::default() });
        let aborted =
            |run: &Run<'_>| run.told.iter().filter(|t| matches!(t, Told::Aborted(..))).count();
        let goal = aborted(&run) + 1;
        run.until("a failed snapshot", |run| aborted(run) >= goal);
        disk.set_faults(Faults::default());
    }
    run.until_completed(1);
    drop(run);
    disk.crash();
    complete(&mut Run::open(&graph, &config(3), &disk));
    let times: Vec<u64> = (0..3_000).map(|key| (20_000 - key as u64).div_ceil(3_000)).collect();
    assert_exact(out.take(), &times);
}

/// A count that cannot be serialised while it is 2: its time is before 1970 then.
#[derive(Clone, Archive, Serialize, Deserialize)]
struct Touchy {
    count: u64,
    #[rkyv(with = rkyv::with::AsUnixTime)]
    time: SystemTime,
}

#[test]
fn trap_16_a_value_that_does_not_serialise_fails_the_snapshot_and_no_key_is_skipped() {
    let job = Job::new("touchy");
    let (sink, out) = Collect::new();
    let by_key = numbers(&job, "numbers", 8_000).rate(500_000.0).key_by(|number| number % 2_000);
    let update = |touchy: &mut Touchy, _| {
        touchy.count += 1;
        let before = Duration::from_secs(u64::from(touchy.count == 2));
        touchy.time = SystemTime::UNIX_EPOCH - before;
    };
    let init = || Touchy { count: 0, time: SystemTime::UNIX_EPOCH };
    by_key.aggregate("count", init, update, |key, touchy| (*key, touchy.count)).sink("out", sink);
    let graph = job.build().expect("well formed");
    let disk = MemoryDisk::new(1);
    let mut run = Run::open(&graph, &config(2), &disk);
    run.until_completed(1);
    run.until("two failed snapshots", |run| {
        // The sink behind the count, in one task with it, was named once.
        let failed = |told: &&Told| matches!(told, Told::Aborted(_, why) if why.contains("does not serialise") && why.contains("operator 'count' (task "));
        run.told.iter().filter(failed).count() == 2
    });
    run.until_completed(1);
    drop(run);
    let mut again = Run::open(&graph, &config(1), &disk);
    complete(&mut again);
    assert!(!again.told.iter().any(|told| matches!(told, Told::Restarting(_))));
    assert_exact(out.take(), &[4; 2_000]);
}

#[test]
fn trap_17_two_runs_of_one_schedule_write_the_same_snapshot_bytes() {
    let run = || {
        let job = Job::new("replay");
        let words =
            numbers(&job, "numbers", 4_000).map("word", |number| format!("word {}", number % 700));
        let (sink, _out) = Collect::new();
        let counts =
            words.key_by(Clone::clone).fold("count", Vec::new, |seen: &mut Vec<u64>, word| {
                seen.push(word.len() as u64);
            });
        counts.sink("out", sink);
        let (graph, disk) = (job.build().expect("well formed"), MemoryDisk::new(5));
        let mut run = Run::open(&graph, &config(3), &disk);
        run.until_completed(4);
        drop(run);
        let parts = visible(&disk, "/snapshots").into_iter();
        parts.filter(|(name, _)| name.starts_with("segment-")).collect::<Vec<_>>()
    };
    let (first, second) = (run(), run());
    assert!(first.iter().any(|(_, bytes)| bytes.iter().any(|byte| *byte != 0)), "there is state");
    assert_eq!(first, second);
}

fn files_job(records: u64) -> Graph {
    let job = Job::new("files");
    let format = |(key, count): &Update, out: &mut Collector<u8>| {
        out.extend_from_slice(format!("{key} {count}\n").as_bytes());
    };
    let roll = Roll { bytes: 0, age: Duration::ZERO };
    count(numbers(&job, "numbers", records).rate(300_000.0), 4)
        .sink("out", Files::new("/out", roll, format));
    job.build().expect("well formed")
}

fn updates(disk: &MemoryDisk) -> Vec<Update> {
    let number = |text: &str| text.parse().expect("a number");
    let pair = |line: &String| line.split_once(' ').map(|(key, n)| (number(key), number(n)));
    lines(disk, "/out").iter().filter_map(pair).collect()
}

#[test]
fn trap_25_what_the_manifest_lists_is_committed_after_a_crash_before_the_commit_and_only_once() {
    let (graph, disk) = (files_job(2_000), MemoryDisk::new(1));
    let mut run = Run::open(&graph, &config(2), &disk);
    run.until_completed(2);
    let before = updates(&disk).len();
    // The workers are not stepped again: nobody has carried the commit out.
    while run.completed().len() < 3 {
        (0..2).for_each(|worker| run.step(worker));
        run.supervise();
    }
    drop(run);
    disk.crash();
    assert_eq!(updates(&disk).len(), before, "not committed yet");
    for _ in 0..2 {
        let mut run = Run::open(&graph, &config(1), &disk);
        run.supervise();
        let found = updates(&disk);
        assert!(found.len() > before, "committed at the restart");
        let times: Vec<u64> =
            (0..4).map(|key| found.iter().filter(|f| f.0 == key).count() as u64).collect();
        assert_exact(found, &times);
    }
    complete(&mut Run::open(&graph, &config(3), &disk));
    assert_exact(updates(&disk), &[500; 4]);
}

#[test]
fn trap_26_a_record_belongs_to_the_snapshot_it_was_written_before_not_to_the_one_being_committed() {
    let (graph, disk) = (files_job(2_000), MemoryDisk::new(1));
    let mut run = Run::open(&graph, &config(1), &disk);
    run.until_completed(1);
    // Records go on arriving between the barrier and the commit; each commit shows its own only.
    for _ in 0..3 {
        run.until_completed(1);
        (0..3).for_each(|_| _ = run.turn());
        let shown = updates(&disk).len();
        let newest = *run.completed().last().expect("one");
        let names: Vec<String> = visible(&disk, "/out").into_iter().map(|(name, _)| name).collect();
        let number = |name: &String| name[5..17].parse::<u64>().expect("a snapshot");
        assert!(names.iter().map(number).all(|first| first <= newest), "{names:?} at {newest}");
        assert!(shown as u64 <= run.handle.records());
    }
    drop(run);
    disk.crash();
    complete(&mut Run::open(&graph, &config(2), &disk));
    assert_exact(updates(&disk), &[500; 4]);
}

#[test]
fn trap_27_a_second_process_on_the_same_snapshots_is_refused_and_harms_nothing() {
    let (graph, disk) = (files_job(1_000), MemoryDisk::new(1));
    let mut run = Run::open(&graph, &config(1), &disk);
    run.until_completed(1);
    let error = Run::try_open(&graph, &config(2), &disk).err().expect("it is refused");
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    complete(&mut run);
    assert_exact(updates(&disk), &[250; 4]);
}

#[test]
fn trap_28_a_crash_at_any_operation_of_a_restart_leaves_the_same_snapshot_to_restore() {
    for operation in 0..60 {
        let (graph, disk) = (files_job(600), MemoryDisk::new(operation));
        let mut run = Run::open(&graph, &config(2), &disk);
        run.until_completed(1);
        drop(run);
        disk.set_faults(Faults { power_lost_after: Some(operation), ..Faults::default() });
        if let Ok(mut run) = Run::try_open(&graph, &config(1), &disk) {
            (0..60).for_each(|_| _ = run.turn());
        }
        disk.crash();
        complete(&mut Run::open(&graph, &config(2), &disk));
        assert_exact(updates(&disk), &[150; 4]);
    }
}

#[test]
fn trap_30_writes_that_go_short_and_a_disk_that_fills_up_cost_no_line() {
    let (graph, disk) = (files_job(3_000), MemoryDisk::new(1));
    disk.set_faults(Faults { short_write: 5_000, ..Faults::default() });
    let mut run = Run::open(&graph, &config(1), &disk);
    run.until_completed(2);
    disk.set_faults(Faults { short_write: 5_000, capacity_bytes: Some(1), ..Faults::default() });
    let error = run.end().expect_err("no output, no job").to_string();
    assert!(error.contains("No space"), "{error}");
    disk.set_faults(Faults { short_write: 5_000, ..Faults::default() });
    complete(&mut Run::open(&graph, &config(2), &disk));
    assert_exact(updates(&disk), &[750; 4]);
}
