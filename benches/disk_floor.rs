//! What the disk requests of snapshots cost two busy processors, without any engine.
//!
//! `cargo bench --bench disk_floor -- [--rounds R] [--ms M]`: one thread counts on each of two cores while
//! a third asks of the disk what snapshots do, as often: two parts past the page cache into blocks that
//! exist, in chunks, each part flushed; then 4 KiB more and a flush, while the parts of the next one may be on
//! their way. Printed are
//! - the share of its rate that counting keeps, of that of the same round without requests (median, least and
//!   most of the rounds): who asks the same in the same way has no more left. What the third thread itself costs
//!   is in it, and is seen alone with `TIDEGATE_BENCH_DIR=/dev/shm`. *Together* the two wait for each other as
//!   workers do that exchange records: neither gets further ahead than a ring holds, so what a request takes of
//!   one processor the other loses too, unless it is soon made good;
//! - how many were done of those asked for, how long one took, and how long its last write and flush;
//! - how late the ticks of a thread of the highest ordinary priority were that has nothing to do: what comes
//!   while its processor does something else is handled no sooner. Once more without counting: that is the
//!   machine alone.
//!
//! `TIDEGATE_BENCH_DIR` names the directory. What was written is read back. Without arguments (and under
//! `cargo test --benches`) it runs small.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock and starts threads")]

use std::hint::black_box;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tidegate::clock;
use tidegate::disk::{
    Buffer, Completion, Courtesy, Disk, DiskQueue, FileHandle, Operation, Ticket,
};
use tidegate::engine::default_disk;
use tidegate::engine::hiccup::Hiccups;

const CHUNK_BYTES: usize = 256 << 10;
const MANIFEST_BYTES: usize = 4 << 10;
const WRITES_MAX: usize = 16;
const WORKERS: usize = 2;
/// How soon the disk is looked at again.
const POLL: Duration = Duration::from_micros(30);

/// What the two threads do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counting {
    Not,
    Apart,
    /// Neither more than [`AHEAD_MAX`] ahead.
    Together,
}
use Counting::{Apart, Not, Together};

/// Turns that one thread may be ahead: some 0.4 ms, in which two workers of the paper's job exchange as many records
/// as one of their rings holds.
const AHEAD_MAX: u64 = 1 << 20;
/// Turns between two looks at the other.
const TURNS: u64 = 1 << 11;

/// What snapshots ask: how often, and how much each worker writes.
struct Case {
    name: &'static str,
    interval: Option<Duration>,
    part_bytes: usize,
    counting: Counting,
}

const fn case(name: &'static str, interval_ms: u64, part_bytes: usize, counting: Counting) -> Case {
    let interval = if interval_ms == 0 { None } else { Some(Duration::from_millis(interval_ms)) };
    Case { name, interval, part_bytes, counting }
}

/// Parts of the paper's workload with two workers: 1,000 keys, and a million of which every page changes.
const SMALL: usize = 48 << 10;
const LARGE: usize = 48 << 20;
const CASES: [Case; 10] = [
    case("no requests", 0, SMALL, Apart),
    case("1,000 keys, 10 ms", 10, SMALL, Apart),
    case("1,000 keys, 1 ms", 1, SMALL, Apart),
    case("1,000,000 keys, 1 s", 1_000, LARGE, Apart),
    case("1,000,000 keys, 100 ms", 100, LARGE, Apart),
    case("no requests, together", 0, SMALL, Together),
    case("1,000 keys, 1 ms, together", 1, SMALL, Together),
    case("1,000,000 keys, 100 ms, together", 100, LARGE, Together),
    case("1,000 keys, 10 ms, no counting", 10, SMALL, Not),
    case("1,000,000 keys, 1 s, no counting", 1_000, LARGE, Not),
];

/// What was found of one case.
struct Found {
    shares: Vec<f64>,
    asked: u64,
    took_ns: Histogram<u64>,
    manifest_ns: Histogram<u64>,
    late_ns: Histogram<u64>,
}

