//! The output directory: whose it is, and what a start makes of what it finds there.
//!
//! ```text
//! .tidegate-lock    held with flock while a run writes here; its pid as text
//! .tidegate-owner   one line of text: whose output this is
//! .tidegate-cut.tmp what a file is to be that is being cut
//! ```
//!
//! Two jobs in one directory would take each other's files for their own leftovers. So a directory
//! belongs to one job with its snapshots. It is named by the place of the snapshots because that is
//! what a hidden file is worth something to: if nothing can be restored from there, nobody misses
//! it. A run without snapshots cannot be gone on with, so what one left hidden belongs to nobody.
//!
//! Invariants
//! - Nothing in the directory is changed before it is known to be ours and locked, other than making
//!   the lock file in a directory that is new or empty, or has one.
//! - The owner is durable before the first file is made, so hidden files without an owner are not
//!   ours.
//! - Both the owner of now and the one in the handles are accepted, and the former is written down:
//!   output and snapshots may be moved.
//! - The lock dies with its process, and its file is never removed, so a crash leaves nothing in the
//!   way.

use std::io::{self, ErrorKind};
use std::path::Path;

use rustix::io::Errno;

use super::{Handle, Listed};
use crate::disk::{Disk, DiskLock, FileHandle};
use crate::error::{Error, Result};
use crate::id::SnapshotId;
use crate::operator::sink::NOBODY;

const LOCK: &str = ".tidegate-lock";
const OWNER: &str = ".tidegate-owner";
const OWNER_UNFINISHED: &str = ".tidegate-owner.tmp";
/// A file that is being cut.
const CUT_UNFINISHED: &str = ".tidegate-cut.tmp";
/// Copied at once, bytes.
const COPY_BYTES: usize = 1 << 20;

/// Longest part of an owner that is shown, bytes.
const SHOWN_BYTES_MAX: usize = 300;

pub(super) fn name_of(first: SnapshotId, subtask: usize) -> String {
    format!("part-{:012}-{subtask:05}", first.0)
}

/// A file that a writer made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Written<'a> {
    /// Its name without the dot.
    shown: &'a str,
    hidden: bool,
    first: SnapshotId,
}

impl<'a> Written<'a> {
    fn of(name: &'a str) -> Option<Self> {
        let shown = name.strip_prefix('.').unwrap_or(name);
        let (first, subtask) = shown.strip_prefix("part-")?.split_once('-')?;
        let first = SnapshotId(first.parse().ok()?);
        let is_ours = name_of(first, subtask.parse().ok()?) == shown;
        is_ours.then_some(Self { shown, hidden: name.len() > shown.len(), first })
    }
}

/// The error for a refused operation on output, with what to do about it. What stays as it is
/// however often it is tried is an [`Error::Output`], which is not tried again.
pub(super) fn failed(
    action: &'static str,
    path: impl AsRef<Path>,
) -> impl FnOnce(io::Error) -> Error {
    let path = path.as_ref().to_path_buf();
    move |source| {
        let remedy = match source.kind() {
            ErrorKind::NotFound => {
                "something else removed it; put it back, or start over with new output and \
                 snapshot directories"
            }
            ErrorKind::AlreadyExists => {
                "a file is there that this job did not write; move it away and run the same \
                 command again"
            }
            ErrorKind::PermissionDenied
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory => "name a directory that can be written to",
            // A limit of the process: the error of its own says which, and how to raise it.
            _ if Errno::from_io_error(&source) == Some(Errno::MFILE) => {
                return Error::io(action, path)(source);
            }
            kind => {
                // What the system says of this process rather than of the disk has its own remedy.
                let error = Error::io(action, &path)(source);
                let Error::Io { action, path, source } = error else { return error };
                let remedy = match kind {
                    ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                        "make room and run the same command again"
                    }
                    _ => "see what is wrong with the disk, then run the same command again",
                };
                let source = io::Error::new(kind, format!("{source}; {remedy}"));
                return Error::Io { action, path, source };
            }
        };
        Error::Output { path, reason: format!("cannot {action} it: {source}; {remedy}") }
    }
}

