//! What a long alignment does: senders run on with spilling, stand still without, and a disk that
//! fails is said and costs no record.

mod common;

use std::time::Duration;

use common::run::{Run, Told, config};
use tidegate::config::{Config, Snapshots};
use tidegate::disk::{Disk as _, Faults, MemoryDisk};
use tidegate::error::Error;
use tidegate::graph::Graph;
use tidegate::operator::sink::{Collect, Collected};
use tidegate::operator::source::Generator;
use tidegate::record::Collector;
use tidegate::stream::Job;

const RECORDS: u64 = 40_000;

/// ```text
/// near (0) -----------------------> join (0), all on worker 0
/// far (0) -> detour (0), detour (1) -> join (0)      detour (1) on worker 1, which the test stops
/// ```
fn job() -> (Graph, Collected<u64>) {
    let job = Job::new("detour");
    let make = |index, out: &mut Collector<u64>| out.push(index);
    let near = job.source("near", Generator::new("near", RECORDS, make)).parallelism(1);
    let far = job.source("far", Generator::new("far", 100, make)).parallelism(1);
    let detour = far.rebalance().map("detour", |n| n + RECORDS).parallelism(2);
    let (sink, out) = Collect::new();
    near.union(detour).map("join", |n| n).parallelism(1).sink("out", sink);
    let mut graph = job.build().expect("a job");
    graph.operators.last_mut().expect("the sink").parallelism = Some(1);
    (graph, out)
}

fn with_memory(bytes: usize) -> Config {
    let mut config = config(2);
    config.spill.memory_bytes = bytes;
    config
}

/// Stops worker 1 for `steps` steps of worker 0 in the middle of an alignment. How much was read
/// meanwhile.
fn hold(run: &mut Run<'_>, steps: u64) -> u64 {
    run.until_completed(1);
    let before = run.handle.records();
    for _ in 0..steps {
        run.supervise();
        run.step(0);
    }
    run.handle.records() - before
}

fn assert_exact(out: &Collected<u64>) {
    let mut numbers = out.take();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..RECORDS + 100).collect::<Vec<_>>());
}

#[test]
fn with_spilling_a_blocked_sender_runs_on_and_every_record_comes_back_in_order() {
    let (graph, out) = job();
    let mut run = Run::open(&graph, &with_memory(8 << 10), &MemoryDisk::new(1));
    let read = hold(&mut run, 20_000);
    assert!(read > RECORDS / 2, "only {read} were read while the input was blocked");
    let report = run.end().expect("it completes");
    assert!(report.inputs.spilled.records > RECORDS / 4, "{:?}", report.inputs);
    let numbers = out.take();
    let near: Vec<u64> = numbers.iter().copied().filter(|n| *n < RECORDS).collect();
    assert!(near.is_sorted() && near.len() == RECORDS as usize, "{} came", near.len());
    assert_eq!(numbers.len() as u64, RECORDS + 100);
}

#[test]
fn without_spilling_it_feels_backpressure() {
    let (graph, out) = job();
    let mut config = with_memory(8 << 10);
    config.spill.blocked = false;
    let mut run = Run::open(&graph, &config, &MemoryDisk::new(1));
    let read = hold(&mut run, 20_000);
    assert!(read < 2_000, "{read} were read");
    let report = run.end().expect("it completes");
    assert_eq!(report.inputs.spilled.records, 0);
    assert_exact(&out);
}

#[test]
fn a_budget_that_is_used_up_is_backpressure() {
    let (graph, out) = job();
    let mut config = with_memory(8 << 10);
    config.spill.disk_bytes = 64 << 10;
    let mut run = Run::open(&graph, &config, &MemoryDisk::new(1));
    let read = hold(&mut run, 20_000);
    assert!((2_000..RECORDS / 2).contains(&read), "{read} were read");
    run.end().expect("it completes");
    assert_exact(&out);
}

/// Faults while records are spilled and read back; the disk is mended after the job has said so.
fn with_faults(faults: Faults, said: &str) {
    let (graph, out) = job();
    let disk = MemoryDisk::new(7);
    let mut run = Run::open(&graph, &with_memory(8 << 10), &disk);
    run.until_completed(1);
    disk.set_faults(faults);
    let restarting = |told: &Told| matches!(told, Told::Restarting(why) if why.contains(said));
    for _ in 0..2_000 {
        run.supervise();
        run.step(0);
    }
    // The supervisor says so when every worker has stopped.
    run.until("a failure", |run| run.told.iter().any(restarting));
    disk.set_faults(Faults::default());
    run.end().expect("it goes on from its snapshot");
    assert_exact(&out);
}

#[test]
fn a_disk_that_fails_while_records_are_spilled_is_an_error_that_names_the_file() {
    with_faults(Faults { write_error: 10_000, ..Faults::default() }, ".spill");
}

#[test]
fn a_full_disk_is_one_too() {
    with_faults(Faults { capacity_bytes: Some(0), ..Faults::default() }, ".spill");
}

#[test]
fn a_spill_directory_is_tried_out_before_it_is_needed_and_has_one_user() {
    let (graph, out) = job();
    let disk = MemoryDisk::new(1);
    disk.create_new("/file".as_ref()).expect("an empty disk");
    let mut config = with_memory(8 << 10);
    config.spill.directory = Some("/file/below".into());
    let mut run = Run::open(&graph, &config, &disk);
    let error = run.end().expect_err("there is no such directory");
    assert!(matches!(error, Error::Config { .. }), "{error}");
    assert!(error.to_string().contains("/file/below"), "{error}");

    config.spill.directory = Some("/spill".into());
    let mut first = Run::open(&graph, &config, &disk);
    first.until_completed(1);
    let mut other = config.clone();
    other.snapshots = Some(Snapshots::every(Duration::from_millis(1), "/other"));
    let error = Run::open(&graph, &other, &disk).end().expect_err("it is in use");
    assert!(error.to_string().contains("another running process"), "{error}");
    first.end().expect("the first one goes on");
    assert_exact(&out);
    let left = disk.list("/spill".as_ref()).expect("it is there");
    assert_eq!(left, ["LOCK"], "nothing is left behind");
}
