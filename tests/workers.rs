//! Jobs on real threads, plain ones and glommio's, when something goes wrong on them: the job ends
//! with an error or is restarted, and never hangs.
//!
//! The same failures under the caller-driven driver, in every order, are in `recovery`.

#![expect(clippy::disallowed_methods, reason = "a job that hangs must not hang its test")]

use std::panic::{set_hook, take_hook};
use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Once};
use std::time::Duration;

use rkyv::{Archive, Deserialize, Serialize};
use tidegate::config::{Config, Driver, Restarts, Snapshots};
use tidegate::disk::{Disk, DiskLock, MemoryDisk};
use tidegate::engine::stepper::{Stepper, Stepping};
use tidegate::engine::{End, Handle, Notice, Report, default_disk, run};
use tidegate::error::{Error, Result};
use tidegate::guard;
use tidegate::id::SnapshotId;
use tidegate::operator::Flow;
use tidegate::operator::sink::{Collect, Collected, Sink, Writer, WriterContext};
use tidegate::operator::source::{Generator, Items};
use tidegate::record::{Batch, Collector};
use tidegate::store;
use tidegate::stream::{Job, Stream};
use tidegate::worker::Step;

const RECORDS: u64 = 20_000;
const RATE: f64 = 200_000.0;
const KEYS: u64 = 7;
type Update = (u64, u64);

/// A job that has not ended by then hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a run came to, and what it was told meanwhile.
struct Ran {
    result: Result<Report>,
    completed: usize,
    restarted: Vec<String>,
}

/// Runs the job that `make` writes on a thread of its own, so that a hang fails the test. What is
/// left of it then is left behind.
#[track_caller]
fn ran(config: &Config, make: impl FnOnce() -> Job + Send + 'static) -> Ran {
    ran_and_heard(config, make, |_| {})
}

/// The same; `hear` is told first.
#[track_caller]
fn ran_and_heard(
    config: &Config,
    make: impl FnOnce() -> Job + Send + 'static,
    hear: fn(&Notice<'_>),
) -> Ran {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |panic| {
            if !guard::takes() {
                usual(panic);
            }
        }));
    });
    let ((told, outcome), config) = (channel(), config.clone());
    std::thread::spawn(move || {
        let (mut completed, mut restarted) = (0, Vec::new());
        let graph = make().build().expect("well formed");
        let result = run(&graph, &config, &Handle::default(), &mut |notice| {
            hear(&notice);
            match notice {
                Notice::Completed { .. } => completed += 1,
                Notice::Restarting { error, .. } => restarted.push(error.to_string()),
                _ => {}
            }
        });
        _ = told.send(Ran { result, completed, restarted });
    });
    match outcome.recv_timeout(PATIENCE) {
        Ok(ran) => ran,
        Err(RecvTimeoutError::Timeout) => panic!("the job hangs"),
        Err(RecvTimeoutError::Disconnected) => panic!("the caller of the job panicked"),
    }
}

/// The drivers with threads that this machine has, with as many workers as it has cores, up to two.
fn drivers() -> Vec<Config> {
    let workers = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(2));
    let on = |driver| Config { driver, ..Config::workers(workers) };
    let (_, refused) = default_disk();
    match refused {
        None => vec![on(Driver::Threads), on(Driver::Glommio)],
        Some(reason) => {
            eprintln!("NOT TESTED on glommio: io_uring is refused: {reason}");
            vec![on(Driver::Threads)]
        }
    }
}

/// Snapshots every 2 ms in `directory`, short pauses between restarts.
fn recoverable(config: Config, directory: &Path) -> Config {
    let mut config = config.with_snapshots(Snapshots::every(Duration::from_millis(2), directory));
    config.restarts = Restarts {
        failures_max: 3,
        backoff: Duration::from_millis(2),
        backoff_max: Duration::from_millis(8),
    };
    config
}

/// Runs `test` under each driver, with snapshots in a directory of its own.
fn with_snapshots(test: impl Fn(&Config)) {
    for config in drivers() {
        let directory = tempfile::tempdir().expect("a directory");
        test(&recoverable(config, &directory.path().join("snapshots")));
    }
}

