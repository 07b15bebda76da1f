//! The "state" workload: values of any size, every key loaded once, then updated key by key.
//!
//! ```text
//! load     key k in 0..keys, once each
//! draw     record i updates key draw(i): evenly, or by Zipf's law
//! update   word 0 of the value counts; the next of the other words, in turn, takes the count in
//! out      update_term(key, what the update returned), summed, in any order
//! ```
//!
//! Invariants
//! - All arithmetic wraps on `u64`.
//! - Each of a value's words shows in some later result of its key, so a lost or torn value shows.
//! - The order of records does not matter, only how often each key is updated: the answer is found by
//!   counting, without the engine.
//!
//! ```
//! use tidegate::workload::updates::{Draw, Skew, expected_checksum, update, update_term};
//! let draw = Draw::new(Skew::Uniform, 1);
//! let mut value = [0; 2];
//! let sum = (0..4).map(|_| update_term(0, update(0, &mut value))).fold(0, u64::wrapping_add);
//! assert_eq!(expected_checksum::<2>(&draw, 3), sum, "loaded, then updated three times");
//! ```

use super::paper::mix;
use super::ranks::{Ranks, scale};

/// How unevenly keys are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skew {
    /// Each as often as any other.
    Uniform,
    /// The r-th most frequent in proportion to 1/r.
    Zipf,
}

/// Which key each record updates.
#[derive(Clone, Debug)]
pub struct Draw {
    keys: u64,
    ranks: Option<Ranks>,
}

impl Draw {
    /// Of `keys` keys.
    ///
    /// # Panics
    /// If there are none; with [`Skew::Zipf`], if there are more than
    /// [`RANKS_MAX`](super::ranks::RANKS_MAX).
    #[must_use]
    pub fn new(skew: Skew, keys: u64) -> Self {
        assert!(keys > 0, "nothing to draw from");
        let ranks = match skew {
            Skew::Uniform => None,
            Skew::Zipf => Some(Ranks::new(usize::try_from(keys).expect("keys fit into memory"))),
        };
        Self { keys, ranks }
    }

    /// How many keys there are.
    #[must_use]
    pub fn keys(&self) -> u64 {
        self.keys
    }

    /// The key of record `index`.
    #[inline]
    #[must_use]
    pub fn key(&self, index: u64) -> u64 {
        let random = mix(index);
        match &self.ranks {
            None => scale(random, self.keys),
            Some(ranks) => ranks.draw(random) as u64,
        }
    }
}

/// Updates the value of `key` and returns the word that has changed.
#[inline]
pub fn update<const WORDS: usize>(key: u64, value: &mut [u64; WORDS]) -> u64 {
    value[0] += 1;
    let count = value[0];
    if WORDS == 1 {
        return count;
    }
    let word = &mut value[1 + (count % (WORDS as u64 - 1)) as usize];
    *word = word.wrapping_add(mix(key ^ count));
    *word
}

/// What an update of `key` that returned `word` adds to the checksum.
#[inline]
#[must_use]
pub const fn update_term(key: u64, word: u64) -> u64 {
    mix(key ^ word.rotate_left(32))
}

/// The checksum of a correct run: every key loaded, then `records` updates. O(records) time, 8 bytes
/// per key.
#[must_use]
pub fn expected_checksum<const WORDS: usize>(draw: &Draw, records: u64) -> u64 {
    let mut updates = vec![1_u64; usize::try_from(draw.keys).expect("keys fit into memory")];
    (0..records).for_each(|index| updates[draw.key(index) as usize] += 1);
    let checksums = (0..).zip(updates).map(|(key, count)| {
        let mut value = [0; WORDS];
        let terms = (0..count).map(|_| update_term(key, update(key, &mut value)));
        terms.fold(0, u64::wrapping_add)
    });
    checksums.fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_a_value_shows_in_a_result_soon() {
        let results = |value: &mut [u64; 16]| [(); 15].map(|()| update(3, value));
        let mut whole = [0; 16];
        results(&mut whole);
        for word in 0..16 {
            let (mut value, mut damaged) = (whole, whole);
            damaged[word] ^= 1 << 40;
            assert_ne!(results(&mut value), results(&mut damaged), "word {word}");
        }
    }

    #[test]
    fn draws_are_even_or_follow_zipfs_law() {
        for (skew, most) in [(Skew::Uniform, 100.0), (Skew::Zipf, 100_000.0 / 7.485)] {
            let draw = Draw::new(skew, 1_000);
            let mut counts = vec![0_u64; 1_000];
            (0..100_000).for_each(|index| counts[draw.key(index) as usize] += 1);
            // Six standard deviations of a Poisson count.
            let off = (counts[0] as f64 - most).abs();
            assert!(off < 6.0 * most.sqrt(), "{skew:?}: {} instead of {most}", counts[0]);
        }
    }

    #[test]
    fn the_answer_tells_sizes_skews_and_lengths_apart() {
        let (even, zipf) = (Draw::new(Skew::Uniform, 50), Draw::new(Skew::Zipf, 50));
        let mut answers = vec![
            expected_checksum::<1>(&even, 500),
            expected_checksum::<2>(&even, 500),
            expected_checksum::<2>(&even, 501),
            expected_checksum::<2>(&zipf, 500),
        ];
        answers.sort_unstable();
        answers.dedup();
        assert_eq!(answers.len(), 4);
    }
}