/// Makes sure that the directory is this job's, and takes its lock.
pub(super) fn claim(
    directory: &Path,
    owner: &str,
    handles: Option<&[Handle]>,
    disk: &dyn Disk,
) -> Result<DiskLock> {
    assert!(!owner.contains('\n'), "an owner of one line: {owner:?}");
    if handles.is_none() {
        disk.create_dir_all(directory).map_err(failed("create", directory))?;
        let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        disk.sync_dir(parent).map_err(Error::io("sync directory", parent))?;
    }
    // Where a lock file is, another run may be at work: that is said first. It is made only in a
    // directory that may be used, and then that is looked at again: another run may have been here.
    let held = list(directory, handles, disk)?.iter().any(|name| name == LOCK);
    let held = held.then(|| lock(directory, disk)).transpose()?;
    check(directory, owner, handles, disk)?;
    let lock = held.map_or_else(|| lock(directory, disk), Ok)?;
    let found = check(directory, owner, handles, disk)?;
    if found.as_deref() != Some(owner) {
        write_owner(directory, owner, disk)?;
    }
    Ok(lock)
}

fn list(directory: &Path, handles: Option<&[Handle]>, disk: &dyn Disk) -> Result<Vec<String>> {
    disk.list(directory).map_err(|error| match (error.kind(), handles) {
        (ErrorKind::NotFound, Some(_)) => Error::Output {
            path: directory.to_path_buf(),
            reason:
                "it is gone, and the snapshot goes on from what it held; put it back, or start \
                     over with another snapshot directory"
                    .into(),
        },
        _ => failed("list", directory)(error),
    })
}

fn lock(directory: &Path, disk: &dyn Disk) -> Result<DiskLock> {
    let path = directory.join(LOCK);
    let lock = disk.lock(&path).map_err(failed("lock", &path))?;
    lock.ok_or_else(|| {
        let pid = disk.read(&path).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pid = pid.and_then(|text| text.trim().parse::<u32>().ok());
        let pid = pid.map_or(String::new(), |pid| format!(" (pid {pid})"));
        Error::Output {
            path: directory.to_path_buf(),
            reason: format!(
                "a running process{pid} writes into it; stop it, or name another output directory"
            ),
        }
    })
}

/// Who the directory says it belongs to, if this job may use it.
fn check(
    directory: &Path,
    owner: &str,
    handles: Option<&[Handle]>,
    disk: &dyn Disk,
) -> Result<Option<String>> {
    let names = list(directory, handles, disk)?;
    let found = read_owner(directory, disk)?;
    let refuse = |reason| Err(Error::Output { path: directory.to_path_buf(), reason });
    let found_words = || match &found {
        Some(found) => format!("it belongs to {}", shown(found)),
        None => "nothing in it says whose it is".into(),
    };
    if let Some(handles) = handles {
        let known = |found: &str| found == owner || handles.iter().any(|h| h.owner == found);
        if !found.as_deref().is_some_and(known) {
            return refuse(format!(
                "it is not the directory that the snapshot goes on from: {}; name that one, or \
                 start over with another snapshot directory",
                found_words()
            ));
        }
        return Ok(found);
    }
    let is_hidden = |name: &str| Written::of(name).is_some_and(|written| written.hidden);
    let ours = [LOCK, OWNER, OWNER_UNFINISHED, CUT_UNFINISHED];
    let is_ours = |name: &str| ours.contains(&name) || is_hidden(name);
    if let Some(name) = names.iter().find(|name| !is_ours(name)) {
        return refuse(format!(
            "it already holds '{name}', and there is no snapshot to go on from; choose an empty \
             directory, or remove its contents"
        ));
    }
    let is_free = match found.as_deref() {
        Some(found) => found == owner || found == NOBODY,
        None => !names.iter().any(|name| is_hidden(name)),
    };
    if !is_free {
        return refuse(format!(
            "it may hold hidden output that another job goes on from: {}; run that job, choose \
             another directory, or remove this one",
            found_words()
        ));
    }
    Ok(found)
}

