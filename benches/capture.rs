//! Published ways of capturing a consistent version of state in place, one thread, against each other.
//!
//! The state is a plain array, so that only the capture differs: the key is the index. After a mark,
//! each contender is given the same updates in batches and drains the version in budgeted steps between
//! them, into chunks. What is drained brings an image up to date, and every image is compared with the
//! true state as of its mark, off the clock. Time is this thread's CPU time; rounds are interleaved,
//! medians reported, of the longest stops too.
//!
//! `cargo bench --bench capture [filter]`; `cargo test --bench capture` runs everything small. Results:
//! `perf/0005-capture.md`.

#[path = "capture/copies.rs"]
mod copies;
#[path = "common/cpu_time.rs"]
mod cpu_time;
#[path = "capture/disk.rs"]
mod disk;
#[path = "capture/twins.rs"]
mod twins;

use std::ops::Range;

use copies::{Calc, CopyOnUpdate, Nothing, StopAndCopy};
use cpu_time::{Start, median};
use disk::{Disk, Record, page_len};
use twins::{PingPong, Zigzag};

/// Updates between two steps of the drain.
const BATCH: usize = 1024;
/// What one step of the drain may write.
const BUDGET_BYTES: usize = 256 << 10;
/// First rounds, not reported: memory is touched for the first time.
const WARM_UP: usize = 2;

/// A way to capture versions.
trait Capture<const W: usize> {
    fn update(&mut self, keys: &[u32]);

    /// The version as of now is what is drained from here on.
    fn mark(&mut self);

    /// Writes about `budget_bytes` of the marked version; whether there is more.
    fn drain(&mut self, budget_bytes: usize, disk: &mut Disk<W>) -> bool;

    fn record(&self, key: usize) -> Record<W>;

    fn memory_bytes(&self) -> usize;
}

/// The update: reads and writes the whole record.
#[inline]
fn bump<const W: usize>(record: &mut Record<W>) {
    record.iter_mut().for_each(|word| *word += 1);
}

/// The same code for all that update a plain array.
#[inline(never)]
fn bump_all<const W: usize>(records: &mut [Record<W>], keys: &[u32]) {
    keys.iter().for_each(|key| bump(&mut records[*key as usize]));
}

fn bytes_of<T>(items: &Vec<T>) -> usize {
    items.capacity() * size_of::<T>()
}

/// One bit per record.
struct Bits {
    words: Vec<u64>,
}

impl Bits {
    fn new(len: usize) -> Self {
        assert!(len.is_multiple_of(64), "{len} bits are no words");
        Self { words: vec![0; len / 64] }
    }

    #[inline]
    fn get(&self, at: usize) -> bool {
        self.words[at / 64] >> (at % 64) & 1 == 1
    }

    #[inline]
    fn set(&mut self, at: usize, bit: bool) {
        let word = &mut self.words[at / 64];
        *word = *word & !(1 << (at % 64)) | u64::from(bit) << (at % 64);
    }

    /// Whole words.
    fn fill(&mut self, range: Range<usize>, bit: bool) {
        self.words[range.start / 64..range.end / 64].fill(if bit { u64::MAX } else { 0 });
    }

    fn set_to_inverse(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word = !other);
    }

    fn bytes(&self) -> usize {
        bytes_of(&self.words)
    }
}

/// Which keys are updated.
#[derive(Clone, Copy, Debug)]
enum Keys {
    Uniform,
    /// Product of four uniforms; frequent keys lie far from each other, as in a hashed table.
    Skewed,
    /// The same, but frequent keys are neighbours.
    Clustered,
}

/// A stream of keys, the same every time.
struct Stream {
    keys: Keys,
    len: usize,
    state: u64,
}

