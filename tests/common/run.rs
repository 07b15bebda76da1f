//! A job on the caller-driven driver, turn by turn: no thread, no clock, a disk in memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tidegate::config::{Config, Restarts, Snapshots};
use tidegate::disk::{Disk, MemoryDisk};
use tidegate::engine::stepper::{Stepper, Stepping};
use tidegate::engine::{Handle, Notice, Report};
use tidegate::error::Result;
use tidegate::graph::Graph;

/// What a run was told, kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Warning(String),
    Restored(u64),
    Completed(u64),
    Aborted(u64, String),
    Restarting(String),
}

impl Told {
    pub fn of(notice: &Notice<'_>) -> Option<Self> {
        Some(match notice {
            Notice::Warning(text) => Self::Warning((*text).into()),
            Notice::Restored(id) => Self::Restored(id.0),
            Notice::Completed { snapshot, .. } => Self::Completed(snapshot.0),
            Notice::Aborted { snapshot, reason } => Self::Aborted(snapshot.0, (*reason).into()),
            Notice::Restarting { error, .. } => Self::Restarting(error.to_string()),
            _ => return None,
        })
    }
}

/// Turns after which a run that should have ended is stuck.
const TURNS_MAX: usize = 400_000;
const TURN_NS: u64 = 50_000;

/// A job being stepped: each turn is the supervisor, every worker once, and 50 us.
pub struct Run<'g> {
    stepper: Option<Stepper<'g>>,
    pub disk: MemoryDisk,
    pub handle: Handle,
    pub told: Vec<Told>,
    pub now_ns: u64,
    pub ended: Option<Result<Box<Report>>>,
}

/// Snapshots in `/snapshots` every millisecond, short pauses between restarts.
pub fn config(workers: usize) -> Config {
    let mut config = Config::workers(workers);
    config.ring_slots = 8;
    config.snapshots = Some(Snapshots::every(Duration::from_millis(1), "/snapshots"));
    config.restarts = Restarts {
        failures_max: 3,
        backoff: Duration::from_millis(2),
        backoff_max: Duration::from_millis(8),
    };
    config
}

impl<'g> Run<'g> {
    pub fn open(graph: &'g Graph, config: &Config, disk: &MemoryDisk) -> Self {
        Self::try_open(graph, config, disk).expect("the job can be opened")
    }

    pub fn try_open(graph: &'g Graph, config: &Config, disk: &MemoryDisk) -> Result<Self> {
        let (handle, mut told) = (Handle::default(), Vec::new());
        let on: Arc<dyn Disk> = Arc::new(disk.clone());
        let mut hear = |notice: Notice<'_>| told.extend(Told::of(&notice));
        let (stepper, ended) = match Stepper::open(graph, config, on, handle.clone(), &mut hear)? {
            Stepping::Ready(stepper) => (Some(stepper), None),
            Stepping::Complete(report) => (None, Some(Ok(report))),
        };
        Ok(Self { stepper, disk: disk.clone(), handle, told, now_ns: 0, ended })
    }

    /// One turn; false once the job has ended.
    pub fn turn(&mut self) -> bool {
        let Some(stepper) = self.stepper.as_mut().filter(|_| self.ended.is_none()) else {
            return false;
        };
        let told = &mut self.told;
        self.ended = stepper.supervise(self.now_ns, &mut |n| told.extend(Told::of(&n)));
        for worker in 0..stepper.workers() {
            _ = stepper.step(worker, self.now_ns);
        }
        self.now_ns += TURN_NS;
        self.ended.is_none()
    }

    /// The supervisor only, then one worker only: for schedules made by hand.
    pub fn supervise(&mut self) {
        let (Some(stepper), told) = (&mut self.stepper, &mut self.told) else { return };
        self.ended = stepper.supervise(self.now_ns, &mut |n| told.extend(Told::of(&n)));
        self.now_ns += TURN_NS;
    }

    pub fn step(&mut self, worker: usize) {
        if let Some(stepper) = self.stepper.as_mut().filter(|stepper| worker < stepper.workers()) {
            _ = stepper.step(worker, self.now_ns);
        }
    }

    /// Turns until `met`.
    pub fn until(&mut self, what: &str, mut met: impl FnMut(&Self) -> bool) {
        for _ in 0..TURNS_MAX {
            if met(self) {
                return;
            }
            let goes_on = self.turn();
            assert!(goes_on || met(self), "it ended before {what}: {:?}", self.ended);
        }
        panic!(
            "stuck before {what}; told: {:?}",
            self.told.iter().rev().take(9).collect::<Vec<_>>()
        );
    }

    /// Turns until `count` more snapshots are complete.
    pub fn until_completed(&mut self, count: usize) {
        let goal = self.completed().len() + count;
        self.until("a snapshot", |run| run.completed().len() >= goal);
    }

    pub fn completed(&self) -> Vec<u64> {
        let completed = |told: &Told| if let Told::Completed(id) = told { Some(*id) } else { None };
        self.told.iter().filter_map(completed).collect()
    }

    /// Turns until the job ends.
    pub fn end(&mut self) -> Result<Box<Report>> {
        self.until("its end", |run| run.ended.is_some());
        self.stepper = None;
        self.ended.take().expect("it has ended")
    }
}

/// Content of every visible file of `directory`, by name.
pub fn visible(disk: &MemoryDisk, directory: &str) -> Vec<(String, Vec<u8>)> {
    let directory: PathBuf = directory.into();
    let names = disk.list(&directory).unwrap_or_default();
    let shown = names.into_iter().filter(|name| !name.starts_with('.'));
    shown.map(|name| (name.clone(), read(disk, &directory.join(name)))).collect()
}

fn read(disk: &MemoryDisk, path: &Path) -> Vec<u8> {
    disk.read(path).expect("a listed file can be read")
}

/// All committed lines in `directory`. Panics at a line that is cut off.
pub fn lines(disk: &MemoryDisk, directory: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, content) in visible(disk, directory) {
        let text = String::from_utf8(content).expect("text");
        assert!(text.is_empty() || text.ends_with('\n'), "{name} ends within a line");
        lines.extend(text.lines().map(String::from));
    }
    lines
}
