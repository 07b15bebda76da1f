//! Every limit and setting, with its unit in its name.
//!
//! Owns the numbers and their bounds; decides nothing. [`Config::validate`] is called once, before
//! anything runs, and says what is wrong, where, and what to do.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::id::KEY_GROUPS;

/// Records an operator hands to its successor at once: enough to spread the dynamic call, few
/// enough to stay in the first-level cache.
pub const BATCH_RECORDS: usize = 512;
/// Records a task takes from one input before it looks at the next.
pub const INPUT_RECORDS_MAX: usize = 4096;
/// Shortest snapshot interval that can be asked for.
pub const INTERVAL_MIN: Duration = Duration::from_millis(1);
/// Snapshots that may be under way at once: writing one overlaps aligning the next.
pub const SNAPSHOTS_PENDING_MAX: usize = 2;
/// Bytes of captured state a worker writes out between two rounds of its tasks.
pub const DRAIN_BYTES_MAX: usize = 256 << 10;
/// Most slots of one ring, in records. Rings are allocated whole, one per pair of tasks and edge.
pub const RING_SLOTS_MAX: usize = 1 << 20;
/// Longest line a text source accepts, in bytes.
pub const LINE_BYTES_MAX: usize = 1 << 20;
/// Output a console sink may hold back until its snapshot is complete, in bytes.
pub const UNCOMMITTED_BYTES_MAX: usize = 256 << 20;

/// How a worker waits when none of its tasks can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idle {
    /// Polls on without giving up the core for this long.
    pub spin: Duration,
    /// Then lets other threads run between polls for this long; then parks.
    pub give_way: Duration,
    /// Longest park; a wake-up ends it earlier.
    pub park_max: Duration,
    /// Never gives up the core: lowest latency, for cores the job has to itself.
    pub busy_poll: bool,
}

impl Default for Idle {
    fn default() -> Self {
        Self {
            spin: Duration::from_micros(20),
            give_way: Duration::from_millis(2),
            park_max: Duration::from_millis(10),
            busy_poll: false,
        }
    }
}

/// Which driver runs the workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// glommio where io_uring can be used, plain threads elsewhere.
    #[default]
    Auto,
    /// One glommio executor per worker.
    Glommio,
    /// One plain thread per worker.
    Threads,
}

/// How often and where snapshots are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshots {
    /// Local directory; belongs to one job.
    pub directory: PathBuf,
    /// From one trigger to the next, at least [`INTERVAL_MIN`].
    pub interval: Duration,
    /// Complete snapshots kept, at least 2.
    pub retained: usize,
    /// A snapshot that is not complete after this long is aborted.
    pub timeout: Duration,
}

impl Snapshots {
    /// Snapshots every `interval` in `directory`, with the defaults for the rest.
    pub fn every(interval: Duration, directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            interval,
            retained: 3,
            timeout: Duration::from_secs(60),
        }
    }
}

/// What to do when a task fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restarts {
    /// Failures in a row after which the job fails. An attempt that has committed one snapshot and
    /// completed another, not the job's last, begins a new row.
    pub failures_max: u32,
    /// Pause before the first restart; doubles with each failure in a row.
    pub backoff: Duration,
    /// Longest pause.
    pub backoff_max: Duration,
}

impl Default for Restarts {
    fn default() -> Self {
        Self {
            failures_max: 3,
            backoff: Duration::from_millis(50),
            backoff_max: Duration::from_secs(5),
        }
    }
}

/// Settings of one run. None of them is part of the job's identity: a job may be run again with
/// other settings from the same snapshots.
#[derive(Clone, Debug)]
pub struct Config {
    /// Workers, each pinned to a core; also the default parallelism of operators.
    pub workers: usize,
    /// Snapshots, or none: then a failure starts the job from the beginning, and only when
    /// nothing has been published yet.
    pub snapshots: Option<Snapshots>,
    /// Slots of each ring between two tasks, a power of two.
    pub ring_slots: usize,
    /// How workers wait.
    pub idle: Idle,
    /// What runs the workers.
    pub driver: Driver,
    /// What happens after a failure.
    pub restarts: Restarts,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: 1,
            snapshots: None,
            ring_slots: 1 << 13,
            idle: Idle::default(),
            driver: Driver::default(),
            restarts: Restarts::default(),
        }
    }
}

impl Config {
    /// `workers` workers, no snapshots.
    #[must_use]
    pub fn workers(workers: usize) -> Self {
        Self { workers, ..Self::default() }
    }

    /// The same with snapshots.
    #[must_use]
    pub fn with_snapshots(mut self, snapshots: Snapshots) -> Self {
        self.snapshots = Some(snapshots);
        self
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting, its value and the bound.
    pub fn validate(&self) -> Result<()> {
        let refuse = |setting: &str, value: String, reason: String| {
            Err(Error::Config { setting: setting.into(), value, reason })
        };
        if self.workers == 0 || self.workers > KEY_GROUPS as usize {
            return refuse(
                "parallelism",
                self.workers.to_string(),
                format!("it must be between 1 and {KEY_GROUPS}, the number of key groups"),
            );
        }
        if !self.ring_slots.is_power_of_two() {
            return refuse(
                "ring slots",
                self.ring_slots.to_string(),
                "it must be a power of two, for example 8192".into(),
            );
        }
        if self.ring_slots > RING_SLOTS_MAX {
            return refuse(
                "ring slots",
                self.ring_slots.to_string(),
                format!("a ring holds at most {RING_SLOTS_MAX} records"),
            );
        }
        let Some(snapshots) = &self.snapshots else { return Ok(()) };
        if snapshots.interval < INTERVAL_MIN {
            return refuse(
                "snapshot interval",
                format!("{:?}", snapshots.interval),
                "it must be at least 1ms".into(),
            );
        }
        if snapshots.retained < 2 {
            return refuse(
                "retained snapshots",
                snapshots.retained.to_string(),
                "keep at least 2, so that a damaged newest one has a predecessor".into(),
            );
        }
        Ok(())
    }
}
