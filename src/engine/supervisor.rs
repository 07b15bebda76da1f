//! The supervisor: carries out what the coordinator decides, restores and restarts.
//!
//! It owns the store and the channels to the workers, and no thread but those that write slow commits: a driver calls
//! [`Supervisor::turn`], runs the workers it hands out, and waits as long as it says.
//!
//! ```text
//! open -> Start(workers) -> Running -> Finish -> Ending (workers commit and stop) -> Done
//!                             |  ^
//!                  a failure  v  | pause over, restored from the newest complete snapshot
//!                           Stopping -> Pausing
//! ```
//!
//! Invariants
//! - Sinks recover before writers exist; state is restored before a record is read.
//! - No two attempts overlap: workers of the next one are made when all of the last have stopped.

mod cadence;
mod commits;
mod hold;
mod restore;
mod schema;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use self::commits::{Commits, Decided};
use self::hold::hold;
use super::{End, Handle, Notice, Report, memory};
use crate::clock;
use crate::config::{Config, Mode, Snapshots, Spill};
use crate::coordinator::{Action, Coordinator};
use crate::disk::{Disk, DiskLock};
use crate::error::{Error, Result};
use crate::graph::{Build, Graph, LOG_SUFFIX, OperatorIndex};
use crate::guard;
use crate::id::{Attempt, KEY_GROUPS, SnapshotId, StateSlot, WorkerId};
use crate::inbox;
use crate::operator::sink::NOBODY;
use crate::operator::source::ReaderContext;
use crate::phases::PhaseHistograms;
use crate::plan::{Instance, Plan};
use crate::spill::remove_leftovers;
use crate::store::{JobIdentity, Loaded, Manifest, OperatorEntry, SPILL, StateEntry, Store};
use crate::task::Task;
use crate::worker::{Command, Event, Handover, Share, Worker};

/// How soon to look again whether captured state has all been handed over, ns.
const DRAINING_POLL_NS: u64 = 200_000;

/// What opening a job found.
pub enum Opened<'g> {
    /// It was complete before; its output has been made sure of.
    Complete(Box<Report>),
    /// It can be run.
    Ready(Box<Supervisor<'g>>),
}

/// What a driver has to do next.
pub enum Turn {
    /// Run these workers, one per thread.
    Start(Vec<Worker>),
    /// Wait until this time (ns), or until an event comes.
    Wait {
        /// `None`: nothing is due.
        until_ns: Option<u64>,
        /// Whether the workers were told something since the last turn: wake them first.
        told: bool,
    },
    /// The job has ended.
    Done(Result<Box<Report>>),
}

enum Phase {
    /// Workers are to be made.
    Starting,
    /// They run.
    Running,
    /// They were told to commit and stop.
    Ending(End),
    /// They were told to stop because one failed.
    Stopping(Error),
    /// They are made anew at this time, ns.
    Pausing(u64),
    /// Over.
    Over,
}

/// The supervisor of one run.
pub struct Supervisor<'g> {
    graph: &'g Graph,
    config: Config,
    plan: Plan,
    disk: Arc<dyn Disk>,
    handle: Handle,
    identity: JobIdentity,
    /// Before the store: dropped first it waits for what is written.
    commits: Commits,
    store: Option<Store>,
    spill_lock: Option<DiskLock>,
    newest: Option<Manifest>,
    coordinator: Coordinator<Share>,
    phase: Phase,
    attempt: Attempt,
    commands: Vec<Sender<Command>>,
    /// Whether a command was sent since the driver was last asked to wait.
    told: bool,
    events: (Sender<Event>, Receiver<Event>),
    arrived: Option<Event>,
    /// Workers of this attempt that have not stopped.
    alive: BTreeSet<WorkerId>,
    /// Workers of this attempt whose restored state is not all in memory.
    loading: BTreeSet<WorkerId>,
    /// Of the restored snapshot, or of those that it goes back to, the last one that was not made while pages
    /// were unread.
    unread_since: Option<u64>,
    /// What each worker tells of the snapshots before.
    handovers: Vec<Arc<Handover>>,
    behind: cadence::Watch,
    memory: memory::Watch,
    failures: u32,
    /// Whether bytes of a snapshot were found damaged since it was last looked at.
    found_damage: bool,
    /// Snapshots from this one on are triggered after this attempt's workers were told to commit an
    /// earlier one: if one of them completes, they could.
    proven_from: Option<SnapshotId>,
    started_ns: u64,
    report: Report,
    /// What sinks hold for this run, by operator.
    claims: BTreeMap<OperatorIndex, Option<DiskLock>>,
}

