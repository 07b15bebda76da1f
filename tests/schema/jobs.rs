//! One job in two releases: three counts of the same numbers, each kept in its own way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rkyv::{Archive, Deserialize, Serialize};
use tidegate::graph::Graph;
use tidegate::operator::sink::{Collect, Collected};
use tidegate::operator::source::Generator;
use tidegate::record::{Collector, Data};
use tidegate::stream::{Job, Stream};

/// Numbers from 0 on.
const RECORDS: u64 = 3_000;

/// Version 2 of a count: how much of it was counted by version 1.
#[derive(Clone, Debug, Default, PartialEq, Archive, Serialize, Deserialize)]
pub struct Counted {
    count: u64,
    before: u64,
}

/// Version 2 of a list: how many of its numbers version 1 had put there.
#[derive(Clone, Debug, Default, PartialEq, Archive, Serialize, Deserialize)]
pub struct Listed {
    numbers: Vec<u64>,
    before: u64,
}

/// Results of a job whose counts are `C` and whose lists are `L`.
pub struct Found<C, L> {
    count: Collected<(u64, C)>,
    names: Collected<(String, C)>,
    lists: Collected<(String, L)>,
}

fn numbers(job: &Job) -> Stream<u64> {
    let make = |index, out: &mut Collector<u64>| out.push(index);
    job.source("numbers", Generator::new("numbers", RECORDS, make)).rate(200_000.0)
}

fn kind_of(number: &u64) -> u64 {
    number % 3
}

fn name_of(number: &u64) -> String {
    format!("a name that does not lie in its slot, but behind the page: {}", number % 2)
}

fn list_of(number: &u64) -> String {
    format!("list {}", number % 2)
}

fn is_listed(number: u64) -> bool {
    number % 97 < 2
}

/// The first release: all state of version 1.
pub fn first() -> (Graph, Found<u64, Vec<u64>>) {
    first_counting(|count: &mut u64| *count += 1)
}

/// The first release with counts of some type.
pub fn first_counting<C: Data + Default>(add: fn(&mut C)) -> (Graph, Found<C, Vec<u64>>) {
    let job = Job::new("evolving");
    let ((count, names, lists), found) = sinks();
    let numbers = numbers(&job);
    let update = move |count: &mut C, _: u64| add(count);
    let counts = numbers.clone().key_by(kind_of).fold_final("count", C::default, update);
    counts.sink("counts out", count);
    let named = numbers.clone().key_by(name_of).fold_final("names", C::default, update);
    named.sink("names out", names);
    let push = |list: &mut Vec<u64>, number| list.extend(is_listed(number).then_some(number));
    numbers.key_by(list_of).fold_final("lists", Vec::new, push).sink("lists out", lists);
    (job.build().expect("a job"), found)
}

/// How the second release goes about it.
pub struct Second {
    /// Whether it knows version 1.
    pub migrates: bool,
    /// Otherwise its migration of counts panics.
    pub may_migrate: Arc<AtomicBool>,
}

impl Default for Second {
    fn default() -> Self {
        Self { migrates: true, may_migrate: Arc::new(AtomicBool::new(true)) }
    }
}

/// The second release: all state of version 2.
pub fn second(how: Second) -> (Graph, Found<Counted, Listed>) {
    let Second { migrates, may_migrate } = how;
    let job = Job::new("evolving");
    let ((count, names, lists), found) = sinks();
    let numbers = numbers(&job);
    let add = |counted: &mut Counted, _| counted.count += 1;
    let convert = move |count| {
        assert!(may_migrate.load(Ordering::Relaxed), "not now");
        Counted { count, before: count }
    };
    let keyed = numbers.clone().key_by(kind_of).schema(2);
    let counts = if migrates {
        keyed.migrate(1, convert).fold_final("count", Counted::default, add)
    } else {
        keyed.fold_final("count", Counted::default, add)
    };
    counts.sink("counts out", count);
    let keyed = numbers.clone().key_by(name_of).schema(2);
    let keyed = keyed.migrate(1, |count| Counted { count, before: count });
    keyed.fold_final("names", Counted::default, add).sink("names out", names);
    let convert = |numbers: Vec<u64>| Listed { before: numbers.len() as u64, numbers };
    let push = |list: &mut Listed, number| list.numbers.extend(is_listed(number).then_some(number));
    let keyed = numbers.key_by(list_of).schema(2).migrate(1, convert);
    keyed.fold_final("lists", Listed::default, push).sink("lists out", lists);
    (job.build().expect("a job"), found)
}

