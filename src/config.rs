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
/// Records a task takes from one input at first, before it is known how long that takes.
pub const INPUT_RECORDS_FIRST: usize = 64;
/// A task whose step takes longer than this takes fewer records at once, in ns.
pub const STEP_NS_MAX: u64 = 250_000;
/// Records that the stages of a task make in one step, of fewer or out of state: as many as it takes from
/// one input. Where no output ever fills up nothing else would end the step.
pub const STEP_RECORDS_MAX: usize = 4096;
/// Records in transit that one task may log for one snapshot, in bytes with what they own
/// ([`weight`](crate::weight)).
pub const LOG_BYTES_MAX: usize = 64 << 20;
/// Shortest snapshot interval that can be asked for.
pub const INTERVAL_MIN: Duration = Duration::from_millis(1);
/// Snapshots that may be under way at once: writing one overlaps aligning the next. A barrier takes a
/// few ms through full rings, so a cadence of 1 ms takes as many; a ring has room for this many marks.
pub const SNAPSHOTS_PENDING_MAX: usize = 6;
/// Bytes of captured state a worker hands over between two rounds of its tasks at most: 50 to 150 us.
pub const DRAIN_BYTES_MAX: usize = 256 << 10;
/// And at least: less than most pages have, so one of them; but 16 KiB where an index or a map is put together.
pub const DRAIN_BYTES_MIN: usize = 2 << 10;
/// Bytes of state that are taken to be moved in a nanosecond, whether handed over or loaded.
pub const PIECE_BYTES_PER_NS: u64 = 2;
/// Once its tasks have found something to do in every round for so long, a worker moves pieces that take as
/// long as they do, in ns.
pub const PIECE_FULL_NS: u64 = 200_000_000;
/// Bytes of captured state a task may hand over while it stands at the next barrier: some 15 us.
pub const CAPTURE_DRAIN_BYTES_MAX: usize = 64 << 10;
/// Bytes of restored state a worker loads between two rounds of its tasks at most.
pub const LOAD_BYTES_MAX: usize = 256 << 10;
/// And at least: each piece is a read.
pub const LOAD_BYTES_MIN: usize = 64 << 10;
/// How soon a worker that waits for the disk looks again, ns.
pub const DISK_POLL_NS: u64 = 50_000;
/// Most slots of one ring, in records. Rings are allocated whole, one per pair of tasks and edge.
pub const RING_SLOTS_MAX: usize = 1 << 20;
/// Longest line a text source accepts, in bytes.
pub const LINE_BYTES_MAX: usize = 1 << 20;
/// Longest key of state that is a string of bytes.
pub const KEY_BYTES_MAX: usize = 1 << 20;
/// Largest entry of state that is archived, key and value together, in bytes. It is copied as a whole when
/// it has changed.
pub const ENTRY_BYTES_MAX: usize = 64 << 20;
/// A job ends with an error before less memory than this is left, in bytes.
pub const MEMORY_RESERVE_BYTES: u64 = 64 << 20;
/// How often that is looked at, ns.
pub const MEMORY_CHECK_NS: u64 = 100_000_000;
/// Output a console sink may hold back until its snapshot is complete, in bytes.
pub const UNCOMMITTED_BYTES_MAX: usize = 256 << 20;
/// Bytes of records, counted as [`crate::spill`] counts them, that are spilled in one write. Large
/// enough to spread the cost of a system call, small enough not to hold up a worker that packs it.
pub const SPILL_CHUNK_BYTES: usize = 256 << 10;
/// Fewest records that a backlog's memory has room for, whatever its budget in bytes: with fewer it
/// could not fill one chunk, write one and read one at a time.
pub const SPILL_RECORDS_MIN: usize = 8;
/// Chunks at the front of a backlog that are in memory or being read.
pub const SPILL_READ_AHEAD_CHUNKS: usize = 2;
/// Chunks of a backlog that are being written at once.
pub const SPILL_WRITES_MAX: usize = 2;
/// Bytes by which a spill file is extended at once.
pub const SPILL_SEGMENT_BYTES: u64 = 16 << 20;

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

/// How a task comes to its capture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Asynchronous barrier snapshots: inputs that have delivered the barrier are blocked until
    /// all have.
    #[default]
    Abs,
    /// The same for at most this long; then the task captures at once and the records of the
    /// inputs that are late become part of the snapshot.
    Unaligned {
        /// From the trigger of the snapshot, the same moment for every task.
        after: Duration,
    },
    /// Naiad's scheme, to compare with: sources stop, every channel and loop runs empty, every task
    /// writes its state, and only when all of it is durable the sources go on.
    Synchronous,
}

/// Where records go that a task cannot handle yet and whose sender must not wait: those of blocked
/// inputs, and of back-edges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spill {
    /// Whether blocked inputs are set aside at all; otherwise their senders feel backpressure.
    pub blocked: bool,
    /// Directory for what does not fit in memory; `None`: inside that of the snapshots. Without
    /// either nothing goes to disk.
    pub directory: Option<PathBuf>,
    /// Memory of one input, in bytes, with what records own on the heap, about (see [`crate::weight`]).
    pub memory_bytes: usize,
    /// Disk space of one input, in bytes.
    pub disk_bytes: u64,
}

impl Default for Spill {
    fn default() -> Self {
        Self { blocked: true, directory: None, memory_bytes: 16 << 20, disk_bytes: 1 << 30 }
    }
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
    /// How a task comes to its capture.
    pub mode: Mode,
}

impl Snapshots {
    /// Snapshots every `interval` in `directory`, with the defaults for the rest.
    pub fn every(interval: Duration, directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            interval,
            retained: 3,
            timeout: Duration::from_secs(60),
            mode: Mode::default(),
        }
    }
}

/// What to do when a task fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restarts {
    /// Failures in a row after which the job fails. An attempt that has committed one snapshot and
    /// completed another, not the job's last, begins a new row. One more is allowed where the last was a
    /// damaged page of restored state: the next attempt restores an older snapshot.
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
    /// Snapshots, or none: then the first failure ends the job, since what it has published by then
    /// cannot be taken back.
    pub snapshots: Option<Snapshots>,
    /// Slots of each ring between two tasks, a power of two.
    pub ring_slots: usize,
    /// Where records wait that cannot be handled yet.
    pub spill: Spill,
    /// How workers wait.
    pub idle: Idle,
    /// What runs the workers.
    pub driver: Driver,
    /// Cores, by number, for the kernel's threads that write for the workers. Empty: those that no worker has; if
    /// they are fewer than one for each four workers, the kernel puts them somewhere. A
    /// [`Stepper`](crate::engine::stepper::Stepper) leaves them to its caller.
    pub disk_cores: Vec<usize>,
    /// What happens after a failure.
    pub restarts: Restarts,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: 1,
            snapshots: None,
            ring_slots: 1 << 13,
            spill: Spill::default(),
            idle: Idle::default(),
            driver: Driver::default(),
            disk_cores: Vec::new(),
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
        if self.spill.directory.is_some() && self.spill.disk_bytes == 0 {
            return refuse(
                "spill space",
                "0 bytes".into(),
                "a spill directory was given, so give it room too".into(),
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
        if snapshots.timeout < INTERVAL_MIN {
            return refuse(
                "snapshot timeout",
                format!("{:?}", snapshots.timeout),
                "no snapshot is complete so soon; give it at least 1ms".into(),
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
