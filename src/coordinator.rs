//! The coordinator: when a snapshot begins, when it is complete, when it is given up.
//!
//! A pure machine: events in, actions out, time as a parameter. It does no I/O and knows no thread;
//! the engine's supervisor carries its actions out and reports what came of them.
//!
//! ```text
//! trigger n -> Inject(n) -> every worker acks durable bytes -> Commit(n) -> manifest durable
//!   -> Complete(n): sinks commit                 any failure or timeout -> Abort(n), n+1 later
//! ```
//!
//! Invariants
//! - Ids rise by one per trigger; at most [`SNAPSHOTS_PENDING_MAX`] are pending.
//! - An ack counts once, for its own snapshot and attempt only ([`Ack`] says which it was).
//! - A snapshot is committed only when every worker has acked it; committing n gives up what is
//!   pending below n and not being committed. Several may be, and end in their order.
//! - A job ends with two snapshots. The first begins after *every* task has finished (or the sources
//!   were paused), so it covers all output: losing that one is Flink's bug. The second begins after
//!   sinks have committed the first, so it lists nothing that is still to be committed, and running
//!   the job again changes nothing.
//! - A failed snapshot does not fail the job; the next one waits longer after each failure in a row.
//!   Only the last ones, after [`LAST_ATTEMPTS_MAX`] tries, and [`FAILURES_MAX`] in a row do.

use std::collections::BTreeMap;

use crate::config::SNAPSHOTS_PENDING_MAX;
use crate::id::{Attempt, SnapshotId, WorkerId};

/// How often the last snapshot of a job is tried before its failure fails the job.
pub const LAST_ATTEMPTS_MAX: u32 = 5;
/// Snapshots that may fail one after another before the job fails: with the pauses between them
/// more than ten minutes.
pub const FAILURES_MAX: u32 = 200;
/// Interval of snapshots while nothing is read, if it is longer than the asked one; in ns.
const IDLE_INTERVAL_NS: u64 = 1_000_000_000;
/// Longest pause after a failed snapshot, in ns.
const FAILURE_PAUSE_NS_MAX: u64 = 5_000_000_000;
/// Pause between two tries of the last snapshot, in ns.
const LAST_RETRY_NS: u64 = 200_000_000;

/// What the supervisor has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action<P> {
    /// Tell every worker to let its sources emit this barrier.
    Inject {
        /// Of which snapshot.
        snapshot: SnapshotId,
        /// Whether the sources stop reading behind it.
        pause: bool,
    },
    /// Make the manifest durable, then report [`Coordinator::committed`].
    Commit {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// Durable part of each worker, by worker.
        parts: Vec<P>,
        /// Whether the job is complete with it.
        last: bool,
        /// When it was triggered, ns.
        triggered_ns: u64,
    },
    /// Tell every worker that it is complete: sinks commit up to it.
    Complete {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// From trigger to durable manifest, ns.
        duration_ns: u64,
    },
    /// Tell every worker to forget it.
    Abort {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// Why, for the user.
        reason: String,
    },
    /// All that was asked is done: tell the workers to stop.
    Finish {
        /// Whether the input came to its end (rather than a stop being asked for).
        complete: bool,
    },
    /// The last snapshot cannot be made: the job fails.
    Fail(String),
}

/// What an ack was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// It counted.
    Accepted,
    /// It had counted already.
    Duplicate,
    /// Of an attempt that is over, or of a snapshot that is.
    Stale,
    /// Of a snapshot never triggered.
    Unknown,
}

/// How far the job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Snapshots at the interval.
    Running,
    /// A last snapshot is wanted: after `settled`, one behind the commit of the last but one.
    Last { complete: bool, settled: bool, tries: u32, not_before_ns: u64 },
    /// Nothing more to do.
    Finished,
}

#[derive(Debug)]
struct Pending<P> {
    triggered_ns: u64,
    parts: Vec<Option<P>>,
    /// Triggered in [`Phase::Last`]: (complete, settled).
    last: Option<(bool, bool)>,
    committing: bool,
}

/// Counts that say how well the asked cadence is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cadence {
    /// Intervals that went by while the job had something to snapshot, also those in which it waited after a
    /// failed one or for the disk; not the last ones before a worker failed.
    pub asked: u64,
    /// Those of them in which it waited after a failed one.
    pub paused: u64,
    /// Snapshots triggered.
    pub triggered: u64,
    /// Snapshots complete.
    pub completed: u64,
    /// Snapshots given up.
    pub aborted: u64,
}

