//! `bench state --restart`: the job again, from its last snapshot, in a process of its own.
//!
//! The measured run was stopped at a fixed update, with a last snapshot. The second process is the same
//! command with a hidden argument; it handles some more updates ([`records`]) and prints a [`GoneOn`].
//!
//! The host of a virtual machine may take memory back that is free there; who touches it first waits for the
//! host then (ten times as long as for memory that is at hand, where this was measured). So as much
//! memory as is needed is touched and freed before either is timed, and the files are read: both are what a
//! restart after a crash of the process finds, and not after one of the machine.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use memmap2::{Advice, MmapMut};
use serde::{Deserialize, Serialize};
use tidegate::clock;
use tidegate::config::Config;
use tidegate::disk::FileHandle;
use tidegate::engine::{End, Handle, Report, default_disk, memory};
use tidegate::error::Error;
use tidegate::jobs::updates::Updates;
use tidegate::store;

use super::latency;
use super::state::{SkewName, State};
use crate::cli::exit::Failure;
use crate::cli::settings::ModeName;
use crate::cli::watch::{self, Show};

/// Updates that are left for the second run where there is no rate: enough that all workers have some. Where
/// they are done before all state is loaded, `caught_up_ms` is null.
const RECORDS: u64 = 300_000;
/// With a rate it lasts so long, s, and one more for so many bytes of state.
const SECONDS: f64 = 5.0;
const BYTES_PER_SECOND: f64 = 2e8;

/// Updates that are left for the second run, at this rate, with so much state.
pub fn records(rate: Option<f64>, state_bytes: u64) -> u64 {
    let seconds = SECONDS + state_bytes as f64 / BYTES_PER_SECOND;
    rate.map_or(RECORDS, |rate| (rate * seconds).ceil() as u64)
}

/// Bytes that are read at once to see how long reading takes.
const READ_BYTES: usize = 1 << 20;

/// What the second process found.
#[derive(Debug, Serialize, Deserialize)]
pub struct GoneOn {
    /// From the process's start to the first result.
    process_to_first_ms: f64,
    /// From the call of the engine to the first result.
    engine_to_first_ms: f64,
    /// From the call of the engine until all state was loaded.
    caught_up_ms: Option<f64>,
    /// Which snapshot it went on from.
    restored: Option<u64>,
    /// Over both runs.
    pub checksum: String,
}

/// What `--restart` reports.
#[derive(Debug, Serialize)]
pub struct Restart {
    #[serde(flatten)]
    pub gone_on: GoneOn,
    /// How long it takes to read as many bytes from the same files into new memory, one thread for each
    /// worker.
    reading_ms: f64,
}

impl GoneOn {
    /// Goes on; the process was started at `since_ns` of the machine's clock.
    pub fn run(
        updates: &Updates,
        config: &Config,
        handle: Handle,
        since_ns: u64,
    ) -> Result<Self, Failure> {
        let began_ns = clock::now_ns();
        let before_ns = clock::machine_ns().saturating_sub(since_ns);
        updates.arrivals.timetable().start(began_ns);
        let show =
            Show { unit: "records", progress: false, warning: None, until: None, memory: false };
        let report = watch::run(&updates.graph, config, handle, show)?.report;
        latency::warn_of_late_generator(updates.arrivals.timetable().is_late());
        let first_ns = updates.arrivals.first_ns().map(|first_ns| first_ns - began_ns);
        let first_ns = first_ns.filter(|_| report.end == End::Complete);
        let Some(first_ns) = first_ns else {
            return Err(Failure::Failed("the second run did not come to its end".into()));
        };
        Ok(Self {
            process_to_first_ms: (before_ns + first_ns) as f64 / 1e6,
            engine_to_first_ms: first_ns as f64 / 1e6,
            caught_up_ms: caught_up_ms(&report),
            restored: report.restored.map(|snapshot| snapshot.0),
            checksum: format!("{:016x}", updates.checksum.sum()),
        })
    }
}

impl Restart {
    /// A line for a person.
    pub fn text(&self) -> String {
        let Self { gone_on, reading_ms } = self;
        let GoneOn { process_to_first_ms, engine_to_first_ms, caught_up_ms, .. } = gone_on;
        let caught_up = caught_up_ms.map_or("n/a".into(), |ms| format!("{ms:.1} ms"));
        format!(
            "restart: {process_to_first_ms:.1} ms to the first result, {engine_to_first_ms:.1} ms of them \
             in the engine, which had loaded all state {caught_up} after it was called; reading as much \
             takes {reading_ms:.1} ms\n"
        )
    }
}

/// When all state was in memory again. `None`: the run ended before.
fn caught_up_ms(report: &Report) -> Option<f64> {
    Some(report.loaded?.as_secs_f64() * 1e3)
}

