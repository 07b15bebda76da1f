//! Loops, exactly once, in every way of `common::lives`.
//!
//! | trap of cycles | test |
//! |---|---|
//! | 18 full loops | `trap_18_..`; `a_loop_whose_keys_..` |
//! | 19 replay of the log | `trap_19_..`; `inbox::log` |
//! | 20 end of input | `trap_20_..`; `flight` |
//! | 21 nested and several loops | `trap_21_..`; `loops` |

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::graph;
use common::lives::{Case, MODES, assert_same, collected, in_every_way, seed, with};
use common::run::{Run, Told};
use tidegate::config::{Mode, Spill};
use tidegate::disk::MemoryDisk;
use tidegate::engine::End;
use tidegate::error::Error;
use tidegate::graph::Graph;
use tidegate::jobs::components::{Component, Message, components, updates};
use tidegate::operator::process::KeyState;
use tidegate::operator::sink::Collect;
use tidegate::operator::source::{Generator, Items};
use tidegate::operator::split::Side;
use tidegate::record::Collector;
use tidegate::stream::{Job, Stream};
use tidegate::workload::edges::Edges;

/// Random edges, and a path whose far end has the smallest vertex: its label travels all of it.
fn some_edges() -> Vec<(u64, u64)> {
    let random = Edges { vertices: 150, seed: 7 };
    let path = (200..260).map(|vertex| (vertex, vertex + 1));
    (0..100)
        .map(|index| random.edge(index))
        .chain(path.rev())
        .chain([(300, 300), (301, 300)])
        .collect()
}

fn messages(job: &Job) -> Stream<Message> {
    let edges = some_edges();
    let make = move |index, out: &mut Collector<Message>| {
        let (one, other) = edges[index as usize];
        out.extend([Message::neighbour(one, other), Message::neighbour(other, one)]);
    };
    job.source("edges", Generator::new("some edges", some_edges().len() as u64, make))
        .rate(20_000.0)
}

#[test]
fn components_and_degrees_equal_union_find_through_kills() {
    in_every_way(|case| {
        let job = Job::new("components");
        let found = components(messages(&job));
        let (graph, out) = collected(job, found);
        let kills = case.run(&graph);
        assert!(kills >= 1, "{kills} kills; {case:?}");
        let flat = |(vertex, Component { label, degree })| (vertex, (label, degree));
        let expected = graph::components(some_edges());
        assert_same(
            out.take().into_iter().map(flat).collect(),
            expected.into_iter().collect(),
            case,
        );
    });
}

#[test]
fn label_updates_fall_to_the_component_and_come_once_each_through_kills() {
    in_every_way(|case| {
        let job = Job::new("updates");
        let found = updates(messages(&job));
        let (graph, out) = collected(job, found);
        case.run(&graph);
        let mut labels: Vec<(u64, u64)> = out.take();
        let count = labels.len();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), count, "an update came twice; {case:?}");
        // Sorted by label within a vertex: the first is the last that was emitted.
        labels.dedup_by_key(|(vertex, _)| *vertex);
        let expected = graph::components(some_edges());
        assert_same(labels, expected.iter().map(|(v, (label, _))| (*v, *label)).collect(), case);
    });
}

/// Number, where it is, steps so far.
type Walk = (u64, u64, u64);

fn collatz_step((number, at, steps): Walk) -> Walk {
    (number, if at % 2 == 0 { at / 2 } else { 3 * at + 1 }, steps + 1)
}

fn route((number, at, steps): Walk) -> Side<Walk, (u64, u64)> {
    if at == 1 { Side::Right((number, steps)) } else { Side::Left((number, at, steps)) }
}

fn numbers(job: &Job, name: &str, records: u64) -> Stream<u64> {
    job.source(
        name,
        Generator::new("numbers", records, |index, out: &mut Collector<u64>| out.push(index)),
    )
}

#[test]
fn every_number_leaves_a_collatz_loop_once_with_its_steps_through_kills() {
    const NUMBERS: u64 = 300;
    let steps = |number: u64| {
        let (mut at, mut steps) = (number, 0);
        while at != 1 {
            (at, steps) = (if at % 2 == 0 { at / 2 } else { 3 * at + 1 }, steps + 1);
        }
        (number, steps)
    };
    in_every_way(|case| {
        let job = Job::new("collatz");
        let found = numbers(&job, "numbers", NUMBERS)
            .rate(40_000.0)
            .map("begin", |index| (index + 1, index + 1, 0))
            .iterate("again", |walks| {
                let (again, out) = walks.split("route", route);
                (again.rebalance().map("step", collatz_step), out)
            });
        let (graph, out) = collected(job, found);
        assert!(case.run(&graph) >= 1, "{case:?}");
        assert_same(out.take(), (1..=NUMBERS).map(steps).collect(), case);
    });
}

