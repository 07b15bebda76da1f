//! The "paper" workload: six operators, three full shuffles, a checksum with a closed form.
//!
//! ```text
//! source   i in 0..records, split evenly
//! map      k = key(i, keys), value = value(k)
//!          shuffle by k
//! sum      s[k] += value                  emits (key2(k), s)
//!          shuffle by key2
//! count    c[key2] += 1, m = max(m, s)    emits (key3(key2), c, m)
//!          shuffle by key3
//! total    t[key3] += c + m               emits (key3, t)
//! sink     checksum += checksum_term(key3, t), in any order
//! ```
//!
//! Invariants
//! - All arithmetic wraps on `u64`.
//! - [`mix`], [`key2`] and [`key3`] are bijections, so keys never meet behind a shuffle and each
//!   key's records stay in order: its j-th total is `(1 + value) * j * (j + 1) / 2`.
//!
//! ```
//! use tidegate::workload::paper;
//! assert_eq!(paper::expected_checksum(0, 10), 0);
//! ```

/// SplitMix64: increment, then finalise (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number
/// Generators", 2014).
#[inline]
#[must_use]
pub const fn mix(x: u64) -> u64 {
    let z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The key of record `index` among `keys` keys, in `0..keys`.
#[inline]
#[must_use]
pub const fn key(index: u64, keys: u64) -> u64 {
    (mix(index) >> 1) % keys
}

/// The value that every record of `key` carries, in `1..=1024`.
#[inline]
#[must_use]
pub const fn value(key: u64) -> u64 {
    (key & 1023) + 1
}

/// The key of the second shuffle.
#[inline]
#[must_use]
pub const fn key2(key: u64) -> u64 {
    key.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// The key of the third shuffle, from that of the second.
#[inline]
#[must_use]
pub const fn key3(key2: u64) -> u64 {
    (key2 ^ (key2 >> 32)).wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

/// What one output record adds to the checksum.
#[inline]
#[must_use]
pub const fn checksum_term(key3: u64, total: u64) -> u64 {
    mix(key3 ^ total.rotate_left(32))
}

/// The indices that source instance `subtask` of `parallelism` emits.
///
/// # Panics
/// If there is no such instance.
#[must_use]
pub fn source_range(records: u64, subtask: usize, parallelism: usize) -> std::ops::Range<u64> {
    assert!(subtask < parallelism, "source instance {subtask} of {parallelism}");
    // In 128 bits, since the product may not fit into 64.
    let first = |task: usize| (u128::from(records) * task as u128 / parallelism as u128) as u64;
    first(subtask)..first(subtask + 1)
}

/// The checksum of a correct run, by the closed form: O(records) time, O(keys) memory.
///
/// # Panics
/// If `keys` is 0.
#[must_use]
pub fn expected_checksum(records: u64, keys: u64) -> u64 {
    assert!(keys > 0, "the paper workload needs at least one key");
    let mut occurrences = vec![0_u64; usize::try_from(keys).expect("keys fit into memory")];
    for index in 0..records {
        occurrences[key(index, keys) as usize] += 1;
    }
    let checksums = (0..keys).zip(occurrences).map(|(key, count)| key_checksum(key, count));
    checksums.fold(0, u64::wrapping_add)
}

/// What a key that occurs `count` times adds to the checksum.
fn key_checksum(key: u64, count: u64) -> u64 {
    let key3 = key3(key2(key));
    let step = value(key) + 1;
    let mut total = 0_u64;
    let mut checksum = 0_u64;
    for occurrence in 1..=count {
        // (1 + value) * j(j+1)/2, summed instead of multiplied: the same without an overflow in j(j+1).
        total = total.wrapping_add(step.wrapping_mul(occurrence));
        checksum = checksum.wrapping_add(checksum_term(key3, total));
    }
    checksum
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Runs the six operators one record at a time, as the module's doc states them.
    fn brute_force(records: u64, keys: u64) -> u64 {
        let mut sums: BTreeMap<u64, u64> = BTreeMap::new();
        let mut counts: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        let mut totals: BTreeMap<u64, u64> = BTreeMap::new();
        let mut checksum = 0_u64;
        for index in 0..records {
            let key = key(index, keys);
            let sum = sums.entry(key).or_default();
            *sum += value(key);
            let (count, largest) = counts.entry(key2(key)).or_default();
            *count += 1;
            *largest = (*largest).max(*sum);
            let total = totals.entry(key3(key2(key))).or_default();
            *total += *count + *largest;
            checksum = checksum.wrapping_add(checksum_term(key3(key2(key)), *total));
        }
        checksum
    }

    #[test]
    fn the_closed_form_equals_a_run_of_the_operators() {
        for keys in [1, 2, 7, 1000, 5000] {
            for records in [0, 1, 2, 100, 20_000] {
                let expected = brute_force(records, keys);
                assert_eq!(expected_checksum(records, keys), expected, "{records} over {keys}");
            }
        }
    }

    #[test]
    fn the_known_answers_come_out() {
        assert_eq!(expected_checksum(30_000_000, 1000), 0x6ee2_46ac_02b8_d911);
        assert_eq!(expected_checksum(40_000_000, 1_000_000), 0xabc1_895c_44a2_b9a3);
    }

    #[test]
    #[ignore = "two seconds that prove little more than the smaller answers, which always run"]
    fn the_larger_known_answers_come_out() {
        assert_eq!(expected_checksum(60_000_000, 1000), 0xa650_fc2d_0a9a_37ec);
        assert_eq!(expected_checksum(120_000_000, 1000), 0xb2c7_0a1d_892d_8291);
    }

    #[test]
    fn mix_gives_the_published_splitmix_sequence() {
        // The reference generator seeded with 1234567.
        let mut state = 1_234_567_u64;
        let sequence = [(); 3].map(|()| {
            let output = mix(state);
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            output
        });
        let published =
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!(sequence, published);
    }

    #[test]
    fn the_instances_of_a_source_share_all_indices() {
        for (records, parallelism) in [(0, 3), (10, 3), (2, 5), (u64::MAX, 7)] {
            let ranges: Vec<_> =
                (0..parallelism).map(|w| source_range(records, w, parallelism)).collect();
            assert_eq!((ranges[0].start, ranges[parallelism - 1].end), (0, records));
            assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start), "{ranges:?}");
        }
    }
}