/// The coordinator of one job; `P` is what a worker hands in as its durable part.
#[derive(Debug)]
pub struct Coordinator<P> {
    workers: usize,
    attempt: Attempt,
    interval_ns: Option<u64>,
    timeout_ns: u64,
    pending_max: usize,
    next: SnapshotId,
    due_ns: u64,
    /// Intervals up to this time are counted, ns.
    counted_ns: u64,
    pending: BTreeMap<SnapshotId, Pending<P>>,
    unfinished: usize,
    phase: Phase,
    /// When the last snapshot was triggered, ns, and how much had been read by then.
    last_trigger: (u64, u64),
    /// Snapshots that failed since the last complete one.
    failures: u32,
    cadence: Cadence,
}

impl<P> Coordinator<P> {
    /// For `workers` workers. Without an interval no snapshot is ever triggered.
    #[must_use]
    pub fn new(workers: usize, interval_ns: Option<u64>, timeout_ns: u64) -> Self {
        assert!(workers > 0 && interval_ns != Some(0), "{workers} workers, {interval_ns:?} ns");
        Self {
            workers,
            attempt: Attempt(0),
            interval_ns,
            timeout_ns,
            pending_max: SNAPSHOTS_PENDING_MAX,
            next: SnapshotId(1),
            due_ns: 0,
            counted_ns: 0,
            pending: BTreeMap::new(),
            unfinished: 0,
            phase: Phase::Running,
            last_trigger: (0, u64::MAX),
            failures: 0,
            cadence: Cadence::default(),
        }
    }

    /// One snapshot at a time: while one is under way the next is not triggered.
    #[must_use]
    pub fn one_at_a_time(mut self) -> Self {
        self.pending_max = 1;
        self
    }

    /// A new attempt starts at `now_ns` with `tasks` tasks; the next snapshot will be `next`.
    pub fn start(&mut self, attempt: Attempt, tasks: usize, next: SnapshotId, now_ns: u64) {
        assert!(attempt > self.attempt && next >= self.next, "{attempt:?} {next}");
        self.attempt = attempt;
        self.unfinished = tasks;
        self.next = next;
        self.cadence.aborted += self.pending.len() as u64;
        self.pending.clear();
        self.counted_ns = now_ns;
        self.due_ns = now_ns + self.interval_ns.unwrap_or(0);
        self.failures = 0;
        self.phase = match self.phase {
            // Tasks have to finish again in this attempt, also where the last snapshot had failed or
            // was complete and a sink could not commit it.
            Phase::Running | Phase::Last { complete: true, .. } | Phase::Finished => Phase::Running,
            Phase::Last { complete: false, not_before_ns, .. } => {
                Phase::Last { complete: false, settled: false, tries: 0, not_before_ns }
            }
        };
    }

    /// The id the next triggered snapshot will have.
    #[must_use]
    pub fn next_snapshot(&self) -> SnapshotId {
        self.next
    }

    /// How well the cadence is kept so far.
    #[must_use]
    pub fn cadence(&self) -> Cadence {
        self.cadence
    }

    /// When [`tick`](Self::tick) has something to do at the earliest, ns.
    #[must_use]
    pub fn wake_at_ns(&self) -> Option<u64> {
        let late = self.pending.values().filter(|pending| !pending.committing);
        let timeout = late.map(|pending| pending.triggered_ns + self.timeout_ns).min();
        let trigger = match self.phase {
            Phase::Running if self.pending.len() < self.pending_max => {
                self.interval_ns.map(|_| self.due_ns)
            }
            Phase::Last { not_before_ns, .. } if self.pending.is_empty() => Some(not_before_ns),
            _ => None,
        };
        timeout.into_iter().chain(trigger).min()
    }