fn numbers(job: &Job) -> Stream<u64> {
    let make = |index, out: &mut Collector<u64>| out.push(index);
    job.source("numbers", Generator::new("numbers", RECORDS, make)).rate(RATE)
}

fn counted(stream: Stream<u64>) -> Stream<Update> {
    stream.key_by(|number| number % KEYS).fold("count", || 0_u64, |count, _| *count += 1)
}

/// For each key that occurs C times the counts 1 to C, each once.
#[track_caller]
fn assert_exact(collected: &Collected<Update>) {
    let mut found = collected.take();
    found.sort_unstable();
    let times = |key| (0..RECORDS).filter(|number| number % KEYS == key).count() as u64;
    let expected = (0..KEYS).flat_map(|key| (1..=times(key)).map(move |count| (key, count)));
    assert!(found.iter().copied().eq(expected), "{} updates, not the right ones", found.len());
}

/// A job whose operator "touchy" calls `look` with every record.
fn touchy(
    look: impl Fn(u64) + Clone + Send + 'static,
) -> (impl FnOnce() -> Job + Send, Collected<Update>) {
    let (sink, collected) = Collect::new();
    let make = move || {
        let job = Job::new("touchy");
        let looked_at = numbers(&job).map("touchy", move |number| {
            look(number);
            number
        });
        counted(looked_at).sink("out", sink);
        job
    };
    (make, collected)
}

/// Panics when it is dropped with this number.
#[derive(Clone, Archive, Serialize, Deserialize)]
struct Spiteful(u64);

const SPITE: u64 = 5;

impl Drop for Spiteful {
    fn drop(&mut self) {
        assert_ne!(self.0, SPITE, "dropped in spite");
    }
}

#[test]
fn a_record_whose_drop_panics_in_an_operator_ends_the_job_with_the_operators_name() {
    for config in drivers() {
        let ran = ran(&config, || {
            let job = Job::new("spite");
            let (sink, _) = Collect::new();
            let spiteful =
                job.source("numbers", Items::new("ten", || 0..10_u64)).map("wrap", Spiteful);
            spiteful.map("unwrap", |spiteful| spiteful.0).sink("out", sink);
            job
        });
        let error = ran.result.expect_err("it panicked");
        let Error::Panicked { operator, message, .. } = &error else { panic!("{error}") };
        assert_eq!(operator, "unwrap", "{error}");
        assert!(message.contains("dropped in spite"), "{error}");
    }
}

/// The worker's thread died where it dropped its tasks, nobody was told, and the job hung.
#[test]
fn a_record_whose_drop_panics_with_its_task_ends_the_job_with_an_error() {
    for config in drivers() {
        let ran = ran(&config, || {
            let job = Job::new("spite");
            let (sink, _) = Collect::new();
            let spiteful =
                job.source("numbers", Items::new("ten", || 0..10_u64)).map("wrap", Spiteful);
            // Record 0 panics first; the spiteful one is left in the operator's buffer.
            let unwrap = |spiteful: Spiteful| {
                assert_ne!(spiteful.0, 0, "at the first");
                spiteful.0
            };
            spiteful.map("unwrap", unwrap).sink("out", sink);
            job
        });
        let error = ran.result.expect_err("it panicked");
        let Error::Panicked { operator, message, .. } = &error else { panic!("{error}") };
        assert_eq!(operator, "unwrap", "{error}");
        assert!(message.contains("at the first"), "the first failure is told: {error}");
    }
}

/// A value that a closure holds and that panics when the closure is dropped with its task. The
/// closure that the job itself keeps is left alone.
struct Barbed {
    clones: Arc<AtomicU64>,
    number: u64,
}

impl Barbed {
    fn new() -> Self {
        Self { clones: Arc::default(), number: 0 }
    }
}

impl Clone for Barbed {
    fn clone(&self) -> Self {
        let number = 1 + self.clones.fetch_add(1, Ordering::Relaxed);
        Self { clones: self.clones.clone(), number }
    }
}

impl Drop for Barbed {
    fn drop(&mut self) {
        assert_eq!(self.number, 0, "the barb");
    }
}

fn barbed() -> Job {
    let job = Job::new("barbed");
    let (sink, _) = Collect::new();
    let barbed = Barbed::new();
    let held = numbers(&job).map("hold", move |number| {
        let _held = &barbed;
        number
    });
    counted(held).sink("out", sink);
    job
}