/// A job whose one operator declares this version, and ways from others.
pub fn declaring(version: u32, from: &[u32]) -> Job {
    let job = Job::new("declaring");
    let (sink, _found) = Collect::new();
    let keyed = numbers(&job).key_by(kind_of).schema(version);
    let add = |count: &mut u64, _| *count += 1;
    let counts = match from {
        [] => keyed.fold("count", u64::default, add),
        [one] => keyed.migrate(*one, |count: u32| count.into()).fold("count", u64::default, add),
        _ => panic!("two ways are not needed here"),
    };
    counts.sink("out", sink);
    job
}

/// A second release that takes counts for what they were not.
pub fn mistaken() -> Graph {
    let job = Job::new("evolving");
    let ((count, names, lists), _found) = sinks::<u64, u64>();
    let numbers = numbers(&job);
    let add = |count: &mut u64, _| *count += 1;
    let keyed = numbers.clone().key_by(kind_of).schema(2).migrate(1, |count: u128| count as u64);
    keyed.fold_final("count", u64::default, add).sink("counts out", count);
    let named = numbers.clone().key_by(name_of).fold_final("names", u64::default, add);
    named.sink("names out", names);
    numbers.key_by(list_of).fold_final("lists", u64::default, add).sink("lists out", lists);
    job.build().expect("a job")
}

type Sinks<C, L> = (Collect<(u64, C)>, Collect<(String, C)>, Collect<(String, L)>);

fn sinks<C: Data, L: Data>() -> (Sinks<C, L>, Found<C, L>) {
    let ((count, counts), (names, named), (lists, listed)) =
        (Collect::new(), Collect::new(), Collect::new());
    ((count, names, lists), Found { count: counts, names: named, lists: listed })
}

/// By key what `add` makes of its numbers up to `end`.
fn expected<K: Ord, V: Default>(
    end: u64,
    key: impl Fn(&u64) -> K,
    add: impl Fn(&mut V, u64),
) -> BTreeMap<K, V> {
    let mut expected = BTreeMap::new();
    (0..end).for_each(|number| add(expected.entry(key(&number)).or_default(), number));
    expected
}

fn by_key<K: Ord, V>(found: &Collected<(K, V)>) -> BTreeMap<K, V> {
    let found = found.take();
    let keys = found.len();
    let found: BTreeMap<K, V> = found.into_iter().collect();
    assert_eq!(found.len(), keys, "every key once");
    found
}

fn add(count: &mut u64, _number: u64) {
    *count += 1;
}

fn push(list: &mut Vec<u64>, number: u64) {
    list.extend(is_listed(number).then_some(number));
}

impl<C, L> Found<C, L> {
    /// Whether there is no result.
    pub fn is_empty(&self) -> bool {
        self.count.take().is_empty() && self.names.take().is_empty() && self.lists.take().is_empty()
    }
}

impl Found<u64, Vec<u64>> {
    /// Every number was counted once.
    pub fn assert_exact(&self) {
        assert_eq!(by_key(&self.count), expected(RECORDS, kind_of, add));
        assert_eq!(by_key(&self.names), expected(RECORDS, name_of, add));
        let mut found = by_key(&self.lists);
        found.values_mut().for_each(|numbers| numbers.sort_unstable());
        assert_eq!(found, expected(RECORDS, list_of, push));
    }
}

impl Found<Counted, Listed> {
    /// Every number was counted once, and those up to one of them by version 1.
    pub fn assert_exact(&self) {
        let count = by_key(&self.count);
        let cut = count.values().map(|counted| counted.before).sum();
        assert!(0 < cut && cut < RECORDS, "a snapshot in the middle, not at {cut}");
        assert_counts(count, cut, kind_of);
        assert_counts(by_key(&self.names), cut, name_of);
        let (all, before) = (RECORDS, expected(cut, list_of, push));
        let listed = expected(all, list_of, push).into_iter().map(|(list, numbers)| {
            let before = before.get(&list).map_or(0, |numbers: &Vec<u64>| numbers.len() as u64);
            (list, Listed { numbers, before })
        });
        // Two sources side by side: between their numbers there is no order.
        let mut found = by_key(&self.lists);
        found.values_mut().for_each(|listed| listed.numbers.sort_unstable());
        assert_eq!(found, listed.collect());
    }
}

fn assert_counts<K: Ord + std::fmt::Debug>(
    found: BTreeMap<K, Counted>,
    cut: u64,
    key: impl Fn(&u64) -> K,
) {
    let (all, before) = (expected(RECORDS, &key, add), expected(cut, &key, add));
    let counted = all.into_iter().map(|(key, count)| {
        let before = before.get(&key).copied().unwrap_or(0);
        (key, Counted { count, before })
    });
    assert_eq!(found, counted.collect());
}
