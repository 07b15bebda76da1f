//! Word count over a text file: the engine against a hand-written two-thread loop over the same
//! rings and tables.
//!
//! `cargo bench --bench word_count -- [--megabytes N] [--parallelism P] [--rounds R]` makes a text
//! of that size (deterministic), runs both in turn, checks every count against a third, plain
//! count, and prints words per second, the ratio engine / loop, and the memory the engine took.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Mutex;

use tidegate::channel::{Consumer, Polled, Producer, channel};
use tidegate::clock;
use tidegate::config::Config;
use tidegate::engine::{self, Handle};
use tidegate::id::KeyGroup;
use tidegate::jobs::Output;
use tidegate::jobs::word_count::{Word, WordCount, generated_text};
use tidegate::key::Key;
use tidegate::record::Control;
use tidegate::state::{Cursor, KeyedTable};
use tidegate::workload::words::words;

const BATCH: usize = 512;
const CHUNK: usize = 128;
const READ_BYTES: usize = 256 << 10;

type Counts = BTreeMap<Vec<u8>, u64>;

struct Thread<'a> {
    file: &'a std::fs::File,
    /// Bytes of this thread's lines still to be read.
    range: std::ops::Range<u64>,
    text: Vec<u8>,
    /// Words of `text` that are hashed but not sent: the first byte not looked at.
    at: usize,
    out: Vec<Producer<Word>>,
    inputs: Vec<Consumer<Word>>,
    table: KeyedTable<Word, u64>,
}

impl Thread<'_> {
    /// Reads the next piece of whole lines. False at the end.
    fn read(&mut self) -> bool {
        let length = READ_BYTES.min((self.range.end - self.range.start) as usize);
        self.text.resize(length, 0);
        self.at = 0;
        if length == 0 {
            return false;
        }
        self.file.read_exact_at(&mut self.text, self.range.start).expect("the file is there");
        let whole = if length < READ_BYTES {
            length
        } else {
            memchr::memrchr(b'\n', &self.text).expect("lines are short") + 1
        };
        self.text.truncate(whole);
        self.range.start += whole as u64;
        true
    }

    /// Sends up to a batch of words. False: no room.
    fn send(&mut self) -> bool {
        let room = self.out.iter_mut().map(|producer| producer.room(BATCH)).min().unwrap_or(0);
        if room == 0 {
            return false;
        }
        let start = self.text.as_ptr() as usize + self.at;
        let (mut sent, mut end) = (0, self.at);
        for word in words(&self.text[self.at..]) {
            let owner = KeyGroup::of_hash(tidegate::key::hash_bytes(word)).owner(self.out.len());
            self.out[owner].push(Word::from_slice(word));
            end = self.at + (word.as_ptr() as usize + word.len() - start);
            sent += 1;
            if sent == room.min(BATCH) {
                break;
            }
        }
        self.at = if sent < room.min(BATCH) { self.text.len() } else { end };
        self.out.iter_mut().for_each(|producer| _ = producer.publish());
        true
    }

    fn receive(&mut self, ended: &mut usize) -> bool {
        let mut worked = false;
        let mut hashes = [0; CHUNK];
        for input in &mut self.inputs {
            match input.poll(4 * BATCH) {
                Polled::Records(mut records) => {
                    worked = true;
                    let mut drain = records.drain(usize::MAX);
                    while drain.len() > 0 {
                        let count = drain.len().min(CHUNK);
                        for (hash, word) in hashes.iter_mut().zip(&drain.as_slice()[..count]) {
                            *hash = word.key_hash();
                            self.table.prefetch(*hash);
                        }
                        for (hash, word) in hashes[..count].iter().zip(&mut drain) {
                            *self.table.upsert(*hash, &word, || 0) += 1;
                        }
                    }
                }
                Polled::Control(_) => *ended += 1,
                Polled::Empty | Polled::Closed => {}
            }
        }
        worked
    }

    fn run(&mut self) {
        let (mut ended, mut reading) = (0, true);
        while ended < self.inputs.len() {
            if reading && self.at == self.text.len() && !self.read() {
                reading = false;
                for producer in &mut self.out {
                    producer.control(Control::End).expect("has room");
                }
            }
            let sent = reading && (0..4).any(|_| self.at < self.text.len() && self.send());
            if !self.receive(&mut ended) && !sent {
                std::hint::spin_loop();
            }
        }
    }
}