#[track_caller]
fn assert_barb(error: &Error) {
    let Error::WorkerPanicked { at, message, .. } = error else { panic!("{error}") };
    assert!(at.contains("dropping a task") && message.contains("the barb"), "{error}");
    assert!(error.to_string().starts_with("worker "), "{error}");
}

/// Its workers were never told to stop, and the process waited for them for ever.
#[test]
fn a_supervisor_that_panics_ends_the_job_with_an_error_and_no_worker_runs_on() {
    for config in drivers() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let config = recoverable(config, &directory.path().join("snapshots"));
        let job = || {
            let job = Job::new("heard");
            let (sink, _) = Collect::new();
            counted(numbers(&job)).sink("out", sink);
            job
        };
        let ran = ran_and_heard(&config, job, |notice| {
            assert!(!matches!(notice, Notice::Completed { .. }), "enough is enough");
        });
        let Err(error) = ran.result else { panic!("what it told panicked") };
        let Error::SupervisorPanicked { message } = &error else { panic!("{error}") };
        assert!(message.contains("enough is enough"), "{error}");
        assert!(ran.restarted.is_empty() && !error.is_retryable(), "{:?}", ran.restarted);
    }
}

/// As above; here nothing else had failed, so the drop is what is told.
#[test]
fn a_closure_whose_drop_panics_ends_the_job_with_an_error() {
    for config in drivers() {
        assert_barb(&ran(&config, barbed).result.expect_err("it panicked"));
    }
}

/// Each attempt was restored, completed its last snapshot and failed after it, and the completed
/// snapshot set the count of failures back: the job was restarted for ever.
#[test]
fn a_closure_whose_drop_panics_at_the_end_of_each_attempt_exhausts_the_restarts() {
    with_snapshots(|config| {
        let error = ran(config, barbed).result.expect_err("it panicked");
        let Error::RestartsExhausted { failures, last } = &error else { panic!("{error}") };
        assert_eq!(*failures, 4, "three restarts");
        assert_barb(last);
    });
}

#[test]
fn after_a_panic_the_job_goes_on_from_a_snapshot_and_its_result_is_exact() {
    with_snapshots(|config| {
        let seen = Arc::new(AtomicU64::new(0));
        let (make, collected) = touchy(move |_| {
            assert_ne!(seen.fetch_add(1, Ordering::Relaxed), RECORDS / 2, "at half way");
        });
        let ran = ran(config, make);
        let report = ran.result.expect("one panic is survived");
        assert_eq!((report.end, report.restarts), (End::Complete, 1), "{:?}", ran.restarted);
        assert!(ran.restarted[0].contains("operator 'touchy'"), "{:?}", ran.restarted);
        assert!(report.records > RECORDS || ran.completed > 2, "{} snapshots", ran.completed);
        assert_exact(&collected);
    });
}

#[test]
fn an_operator_that_always_panics_exhausts_the_restarts_and_is_named() {
    with_snapshots(|config| {
        let (make, collected) = touchy(|number| assert_ne!(number, 3, "never"));
        let ran = ran(config, make);
        let error = ran.result.expect_err("it panics each time");
        let Error::RestartsExhausted { failures, last } = &error else { panic!("{error}") };
        let Error::Panicked { operator, message, .. } = &**last else { panic!("{last}") };
        assert_eq!((*failures, &**operator), (4, "touchy"), "{last}");
        assert!(message.contains("never"), "{last}");
        assert_eq!(ran.restarted.len(), 3);
        let times = collected.take().len() as u64;
        assert!(times < RECORDS, "{times} updates");
    });
}

#[test]
fn a_failure_before_the_first_snapshot_starts_the_job_from_the_beginning_once() {
    with_snapshots(|config| {
        let mut config = config.clone();
        config.snapshots.as_mut().expect("it takes snapshots").interval = Duration::from_secs(60);
        let fuse = Arc::new(AtomicI64::new(1));
        let (make, collected) = touchy(move |number| {
            assert!(number < 100 || fuse.fetch_sub(1, Ordering::Relaxed) != 1, "at the hundredth");
        });
        let ran = ran(&config, make);
        let report = ran.result.expect("one panic is survived");
        assert_eq!((report.end, report.restarts, report.restored), (End::Complete, 1, None));
        assert_exact(&collected);
    });
}