fn shown(owner: &str) -> &str {
    let mut end = owner.len().min(SHOWN_BYTES_MAX);
    while !owner.is_char_boundary(end) {
        end -= 1;
    }
    owner[..end].lines().next().unwrap_or_default()
}

fn read_owner(directory: &Path, disk: &dyn Disk) -> Result<Option<String>> {
    let path = directory.join(OWNER);
    match disk.read(&path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim_end().into())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", &path)(error)),
    }
}

/// Who the directory belongs to, once it was claimed.
pub(super) fn owner(directory: &Path, disk: &dyn Disk) -> Result<String> {
    read_owner(directory, disk)?
        .ok_or_else(|| failed("read", directory.join(OWNER))(ErrorKind::NotFound.into()))
}

fn write_owner(directory: &Path, owner: &str, disk: &dyn Disk) -> Result<()> {
    let path = directory.join(OWNER);
    let write = |file: &FileHandle| file.write_all_at(format!("{owner}\n").as_bytes(), 0);
    replace((directory, OWNER_UNFINISHED), &path, disk, write).map_err(failed("write", &path))
}

/// Puts a new file, with what `fill` writes, in the place of `path`.
fn replace(
    (directory, unfinished): (&Path, &str),
    path: &Path,
    disk: &dyn Disk,
    fill: impl FnOnce(&FileHandle) -> io::Result<()>,
) -> io::Result<()> {
    let unfinished = directory.join(unfinished);
    match disk.remove(&unfinished) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.create_new(&unfinished)?;
    fill(&file)?;
    file.sync_data()?;
    disk.rename(&unfinished, path)?;
    disk.sync_dir(directory)
}

/// Commits what the handles list and removes what writers made beyond it. The directory is claimed.
pub(super) fn recover(directory: &Path, handles: Option<&[Handle]>, disk: &dyn Disk) -> Result<()> {
    let names = list(directory, handles, disk)?;
    let listed: Vec<&Listed> =
        handles.unwrap_or_default().iter().flat_map(|handle| &handle.listed).collect();
    listed.iter().try_for_each(|listed| redo(directory, listed, &names, disk))?;
    let restored = handles.unwrap_or_default().iter().map(|handle| SnapshotId(handle.snapshot));
    let restored = restored.max().unwrap_or_default();
    for name in &names {
        let is_left_over = name == CUT_UNFINISHED
            || Written::of(name).is_some_and(|written| {
                let known = listed.iter().any(|listed| listed.name == written.shown);
                !known && (written.hidden || written.first > restored)
            });
        // What was cut above has taken the place of the file that was to be cut.
        if is_left_over && disk.len(&directory.join(name)).is_ok() {
            let path = directory.join(name);
            disk.remove(&path).map_err(failed("remove", &path))?;
        }
    }
    disk.sync_dir(directory).map_err(failed("sync", directory))
}

/// Cuts one listed file to its length and shows it.
fn redo(directory: &Path, listed: &Listed, names: &[String], disk: &dyn Disk) -> Result<()> {
    let Listed { name, length } = listed;
    let (hidden, visible) = (directory.join(format!(".{name}")), directory.join(name));
    let is_hidden = names.iter().any(|n| n.strip_prefix('.') == Some(name));
    let refuse = |path: &Path, what: String| {
        let remedy =
            "put the whole file back, or start over with new output and snapshot directories";
        Err(Error::Output { path: path.into(), reason: format!("{what}; {remedy}") })
    };
    if !is_hidden && !names.contains(name) {
        return refuse(&visible, "the snapshot lists it but it is gone".into());
    }
    let path = if is_hidden { &hidden } else { &visible };
    let found = disk.len(path).map_err(failed("measure", path))?;
    if found < *length {
        let what = format!("it is cut short at byte {found}; the snapshot lists {length} bytes");
        return refuse(path, what);
    }
    if found > *length {
        cut(directory, path, *length, disk)?;
    }
    if is_hidden {
        disk.rename_new(&hidden, &visible).map_err(failed("show", &visible))?;
    }
    Ok(())
}

