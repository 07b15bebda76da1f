//! The pinned threads of a job, one per worker for the life of the engine: a restart hands them new
//! [`Worker`]s, it does not start new threads or executors.
//!
//! Under glommio each thread runs one executor that owns the thread's pinning, timers and sleep
//! (its io_uring wakes it); the worker itself is one future that steps synchronously and yields only
//! to wait. Where io_uring is refused, or an executor does not come up, the same loop runs on a
//! plain pinned thread.
//!
//! Invariants
//! - A pool that was started has all of its threads up: what keeps an executor from coming up is
//!   an error of the start, not a worker that never steps.
//! - A thread that ends before its pool is told to the supervisor, which would wait for it for ever.

#![expect(clippy::disallowed_methods, reason = "the engine is the one home of threads")]

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use core_affinity::CoreId;
use glommio::{GlommioError, LocalExecutorBuilder, Placement};
use rustix::process::{Resource, getrlimit};
use rustix::thread::{MembarrierCommand, membarrier};

use super::park::{Signal, Wait, Waiting, made_work};
use crate::clock;
use crate::config::{Config, Idle};
use crate::disk::{self, Courtesy, ShortSlice};
use crate::error::{Error, Result};
use crate::guard;
use crate::id::WorkerId;
use crate::worker::{Step, Worker};

/// glommio starts no executor where less may be locked, whoever asks and whatever it needs.
pub const MEMLOCK_BYTES_MIN: u64 = 512 << 10;
/// What to do about it.
pub const MEMLOCK_REMEDY: &str = "in a shell: ulimit -l 8192 (above the hard limit as root, or in \
    /etc/security/limits.conf); Docker: --ulimit memlock=-1; systemd: LimitMEMLOCK=infinity";
/// Memory that an executor registers with its rings for glommio's own file I/O, which nothing here
/// uses: the least it takes (it asks for 10 MiB by default, all of it resident).
const IO_MEMORY_BYTES: usize = 64 << 10;

/// The cores this process may use.
pub fn cores() -> Vec<CoreId> {
    core_affinity::get_core_ids().filter(|cores| !cores.is_empty()).unwrap_or_else(|| {
        let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        (0..count).map(|id| CoreId { id }).collect()
    })
}

/// The error where the kernel's threads cannot be placed on the cores that were asked for.
pub fn refused_cores(disk_cores: &[usize], reason: &str) -> Error {
    Error::Config {
        setting: "disk cores".into(),
        value: disk_cores.iter().map(usize::to_string).collect::<Vec<_>>().join(","),
        reason: reason.into(),
    }
}

/// What steps a worker on its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A glommio executor.
    Glommio,
    /// A loop.
    Plain,
}

/// The threads.
pub struct Pool {
    threads: Vec<Thread>,
    signals: Arc<[Signal]>,
}

/// One of them.
struct Thread {
    mailbox: Sender<Worker>,
    /// That it came up, or why it ended before the pool.
    word: Receiver<Result<()>>,
    handle: JoinHandle<()>,
}

impl Pool {
    /// Starts one thread per worker, pinned to the first cores of `cores`. Returns when all of them
    /// wait for their workers.
    ///
    /// # Errors
    /// A thread or an executor does not come up; then none is left.
    pub fn start(config: &Config, cores: &[CoreId], kind: Kind) -> Result<Self> {
        if kind == Kind::Glommio {
            prepare();
        }
        let disk_cores = DiskCores::of(config, cores);
        let signals: Arc<[Signal]> = (0..config.workers).map(|_| Signal::default()).collect();
        let mut pool = Self { threads: Vec::new(), signals };
        for (index, core) in cores.iter().copied().enumerate().take(config.workers) {
            let (mailbox, workers) = channel();
            let (teller, word) = channel();
            let signals = pool.signals.clone();
            let (idle, disk_cores) = (config.idle, disk_cores.clone());
            let seat = Seat { index, core, disk_cores, signals, idle, workers, teller };
            let handle = spawn(seat, kind)?;
            let up = word.recv();
            pool.threads.push(Thread { mailbox, word, handle });
            up.expect("a thread says that it is up, or why not")?;
        }
        Ok(pool)
    }

    /// Hands each thread its worker. One that has ended takes none: see [`lost`](Self::lost).
    pub fn run(&self, workers: Vec<Worker>) {
        for worker in workers {
            let index = worker.id().0;
            _ = self.threads[index].mailbox.send(worker);
        }
    }

