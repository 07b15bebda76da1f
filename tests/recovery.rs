//! What a job does after a failure: who failed is named, the job goes back to its last snapshot, a
//! bounded number of times, and nothing is counted twice or lost.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use common::quiet::quietly;
use common::run::{Run, Told, config, lines};
use tidegate::config::{Config, Driver, Snapshots};
use tidegate::disk::{Disk, Faults, MemoryDisk};
use tidegate::engine::stepper::{Stepper, Stepping};
use tidegate::engine::supervisor::{Opened, Supervisor, Turn};
use tidegate::engine::{End, Handle, Notice, Report, run};
use tidegate::error::{Error, Result};
use tidegate::graph::Graph;
use tidegate::id::SnapshotId;
use tidegate::operator::Flow;
use tidegate::operator::sink::{Collect, Collected, Files, Roll, Sink, Writer, WriterContext};
use tidegate::operator::source::{Generator, Read, Reader, ReaderContext, Source};
use tidegate::record::{Batch, Collector};
use tidegate::store;
use tidegate::stream::{Job, Stream};
use tidegate::worker::Step;

const RECORDS: u64 = 3_000;
const KEYS: u64 = 7;
type Update = (u64, u64);

/// Panics in operator "touchy" at the record that brings the fuse to zero; below zero it is out.
type Fuse = Arc<AtomicI64>;

fn burn(fuse: &Fuse) {
    if fuse.load(Ordering::Relaxed) > 0 && fuse.fetch_sub(1, Ordering::Relaxed) == 1 {
        panic!("the fuse has burnt");
    }
}

fn numbers(job: &Job) -> Stream<u64> {
    let make = |index, out: &mut Collector<u64>| out.push(index);
    job.source("numbers", Generator::new("numbers", RECORDS, make)).rate(200_000.0)
}

fn counted(stream: Stream<u64>) -> Stream<Update> {
    stream.key_by(|number| number % KEYS).fold("count", || 0_u64, |count, _| *count += 1)
}

fn job_with(fuse: &Fuse) -> (Graph, Collected<Update>) {
    let (job, fuse) = (Job::new("fused"), fuse.clone());
    let (sink, collected) = Collect::new();
    let touchy = numbers(&job).map("touchy", move |number| {
        burn(&fuse);
        number
    });
    counted(touchy).sink("out", sink);
    (job.build().expect("well formed"), collected)
}

/// For each key that occurs C times the counts 1 to C, each once.
#[track_caller]
fn assert_exact(mut found: Vec<Update>) {
    found.sort_unstable();
    let times = |key| (0..RECORDS).filter(|number| number % KEYS == key).count() as u64;
    let expected = (0..KEYS).flat_map(|key| (1..=times(key)).map(move |count| (key, count)));
    assert_eq!(found, expected.collect::<Vec<_>>());
}

fn restarts(told: &[Told]) -> usize {
    told.iter().filter(|told| matches!(told, Told::Restarting(_))).count()
}

fn end(run: &mut Run<'_>) -> Result<Box<Report>> {
    quietly(|| run.end())
}

#[test]
fn a_panic_is_reported_with_its_operator_task_and_message_and_is_final_without_snapshots() {
    let fuse: Fuse = Arc::new(AtomicI64::new(100));
    let (graph, collected) = job_with(&fuse);
    let mut run = Run::open(&graph, &Config::workers(2), &MemoryDisk::new(1));
    let error = end(&mut run).expect_err("it panicked");
    let Error::Panicked { operator, subtask, message } = &error else { panic!("{error}") };
    assert_eq!((&**operator, &**message), ("touchy", "the fuse has burnt"));
    assert!(*subtask < 2);
    assert_eq!(restarts(&run.told), 0);
    assert!(collected.take().is_empty(), "nothing is published of a job that failed");
}