/// Makes a file shorter: by a copy that replaces it. Cut in place, a file whose sync fails looks cut until
/// a crash brings the rest of it back, and nothing would tell.
pub(super) fn cut(directory: &Path, path: &Path, length: u64, disk: &dyn Disk) -> Result<()> {
    let copy = |to: &FileHandle| {
        let from = disk.open_read(path)?;
        let (mut bytes, mut done) = (vec![0; COPY_BYTES], 0);
        while done < length {
            let wanted = (length - done).min(COPY_BYTES as u64) as usize;
            let read = from.read_at(&mut bytes[..wanted], done)?;
            if read == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            to.write_all_at(&bytes[..read], done)?;
            done += read as u64;
        }
        Ok(())
    };
    replace((directory, CUT_UNFINISHED), path, disk, copy).map_err(failed("cut", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Faults, MemoryDisk};

    /// It was cut in place: when the sync had failed the next attempt found it as long as it should be,
    /// and a crash brought the rest back.
    #[test]
    fn a_file_stays_cut_though_the_first_attempt_failed_and_the_power_fails_later() {
        let directory = Path::new("/out");
        let name = name_of(SnapshotId(1), 0);
        let listed = vec![Listed { name: name.clone(), length: 60 }];
        let handles = [Handle { snapshot: 2, owner: NOBODY.into(), listed }];
        for seed in 0..40 {
            let disk = MemoryDisk::new(seed);
            disk.create_dir_all(directory).unwrap();
            let file = disk.create_new(&directory.join(format!(".{name}"))).unwrap();
            file.write_all_at(&[b'x'; 100], 0).unwrap();
            file.sync_data().unwrap();
            disk.sync_dir(directory).unwrap();
            disk.sync_dir(Path::new("/")).unwrap();
            disk.set_faults(Faults { sync_error: 10_000, ..Faults::default() });
            recover(directory, Some(&handles), &disk).unwrap_err();
            disk.set_faults(Faults::default());
            recover(directory, Some(&handles), &disk).unwrap();
            disk.crash();
            let found = disk.read(&directory.join(&name)).unwrap();
            assert_eq!(found, [b'x'; 60], "seed {seed}: {} bytes", found.len());
            assert_eq!(disk.list(directory).unwrap(), [&*name], "seed {seed}");
        }
    }

    #[test]
    fn only_names_that_a_writer_gives_are_taken_for_its_files() {
        let name = name_of(SnapshotId(7), 3);
        let hidden = format!(".{name}");
        let written = Written { shown: &name, hidden: false, first: SnapshotId(7) };
        assert_eq!(Written::of(&name), Some(written));
        assert_eq!(Written::of(&hidden), Some(Written { hidden: true, ..written }));
        let long = name_of(SnapshotId(u64::MAX), 1_000_000);
        assert_eq!(Written::of(&long).map(|written| written.first), Some(SnapshotId(u64::MAX)));
        for foreign in [
            "part-",
            "part-7-3",
            ".part-notes",
            "part-000000000007-00003.txt",
            "..part-000000000007-00003",
        ] {
            assert_eq!(Written::of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn what_cannot_succeed_is_not_tried_again_and_says_what_to_do() {
        for (kind, again) in [
            (ErrorKind::NotFound, false),
            (ErrorKind::AlreadyExists, false),
            (ErrorKind::PermissionDenied, false),
            (ErrorKind::StorageFull, true),
            (ErrorKind::Other, true),
        ] {
            let error = failed("show", "/out/part")(kind.into());
            assert_eq!(error.is_retryable(), again, "{error}");
            assert!(error.to_string().contains("; "), "no way out: {error}");
        }
    }
}