/// `--name value` among the arguments.
fn number(name: &str, default: u64) -> u64 {
    let arguments: Vec<String> = std::env::args().collect();
    let at = arguments.iter().position(|argument| argument == name);
    at.map_or(default, |at| arguments[at + 1].parse().expect("a number"))
}

/// Tells those who count that it is over, after a panic too.
struct Stop<'a>(&'a Counters);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// The two threads that count.
#[derive(Default)]
struct Counters {
    /// Turns of each.
    turns: [AtomicU64; WORKERS],
    /// Whether they are to count, and together.
    counts: AtomicBool,
    together: AtomicBool,
    stop: AtomicBool,
}

impl Counters {
    fn set(&self, counting: Counting) {
        // They begin together, wherever they were.
        self.turns.iter().for_each(|turns| turns.store(0, Ordering::Relaxed));
        self.counts.store(counting != Not, Ordering::Relaxed);
        self.together.store(counting == Together, Ordering::Relaxed);
    }

    fn turns(&self) -> u64 {
        self.turns.iter().map(|turns| turns.load(Ordering::Relaxed)).sum()
    }

    /// Counts while it is to, and gives way to the kernel when the engine's workers would: without that its threads
    /// stood ready for up to 20 s where the scheduler groups by session.
    fn count(&self, index: usize, core: core_affinity::CoreId) {
        core_affinity::set_for_current(core);
        let (own, other) = (&self.turns[index], &self.turns[1 - index]);
        let mut courtesy = Courtesy::default();
        while !self.stop.load(Ordering::Relaxed) {
            if !self.counts.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            if courtesy.is_asked() {
                std::thread::sleep(Duration::from_nanos(1));
            }
            let bound = other.load(Ordering::Relaxed) + AHEAD_MAX;
            if self.together.load(Ordering::Relaxed) && own.load(Ordering::Relaxed) > bound {
                std::hint::spin_loop();
                continue;
            }
            let turns = (0..TURNS).fold(0, |sum, n| black_box(sum ^ n));
            // What was counted is made use of: it is far below the divisor.
            own.fetch_add(TURNS + black_box(turns) / u64::MAX, Ordering::Relaxed);
        }
    }
}

/// The parts of one snapshot on their way.
struct Parts {
    began: Instant,
    /// Chunks that are not with the disk yet.
    chunks: Vec<(usize, usize)>,
    with_disk: usize,
    synced: bool,
}

/// Two files for parts and one behind them, and what is with the disk.
struct Requests {
    queue: Box<dyn DiskQueue>,
    parts: [FileHandle; WORKERS],
    manifest: FileHandle,
    buffers: Vec<Buffer>,
    writing: Option<Parts>,
    /// Whose parts are durable: since when, and when its last write set out.
    sealing: Option<(Instant, Instant, Ticket)>,
    completions: Vec<Completion>,
}

impl Requests {
    fn new(disk: &dyn Disk, directory: &Path) -> Self {
        let file = |name: &str, bytes: usize| {
            let path = directory.join(name);
            disk.create_new(&path).expect("a new file");
            let file = disk.open_direct(&path).expect("a file");
            let mut buffer = Buffer::with_capacity(CHUNK_BYTES);
            buffer.resize(CHUNK_BYTES.min(bytes), 0);
            for at in (0..bytes).step_by(CHUNK_BYTES) {
                file.write_all_at(&buffer, at as u64).expect("a write");
            }
            file.sync_data().expect("a sync");
            file
        };
        Self {
            queue: disk.queue(WRITES_MAX).expect("a queue"),
            parts: ["part-0", "part-1"].map(|name| file(name, LARGE)),
            manifest: file("manifest", MANIFEST_BYTES),
            buffers: Vec::new(),
            writing: None,
            sealing: None,
            completions: Vec::new(),
        }
    }

    fn is_idle(&self) -> bool {
        self.writing.is_none() && self.sealing.is_none()
    }

    /// A snapshot sets out.
    fn begin(&mut self, part_bytes: usize) {
        let chunks = (0..part_bytes).step_by(CHUNK_BYTES).rev();
        let chunks = chunks.flat_map(|at| (0..WORKERS).map(move |part| (part, at))).collect();
        let began = Instant::now();
        self.writing = Some(Parts { began, chunks, with_disk: 0, synced: false });
    }

