//! `tidegate text`: the generated text, so that its counts can be checked with other tools.

use std::io::{self, BufWriter, Write as _};

use clap::Args;
use tidegate::jobs::word_count::{GENERATED_LINES, GENERATED_SEED};
use tidegate::workload::zipf::{VOCABULARY_DEFAULT, WORDS_PER_LINE_DEFAULT, ZipfText};

use super::exit::{Failure, stdout_failure};

/// Print the text that word-count reads where it has no --input
#[derive(Args)]
pub struct Arguments {
    /// Lines to print
    #[arg(long, value_name = "LINES", default_value_t = GENERATED_LINES)]
    limit: u64,
    /// Another seed gives another text
    #[arg(long, value_name = "SEED", default_value_t = GENERATED_SEED)]
    seed: u64,
}

/// Runs it.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let text = ZipfText::new(arguments.seed, VOCABULARY_DEFAULT, WORDS_PER_LINE_DEFAULT);
    let mut stdout = BufWriter::with_capacity(64 << 10, io::stdout().lock());
    let mut line = Vec::new();
    for index in 0..arguments.limit {
        line.clear();
        text.line(index, &mut line);
        line.push(b'\n');
        stdout.write_all(&line).map_err(stdout_failure)?;
    }
    stdout.flush().map_err(stdout_failure)
}
