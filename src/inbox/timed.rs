//! Timed alignment: when a snapshot is waited for no longer.
//!
//! Each task looks at the clock by itself, and captures once the snapshot is overdue; nobody tells it.
//! That it counts from the trigger, not from when it hears of it or comes to look, makes all of them
//! capture at the same moment: a barrier has not one wait behind the other to get through.
//!
//! Invariants
//! - A capture before the alignment is complete never begins a log that is known to be too long.

use std::collections::VecDeque;

use super::Inbox;
use crate::clock;
use crate::config::{LOG_BYTES_MAX, Mode};
use crate::error::Result;
use crate::id::SnapshotId;
use crate::record::Record;

/// What a timed alignment waits for.
pub(super) struct Timed {
    /// Snapshots under way and when each is overdue, ns: at most as many as may be pending.
    awaited: VecDeque<(SnapshotId, u64)>,
    /// This snapshot waits for its alignment: the log of one before it was too long.
    blocking_until: SnapshotId,
    /// Logs that were too long so far.
    logs_failed: u64,
    /// Alignments that were waited out past their time.
    pub refused: u64,
    /// The last of them was for this snapshot.
    refused_last: SnapshotId,
}

impl Timed {
    pub fn new(captured: SnapshotId) -> Self {
        Self {
            awaited: VecDeque::new(),
            blocking_until: captured,
            logs_failed: 0,
            refused: 0,
            refused_last: captured,
        }
    }

    /// `snapshot` is captured.
    pub fn captured(&mut self, snapshot: SnapshotId) {
        self.awaited.retain(|(awaited, _)| *awaited > snapshot);
    }

    /// So many logs were too long so far: after one more, `next` waits for its alignment.
    pub fn sealed(&mut self, logs_failed: u64, next: SnapshotId) {
        if logs_failed > std::mem::replace(&mut self.logs_failed, logs_failed) {
            self.blocking_until = next;
        }
    }

    fn refuse(&mut self, snapshot: SnapshotId) {
        if snapshot > std::mem::replace(&mut self.refused_last, snapshot) {
            self.refused += 1;
        }
    }
}

impl<T: Record> Inbox<T> {
    /// A snapshot is under way since `triggered_ns`: its barrier will come.
    pub fn announce(&mut self, snapshot: SnapshotId, triggered_ns: u64) {
        let Mode::Unaligned { after } = self.setting.mode else { return };
        if snapshot > self.aligner.captured() {
            self.timed.awaited.push_back((snapshot, triggered_ns + clock::duration_ns(after)));
        }
    }

    /// When the announced snapshot is overdue, if it is not yet, ns.
    pub(super) fn overdue_at_ns(&self, now_ns: u64) -> Option<u64> {
        let (_, overdue_at_ns) = *self.timed.awaited.front()?;
        (now_ns < overdue_at_ns).then_some(overdue_at_ns)
    }

    pub(super) fn is_overdue(&self, now_ns: u64) -> bool {
        self.timed.awaited.front().is_some_and(|(_, overdue_at_ns)| now_ns >= *overdue_at_ns)
    }

    /// Alignment takes too long: captures without the inputs that are late, if they can be logged.
    pub(super) fn expire(&mut self) -> Result<Option<SnapshotId>> {
        let Some((snapshot, _)) = self.timed.awaited.front().copied() else { return Ok(None) };
        if snapshot <= self.timed.blocking_until || self.aside_bytes() > LOG_BYTES_MAX {
            self.timed.refuse(snapshot);
            return Ok(None);
        }
        let captured = self.aligner.expire(snapshot);
        captured.map_or(Ok(()), |captured| self.begin_log(captured))?;
        Ok(captured)
    }

    /// Bytes set aside that a capture now would have to log. What a blocked input has set aside is
    /// behind its barrier.
    fn aside_bytes(&self) -> usize {
        let inputs = self.inputs.iter().enumerate();
        let late = inputs.filter(|(input, _)| !self.aligner.is_blocked(*input));
        late.map(|(_, input)| input.backlog.len() * input.backlog.record_bytes()).sum()
    }
}
