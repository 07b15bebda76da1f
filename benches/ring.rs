//! The channel's ring against rtrb's chunks, in the shapes the engine uses them: one stream between
//! two cores, a shuffle between two cores, splitting alone, and the round trip.
//!
//! ```text
//! cargo bench --bench ring                      all cases, 15 interleaved rounds
//! cargo bench --bench ring -- shuffle 31        cases whose name contains a word, so many rounds
//! ```
//!
//! Every run checks the sum of what arrived before its time counts. Rounds alternate between the
//! contenders, in an order that turns with every round; a ratio is taken within its round. Both
//! threads are pinned and spin, so on a machine that does other things as well, run the built
//! program under `chrt --fifo 5`. `cargo test --benches` runs every case once, small.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock and starts threads")]

use std::time::{Duration, Instant};

use rtrb::RingBuffer;
use rtrb::chunks::ChunkError::TooFewSlots;
use tidegate::channel::{self, Polled};

/// A record that carries a number.
trait Item: Copy + Default + Send + 'static {
    fn of(number: u64) -> Self;
    fn number(&self) -> u64;
}

impl Item for u64 {
    #[inline]
    fn of(number: u64) -> Self {
        number
    }

    #[inline]
    fn number(&self) -> u64 {
        *self
    }
}

impl<const N: usize> Item for [u64; N]
where
    Self: Default,
{
    #[inline]
    fn of(number: u64) -> Self {
        [number; N]
    }

    #[inline]
    fn number(&self) -> u64 {
        self[0] ^ self[1] ^ self[N - 1]
    }
}

/// The sending end of a ring under test.
trait Sender<T>: Send + 'static {
    /// Sends up to `count` records with the numbers from `first` on. Returns how many.
    fn send(&mut self, first: u64, count: usize) -> usize;
    /// Sends the front of `records`. Returns how many.
    fn send_slice(&mut self, records: &[T]) -> usize;
}

/// The receiving end of a ring under test.
trait Receiver<T>: Send + 'static {
    /// Takes up to `max` records and adds their numbers to `sum`. Returns how many, or `None` when
    /// the sender is gone and everything was read.
    fn receive(&mut self, max: usize, sum: &mut u64) -> Option<usize>;
}

impl<T: Item> Sender<T> for channel::Producer<T> {
    #[inline]
    fn send(&mut self, first: u64, count: usize) -> usize {
        self.room(count);
        let sent = self.fill((first..first + count as u64).map(T::of));
        self.publish();
        sent
    }

    #[inline]
    fn send_slice(&mut self, records: &[T]) -> usize {
        self.room(records.len());
        let sent = self.fill(records.iter().copied());
        self.publish();
        sent
    }
}

impl<T: Item> Receiver<T> for channel::Consumer<T> {
    #[inline]
    fn receive(&mut self, max: usize, sum: &mut u64) -> Option<usize> {
        match self.poll(max) {
            Polled::Records(mut records) => {
                let count = records.len();
                for record in records.drain(count) {
                    *sum = sum.wrapping_add(record.number());
                }
                Some(count)
            }
            Polled::Empty | Polled::Control(_) => Some(0),
            Polled::Closed => None,
        }
    }
}

impl<T: Item> Sender<T> for rtrb::Producer<T> {
    #[inline]
    fn send(&mut self, first: u64, count: usize) -> usize {
        let chunk = match self.write_chunk_uninit(count) {
            Ok(chunk) => chunk,
            Err(TooFewSlots(0)) => return 0,
            Err(TooFewSlots(count)) => self.write_chunk_uninit(count).unwrap(),
        };
        let count = chunk.len() as u64;
        chunk.fill_from_iter((first..first + count).map(T::of))
    }

    #[inline]
    fn send_slice(&mut self, records: &[T]) -> usize {
        self.push_partial_slice(records).0.len()
    }
}

impl<T: Item> Receiver<T> for rtrb::Consumer<T> {
    #[inline]
    fn receive(&mut self, max: usize, sum: &mut u64) -> Option<usize> {
        let chunk = match self.read_chunk(max) {
            Ok(chunk) => chunk,
            Err(TooFewSlots(0)) => {
                let closed = self.is_abandoned() && self.is_empty();
                return (!closed).then_some(0);
            }
            Err(TooFewSlots(count)) => self.read_chunk(count).unwrap(),
        };
        let count = chunk.len();
        let (one, two) = chunk.as_slices();
        for record in one.iter().chain(two) {
            *sum = sum.wrapping_add(record.number());
        }
        chunk.commit_all();
        Some(count)
    }
}

