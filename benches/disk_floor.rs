//! What the disk requests of snapshots cost two busy processors, without any engine.
//!
//! `cargo bench --bench disk_floor -- [--hz N] [--ms M] [--rounds R]`: one thread counts on each of two
//! cores while a third does, N times a second, what a snapshot with small state asks of the disk: two
//! writes of 80 KiB and one of 4, past the page cache into blocks that exist, with as many flushes as the
//! case says. Printed are the share of its rate that counting keeps (of the same round without requests; median,
//! least and most of the rounds), and how long the requests took. `TIDEGATE_BENCH_DIR` names the directory. What was written is read back. Without
//! arguments (and under `cargo test --benches`) it runs small.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock and starts threads")]

use std::hint::black_box;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tidegate::disk::{Buffer, Disk, FileHandle, ThreadDisk};

const PART_BYTES: usize = 80 << 10;
const MANIFEST_BYTES: usize = 4 << 10;
/// Name, whether there are requests, and which of the three are flushed.
const CASES: [(&str, bool, [bool; 3]); 4] = [
    ("no requests", false, [false; 3]),
    ("3 flushes", true, [true; 3]),
    ("1 flush", true, [false, false, true]),
    ("no flush", true, [false; 3]),
];

/// `--name value` among the arguments.
fn number(name: &str, default: u64) -> u64 {
    let arguments: Vec<String> = std::env::args().collect();
    let at = arguments.iter().position(|argument| argument == name);
    at.map_or(default, |at| arguments[at + 1].parse().expect("a number"))
}

fn count_on(core: core_affinity::CoreId, counted: &AtomicU64, stop: &AtomicBool) {
    core_affinity::set_for_current(core);
    while !stop.load(Ordering::Relaxed) {
        let turns = (0..10_000_u64).fold(0, |sum, n| black_box(sum ^ n));
        counted.fetch_add(1 + black_box(turns) / u64::MAX, Ordering::Relaxed);
    }
}

/// The three files of a directory, with blocks that exist.
fn files(disk: &dyn Disk, directory: &Path) -> Vec<(FileHandle, Buffer)> {
    let sizes = [PART_BYTES, PART_BYTES, MANIFEST_BYTES];
    let make = |(index, bytes): (usize, usize)| {
        let path = directory.join(format!("file-{index}"));
        disk.create_new(&path).expect("a new file");
        let file = disk.open_direct(&path).expect("a file");
        let mut buffer = Buffer::with_capacity(bytes);
        buffer.resize(bytes, index as u8 + 1);
        file.write_all_at(&buffer, 0).expect("a write");
        file.sync_data().expect("a sync");
        (file, buffer)
    };
    sizes.into_iter().enumerate().map(make).collect()
}

fn main() {
    let small = !std::env::args().any(|argument| argument == "--bench");
    let (hz, rounds) = (number("--hz", 100), number("--rounds", if small { 1 } else { 20 }));
    let time = Duration::from_millis(number("--ms", if small { 100 } else { 500 }));
    let under = std::env::var_os("TIDEGATE_BENCH_DIR");
    let under = under.unwrap_or_else(|| std::env::temp_dir().into());
    let directory = tempfile::tempdir_in(under).expect("a temporary directory");
    let disk = ThreadDisk::new();
    let mut files = files(&disk, directory.path());
    let cores = core_affinity::get_core_ids().expect("cores");
    let (counted, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    println!("{hz} times a second, {time:?} each, {rounds} rounds");
    let mut found = [const { Vec::new() }; CASES.len()];
    std::thread::scope(|scope| {
        cores.iter().take(2).for_each(|core| _ = scope.spawn(|| count_on(*core, &counted, &stop)));
        for _ in 0..rounds {
            let mut base = 0.0;
            for (found, (_, has_requests, flushes)) in found.iter_mut().zip(CASES) {
                let (began, before) = (Instant::now(), counted.load(Ordering::Relaxed));
                let (mut times, mut busy) = (0_u32, Duration::ZERO);
                while began.elapsed() < time {
                    let asked = Instant::now();
                    for ((file, buffer), flush) in files.iter_mut().zip(flushes) {
                        if has_requests {
                            buffer[0] = times as u8;
                            file.write_all_at(buffer, 0).expect("a write");
                        }
                        if flush {
                            file.sync_data().expect("a sync");
                        }
                    }
                    times += 1;
                    busy += asked.elapsed();
                    let due = Duration::from_secs_f64(f64::from(times) / hz as f64);
                    std::thread::sleep(due.saturating_sub(began.elapsed()));
                }
                let done = counted.load(Ordering::Relaxed) - before;
                let rate = done as f64 / began.elapsed().as_secs_f64();
                base = if has_requests { base } else { rate };
                let took_ms = busy.as_secs_f64() * 1e3 / f64::from(times);
                found.push((rate / base, took_ms));
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    for ((name, ..), mut found) in CASES.into_iter().zip(found) {
        found.sort_by(|(one, _), (other, _)| f64::total_cmp(one, other));
        let (share, took_ms): (f64, f64) = found[found.len() / 2];
        let (least, most) = (found[0].0, found[found.len() - 1].0);
        println!(
            "  {name:<12} {share:.3} ({least:.3}-{most:.3}) of its rate, {took_ms:.2} ms each"
        );
    }
    for (index, (_, expected)) in files.iter().enumerate() {
        let found = disk.read(&directory.path().join(format!("file-{index}"))).expect("a file");
        assert_eq!(found[..], expected[..], "file {index}");
    }
}
