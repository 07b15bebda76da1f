//! The jobs that come with tidegate: what the command line runs, what benchmarks measure.

pub mod paper;
pub mod word_count;