    fn buffer(&mut self, bytes: usize, number: u64) -> Buffer {
        let mut buffer = self.buffers.pop().unwrap_or_default();
        buffer.resize(bytes, 0);
        buffer[..8].copy_from_slice(&number.to_le_bytes());
        buffer
    }

    fn submit(&mut self, operation: Operation) -> Ticket {
        self.queue.submit(operation).expect("fewer are in flight than the queue takes")
    }

    /// Does what can be done for snapshot `number` and the one before it.
    fn go_on(&mut self, part_bytes: usize, number: u64, found: &mut Found) {
        let mut completions = std::mem::take(&mut self.completions);
        self.queue.poll(&mut completions);
        for Completion { ticket, buffer, result } in completions.drain(..) {
            result.expect("a write or a sync");
            self.buffers.extend(buffer.into_aligned());
            match self.sealing.take_if(|(.., seal)| *seal == ticket) {
                Some((began, sealed, _)) => {
                    found.took_ns.saturating_record(began.elapsed().as_nanos() as u64);
                    found.manifest_ns.saturating_record(sealed.elapsed().as_nanos() as u64);
                }
                None => self.writing.as_mut().expect("it is with the disk").with_disk -= 1,
            }
        }
        self.completions = completions;
        let Some(mut writing) = self.writing.take() else { return };
        // A small part is written and flushed with one linked request.
        let is_small = part_bytes <= CHUNK_BYTES;
        while self.queue.in_flight() < WRITES_MAX - 1 {
            let Some((part, at)) = writing.chunks.pop() else { break };
            let buffer = self.buffer(CHUNK_BYTES.min(part_bytes), number + at as u64);
            let file = self.parts[part].clone();
            let (offset, buffer) = (at as u64, buffer.into());
            self.submit(Operation::Write { file, offset, buffer, sync: is_small });
            writing.with_disk += 1;
        }
        let is_written = writing.chunks.is_empty() && writing.with_disk == 0;
        if is_written && !is_small && !writing.synced {
            for file in self.parts.clone() {
                self.submit(Operation::Sync { file });
            }
            (writing.synced, writing.with_disk) = (true, WORKERS);
        } else if is_written && self.sealing.is_none() {
            let (file, buffer) = (self.manifest.clone(), self.buffer(MANIFEST_BYTES, number));
            let write = Operation::Write { file, offset: 0, buffer: buffer.into(), sync: true };
            let ticket = self.submit(write);
            self.sealing = Some((writing.began, Instant::now(), ticket));
            return;
        }
        self.writing = Some(writing);
    }

    /// Runs a case for so long; `number` is that of the last snapshot.
    fn run(&mut self, case: &Case, time: Duration, number: &mut u64, found: &mut Found) {
        let began = Instant::now();
        let Some(interval) = case.interval else {
            std::thread::sleep(time);
            return;
        };
        let mut due = Duration::ZERO;
        while began.elapsed() < time || !self.is_idle() {
            let elapsed = began.elapsed();
            if elapsed >= due && (due.is_zero() || elapsed < time) && self.writing.is_none() {
                *number += 1;
                self.begin(case.part_bytes);
                let passed = (elapsed.as_nanos() / interval.as_nanos()) as u32;
                due = interval * (passed + 1);
            }
            self.go_on(case.part_bytes, *number, found);
            let left = due.saturating_sub(began.elapsed());
            std::thread::sleep(if self.is_idle() { left.min(time) } else { POLL });
        }
        found.asked += (time.as_nanos() / interval.as_nanos()) as u64;
    }
}

