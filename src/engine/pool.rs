//! The pinned threads of a job, one per worker for the life of the engine: a restart hands them new
//! [`Worker`]s, it does not start new threads or executors.
//!
//! Under glommio each thread runs one executor that owns the thread's pinning, timers and sleep
//! (its io_uring wakes it); the worker itself is one future that steps synchronously and yields only
//! to wait. Where io_uring is refused the same loop runs on a plain pinned thread.

#![expect(clippy::disallowed_methods, reason = "the engine is the one home of threads")]

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::Poll;
use std::time::Duration;

use core_affinity::CoreId;
use glommio::{LocalExecutorBuilder, Placement};

use super::park::{Signal, Wait, Waiting, made_work};
use crate::clock;
use crate::config::{Config, Idle};
use crate::error::{Error, Result};
use crate::worker::{Step, Worker};

/// The cores this process may use.
pub fn cores() -> Vec<CoreId> {
    core_affinity::get_core_ids().filter(|cores| !cores.is_empty()).unwrap_or_else(|| {
        let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        (0..count).map(|id| CoreId { id }).collect()
    })
}

/// The threads.
pub struct Pool {
    mailboxes: Vec<Sender<Worker>>,
    signals: Arc<[Signal]>,
    threads: Vec<Box<dyn Join>>,
}

/// Something to wait for at the end.
trait Join {
    fn join(self: Box<Self>);
}

impl Join for std::thread::JoinHandle<()> {
    fn join(self: Box<Self>) {
        _ = std::thread::JoinHandle::join(*self);
    }
}

impl Join for glommio::ExecutorJoinHandle<()> {
    fn join(self: Box<Self>) {
        _ = glommio::ExecutorJoinHandle::join(*self);
    }
}

impl Pool {
    /// Starts one thread per worker, pinned to the first cores of `cores`.
    ///
    /// # Errors
    /// A thread or executor cannot be started.
    pub fn start(config: &Config, cores: &[CoreId], glommio: bool) -> Result<Self> {
        let signals: Arc<[Signal]> = (0..config.workers).map(|_| Signal::default()).collect();
        let mut pool = Self { mailboxes: Vec::new(), signals, threads: Vec::new() };
        for (index, core) in cores.iter().copied().enumerate().take(config.workers) {
            let (mailbox, workers) = channel();
            let seat = Seat { index, signals: pool.signals.clone(), idle: config.idle, workers };
            let name = format!("tidegate-{index}");
            let thread: Box<dyn Join> = if glommio {
                Box::new(start_glommio(name, core, seat)?)
            } else {
                Box::new(start_thread(name, core, seat)?)
            };
            pool.mailboxes.push(mailbox);
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Hands each thread its worker.
    pub fn run(&self, workers: Vec<Worker>) {
        for worker in workers {
            let mailbox = &self.mailboxes[worker.id().0];
            assert!(mailbox.send(worker).is_ok(), "a thread takes workers until the pool is gone");
        }
    }

    /// Wakes every worker that parks: there are commands.
    pub fn wake(&self) {
        made_work();
        self.signals.iter().for_each(Signal::wake);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.mailboxes.clear();
        self.threads.drain(..).for_each(Join::join);
    }
}

/// What a thread needs.
struct Seat {
    index: usize,
    signals: Arc<[Signal]>,
    idle: Idle,
    workers: Receiver<Worker>,
}

impl Seat {
    fn signal(&self) -> &Signal {
        &self.signals[self.index]
    }

    /// One step, and the neighbours woken if it may have made work (or room) for them.
    fn step(&self, worker: &mut Worker, waiting: &mut Waiting) -> Option<Wait> {
        let now_ns = clock::now_ns();
        let step = worker.step(now_ns);
        if !matches!(step, Step::Idle(_)) && self.signals.len() > 1 {
            made_work();
            let others = self.signals.iter().enumerate().filter(|(index, _)| *index != self.index);
            others.for_each(|(_, signal)| signal.wake());
        }
        (step != Step::Stopped).then(|| waiting.after(step, now_ns, self.signal()))
    }
}

fn start_thread(name: String, core: CoreId, seat: Seat) -> Result<std::thread::JoinHandle<()>> {
    let body = move || {
        core_affinity::set_for_current(core);
        _ = seat.signal().thread.set(std::thread::current());
        while let Ok(mut worker) = seat.workers.recv() {
            let mut waiting = Waiting::new(seat.idle);
            while let Some(wait) = seat.step(&mut worker, &mut waiting) {
                match wait {
                    Wait::Not => {}
                    Wait::GiveWay => std::thread::yield_now(),
                    Wait::Park(time) => {
                        if seat.signal().is_parked() {
                            std::thread::park_timeout(time);
                        }
                        waiting.woken(seat.signal());
                    }
                }
            }
        }
    };
    let thread = std::thread::Builder::new().name(name).spawn(body);
    thread.map_err(Error::io("start", "a worker thread"))
}

fn start_glommio(
    name: String,
    core: CoreId,
    seat: Seat,
) -> Result<glommio::ExecutorJoinHandle<()>> {
    let builder = LocalExecutorBuilder::new(Placement::Fixed(core.id)).name(&name);
    let executor = builder.spawn(move || async move {
        while let Ok(mut worker) = seat.workers.recv() {
            let mut waiting = Waiting::new(seat.idle);
            while let Some(wait) = seat.step(&mut worker, &mut waiting) {
                match wait {
                    Wait::Not => {}
                    Wait::GiveWay => std::thread::yield_now(),
                    Wait::Park(time) => {
                        park(seat.signal(), time).await;
                        waiting.woken(seat.signal());
                    }
                }
            }
        }
    });
    executor.map_err(|error| {
        Error::io("start", "a glommio executor")(std::io::Error::other(error.to_string()))
    })
}

/// Sleeps in the executor until the signal comes or `time` is over.
async fn park(signal: &Signal, time: Duration) {
    let mut timer = std::pin::pin!(glommio::timer::sleep(time));
    poll_fn(|context| {
        signal.waker.register(context.waker());
        if !signal.is_parked() {
            return Poll::Ready(());
        }
        timer.as_mut().poll(context)
    })
    .await;
}