/// Two of each until they are `depth` deep.
fn doubling(stream: Stream<u64>, name: &str, depth: u64) -> Stream<(u64, u64)> {
    stream.map(&format!("{name} enters"), |number| (number, 0)).iterate(name, |inside| {
        inside
            .flat_map(&format!("{name} doubles"), |(number, deep): (u64, u64)| {
                [(number, deep + 1), (number, deep + 1)]
            })
            .rebalance()
            .split(&format!("{name} route"), move |(number, deep)| {
                let record = (number, deep);
                if deep == depth { Side::Right(record) } else { Side::Left(record) }
            })
    })
}

#[test]
fn trap_18_a_loop_that_doubles_its_records_passes_rings_of_one_slot() {
    const DEPTH: u32 = 8;
    for (workers, mode) in [1, 2].into_iter().flat_map(|workers| MODES.map(|mode| (workers, mode)))
    {
        let case = Case { workers, mode, ring_slots: 1, seed: seed() };
        let job = Job::new("doubling");
        let found = doubling(numbers(&job, "numbers", 20), "double", u64::from(DEPTH));
        let (graph, out) = collected(job, found);
        case.run(&graph);
        let one = |number| std::iter::repeat_n((number, u64::from(DEPTH)), 1 << DEPTH);
        assert_same(out.take(), (0..20).flat_map(one).collect(), &case);
    }
}

/// All records are in the loop from the first moments on and go round a thousand times, so that every
/// snapshot but the last few has some in transit. Each pass is counted beside it, by key: a logged
/// record that is replayed twice, or never, or is also still in a ring, changes a count.
#[test]
fn trap_19_records_in_transit_are_replayed_once_through_the_same_operator() {
    const RECORDS: u64 = 60;
    in_every_way(|case| {
        let job = Job::new("passes");
        let count = |(key, left): (u64, u64),
                     passes: &mut KeyState<'_, u64, u64>,
                     out: &mut Collector<_>| {
            let passes = passes.or_insert_with(|| 0);
            *passes += 1;
            out.push(if left == 0 {
                Side::Right((key, *passes))
            } else {
                Side::Left((key, left - 1))
            });
        };
        let found = numbers(&job, "numbers", RECORDS)
            .map("begin", |key| (key, 1_000 + key))
            .iterate("again", |inside| {
                inside.key_by(|(key, _)| *key).process("count", count).split("route", |side| side)
            });
        let (graph, out) = collected(job, found);
        assert!(case.run(&graph) >= 1, "{case:?}");
        assert_same(out.take(), (0..RECORDS).map(|key| (key, 1_001 + key)).collect(), case);
    });
}

#[test]
fn trap_20_a_loop_ends_when_nothing_goes_round_however_slow_its_body_is() {
    for mode in MODES {
        let case = Case { workers: 2, mode, ring_slots: 8, seed: seed() };
        let job = Job::new("slow");
        let slow = |walks: Stream<Walk>| {
            let (again, out) = walks.rebalance().split("route", route);
            (again.map("step", collatz_step), out)
        };
        let walks = numbers(&job, "numbers", 40).map("begin", |n| (n + 1, n + 1, 0));
        let found = walks.iterate("again", slow);
        let (graph, out) = collected(job, found.map("steps", |(number, _)| number));
        let mut run = Run::open(&graph, &with(2, 8, mode), &MemoryDisk::new(1));
        let mut turns = 0_u64;
        while run.ended.is_none() {
            run.supervise();
            run.step(0);
            // The other worker runs once in 100 ms: far longer than anything a timeout would wait for.
            if turns.is_multiple_of(2_000) {
                run.step(1);
            }
            turns += 1;
            assert!(turns < 3_000_000, "stuck; told: {:?}", run.told.last());
        }
        assert_eq!(run.end().expect("nothing goes wrong").end, End::Complete);
        assert_same(out.take(), (1..=40).collect(), &case);
    }
}

#[test]
fn trap_21_nested_loops_and_two_in_a_row_lose_and_repeat_nothing() {
    in_every_way(|case| {
        let job = Job::new("nested");
        let inner = |records: Stream<(u64, u64)>| {
            records.rebalance().map("down", |(number, left)| (number, left - 1)).split(
                "third",
                |(number, left)| {
                    let record = (number, left);
                    if left % 3 == 0 { Side::Right(record) } else { Side::Left(record) }
                },
            )
        };
        let found = numbers(&job, "numbers", 200)
            .rate(20_000.0)
            .map("begin", |number| (number, 30 + number % 7))
            .iterate("outer", |records| {
                records.iterate("inner", inner).split("zero", |(number, left)| {
                    if left == 0 { Side::Right(number) } else { Side::Left((number, left)) }
                })
            });
        let found = doubling(found, "double", 2);
        let (graph, out) = collected(job, found);
        case.run(&graph);
        assert_same(out.take(), (0..200).flat_map(|number| [(number, 2); 4]).collect(), case);
    });
}

