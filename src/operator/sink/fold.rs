//! Results folded into one number per job (a checksum, a count) whose order does not matter.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Sink, Writer, WriterContext, bad_handle};
use crate::disk::Disk;
use crate::error::Result;
use crate::id::SnapshotId;
use crate::operator::Flow;
use crate::record::{Batch, Record};

/// The committed sum.
#[derive(Clone, Debug, Default)]
pub struct Folded {
    sum: Arc<AtomicU64>,
}

impl Folded {
    /// Wrapping sum over all committed records.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum.load(Ordering::Acquire)
    }
}

/// Wrapping sum of a number per record.
pub struct FoldSink<T, F> {
    folded: Folded,
    number: F,
    record: std::marker::PhantomData<fn(T)>,
}

impl<T: Record, F: Fn(&T) -> u64 + Clone + Send + Sync + 'static> FoldSink<T, F> {
    /// Sums up `number(record)`; the sum comes out of the second part.
    #[must_use]
    pub fn new(number: F) -> (Self, Folded) {
        let folded = Folded::default();
        (Self { folded: folded.clone(), number, record: std::marker::PhantomData }, folded)
    }
}

impl<T: Record, F: Fn(&T) -> u64 + Clone + Send + Sync + 'static> Sink for FoldSink<T, F> {
    type Item = T;

    fn identity(&self) -> String {
        "fold".into()
    }

    fn recover(&self, handles: Option<&[Vec<u8>]>, _disk: &dyn Disk) -> Result<()> {
        let mut sum = 0_u64;
        for handle in handles.unwrap_or_default() {
            let bytes = handle.as_slice().try_into();
            let bytes = bytes.map_err(|_| bad_handle("fold", "it is not 8 bytes long"))?;
            sum = sum.wrapping_add(u64::from_le_bytes(bytes));
        }
        self.folded.sum.store(sum, Ordering::Release);
        Ok(())
    }

    fn writer(&self, context: &WriterContext) -> Result<Box<dyn Writer<T>>> {
        // What earlier writers summed up goes on in the handle of task 0.
        let before = if context.subtask == 0 { self.folded.sum() } else { 0 };
        Ok(Box::new(FoldWriter {
            folded: self.folded.clone(),
            number: self.number.clone(),
            sum: before,
            committed: before,
            prepared: VecDeque::new(),
        }))
    }
}

struct FoldWriter<F> {
    folded: Folded,
    number: F,
    sum: u64,
    /// This writer's share of the published sum.
    committed: u64,
    prepared: VecDeque<(SnapshotId, u64)>,
}

impl<F> FoldWriter<F> {
    fn publish(&mut self, sum: u64) {
        self.folded.sum.fetch_add(sum.wrapping_sub(self.committed), Ordering::AcqRel);
        self.committed = sum;
    }
}

impl<T, F: Fn(&T) -> u64 + Send> Writer<T> for FoldWriter<F> {
    fn write(&mut self, records: &mut Batch<'_, T>) -> Result<Flow> {
        let number = &self.number;
        let numbers = records.drain(usize::MAX).map(|record| number(&record));
        self.sum = numbers.fold(self.sum, u64::wrapping_add);
        Ok(Flow::Done)
    }

    fn prepare(&mut self, snapshot: SnapshotId) -> Result<Vec<u8>> {
        self.prepared.push_back((snapshot, self.sum));
        Ok(self.sum.to_le_bytes().to_vec())
    }

    fn commit(&mut self, snapshot: SnapshotId, _last: bool) -> Result<()> {
        while let Some((_, sum)) = self.prepared.pop_front_if(|(id, _)| *id <= snapshot) {
            self.publish(sum);
        }
        Ok(())
    }

    fn commit_all(&mut self) -> Result<()> {
        self.publish(self.sum);
        Ok(())
    }
}