fn hand_written(path: &Path, threads: usize, slots: usize) -> (f64, Counts) {
    let began = clock::now_ns();
    let file = std::fs::File::open(path).expect("it was written");
    let length = file.metadata().expect("it was written").len();
    let line_start = |at: u64| {
        let mut bytes = [0; 4096];
        let count = if at == 0 { 0 } else { file.read_at(&mut bytes, at - 1).expect("readable") };
        at.saturating_sub(1) + memchr::memchr(b'\n', &bytes[..count]).map_or(0, |n| n as u64 + 1)
    };
    let (mut producers, mut consumers) = (Vec::new(), Vec::new());
    consumers.resize_with(threads, Vec::new);
    for _ in 0..threads {
        let ends: Vec<_> = (0..threads).map(|_| channel(slots)).collect();
        let mut outs = Vec::new();
        for (to, (producer, consumer)) in ends.into_iter().enumerate() {
            outs.push(producer);
            Vec::push(&mut consumers[to], consumer);
        }
        producers.push(outs);
    }
    let counts = Mutex::new(Counts::new());
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let mut seconds = 0.0;
    std::thread::scope(|scope| {
        let mut running = Vec::new();
        for (w, (out, inputs)) in producers.into_iter().zip(consumers).enumerate() {
            let end = length * (w as u64 + 1) / threads as u64;
            let end = if w + 1 == threads { length } else { line_start(end) };
            let range = line_start(length * w as u64 / threads as u64)..end;
            let groups = KeyGroup::owned_by(w, threads);
            let (file, counts, core) = (&file, &counts, cores.get(w).copied());
            running.push(scope.spawn(move || {
                core.map(core_affinity::set_for_current);
                let table = KeyedTable::new(groups.clone());
                let (text, at) = (Vec::new(), 0);
                let mut thread = Thread { file, range, text, at, out, inputs, table };
                thread.run();
                let done_ns = clock::now_ns();
                let mut entries = Vec::new();
                for group in groups {
                    let (group, mut cursor) = (KeyGroup(group), Cursor::default());
                    while thread.table.entries(group, &mut cursor, 1024, &mut entries) {}
                }
                let words = entries.into_iter().map(|(word, count)| (word.to_vec(), count));
                counts.lock().expect("no panic").extend(words);
                done_ns
            }));
        }
        let ends = running.into_iter().map(|thread| thread.join().expect("no panic"));
        seconds = (ends.max().expect("threads ran") - began) as f64 / 1e9;
    });
    (seconds, counts.into_inner().expect("no panic"))
}

fn engine(path: &Path, config: &Config) -> (f64, Counts) {
    let output = tempfile::tempdir().expect("a temporary directory");
    let job = WordCount {
        input: Some(path.into()),
        output: Output { directory: Some(output.path().join("out")), ..Output::default() },
        ..WordCount::default()
    };
    let (disk, _) = engine::default_disk();
    let graph = job.job(&*disk).expect("the input is there");
    let report = engine::run(&graph, config, &Handle::default(), &mut |_| {}).expect("it runs");
    let mut counts = Counts::new();
    for file in std::fs::read_dir(output.path().join("out")).expect("there is output") {
        let file = file.expect("listed");
        if file.file_name().as_encoded_bytes().starts_with(b".") {
            continue; // not output
        }
        let bytes = std::fs::read(file.path()).expect("readable");
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let tab = memchr::memrchr(b'\t', line).expect("word, tab, count");
            let count = std::str::from_utf8(&line[tab + 1..]).expect("digits");
            counts.insert(line[..tab].to_vec(), count.parse().expect("a number"));
        }
    }
    (report.elapsed.as_secs_f64(), counts)
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
    let bytes = given("--megabytes").map_or(1 << 20, |megabytes| megabytes << 20);
    let parallelism = given("--parallelism").map_or(cores.min(2), |p| p as usize);
    let mut config = Config::workers(parallelism);
    config.ring_slots = given("--ring-slots").map_or(config.ring_slots, |slots| slots as usize);
    if let Some(us) = given("--give-way") {
        config.idle.give_way = std::time::Duration::from_micros(us);
    }

    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("text");
    let (text, mut lines) = (generated_text(), Vec::new());
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path).expect("writable"));
    let (mut index, mut written) = (0, 0);
    while written < bytes {
        lines.clear();
        text.line(index, &mut lines);
        lines.push(b'\n');
        file.write_all(&lines).expect("writable");
        (index, written) = (index + 1, written + lines.len() as u64);
    }
    file.into_inner().expect("writable").sync_all().expect("writable");
    let mut expected = Counts::new();
    for word in words(&std::fs::read(&path).expect("it was written")) {
        match expected.get_mut(word) {
            Some(count) => *count += 1,
            None => _ = expected.insert(word.to_vec(), 1),
        }
    }
    let total: u64 = expected.values().sum();

    let mut columns: [Vec<f64>; 3] = Default::default();
    for round in 1..=given("--rounds").unwrap_or(1) {
        let began = cpu_seconds();
        let (ours, counts) = engine(&path, &config);
        let middle = cpu_seconds();
        assert!(counts == expected, "the engine's counts");
        let (theirs, counts) = hand_written(&path, parallelism, config.ring_slots);
        let cpu = (cpu_seconds() - middle) / (middle - began);
        assert!(counts == expected, "the loop's counts");
        let rate = |seconds: f64| total as f64 / seconds / 1e6;
        let row = [rate(ours), rate(theirs), theirs / ours];
        println!(
            "round {round}: {:7.2} {:7.2} M words/s  ratio {:.3}  cpu {cpu:.3}",
            row[0], row[1], row[2]
        );
        columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
    }
    let [ours, theirs, ratio] = &mut columns;
    println!(
        "{} MB, {total} words, {} different, parallelism {parallelism}: median {:.2} M words/s \
         against {:.2}, ratio {:.3} ({:.3} to {:.3})",
        written >> 20,
        expected.len(),
        median(ours),
        median(theirs),
        median(ratio),
        ratio[0],
        ratio[ratio.len() - 1],
    );
}