/// What one back-edge may hold where a loop grows without end.
const MEMORY_BYTES: usize = 64 << 10;

/// The error, without who it happened to.
fn cause(error: &Error) -> &Error {
    match error {
        Error::Operator { source, .. } => cause(source),
        Error::RestartsExhausted { last, .. } => cause(last),
        other => other,
    }
}

#[test]
fn a_loop_that_amplifies_without_end_is_an_error_that_names_it_and_memory_stays_bounded() {
    for (workers, mode) in [1, 2].into_iter().flat_map(|workers| MODES.map(|mode| (workers, mode)))
    {
        let job = Job::new("endless");
        // Records that exist: made, and not dropped yet.
        let (made, left) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (makes, takes) = (made.clone(), left.clone());
        let found = numbers(&job, "numbers", 10).iterate("grow", |inside| {
            inside
                .inspect("take", move |_| _ = takes.fetch_add(1, Ordering::Relaxed))
                .flat_map("two", move |number| {
                    makes.fetch_add(2, Ordering::Relaxed);
                    [number, number]
                })
                .rebalance()
                .split(
                    "never",
                    |number| if number < 10 { Side::Left(number) } else { Side::Right(()) },
                )
        });
        let (graph, out) = collected(job, found);
        let mut config = with(workers, 8, mode);
        let (memory_bytes, disk_bytes) = (MEMORY_BYTES, 128 << 10);
        config.spill = Spill { memory_bytes, disk_bytes, ..Spill::default() };
        let mut run = Run::open(&graph, &config, &MemoryDisk::new(1));
        let error = run.end().expect_err("it cannot end well");
        let Error::Limit { what, limit, remedy } = cause(&error) else { panic!("{error}") };
        assert!(what.contains("loop 'grow'"), "{error}");
        assert!(limit.contains(&memory_bytes.to_string()), "{error}");
        assert!(remedy.contains("mend its body"), "{error}");
        let going_round = made.load(Ordering::Relaxed) - left.load(Ordering::Relaxed);
        let bytes = workers * workers * (memory_bytes + disk_bytes as usize);
        let in_batches = 20_000 * workers;
        assert!(going_round < bytes / size_of::<u64>() + in_batches, "{going_round} go round");
        assert!(out.take().is_empty());
    }
}

/// As many records go round as came in, and each is twice as long after each round. Bounds on their number
/// let the process grow until the machine's memory was full.
#[test]
fn a_loop_whose_records_grow_without_end_is_an_error_that_names_it() {
    for (workers, mode) in [1, 2].into_iter().flat_map(|workers| MODES.map(|mode| (workers, mode)))
    {
        let job = Job::new("grow");
        let longest = Arc::new(AtomicUsize::new(0));
        let seen = longest.clone();
        let found = numbers(&job, "numbers", 10).map("text", |number| number.to_string()).iterate(
            "grow",
            |inside| {
                inside
                    .map("double", move |text| {
                        seen.fetch_max(2 * text.len(), Ordering::Relaxed);
                        text.repeat(2)
                    })
                    .rebalance()
                    .split("never", |text| {
                        if text.is_empty() { Side::Right(text) } else { Side::Left(text) }
                    })
            },
        );
        let (graph, _out) = collected(job, found);
        let mut config = with(workers, 8, mode);
        let (memory_bytes, disk_bytes) = (MEMORY_BYTES, 128 << 10);
        config.spill = Spill { memory_bytes, disk_bytes, ..Spill::default() };
        let mut run = Run::open(&graph, &config, &MemoryDisk::new(1));
        let error = run.end().expect_err("it cannot end well");
        let Error::Limit { what, remedy, .. } = cause(&error) else { panic!("{error}") };
        assert!(what.contains("loop 'grow'"), "{error}");
        assert!(remedy.contains("mend its body"), "{error}");
        let longest = longest.load(Ordering::Relaxed);
        let bytes = 8 * memory_bytes + workers * (memory_bytes + disk_bytes as usize);
        assert!(longest < 4 * bytes, "one record took {longest} bytes");
    }
}