/// The same on threads of their own, as `engine::run` starts them: the pool must neither hang nor
/// carry the panic on.
#[test]
fn a_panic_on_a_real_thread_ends_the_job_without_snapshots_and_restarts_it_with_them() {
    for driver in [Driver::Auto, Driver::Threads] {
        let run = |snapshots: Option<Snapshots>| {
            let (graph, collected) = job_with(&Arc::new(AtomicI64::new(1_000)));
            let config = Config { driver, snapshots, ..Config::workers(1) };
            let (handle, mut restarts) = (Handle::default(), 0);
            let report = run(&graph, &config, &handle, &mut |notice| {
                restarts += usize::from(matches!(notice, Notice::Restarting { .. }));
            });
            (report, restarts, collected)
        };
        let (report, restarts, collected) = run(None);
        let error = report.expect_err("it panicked");
        assert!(
            matches!(&error, Error::Panicked { operator, .. } if operator == "touchy"),
            "{error}"
        );
        assert!(error.to_string().contains("the fuse has burnt; mend the operator"), "{error}");
        assert!(restarts == 0 && collected.take().is_empty());

        let place = tempfile::tempdir().expect("a directory");
        let every = Snapshots::every(Duration::from_millis(1), place.path().join("snapshots"));
        let (report, restarts, collected) = run(Some(every));
        assert_eq!((report.expect("one panic is survived").end, restarts), (End::Complete, 1));
        assert_exact(collected.take());
    }
}

#[test]
fn a_panic_in_a_key_function_names_the_stream_and_in_a_fold_the_fold() {
    for in_key in [true, false] {
        let job = Job::new("keys");
        let (sink, _collected) = Collect::new();
        let keyed = numbers(&job).key_by(move |number| {
            assert!(!in_key || *number != 17, "no key");
            number % KEYS
        });
        keyed
            .fold("count", || 0_u64, move |_, number| assert!(in_key || number != 17, "no fold"))
            .sink("out", sink);
        let graph = job.build().expect("well formed");
        // With one task to send to, a sender has no use for keys.
        let mut run = Run::open(&graph, &Config::workers(2), &MemoryDisk::new(1));
        let error = end(&mut run).expect_err("it panicked").to_string();
        assert!(error.contains("'count"), "{error}");
        assert_eq!(error.contains("key of the stream from numbers"), in_key, "{error}");
    }
}

#[test]
fn after_a_panic_the_job_goes_on_from_its_last_snapshot_inside_the_process() {
    let fuse: Fuse = Arc::new(AtomicI64::new(2_000));
    let (graph, collected) = job_with(&fuse);
    let mut run = Run::open(&graph, &config(2), &MemoryDisk::new(1));
    let report = end(&mut run).expect("one panic is survived");
    assert_eq!((report.end, report.restarts), (End::Complete, 1));
    let before =
        run.told.iter().position(|told| matches!(told, Told::Restarting(_))).expect("it restarted");
    let Some(Told::Restored(id)) = run.told.get(before + 1) else { panic!("{:?}", run.told) };
    assert!(run.told[..before].contains(&Told::Completed(*id)), "the newest complete one");
    assert_exact(collected.take());
}

/// What had been due when a worker failed was due ever after, so the supervisor went round as fast as
/// it could, waking the workers each time, until the last of them had stopped.
#[test]
fn while_workers_stop_the_supervisor_wakes_them_once_and_waits() {
    let fuse: Fuse = Arc::new(AtomicI64::new(1));
    let (graph, _collected) = job_with(&fuse);
    let (disk, config): (Arc<dyn Disk>, _) = (Arc::new(MemoryDisk::new(1)), config(2));
    let opened = Supervisor::open(&graph, &config, disk, Handle::default(), &mut |_| {});
    let Ok(Opened::Ready(mut supervisor)) = opened else { panic!("it can be run") };
    let Turn::Start(mut workers) = supervisor.turn(0, &mut |_| {}) else { panic!("not started") };
    let waits = |turn| match turn {
        Turn::Wait { until_ns, told } => (until_ns.is_some(), told),
        Turn::Start(_) | Turn::Done(_) => panic!("a worker has not stopped yet"),
    };
    assert_eq!(waits(supervisor.turn(0, &mut |_| {})), (true, false), "a snapshot will be due");
    let stopped = |worker: usize, now_ns, workers: &mut Vec<_>| {
        let worker: &mut tidegate::worker::Worker = &mut workers[worker];
        quietly(|| worker.step(now_ns)) == Step::Stopped
    };
    let failed = (0..1_000).find_map(|now| (0..2).find(|&w| stopped(w, now, &mut workers)));
    let failed = failed.expect("the fuse burns");
    let late_ns = 1_000_000_000;
    assert_eq!(waits(supervisor.turn(late_ns, &mut |_| {})), (false, true), "told to stop");
    assert_eq!(waits(supervisor.turn(late_ns, &mut |_| {})), (false, false), "told before");
    assert!(stopped(1 - failed, late_ns, &mut workers), "as it was told");
    let turn = supervisor.turn(late_ns, &mut |_| {});
    assert!(matches!(turn, Turn::Wait { until_ns: Some(_), .. }), "a pause before the restart");
}

