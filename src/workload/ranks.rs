//! Ranks drawn with Zipf's law: rank r, from 1, with a probability proportional to 1/r.
//!
//! Walker's alias method, in the construction of Vose ("A Linear Algorithm for Generating Random Numbers
//! with a Given Distribution", 1991): one look at a table of 8 bytes per rank.
//!
//! Invariants
//! - The same on every machine: only integers and correctly rounded divisions and sums of `f64`.

/// Most ranks: an alias is kept in 32 bits.
pub const RANKS_MAX: usize = u32::MAX as usize;

/// A table to draw from.
#[derive(Clone, Debug)]
pub struct Ranks {
    slots: Vec<AliasSlot>,
}

/// One column of the table: below the threshold it means itself, else its alias.
#[derive(Clone, Copy, Debug)]
struct AliasSlot {
    threshold: u32,
    alias: u32,
}

impl Ranks {
    /// So many ranks.
    ///
    /// # Panics
    /// If there are none, or more than [`RANKS_MAX`].
    #[must_use]
    pub fn new(ranks: usize) -> Self {
        assert!((1..=RANKS_MAX).contains(&ranks), "{ranks} ranks");
        Self { slots: alias_table(ranks) }
    }

    /// The rank, from 0, that these random bits mean.
    #[inline]
    #[must_use]
    pub fn draw(&self, random: u64) -> usize {
        let column = scale(random, self.slots.len() as u64) as usize;
        let slot = self.slots[column];
        // The column came from the upper bits; the lower half decides within it.
        let keeps = (random as u32) < slot.threshold;
        if keeps { column } else { slot.alias as usize }
    }
}

/// Maps 64 random bits to `0..bound` by their upper bits.
#[inline]
#[must_use]
pub fn scale(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}

/// Columns so that drawing one evenly and then it or its alias gives rank r with weight 1/r.
fn alias_table(ranks: usize) -> Vec<AliasSlot> {
    let sum: f64 = (1..=ranks).rev().map(|rank| 1.0 / rank as f64).sum();
    // Probabilities in units of a column; the columns below 1 are filled up from those above.
    let mut weights: Vec<f64> =
        (1..=ranks).map(|rank| ranks as f64 / (rank as f64 * sum)).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) =
        (0..ranks).partition(|column| weights[*column] < 1.0);
    let mut slots: Vec<AliasSlot> =
        (0..ranks).map(|column| AliasSlot { threshold: u32::MAX, alias: column as u32 }).collect();
    while let (Some(low), Some(high)) = (small.pop(), large.last().copied()) {
        slots[low] =
            AliasSlot { threshold: (weights[low] * 4_294_967_296.0) as u32, alias: high as u32 };
        weights[high] -= 1.0 - weights[low];
        if weights[high] < 1.0 {
            large.pop();
            small.push(high);
        }
    }
    // What is left of either list is 1 but for rounding, and each means itself already.
    slots
}