    /// Workers whose thread has ended though the pool has not, each told once.
    pub fn lost(&self) -> impl Iterator<Item = (WorkerId, Error)> + '_ {
        let words = self.threads.iter().map(|thread| thread.word.try_recv());
        words.enumerate().filter_map(|(index, word)| Some((WorkerId(index), word.ok()?.err()?)))
    }

    /// Wakes every worker that parks: there are commands.
    pub fn wake(&self) {
        made_work();
        self.signals.iter().for_each(Signal::wake);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // A closed mailbox ends its thread.
        let handles = self.threads.drain(..).map(|thread| thread.handle);
        handles.collect::<Vec<_>>().into_iter().for_each(|handle| _ = handle.join());
    }
}

/// Workers that one core without a worker writes for, at most, unless that is asked for.
const WORKERS_PER_DISK_CORE: usize = 4;

/// Where the kernel's threads run that write for the workers.
#[derive(Clone)]
enum DiskCores {
    /// There, or the job does not start.
    Asked(Vec<usize>),
    /// There if the kernel takes them: on the cores that no worker has, if those are enough. On that of the worker
    /// that submits, where it often wakes them, they take it from its records.
    Free(Vec<usize>),
}

impl DiskCores {
    fn of(config: &Config, cores: &[CoreId]) -> Self {
        if !config.disk_cores.is_empty() {
            return Self::Asked(config.disk_cores.clone());
        }
        let free: Vec<usize> = cores.iter().skip(config.workers).map(|core| core.id).collect();
        let are_enough = free.len() * WORKERS_PER_DISK_CORE >= config.workers;
        Self::Free(if are_enough { free } else { Vec::new() })
    }

    /// For the calling thread.
    fn place_kernel_threads(&self) -> Result<()> {
        match self {
            Self::Asked(cores) => disk::place_kernel_threads(cores)
                .map_err(|error| refused_cores(cores, &format!("io_uring refuses them: {error}"))),
            Self::Free(cores) => {
                if !cores.is_empty() {
                    // Nobody has asked: then they stay where the kernel puts them.
                    _ = disk::place_kernel_threads(cores);
                }
                Ok(())
            }
        }
    }
}

/// What a thread needs.
struct Seat {
    index: usize,
    core: CoreId,
    disk_cores: DiskCores,
    signals: Arc<[Signal]>,
    idle: Idle,
    workers: Receiver<Worker>,
    teller: Sender<Result<()>>,
}

impl Seat {
    fn signal(&self) -> &Signal {
        &self.signals[self.index]
    }