    /// Time goes by: gives up what takes too long and triggers what is due.
    ///
    /// `read` is how much input the sources have read so far. While it does not change, there is
    /// next to nothing new to snapshot, and one a second keeps an idle job from burning a core.
    /// `draining`: captured state is still being handed to a disk that is slower than the interval; no
    /// other is triggered meanwhile. While none is pending nothing can be, whatever is told.
    pub fn tick(&mut self, now_ns: u64, read: u64, draining: bool) -> Vec<Action<P>> {
        let mut actions = Vec::new();
        let late = |pending: &Pending<P>| {
            !pending.committing && now_ns >= pending.triggered_ns + self.timeout_ns
        };
        let expired: Vec<_> =
            self.pending.iter().filter(|(_, pending)| late(pending)).map(|(&id, _)| id).collect();
        for snapshot in expired {
            let waiting = self.waiting_for(snapshot);
            let seconds = self.timeout_ns as f64 / 1e9;
            let reason = format!("not complete after {seconds} s; workers {waiting:?} did not ack");
            actions.extend(self.give_up(snapshot, reason, now_ns));
        }
        match self.phase {
            Phase::Running if draining && !self.pending.is_empty() => {}
            Phase::Running => self.trigger_if_due(now_ns, read, &mut actions),
            Phase::Last { complete, settled, not_before_ns, .. } => {
                if self.interval_ns.is_none() {
                    self.phase = Phase::Finished;
                    actions.push(Action::Finish { complete });
                } else if self.pending.is_empty() && now_ns >= not_before_ns {
                    actions.push(self.trigger(now_ns, Some((complete, settled))));
                }
            }
            Phase::Finished => {}
        }
        actions
    }

    fn trigger_if_due(&mut self, now_ns: u64, read: u64, actions: &mut Vec<Action<P>>) {
        let Some(interval_ns) = self.interval_ns else { return };
        if now_ns < self.due_ns || self.pending.len() >= self.pending_max {
            return;
        }
        // Intervals missed because snapshots take longer are counted, not made up for in a burst.
        let intervals = self.take_intervals(now_ns);
        self.due_ns = self.counted_ns + interval_ns;
        let idle_ns = now_ns - self.last_trigger.0;
        if self.pending.is_empty() && self.last_trigger.1 == read && idle_ns < IDLE_INTERVAL_NS {
            return;
        }
        self.last_trigger = (now_ns, read);
        self.cadence.asked += intervals;
        if self.failures > 0 {
            self.cadence.paused += intervals.saturating_sub(1);
        }
        actions.push(self.trigger(now_ns, None));
    }

    /// How many intervals have ended by now that were not counted before.
    fn take_intervals(&mut self, now_ns: u64) -> u64 {
        let Some(interval_ns) = self.interval_ns else { return 0 };
        let intervals = now_ns.saturating_sub(self.counted_ns) / interval_ns;
        self.counted_ns += intervals * interval_ns;
        intervals
    }

    fn trigger(&mut self, now_ns: u64, last: Option<(bool, bool)>) -> Action<P> {
        let snapshot = self.next;
        self.next = snapshot.next();
        self.cadence.triggered += 1;
        let parts = (0..self.workers).map(|_| None).collect();
        let pending = Pending { triggered_ns: now_ns, parts, last, committing: false };
        self.pending.insert(snapshot, pending);
        Action::Inject { snapshot, pause: last.is_some() }
    }

    /// Workers whose ack for `snapshot` is still out.
    #[must_use]
    pub fn waiting_for(&self, snapshot: SnapshotId) -> Vec<usize> {
        let parts = self.pending.get(&snapshot).map_or(&[][..], |pending| &pending.parts);
        parts.iter().enumerate().filter(|(_, part)| part.is_none()).map(|(w, _)| w).collect()
    }

    /// `worker` says that its share of `snapshot` is durable.
    pub fn ack(
        &mut self,
        worker: WorkerId,
        snapshot: SnapshotId,
        attempt: Attempt,
        part: P,
    ) -> (Ack, Vec<Action<P>>) {
        if attempt != self.attempt {
            return (Ack::Stale, Vec::new());
        }
        let Some(pending) = self.pending.get_mut(&snapshot) else {
            let known = snapshot < self.next;
            return (if known { Ack::Stale } else { Ack::Unknown }, Vec::new());
        };
        if pending.parts[worker.0].is_some() {
            return (Ack::Duplicate, Vec::new());
        }
        pending.parts[worker.0] = Some(part);
        if pending.parts.iter().any(Option::is_none) {
            return (Ack::Accepted, Vec::new());
        }
        pending.committing = true;
        let (last, triggered_ns) = (pending.last == Some((true, true)), pending.triggered_ns);
        let parts = pending.parts.iter_mut().filter_map(Option::take).collect();
        let older = self.pending.range(..snapshot).filter(|(_, older)| !older.committing);
        let older: Vec<_> = older.map(|(&id, _)| id).collect();
        let mut actions: Vec<_> = older
            .into_iter()
            .flat_map(|id| self.give_up(id, format!("snapshot {snapshot} overtook it"), 0))
            .collect();
        actions.push(Action::Commit { snapshot, parts, last, triggered_ns });
        (Ack::Accepted, actions)
    }