/// A snapshot is given up while its barrier is under way: one worker has it, and its sources wait; the other has
/// not heard of it yet, and hears of both at once. Neither may wait for it any more, nor a loop stay held.
#[test]
fn a_synchronous_snapshot_given_up_while_it_is_injected_holds_nothing_up_and_costs_no_record() {
    let case = Case { workers: 2, mode: Mode::Synchronous, ring_slots: 8, seed: seed() };
    const RECORDS: u64 = 10_000;
    let job = Job::new("given up");
    let entering =
        numbers(&job, "numbers", RECORDS).rate(10_000.0).map("begin", |number| (number, 5));
    let found = entering.iterate("again", |inside| {
        inside.rebalance().split("route", |(number, left): (u64, u64)| {
            if left == 0 { Side::Right(number) } else { Side::Left((number, left - 1)) }
        })
    });
    let (graph, out) = collected(job, found);
    let mut config = with(2, 8, case.mode);
    config.snapshots.as_mut().expect("it takes snapshots").timeout = Duration::from_millis(50);
    let mut run = Run::open(&graph, &config, &MemoryDisk::new(1));
    let given_up = |run: &Run<'_>| {
        let is_abort = |told: &&Told| matches!(told, Told::Aborted(_, why) if why.contains("not complete after"));
        run.told.iter().filter(is_abort).count()
    };
    for times in 1..=3 {
        run.until_completed(1);
        for turn in 0.. {
            if given_up(&run) >= times {
                break;
            }
            run.supervise();
            run.step(0);
            assert!(turn < 10_000, "it is not given up: {:?}", run.told.last());
        }
    }
    run.until_completed(1);
    let report = run.end().expect("nothing goes wrong");
    assert_eq!((report.end, report.restarts), (End::Complete, 0));
    assert_same(out.take(), (0..RECORDS).collect(), &case);
}

/// Each entrance looked at its own back-edge only. Keys lead all that goes round to one of the two; the
/// other, whose back-edge was empty, let in what made that one outgrow its bounds.
#[test]
fn a_loop_whose_keys_all_lead_to_one_entrance_is_not_taken_for_one_that_amplifies() {
    const RECORDS: u64 = 20_000;
    for (mode, blocked) in MODES.into_iter().flat_map(|mode| [(mode, true), (mode, false)]) {
        let case = Case { workers: 2, mode, ring_slots: 8, seed: seed() };
        let job = Job::new("skewed");
        let pass = |(number, left): (u64, u64),
                    _: &mut KeyState<'_, u64, u64>,
                    out: &mut Collector<_>| {
            out.push(if left == 0 { Side::Right(number) } else { Side::Left((number, left - 1)) });
        };
        let found = numbers(&job, "numbers", RECORDS)
            .map("begin", |number| (number, 5))
            .iterate("again", |inside| {
                inside.key_by(|_| 7_u64).process("pass", pass).split("route", |side| side)
            });
        let (graph, out) = collected(job, found);
        let mut config = with(2, 8, mode);
        let (memory_bytes, disk_bytes) = (64 << 10, 0);
        config.spill = Spill { memory_bytes, disk_bytes, blocked, ..Spill::default() };
        let mut run = Run::open(&graph, &config, &MemoryDisk::new(1));
        assert_eq!(run.end().expect("it makes no record").end, End::Complete);
        assert_same(out.take(), (0..RECORDS).collect(), &case);
    }
}

fn refusal(graph: Result<Graph, Error>) -> String {
    match graph {
        Err(error @ Error::Build { .. }) => error.to_string(),
        Err(error) => panic!("another error: {error}"),
        Ok(_) => panic!("it was built"),
    }
}

#[test]
fn an_operator_that_emits_at_the_end_is_refused_in_a_loop_and_pointed_behind_it() {
    let job = Job::new("late");
    let (sink, _) = Collect::new();
    numbers(&job, "numbers", 10)
        .iterate("again", |inside| {
            let sums = inside.key_by(|n| *n).fold_final("sum", || 0_u64, |sum, n| *sum += n);
            sums.split("route", |(_, sum)| if sum > 3 { Side::Left(sum) } else { Side::Right(sum) })
        })
        .sink("out", sink);
    let refusal = refusal(job.build());
    for needle in ["'sum'", "stands in a loop", "`.fold(..)`", "behind the loop"] {
        assert!(refusal.contains(needle), "{needle} in: {refusal}");
    }
}

/// The typed API cannot write one: a stream leads only forwards, but for what a body feeds back. So the
/// declaration is taken away from a graph that has it.
#[test]
fn a_cycle_that_is_not_declared_is_refused_and_printed() {
    let job = Job::new("cycle");
    let found = doubling(job.source("one", Items::new("one", || [1_u64].into_iter())), "double", 3);
    let (mut graph, _) = collected(job, found);
    assert!(graph.validate().is_ok());
    graph.edges.iter_mut().for_each(|edge| edge.feedback = false);
    let refusal = refusal(graph.validate().map(|()| graph));
    let cycle = "'double' -> 'double doubles' -> 'double route' -> 'double' is a cycle";
    assert!(refusal.contains(cycle) && refusal.contains("`.iterate(..)`"), "{refusal}");
}
