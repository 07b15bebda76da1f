//! Looking at a snapshot directory without taking part: no lock, no change.
//!
//! A running job may overwrite a snapshot while it is looked at. What seems damaged is therefore looked
//! at again, and counted as overwritten if it is another one by then.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::layout::{JOB, Name};
use super::manifest::{JobIdentity, Manifest};
use super::open::{is_missing, read_generation, read_job};
use super::read::{self, Depth};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::id::SnapshotId;

/// How often, and how long apart, a manifest that cannot be read is read again.
const READS_MAX: usize = 5;
const READ_AGAIN_AFTER: Duration = Duration::from_millis(2);

/// Whether a snapshot counts.
#[derive(Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// As it was written.
    Whole,
    /// Not as it was written.
    Damaged,
    /// Written by a newer program: this one cannot tell.
    Newer,
    /// It could not be restored once, and was put aside; kept as evidence only.
    PassedOver,
}

/// One snapshot of a directory.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its id; `None` if the manifest cannot be read.
    pub snapshot: Option<u64>,
    /// Its manifest's file name.
    pub file: String,
    /// What the manifest says; `None` if it cannot be read.
    pub manifest: Option<Manifest>,
    /// Whether it counts, as far as it was looked at.
    pub condition: Condition,
    /// What is wrong with it; `None` if nothing that was looked at is.
    pub problem: Option<String>,
}

/// What [`verify`] found.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The directory.
    pub directory: PathBuf,
    /// Whose it is; `None` if that cannot be read.
    pub job: Option<JobIdentity>,
    /// How often it was opened; `None` if that cannot be read.
    pub generation: Option<u64>,
    /// Every snapshot, oldest first, with all its bytes checked.
    pub snapshots: Vec<SnapshotInfo>,
    /// How many more were overwritten by a running job while they were read.
    pub overwritten: u64,
    /// Bytes of state that were read and found whole.
    pub verified_bytes: u64,
    /// Everything that is wrong, in words; empty if nothing is.
    pub problems: Vec<String>,
}

impl Report {
    /// Whether every byte is as written.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.problems.is_empty()
    }
}

/// The snapshots in a directory, oldest first. Reads manifests, not parts.
///
/// # Errors
/// If the directory cannot be listed or is no snapshot directory.
pub fn list(disk: &dyn Disk, dir: &Path) -> Result<Vec<SnapshotInfo>> {
    let names = disk.list(dir).map_err(Error::io("list", dir))?;
    let is_ours = |name: &String| name == JOB || matches!(Name::of(name), Name::Manifest(_));
    if !names.iter().any(is_ours) {
        let reason = "it is none: there is neither a JOB file nor a snapshot in it".into();
        return Err(Error::Directory { path: dir.to_path_buf(), reason });
    }
    let infos =
        names.iter().filter(|name| matches!(Name::of(name), Name::Manifest(_) | Name::PassedOver));
    let mut snapshots: Vec<SnapshotInfo> = infos.filter_map(|name| info(disk, dir, name)).collect();
    snapshots.sort_unstable_by_key(|info| (info.snapshot, info.file.clone()));
    Ok(snapshots)
}

/// What is in a slot; `None` if nothing is, or it is gone.
#[expect(
    clippy::disallowed_methods,
    reason = "no worker waits here, and the writer is another process"
)]
fn info(disk: &dyn Disk, dir: &Path, name: &str) -> Option<SnapshotInfo> {
    let mut found = read::slot_at(disk, &dir.join(name));
    for _ in 0..READS_MAX {
        if !matches!(found, Err(Error::Corrupt { .. })) {
            break;
        }
        // It may have been read in the middle of being overwritten.
        std::thread::sleep(READ_AGAIN_AFTER);
        found = read::slot_at(disk, &dir.join(name));
    }
    let mut condition = match &found {
        Ok(None) => return None,
        Ok(Some(_)) => Condition::Whole,
        Err(error) if is_missing(error) => return None,
        Err(Error::Newer { .. }) => Condition::Newer,
        Err(_) => Condition::Damaged,
    };
    if Name::of(name) == Name::PassedOver {
        condition = Condition::PassedOver;
    }
    let problem = found.as_ref().err().map(ToString::to_string);
    let (file, manifest) = (name.to_owned(), found.ok().flatten());
    let snapshot = manifest.as_ref().map(|manifest| manifest.snapshot);
    Some(SnapshotInfo { snapshot, file, manifest, condition, problem })
}

