//! A worker's share of each snapshot: from the capture of its first task to the ack.
//!
//! Owns the writing end of the snapshot directory and which tasks have captured and handed over what.
//! A snapshot goes through *gathering* (tasks capture, captured state is handed over piece by piece
//! between the tasks' steps) and *writing* (all of it is with the disk).
//!
//! Invariants
//! - Snapshots are gathered and acked in the order of their ids.
//! - A task has at most one captured version not yet handed over. If the next barrier comes before, the
//!   rest is handed over at once where it is little; where it is not, the next snapshot fails here: a
//!   task never stands still for the size of its state.
//! - After a large snapshot none is asked for until the next one is handed over here, so that few fail so.
//! - What turned out not to be durable is captured again before anything builds on it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::handover::Handover;
use crate::clock;
use crate::config::{CAPTURE_DRAIN_BYTES_MAX, SNAPSHOTS_PENDING_MAX};
use crate::error::{Error, Result};
use crate::id::SnapshotId;
use crate::phases::Phases;
use crate::state::Drained;
use crate::store::{PartRef, PartWriter, Written};
use crate::task::Task;

/// What a worker hands in for a snapshot.
#[derive(Clone, Debug, PartialEq)]
pub struct Share {
    /// Its durable part.
    pub part: PartRef,
    /// What that took.
    pub phases: Phases,
}

/// What the share of a snapshot came to.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is durable, and so is what sinks prepared.
    Durable(SnapshotId, Share),
    /// It could not be made durable.
    Failed(SnapshotId, String),
}

/// A snapshot on its way from the first capture to the disk.
struct Gathering {
    snapshot: SnapshotId,
    /// Tasks that have captured, and of those the ones that have handed over all.
    captured: Vec<bool>,
    drained: Vec<bool>,
    /// Bytes that the task which is handing over was given, and used up.
    used_bytes: usize,
    /// Whether a task had more to hand over than it may at the next barrier.
    is_large: bool,
    phases: Phases,
    first_capture_ns: u64,
    last_capture_ns: u64,
}

/// A snapshot whose part is with the disk.
struct Writing {
    snapshot: SnapshotId,
    phases: Phases,
    part: Option<PartRef>,
}

/// See the module's documentation.
pub(super) struct Shares {
    parts: PartWriter,
    tasks: usize,
    /// When snapshots were triggered that no task has captured yet.
    triggered: VecDeque<(SnapshotId, u64)>,
    /// The last that a task came to the barrier of.
    reached: SnapshotId,
    gathering: VecDeque<Gathering>,
    writing: VecDeque<Writing>,
    aborted: BTreeSet<SnapshotId>,
    outcomes: Vec<Outcome>,
    /// Whether the last snapshot was large, so that what the next one captures will take a while; and before
    /// the first, as nobody knows.
    is_large: bool,
    /// The last that the coordinator has triggered.
    heard_of: SnapshotId,
    handover: Arc<Handover>,
}

impl Shares {
    pub fn new(parts: PartWriter, tasks: usize, handover: Arc<Handover>) -> Self {
        Self {
            parts,
            tasks,
            triggered: VecDeque::with_capacity(SNAPSHOTS_PENDING_MAX),
            reached: handover.heard_of(),
            gathering: VecDeque::with_capacity(SNAPSHOTS_PENDING_MAX),
            writing: VecDeque::with_capacity(SNAPSHOTS_PENDING_MAX),
            aborted: BTreeSet::new(),
            outcomes: Vec::new(),
            is_large: true,
            heard_of: handover.heard_of(),
            handover,
        }
    }

    /// The coordinator has triggered `snapshot`. Its barrier may have come before the word of it: another worker
    /// heard of it first, and its records come straight to tasks here.
    pub fn triggered(&mut self, snapshot: SnapshotId, now_ns: u64) {
        if snapshot > self.reached {
            self.triggered.push_back((snapshot, now_ns));
        }
        self.heard_of = self.heard_of.max(snapshot);
        if self.tasks == 0 {
            // Nothing will come to the barrier; an empty part is this worker's share.
            self.gather(snapshot, clock::now_ns());
        }
    }

