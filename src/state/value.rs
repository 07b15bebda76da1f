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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::pieces::Pieces;

    #[test]
    fn the_marked_value_is_written_whatever_is_set_meanwhile() {
        let mut state = ValueState::new(2, String::from("before"));
        state.mark(SnapshotId(1));
        state.get_mut().push_str(", after");
        state.get_mut().push_str(", later");
        let mut pieces = Pieces::default();
        assert_eq!(state.drain(1, &mut pieces).unwrap(), Drained::Done);
        assert_eq!(state.get(), "before, after, later");
        let (slot, schema, bytes) = pieces.0.pop().unwrap();
        assert_eq!(state.drain(1, &mut pieces).unwrap(), Drained::Done);
        assert!(pieces.0.is_empty(), "more than once, or without a mark");

        let mut same = ValueState::new(2, String::new());
        same.restore(slot, schema, &bytes).unwrap();
        assert_eq!(same.get(), "before");
        let mut other = ValueState::new(0, String::from("mine"));
        other.restore(slot, schema, &bytes).unwrap();
        assert_eq!((other.get().as_str(), other.restored()), ("mine", &[(2, "before".into())][..]));
    }

    #[test]
    fn an_abandoned_mark_leaves_nothing_behind() {
        let mut state = ValueState::new(0, 1u64);
        state.mark(SnapshotId(1));
        *state.get_mut() = 2;
        state.abandon();
        state.mark(SnapshotId(2));
        let mut pieces = Pieces::default();
        assert_eq!(state.drain(1, &mut pieces).unwrap(), Drained::Done);
        assert_eq!(u64::from_archive(&pieces.0[0].2).unwrap(), 2);
    }

    #[test]
    fn bytes_that_are_not_the_value_are_an_error() {
        let mut state = ValueState::new(0, String::new());
        let task = StateSlot::Task(0);
        assert!(state.restore(StateSlot::Split(0), SCHEMA_VALUE, &[]).is_err());
        assert!(state.restore(task, 99, &[]).unwrap_err().contains("schema 99"));
        assert!(state.restore(task, SCHEMA_VALUE, &[1, 2, 3]).is_err());
    }
}