/// The manifest of one snapshot. Reads no part.
///
/// # Errors
/// If there is no such snapshot, or its manifest cannot be read.
pub fn show(disk: &dyn Disk, dir: &Path, snapshot: SnapshotId) -> Result<Manifest> {
    let counting = list(disk, dir)?.into_iter().filter(|i| i.condition != Condition::PassedOver);
    let manifests = counting.filter_map(|info| info.manifest);
    let found = manifests.into_iter().find(|manifest| manifest.id() == snapshot);
    found.ok_or_else(|| {
        let reason = format!("it holds no snapshot {snapshot} that can be read");
        Error::Directory { path: dir.to_path_buf(), reason }
    })
}

/// Reads every byte that any manifest in the directory names.
///
/// # Errors
/// If the directory cannot be listed or is no snapshot directory. Damage is in the report.
pub fn verify(disk: &dyn Disk, dir: &Path) -> Result<Report> {
    let mut snapshots = Vec::new();
    let (mut verified_bytes, mut overwritten) = (0, 0);
    for mut info in list(disk, dir)? {
        if let (Some(manifest), Condition::Whole) = (&info.manifest, info.condition) {
            match read::content(disk, dir, manifest, Depth::Pages) {
                Ok(_) => verified_bytes += manifest.state_bytes(),
                Err(_) if !is_still_there(disk, dir, &info) => {
                    overwritten += 1;
                    continue;
                }
                Err(error) => {
                    let is_newer = matches!(error, Error::Newer { .. });
                    info.condition = if is_newer { Condition::Newer } else { Condition::Damaged };
                    info.problem = Some(error.to_string());
                }
            }
        }
        snapshots.push(info);
    }
    let counting = snapshots.iter().filter(|info| info.condition != Condition::PassedOver);
    let mut problems: Vec<String> = counting.filter_map(|info| info.problem.clone()).collect();
    let none_counts = snapshots.iter().all(|info| info.condition == Condition::PassedOver);
    let slots = if none_counts && overwritten == 0 { slots(disk, dir)? } else { Vec::new() };
    let has_nothing = snapshots.is_empty() && overwritten == 0 && slots.is_empty();
    if !slots.is_empty() && slots.iter().all(|name| info(disk, dir, name).is_none()) {
        problems.push("every manifest is empty: their bytes are lost".into());
    }
    let job = note(read_job(disk, dir), &mut problems);
    let generation = match read_generation(disk, dir) {
        // A job that is just being started, or was killed then, has nothing to lose yet.
        Err(error) if is_missing(&error) && has_nothing => None,
        read => note(read, &mut problems).map(|found| found.generation),
    };
    let directory = dir.to_path_buf();
    Ok(Report { directory, job, generation, snapshots, overwritten, verified_bytes, problems })
}

/// The slots that there are; a moment later than now, as a job that runs may just have made its first one.
#[expect(
    clippy::disallowed_methods,
    reason = "no worker waits here, and the writer is another process"
)]
fn slots(disk: &dyn Disk, dir: &Path) -> Result<Vec<String>> {
    let mut names = disk.list(dir).map_err(Error::io("list", dir))?;
    names.retain(|name| matches!(Name::of(name), Name::Manifest(_)));
    if !names.is_empty() {
        std::thread::sleep(READ_AGAIN_AFTER * READS_MAX as u32);
    }
    Ok(names)
}

/// Whether what was damaged has not been overwritten meanwhile.
fn is_still_there(disk: &dyn Disk, dir: &Path, before: &SnapshotInfo) -> bool {
    info(disk, dir, &before.file).is_some_and(|now| now.snapshot == before.snapshot)
}

fn note<T>(result: Result<T>, problems: &mut Vec<String>) -> Option<T> {
    result.map_err(|error| problems.push(error.to_string())).ok()
}
