//! The paper's workload: the engine against a hand-written loop over the same rings and tables.
//!
//! `cargo bench --bench paper -- [--records N] [--keys K] [--parallelism P] [--rounds R]
//! [--interval MS]` runs both in turn, R times, checks every checksum against the closed form, and
//! prints records per second and the ratio engine / loop of each round. With an interval the
//! second contestant is the engine without snapshots instead of the loop. Without arguments (and
//! under `cargo test --benches`) it runs small.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidegate::channel::{Consumer, Polled, Producer, channel};
use tidegate::clock;
use tidegate::config::{Config, Snapshots};
use tidegate::engine::{self, Handle};
use tidegate::id::KeyGroup;
use tidegate::jobs;
use tidegate::key::Key;
use tidegate::record::Control;
use tidegate::state::KeyedTable;
use tidegate::workload::paper::{checksum_term, expected_checksum, key, key2, key3, value};

const BATCH: usize = 512;
const CHUNK: usize = 128;

type Pair = (u64, u64);
type Triple = (u64, u64, u64);

/// The rings of one shuffle as one thread sees them.
struct Shuffle<T: Send> {
    out: Vec<Producer<T>>,
    inputs: Vec<Consumer<T>>,
    ended: usize,
}

/// All rings of one shuffle, by thread.
fn shuffles<T: Send>(threads: usize, slots: usize) -> Vec<Shuffle<T>> {
    let mut all: Vec<Shuffle<T>> =
        (0..threads).map(|_| Shuffle { out: vec![], inputs: vec![], ended: 0 }).collect();
    for from in 0..threads {
        for to in 0..threads {
            let (producer, consumer) = channel(slots);
            all[from].out.push(producer);
            all[to].inputs.push(consumer);
        }
    }
    all
}

impl<T: Send> Shuffle<T> {
    fn room(&mut self) -> usize {
        self.out.iter_mut().map(|producer| producer.room(BATCH)).min().unwrap_or(0).min(BATCH)
    }

    #[inline]
    fn send(&mut self, key: u64, record: T) {
        let owner = KeyGroup::of_hash(key.key_hash()).owner(self.out.len());
        self.out[owner].push(record);
    }

    fn publish(&mut self) {
        self.out.iter_mut().for_each(|producer| _ = producer.publish());
    }

    fn end(&mut self) {
        self.out.iter_mut().for_each(|producer| producer.control(Control::End).expect("has room"));
    }
}

/// Reads every input of `from`, updates `table`, and sends what `update` makes of it.
fn stage<T: Copy + Send, V: tidegate::record::Data, U: Send>(
    from: &mut Shuffle<T>,
    table: &mut KeyedTable<u64, V>,
    mut to: Option<&mut Shuffle<U>>,
    key: impl Fn(&T) -> u64,
    init: impl Fn() -> V,
    mut update: impl FnMut(u64, &mut V, T) -> (u64, U),
) -> bool {
    let mut worked = false;
    let mut hashes = [0; CHUNK];
    for input in 0..from.inputs.len() {
        let room = to.as_mut().map_or(BATCH, |to| to.room());
        if room == 0 {
            return worked;
        }
        match from.inputs[input].poll(room) {
            Polled::Records(mut records) => {
                worked = true;
                let mut drain = records.drain(room);
                while drain.len() > 0 {
                    let count = drain.len().min(CHUNK);
                    for (hash, record) in hashes.iter_mut().zip(&drain.as_slice()[..count]) {
                        *hash = key(record).key_hash();
                        table.prefetch(*hash);
                    }
                    for (hash, record) in hashes[..count].iter().zip(&mut drain) {
                        let key = key(&record);
                        let (key, made) = update(key, table.upsert(*hash, &key, &init), record);
                        if let Some(to) = &mut to {
                            to.send(key, made);
                        }
                    }
                }
            }
            Polled::Control(_) => from.ended += 1,
            Polled::Empty | Polled::Closed => {}
        }
    }
    if let Some(to) = to {
        to.publish();
    }
    worked
}

fn thread(
    (mut next, end): (u64, u64),
    keys: u64,
    groups: std::ops::Range<u32>,
    (mut first, mut second, mut third): (Shuffle<Pair>, Shuffle<Pair>, Shuffle<Triple>),
) -> u64 {
    let threads = first.out.len();
    let mut sums = KeyedTable::<u64, u64>::new(groups.clone());
    let mut counts = KeyedTable::<u64, Pair>::new(groups.clone());
    let mut totals = KeyedTable::<u64, u64>::new(groups);
    let mut checksum = 0_u64;
    let (mut sent, mut summed, mut counted) = (false, false, false);
    while third.ended < threads {
        let mut worked = false;
        for _ in 0..4 {
            let room = (first.room() as u64).min(end - next);
            for index in next..next + room {
                let key = key(index, keys);
                first.send(key, (key, value(key)));
            }
            next += room;
            first.publish();
            worked |= room > 0;
        }
        if next == end && !sent {
            first.end();
            sent = true;
        }
        for _ in 0..4 {
            worked |= stage(
                &mut first,
                &mut sums,
                Some(&mut second),
                |r| r.0,
                || 0,
                |key, sum, r| {
                    *sum += r.1;
                    (key2(key), (key2(key), *sum))
                },
            );
        }
        if first.ended == threads && !summed {
            second.end();
            summed = true;
        }
        for _ in 0..4 {
            worked |= stage(
                &mut second,
                &mut counts,
                Some(&mut third),
                |r| r.0,
                || (0, 0),
                |key, v, r| {
                    v.0 += 1;
                    v.1 = v.1.max(r.1);
                    (key3(key), (key3(key), v.0, v.1))
                },
            );
        }
        if second.ended == threads && !counted {
            third.end();
            counted = true;
        }
        for _ in 0..4 {
            let none: Option<&mut Shuffle<()>> = None;
            worked |= stage(
                &mut third,
                &mut totals,
                none,
                |r| r.0,
                || 0,
                |key, total, r| {
                    *total = total.wrapping_add(r.1).wrapping_add(r.2);
                    checksum = checksum.wrapping_add(checksum_term(key, *total));
                    (0, ())
                },
            );
        }
        if !worked {
            std::hint::spin_loop();
        }
    }
    checksum
}

