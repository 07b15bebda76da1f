//! The workload of the ABS paper's evaluation: six operators, three full shuffles, a closed-form
//! answer ([`expected_checksum`](crate::workload::paper::expected_checksum)).

use crate::error::Result;
use crate::graph::Graph;
use crate::operator::sink::{FoldSink, Folded};
use crate::operator::source::Generator;
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
