//! Running a job: start, restore, coordinate, restart, report.
//!
//! [`run`] runs it on pinned threads; [`stepper::Stepper`] is the same engine without a thread, for
//! tests and for callers with a loop of their own. Both carry out what the [`supervisor`] says.

mod committers;
pub mod hiccup;
pub mod memory;
mod park;
mod pool;
pub mod stepper;
pub mod supervisor;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use core_affinity::CoreId;
use hdrhistogram::Histogram;

use crate::clock;
use crate::config::{Config, Driver};
use crate::coordinator::Cadence;
use crate::disk::{Disk, ShortSlice, best_disk};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::guard::{self, Caught};
use crate::id::SnapshotId;
use crate::inbox;
use crate::phases::PhaseHistograms;
use crate::stream::Job;
use pool::{Kind, Pool};
pub use pool::{MEMLOCK_BYTES_MIN, MEMLOCK_REMEDY};
use supervisor::{Supervisor, Turn};

/// Longest wait of the supervisor before it looks for a stop request.
const SUPERVISOR_WAIT: Duration = Duration::from_millis(20);

/// What a program may be told while its job runs.
#[derive(Debug)]
#[non_exhaustive]
pub enum Notice<'a> {
    /// Workers run on plain threads, because glommio's executors do not come up: why, and how to
    /// mend it.
    Fallback(&'a str),
    /// Something was wrong in the snapshot directory and was passed over.
    Warning(&'a str),
    /// The job goes on from this snapshot.
    Restored(SnapshotId),
    /// A snapshot is complete.
    Completed {
        /// Which.
        snapshot: SnapshotId,
        /// From trigger to durable manifest.
        took: Duration,
    },
    /// A snapshot was given up; the job goes on.
    Aborted {
        /// Which.
        snapshot: SnapshotId,
        /// Why.
        reason: &'a str,
    },
    /// Of the snapshots asked for since the last look, some seconds ago, fewer than half were completed: each
    /// takes longer than the interval. Told once, and again when it was better meanwhile.
    Behind {
        /// Intervals that went by.
        asked: u64,
        /// Snapshots complete.
        completed: u64,
    },
    /// The job failed and starts again from its last snapshot.
    Restarting {
        /// Why.
        error: &'a Error,
        /// After this pause.
        after: Duration,
    },
    /// The supervisor has looked at everything; comes at least every 20 ms.
    Tick,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The input came to its end and every result is committed.
    Complete,
    /// It had been complete before this run, which changed nothing.
    AlreadyComplete,
    /// A stop was asked for: what was done is in the last snapshot.
    Stopped,
}

/// What a run did.
#[derive(Clone, Debug)]
pub struct Report {
    /// How it ended.
    pub end: End,
    /// The snapshot it began with.
    pub restored: Option<SnapshotId>,
    /// Restarts after failures.
    pub restarts: u32,
    /// Items of input (lines, indices) read in this run, those read again after a restart included.
    pub records: u64,
    /// From the opened snapshot directory to the last worker's end: restoring, restarts and their
    /// pauses and the last commit are part of it.
    pub elapsed: Duration,
    /// How well the asked snapshot interval was kept.
    pub cadence: Cadence,
    /// From trigger to durable manifest, ns.
    pub snapshot_ns: Histogram<u64>,
    /// How long tasks stood still at barriers to capture their state, ns; one value per task and
    /// snapshot.
    pub capture_ns: Histogram<u64>,
    /// The phases of the snapshots that were completed.
    pub phases: PhaseHistograms,
    /// From the start until all of the state that this run began with was in memory. Records are
    /// processed before.
    pub loaded: Option<Duration>,
    /// What inputs spilled to disk and logged, in the last attempt.
    pub inputs: inbox::Measured,
}

/// Stops a running job from another thread, and counts what it reads.
#[derive(Clone, Debug, Default)]
pub struct Handle {
    stop: Arc<AtomicBool>,
    records: Arc<AtomicU64>,
}

impl Handle {
    /// Asks for a last snapshot and an end. Async-signal-safe.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// The flag that [`stop`](Self::stop) sets, for a signal handler.
    #[must_use]
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.stop.clone()
    }

    /// Items of input (lines, indices) that the job's sources have read so far.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

impl Job {
    /// Runs the job to its end.
    ///
    /// # Errors
    /// As [`run`].
    pub fn run(self, config: &Config) -> Result<Report> {
        run(&self.build()?, config, &Handle::default(), &mut |_| {})
    }
}

/// Runs `graph` until its input ends or `handle` asks for a stop. `notice` is told what happens.
///
/// # Errors
/// The job cannot be built, started or restored, or failed more often than its restarts allow; or
/// `notice` panicked.
pub fn run(
    graph: &Graph,
    config: &Config,
    handle: &Handle,
    notice: &mut dyn FnMut(Notice<'_>),
) -> Result<Report> {
    config.validate()?;
    let cores = pool::cores();
    check_cores(config, &cores)?;
    let _short = ShortSlice::wish();
    let opened = guard::caught(|| {
        let (disk, refused) = best_disk();
        // Before anything is opened: a driver that was asked for and is refused leaves nothing behind.
        let pool = start_pool(config, &cores, refused, notice)?;
        Ok((pool, Supervisor::open(graph, config, disk, handle.clone(), notice)?))
    });
    let (pool, opened) = opened.unwrap_or_else(|caught| Err(panicked(caught)))?;
    let mut supervisor = match opened {
        supervisor::Opened::Complete(report) => return Ok(*report),
        supervisor::Opened::Ready(supervisor) => supervisor,
    };
    supervisor.commit_beside();
    loop {
        let turn = guard::caught(|| supervisor.turn(clock::now_ns(), notice));
        match turn.unwrap_or_else(|caught| Turn::Done(Err(panicked(caught)))) {
            Turn::Start(workers) => pool.run(workers),
            Turn::Wait { until_ns, told } => {
                if told {
                    pool.wake();
                }
                let now_ns = clock::now_ns();
                let wait = until_ns.map_or(SUPERVISOR_WAIT, |until_ns| {
                    Duration::from_nanos(until_ns.saturating_sub(now_ns)).min(SUPERVISOR_WAIT)
                });
                supervisor.wait(wait);
                pool.lost().for_each(|(worker, error)| supervisor.lost(worker, error));
            }
            Turn::Done(result) => {
                // Only a supervisor that panicked leaves workers. They have to let go of the snapshot
                // directory before its lock does; what panicked is not asked to tell them twice.
                supervisor.give_up();
                pool.wake();
                drop(pool);
                return result.map(|report| *report);
            }
        }
    }
}

/// Whether this process may use as many cores as there are workers, and those it is to use for the disk.
fn check_cores(config: &Config, cores: &[CoreId]) -> Result<()> {
    if config.workers > cores.len() {
        return Err(Error::Config {
            setting: "parallelism".into(),
            value: config.workers.to_string(),
            reason: format!(
                "this machine gives the process {} core{}, and each worker needs one; use at most \
                 that many",
                cores.len(),
                if cores.len() == 1 { "" } else { "s" }
            ),
        });
    }
    let unknown =
        config.disk_cores.iter().find(|asked| cores.iter().all(|core| core.id != **asked));
    unknown.map_or(Ok(()), |core| {
        let mine: Vec<String> = cores.iter().map(|core| core.id.to_string()).collect();
        Err(Error::Config {
            setting: "disk core".into(),
            value: core.to_string(),
            reason: format!("this process may use cores {}", mine.join(", ")),
        })
    })
}

/// What ended the supervisor's work, as an error.
fn panicked(caught: Caught) -> Error {
    caught.into_error(|message| Error::SupervisorPanicked { message })
}

/// Why no executor of glommio comes up on this machine, if none does.
///
/// # Errors
/// Why, and how to mend it.
pub fn try_executor() -> Result<()> {
    Pool::start(&Config::workers(1), &pool::cores(), Kind::Glommio).map(drop)
}

/// The threads, under glommio if that is asked for or possible.
fn start_pool(
    config: &Config,
    cores: &[CoreId],
    refused: Option<String>,
    notice: &mut dyn FnMut(Notice<'_>),
) -> Result<Pool> {
    if let Some(reason) = refused.as_ref().filter(|_| !config.disk_cores.is_empty()) {
        return Err(pool::refused_cores(
            &config.disk_cores,
            &format!("io_uring cannot be used: {reason}"),
        ));
    }
    if config.driver == Driver::Threads {
        return Pool::start(config, cores, Kind::Plain);
    }
    let reason = match refused {
        Some(reason) => format!("io_uring cannot be used: {reason}"),
        None => match Pool::start(config, cores, Kind::Glommio) {
            Ok(pool) => return Ok(pool),
            Err(error @ Error::Config { .. }) => return Err(error),
            Err(error) => error.to_string(),
        },
    };
    if config.driver == Driver::Glommio {
        return Err(Error::Config {
            setting: "driver".into(),
            value: "glommio".into(),
            reason: format!("{reason}; or use driver auto or threads"),
        });
    }
    notice(Notice::Fallback(&reason));
    Pool::start(config, cores, Kind::Plain)
}

/// The disk a caller-driven job should use by default, and why it is not io_uring's.
#[must_use]
pub fn default_disk() -> (Arc<dyn Disk>, Option<String>) {
    best_disk()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The notice of a fallback came first, or advice about drivers.
    #[test]
    fn cores_for_the_disk_without_io_uring_are_refused_whatever_the_driver() {
        for driver in [Driver::Auto, Driver::Glommio, Driver::Threads] {
            let config = Config { disk_cores: vec![0], driver, ..Config::workers(1) };
            let refused = Some("not here".to_string());
            let told = &mut |_: Notice<'_>| panic!("a notice");
            let error = start_pool(&config, &pool::cores(), refused, told).err().expect("an error");
            let text = error.to_string();
            assert!(text.contains("disk cores is 0"), "{text}");
            assert!(text.contains("io_uring cannot be used: not here"), "{text}");
        }
    }
}
