//! The jobs that come with tidegate: what the command line runs, what benchmarks measure.
//!
//! Here stands what they share: which results are emitted, where they go, how input is paced. Measured
//! runs are sent by a [`timetable`] and their [`arrivals`] noted.

pub mod arrivals;
pub mod components;
pub mod paper;
pub mod timetable;
pub mod updates;
pub mod word_count;

use std::path::PathBuf;

use crate::operator::sink::{Console, Files, Roll};
use crate::record::{Collector, Record};
use crate::stream::{Job, Stream};

/// Which results are emitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Emit {
    /// Each key once, with its result, when the input has ended.
    #[default]
    Final,
    /// Every new result of every key.
    Updates,
}

/// Where the lines of results go.
#[derive(Clone, Debug, Default)]
pub struct Output {
    /// A directory for files; without one, standard output.
    pub directory: Option<PathBuf>,
    /// When files become visible.
    pub roll: Roll,
}

impl Output {
    /// Ends `results` there, as operator "out"; `write_line(result, out)` appends a line with its end.
    pub fn take<T: Record>(
        &self,
        results: Stream<T>,
        write_line: impl Fn(&T, &mut Collector<u8>) + Clone + Send + Sync + 'static,
    ) {
        match &self.directory {
            Some(directory) => results.sink("out", Files::new(directory, self.roll, write_line)),
            None => results.sink("out", Console::new(write_line)),
        }
    }
}

/// What of a job's identity its user gives as options, by the names of these: a snapshot directory of
/// another job is refused in such words.
fn name_options(job: &Job, emit: Emit, limit: Option<u64>) {
    let emit = if emit == Emit::Final { "final" } else { "updates" };
    job.parameter("--emit", emit);
    job.parameter("--limit", limit.map_or("none".into(), |limit| limit.to_string()));
}

/// `stream` out of a source, at `rate` items per second if there is one.
fn paced<T: Record>(stream: Stream<T>, rate: Option<f64>) -> Stream<T> {
    match rate {
        Some(rate) => stream.rate(rate),
        None => stream,
    }
}

/// Appends `number` and what follows it.
fn write_number(number: u64, behind: u8, out: &mut Collector<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    out.push(behind);
}