    /// Whether `snapshot` was given up here.
    pub fn is_aborted(&self, snapshot: SnapshotId) -> bool {
        self.aborted.contains(&snapshot)
    }

    /// `snapshot` is complete: nobody asks any more for those that were given up before.
    pub fn completed(&mut self, snapshot: SnapshotId) {
        self.aborted.retain(|aborted| *aborted > snapshot);
    }

    /// Whether the disk is awaited.
    pub fn is_writing(&self) -> bool {
        !self.writing.is_empty()
            || self.parts.is_waiting()
            || (!self.gathering.is_empty() && self.parts.is_backlogged())
    }

    /// Whether a file should be made for what comes next; asked once for each.
    pub fn wants_segment(&mut self) -> bool {
        self.parts.wants_segment()
    }

    /// What came of snapshots since this was asked last.
    pub fn take_outcomes(&mut self) -> Vec<Outcome> {
        std::mem::take(&mut self.outcomes)
    }

    /// Every input of `task` has delivered the barrier: mark, send it on. How long the task stood
    /// still, ns; `None` if it did not capture, as the snapshot has failed here.
    pub fn capture(
        &mut self,
        tasks: &mut [Task],
        task: usize,
        snapshot: SnapshotId,
    ) -> Result<Option<u64>> {
        let began_ns = clock::now_ns();
        self.reached = self.reached.max(snapshot);
        if !self.finish_draining(tasks, task)? {
            let reason = "the snapshot before is still being written; ask for fewer, or use a \
                          faster disk";
            self.fail(tasks, snapshot, reason.into())?;
        }
        if self.is_aborted(snapshot) {
            tasks[task].pass_barrier(snapshot)?;
            return Ok(None);
        }
        tasks[task].capture(snapshot)?;
        let now_ns = clock::now_ns();
        let stood_ns = now_ns - began_ns;
        let gathering = self.gather(snapshot, began_ns);
        gathering.captured[task] = true;
        gathering.last_capture_ns = now_ns;
        gathering.phases.capture_ns = gathering.phases.capture_ns.max(stood_ns);
        Ok(Some(stood_ns))
    }

    fn gather(&mut self, snapshot: SnapshotId, now_ns: u64) -> &mut Gathering {
        if self.gathering.back().is_none_or(|last| last.snapshot < snapshot) {
            self.triggered.retain(|(triggered, _)| *triggered >= snapshot);
            let triggered = self.triggered.pop_front().filter(|(id, _)| *id == snapshot);
            let start_delay_ns = triggered.map_or(0, |(_, ns)| now_ns.saturating_sub(ns));
            self.gathering.push_back(Gathering {
                snapshot,
                captured: vec![false; self.tasks],
                drained: vec![false; self.tasks],
                used_bytes: 0,
                is_large: false,
                phases: Phases { start_delay_ns, ..Phases::default() },
                first_capture_ns: now_ns,
                last_capture_ns: now_ns,
            });
        }
        let mut at = self.gathering.iter_mut().filter(|gathering| gathering.snapshot == snapshot);
        at.next().expect("pushed above, or when a task captured it first")
    }

    /// Hands over what `task` captured before, if that is little, so that it can capture again.
    /// Whether nothing is left.
    fn finish_draining(&mut self, tasks: &mut [Task], task: usize) -> Result<bool> {
        let open = |gathering: &&Gathering| gathering.captured[task] && !gathering.drained[task];
        let Some(snapshot) = self.gathering.iter().find(open).map(|open| open.snapshot) else {
            return Ok(true);
        };
        let drained = self.drain(tasks, snapshot, task, CAPTURE_DRAIN_BYTES_MAX)?;
        Ok(drained == Drained::Done)
    }

