//! One keyed operator with much state: the workload of [`crate::workload::updates`] as a job.
//!
//! ```text
//! keys, then draws --> (by key) update --> checksum
//! ```

use std::sync::Arc;

use super::arrivals::{Arrivals, Noted};
use super::timetable::{Timed, Timetable, Timing};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::operator::process::KeyState;
use crate::operator::sink::{FoldSink, Folded};
use crate::record::Collector;
use crate::stream::Job;
use crate::workload::updates::{Draw, expected_checksum, update, update_term};

/// Sizes of a value that there is a job for, bytes.
pub const VALUE_BYTES: [usize; 8] = [8, 16, 32, 64, 128, 256, 512, 1024];
/// What a key takes in its slot, bytes.
pub const KEY_BYTES: usize = size_of::<u64>();

/// A job over `N` keys and its known answer.
pub struct Updates {
    /// To be run.
    pub graph: Graph,
    /// Where its checksum comes out.
    pub checksum: Folded,
    /// What has arrived of it.
    pub arrivals: Arrivals,
    answer: fn(&Draw, u64) -> u64,
    draw: Arc<Draw>,
}

impl Updates {
    /// All keys of `draw` loaded with values of `value_bytes`, then updated as `timing` says, which
    /// loads as many as there are keys.
    ///
    /// # Errors
    /// There is no job for values of this size.
    pub fn new(
        draw: &Arc<Draw>,
        value_bytes: usize,
        timing: Timing,
        workers: usize,
    ) -> Result<Self> {
        assert_eq!(timing.loaded, draw.keys(), "every key is loaded once");
        let make = match value_bytes {
            8 => job::<1>,
            16 => job::<2>,
            32 => job::<4>,
            64 => job::<8>,
            128 => job::<16>,
            256 => job::<32>,
            512 => job::<64>,
            1024 => job::<128>,
            _ => {
                let sizes = VALUE_BYTES.map(|bytes| bytes.to_string()).join(", ");
                return Err(Error::Config {
                    setting: "value-bytes".into(),
                    value: value_bytes.to_string(),
                    reason: format!("a size is built in, and these are: {sizes}"),
                });
            }
        };
        make(draw.clone(), timing, workers)
    }

    /// The checksum of a correct run of `records` updates, found by counting. Takes 8 bytes per key.
    #[must_use]
    pub fn expected_checksum(&self, records: u64) -> u64 {
        (self.answer)(&self.draw, records)
    }
}

fn job<const WORDS: usize>(draw: Arc<Draw>, timing: Timing, workers: usize) -> Result<Updates> {
    let job = Job::new("updates");
    job.parameter("keys", draw.keys());
    job.parameter("value-bytes", WORDS * size_of::<u64>());
    let timetable = Timetable::new(timing);
    let arrivals = Arrivals::new(timetable.clone());
    let (sink, checksum) =
        FoldSink::new(|(key, word, _): &(u64, u64, u64)| update_term(*key, *word));
    let sink = Noted::new(sink, |(_, _, due_ns)| *due_ns, arrivals.clone());
    let (keys, drawn) = (draw.keys(), draw.clone());
    let make = move |index: u64, due_ns, out: &mut Collector<(u64, u64)>| {
        let key = index.checked_sub(keys).map_or(index, |index| drawn.key(index));
        out.push((key, due_ns));
    };
    job.source("draws", Timed::new("keys", timetable, workers, make))
        .key_by(|record| record.0)
        .process("update", |(key, due_ns), state: &mut KeyState<'_, u64, [u64; WORDS]>, out| {
            let word = update(key, state.or_insert_with(|| [0; WORDS]));
            out.push((key, word, due_ns));
        })
        .sink("checksum", sink);
    let answer = expected_checksum::<WORDS>;
    Ok(Updates { graph: job.build()?, checksum, arrivals, answer, draw })
}
