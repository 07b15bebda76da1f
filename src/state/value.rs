//! A value per task.
//!
//! Invariants
//! - While a mark is open, `captured` holds the marked value's bytes from the first access for
//!   writing on.

use super::{Drained, OperatorState, SCHEMA_VALUE, StateWriter};
use crate::error::Error;
use crate::id::{SnapshotId, StateSlot};
use crate::record::Data;

/// What one task of an operator knows besides its keys.
pub struct ValueState<V> {
    subtask: u32,
    value: V,
    restored: Vec<(u32, V)>,
    capture: Capture,
}

enum Capture {
    /// No mark is open.
    None,
    /// The value is the captured one.
    Marked(SnapshotId),
    /// The value may have changed; these are the captured bytes, or why there are none.
    Preserved(SnapshotId, Result<Vec<u8>, String>),
}

impl<V: Data> ValueState<V> {
    /// The state of task `subtask`, which starts as `value`.
    #[must_use]
    pub fn new(subtask: u32, value: V) -> Self {
        Self { subtask, value, restored: Vec::new(), capture: Capture::None }
    }

    /// The value.
    #[must_use]
    pub fn get(&self) -> &V {
        &self.value
    }

    /// The value, to change it.
    pub fn get_mut(&mut self) -> &mut V {
        if let Capture::Marked(snapshot) = self.capture {
            self.capture = Capture::Preserved(snapshot, serialise(&self.value));
        }
        &mut self.value
    }

    /// What every task of the operator knew in the snapshot this job was restored from, with its
    /// subtask. The value is this task's own of them, if there was one; with another parallelism it is
    /// for the operator to merge the others.
    #[must_use]
    pub fn restored(&self) -> &[(u32, V)] {
        &self.restored
    }
}

fn serialise<V: Data>(value: &V) -> Result<Vec<u8>, String> {
    let bytes =
        value.to_archive().map_err(|error| format!("a value does not serialise: {error}"))?;
    Ok(bytes.to_vec())
}

impl<V: Data> OperatorState for ValueState<V> {
    fn mark(&mut self, snapshot: SnapshotId) {
        assert!(matches!(self.capture, Capture::None), "a mark while one is open");
        self.capture = Capture::Marked(snapshot);
    }

    fn drain(&mut self, _budget_bytes: usize, out: &mut dyn StateWriter) -> Result<Drained, Error> {
        let (snapshot, bytes) = match std::mem::replace(&mut self.capture, Capture::None) {
            Capture::None => return Ok(Drained::Done),
            Capture::Marked(snapshot) => (snapshot, serialise(&self.value)),
            Capture::Preserved(snapshot, bytes) => (snapshot, bytes),
        };
        let bytes = bytes.map_err(|reason| Error::Snapshot { snapshot, reason })?;
        out.write(StateSlot::Task(self.subtask), SCHEMA_VALUE, &bytes);
        Ok(Drained::Done)
    }

    fn abandon(&mut self) {
        self.capture = Capture::None;
    }

    fn restore(&mut self, slot: StateSlot, schema: u32, bytes: &[u8]) -> Result<(), String> {
        let StateSlot::Task(subtask) = slot else {
            return Err(format!("{slot:?} is not the state of a task"));
        };
        if schema != SCHEMA_VALUE {
            return Err(format!("schema {schema}, expected {SCHEMA_VALUE} (one value)"));
        }
        let value = V::from_archive(bytes).map_err(|error| format!("a value: {error}"))?;
        if subtask == self.subtask {
            self.value = value.clone();
        }
        self.restored.push((subtask, value));
        Ok(())
    }
}