/// What the state of this graph is of use for.
fn identity_of(graph: &Graph, disk: &Arc<dyn Disk>) -> Result<JobIdentity> {
    let mut lines = vec![format!("key groups: {KEY_GROUPS}")];
    for (name, value) in &graph.parameters {
        lines.push(format!("parameter {name}: {value}"));
    }
    let context = ReaderContext { disk: disk.clone() };
    for operator in &graph.operators {
        let detail = guard::named(&operator.name, 0, || match &operator.build {
            Build::Source { identity, .. } => identity(&context),
            Build::Stage { sink: Some(sink), .. } => Ok(sink.identity()),
            Build::Stage { .. } => Ok(String::new()),
        })?;
        lines.push(format!("operator '{}': {} {detail}", operator.name, operator.kind));
    }
    Ok(JobIdentity { name: graph.name.clone(), fingerprint: lines.join("\n") })
}

impl<'g> Supervisor<'g> {
    /// Opens the job's snapshot directory, if it has one.
    ///
    /// # Errors
    /// The input cannot be read, or the directory or the output cannot be used.
    pub fn open(
        graph: &'g Graph,
        config: &Config,
        disk: Arc<dyn Disk>,
        handle: Handle,
        notice: &mut dyn FnMut(Notice<'_>),
    ) -> Result<Opened<'g>> {
        let identity = identity_of(graph, &disk)?;
        let (mut store, mut newest) = (None, None);
        if let Some(snapshots) = &config.snapshots {
            let held = hold(&disk, snapshots, (&identity, graph), false, notice)?;
            (store, newest) = (Some(held.0), held.1);
        }
        let snapshots = config.snapshots.as_ref();
        let mut coordinator = Coordinator::new(
            config.workers,
            snapshots.map(|snapshots| clock::duration_ns(snapshots.interval)),
            snapshots.map_or(0, |snapshots| clock::duration_ns(snapshots.timeout)),
        );
        if snapshots.is_some_and(|snapshots| snapshots.mode == Mode::Synchronous) {
            coordinator = coordinator.one_at_a_time();
        }
        let interval_ns = snapshots.map_or(0, |snapshots| clock::duration_ns(snapshots.interval));
        let report = Report {
            end: End::Complete,
            restored: newest.as_ref().map(Manifest::id),
            restarts: 0,
            records: 0,
            elapsed: Duration::ZERO,
            cadence: coordinator.cadence(),
            snapshot_ns: clock::histogram_ns(),
            capture_ns: clock::histogram_ns(),
            phases: PhaseHistograms::default(),
            loaded: None,
            inputs: inbox::Measured::default(),
        };
        let mut supervisor = Self {
            graph,
            plan: Plan::new(graph, config.workers, config.ring_slots),
            config: config.clone(),
            disk,
            handle,
            identity,
            commits: Commits::new(interval_ns),
            store,
            spill_lock: None,
            newest,
            coordinator,
            phase: Phase::Starting,
            attempt: Attempt(0),
            commands: Vec::new(),
            told: false,
            events: channel(),
            arrived: None,
            alive: BTreeSet::new(),
            loading: BTreeSet::new(),
            unread_since: None,
            handovers: Vec::new(),
            behind: cadence::Watch::new(clock::now_ns()),
            memory: memory::Watch::default(),
            failures: 0,
            found_damage: false,
            proven_from: None,
            started_ns: clock::now_ns(),
            report,
            claims: BTreeMap::new(),
        };
        if supervisor.newest.as_ref().is_some_and(|newest| newest.last) {
            let loaded = supervisor.load()?;
            supervisor.recover_sinks(Some(&loaded.pieces))?;
            supervisor.report.end = End::AlreadyComplete;
            return Ok(Opened::Complete(Box::new(supervisor.report)));
        }
        Ok(Opened::Ready(Box::new(supervisor)))
    }

