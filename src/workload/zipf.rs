//! Text made from a seed: Zipf-distributed words, each line a pure function of its number.
//!
//! Owns the vocabulary; words are drawn by [`Ranks`]. A line is found by its number alone, so a source
//! keeps no generator state: its offset is the number of the next line.
//!
//! Invariants
//! - The same seed, vocabulary size and words per line give the same bytes on every machine: only
//!   integers and correctly rounded divisions and sums of `f64` are used.
//! - All words of a vocabulary differ, are valid UTF-8 and hold no ASCII white space.
//! - Word of rank r (from 1) is drawn with a probability proportional to 1/r.

use std::collections::BTreeSet;

use super::paper::mix;
use super::ranks::{Ranks, scale};

/// Distinct words of the text that the command line makes by itself.
pub const VOCABULARY_DEFAULT: usize = 100_000;
/// Words per line, on average, of that text.
pub const WORDS_PER_LINE_DEFAULT: usize = 10;
/// Largest vocabulary: its words stay far below the 4 GiB that their offsets can reach.
pub const VOCABULARY_MAX: usize = 10_000_000;
/// Most words per line, on average.
pub const WORDS_PER_LINE_MAX: usize = 1_000_000;

/// Words up to this length are copied as one block of this length.
const BLOCK_BYTES: usize = 16;
/// Increment of the SplitMix64 state.
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// A text without end. Made once (tens of milliseconds for the default vocabulary), shared freely.
///
/// ```
/// use tidegate::workload::zipf::ZipfText;
/// let text = ZipfText::new(1, 1000, 10);
/// let (mut first, mut again) = (Vec::new(), Vec::new());
/// text.line(41, &mut first);
/// text.line(41, &mut again);
/// assert_eq!(first, again);
/// ```
#[derive(Clone, Debug)]
pub struct ZipfText {
    seed: u64,
    words_per_line: u64,
    ranks: Ranks,
    spans: Vec<Span>,
    /// All words one after the other, then a block of zeros so that any word can be read as a block.
    letters: Vec<u8>,
}

/// Where a word stands in the letters.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    length: u32,
}

impl ZipfText {
    /// A text of `vocabulary` distinct words with 1 to `2 * words_per_line - 1` of them in a line,
    /// each number of words equally likely.
    ///
    /// # Panics
    /// If either is 0 or above [`VOCABULARY_MAX`] or [`WORDS_PER_LINE_MAX`].
    #[must_use]
    pub fn new(seed: u64, vocabulary: usize, words_per_line: usize) -> Self {
        assert!((1..=VOCABULARY_MAX).contains(&vocabulary), "a vocabulary of {vocabulary}");
        assert!((1..=WORDS_PER_LINE_MAX).contains(&words_per_line), "{words_per_line} per line");
        let mut letters = Vec::with_capacity(vocabulary * BLOCK_BYTES / 2);
        let mut spans = Vec::with_capacity(vocabulary);
        for word in vocabulary_of(seed, vocabulary) {
            spans.push(Span { start: letters.len() as u32, length: word.len() as u32 });
            letters.extend_from_slice(&word);
        }
        letters.extend_from_slice(&[0; BLOCK_BYTES]);
        assert!(u32::try_from(letters.len()).is_ok(), "{} bytes of words", letters.len());
        let ranks = Ranks::new(vocabulary);
        Self { seed: mix(seed), words_per_line: words_per_line as u64, ranks, spans, letters }
    }

    /// Appends line number `index`, without a line end, to `line`. Words stand one space apart.
    pub fn line(&self, index: u64, line: &mut Vec<u8>) {
        // A bijection of the index, so no two lines of a text start from the same state.
        let mut state = mix(self.seed.wrapping_add(index));
        let words = 1 + scale(mix(state), 2 * self.words_per_line - 1);
        for _ in 1..words {
            state = state.wrapping_add(GAMMA);
            self.append_word(mix(state), line);
            line.push(b' ');
        }
        self.append_word(mix(state.wrapping_add(GAMMA)), line);
    }

    #[inline]
    fn append_word(&self, random: u64, line: &mut Vec<u8>) {
        let span = self.spans[self.ranks.draw(random)];
        let (start, length) = (span.start as usize, span.length as usize);
        if length <= BLOCK_BYTES {
            // A block of fixed length, cut afterwards, is cheaper than a copy of unknown length.
            let end = line.len() + length;
            line.extend_from_slice(&self.letters[start..start + BLOCK_BYTES]);
            line.truncate(end);
        } else {
            line.extend_from_slice(&self.letters[start..start + length]);
        }
    }
}

/// `count` different words, the most frequent first and mostly the shortest.
fn vocabulary_of(seed: u64, count: usize) -> Vec<Vec<u8>> {
    let mut taken = BTreeSet::new();
    let mut words = Vec::with_capacity(count);
    for rank in 0..count as u64 {
        let mut state = mix(seed ^ mix(rank));
        let mut extra = 0;
        let word = loop {
            let word = make_word(&mut state, rank, extra);
            if taken.insert(word.clone()) {
                break word;
            }
            // Short words run out: let the length grow a little with every attempt.
            extra += 1;
        };
        words.push(word);
    }
    words
}