    /// Moves a piece of some `budget_bytes` on to the disk: of the index that is being put together, and of the oldest
    /// snapshot that is being gathered. Whether anything was done.
    pub fn drain_some(&mut self, tasks: &mut [Task], budget_bytes: usize) -> Result<bool> {
        let joined_bytes = self.parts.join(budget_bytes);
        let left_bytes = budget_bytes.saturating_sub(joined_bytes);
        let drained = self.drain_oldest(tasks, left_bytes)?;
        let is_captured = |g: &Gathering| g.captured.iter().zip(&g.drained).any(|(c, d)| *c && !*d);
        let is_aligning = !self.triggered.is_empty() || !self.gathering.is_empty();
        let is_open = (self.is_large && is_aligning)
            || self.gathering.iter().any(|gathering| gathering.is_large && is_captured(gathering));
        self.handover.tell(self.heard_of, is_open, self.is_large);
        Ok(drained || joined_bytes > 0)
    }

    fn drain_oldest(&mut self, tasks: &mut [Task], most_bytes: usize) -> Result<bool> {
        if most_bytes == 0 {
            return Ok(false);
        }
        let Some(oldest) = self.gathering.front() else { return Ok(false) };
        if self.parts.is_backlogged() {
            return Ok(false); // the disk has enough to do
        }
        let snapshot = oldest.snapshot;
        let mut budget_bytes = most_bytes;
        for task in 0..self.tasks {
            let Some(oldest) = self.gathering.front().filter(|g| g.snapshot == snapshot) else {
                return Ok(true); // it has failed
            };
            if oldest.captured[task] && !oldest.drained[task] {
                let before = self.parts.appended_bytes();
                match self.drain(tasks, snapshot, task, budget_bytes)? {
                    Drained::More => return Ok(true),
                    Drained::Done => {
                        let bytes = (self.parts.appended_bytes() - before) as usize;
                        budget_bytes = budget_bytes.saturating_sub(bytes).max(1);
                    }
                    Drained::Waiting => {}
                }
            }
        }
        let Some(oldest) = self.gathering.front().filter(|g| g.snapshot == snapshot) else {
            return Ok(true);
        };
        if !oldest.drained.iter().all(|&drained| drained) {
            return Ok(budget_bytes < most_bytes); // a task is not at the barrier yet, or logs
        }
        self.finish(tasks)?;
        Ok(true)
    }

    /// All of the oldest snapshot is handed over.
    fn finish(&mut self, tasks: &mut [Task]) -> Result<()> {
        let Gathering { snapshot, is_large, mut phases, first_capture_ns, last_capture_ns, .. } =
            self.gathering.pop_front().expect("the caller has seen it");
        self.is_large = is_large;
        phases.alignment_ns = last_capture_ns - first_capture_ns;
        phases.drain_ns = clock::now_ns() - last_capture_ns;
        self.parts.begin(snapshot);
        match self.parts.finish() {
            Ok(()) => self.writing.push_back(Writing { snapshot, phases, part: None }),
            Err(error) => self.fail(tasks, snapshot, error.to_string())?,
        }
        Ok(())
    }

    /// Hands over a piece of what `task` captured for `snapshot`.
    fn drain(
        &mut self,
        tasks: &mut [Task],
        snapshot: SnapshotId,
        task: usize,
        budget_bytes: usize,
    ) -> Result<Drained> {
        self.parts.begin(snapshot);
        match tasks[task].drain(budget_bytes, &mut self.parts) {
            Ok(drained) => {
                let mut at = self.gathering.iter_mut().filter(|g| g.snapshot == snapshot);
                let gathering = at.next().expect("it is being gathered");
                match drained {
                    Drained::Done => {
                        gathering.drained[task] = true;
                        gathering.used_bytes = 0;
                    }
                    Drained::More => {
                        gathering.used_bytes += budget_bytes;
                        gathering.is_large |= gathering.used_bytes >= CAPTURE_DRAIN_BYTES_MAX;
                    }
                    Drained::Waiting => {}
                }
                Ok(drained)
            }
            Err(error) if is_of_snapshot(&error) => {
                self.fail(tasks, snapshot, error.to_string())?;
                Ok(Drained::Done)
            }
            Err(error) => Err(error),
        }
    }