/// The ring used record by record, as a split has to use it.
struct Pushed<T>(channel::Producer<T>);

impl<T: Item> Sender<T> for Pushed<T> {
    #[inline]
    fn send(&mut self, first: u64, count: usize) -> usize {
        let count = self.0.room(count).min(count);
        (first..first + count as u64).for_each(|number| self.0.push(T::of(number)));
        self.0.publish();
        count
    }

    #[inline]
    fn send_slice(&mut self, records: &[T]) -> usize {
        self.0.send_slice(records)
    }
}

/// Time and sum of what arrived.
type Outcome = (Duration, u64);

fn pin(core: usize) {
    core_affinity::set_for_current(core_affinity::CoreId { id: core });
}

fn spin(turns: &mut u32) {
    *turns += 1;
    if turns.is_multiple_of(1024) {
        // The other side may need this core.
        std::thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

/// One thread sends `count` records in batches, the other receives them.
fn stream<T: Item>(
    (mut sender, mut receiver): (impl Sender<T>, impl Receiver<T>),
    batch: usize,
    count: u64,
) -> Outcome {
    let start = std::sync::Arc::new(std::sync::Barrier::new(2));
    let sending = {
        let start = start.clone();
        std::thread::spawn(move || {
            pin(1);
            start.wait();
            let (mut sent, mut turns) = (0, 0);
            while sent < count {
                let now = sender.send(sent, batch.min((count - sent) as usize)) as u64;
                sent += now;
                if now == 0 {
                    spin(&mut turns);
                }
            }
        })
    };
    pin(0);
    start.wait();
    let begin = Instant::now();
    let (mut sum, mut turns) = (0, 0);
    while let Some(received) = receiver.receive(batch, &mut sum) {
        if received == 0 {
            spin(&mut turns);
        }
    }
    let took = begin.elapsed();
    sending.join().unwrap();
    (took, sum)
}

/// One record there and back, `count` times.
fn round_trip(
    (mut there, mut far): (impl Sender<u64>, impl Receiver<u64>),
    (mut back, mut near): (impl Sender<u64>, impl Receiver<u64>),
    count: u64,
) -> Outcome {
    let echo = std::thread::spawn(move || {
        pin(1);
        let mut turns = 0;
        loop {
            let mut number = 0;
            match far.receive(1, &mut number) {
                None => break,
                Some(0) => spin(&mut turns),
                Some(_) => assert_eq!(back.send(number, 1), 1),
            }
        }
    });
    pin(0);
    let begin = Instant::now();
    let (mut sum, mut turns) = (0, 0);
    for number in 0..count {
        assert_eq!(there.send(number, 1), 1);
        while near.receive(1, &mut sum) == Some(0) {
            spin(&mut turns);
        }
    }
    let took = begin.elapsed();
    drop(there);
    echo.join().unwrap();
    (took, sum)
}

/// Which of two destinations a number goes to: as unpredictable as a key.
#[inline]
fn destination(number: u64) -> usize {
    (number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 63) as usize
}

/// A way to split numbered records over two rings.
trait Split<T>: Send + 'static {
    /// Sends up to `count` records with the numbers from `first` on. Returns how many.
    fn split(&mut self, first: u64, count: usize) -> usize;
    /// Whether every record is on its way.
    fn flush(&mut self) -> bool;
}

/// Writes each record into its ring.
struct InPlace<T>(Vec<channel::Producer<T>>);

impl<T: Item> Split<T> for InPlace<T> {
    #[inline]
    fn split(&mut self, first: u64, count: usize) -> usize {
        let count = self.0.iter_mut().map(|one| one.room(count)).min().unwrap_or(0).min(count);
        for number in first..first + count as u64 {
            self.0[destination(number)].push(T::of(number));
        }
        self.0.iter_mut().for_each(|one| {
            one.publish();
        });
        count
    }

    fn flush(&mut self) -> bool {
        true
    }
}

/// Sorts a batch into two buffers without a branch, then copies each into its ring.
struct Staged<T, S> {
    staged: [Vec<T>; 2],
    len: [usize; 2],
    sent: [usize; 2],
    rings: Vec<S>,
}

impl<T: Item, S: Sender<T>> Staged<T, S> {
    fn new(rings: Vec<S>, batch: usize) -> Self {
        let staged = std::array::from_fn(|_| vec![T::default(); batch]);
        Self { staged, len: [0; 2], sent: [0; 2], rings }
    }
}

impl<T: Item, S: Sender<T>> Split<T> for Staged<T, S> {
    #[inline]
    fn split(&mut self, first: u64, count: usize) -> usize {
        if !self.flush() {
            return 0;
        }
        let ([left, right], [mut to_left, mut to_right]) = (&mut self.staged, [0, 0]);
        let (left, right) = (&mut left[..count], &mut right[..count]);
        for number in first..first + count as u64 {
            let record = T::of(number);
            let to = destination(number);
            left[to_left] = record;
            right[to_right] = record;
            to_left += 1 - to;
            to_right += to;
        }
        (self.len, self.sent) = ([to_left, to_right], [0; 2]);
        self.flush();
        count
    }

    #[inline]
    fn flush(&mut self) -> bool {
        for (to, ring) in self.rings.iter_mut().enumerate() {
            let (sent, len) = (&mut self.sent[to], self.len[to]);
            if *sent < len {
                *sent += ring.send_slice(&self.staged[to][*sent..len]);
            }
        }
        self.sent == self.len
    }
}

/// Sends `count` records from `first` on through `split`, receives from `receivers` meanwhile.
fn split_and_receive<T: Item>(
    mut split: impl Split<T>,
    receivers: &mut [impl Receiver<T>],
    first: u64,
    count: u64,
    batch: usize,
) -> u64 {
    let (mut sum, mut sent, mut turns, mut open) = (0, 0, 0, receivers.len());
    let mut receive = |sum: &mut u64| {
        let mut received = 0;
        for receiver in receivers.iter_mut() {
            match receiver.receive(batch, sum) {
                Some(now) => received += now,
                None => open -= 1,
            }
        }
        (received, std::mem::replace(&mut open, receivers.len()) == 0)
    };
    while sent < count || !split.flush() {
        let now = split.split(first + sent, batch.min((count - sent) as usize)) as u64;
        sent += now;
        if receive(&mut sum).0 == 0 && now == 0 {
            spin(&mut turns);
        }
    }
    drop(split);
    loop {
        let (received, closed) = receive(&mut sum);
        if closed {
            return sum;
        }
        if received == 0 {
            spin(&mut turns);
        }
    }
}

/// Rings from every thread to two destinations: senders by thread, receivers by thread. A single
/// thread is both destinations.
fn rings<S, R>(threads: usize, new: impl Fn() -> (S, R)) -> (Vec<Vec<S>>, Vec<Vec<R>>) {
    let mut receivers: Vec<Vec<R>> = (0..threads).map(|_| vec![]).collect();
    let senders = (0..threads).map(|_| {
        let to_both = (0..2).map(|to| {
            let (sender, receiver) = new();
            receivers[to % threads].push(receiver);
            sender
        });
        to_both.collect()
    });
    (senders.collect(), receivers)
}

/// Every thread splits its share of `count` records over two destinations and reads what is for it.
fn shuffle<T: Item, S: Split<T>, R: Receiver<T>>(
    splits: Vec<S>,
    receivers: Vec<Vec<R>>,
    batch: usize,
    count: u64,
) -> Outcome {
    let share = count / splits.len() as u64;
    let begin = Instant::now();
    let start = |(core, (split, mut receivers)): (usize, (S, Vec<R>))| {
        std::thread::spawn(move || {
            pin(core);
            split_and_receive(split, &mut receivers, core as u64 * share, share, batch)
        })
    };
    let threads: Vec<_> = splits.into_iter().zip(receivers).enumerate().map(start).collect();
    let sum = threads.into_iter().fold(0, |sum: u64, one| sum.wrapping_add(one.join().unwrap()));
    (begin.elapsed(), sum)
}

/// A way to carry so many records.
type Run = Box<dyn Fn(u64) -> Outcome>;

/// What is compared on one line.
struct Case {
    name: String,
    /// Records per run at full size.
    count: u64,
    /// The first is what the others are compared with.
    contenders: Vec<(&'static str, Run)>,
}

fn stream_case<T: Item>(bytes: usize, slots: usize, batch: usize) -> Case {
    Case {
        name: format!("stream {bytes} B, {slots} slots, batch {batch}"),
        count: [1_000_000, 10_000_000, 20_000_000][batch.ilog2() as usize / 5],
        contenders: vec![
            ("rtrb", Box::new(move |count| stream::<T>(RingBuffer::new(slots), batch, count))),
            ("ring", Box::new(move |count| stream::<T>(channel::channel(slots), batch, count))),
            (
                "pushed",
                Box::new(move |count| {
                    let (producer, consumer) = channel::channel::<T>(slots);
                    stream((Pushed(producer), consumer), batch, count)
                }),
            ),
        ],
    }
}

fn shuffle_case<T: Item>(threads: usize, bytes: usize, slots: usize, batch: usize) -> Case {
    let name = if threads == 1 { "split" } else { "shuffle" };
    Case {
        name: format!("{name} {bytes} B, {slots} slots, batch {batch}"),
        count: 10_000_000,
        contenders: vec![
            (
                "rtrb",
                Box::new(move |count| {
                    let (senders, receivers) = rings(threads, || RingBuffer::<T>::new(slots));
                    let stage = |senders| Staged::new(senders, batch);
                    let splits = senders.into_iter().map(stage).collect();
                    shuffle(splits, receivers, batch, count)
                }),
            ),
            (
                "ring",
                Box::new(move |count| {
                    let (senders, receivers) = rings(threads, || channel::channel::<T>(slots));
                    let splits = senders.into_iter().map(InPlace).collect();
                    shuffle(splits, receivers, batch, count)
                }),
            ),
        ],
    }
}

fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for slots in [4096, 65536] {
        for batch in [1, 64, 1024] {
            cases.push(stream_case::<u64>(8, slots, batch));
            cases.push(stream_case::<[u64; 2]>(16, slots, batch));
            cases.push(stream_case::<[u64; 3]>(24, slots, batch));
        }
        for (threads, batch) in [(1, 64), (1, 1024), (2, 64), (2, 1024)] {
            cases.push(shuffle_case::<[u64; 2]>(threads, 16, slots, batch));
            cases.push(shuffle_case::<[u64; 3]>(threads, 24, slots, batch));
        }
    }
    cases.push(Case {
        name: "round trip".into(),
        count: 300_000,
        contenders: vec![
            ("rtrb", Box::new(|count| round_trip(RingBuffer::new(64), RingBuffer::new(64), count))),
            ("ring", Box::new(|c| round_trip(channel::channel(64), channel::channel(64), c))),
        ],
    });
    cases
}

/// Smallest, median and largest.
fn spread(values: &mut [f64]) -> String {
    values.sort_by(f64::total_cmp);
    let (least, most) = (values[0], values[values.len() - 1]);
    format!("{least:7.2} {:7.2} {most:7.2}", values[values.len() / 2])
}

fn run(case: &Case, count: u64, rounds: usize) {
    let contenders = case.contenders.len();
    let expected = (0..count).fold(0, u64::wrapping_add);
    let mut ns_per_record = vec![vec![]; contenders];
    for turn in 0..rounds * contenders {
        let contender = (turn + turn / contenders) % contenders;
        let (took, sum) = case.contenders[contender].1(count);
        assert_eq!(sum, expected, "{}: {}", case.name, case.contenders[contender].0);
        ns_per_record[contender].push(took.as_secs_f64() * 1e9 / count as f64);
    }
    let first = ns_per_record[0].clone();
    for (ns, (contender, _)) in ns_per_record.iter_mut().zip(&case.contenders) {
        let mut speedup: Vec<f64> = first.iter().zip(ns.iter()).map(|(a, b)| a / b).collect();
        println!("{:40} {contender:8} {}   {}", case.name, spread(ns), spread(&mut speedup));
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let full = arguments.iter().any(|argument| argument == "--bench");
    let words: Vec<&String> = arguments.iter().filter(|word| !word.starts_with('-')).collect();
    let (numbers, words): (Vec<&String>, Vec<_>) =
        words.into_iter().partition(|word| word.parse::<usize>().is_ok());
    let rounds = numbers.first().map_or(15, |number| number.parse().unwrap());
    println!("{:49} {:>23}   {:>23}", "", "ns/record min med max", "speed-up min med max");
    for case in cases() {
        if words.iter().all(|word| case.name.contains(word.as_str())) {
            if full { run(&case, case.count, rounds) } else { run(&case, 5_000, 1) }
        }
    }
}