/// A sink that panics in one of its calls, the `left`-th time.
struct Panicking {
    inner: Collect<Update>,
    call: &'static str,
    left: AtomicI64,
}

impl Panicking {
    fn called(&self, call: &str) {
        let is_due = call == self.call && self.left.fetch_sub(1, Ordering::Relaxed) == 1;
        assert!(!is_due, "in {call}, as asked");
    }
}

impl Sink for Panicking {
    type Item = Update;

    fn identity(&self) -> String {
        self.called("identity");
        "panicking".into()
    }

    fn claim(
        &self,
        _owner: &str,
        _handles: Option<&[Vec<u8>]>,
        _disk: &dyn Disk,
    ) -> Result<Option<DiskLock>> {
        self.called("claim");
        Ok(None)
    }

    fn recover(&self, handles: Option<&[Vec<u8>]>, disk: &dyn Disk) -> Result<()> {
        self.called("recover");
        self.inner.recover(handles, disk)
    }

    fn writer(&self, context: &WriterContext) -> Result<Box<dyn Writer<Update>>> {
        self.called("writer");
        self.inner.writer(context)
    }
}

/// The panic left `run`, or was put down to the supervisor, and nobody was named.
#[test]
fn a_sink_that_panics_while_a_job_begins_is_named() {
    for call in ["identity", "claim", "recover", "writer"] {
        let ran = ran(&drivers()[0], move || {
            let (job, (inner, _)) = (Job::new("panicking"), Collect::new());
            let sink = Panicking { inner, call, left: 1.into() };
            counted(numbers(&job)).sink("out", sink);
            job
        });
        let error = ran.result.expect_err("it panicked");
        let Error::Panicked { operator, message, .. } = &error else { panic!("{error}") };
        assert_eq!((&operator[..], &message[..]), ("out", &format!("in {call}, as asked")[..]));
    }
}

/// It ended the job, which another try would have helped.
#[test]
fn a_sink_that_panics_at_a_restart_is_named_and_asked_again() {
    with_snapshots(|config| {
        let (inner, collected) = Collect::new();
        let ran = ran(config, move || {
            let (job, seen) = (Job::new("panicking"), AtomicU64::new(0));
            let seen = Arc::new(seen);
            let look = move |number| {
                assert_ne!(seen.fetch_add(1, Ordering::Relaxed), RECORDS / 2, "half-way");
                number
            };
            let sink = Panicking { inner, call: "recover", left: 2.into() };
            counted(numbers(&job).map("touchy", look)).sink("out", sink);
            job
        });
        let report = ran.result.expect("it goes on");
        assert_eq!((report.end, report.restarts), (End::Complete, 2), "{:?}", ran.restarted);
        assert!(ran.restarted[0].contains("operator 'touchy'"), "{:?}", ran.restarted);
        let recover = "operator 'out' (task 0) panicked: in recover";
        assert!(ran.restarted[1].contains(recover), "{:?}", ran.restarted);
        assert_exact(&collected);
    });
}

/// What is told while a job is opened may panic like what is told later; it left `run`.
#[test]
fn a_program_that_panics_at_what_it_is_told_while_a_job_is_opened_gets_an_error() {
    with_snapshots(|config| {
        let make = || {
            let (job, (sink, _)) = (Job::new("heard"), Collect::new());
            counted(numbers(&job)).sink("out", sink);
            job
        };
        ran(config, make).result.expect("it completes");
        let directory = &config.snapshots.as_ref().expect("it takes them").directory;
        let infos = store::list(&*default_disk().0, directory).expect("a snapshot directory");
        let newest = infos.iter().max_by_key(|info| info.snapshot).expect("snapshots");
        let file = directory.join(&newest.file);
        let mut bytes = std::fs::read(&file).expect("the newest");
        bytes[60] = !bytes[60];
        std::fs::write(&file, bytes).expect("a damaged one");
        let ran = ran_and_heard(config, make, |notice| {
            assert!(!matches!(notice, Notice::Warning(_)), "enough is enough");
        });
        let error = ran.result.expect_err("what it told panicked");
        let Error::SupervisorPanicked { message } = &error else { panic!("{error}") };
        assert!(message.contains("enough is enough"), "{error}");
    });
}

