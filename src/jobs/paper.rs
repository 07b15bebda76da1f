//! The workload of the ABS paper's evaluation: six operators, three full shuffles, a closed-form
//! answer ([`expected_checksum`](crate::workload::paper::expected_checksum)).

use super::arrivals::{Arrivals, Noted};
use super::timetable::{Timed, Timetable, Timing};
use crate::error::Result;
use crate::graph::Graph;
use crate::operator::process::KeyState;
use crate::operator::sink::{FoldSink, Folded};
use crate::operator::source::Generator;
use crate::record::Collector;
use crate::stream::Job;
use crate::workload::paper::{checksum_term, key, key2, key3, value};

/// The job over `records` records and `keys` keys, and where its checksum comes out.
///
/// # Errors
/// None in practice: the job is well formed.
pub fn job(records: u64, keys: u64) -> Result<(Graph, Folded)> {
    let job = Job::new("paper");
    job.parameter("keys", keys);
    let (sink, checksum) = FoldSink::new(|(key3, total): &(u64, u64)| checksum_term(*key3, *total));
    job.source("source", Generator::new("indices", records, |index, out| out.push(index)))
        .map("map", move |index| {
            let key = key(index, keys);
            (key, value(key))
        })
        .key_by(|record| record.0)
        .aggregate(
            "sum",
            || 0_u64,
            |sum, (_, value)| *sum = sum.wrapping_add(value),
            |key, sum| (key2(*key), *sum),
        )
        .key_by(|record| record.0)
        .aggregate(
            "count",
            || (0_u64, 0_u64),
            |(count, max), (_, sum)| {
                *count += 1;
                *max = sum.max(*max);
            },
            |key2, (count, max)| (key3(*key2), *count, *max),
        )
        .key_by(|record| record.0)
        .aggregate(
            "total",
            || 0_u64,
            |total, (_, count, max)| *total = total.wrapping_add(count).wrapping_add(max),
            |key3, total| (*key3, *total),
        )
        .sink("checksum", sink);
    Ok((job.build()?, checksum))
}

/// The same job with each record's due time in it, for its latency: `records` at `per_second` over all
/// `workers`. A job of its own, as records of another size would not measure the same throughput.
///
/// # Errors
/// None in practice: the job is well formed.
pub fn timed_job(
    (records, keys): (u64, u64),
    per_second: f64,
    workers: usize,
) -> Result<(Graph, Folded, Arrivals)> {
    type State<'a, V> = KeyState<'a, u64, V>;
    let job = Job::new("paper, timed");
    job.parameter("keys", keys);
    let timetable = Timetable::new(Timing::of(records, Some(per_second)));
    let arrivals = Arrivals::new(timetable.clone());
    let (sink, checksum) =
        FoldSink::new(|(key3, total, _): &(u64, u64, u64)| checksum_term(*key3, *total));
    let sink = Noted::new(sink, |(_, _, due_ns)| *due_ns, arrivals.clone());
    let make = |index, due_ns, out: &mut Collector<(u64, u64)>| out.push((index, due_ns));
    job.source("source", Timed::new("indices", timetable, workers, make))
        .map("map", move |(index, due_ns)| {
            let key = key(index, keys);
            (key, value(key), due_ns)
        })
        .key_by(|record| record.0)
        .process("sum", |(key, value, due_ns), state: &mut State<'_, u64>, out| {
            let sum = state.or_insert_with(|| 0);
            *sum = sum.wrapping_add(value);
            out.push((key2(key), *sum, due_ns));
        })
        .key_by(|record| record.0)
        .process("count", |(key2, sum, due_ns), state: &mut State<'_, (u64, u64)>, out| {
            let (count, max) = state.or_insert_with(|| (0, 0));
            *count += 1;
            *max = sum.max(*max);
            out.push((key3(key2), *count, *max, due_ns));
        })
        .key_by(|record| record.0)
        .process("total", |(key3, count, max, due_ns), state: &mut State<'_, u64>, out| {
            let total = state.or_insert_with(|| 0);
            *total = total.wrapping_add(count).wrapping_add(max);
            out.push((key3, *total, due_ns));
        })
        .sink("checksum", sink);
    Ok((job.build()?, checksum, arrivals))
}