impl Stream {
    /// 32 random bits (splitmix64).
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.state ^ self.state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ z >> 31) >> 32
    }

    fn key(&mut self) -> u32 {
        let part = match self.keys {
            Keys::Uniform => self.random(),
            Keys::Skewed | Keys::Clustered => {
                let [a, b, c, d] = [(); 4].map(|()| self.random());
                (((a * b) >> 32) * ((c * d) >> 32)) >> 32
            }
        };
        let rank = ((part * self.len as u64) >> 32) as usize;
        match self.keys {
            // A permutation, as the length is a power of two and the factor odd.
            Keys::Skewed => (rank.wrapping_mul(0x9E37_79B1) & (self.len - 1)) as u32,
            Keys::Uniform | Keys::Clustered => rank as u32,
        }
    }
}

/// What one capture and the updates until the next cost, in ns of CPU time.
#[derive(Default)]
struct Round {
    all: f64,
    mark: f64,
    /// Of the updates alone, and of the longest batch of them; 0 unless it was timed in detail.
    updates: f64,
    batch_longest: f64,
    memory_longest: usize,
    bytes: usize,
}

/// Marks, updates and drains. Reading the clock costs as much as hundreds of updates, so details are
/// timed in rounds of their own; `clock_ns` is that cost then.
fn run<const W: usize>(
    way: &mut dyn Capture<W>,
    keys: &[u32],
    disk: &mut Disk<W>,
    clock_ns: Option<f64>,
) -> Round {
    let mut round = Round::default();
    let start = Start::now();
    way.mark();
    round.mark = start.elapsed_ns();
    let mut is_open = true;
    for batch in keys.chunks(BATCH) {
        if let Some(clock_ns) = clock_ns {
            let start = Start::now();
            way.update(batch);
            let took = start.elapsed_ns() - clock_ns;
            round.updates += took;
            round.batch_longest = round.batch_longest.max(took);
            round.memory_longest = round.memory_longest.max(way.memory_bytes());
        } else {
            way.update(batch);
        }
        is_open = is_open && way.drain(BUDGET_BYTES, disk);
    }
    while is_open {
        is_open = way.drain(BUDGET_BYTES, disk);
    }
    round.all = start.elapsed_ns();
    round
}

/// A case: so many records of `W` words, a capture every so many updates.
struct Case {
    len: usize,
    keys: Keys,
    updates: usize,
    rounds: usize,
}

/// A contender, its place in the report, the image its versions add up to, and its rounds.
struct Contender<const W: usize> {
    place: usize,
    name: &'static str,
    way: Box<dyn Capture<W>>,
    image: Vec<Record<W>>,
    /// Timed as a whole, and in detail.
    rounds: [Vec<Round>; 2],
}

fn contenders<const W: usize, const PAGE: usize>(len: usize) -> Vec<Contender<W>> {
    assert_eq!(PAGE, page_len::<W>());
    let ways: [(&str, Box<dyn Capture<W>>); 9] = [
        ("none", Box::new(Nothing(vec![[0; W]; len]))),
        ("stop and copy", Box::new(StopAndCopy::new(len))),
        ("copy on update, page", Box::new(CopyOnUpdate::<W, PAGE>::new(len))),
        ("copy on update, record", Box::new(CopyOnUpdate::<W, 1>::new(len))),
        ("CALC", Box::new(Calc::new(len))),
        ("Zigzag", Box::new(Zigzag::<W, true>::new(len))),
        ("Zigzag, two arrays", Box::new(Zigzag::<W, false>::new(len))),
        ("Ping-Pong", Box::new(PingPong::<W, true>::new(len))),
        ("Ping-Pong, three arrays", Box::new(PingPong::<W, false>::new(len))),
    ];
    let image = vec![[0; W]; len];
    let contender = |(place, (name, way))| Contender {
        place,
        name,
        way,
        image: image.clone(),
        rounds: Default::default(),
    };
    ways.into_iter().enumerate().map(contender).collect()
}

