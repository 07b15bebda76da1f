//! The edge between two tasks: a bounded ring of records, and beside it the positions of the
//! control marks that travel between them.
//!
//! Owns the ring: one [`Producer`], one [`Consumer`], both wait-free. Never blocks, never wakes
//! anyone, never allocates after construction. Knows nothing of alignment or snapshots: a
//! [`Control`](crate::record::Control) is carried, not understood.
//!
//! ```text
//! slots    [ . . r r r r r r r r . . . ]      positions only rise; slot = position & mask
//!                ^head   ^      ^tail
//! marks                  Barrier(7)           position of the first record behind it
//! ```
//!
//! Invariants (positions compared as distances, so they may wrap)
//! - `head <= published tail <= tail <= head + capacity`.
//! - Slots `head..tail` hold initialised records; each is moved out or dropped exactly once.
//! - Slots `head..published tail` are the consumer's, all others the producer's. They change hands
//!   only by the Release store of a position and the Acquire load of it.
//! - A mark at position `p` is stored before any tail above `p` is: whoever sees the record behind
//!   a mark sees the mark. It is delivered once: when `head == p`, or before, if the consumer lets it
//!   [overtake](Consumer::overtake) the records in front of it.
//! - Marks have their own few slots ([`CONTROLS_MAX`]), so a full ring never holds up a barrier. A slot is
//!   free again once its mark is delivered.
//!
//! ```
//! use tidegate::channel::{Polled, channel};
//! use tidegate::record::Control;
//!
//! let (mut producer, mut consumer) = channel::<u64>(4);
//! assert!(producer.room(2) >= 2);
//! producer.push(7);
//! producer.push(8);
//! producer.control(Control::End).unwrap();
//!
//! let Polled::Records(mut records) = consumer.poll(usize::MAX) else { panic!() };
//! assert_eq!(records.drain(usize::MAX).collect::<Vec<_>>(), [7, 8]);
//! drop(records);
//! assert!(matches!(consumer.poll(1), Polled::Control(Control::End)));
//! ```

mod consumer;
mod lent;
#[cfg(all(test, tidegate_loom))]
mod loom;
mod producer;
mod shared;
mod slots;
mod sync;
#[cfg(all(test, not(tidegate_loom)))]
mod tests;

pub use consumer::{Consumer, Polled};
pub use lent::Lent;
pub use producer::Producer;
pub use shared::CONTROLS_MAX;

use shared::Shared;
use sync::Arc;

/// The two ends of a new ring with `slots` slots, rounded up to a power of two and at least 1.
///
/// # Panics
/// If so many slots do not fit into memory.
#[must_use]
pub fn channel<T: Send>(slots: usize) -> (Producer<T>, Consumer<T>) {
    let shared = Arc::new(Shared::new(slots.max(1).next_power_of_two()));
    (Producer::new(shared.clone()), Consumer::new(shared))
}
