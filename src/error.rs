//! The one public error: a variant per thing a caller can do about it, carrying the noun it is
//! about. A broken promise of tidegate itself is an assertion, not an error, but where a task would be
//! blamed for what another did ([`Error::Fault`]).

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::id::SnapshotId;

/// What went wrong, where, and what to do.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The job as built cannot run: a duplicate name, a stream that goes nowhere. Change the job.
    #[error("cannot build job '{job}': {reason}")]
    Build {
        /// Name of the job.
        job: String,
        /// What is wrong and how to mend it.
        reason: String,
    },
    /// A setting is outside its bounds. Change the setting.
    #[error("{setting} is {value}: {reason}")]
    Config {
        /// The setting as the user knows it.
        setting: String,
        /// The value that was given.
        value: String,
        /// The bound, and how to mend it.
        reason: String,
    },
    /// The operating system refused a file operation.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb: "write", "create directory".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Input that cannot be read as what it should be.
    #[error("input {name}: {reason}")]
    Input {
        /// File, address or generator.
        name: String,
        /// What is wrong with it, where, and how to mend it.
        reason: String,
    },
    /// An output place that must not be written to as it is.
    #[error("output {}: {reason}", path.display())]
    Output {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong with it and how to mend it.
        reason: String,
    },
    /// A snapshot directory that must not be used as it is.
    #[error("snapshot directory {}: {reason}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it and how to mend it.
        reason: String,
    },
    /// Another process runs on this snapshot directory. Stop it or use another directory.
    #[error("snapshot directory {} is in use by a running process{}; stop it, or use another directory",
        path.display(), pid.map_or(String::new(), |pid| format!(" (pid {pid})")))]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Who holds it, where known.
        pid: Option<u32>,
    },
    /// The snapshot directory belongs to a job that is not this one. Use another directory.
    #[error("snapshot directory {} belongs to another job: {difference}; run that job, or use another directory",
        path.display())]
    OtherJob {
        /// The directory.
        path: PathBuf,
        /// What differs: found, and expected.
        difference: String,
    },
    /// Written by a newer tidegate, or by a newer version of the job's state. Use that version.
    #[error("{} has {what} version {found}, this program knows up to {supported}; use the program that wrote it, or another directory",
        path.display())]
    Newer {
        /// The file or directory.
        path: PathBuf,
        /// Which version: "format", or "schema of operator 'count'".
        what: String,
        /// The version found.
        found: u64,
        /// The newest version this program knows.
        supported: u64,
    },
    /// Bytes on disk that are not what was written.
    #[error("{} is corrupt at byte {offset}: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What did not match.
        reason: String,
    },
    /// No complete snapshot could be restored though the directory holds some.
    #[error("no snapshot in {} can be restored: {reason}; put the damaged files back from a copy, or start over with new snapshot and output directories",
        path.display())]
    NothingToRestore {
        /// The directory.
        path: PathBuf,
        /// What was wrong with each, newest first.
        reason: String,
    },
    /// State in a snapshot does not fit the operator that should take it.
    #[error("snapshot state of operator '{operator}': {reason}")]
    State {
        /// The operator's name.
        operator: String,
        /// What does not fit.
        reason: String,
    },
    /// User code panicked.
    #[error(
        "operator '{operator}' (task {subtask}) panicked: {message}; mend the operator, or the input it was given"
    )]
    Panicked {
        /// The operator's name.
        operator: String,
        /// Which parallel copy, from 0; also 0 for what is done once for all of them.
        subtask: usize,
        /// The panic's message.
        message: String,
    },
    /// Something panicked on a worker outside any operator's own code: a record, state or closure
    /// that panics when it is dropped, or a broken promise of tidegate itself.
    #[error("worker {worker} panicked {at}: {message}")]
    WorkerPanicked {
        /// Which worker, from 0.
        worker: usize,
        /// What it was at.
        at: &'static str,
        /// The panic's message.
        message: String,
    },
    /// tidegate broke a promise to itself. No change of the job mends that: report it.
    #[error(
        "a fault of tidegate, not of the job, at {place}: {what}; what was committed is safe; please report it"
    )]
    Fault {
        /// Where it was found.
        place: String,
        /// What is not as it must be.
        what: String,
    },
    /// An operator, source or sink failed.
    #[error("operator '{operator}' (task {subtask}): {source}")]
    Operator {
        /// The operator's name.
        operator: String,
        /// Which parallel copy, from 0.
        subtask: usize,
        /// What failed.
        source: Box<Error>,
    },
    /// A snapshot failed; the job goes on and the previous snapshot stays valid.
    #[error("snapshot {snapshot} failed: {reason}")]
    Snapshot {
        /// Which.
        snapshot: SnapshotId,
        /// Why.
        reason: String,
    },
    /// The job failed more often than its restart limit allows.
    #[error(
        "job failed {failures} times in a row, the limit; what it had committed is safe, and with the cause mended the same command goes on from there; last failure: {last}"
    )]
    RestartsExhausted {
        /// How often.
        failures: u32,
        /// The last failure.
        last: Box<Error>,
    },
    /// What coordinates the job panicked: a broken promise of tidegate itself, or a program's own code
    /// that is told what happens. Its workers have stopped; what was committed is safe.
    #[error("the supervisor panicked: {message}; what it had committed is safe, run the job again")]
    SupervisorPanicked {
        /// The panic's message.
        message: String,
    },
    /// The thread of a worker has ended before the job did: there is nothing to restart it on.
    #[error("the thread of worker {worker} has ended: {reason}; run the job again")]
    WorkerLost {
        /// Which, from 0.
        worker: usize,
        /// What is known of it.
        reason: String,
    },
    /// A bound was reached that backpressure cannot hold.
    #[error("{what} is above its limit of {limit}: {remedy}")]
    Limit {
        /// What grew.
        what: String,
        /// The bound with its unit.
        limit: String,
        /// What to do.
        remedy: String,
    },
}

