//! A job drawn from a seed, and what must come out of it, computed by plain loops beside it.
//!
//! ```text
//! sources -> random shape of stateless and pass-through operators and loops -> key_by -> fold "updates"
//!   updates -> Collect, -> Files, -> key_by -> process "order", -> key_by -> aggregate -> Collect
//!   shape   -> key_by (text) -> fold_final -> Collect
//! ```

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tidegate::graph::Graph;
use tidegate::operator::process::KeyState;
use tidegate::operator::sink::{Collect, Collected, Files, Roll};
use tidegate::operator::source::{Generator, Items};
use tidegate::operator::split::Side;
use tidegate::record::Collector;
use tidegate::stream::{Job, Stream};

use crate::common::random::{Random, mix};

/// Key, how many so far, sum so far.
pub type Update = (u64, u64, u64);

/// Panics in user code: counts down per record while above zero.
pub type Fuse = Arc<AtomicI64>;

pub struct Simulated {
    pub graph: Graph,
    /// Operators whose parallelism is part of the answer (they follow a broadcast).
    pub fixed: Vec<String>,
    pub fuse: Fuse,
    pub updates: Collected<Update>,
    pub second: Collected<Update>,
    pub finals: Collected<(String, (u64, u64))>,
    pub disorder: Collected<Update>,
    pub keys: u64,
    /// What the shape emits, as a multiset.
    pub expected: Vec<u64>,
}

pub const GROUPS: u64 = 3;
const RECORDS_MAX: usize = 6_000;

pub fn draw(random: &mut Random) -> Simulated {
    let job = Job::new("simulated");
    let fuse: Fuse = Arc::default();
    let mut shape =
        Shape { job: &job, random, operators: 0, fixed: Vec::new(), fuse: fuse.clone() };
    let depth = 1 + shape.random.below(4);
    let (stream, expected) = shape.draw(depth);
    let fixed = std::mem::take(&mut shape.fixed);
    let keys = random.pick(&[1, 2, 13, 200]);
    let updates = stream.clone().key_by(move |value| value % keys).aggregate(
        "updates",
        || (0_u64, 0_u64),
        |(count, sum), value| {
            *count += 1;
            *sum = sum.wrapping_add(value);
        },
        |key, (count, sum)| (*key, *count, *sum),
    );
    let finals = stream.key_by(move |value| format!("key {}", value % keys)).fold_final(
        "finals",
        || (0_u64, 0_u64),
        |(count, sum), value| {
            *count += 1;
            *sum = sum.wrapping_add(value);
        },
    );
    let second = updates.clone().key_by(|(key, ..)| key % GROUPS).aggregate(
        "second",
        // A value that is not plain, so this table is a native one.
        || (0_u64, String::from("0")),
        |(count, sum), update: Update| {
            *count += 1;
            *sum = (sum.parse::<u64>().expect("a number") + update.1).to_string();
        },
        |group, (count, sum)| (*group, *count, sum.parse().expect("a number")),
    );
    let disorder = updates.clone().key_by(|(key, ..)| *key).process(
        "order",
        |update: Update, last: &mut KeyState<'_, u64, u64>, out| {
            let last = last.or_insert_with(|| 0);
            if update.1 != *last + 1 {
                out.push((update.0, *last, update.1));
            }
            *last = update.1;
        },
    );
    let roll = Roll {
        bytes: random.pick(&[0, 64, 1 << 30]),
        age: random.pick(&[Duration::ZERO, Duration::MAX]),
    };
    let format = |update: &Update, out: &mut Collector<u8>| {
        writeln!(out, "{}\t{}\t{}", update.0, update.1, update.2).expect("memory takes it");
    };
    updates.clone().sink("files", Files::new("/out", roll, format));
    let (sink, updates_out) = Collect::new();
    updates.sink("updates out", sink);
    let (sink, second_out) = Collect::new();
    second.sink("second out", sink);
    let (sink, finals_out) = Collect::new();
    finals.sink("finals out", sink);
    let (sink, disorder_out) = Collect::new();
    disorder.sink("disorder out", sink);
    Simulated {
        graph: job.build().expect("a drawn job is well formed"),
        fixed,
        fuse,
        updates: updates_out,
        second: second_out,
        finals: finals_out,
        disorder: disorder_out,
        keys,
        expected,
    }
}