#[test]
fn a_job_that_fails_again_and_again_is_given_up_after_growing_pauses() {
    let fuse: Fuse = Arc::default();
    let (graph, _collected) = job_with(&fuse);
    let mut run = Run::open(&graph, &config(1), &MemoryDisk::new(1));
    let mut failed_ns = Vec::new();
    let error = quietly(|| {
        loop {
            fuse.store(1, Ordering::Relaxed);
            let before = restarts(&run.told);
            if !run.turn() {
                break run.end().expect_err("it fails each time");
            }
            if restarts(&run.told) > before {
                failed_ns.push(run.now_ns);
            }
        }
    });
    let Error::RestartsExhausted { failures, last } = &error else { panic!("{error}") };
    assert_eq!(*failures, 4, "three restarts");
    assert!(matches!(**last, Error::Panicked { .. }), "{last}");
    let pauses: Vec<u64> =
        failed_ns.windows(2).map(|pair| (pair[1] - pair[0]) / 1_000_000).collect();
    assert!(pauses.len() == 2 && pauses[0] >= 2 && pauses[1] >= 4, "{pauses:?} ms");
}

#[test]
fn a_committed_snapshot_between_two_failures_starts_the_count_anew() {
    let fuse: Fuse = Arc::default();
    let (graph, collected) = job_with(&fuse);
    let mut run = Run::open(&graph, &config(1), &MemoryDisk::new(1));
    quietly(|| {
        for failures in 1..=6 {
            // The second one shows that the first could be committed.
            run.until_completed(2);
            fuse.store(1, Ordering::Relaxed);
            run.until("a restart", |run| restarts(&run.told) == failures);
        }
    });
    assert_eq!(end(&mut run).expect("never more than one in a row").restarts, 6);
    assert_exact(collected.take());
}

/// Reads numbers and then says that the input is malformed.
struct Malformed;

impl Source for Malformed {
    type Item = u64;

    fn identity(&self, _context: &ReaderContext) -> Result<String> {
        Ok("malformed".into())
    }

    fn splits(&self) -> u32 {
        1
    }

    fn reader(
        &self,
        _: u32,
        offset: Option<u64>,
        _: &ReaderContext,
    ) -> Result<Box<dyn Reader<u64>>> {
        Ok(Box::new(MalformedReader(offset.unwrap_or(0))))
    }
}

struct MalformedReader(u64);

impl Reader<u64> for MalformedReader {
    fn read(&mut self, _max: usize, out: &mut Collector<u64>) -> Result<(Read, usize)> {
        if self.0 == 500 {
            return Err(Error::Input { name: "numbers".into(), reason: "500 is malformed".into() });
        }
        out.push(self.0);
        self.0 += 1;
        Ok((Read::More, 1))
    }

    fn offset(&self) -> u64 {
        self.0
    }
}

#[test]
fn what_would_fail_the_same_way_again_is_not_tried_again() {
    let job = Job::new("malformed");
    let (sink, _collected) = Collect::new();
    counted(job.source("numbers", Malformed).rate(200_000.0)).sink("out", sink);
    let graph = job.build().expect("well formed");
    let mut run = Run::open(&graph, &config(1), &MemoryDisk::new(1));
    let error = end(&mut run).expect_err("it is malformed");
    assert!(error.to_string().contains("500 is malformed") && !error.is_retryable(), "{error}");
    assert!(error.to_string().contains("operator 'numbers' (task 0)"), "{error}");
    assert_eq!(restarts(&run.told), 0, "{:?}", run.told);
    assert!(!run.completed().is_empty(), "though there were snapshots");
}

