//! The crate's own text, split by the crate, against the oracle.

mod common;

use std::collections::BTreeMap;

use tidegate::workload::words::words;
use tidegate::workload::zipf::ZipfText;

#[test]
fn words_split_line_by_line_are_counted_as_the_oracle_counts_the_whole() {
    let text = ZipfText::new(11, 5000, 8);
    let (mut whole, mut line) = (Vec::new(), Vec::new());
    let mut counts: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    for index in 0..5000 {
        line.clear();
        text.line(index, &mut line);
        words(&line).for_each(|word| *counts.entry(word.to_vec()).or_default() += 1);
        whole.extend_from_slice(&line);
        whole.extend_from_slice(if index % 3 == 0 { b"\r\n" } else { b"\n" });
    }
    assert_eq!(counts, common::count_words(&whole));
}