/// Seconds and checksum of the hand-written loop.
fn hand_written(records: u64, keys: u64, threads: usize, slots: usize) -> (f64, u64) {
    let (first, second) = (shuffles(threads, slots), shuffles(threads, slots));
    let third = shuffles(threads, slots);
    let checksum = Arc::new(AtomicU64::new(0));
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let began = clock::now_ns();
    std::thread::scope(|scope| {
        for (w, ((a, b), c)) in first.into_iter().zip(second).zip(third).enumerate() {
            let (checksum, core) = (checksum.clone(), cores.get(w).copied());
            scope.spawn(move || {
                core.map(core_affinity::set_for_current);
                let range = (records * w as u64 / threads as u64)
                    ..(records * (w as u64 + 1) / threads as u64);
                let groups = KeyGroup::owned_by(w, threads);
                let sum = thread((range.start, range.end), keys, groups, (a, b, c));
                checksum.fetch_add(sum, Ordering::Relaxed);
            });
        }
    });
    ((clock::now_ns() - began) as f64 / 1e9, checksum.load(Ordering::Relaxed))
}

/// Seconds, checksum and the share of asked snapshots that was completed.
fn engine(
    records: u64,
    keys: u64,
    config: &Config,
    interval: Option<Duration>,
) -> (f64, u64, Option<f64>) {
    let (graph, checksum) = jobs::paper::job(records, keys).expect("the job is well formed");
    let directory = interval.map(|_| tempfile::tempdir().expect("a temporary directory"));
    let mut config = config.clone();
    if let (Some(interval), Some(directory)) = (interval, &directory) {
        config = config.with_snapshots(Snapshots::every(interval, directory.path()));
    }
    let report = engine::run(&graph, &config, &Handle::default(), &mut |_| {}).expect("it runs");
    let cadence = report.cadence;
    let share = interval.map(|_| cadence.completed as f64 / (cadence.asked + 2) as f64);
    (report.elapsed.as_secs_f64(), checksum.sum(), share)
}

/// CPU seconds of this process: what is left to compare on a busy machine, with one thread.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("this is Linux");
    let behind_name = stat.rsplit(')').next().expect("a name in brackets");
    let field = |n: usize| behind_name.split_whitespace().nth(n).and_then(|f| f.parse().ok());
    // User and system time, in ticks of 10 ms.
    let ticks: f64 = field(11).unwrap_or(0.0) + field(12).unwrap_or(0.0);
    ticks / 100.0
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let given = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        Some(arguments[at + 1].parse::<u64>().unwrap_or_else(|_| panic!("{name} takes a number")))
    };
    let cores = core_affinity::get_core_ids().map_or(1, |cores| cores.len());
    let records = given("--records").unwrap_or(200_000);
    let keys = given("--keys").unwrap_or(1_000);
    let parallelism = given("--parallelism").map_or(cores.min(2), |p| p as usize);
    let rounds = given("--rounds").unwrap_or(1);
    let interval = given("--interval").map(Duration::from_millis);
    let mut config = Config::workers(parallelism);
    config.ring_slots = given("--ring-slots").map_or(config.ring_slots, |slots| slots as usize);
    if let Some(us) = given("--give-way") {
        config.idle.give_way = std::time::Duration::from_micros(us);
    }
    let expected = expected_checksum(records, keys);
    let mut columns: [Vec<f64>; 3] = Default::default();
    for round in 1..=rounds {
        let began = cpu_seconds();
        let (ours, sum, share) = engine(records, keys, &config, interval);
        let middle = cpu_seconds();
        assert_eq!(sum, expected, "the engine's checksum");
        let (theirs, sum) = match interval {
            None => hand_written(records, keys, parallelism, config.ring_slots),
            Some(_) => {
                let (seconds, sum, _) = engine(records, keys, &config, None);
                (seconds, sum)
            }
        };
        let cpu = (cpu_seconds() - middle) / (middle - began);
        assert_eq!(sum, expected, "the other's checksum");
        let rate = |seconds: f64| records as f64 / seconds / 1e6;
        let row = [rate(ours), rate(theirs), theirs / ours];
        let share = share.map_or(String::new(), |share| format!("  snapshots {share:.3}"));
        println!(
            "round {round}: {:7.2} {:7.2} M/s  ratio {:.3}  cpu {cpu:.3}{share}",
            row[0], row[1], row[2]
        );
        columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
    }
    let [ours, theirs, ratio] = &mut columns;
    println!(
        "records {records} keys {keys} parallelism {parallelism}: median {:.2} M/s against {:.2}, \
         ratio {:.3} ({:.3} to {:.3})",
        median(ours),
        median(theirs),
        median(ratio),
        ratio[0],
        ratio[ratio.len() - 1],
    );
}