/// Runs the second process from the snapshots in `directory`.
pub fn run(state: &State, config: &Config, directory: &Path) -> Result<Restart, Failure> {
    let (reading_ms, bytes) = reading(directory, config.workers)?;
    let program = std::env::current_exe().map_err(Error::io("find", "this program"))?;
    let skew = if state.skew == SkewName::Zipf { "zipf" } else { "uniform" };
    let mode = if state.mode == ModeName::Sync { "sync" } else { "abs" };
    let numbers = [
        ("--keys", state.keys.to_string()),
        ("--value-bytes", state.value_bytes.to_string()),
        ("--records", state.records().to_string()),
        ("--interval", format!("{}ns", state.interval.as_nanos())),
    ];
    let mut command = Command::new(&program);
    command.args(["bench", "state", "--skew", skew, "--mode", mode]).arg("--snapshots");
    command.arg(directory).args(state.workers.as_arguments(config));
    state.rate.iter().for_each(|rate| _ = command.arg("--rate").arg(rate.to_string()));
    numbers.iter().for_each(|(name, number)| _ = command.arg(name).arg(number));
    touch(bytes)?;
    command.arg("--go-on-since").arg(clock::machine_ns().to_string());
    let ran = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let ran = ran.map_err(Error::io("start", program))?;
    let found = ran.status.success().then(|| serde_json::from_slice(&ran.stdout).ok()).flatten();
    let failed = || Failure::Failed(format!("the second run failed: {}", ran.status));
    Ok(Restart { gone_on: found.ok_or_else(failed)?, reading_ms })
}

/// Touches as much memory as a table of so many bytes takes, and frees it. In large pages, where there are
/// such: the system gives out next what was freed last, but of small ones it first makes large ones.
fn touch(bytes: usize) -> Result<(), Failure> {
    let wanted = (bytes + bytes / 2) as u64;
    let free = memory::available_bytes().map_or(wanted, |available| available / 2);
    let mapped = MmapMut::map_anon(wanted.min(free) as usize);
    let mut touched = mapped.map_err(Error::io("get", "memory"))?;
    _ = touched.advise(Advice::HugePage);
    touched.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    Ok(())
}

/// Reads a file, so that the system has it at hand. What was written past its cache is not there.
fn warm(file: &FileHandle, bytes: u64) -> std::io::Result<()> {
    let mut memory = vec![0; READ_BYTES];
    (0..bytes).step_by(READ_BYTES).try_for_each(|at| file.read_at(&mut memory, at).map(drop))
}

/// Reads as many bytes as the newest snapshot has pages, from the files they lie in: how long it took, ms,
/// and how many they were. The files are at hand, for this and for whoever reads them next.
fn reading(directory: &Path, threads: usize) -> Result<(f64, usize), Failure> {
    let disk = default_disk().0;
    let newest = store::list(&*disk, directory)?.pop().and_then(|info| info.manifest);
    let parts = newest.map_or(Vec::new(), |manifest| manifest.parts);
    let mut left: u64 = parts.iter().map(|part| part.page_bytes).sum();
    let segments: BTreeSet<u32> = parts.iter().flat_map(|part| &part.segments).copied().collect();
    let mut pieces = Vec::new();
    for segment in segments {
        let path = directory.join(format!("segment-{segment}"));
        let file = disk.open_read(&path).map_err(Error::io("open", &path))?;
        let all = disk.len(&path).map_err(Error::io("look at", &path))?;
        warm(&file, all).map_err(Error::io("read", &path))?;
        let bytes = left.min(all);
        left -= bytes;
        let starts = (0..bytes).step_by(READ_BYTES);
        let file = Arc::new(file);
        pieces.extend(starts.map(|at| (file.clone(), at, READ_BYTES.min((bytes - at) as usize))));
    }
    let bytes = pieces.iter().map(|piece| piece.2).sum();
    touch(bytes)?;
    let began_ns = clock::now_ns();
    let read = |pieces: &[(Arc<FileHandle>, u64, usize)]| -> std::io::Result<usize> {
        let mut memory = vec![0; pieces.iter().map(|piece| piece.2).sum()];
        let (mut rest, mut all) = (&mut memory[..], 0);
        for (file, at, bytes) in pieces {
            let (piece, behind) = rest.split_at_mut(*bytes);
            (rest, all) = (behind, all + file.read_at(piece, *at)?);
        }
        Ok(std::hint::black_box(&memory).len().min(all))
    };
    std::thread::scope(|scope| {
        let each = pieces.chunks(pieces.len().div_ceil(threads).max(1));
        let readers: Vec<_> = each.map(|pieces| scope.spawn(|| read(pieces))).collect();
        readers.into_iter().try_for_each(|reader| {
            let read = reader.join().expect("a reader does not panic");
            read.map(|_| ()).map_err(Error::io("read", directory))
        })
    })?;
    Ok(((clock::now_ns() - began_ns) as f64 / 1e6, bytes))
}