#[test]
fn a_stop_during_the_pause_before_a_restart_ends_the_job_at_once_and_it_can_go_on_later() {
    let fuse: Fuse = Arc::default();
    let (graph, collected) = job_with(&fuse);
    let disk = MemoryDisk::new(1);
    let mut config = config(1);
    config.restarts.backoff = Duration::from_secs(3_600);
    config.restarts.backoff_max = Duration::from_secs(3_600);
    let mut run = Run::open(&graph, &config, &disk);
    run.until_completed(2);
    fuse.store(1, Ordering::Relaxed);
    quietly(|| run.until("a failure", |run| restarts(&run.told) == 1));
    let paused_ns = run.now_ns;
    run.handle.stop();
    let report = end(&mut run).expect("it stops in order");
    assert_eq!(report.end, End::Stopped);
    assert!(run.now_ns - paused_ns < 1_000_000_000, "it did not wait for the hour");
    assert_eq!(end(&mut Run::open(&graph, &config, &disk)).expect("it goes on").end, End::Complete);
    assert_exact(collected.take());
}

/// A sink whose writers fail to commit while the fuse burns; what they hold is in the snapshot.
struct Brittle {
    inner: Collect<Update>,
    fuse: Fuse,
    only_last: bool,
}

struct BrittleWriter {
    inner: Box<dyn Writer<Update>>,
    fuse: Fuse,
    only_last: bool,
}

impl Sink for Brittle {
    type Item = Update;

    fn identity(&self) -> String {
        self.inner.identity()
    }

    fn recover(&self, handles: Option<&[Vec<u8>]>, disk: &dyn Disk) -> Result<()> {
        self.inner.recover(handles, disk)
    }

    fn writer(&self, context: &WriterContext) -> Result<Box<dyn Writer<Update>>> {
        let (inner, fuse) = (self.inner.writer(context)?, self.fuse.clone());
        Ok(Box::new(BrittleWriter { inner, fuse, only_last: self.only_last }))
    }
}

impl Writer<Update> for BrittleWriter {
    fn write(&mut self, records: &mut Batch<'_, Update>) -> Result<Flow> {
        self.inner.write(records)
    }

    fn prepare(&mut self, snapshot: SnapshotId) -> Result<Vec<u8>> {
        self.inner.prepare(snapshot)
    }

    fn commit(&mut self, snapshot: SnapshotId, last: bool) -> Result<()> {
        if (last || !self.only_last) && self.fuse.fetch_sub(1, Ordering::Relaxed) > 0 {
            return Err(Error::io("commit to", "elsewhere")(std::io::Error::other("refused")));
        }
        self.inner.commit(snapshot, last)
    }

    fn commit_all(&mut self) -> Result<()> {
        self.inner.commit_all()
    }
}

/// The sink failed to commit the job's last snapshot. The job was restarted from it, but the
/// coordinator still held that all was done: no snapshot was taken and the job never ended.
#[test]
fn a_sink_that_cannot_commit_the_last_snapshot_is_asked_again_after_a_restart() {
    for only_last in [true, false] {
        let job = Job::new("brittle");
        let (inner, collected) = Collect::new();
        let fuse: Fuse = Arc::new(AtomicI64::new(2));
        counted(numbers(&job)).sink("out", Brittle { inner, fuse, only_last });
        let graph = job.build().expect("well formed");
        let mut run = Run::open(&graph, &config(2), &MemoryDisk::new(1));
        let report = end(&mut run).expect("it can commit in the end");
        assert!(report.end == End::Complete && report.restarts >= 1, "{report:?}");
        assert_exact(collected.take());
    }
}

fn files_job() -> Graph {
    let job = Job::new("filed");
    let roll = Roll { bytes: 0, age: Duration::ZERO };
    let format = |(key, count): &Update, out: &mut Collector<u8>| {
        out.extend_from_slice(format!("{key} {count}\n").as_bytes());
    };
    counted(numbers(&job)).sink("out", Files::new("/out", roll, format));
    job.build().expect("well formed")
}