    /// Does everything that can be done at `now_ns`.
    pub fn turn(&mut self, now_ns: u64, notice: &mut dyn FnMut(Notice<'_>)) -> Turn {
        while let Some(event) = self.arrived.take().or_else(|| self.events.1.try_recv().ok()) {
            self.hear(event, now_ns, notice);
        }
        match self.phase {
            Phase::Starting => return self.start(now_ns, notice),
            Phase::Pausing(until_ns) if now_ns < until_ns && !self.handle.is_stopped() => {
                return self.wait_until(Some(until_ns));
            }
            Phase::Pausing(_) => {
                return match self.reopen(notice) {
                    Ok(()) => self.start(now_ns, notice),
                    Err(error) => self.pause_or_fail(error, now_ns, notice),
                };
            }
            Phase::Running => {
                if let Some(error) = self.memory.check(now_ns) {
                    self.tell(Command::Stop);
                    self.phase = Phase::Stopping(error);
                    return self.wait_until(None);
                }
                if self.handle.is_stopped() {
                    self.coordinator.stop(now_ns);
                }
                let draining = self.is_draining();
                let actions = self.coordinator.tick(now_ns, self.handle.records(), draining);
                self.act(actions, now_ns, notice);
                let behind = self.behind.look(self.coordinator.cadence(), now_ns);
                if let Some(cadence::Behind { asked, completed }) = behind {
                    notice(Notice::Behind { asked, completed });
                }
            }
            Phase::Ending(_) | Phase::Stopping(_) | Phase::Over => {}
        }
        notice(Notice::Tick);
        if self.alive.is_empty() {
            match std::mem::replace(&mut self.phase, Phase::Over) {
                Phase::Ending(end) => return Turn::Done(Ok(self.reported(end))),
                Phase::Stopping(error) => return self.pause_or_fail(error, now_ns, notice),
                phase => self.phase = phase,
            }
        }
        // Only a running job has something due: in every other phase the coordinator is not asked,
        // and what it had due stays past.
        let running = matches!(self.phase, Phase::Running);
        let mut until_ns = running.then(|| self.coordinator.wake_at_ns()).flatten();
        if self.is_draining() {
            // What is due waits for the end of that, which no event tells.
            until_ns = until_ns.map(|until_ns| until_ns.max(now_ns + DRAINING_POLL_NS));
        }
        self.wait_until(until_ns)
    }

    fn is_draining(&self) -> bool {
        let triggered = SnapshotId(self.coordinator.next_snapshot().0.saturating_sub(1));
        self.handovers.iter().any(|handover| handover.is_open(triggered))
    }

    fn wait_until(&mut self, until_ns: Option<u64>) -> Turn {
        Turn::Wait { until_ns, told: std::mem::take(&mut self.told) }
    }

    /// Waits for an event, at most `time`.
    pub fn wait(&mut self, time: Duration) {
        self.arrived = self.events.1.recv_timeout(time).ok();
    }

    fn start(&mut self, now_ns: u64, notice: &mut dyn FnMut(Notice<'_>)) -> Turn {
        match self.workers(now_ns, notice) {
            Ok(workers) => {
                self.alive = workers.iter().map(Worker::id).collect();
                self.loading.clone_from(&self.alive);
                self.phase = Phase::Running;
                Turn::Start(workers)
            }
            Err(error) => self.pause_or_fail(error, now_ns, notice),
        }
    }

    fn pause_or_fail(
        &mut self,
        error: Error,
        now_ns: u64,
        notice: &mut dyn FnMut(Notice<'_>),
    ) -> Turn {
        let restarts = self.config.restarts;
        self.failures += 1;
        let is_damage = match error.root() {
            Error::Corrupt { .. } => true,
            Error::Io { .. } => !self.loading.is_empty(),
            _ => false,
        };
        self.found_damage |= is_damage;
        // Without snapshots there is nothing to go back to: output may have been published.
        let takes_snapshots = self.config.snapshots.is_some();
        if !takes_snapshots || !error.is_retryable() || self.handle.is_stopped() {
            self.phase = Phase::Over;
            return Turn::Done(Err(error));
        }
        // After damage the next attempt looks at every byte and falls back. That attempt is always made: a
        // process that ended here would be started again, and meet the same page.
        if self.failures > restarts.failures_max.saturating_add(is_damage.into()) {
            self.phase = Phase::Over;
            let (failures, last) = (self.failures, Box::new(error));
            return Turn::Done(Err(Error::RestartsExhausted { failures, last }));
        }
        let backoff = restarts.backoff.saturating_mul(2_u32.saturating_pow(self.failures - 1));
        let after = backoff.min(restarts.backoff_max);
        notice(Notice::Restarting { error: &error, after });
        self.report.restarts += 1;
        let until_ns = now_ns + clock::duration_ns(after);
        self.phase = Phase::Pausing(until_ns);
        self.wait_until(Some(until_ns))
    }

    fn hear(&mut self, event: Event, now_ns: u64, notice: &mut dyn FnMut(Notice<'_>)) {
        let actions = match event {
            Event::Acked { worker, attempt, snapshot, share } => {
                self.coordinator.ack(worker, snapshot, attempt, share).1
            }
            Event::SnapshotFailed { attempt, snapshot, reason } => {
                self.coordinator.failed(snapshot, attempt, reason, now_ns)
            }
            Event::Loaded(worker, attempt) => {
                self.loaded(worker, attempt);
                Vec::new()
            }
            Event::WantsSegment => {
                self.store.iter().for_each(Store::refill);
                Vec::new()
            }
            Event::TaskFinished(attempt) => {
                self.coordinator.task_finished(attempt, now_ns);
                Vec::new()
            }
            Event::Failed(worker, attempt, error) if attempt == self.attempt => {
                self.failed(worker, error);
                Vec::new()
            }
            Event::Stopped(worker, attempt, measured) if attempt == self.attempt => {
                self.alive.remove(&worker);
                _ = self.report.capture_ns.add(&measured.capture_ns);
                self.report.inputs += measured.inputs;
                Vec::new()
            }
            Event::Failed(..) | Event::Stopped(..) => Vec::new(),
            Event::Committed { committed, took_ns } => {
                self.commits.ended(committed, took_ns);
                self.end_commits(now_ns)
            }
        };
        if matches!(self.phase, Phase::Running) {
            self.act(actions, now_ns, notice);
        }
    }

    fn loaded(&mut self, worker: WorkerId, attempt: Attempt) {
        if attempt == self.attempt && self.loading.remove(&worker) && self.loading.is_empty() {
            let since_ns = clock::now_ns() - self.started_ns;
            self.report.loaded.get_or_insert(Duration::from_nanos(since_ns));
        }
    }

    /// The thread of `worker` has ended. Unless the worker had stopped before, the job fails:
    /// nothing else would ever be heard of it.
    pub fn lost(&mut self, worker: WorkerId, error: Error) {
        if self.alive.contains(&worker) {
            self.failed(worker, error);
        }
    }

    fn failed(&mut self, worker: WorkerId, error: Error) {
        self.alive.remove(&worker);
        self.stop(error);
    }

    fn stop(&mut self, error: Error) {
        if !matches!(self.phase, Phase::Stopping(_)) {
            self.tell(Command::Stop);
            self.phase = Phase::Stopping(error);
        }
    }

    /// The job has ended: no worker is to run on.
    pub fn give_up(&mut self) {
        self.commands.clear();
    }

    fn tell(&mut self, command: Command) {
        self.told = true;
        // A worker that has stopped does not listen any more; its event says so.
        self.commands.iter().for_each(|commands| _ = commands.send(command));
    }

    fn act(
        &mut self,
        actions: Vec<Action<Share>>,
        now_ns: u64,
        notice: &mut dyn FnMut(Notice<'_>),
    ) {
        let last = actions.iter().any(|action| matches!(action, Action::Finish { .. }));
        for action in actions {
            match action {
                Action::Inject { snapshot, pause } => {
                    let told_ns = clock::now_ns();
                    let triggered_ns = now_ns;
                    self.tell(Command::Inject { snapshot, pause, triggered_ns, told_ns });
                }
                Action::Commit { snapshot, parts, last, triggered_ns } => {
                    self.tell(Command::Resume(snapshot));
                    let decided = Decided { snapshot, shares: parts, last, triggered_ns };
                    let followed = self.commit(decided, now_ns);
                    self.act(followed, now_ns, notice);
                }
                Action::Complete { snapshot, duration_ns } => {
                    self.note_progress(snapshot, last);
                    self.report.snapshot_ns.saturating_record(duration_ns);
                    self.tell(Command::Complete { snapshot, last });
                    let took = Duration::from_nanos(duration_ns);
                    notice(Notice::Completed { snapshot, took });
                }
                Action::Abort { snapshot, reason } => {
                    self.tell(Command::Abort(snapshot));
                    notice(Notice::Aborted { snapshot, reason: &reason });
                    if let Some(Err(error)) = self.store.as_ref().map(Store::check_there) {
                        self.stop(error);
                    }
                }
                Action::Finish { complete } => {
                    if self.store.is_none() {
                        self.tell(if complete { Command::CommitAll } else { Command::Stop });
                    }
                    let end = if complete { End::Complete } else { End::Stopped };
                    self.phase = Phase::Ending(end);
                }
                Action::Fail(reason) => {
                    let snapshot = self.coordinator.next_snapshot();
                    self.stop(Error::Snapshot { snapshot, reason });
                }
            }
        }
    }

    /// Failures are counted in a row, and what ends the row is a snapshot that was committed. That one
    /// is complete does not mean that: its commit may be what fails in each attempt.
    fn note_progress(&mut self, completed: SnapshotId, last: bool) {
        match self.proven_from {
            None => self.proven_from = Some(self.coordinator.next_snapshot()),
            Some(first) if completed >= first && !last => self.failures = 0,
            Some(_) => {}
        }
    }

    fn reported(&mut self, end: End) -> Box<Report> {
        let mut report = self.report.clone();
        report.end = end;
        report.records = self.handle.records.load(Ordering::Relaxed);
        report.elapsed = Duration::from_nanos(clock::now_ns() - self.started_ns);
        report.cadence = self.coordinator.cadence();
        Box::new(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;
    use crate::operator::sink::Collect;
    use crate::operator::source::Items;
    use crate::stream::Job;

    /// The executor of a worker died, and the job waited for its worker for ever.
    #[test]
    fn a_worker_whose_thread_has_ended_fails_the_job() {
        let job = Job::new("lost");
        let (sink, _results) = Collect::new();
        job.source("numbers", Items::new("numbers", || 0..9_u64)).sink("out", sink);
        let graph = job.build().expect("a job");
        let (config, handle) = (Config::workers(1), Handle::default());
        let disk = Arc::new(MemoryDisk::new(1));
        let opened = Supervisor::open(&graph, &config, disk, handle, &mut |_| {});
        let Ok(Opened::Ready(mut supervisor)) = opened else { panic!("a new job is ready") };
        let Turn::Start(workers) = supervisor.turn(0, &mut |_| {}) else { panic!("no workers") };
        drop(workers);
        let error = || Error::WorkerLost { worker: 0, reason: "as asked".into() };
        supervisor.lost(WorkerId(0), error());
        supervisor.lost(WorkerId(0), error());
        let Turn::Done(Err(found)) = supervisor.turn(1, &mut |_| {}) else { panic!("it goes on") };
        assert_eq!(found.to_string(), error().to_string());
    }
}