struct Shape<'a> {
    job: &'a Job,
    random: &'a mut Random,
    operators: u64,
    fixed: Vec<String>,
    fuse: Fuse,
}

type Drawn = (Stream<u64>, Vec<u64>);

impl Shape<'_> {
    fn name(&mut self, kind: &str) -> String {
        self.operators += 1;
        format!("{kind} {}", self.operators)
    }

    fn draw(&mut self, depth: u64) -> Drawn {
        if depth == 0 {
            return self.source();
        }
        let (stream, values) = self.draw(depth - 1);
        let salt = self.random.next();
        let kind = match self.random.below(12) {
            1 | 3 | 5 | 9.. if values.len() > RECORDS_MAX => 0,
            kind => kind,
        };
        match kind {
            0 => {
                let fuse = self.fuse.clone();
                let map = move |value| {
                    burn(&fuse);
                    mix(value ^ salt)
                };
                let name = self.name("map");
                (stream.map(&name, map), values.iter().map(|value| mix(value ^ salt)).collect())
            }
            1 => {
                let name = self.name("flat_map");
                let out = values.iter().flat_map(move |value| expand(*value)).collect();
                (stream.flat_map(&name, expand), out)
            }
            2 => {
                let name = self.name("filter");
                let keep = move |value: &u64| !mix(value ^ salt).is_multiple_of(3);
                (stream.filter(&name, keep), values.into_iter().filter(keep).collect())
            }
            3 => {
                let (left, right) = (self.name("left"), self.name("right"));
                let branch = stream.clone().map(&left, move |value| mix(value ^ salt));
                let both = branch.union(stream.map(&right, |value| value / 2));
                let out = values.iter().flat_map(|value| [mix(value ^ salt), value / 2]).collect();
                (both, out)
            }
            4 => {
                let (name, odd) = (self.name("split"), self.name("odd"));
                let route = |value: u64| {
                    if value.is_multiple_of(2) { Side::Left(value) } else { Side::Right(value) }
                };
                let (left, right) = stream.split(&name, route);
                let both = left.union(right.map(&odd, |value: u64| value.wrapping_mul(3)));
                let triple = |value: &u64| {
                    if value.is_multiple_of(2) { *value } else { value.wrapping_mul(3) }
                };
                (both, values.iter().map(triple).collect())
            }
            5 => {
                let copies = 1 + self.random.below(3) as usize;
                let name = self.name("everywhere");
                self.fixed.push(name.clone());
                let out = values.iter().flat_map(|value| vec![value + 1; copies]).collect();
                (stream.broadcast().map(&name, |value| value + 1).parallelism(copies), out)
            }
            6 => {
                let name = self.name("rebalanced");
                (
                    stream.rebalance().map(&name, |value| value ^ 1),
                    values.iter().map(|v| v ^ 1).collect(),
                )
            }
            7 => {
                let name = self.name("counted");
                let keyed = stream.key_by(|value| value % 7);
                let count =
                    |value, count: &mut KeyState<'_, u64, u64>, out: &mut Collector<u64>| {
                        *count.or_insert_with(|| 0) += 1;
                        out.push(value);
                    };
                (keyed.process(&name, count), values)
            }
            9.. => self.draw_loop(stream, &values),
            _ => {
                let below = self.random.below(depth);
                let (other, more) = self.draw(below);
                (stream.union(other), [values, more].concat())
            }
        }
    }

    /// A loop in one of several shapes. Its answer is computed by [`rounds`], record by record.
    fn draw_loop(&mut self, stream: Stream<u64>, values: &[u64]) -> Drawn {
        let name = self.name("loop");
        let [enter, step, route] = ["enter", "step", "route"].map(|kind| self.name(kind));
        let fuse = self.fuse.clone();
        let once = move |value: u64, out: &mut Collector<u64>| {
            burn(&fuse);
            round(value, out);
        };
        let route_on = |value: u64| {
            if value.is_multiple_of(16) { Side::Right(value) } else { Side::Left(value) }
        };
        let entered = stream.map(&enter, begin);
        let shape = self.random.below(6);
        let out = entered.iterate(&name, |inside| match shape {
            // All of it one task per worker.
            0 => inside.flat_map_into(&step, once).split(&route, route_on),
            // Records go round by their key.
            1 => inside
                .key_by(|value| value / 16 % 11)
                .process(&step, move |value, seen: &mut KeyState<'_, u64, u64>, out| {
                    *seen.or_insert_with(|| 0) += 1;
                    once(value, out);
                })
                .split(&route, route_on),
            // Back to any task.
            2 => {
                let (again, out) = inside.flat_map_into(&step, once).split(&route, route_on);
                (again.rebalance(), out)
            }
            // Two back-edges.
            3 => {
                let (again, out) = inside.flat_map_into(&step, once).split(&route, route_on);
                let left = again.clone().filter(&self.name("even"), |v| (v / 16).is_multiple_of(2));
                let right = again.filter(&self.name("odd"), |v| !(v / 16).is_multiple_of(2));
                (left.union(right.rebalance()), out)
            }
            // A loop in a loop: the inner one goes round while what is left is odd.
            4 => {
                let inner = self.name("inner loop");
                let [step2, route2] = ["inner step", "inner route"].map(|kind| self.name(kind));
                let odd = |value: u64| {
                    if value % 2 == 1 { Side::Left(value) } else { Side::Right(value) }
                };
                let inside = inside.iterate(&inner, |inside| {
                    inside.rebalance().flat_map_into(&step2, round).split(&route2, odd)
                });
                inside.flat_map_into(&step, once).split(&route, route_on)
            }
            // A shuffle, and a second way round by another operator.
            _ => {
                let late = self.name("late");
                let keyed = inside
                    .key_by(|value| value / 16 % 3)
                    .process(&step, move |value, _: &mut KeyState<'_, u64, u64>, out| {
                        once(value, out)
                    });
                let (again, out) = keyed.split(&route, route_on);
                (again.key_by(|value| value % 5).process(&late, pass), out)
            }
        });
        let mut expected = Vec::new();
        values.iter().for_each(|value| rounds(begin(*value), Collector::over(&mut expected)));
        (out, expected)
    }

    fn source(&mut self) -> Drawn {
        let (name, salt) = (self.name("source"), self.random.next());
        let records = self.random.pick(&[0, 1, 300, 900, 1_500]);
        let values: Vec<u64> = (0..records).map(|index| mix(index ^ salt) >> 8).collect();
        let made = values.clone();
        let stream = if self.random.one_in(4) {
            self.job.source(&name, Items::new("drawn", move || made.clone().into_iter()))
        } else {
            let make = move |index, out: &mut Collector<u64>| out.push(mix(index ^ salt) >> 8);
            self.job.source(&name, Generator::new("drawn", records, make))
        };
        let rate = self.random.pick(&[None, None, Some(20_000.0), Some(100_000.0)]);
        (if let Some(rate) = rate { stream.rate(rate) } else { stream }, values)
    }
}

