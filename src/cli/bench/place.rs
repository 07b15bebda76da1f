//! Where the snapshots of a measurement go, and whether what it keeps fits into memory.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tidegate::engine::memory;
use tidegate::error::Error;

use crate::cli::exit::Failure;
use crate::cli::settings::ModeName;

/// A directory for snapshots.
pub enum Place {
    Given(PathBuf),
    /// Removed when it is dropped.
    Temporary(TempDir),
}

impl Place {
    /// The one given, or a temporary one; none without snapshots.
    pub fn of(mode: ModeName, given: Option<&PathBuf>) -> Result<Option<Self>, Failure> {
        match (mode, given) {
            (ModeName::None, None) => Ok(None),
            (ModeName::None, Some(_)) => Err(Failure::Usage(
                "--snapshots needs another --mode than none, such as --mode abs".into(),
            )),
            (_, Some(directory)) => {
                refuse_used(directory)?;
                Ok(Some(Self::Given(directory.clone())))
            }
            (_, None) => {
                let directory = tempfile::Builder::new().prefix("tidegate-bench-").tempdir();
                let parent = std::env::temp_dir();
                let directory = directory.map_err(Error::io("create a directory in", parent))?;
                Ok(Some(Self::Temporary(directory)))
            }
        }
    }

    pub fn path(&self) -> &Path {
        match self {
            Self::Given(directory) => directory,
            Self::Temporary(directory) => directory.path(),
        }
    }
}

/// A run that goes on from an earlier one would measure only its rest.
fn refuse_used(directory: &Path) -> Result<(), Failure> {
    let is_used = std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some());
    if !is_used {
        return Ok(());
    }
    let reason = "it is not empty, and a measurement begins anew; name a new directory".into();
    Err(Failure::Engine(Error::Directory { path: directory.to_path_buf(), reason }))
}

/// Keys that do not fit into memory would end the process in the middle of its run: refuses `keys`,
/// of which those that `occur` take `state_bytes` each, and all of them `other_bytes`.
pub fn refuse_keys(keys: u64, occur: u64, [state, other]: [u64; 2]) -> Result<(), Failure> {
    let bytes = keys.saturating_mul(other).saturating_add(occur.saturating_mul(state));
    let available = memory::available_bytes().filter(|available| bytes > *available);
    let Some(available) = available else { return Ok(()) };
    Err(Failure::Engine(Error::Config {
        setting: "keys".into(),
        value: keys.to_string(),
        reason: format!(
            "their tables and the check of the checksum take about {} MiB, and {} MiB of memory are \
             available; {} keys fit",
            bytes >> 20,
            available >> 20,
            available / (state + other)
        ),
    }))
}