fn compare<const W: usize, const PAGE: usize>(case: &Case) {
    let mut contenders = contenders::<W, PAGE>(case.len);
    let mut stream = Stream { keys: case.keys, len: case.len, state: 1 };
    let mut truth = vec![[0; W]; case.len];
    let mut disk = Disk::default();
    let clock_ns = median(&mut [(); 1001].map(|()| Start::now().elapsed_ns()));
    for round in 0..WARM_UP + case.rounds {
        let keys: Vec<u32> = (0..case.updates).map(|_| stream.key()).collect();
        // Whoever comes first finds other caches than the rest, so each does in turn.
        contenders.rotate_left(1);
        for contender in &mut contenders {
            let is_detailed = round % 2 == 1;
            let clock_ns = is_detailed.then_some(clock_ns);
            let mut took = run(&mut *contender.way, &keys, &mut disk, clock_ns);
            took.bytes = disk.apply(&mut contender.image);
            if contender.name != "none" {
                assert!(contender.image == truth, "{}, version {round}", contender.name);
            }
            if round >= WARM_UP {
                contender.rounds[usize::from(is_detailed)].push(took);
            }
        }
        bump_all(&mut truth, &keys);
    }
    for Contender { name, way, .. } in &contenders {
        let is_right = truth.iter().enumerate().all(|(key, record)| way.record(key) == *record);
        assert!(is_right, "{name}: the state at the end");
    }
    contenders.sort_by_key(|contender| contender.place);
    report::<W>(case, &contenders);
}

fn report<const W: usize>(case: &Case, contenders: &[Contender<W>]) {
    let state = (case.len * size_of::<Record<W>>()) as f64;
    println!(
        "{} records of {} bytes, {:?}, a capture every {} updates",
        case.len,
        size_of::<Record<W>>(),
        case.keys,
        case.updates
    );
    println!(
        "  {:<24} {:>7} {:>6} {:>15} {:>8} {:>9} {:>9} {:>7} {:>8}",
        "", "ns", "ratio", "min-max", "update", "mark us", "batch us", "memory", "written"
    );
    let updates = case.updates as f64;
    let base = &contenders[0].rounds[0];
    for contender in contenders {
        let [rounds, details] = &contender.rounds;
        let of = |rounds: &[Round], value: fn(&Round) -> f64| {
            median(&mut rounds.iter().map(value).collect::<Vec<_>>())
        };
        let ratio = |(round, base): (&Round, &Round)| round.all / base.all;
        let mut ratios: Vec<f64> = rounds.iter().zip(base).map(ratio).collect();
        let middle = median(&mut ratios);
        let range = format!("{:.2}-{:.2}", ratios[0], ratios[ratios.len() - 1]);
        println!(
            "  {:<24} {:>7.2} {middle:>6.2} {range:>15} {:>8.2} {:>9.1} {:>9.1} {:>7.2} {:>8.3}",
            contender.name,
            of(rounds, |round| round.all) / updates,
            of(details, |round| round.updates) / updates,
            of(rounds, |round| round.mark) / 1000.0,
            of(details, |round| round.batch_longest) / 1000.0,
            details.iter().map(|round| round.memory_longest).max().unwrap_or(0) as f64 / state,
            of(details, |round| round.bytes as f64) / state,
        );
    }
}

fn main() {
    let is_small = !std::env::args().any(|argument| argument == "--bench");
    let filters: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let rounds = if is_small { 4 } else { 30 };
    // Records, 2 to the power of; updates per capture, likewise.
    let cases: &[(u32, u32)] =
        if is_small { &[(12, 11), (12, 14)] } else { &[(14, 17), (20, 17), (20, 20), (22, 20)] };
    for (len, updates) in cases {
        for keys in [Keys::Uniform, Keys::Skewed, Keys::Clustered] {
            let name = format!("{len}/{updates}/{keys:?}");
            let case = Case { len: 1 << len, keys, updates: 1 << updates, rounds };
            let is_wanted =
                |name: &str| filters.is_empty() || filters.iter().any(|f| name.contains(f));
            if is_wanted(&format!("16B/{name}")) {
                compare::<2, 256>(&case);
            }
            if is_wanted(&format!("8B/{name}")) {
                compare::<1, 512>(&case);
            }
        }
    }
}