/// None to three records, now and then more than a batch.
fn expand(value: u64) -> Vec<u64> {
    let copies = if value % 211 == 7 { 700 } else { value % 4 };
    (0..copies).map(|copy| mix(value.wrapping_add(copy))).collect()
}

fn pass(value: u64, _: &mut KeyState<'_, u64, u64>, out: &mut Collector<u64>) {
    out.push(value);
}

/// What goes round: up to 15 rounds are left in the low four bits.
fn begin(value: u64) -> u64 {
    value / 64 * 16 + value % 64 % [1, 4, 9, 16][(value / 64 % 4) as usize]
}

/// One round: one fewer is left, now and then of two records (which then have half as many).
fn round(value: u64, out: &mut Collector<u64>) {
    let (rest, left) = (value / 16, value % 16);
    if left == 0 {
        out.push(value);
        return;
    }
    let next = |rest: u64, left| (mix(rest) >> 8) / 16 * 16 + left;
    if left > 2 && rest.is_multiple_of(5) {
        out.extend([next(rest, left / 2), next(rest + 1, left / 2)]);
    } else {
        out.push(next(rest, left - 1));
    }
}

/// All rounds of one record, by recursion.
fn rounds(value: u64, out: &mut Collector<u64>) {
    if value.is_multiple_of(16) {
        out.push(value);
        return;
    }
    let mut next = Vec::new();
    round(value, Collector::over(&mut next));
    next.into_iter().for_each(|value| rounds(value, out));
}

fn burn(fuse: &Fuse) {
    if fuse.load(Ordering::Relaxed) > 0 && fuse.fetch_sub(1, Ordering::Relaxed) == 1 {
        panic!("injected");
    }
}