/// The same for a caller that steps the job: the panic went through the caller's loop, and the workers would
/// have run on.
#[test]
fn a_stepped_job_whose_notice_panics_ends_with_an_error_and_its_workers_stop() {
    let (job, (sink, _)) = (Job::new("heard"), Collect::new());
    counted(numbers(&job)).sink("out", sink);
    let graph = job.build().expect("well formed");
    let (disk, handle) = (Arc::new(MemoryDisk::new(1)), Handle::default());
    let opened = Stepper::open(&graph, &Config::workers(1), disk, handle, &mut |_| {});
    let Ok(Stepping::Ready(mut stepper)) = opened else { panic!("a new job is ready") };
    assert!(stepper.supervise(0, &mut |_| {}).is_none(), "it has begun");
    assert_ne!(stepper.step(0, 0), Step::Stopped);
    let ended = stepper.supervise(1, &mut |_| panic!("enough is enough"));
    let Some(Err(error)) = ended else { panic!("it goes on") };
    assert!(matches!(error, Error::SupervisorPanicked { .. }), "{error}");
    assert_eq!(stepper.step(0, 2), Step::Stopped);
}

/// A sink that refuses to commit the next `refusals` times.
struct Brittle {
    inner: Collect<Update>,
    refusals: Arc<AtomicI64>,
}

struct BrittleWriter {
    inner: Box<dyn Writer<Update>>,
    refusals: Arc<AtomicI64>,
}

impl Sink for Brittle {
    type Item = Update;

    fn identity(&self) -> String {
        "brittle".into()
    }

    fn recover(&self, handles: Option<&[Vec<u8>]>, disk: &dyn Disk) -> Result<()> {
        self.inner.recover(handles, disk)
    }

    fn writer(&self, context: &WriterContext) -> Result<Box<dyn Writer<Update>>> {
        let (inner, refusals) = (self.inner.writer(context)?, self.refusals.clone());
        Ok(Box::new(BrittleWriter { inner, refusals }))
    }
}

impl Writer<Update> for BrittleWriter {
    fn write(&mut self, records: &mut Batch<'_, Update>) -> Result<Flow> {
        self.inner.write(records)
    }

    fn prepare(&mut self, snapshot: SnapshotId) -> Result<Vec<u8>> {
        self.inner.prepare(snapshot)
    }

    fn commit(&mut self, snapshot: SnapshotId, last: bool) -> Result<()> {
        if self.refusals.fetch_sub(1, Ordering::Relaxed) > 0 {
            return Err(Error::io("commit to", "elsewhere")(std::io::Error::other("refused")));
        }
        self.inner.commit(snapshot, last)
    }

    fn commit_all(&mut self) -> Result<()> {
        self.inner.commit_all()
    }
}

fn brittle(refusals: i64) -> (impl FnOnce() -> Job + Send, Collected<Update>) {
    let (inner, collected) = Collect::new();
    let make = move || {
        let (job, refusals) = (Job::new("brittle"), Arc::new(AtomicI64::new(refusals)));
        counted(numbers(&job)).sink("out", Brittle { inner, refusals });
        job
    };
    (make, collected)
}

#[test]
fn a_sink_that_fails_to_commit_is_asked_again_after_a_restart() {
    with_snapshots(|config| {
        let (make, collected) = brittle(1);
        let ran = ran(config, make);
        let report = ran.result.expect("it commits at last");
        assert_eq!((report.end, report.restarts), (End::Complete, 1), "{:?}", ran.restarted);
        assert!(ran.restarted[0].contains("operator 'out'"), "{:?}", ran.restarted);
        assert_exact(&collected);
    });
}

/// A snapshot had to be complete before its commit could fail, and each complete one set the count
/// of failures back: the job was restarted for ever.
#[test]
fn a_sink_that_never_commits_exhausts_the_restarts() {
    with_snapshots(|config| {
        let (make, _collected) = brittle(i64::MAX);
        let error = ran(config, make).result.expect_err("it never commits");
        let Error::RestartsExhausted { last, .. } = &error else { panic!("{error}") };
        assert!(last.to_string().contains("operator 'out'"), "{last}");
        assert!(last.to_string().contains("refused"), "{last}");
    });
}