/// Result with the crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Io`] for `action` on `path`, or an [`Error::Limit`] where the system had no file
    /// descriptor left; made to be used in `map_err`.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| match Errno::from_io_error(&source) {
            Some(Errno::MFILE) => Self::open_files(action, &path),
            _ => Self::Io { action, path, source },
        }
    }

    fn open_files(action: &str, path: &Path) -> Self {
        let limit = getrlimit(Resource::Nofile).current;
        Self::Limit {
            what: "the number of open files of this process".into(),
            limit: limit.map_or("unknown".into(), |limit| format!("{limit} (RLIMIT_NOFILE)")),
            remedy: format!(
                "cannot {action} {}; raise the limit with `ulimit -n 4096`, or with \
                 LimitNOFILE=4096 under systemd",
                path.display()
            ),
        }
    }

    /// A [`Error::Corrupt`] at `offset` of `path`.
    pub fn corrupt(path: impl AsRef<Path>, offset: u64, reason: impl Into<String>) -> Self {
        Self::Corrupt { path: path.as_ref().to_path_buf(), offset, reason: reason.into() }
    }

    /// What is behind the operators that it came through.
    #[must_use]
    pub fn root(&self) -> &Self {
        match self {
            Self::Operator { source, .. } => source.root(),
            error => error,
        }
    }

    /// Whether running the same job again from its last snapshot could help: false for what will
    /// fail the same way (a wrong setting, another job's directory), true for the rest.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Build { .. }
            | Self::Config { .. }
            | Self::Output { .. }
            | Self::Input { .. }
            | Self::Directory { .. }
            | Self::Locked { .. }
            | Self::OtherJob { .. }
            | Self::Newer { .. }
            | Self::NothingToRestore { .. }
            | Self::State { .. }
            | Self::RestartsExhausted { .. }
            | Self::WorkerLost { .. }
            | Self::SupervisorPanicked { .. }
            | Self::Limit { .. } => false,
            // Whoever read our output has gone and does not come back; what is forbidden stays so.
            Self::Io { source, .. } => !matches!(
                source.kind(),
                ErrorKind::BrokenPipe | ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
            ),
            Self::Corrupt { .. }
            | Self::Panicked { .. }
            | Self::WorkerPanicked { .. }
            | Self::Fault { .. }
            | Self::Snapshot { .. } => true,
            Self::Operator { source, .. } => source.is_retryable(),
        }
    }
}