fn main() {
    let small = !std::env::args().any(|argument| argument == "--bench");
    let rounds = number("--rounds", if small { 1 } else { 5 });
    let time = Duration::from_millis(number("--ms", if small { 20 } else { 3_000 }));
    let under = std::env::var_os("TIDEGATE_BENCH_DIR");
    let under = under.unwrap_or_else(|| std::env::temp_dir().into());
    let directory = tempfile::tempdir_in(under).expect("a temporary directory");
    let (disk, _) = default_disk();
    let mut requests = Requests::new(&*disk, directory.path());
    let cores = core_affinity::get_core_ids().expect("cores");
    let counters = Counters::default();
    println!("{rounds} rounds of {time:?} each");
    let mut found: Vec<Found> = CASES.iter().map(|_| Found::new()).collect();
    let (mut number, mut last, mut preempting) = (0, (0, 0), true);
    std::thread::scope(|scope| {
        let (_at_end, counters) = (Stop(&counters), &counters);
        for (index, core) in cores.iter().enumerate().take(WORKERS) {
            scope.spawn(move || counters.count(index, *core));
        }
        for _ in 0..rounds {
            let mut base = 0.0;
            let possible = |case: &Case| case.counting != Together || cores.len() >= WORKERS;
            for (case, found) in CASES.iter().zip(&mut found).filter(|(case, _)| possible(case)) {
                counters.set(case.counting);
                let hiccups = Hiccups::start(WORKERS).expect("threads");
                let (began, before) = (Instant::now(), counters.turns());
                requests.run(case, time, &mut number, found);
                let done = counters.turns() - before;
                let rate = done as f64 / began.elapsed().as_secs_f64();
                let hiccups = hiccups.stop();
                found.late_ns.add(hiccups.late_ns).expect("both have the same bounds");
                preempting &= hiccups.preempting;
                base = if case.interval.is_some() { base } else { rate };
                found.shares.push(rate / base);
                last = (number, case.part_bytes);
            }
        }
    });
    if !preempting {
        println!("ticks wait for those who count: no priority without root or CAP_SYS_NICE");
    }
    CASES.iter().zip(&mut found).for_each(|(case, found)| found.print(case));
    requests.check(&*disk, directory.path(), last);
}

impl Found {
    fn new() -> Self {
        let [took_ns, manifest_ns, late_ns] = [(); 3].map(|()| clock::histogram_ns());
        Self { shares: Vec::new(), asked: 0, took_ns, manifest_ns, late_ns }
    }

    fn print(&mut self, case: &Case) {
        if self.shares.is_empty() {
            return; // there is one core
        }
        let ms = |of: &Histogram<u64>, quantile| of.value_at_quantile(quantile) as f64 / 1e6;
        println!("{}", case.name);
        self.shares.sort_by(f64::total_cmp);
        let [least, share, most] =
            [0, self.shares.len() / 2, self.shares.len() - 1].map(|at| self.shares[at]);
        if case.counting != Not {
            println!("  counting keeps {share:.3} ({least:.3} to {most:.3}) of its rate");
        }
        if case.interval.is_some() {
            println!(
                "  {} of {} done; {:.2} / {:.2} ms each (p50 / p99), {:.2} / {:.2} of them the last flush",
                self.took_ns.len(),
                self.asked,
                ms(&self.took_ns, 0.5),
                ms(&self.took_ns, 0.99),
                ms(&self.manifest_ns, 0.5),
                ms(&self.manifest_ns, 0.99),
            );
        }
        let [p99, p999, max] = [0.99, 0.999, 1.0].map(|quantile| ms(&self.late_ns, quantile));
        println!(
            "  ticks of an idle thread {p99:.2} / {p999:.2} / {max:.1} ms late (p99 / p99.9 / max)"
        );
    }
}

impl Requests {
    /// What was written last is there.
    fn check(self, disk: &dyn Disk, directory: &Path, (number, part_bytes): (u64, usize)) {
        drop(self);
        let stamp =
            |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8"));
        let manifest = disk.read(&directory.join("manifest")).expect("a file");
        assert_eq!(stamp(&manifest, 0), number, "the manifest");
        for part in ["part-0", "part-1"] {
            let bytes = disk.read(&directory.join(part)).expect("a file");
            for at in (0..part_bytes).step_by(CHUNK_BYTES) {
                assert_eq!(stamp(&bytes, at), number + at as u64, "{part} at {at}");
            }
        }
    }
}