fn filed(disk: &MemoryDisk) -> Vec<Update> {
    let number = |text: &str| text.parse().expect("a number");
    let pair =
        |line: &String| line.split_once(' ').map(|(key, count)| (number(key), number(count)));
    lines(disk, "/out").iter().filter_map(pair).collect()
}

/// A file of the sink could not be opened for a moment. The barrier's data was dropped, its snapshot
/// failed, and the next one completed without the data.
#[test]
fn a_disk_that_fails_for_a_moment_costs_no_line_of_output() {
    for seed in 0..20 {
        let (graph, disk) = (files_job(), MemoryDisk::new(seed));
        let mut run = Run::open(&graph, &config(2), &disk);
        run.until_completed(1);
        for _ in 0..4 {
            let faults = Faults { sync_error: 3_000, write_error: 500, ..Faults::default() };
            disk.set_faults(faults);
            (0..15).for_each(|_| _ = run.turn());
            disk.set_faults(Faults::default());
            (0..100).for_each(|_| _ = run.turn());
        }
        end(&mut run).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_exact(filed(&disk));
    }
}

#[test]
fn on_a_full_disk_the_job_goes_on_and_with_room_again_its_snapshots_complete() {
    let fuse: Fuse = Arc::default();
    let (graph, collected) = job_with(&fuse);
    let disk = MemoryDisk::new(1);
    let mut run = Run::open(&graph, &config(1), &disk);
    run.until_completed(2);
    let last = *run.completed().last().expect("two of them");
    disk.set_faults(Faults { capacity_bytes: Some(1), ..Faults::default() });
    let read = run.handle.records();
    run.until("two failed snapshots", |run| {
        run.told.iter().filter(|told| matches!(told, Told::Aborted(..))).count() >= 2
    });
    let full =
        |told: &Told| matches!(told, Told::Aborted(_, reason) if reason.contains("No space"));
    assert!(run.told.iter().any(full), "it says why: {:?}", run.told);
    assert!(run.handle.records() > read, "the job goes on");
    assert_eq!((restarts(&run.told), run.completed().last()), (0, Some(&last)));
    disk.set_faults(Faults::default());
    run.until_completed(1);
    drop(run);
    let mut again = Run::open(&graph, &config(2), &disk);
    end(&mut again).expect("it goes on from there");
    assert_exact(collected.take());
}

/// There was no room to put the newest aside, which could not be read. The job went on, took back what
/// the newest lists, and the next start found the newest readable again.
#[test]
fn a_snapshot_that_cannot_be_put_aside_is_not_gone_back_behind() {
    let directory = Path::new("/snapshots");
    let (mut refused, mut went_on) = (0, 0);
    for room in (0..200).map(|step| step * 512) {
        let (graph, disk) = (files_job(), MemoryDisk::new(1));
        let mut run = Run::open(&graph, &config(1), &disk);
        run.until_completed(5);
        let newest = *run.completed().last().expect("five of them");
        drop(run);
        let infos = store::list(&disk, directory).expect("a snapshot directory");
        let slot = infos.iter().find(|info| info.snapshot == Some(newest)).expect("the newest");
        let path = directory.join(&slot.file);
        let whole = disk.read(&path).expect("the newest");
        let damage = |byte: u8| {
            disk.open(&path).expect("the newest").write_all_at(&[byte], 60).expect("a write");
        };
        damage(!whole[60]);
        let capacity_bytes = Some(bytes_on(&disk) + room);
        disk.set_faults(Faults { capacity_bytes, ..Faults::default() });
        let (config, on) = (config(1), Arc::new(disk.clone()));
        match Stepper::open(&graph, &config, on, Handle::default(), &mut |_| {}) {
            Ok(Stepping::Ready(mut stepper)) => {
                _ = stepper.supervise(0, &mut |_| {});
                went_on += 1;
            }
            Ok(Stepping::Complete(_)) => panic!("it is not complete"),
            Err(error) => {
                assert!(error.to_string().contains("No space"), "{error}");
                refused += 1;
            }
        }
        disk.set_faults(Faults::default());
        if disk.read(&path).expect("the newest")[..60] == whole[..60] {
            damage(whole[60]); // it was not put aside, and can be read again
        }
        end(&mut Run::open(&graph, &self::config(2), &disk)).expect("it goes on");
        assert_exact(filed(&disk));
        if went_on == 3 {
            break;
        }
    }
    assert!(refused > 5 && went_on == 3, "{refused} {went_on}");
}

