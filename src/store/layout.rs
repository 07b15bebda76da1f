//! Names of the files in a snapshot directory, and errors that name them with a way out.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::id::{Attempt, SnapshotId, WorkerId};

pub(super) const LOCK: &str = "LOCK";
pub(super) const JOB: &str = "JOB";
pub(super) const GENERATION: &str = "GENERATION";
const TEMPORARY: &str = ".tmp";
const PASSED_OVER: &str = ".passed-over";

/// What a file is, told from its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// LOCK, JOB or GENERATION.
    Fixed,
    Manifest(SnapshotId),
    /// A manifest that could not be restored and was put aside.
    PassedOver(SnapshotId),
    Part {
        generation: u64,
    },
    /// One of ours that was never renamed to its final name.
    Temporary,
    /// Not ours: never touched.
    Foreign,
}

impl Name {
    pub(super) fn of(name: &str) -> Self {
        if let Some(base) = name.strip_suffix(TEMPORARY) {
            return match Self::of(base) {
                Self::Fixed | Self::Manifest(_) => Self::Temporary,
                Self::PassedOver(_) | Self::Part { .. } | Self::Temporary | Self::Foreign => {
                    Self::Foreign
                }
            };
        }
        if [LOCK, JOB, GENERATION].contains(&name) {
            return Self::Fixed;
        }
        if let Some(id) = name.strip_suffix(PASSED_OVER).and_then(manifest_id) {
            return Self::PassedOver(id);
        }
        manifest_id(name)
            .map(Self::Manifest)
            .or_else(|| Some(Self::Part { generation: part_generation(name)? }))
            .unwrap_or(Self::Foreign)
    }
}

fn manifest_id(name: &str) -> Option<SnapshotId> {
    let digits = name.strip_prefix("snapshot-")?.strip_suffix(".manifest")?;
    let id = SnapshotId(number(digits)?);
    (manifest_name(id) == name).then_some(id)
}

fn part_generation(name: &str) -> Option<u64> {
    let fields = name.strip_prefix("worker-")?.strip_suffix(".part")?;
    let mut numbers = fields.split('-').map(number);
    let (_worker, generation) = (numbers.next()??, numbers.next()??);
    let (_attempt, _number) = (numbers.next()??, numbers.next()??);
    numbers.next().is_none().then_some(generation)
}

fn number(digits: &str) -> Option<u64> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

pub(super) fn manifest_name(snapshot: SnapshotId) -> String {
    format!("snapshot-{:020}.manifest", snapshot.0)
}

pub(super) fn passed_over_name(snapshot: SnapshotId) -> String {
    format!("{}{PASSED_OVER}", manifest_name(snapshot))
}

pub(super) fn part_name(
    worker: WorkerId,
    generation: u64,
    attempt: Attempt,
    number: u64,
) -> String {
    format!("worker-{}-{generation}-{}-{number}.part", worker.0, attempt.0)
}

pub(super) fn temporary(name: &str) -> String {
    format!("{name}{TEMPORARY}")
}

/// The error for a refused operation on a directory or a file in it, with what to do about it.
pub(super) fn refused(
    disk: &dyn Disk,
    action: &'static str,
    path: impl Into<PathBuf>,
    source: io::Error,
) -> Error {
    let path = path.into();
    let remedy = match source.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "make the directory writable, or name another snapshot directory".to_owned()
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            let free = path.parent().and_then(|parent| disk.free_bytes(parent).ok());
            let free = free.map_or(String::new(), |bytes| format!("{bytes} bytes are free; "));
            format!("{free}make room, or name another snapshot directory")
        }
        _ => return Error::io(action, path)(source),
    };
    let source = io::Error::new(source.kind(), format!("{source}; {remedy}"));
    Error::Io { action, path, source }
}

/// Writes a small file so that either all of it or nothing new is there: temporary name, sync,
/// rename, sync of the directory.
pub(super) fn replace(disk: &dyn Disk, dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = dir.join(temporary(name));
    match disk.remove(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(refused(disk, "remove", path, error));
        }
        _ => {}
    }
    let write = || {
        let file = disk.create_new(&path)?;
        file.write_all_at(bytes, 0)?;
        file.sync_data()?;
        disk.rename(&path, &dir.join(name))?;
        disk.sync_dir(dir)
    };
    write().map_err(|source| refused(disk, "write", dir.join(name), source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_we_give_is_recognised_and_others_are_foreign() {
        assert_eq!(Name::of("JOB"), Name::Fixed);
        assert_eq!(Name::of(&manifest_name(SnapshotId(7))), Name::Manifest(SnapshotId(7)));
        assert_eq!(Name::of(&temporary(&manifest_name(SnapshotId(7)))), Name::Temporary);
        let aside = passed_over_name(SnapshotId(7));
        assert_eq!(Name::of(&aside), Name::PassedOver(SnapshotId(7)));
        assert_eq!(Name::of(&temporary(&aside)), Name::Foreign);
        let part = part_name(WorkerId(3), 4, Attempt(5), 6);
        assert_eq!(Name::of(&part), Name::Part { generation: 4 });
        for foreign in [
            "",
            ".tmp",
            "notes.tmp",
            "snapshot-7.manifest",
            "snapshot-0000000000000000000x.manifest",
            "worker-1-2-3.part",
            "worker-1-2-3-4-5.part",
            "worker--2-3-4.part",
            "worker-1-2-3-+4.part",
            "job",
        ] {
            assert_eq!(Name::of(foreign), Name::Foreign, "{foreign}");
        }
    }
}