/// Per key: how many, and the values.
fn by_key(values: &[u64], key: impl Fn(u64) -> u64) -> BTreeMap<u64, Vec<u64>> {
    let mut keys: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    values.iter().for_each(|value| keys.entry(key(*value)).or_default().push(*value));
    keys
}

/// Whether `updates` are, for each key, the counts 1 to C each once, and between each two of them
/// exactly one value of that key.
fn check_updates(
    what: &str,
    updates: &[Update],
    values: &BTreeMap<u64, Vec<u64>>,
) -> Result<(), String> {
    let mut found: BTreeMap<u64, BTreeMap<u64, u64>> = BTreeMap::new();
    for (key, count, sum) in updates {
        if found.entry(*key).or_default().insert(*count, *sum).is_some() {
            return Err(format!("{what}: update {count} of key {key} came twice"));
        }
    }
    for (key, values) in values {
        let sums = found.remove(key).unwrap_or_default();
        if !sums.keys().copied().eq(1..=values.len() as u64) {
            return Err(format!(
                "{what}: key {key} has {} of {} updates",
                sums.len(),
                values.len()
            ));
        }
        let mut before = 0_u64;
        let step = |sum: &u64| sum.wrapping_sub(std::mem::replace(&mut before, *sum));
        let mut steps: Vec<u64> = sums.values().map(step).collect();
        let mut values = values.clone();
        steps.sort_unstable();
        values.sort_unstable();
        if steps != values {
            return Err(format!("{what}: the updates of key {key} are not its values"));
        }
    }
    if found.is_empty() { Ok(()) } else { Err(format!("{what}: unknown keys {:?}", found.keys())) }
}

impl Simulated {
    /// What is wrong with the committed results of a complete job; only in files, where what had
    /// been published was taken back.
    pub fn check(&self, out: &Committed, taken_back: bool) -> Result<(), String> {
        let keys = by_key(&self.expected, |value| value % self.keys);
        check_updates("files", &out.files, &keys)?;
        if taken_back {
            return Ok(());
        }
        check_updates("collected", &out.updates, &keys)?;
        let mut counts: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for (key, values) in &keys {
            counts.entry(key % GROUPS).or_default().extend(1..=values.len() as u64);
        }
        check_updates("second", &out.second, &counts)?;
        let sum =
            |values: &Vec<u64>| values.iter().fold(0_u64, |sum, value| sum.wrapping_add(*value));
        let finals = keys.iter().map(|(key, v)| (format!("key {key}"), (v.len() as u64, sum(v))));
        let mut finals: Vec<_> = finals.collect();
        let mut found = out.finals.clone();
        finals.sort_unstable();
        found.sort_unstable();
        if finals != found {
            return Err(format!("finals: {found:?} instead of {finals:?}"));
        }
        if !out.disorder.is_empty() {
            return Err(format!("out of order (key, after, came): {:?}", out.disorder));
        }
        Ok(())
    }

    /// What is wrong with the files of a job that has not ended: doubled or unknown lines.
    pub fn check_partly(&self, files: &[Update]) -> Result<(), String> {
        let keys = by_key(&self.expected, |value| value % self.keys);
        let mut seen = std::collections::BTreeSet::new();
        for (key, count, _) in files {
            let known = keys.get(key).map_or(0, |values| values.len() as u64);
            if *count == 0 || *count > known || !seen.insert((*key, *count)) {
                return Err(format!(
                    "files: key {key} has {known} updates; {count} is wrong or twice"
                ));
            }
        }
        Ok(())
    }
}

/// Everything committed so far, in order of commit.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Committed {
    pub updates: Vec<Update>,
    pub second: Vec<Update>,
    pub finals: Vec<(String, (u64, u64))>,
    pub disorder: Vec<Update>,
    pub files: Vec<Update>,
}

impl Committed {
    /// Takes what has been committed since the last call; files are read anew.
    pub fn take(&mut self, from: &Simulated, lines: &[String]) {
        self.updates.extend(from.updates.take());
        self.second.extend(from.second.take());
        self.finals.extend(from.finals.take());
        self.disorder.extend(from.disorder.take());
        self.files = lines.iter().map(|line| parse(line)).collect();
    }
}

fn parse(line: &str) -> Update {
    let numbers: Vec<u64> = line.split('\t').filter_map(|number| number.parse().ok()).collect();
    let [key, count, sum] = numbers[..] else { panic!("no line of ours: '{line}'") };
    (key, count, sum)
}