/// How long all files together are.
fn bytes_on(disk: &MemoryDisk) -> u64 {
    let of = |directory: &Path| {
        let names = disk.list(directory).expect("a directory");
        names.iter().map(|name| disk.len(&directory.join(name)).unwrap_or(0)).sum::<u64>()
    };
    of(Path::new("/snapshots")) + of(Path::new("/out"))
}

/// The newest snapshot could not be read for a moment, so the one before was restored and the newer
/// output taken back. Before a new snapshot was complete the process died, the newest was readable
/// again, and what it listed was gone: no start could ever succeed again.
#[test]
fn a_snapshot_that_was_passed_over_once_does_not_come_back() {
    let (graph, disk) = (files_job(), MemoryDisk::new(1));
    let mut run = Run::open(&graph, &config(1), &disk);
    run.until_completed(5);
    let newest = *run.completed().last().expect("five of them");
    drop(run);
    let directory = Path::new("/snapshots");
    let infos = store::list(&disk, directory).expect("a snapshot directory");
    let slot = infos.iter().find(|info| info.snapshot == Some(newest)).expect("the newest");
    let name = format!("/snapshots/{}", slot.file);
    let whole = disk.read(name.as_ref()).expect("the newest");
    let damage = |disk: &MemoryDisk, name: &str, byte: u8| {
        disk.open(name.as_ref()).expect("the newest").write_all_at(&[byte], 60).expect("a write");
    };
    damage(&disk, &name, !whole[60]);
    let mut run = Run::open(&graph, &config(1), &disk);
    let told = |index: usize, needle: &str| matches!(&run.told[index], Told::Warning(text) if text.contains(needle));
    assert!(told(0, "a manifest cannot be read"), "{:?}", run.told);
    assert!(told(1, &format!("goes on from snapshot {} instead", newest - 1)), "{:?}", run.told);
    assert!(told(1, ".passed-over"), "{:?}", run.told);
    run.supervise();
    drop(run);
    let names = disk.list(directory).expect("a snapshot directory");
    let aside = names.iter().find(|name| name.ends_with(".passed-over")).expect("evidence");
    damage(&disk, &format!("/snapshots/{aside}"), whole[60]);
    end(&mut Run::open(&graph, &config(2), &disk)).expect("it goes on");
    assert_exact(filed(&disk));
}

/// With `failures_max` 0 a damaged page ended the process, and each one started after it.
#[test]
fn a_damaged_page_of_the_newest_snapshot_is_gone_behind_whatever_the_policy_on_failures() {
    let (mut went_back, mut lost) = (0, 0);
    for block in 0..60 {
        let (graph, disk) = (files_job(), MemoryDisk::new(1));
        let mut run = Run::open(&graph, &config(1), &disk);
        run.until_completed(5);
        drop(run);
        let directory = Path::new("/snapshots");
        let names = disk.list(directory).expect("a directory");
        for name in names.iter().filter(|name| name.starts_with("segment-")) {
            let path = directory.join(name);
            let (whole, at) = (disk.read(&path).expect("a segment"), block * 4096 + 65);
            if let Some(byte) = whole.get(at) {
                let file = disk.open(&path).expect("a segment");
                file.write_all_at(&[!byte], at as u64).expect("a write");
            }
        }
        let mut config = config(1);
        config.restarts.failures_max = 0;
        let Ok(mut run) = Run::try_open(&graph, &config, &disk) else {
            lost += 1;
            continue;
        };
        match run.end() {
            Ok(_) => {
                assert_exact(filed(&disk));
                went_back += restarts(&run.told);
            }
            Err(Error::RestartsExhausted { last, .. }) => panic!("block {block}: {last}"),
            Err(error) => {
                assert!(matches!(error, Error::NothingToRestore { .. }), "{error}");
                lost += 1;
            }
        }
    }
    assert!(went_back > 0 && lost < 30, "{went_back} went back, {lost} lost");
}