    /// The manifest of `snapshot` is durable.
    pub fn committed(&mut self, snapshot: SnapshotId, now_ns: u64) -> Vec<Action<P>> {
        let Some(pending) = self.pending.remove(&snapshot) else { return Vec::new() };
        assert!(pending.committing, "snapshot {snapshot} was committed without all acks");
        self.cadence.completed += 1;
        self.failures = 0;
        let duration_ns = now_ns.saturating_sub(pending.triggered_ns);
        let mut actions = vec![Action::Complete { snapshot, duration_ns }];
        match pending.last {
            Some((complete, true)) => {
                self.phase = Phase::Finished;
                actions.push(Action::Finish { complete });
            }
            Some((complete, false)) => {
                self.phase =
                    Phase::Last { complete, settled: true, tries: 0, not_before_ns: now_ns };
            }
            None => {}
        }
        actions
    }

    /// A worker could not make `snapshot` durable, or its manifest could not be written.
    pub fn failed(
        &mut self,
        snapshot: SnapshotId,
        attempt: Attempt,
        reason: String,
        now_ns: u64,
    ) -> Vec<Action<P>> {
        if attempt != self.attempt || !self.pending.contains_key(&snapshot) {
            return Vec::new();
        }
        self.give_up(snapshot, reason, now_ns)
    }

    fn give_up(&mut self, snapshot: SnapshotId, reason: String, now_ns: u64) -> Vec<Action<P>> {
        let Some(pending) = self.pending.remove(&snapshot) else { return Vec::new() };
        self.cadence.aborted += 1;
        let mut actions = Vec::new();
        if let Phase::Last { tries, not_before_ns, .. } = &mut self.phase
            && pending.last.is_some()
        {
            *tries += 1;
            *not_before_ns = now_ns + LAST_RETRY_NS;
            if *tries == LAST_ATTEMPTS_MAX {
                self.phase = Phase::Finished;
                actions.push(Action::Fail(format!(
                    "the last snapshot failed {LAST_ATTEMPTS_MAX} times: {reason}"
                )));
            }
        }
        self.failures += 1;
        if self.failures == FAILURES_MAX {
            self.phase = Phase::Finished;
            actions.push(Action::Fail(format!(
                "{FAILURES_MAX} snapshots in a row failed; the last: {reason}"
            )));
        }
        if let Some(interval_ns) = self.interval_ns {
            let pause_ns = interval_ns.saturating_mul(1 << self.failures.min(20));
            self.due_ns = self.due_ns.max(now_ns + pause_ns.min(FAILURE_PAUSE_NS_MAX));
        }
        actions.insert(0, Action::Abort { snapshot, reason });
        actions
    }

    /// A task has no more records and has emitted all it had.
    pub fn task_finished(&mut self, attempt: Attempt, now_ns: u64) {
        if attempt != self.attempt {
            return;
        }
        assert!(self.unfinished > 0, "more tasks finished than there are");
        self.unfinished -= 1;
        // A stop that is under way stays a stop: its snapshot may have begun before the end.
        if self.unfinished == 0 && self.phase == Phase::Running {
            self.cadence.asked += self.take_intervals(now_ns);
            self.phase =
                Phase::Last { complete: true, settled: false, tries: 0, not_before_ns: now_ns };
        }
    }

    /// Asks for a last snapshot and an end before the input's (SIGTERM).
    pub fn stop(&mut self, now_ns: u64) {
        if self.phase == Phase::Running {
            self.cadence.asked += self.take_intervals(now_ns);
            self.phase =
                Phase::Last { complete: false, settled: false, tries: 0, not_before_ns: now_ns };
        }
    }
}

#[cfg(test)]
mod tests;
