//! What integration tests share: the oracle (answers computed without the engine, as plainly as
//! possible), chance from a seed, and a job stepped turn by turn.

#![allow(dead_code, reason = "each test binary uses a part of this")]

pub mod graph;
pub mod lives;
pub mod quiet;
pub mod random;
pub mod run;

use std::collections::BTreeMap;

/// How often each word occurs in `text`, by the definition of a word and nothing of the crate.
pub fn count_words(text: &[u8]) -> BTreeMap<Vec<u8>, u64> {
    let mut counts = BTreeMap::new();
    for word in text.split(|byte| matches!(byte, b' ' | b'\t' | b'\n' | 0x0B | 0x0C | b'\r')) {
        if !word.is_empty() {
            *counts.entry(word.to_vec()).or_default() += 1;
        }
    }
    counts
}