    /// This worker cannot make its share of `snapshot` durable.
    fn fail(&mut self, tasks: &mut [Task], snapshot: SnapshotId, reason: String) -> Result<()> {
        self.outcomes.push(Outcome::Failed(snapshot, reason));
        self.give_up(tasks, snapshot)
    }

    /// Forgets `snapshot`.
    pub fn give_up(&mut self, tasks: &mut [Task], snapshot: SnapshotId) -> Result<()> {
        self.aborted.insert(snapshot);
        self.triggered.retain(|(triggered, _)| *triggered != snapshot);
        self.parts.abandon(snapshot);
        self.writing.retain(|writing| writing.snapshot != snapshot);
        let at = self.gathering.iter().position(|gathering| gathering.snapshot == snapshot);
        let Some(gathering) = at.and_then(|at| self.gathering.remove(at)) else { return Ok(()) };
        for (task, (captured, drained)) in
            gathering.captured.iter().zip(&gathering.drained).enumerate()
        {
            if *captured && !drained {
                tasks[task].abandon()?;
            }
        }
        Ok(())
    }

    /// Looks at what has become durable, or has not. Whether there was anything, or an index is to be joined.
    pub fn poll(&mut self, tasks: &mut [Task]) -> Result<bool> {
        let done = self.parts.poll();
        let worked = !done.is_empty() || self.parts.is_joining();
        for written in done {
            let Written { snapshot, result, write_ns, sync_ns, written_bytes, changed_bytes } =
                written;
            match result {
                Ok(part) => {
                    let mut at = self.writing.iter_mut().filter(|w| w.snapshot == snapshot);
                    if let Some(writing) = at.next() {
                        writing.part = Some(part);
                        writing.phases = Phases {
                            write_ns,
                            sync_ns,
                            written_bytes,
                            changed_bytes,
                            ..writing.phases
                        };
                    }
                }
                Err(error) => self.fail(tasks, snapshot, error.to_string())?,
            }
        }
        self.capture_lost_again(tasks)?;
        Ok(self.ack(tasks)? || worked)
    }

    fn capture_lost_again(&mut self, tasks: &mut [Task]) -> Result<()> {
        let lost = self.parts.take_lost();
        if lost.is_empty() {
            return Ok(());
        }
        while let Some(gathering) = self.gathering.front() {
            let snapshot = gathering.snapshot;
            self.fail(tasks, snapshot, self.parts.baseless())?;
        }
        tasks.iter_mut().try_for_each(|task| task.lost(&lost))
    }

    /// Acks in order.
    fn ack(&mut self, tasks: &mut [Task]) -> Result<bool> {
        let mut worked = false;
        while let Some(Writing { snapshot, part: Some(_), .. }) = self.writing.front() {
            for task in &mut *tasks {
                if !task.is_prepared(*snapshot)? {
                    return Ok(worked);
                }
            }
            let Writing { snapshot, phases, part } = self.writing.pop_front().expect("seen above");
            let share = Share { part: part.expect("seen above"), phases };
            self.outcomes.push(Outcome::Durable(snapshot, share));
            worked = true;
        }
        Ok(worked)
    }
}

/// Whether only the snapshot has failed. State that does not serialise is still there for the next
/// one; after a panic, or in a sink that could not prepare, nothing is sure any more.
fn is_of_snapshot(error: &Error) -> bool {
    match error {
        Error::Operator { source, .. } => is_of_snapshot(source),
        Error::Snapshot { .. } => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
