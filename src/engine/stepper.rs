//! The caller-driven driver: the whole engine without a thread.
//!
//! The caller says what time it is, which worker steps next, and on which [`Disk`] the job runs, so
//! a seed decides a whole run. Tests use it; so can a program that embeds a job in its own loop.

use std::sync::Arc;

use super::supervisor::{Opened, Supervisor, Turn};
use super::{Handle, Notice, Report, panicked};
use crate::config::Config;
use crate::disk::Disk;
use crate::error::Result;
use crate::graph::Graph;
use crate::guard;
use crate::worker::{Step, Worker};

/// A job that runs only while it is stepped.
pub struct Stepper<'g> {
    /// First, so that they have ended what they write before the supervisor gives up the locks.
    workers: Vec<Option<Worker>>,
    supervisor: Box<Supervisor<'g>>,
}

/// A job, opened.
pub enum Stepping<'g> {
    /// It was complete before.
    Complete(Box<Report>),
    /// It can be stepped.
    Ready(Stepper<'g>),
}

impl<'g> Stepper<'g> {
    /// Opens `graph` on `disk`. The numbers of workers may be above that of cores.
    ///
    /// # Errors
    /// As [`run`](super::run).
    pub fn open(
        graph: &'g Graph,
        config: &Config,
        disk: Arc<dyn Disk>,
        handle: Handle,
        notice: &mut dyn FnMut(Notice<'_>),
    ) -> Result<Stepping<'g>> {
        config.validate()?;
        let opened = guard::caught(|| Supervisor::open(graph, config, disk, handle, notice))
            .map_err(panicked);
        Ok(match opened?? {
            Opened::Complete(report) => Stepping::Complete(report),
            Opened::Ready(supervisor) => Stepping::Ready(Self { supervisor, workers: Vec::new() }),
        })
    }

    /// Lets the supervisor act at `now_ns`. `Some`: the job has ended, and is not supervised again.
    pub fn supervise(
        &mut self,
        now_ns: u64,
        notice: &mut dyn FnMut(Notice<'_>),
    ) -> Option<Result<Box<Report>>> {
        match guard::caught(|| self.supervisor.turn(now_ns, notice)) {
            Ok(Turn::Start(workers)) => self.workers = workers.into_iter().map(Some).collect(),
            Ok(Turn::Wait { .. }) => {}
            Ok(Turn::Done(result)) => return Some(result),
            Err(caught) => {
                self.supervisor.give_up(); // its workers stop when they are stepped
                return Some(Err(panicked(caught)));
            }
        }
        None
    }

    /// From now on manifests are written by [`commit`](Self::commit) only, as where a disk is slower than the
    /// interval: in any order, and several may be under way.
    pub fn hold_commits(&mut self) {
        self.supervisor.hold_commits();
    }

    /// Writes one of the manifests that are held, the `nth` modulo how many there are.
    pub fn commit(&mut self, nth: usize) {
        self.supervisor.carry_out(nth);
    }

    /// How many workers there are to step.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// As [`Worker::set_late`], for one of them.
    pub fn set_late(&mut self, worker: usize, hears_late: bool) {
        self.workers[worker].iter_mut().for_each(|worker| worker.set_late(hears_late));
    }

    /// Steps one worker at `now_ns`. A worker that has stopped stays idle.
    pub fn step(&mut self, worker: usize, now_ns: u64) -> Step {
        let Some(stepped) = &mut self.workers[worker] else { return Step::Stopped };
        let step = stepped.step(now_ns);
        if step == Step::Stopped {
            self.workers[worker] = None;
        }
        step
    }
}
