//! Word count: the main job.
//!
//! A word is a maximal run of bytes other than ASCII white space; text need not be UTF-8. A line of
//! output is word, tab, count.

use std::path::PathBuf;

use smallvec::SmallVec;

use super::{Emit, Output, name_options, paced, write_number};
use crate::disk::Disk;
use crate::error::Result;
use crate::graph::Graph;
use crate::operator::source::{Generator, TextFile};
use crate::record::Collector;
use crate::stream::Job;
use crate::workload::words::words;
use crate::workload::zipf::{VOCABULARY_DEFAULT, WORDS_PER_LINE_DEFAULT, ZipfText};

/// A word: up to 16 bytes in place, longer ones on the heap.
pub type Word = SmallVec<[u8; 16]>;

/// Lines of generated text where no limit is given.
pub const GENERATED_LINES: u64 = 2_000_000;
/// Seed of the generated text.
pub const GENERATED_SEED: u64 = 1;

/// What to count, and where to.
#[derive(Clone, Debug, Default)]
pub struct WordCount {
    /// A text file; without one, text is generated.
    pub input: Option<PathBuf>,
    /// What is emitted.
    pub emit: Emit,
    /// Where results go.
    pub output: Output,
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

fn write_line((word, count): &(Word, u64), out: &mut Collector<u8>) {
    out.extend_from_slice(word);
    out.push(b'\t');
    write_number(*count, b'\n', out);
}

impl WordCount {
    /// The job.
    ///
    /// # Errors
    /// The input is missing, empty or unreadable.
    pub fn job(&self, disk: &dyn Disk) -> Result<Graph> {
        let job = Job::new("word-count");
        name_options(&job, self.emit, self.limit);
        let decode =
            |line: &[u8], out: &mut Collector<Word>| out.extend(words(line).map(Word::from_slice));
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
                let make = move |index, out: &mut Collector<Word>| {
                    let mut line = Vec::with_capacity(256);
                    text.line(index, &mut line);
                    decode(&line, out);
                };
                let lines = self.limit.unwrap_or(GENERATED_LINES);
                job.source("words", Generator::new("of zipf text, seed 1", lines, make))
            }
        };
        let words = paced(words, self.rate).key_by_ref(|word: &Word| word);
        let count = |count: &mut u64, _| *count += 1;
        let counts = match self.emit {
            Emit::Final => words.fold_final("count", || 0_u64, count),
            Emit::Updates => words.fold("count", || 0_u64, count),
        };
        self.output.take(counts, write_line);
        job.build()
    }
}
