//! `bench state --restart`: the job again, from its last snapshot, in a process of its own.
//!
//! The measured run was stopped at a fixed update, with a last snapshot. The second process is the same
//! command with a hidden argument; it handles [`RECORDS`] more updates and prints a [`GoneOn`].

use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use tidegate::clock;
use tidegate::config::Config;
use tidegate::engine::{End, Handle, Report};
use tidegate::error::Error;
use tidegate::jobs::updates::Updates;

use super::state::{SkewName, State};
use crate::cli::exit::Failure;
use crate::cli::settings::ModeName;
use crate::cli::watch::{self, Show};

/// Updates that are left for the second run: enough that all workers have some.
pub const RECORDS: u64 = 100_000;

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
pub type Restart = GoneOn;

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

    /// A line for a person.
    pub fn text(&self) -> String {
        let Self { process_to_first_ms, engine_to_first_ms, caught_up_ms, .. } = self;
        let caught_up = caught_up_ms.map_or("n/a".into(), |ms| format!("{ms:.1} ms"));
        format!(
            "restart: {process_to_first_ms:.1} ms to the first result, {engine_to_first_ms:.1} ms of \
             them in the engine; all state loaded after {caught_up}\n"
        )
    }
}

/// When all state was in memory again. `None`: the run ended before.
fn caught_up_ms(report: &Report) -> Option<f64> {
    Some(report.loaded?.as_secs_f64() * 1e3)
}

/// Runs the second process from the snapshots in `directory`.
pub fn run(state: &State, config: &Config, directory: &Path) -> Result<Restart, Failure> {
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
    numbers.iter().for_each(|(name, number)| _ = command.arg(name).arg(number));
    command.arg("--go-on-since").arg(clock::machine_ns().to_string());
    let ran = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let ran = ran.map_err(Error::io("start", program))?;
    let found = ran.status.success().then(|| serde_json::from_slice(&ran.stdout).ok()).flatten();
    found.ok_or_else(|| Failure::Failed(format!("the second run failed: {}", ran.status)))
}