/// A word that can be pronounced, of a length that grows with the logarithm of its rank. A few are
/// long, very long or not ASCII, as in real text.
fn make_word(state: &mut u64, rank: u64, extra: u64) -> Vec<u8> {
    const ONSETS: &[u8] = b"tnsrhldcmfpgwbvkjxqz";
    const VOWELS: &[u8] = b"eaoiuy";
    const BEYOND_ASCII: [&str; 8] = ["é", "ü", "ß", "ñ", "λ", "ж", "語", "🌊"];
    let mut draw = |bound: u64| {
        *state = state.wrapping_add(GAMMA);
        scale(mix(*state), bound)
    };
    let magnitude = (rank + 1).ilog2();
    let length = match rank {
        _ if rank % 1009 == 500 => 41 + draw(24),
        _ if rank % 97 == 50 => 17 + draw(16),
        // Wider for rarer words: the few most frequent ones are short in every text.
        _ => 1 + u64::from(magnitude / 4) + draw(u64::from(3 + magnitude / 2)) + extra / 4,
    };
    let mut word = Vec::with_capacity(length as usize + 4);
    while (word.len() as u64) < length {
        // The smaller of two draws, so that common letters are common.
        let letters = if word.len() % 2 == 0 { ONSETS } else { VOWELS };
        let letter = draw(letters.len() as u64).min(draw(letters.len() as u64));
        word.push(letters[letter as usize]);
    }
    if rank % 23 == 11 {
        word.extend_from_slice(BEYOND_ASCII[draw(BEYOND_ASCII.len() as u64) as usize].as_bytes());
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::words::words;
    use std::collections::BTreeMap;

    fn text_of(text: &ZipfText, lines: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for index in 0..lines {
            text.line(index, &mut bytes);
            bytes.push(b'\n');
        }
        bytes
    }

    #[test]
    fn a_line_depends_on_seed_and_index_only() {
        let (mut forward, mut alone) = (Vec::new(), Vec::new());
        let text = ZipfText::new(7, 1000, 10);
        for index in (0..100).rev() {
            text.line(index, &mut forward);
        }
        for index in (0..100).rev() {
            ZipfText::new(7, 1000, 10).line(index, &mut alone);
        }
        assert_eq!(forward, alone);
        assert_ne!(text_of(&text, 10), text_of(&ZipfText::new(8, 1000, 10), 10));
    }

    #[test]
    fn the_bytes_never_change_between_versions() {
        // Offsets in snapshots count lines of this text: another text would make them wrong.
        let mut line = Vec::new();
        ZipfText::new(1, VOCABULARY_DEFAULT, WORDS_PER_LINE_DEFAULT).line(0, &mut line);
        let expected =
            "cocitul tad hew語 nemo gujem nesat vo tatolehe lemas j sek mesaha nemo jekoledyl";
        assert_eq!(String::from_utf8_lossy(&line), expected);
        let bytes = text_of(&ZipfText::new(42, 5000, 10), 2000);
        let digest = bytes.iter().fold(0, |digest, byte| mix(digest ^ u64::from(*byte)));
        assert_eq!(digest, 0x81c8_ccbf_684c_ea77, "{digest:#x}");
    }

    #[test]
    fn words_differ_are_utf8_and_come_in_all_lengths() {
        let words = vocabulary_of(3, 100_000);
        let distinct: BTreeSet<&Vec<u8>> = words.iter().collect();
        assert_eq!(distinct.len(), words.len());
        assert!(words.iter().all(|word| std::str::from_utf8(word).is_ok()));
        let split = |word: &Vec<u8>| crate::workload::words::words(word).eq([&word[..]]);
        assert!(words.iter().all(split));
        let count = |is: fn(&Vec<u8>) -> bool| words.iter().filter(|word| is(word)).count();
        assert!((500..5000).contains(&count(|word| word.len() > 16)));
        assert!((50..500).contains(&count(|word| word.len() > 40)));
        assert!((1000..10_000).contains(&count(|word| !word.is_ascii())));
    }

    #[test]
    fn frequencies_follow_one_over_rank() {
        let text = ZipfText::new(5, 1000, 20);
        let bytes = text_of(&text, 50_000);
        let mut counts: BTreeMap<&[u8], u64> = BTreeMap::new();
        words(&bytes).for_each(|word| *counts.entry(word).or_default() += 1);
        let total: u64 = counts.values().sum();
        let harmonic: f64 = (1..=1000).map(|rank| 1.0 / f64::from(rank)).sum();
        for (rank, word) in vocabulary_of(5, 1000).iter().enumerate() {
            let expected = total as f64 / (harmonic * (rank + 1) as f64);
            let found = counts.get(&word[..]).copied().unwrap_or(0) as f64;
            // Six standard deviations of a Poisson count.
            let tolerance = 6.0 * expected.sqrt();
            assert!((found - expected).abs() < tolerance, "rank {rank}: {found}, {expected}");
        }
    }

    #[test]
    fn a_word_with_its_separator_takes_about_seven_bytes() {
        let text = ZipfText::new(9, VOCABULARY_DEFAULT, WORDS_PER_LINE_DEFAULT);
        let bytes = text_of(&text, 20_000);
        let per_word = bytes.len() as f64 / words(&bytes).count() as f64;
        assert!((6.0..8.0).contains(&per_word), "{per_word}");
        let per_line = words(&bytes).count() as f64 / 20_000.0;
        assert!((9.8..10.2).contains(&per_line), "{per_line}");
    }

    #[test]
    fn the_smallest_text_has_one_word_per_line() {
        let text = ZipfText::new(0, 1, 1);
        let bytes = text_of(&text, 3);
        assert_eq!(words(&bytes).count(), 3);
        let first = words(&bytes).next().map(<[u8]>::to_vec);
        assert!(words(&bytes).all(|word| Some(word) == first.as_deref()));
    }
}
