//! A run of records lent from a ring.
//!
//! Owns the way back: when the loan ends, by return or by panic, the slots of the records that were
//! taken go to the producer, with one store, and the rest stays next in order.
//!
//! Invariants
//! - Slots are released only if the batch that comes back is the batch that was lent. Safe code can
//!   swap a batch for another behind a `&mut`, or forget the loan; then all lent records count as
//!   taken (they leak if nobody took them), and their slots are released by a later poll, when no
//!   batch over them can be alive.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::consumer::Consumer;
use super::sync::Access;
use crate::record::Batch;

/// Records lent by [`Consumer::poll`]; use as a [`Batch`].
pub struct Lent<'a, T> {
    consumer: &'a mut Consumer<T>,
    batch: Batch<'a, T>,
    start: NonNull<T>,
    count: usize,
    access: Access,
}

impl<'a, T> Lent<'a, T> {
    #[inline]
    pub(super) fn new(
        consumer: &'a mut Consumer<T>,
        batch: Batch<'a, T>,
        start: NonNull<T>,
        count: usize,
        access: Access,
    ) -> Self {
        Self { consumer, batch, start, count, access }
    }

    /// Whether `batch` still is the one that was lent.
    #[inline]
    fn is_intact(&self) -> bool {
        let taken = self.batch.taken();
        let expected = self.start.as_ptr().wrapping_add(taken);
        std::ptr::eq(self.batch.as_slice().as_ptr(), expected)
            && self.batch.len() + taken == self.count
    }
}

impl<'a, T> Deref for Lent<'a, T> {
    type Target = Batch<'a, T>;

    #[inline]
    fn deref(&self) -> &Self::Target {
        &self.batch
    }
}

impl<T> DerefMut for Lent<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.batch
    }
}

impl<T> Drop for Lent<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.access.end();
        if self.is_intact() {
            self.consumer.end_loan(self.batch.len(), self.batch.taken() > 0);
        }
    }
}
