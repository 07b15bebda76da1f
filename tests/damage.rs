//! A page that turns out to be damaged only when it is read, long after the job has gone on.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use common::quiet::quietly;
use common::run::{Run, Told, config, lines};
use tidegate::config::{Config, Snapshots};
use tidegate::disk::{Disk, Faults, MemoryDisk};
use tidegate::engine::End;
use tidegate::graph::Graph;
use tidegate::operator::sink::{Collect, Files, Roll};
use tidegate::operator::source::Generator;
use tidegate::record::Collector;
use tidegate::stream::Job;

const RECORDS: u64 = 180_000;
const KEYS: u64 = 60_000;
/// A value, so that all of them are some 8 MB and a step loads a thirtieth.
type Padded = [u64; 16];

/// Counts numbers by key, so many a second.
fn job(per_second: f64) -> Graph {
    let job = Job::new("padded");
    let make = |index, out: &mut Collector<u64>| out.push(index);
    let numbers = job.source("numbers", Generator::new("numbers", RECORDS, make)).rate(per_second);
    let roll = Roll { bytes: 0, age: Duration::ZERO };
    let format = |(key, count): &(u64, Padded), out: &mut Collector<u8>| {
        out.extend_from_slice(format!("{key} {}\n", count[0]).as_bytes());
    };
    numbers
        .key_by(|number| number % KEYS)
        .fold("count", || [0; 16], |count: &mut Padded, _| count[0] += 1)
        .sink("out", Files::new("/out", roll, format));
    job.build().expect("well formed")
}

fn every(interval: Duration) -> Config {
    Config { snapshots: Some(Snapshots::every(interval, "/snapshots")), ..config(1) }
}

/// All segments as they are.
fn segments(disk: &MemoryDisk) -> BTreeMap<String, Vec<u8>> {
    let directory = Path::new("/snapshots");
    let mut names = disk.list(directory).expect("a directory");
    names.retain(|name| name.starts_with("segment-"));
    let read = |name: String| {
        let bytes = disk.read(&directory.join(&name)).expect("a segment");
        (name, bytes)
    };
    names.into_iter().map(read).collect()
}

/// Damages a page that the newest snapshot has, and the one before had otherwise: the first of what was
/// written behind `before`.
fn damage(disk: &MemoryDisk, before: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in segments(disk) {
        let old = before.get(&name).map_or(&[][..], |old| old);
        let is_new = |at: &usize| old.get(*at).copied().unwrap_or(0) != bytes[*at];
        if let Some(at) = (0..bytes.len()).find(is_new) {
            let path = Path::new("/snapshots").join(name);
            let file = disk.open(&path).expect("a segment");
            file.write_all_at(&[!bytes[at]], at as u64).expect("a write");
            return;
        }
    }
    panic!("nothing was written");
}

/// While state was being loaded, snapshots that referred to pages still unread took the place of all
/// that were whole: a damaged page that was found then was the end of the job.
#[test]
fn snapshots_from_before_a_restore_stay_until_all_of_it_was_read() {
    let (fast, disk) = (job(1e8), MemoryDisk::new(1));
    let mut run = Run::open(&fast, &every(Duration::from_millis(5)), &disk);
    run.until("all keys", |run| run.handle.records() > KEYS + 1_000);
    run.until_completed(2);
    let (before, whole) = (segments(&disk), run.completed().pop());
    run.until_completed(1);
    drop(run);
    damage(&disk, &before);

    let slow = job(1_000.0);
    let mut taken_while_loading = 0;
    // The second process ends before it has read all.
    for turns in [8, 10_000] {
        let mut run = Run::open(&slow, &every(Duration::from_millis(1)), &disk);
        for _ in 0..turns {
            quietly(|| run.turn());
            run.now_ns += 1_000_000;
            if run.told.iter().any(|told| matches!(told, Told::Restarting(_))) {
                break;
            }
        }
        taken_while_loading += run.completed().len();
    }
    assert!(
        taken_while_loading > 12,
        "{taken_while_loading} snapshots; few enough to keep them all"
    );
    let mut run = Run::open(&fast, &every(Duration::from_millis(5)), &disk);
    let report = quietly(|| run.end()).expect("there is one to go back to");
    assert_eq!(report.end, End::Complete);
    let restored = |told: &Told| if let Told::Restored(id) = told { Some(*id) } else { None };
    assert_eq!(run.told.iter().filter_map(restored).next_back(), whole, "{:?}", run.told);

    let mut found: Vec<String> = lines(&disk, "/out");
    found.sort_unstable();
    let counts = |key| (1..=RECORDS / KEYS).map(move |count| format!("{key} {count}"));
    let mut expected: Vec<String> = (0..KEYS).flat_map(counts).collect();
    expected.sort_unstable();
    assert!(found == expected, "{} lines of {}", found.len(), expected.len());
}

/// With another parallelism a page may be of two tasks, which read it before they begin: that it could not be
/// read was no damage, and the job was given up with a snapshot to go back to.
#[test]
fn a_page_of_two_tasks_that_cannot_be_read_is_damage_like_any_other() {
    const FEW: u64 = 50;
    let (job, disk) = (Job::new("few"), MemoryDisk::new(1));
    let make = |index, out: &mut Collector<u64>| out.push(index);
    let numbers = job.source("numbers", Generator::new("numbers", RECORDS, make)).rate(1e8);
    // A sink that reads nothing when the job is restored.
    let (sink, found) = Collect::new();
    let counts = numbers.key_by(|number| number % FEW);
    counts.fold("count", || 0_u64, |count, _| *count += 1).sink("out", sink);
    let graph = job.build().expect("well formed");
    let mut run = Run::open(&graph, &every(Duration::from_millis(1)), &disk);
    run.until_completed(2);
    drop(run);
    let mut three = Config { workers: 3, ..every(Duration::from_millis(1)) };
    three.restarts.failures_max = 0;
    let mut run = Run::open(&graph, &three, &disk);
    disk.set_faults(Faults { read_error: 10_000, ..Faults::default() });
    quietly(|| run.turn());
    disk.set_faults(Faults::default());
    let restarting =
        |told: &Told| matches!(told, Told::Restarting(why) if why.contains("segment-"));
    assert!(run.told.iter().any(restarting), "{:?} {:?}", run.told, run.ended);
    let report = quietly(|| run.end()).expect("it is tried again, whatever the policy on failures");
    assert_eq!(report.end, End::Complete);
    let mut found = found.take();
    found.sort_unstable();
    let counts = |key| (1..=RECORDS / FEW).map(move |count| (key, count));
    assert!(found.into_iter().eq((0..FEW).flat_map(counts)));
}