    /// Steps the worker until it is to be parked for so long; `None`: it has stopped.
    fn until_park(
        &self,
        worker: &mut Worker,
        waiting: &mut Waiting,
        courtesy: &mut Courtesy,
    ) -> Option<Duration> {
        loop {
            match self.step(worker, waiting)? {
                Wait::Not if courtesy.is_asked() => rest(),
                Wait::Not => {}
                Wait::GiveWay => std::thread::yield_now(),
                Wait::Park(time) => return Some(time),
            }
        }
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

/// Announces the barriers that glommio's executors use. The system takes that at once from a process of one
/// thread; of one with more it first waits for every processor to pass through it (13 ms, a seventh of a
/// restart with a gigabyte of state).
fn prepare() {
    // Where it is refused, glommio finds that out for itself.
    _ = membarrier(MembarrierCommand::RegisterPrivateExpedited);
}

/// Leaves the processor to others as shortly as a thread can. To yield is not enough: that lets run who
/// shares this thread's group, and the kernel's threads do not.
#[cold]
#[expect(clippy::disallowed_methods, reason = "a disk is late, and this lets it get on")]
fn rest() {
    std::thread::sleep(Duration::from_nanos(1));
}

/// Starts the thread of `seat`.
fn spawn(seat: Seat, kind: Kind) -> Result<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name(format!("tidegate-{}", seat.index));
    let body = move || {
        let _short = ShortSlice::wish();
        let ended = guard::caught(|| match kind {
            Kind::Plain => run_plain(&seat),
            Kind::Glommio => run_glommio(&seat),
        });
        let lost = |reason| Error::WorkerLost { worker: seat.index, reason };
        if let Err(error) = ended.unwrap_or_else(|caught| Err(caught.into_error(lost))) {
            _ = seat.teller.send(Err(error));
        }
    };
    thread.spawn(body).map_err(Error::io("start", "a worker thread"))
}

fn run_plain(seat: &Seat) -> Result<()> {
    core_affinity::set_for_current(seat.core);
    seat.disk_cores.place_kernel_threads()?;
    _ = seat.signal().thread.set(std::thread::current());
    _ = seat.teller.send(Ok(()));
    while let Ok(mut worker) = seat.workers.recv() {
        worker.time_tasks();
        let (mut waiting, mut courtesy) = (Waiting::new(seat.idle), Courtesy::default());
        while let Some(time) = seat.until_park(&mut worker, &mut waiting, &mut courtesy) {
            if seat.signal().is_parked() {
                std::thread::park_timeout(time);
            }
            waiting.woken(seat.signal());
        }
    }
    Ok(())
}

/// The executor is made on its thread by hand: where `LocalExecutorBuilder::spawn` cannot make it,
/// only a join says so.
fn run_glommio(seat: &Seat) -> Result<()> {
    let builder = LocalExecutorBuilder::new(Placement::Fixed(seat.core.id));
    let executor = builder.io_memory(IO_MEMORY_BYTES).make().map_err(refused)?;
    seat.disk_cores.place_kernel_threads()?;
    _ = seat.teller.send(Ok(()));
    executor.run(async {
        while let Ok(mut worker) = seat.workers.recv() {
            worker.time_tasks();
            let (mut waiting, mut courtesy) = (Waiting::new(seat.idle), Courtesy::default());
            while let Some(time) = seat.until_park(&mut worker, &mut waiting, &mut courtesy) {
                park(seat.signal(), time).await;
                waiting.woken(seat.signal());
            }
        }
    });
    Ok(())
}

/// Why there is no executor, and what to do.
fn refused(error: GlommioError<()>) -> Error {
    let limit = getrlimit(Resource::Memlock).current;
    match limit.filter(|limit| *limit < MEMLOCK_BYTES_MIN) {
        Some(limit) => Error::Limit {
            what: format!("the memory that glommio locks, {} KiB,", MEMLOCK_BYTES_MIN / 1024),
            limit: format!("{} KiB (RLIMIT_MEMLOCK)", limit / 1024),
            remedy: MEMLOCK_REMEDY.into(),
        },
        None => Error::io("start", "a glommio executor")(error.into()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn start(kind: Kind) -> Result<Pool> {
        Pool::start(&Config::workers(1), &cores(), kind)
    }

    #[test]
    fn a_pool_that_was_started_has_threads_that_take_workers() {
        for kind in [Kind::Plain, Kind::Glommio] {
            let Ok(pool) = start(kind) else {
                assert_eq!(kind, Kind::Glommio, "plain threads start anywhere");
                continue;
            };
            assert_eq!(pool.threads.len(), 1);
            assert_eq!(pool.lost().count(), 0);
        }
    }

    #[test]
    fn the_disk_gets_the_cores_that_no_worker_has_unless_others_were_asked_for() {
        let cores: Vec<CoreId> = [2, 3, 5, 7].map(|id| CoreId { id }).into();
        let of = |config: &Config| match DiskCores::of(config, &cores) {
            DiskCores::Asked(cores) => (true, cores),
            DiskCores::Free(cores) => (false, cores),
        };
        assert_eq!(of(&Config::workers(2)), (false, vec![5, 7]));
        assert_eq!(of(&Config::workers(4)), (false, vec![]));
        let many: Vec<CoreId> = (0..6).map(|id| CoreId { id }).collect();
        assert!(
            matches!(DiskCores::of(&Config::workers(5), &many), DiskCores::Free(none) if none.is_empty())
        );
        let asked = Config { disk_cores: vec![2], ..Config::workers(2) };
        assert_eq!(of(&asked), (true, vec![2]));
    }

    /// The thread ended after its pool was started, and the supervisor waited for it for ever.
    #[test]
    fn a_thread_that_ends_before_its_pool_is_told_once() {
        let mut pool = start(Kind::Plain).expect("a thread");
        let (teller, word) = channel();
        let reason = "as asked".to_string();
        teller.send(Err(Error::WorkerLost { worker: 0, reason })).expect("a receiver");
        pool.threads[0].word = word;
        let lost: Vec<String> = pool.lost().map(|(_, error)| error.to_string()).collect();
        assert_eq!(lost, ["the thread of worker 0 has ended: as asked; run the job again"]);
        assert_eq!(pool.lost().count(), 0);
    }
}
