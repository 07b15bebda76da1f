//! Results into memory: for tests and for a program that embeds a job.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rkyv::{Archive, Deserialize, Serialize};

use super::{Sink, Writer, WriterContext, bad_handle};
use crate::disk::Disk;
use crate::error::Result;
use crate::id::SnapshotId;
use crate::operator::Flow;
use crate::record::{Batch, Data, Record};

/// Committed results, shared between the job and whoever made the [`Collect`].
pub struct Collected<T> {
    shared: Arc<Mutex<Shared<T>>>,
}

/// Records of one task, as of one snapshot. `number` counts the commits of that writer.
type Prepared<T> = (SnapshotId, Vec<T>);

struct Shared<T> {
    records: Vec<T>,
    /// The newest committed snapshot of each writer: a commit that comes again is known.
    committed: Vec<SnapshotId>,
}

fn lock<T>(shared: &Mutex<Shared<T>>) -> MutexGuard<'_, Shared<T>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Collected<T> {
    /// Takes out what has been committed since the last call, in commit order per task.
    #[must_use]
    pub fn take(&self) -> Vec<T> {
        std::mem::take(&mut lock(&self.shared).records)
    }
}

/// Sink of committed results in memory. Survives restarts of the job, not of the process.
pub struct Collect<T> {
    shared: Arc<Mutex<Shared<T>>>,
}

impl<T: Record> Collect<T> {
    /// The sink, and where its results come out.
    #[must_use]
    pub fn new() -> (Self, Collected<T>) {
        let shared = Shared { records: Vec::new(), committed: Vec::new() };
        let shared = Arc::new(Mutex::new(shared));
        (Self { shared: shared.clone() }, Collected { shared })
    }
}

/// What a snapshot holds of a writer: everything not known to be committed.
#[derive(Archive, Serialize, Deserialize, Clone)]
struct Handle {
    subtask: u64,
    /// (snapshot, archive of each record)
    prepared: Vec<(u64, Vec<Vec<u8>>)>,
}

impl<T: Record> Sink for Collect<T> {
    type Item = T;

    fn identity(&self) -> String {
        "collect".into()
    }

    fn recover(&self, handles: Option<&[Vec<u8>]>, _disk: &dyn Disk) -> Result<()> {
        let mut shared = lock(&self.shared);
        for handle in handles.unwrap_or_default() {
            let handle = Handle::from_archive(handle).map_err(|e| bad_handle("collect", e))?;
            for (snapshot, records) in handle.prepared {
                let records = records.iter().map(|record| T::from_archive(record));
                let records: Result<Vec<T>, _> = records.collect();
                let records = records.map_err(|e| bad_handle("collect", e))?;
                shared.commit(handle.subtask as usize, SnapshotId(snapshot), records);
            }
        }
        Ok(())
    }

    fn writer(&self, context: &WriterContext) -> Result<Box<dyn Writer<T>>> {
        Ok(Box::new(CollectWriter {
            subtask: context.subtask,
            shared: self.shared.clone(),
            open: Vec::new(),
            prepared: VecDeque::new(),
        }))
    }
}

impl<T> Shared<T> {
    fn commit(&mut self, subtask: usize, snapshot: SnapshotId, records: Vec<T>) {
        if self.committed.len() <= subtask {
            self.committed.resize(subtask + 1, SnapshotId::default());
        }
        if snapshot > self.committed[subtask] {
            self.committed[subtask] = snapshot;
            self.records.extend(records);
        }
    }
}

struct CollectWriter<T> {
    subtask: usize,
    shared: Arc<Mutex<Shared<T>>>,
    open: Vec<T>,
    prepared: VecDeque<Prepared<T>>,
}

impl<T: Record> Writer<T> for CollectWriter<T> {
    fn write(&mut self, records: &mut Batch<'_, T>) -> Result<Flow> {
        self.open.extend(records.drain(usize::MAX));
        Ok(Flow::Done)
    }

    fn prepare(&mut self, snapshot: SnapshotId) -> Result<Vec<u8>> {
        self.prepared.push_back((snapshot, std::mem::take(&mut self.open)));
        let mut prepared = Vec::new();
        for (snapshot, records) in &self.prepared {
            let archives = records.iter().map(|record| Ok(record.to_archive()?.to_vec()));
            let archives: Result<_, rkyv::rancor::BoxedError> = archives.collect();
            prepared.push((snapshot.0, archives.map_err(|e| bad_handle("collect", e))?));
        }
        let handle = Handle { subtask: self.subtask as u64, prepared };
        Ok(handle.to_archive().map_err(|e| bad_handle("collect", e))?.to_vec())
    }

    fn commit(&mut self, snapshot: SnapshotId, _last: bool) -> Result<()> {
        let mut shared = lock(&self.shared);
        while let Some((_, records)) = self.prepared.pop_front_if(|(id, _)| *id <= snapshot) {
            // Each writer commits under the id that is complete: all of these belong to it.
            shared.records.extend(records);
        }
        shared.commit(self.subtask, snapshot, Vec::new());
        Ok(())
    }

    fn commit_all(&mut self) -> Result<()> {
        lock(&self.shared).records.append(&mut self.open);
        Ok(())
    }
}
