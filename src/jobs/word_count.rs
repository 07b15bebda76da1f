//! Word count: the main job.
//!
//! A word is a maximal run of bytes other than ASCII white space; text need not be UTF-8. A line of
//! output is word, tab, count.

use std::path::PathBuf;

use smallvec::SmallVec;

use crate::disk::Disk;
use crate::error::Result;
use crate::graph::Graph;
use crate::operator::sink::{Console, Files, Roll};
use crate::operator::source::{Generator, TextFile};
use crate::stream::Job;
use crate::workload::words::words;
use crate::workload::zipf::{VOCABULARY_DEFAULT, WORDS_PER_LINE_DEFAULT, ZipfText};

/// A word: up to 16 bytes in place, longer ones on the heap.
pub type Word = SmallVec<[u8; 16]>;

/// Lines of generated text where no limit is given.
pub const GENERATED_LINES: u64 = 2_000_000;
/// Seed of the generated text.
pub const GENERATED_SEED: u64 = 1;

/// Which counts are emitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Emit {
    /// Each word once, with its count, when the input has ended.
    #[default]
    Final,
    /// Every new count of every word.
    Updates,
}

/// What to count, and where to.
#[derive(Clone, Debug, Default)]
pub struct WordCount {
    /// A text file; without one, text is generated.
    pub input: Option<PathBuf>,
    /// What is emitted.
    pub emit: Emit,
    /// A directory for files; without one, results go to standard output.
    pub output: Option<PathBuf>,
    /// When output files become visible.
    pub roll: Roll,
    /// Lines per second; without one, as fast as possible.
    pub rate: Option<f64>,
    /// Only so many lines.
    pub limit: Option<u64>,
}

/// The text that is counted where no input is given.
#[must_use]
pub fn generated_text() -> ZipfText {
    ZipfText::new(GENERATED_SEED, VOCABULARY_DEFAULT, WORDS_PER_LINE_DEFAULT)
}

fn write_line((word, count): &(Word, u64), out: &mut Vec<u8>) {
    out.extend_from_slice(word);
    out.push(b'\t');
    out.extend_from_slice(itoa::Buffer::new().format(*count).as_bytes());
    out.push(b'\n');
}

impl WordCount {
    /// The job.
    ///
    /// # Errors
    /// The input is missing, empty or unreadable.
    pub fn job(&self, disk: &dyn Disk) -> Result<Graph> {
        let job = Job::new("word-count");
        // The names of the options, by which a snapshot directory of another job is refused.
        let emit = if self.emit == Emit::Final { "final" } else { "updates" };
        job.parameter("--emit", emit);
        job.parameter("--limit", self.limit.map_or("none".into(), |limit| limit.to_string()));
        let decode =
            |line: &[u8], out: &mut Vec<Word>| out.extend(words(line).map(Word::from_slice));
        let words = match &self.input {
            Some(path) => {
                let mut file = TextFile::open(path, disk)?;
                if let Some(limit) = self.limit {
                    file = file.limit(limit, disk)?;
                }
                job.source("words", file.decode(decode))
            }
            None => {
                let text = generated_text();
                let make = move |index, out: &mut Vec<Word>| {
                    let mut line = Vec::with_capacity(256);
                    text.line(index, &mut line);
                    decode(&line, out);
                };
                let lines = self.limit.unwrap_or(GENERATED_LINES);
                job.source("words", Generator::new("of zipf text, seed 1", lines, make))
            }
        };
        let words = match self.rate {
            Some(rate) => words.rate(rate),
            None => words,
        };
        let words = words.key_by_ref(|word: &Word| word);
        let count = |count: &mut u64, _| *count += 1;
        let counts = match self.emit {
            Emit::Final => words.fold_final("count", || 0_u64, count),
            Emit::Updates => words.fold("count", || 0_u64, count),
        };
        match &self.output {
            Some(directory) => counts.sink("out", Files::new(directory, self.roll, write_line)),
            None => counts.sink("out", Console::new(write_line)),
        }
        job.build()
    }
}
