//! Names of the files in a snapshot directory, and errors that name them with a way out.

use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::id::SegmentId;

pub(super) const LOCK: &str = "LOCK";
pub(super) const JOB: &str = "JOB";
pub(super) const GENERATION: &str = "GENERATION";
/// Directory for records that inputs set aside, where the user names no other. Not the store's.
pub(crate) const SPILL: &str = "spill";
const TEMPORARY: &str = ".tmp";
const PASSED_OVER: &str = ".passed-over";

/// What a file is, told from its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// LOCK, JOB, GENERATION or the directory SPILL.
    Fixed,
    /// A slot that holds a manifest.
    Manifest(SlotNumber),
    /// A copy of a manifest that could not be restored and was put aside.
    PassedOver,
    Segment(SegmentId),
    /// One of ours that was never renamed to its final name.
    Temporary,
    /// Not ours: never touched.
    Foreign,
}

/// Which of the files that hold manifests.
pub(super) type SlotNumber = u32;

impl Name {
    pub(super) fn of(name: &str) -> Self {
        if let Some(base) = name.strip_suffix(TEMPORARY) {
            return match Self::of(base) {
                Self::Fixed | Self::Manifest(_) | Self::PassedOver => Self::Temporary,
                Self::Segment(_) | Self::Temporary | Self::Foreign => Self::Foreign,
            };
        }
        if [LOCK, JOB, GENERATION, SPILL].contains(&name) {
            return Self::Fixed;
        }
        if is_passed_over(name) {
            return Self::PassedOver;
        }
        let slot = name.strip_prefix("manifest-").and_then(number).map(Self::Manifest);
        slot.or_else(|| Some(Self::Segment(segment_id(name)?))).unwrap_or(Self::Foreign)
    }
}

fn is_passed_over(name: &str) -> bool {
    let base = name.strip_suffix(PASSED_OVER).and_then(|base| base.strip_prefix("manifest-"));
    base.and_then(|base| base.split_once('-')).is_some_and(|(slot, generation)| {
        number::<SlotNumber>(slot).is_some() && number::<u64>(generation).is_some()
    })
}

/// The number of a segment, from its name.
pub(super) fn segment_id(name: &str) -> Option<SegmentId> {
    name.strip_prefix("segment-").and_then(number).map(SegmentId)
}

/// A number as we write it: nothing but digits, no leading zero.
fn number<N: FromStr + Display>(digits: &str) -> Option<N> {
    let number: N = digits.parse().ok()?;
    (number.to_string() == digits).then_some(number)
}

pub(super) fn manifest_name(slot: SlotNumber) -> String {
    format!("manifest-{slot}")
}

/// The name of what was in `slot` when the process of this generation passed over it.
pub(super) fn passed_over_name(slot: SlotNumber, generation: u64) -> String {
    format!("{}-{generation}{PASSED_OVER}", manifest_name(slot))
}

pub(super) fn segment_name(segment: SegmentId) -> String {
    format!("segment-{}", segment.0)
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
        assert_eq!(Name::of(&manifest_name(7)), Name::Manifest(7));
        assert_eq!(Name::of(&temporary(&manifest_name(7))), Name::Temporary);
        let aside = passed_over_name(7, 12);
        assert_eq!(Name::of(&aside), Name::PassedOver);
        assert_eq!(Name::of(&temporary(&aside)), Name::Temporary);
        assert_eq!(Name::of(&segment_name(SegmentId(6))), Name::Segment(SegmentId(6)));
        for foreign in [
            "",
            ".tmp",
            "notes.tmp",
            "manifest-",
            "manifest-07",
            "manifest-+7",
            "manifest-7.passed-over",
            "segment-",
            "segment-4294967296",
            "segment-1.tmp",
            "job",
        ] {
            assert_eq!(Name::of(foreign), Name::Foreign, "{foreign}");
        }
    }
}
