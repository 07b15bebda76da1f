//! Opening a directory: lock, identity, generation, and the newest snapshot that is whole.
//!
//! Before the generation is raised nothing is changed but LOCK and a JOB that is new or unreadable, so a
//! crash at any point leaves the same snapshot restorable.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use super::chain::Content;
use super::commit::settle;
use super::layout::{
    GENERATION, JOB, LOCK, Name, SlotNumber, manifest_name, refused, replace, segment_name,
};
use super::manifest::{
    JobIdentity, Manifest, PartRef, bytes_to_frame, from_whole_frame, to_frame, whole_frame,
};
use super::read::Depth;
use super::segment::{Directory, Generation, Known, Table};
use super::slots::{self, Kept, Slots};
use super::{Opened, RETENTION_MIN, Skipped, Store, StoreLimits, UNCOMMITTED_SNAPSHOTS_MAX, read};
use crate::clock;
use crate::disk::{Disk, DiskLock};
use crate::error::{Error, Result};
use crate::frame::FrameKind;
use crate::id::{SegmentId, SnapshotId};

/// Ids and generations skipped when GENERATION cannot be read: more than any process can have used
/// without leaving a trace in the names of files.
const LOST_GENERATION_GAP: u64 = 1_000_000;

/// What the names in a directory say.
#[derive(Default)]
struct Contents {
    names: Vec<String>,
    slots: Vec<SlotNumber>,
    passed_over: Vec<String>,
    segments: Vec<SegmentId>,
    temporaries: Vec<String>,
    foreign: Vec<String>,
}

/// What the manifests say.
#[derive(Default)]
struct Found {
    newest: Option<Manifest>,
    verified: Option<(Vec<PartRef>, Content)>,
    slots: Slots,
    /// Highest in any manifest.
    snapshot_max: u64,
    generation_max: u64,
    /// Segments that a skipped manifest names.
    pinned: Vec<SegmentId>,
    /// A skipped manifest is unreadable, so what it names is not known.
    unreadable: bool,
    /// A snapshot was skipped that may have been newer than `newest`.
    fell_back: bool,
    skipped: Vec<Skipped>,
    warnings: Vec<String>,
}

pub(super) fn open(
    disk: Arc<dyn Disk>,
    dir: &Path,
    job: &JobIdentity,
    limits: StoreLimits,
    takes: &dyn Fn(&Manifest) -> Result<()>,
) -> Result<Opened> {
    assert!(limits.segment_bytes > 0, "segments of 0 bytes");
    create_directory(&*disk, dir)?;
    check_foreign(&read_contents(&*disk, dir)?, dir)?;
    let lock = take_lock(&*disk, dir)?;
    let contents = read_contents(&*disk, dir)?;
    let warning = check_job(&*disk, dir, job, &contents)?;
    let depth = if limits.verify_pages { Depth::Pages } else { Depth::Indices };
    let mut found = find_newest(&*disk, dir, job, &contents, depth)?;
    found.warnings.extend(warning);
    found.newest.as_ref().map_or(Ok(()), takes)?;
    settle(&*disk, dir, &found.slots)?;
    let generation = raise_generation(&*disk, dir, &contents, &mut found)?;
    let table = table(&*disk, dir, &contents, &found)?;
    let last_segment = contents.segments.iter().map(|segment| segment.0).max();
    for name in &contents.temporaries {
        // What cannot be removed is in nobody's way.
        let _ = disk.remove(&dir.join(name));
    }
    let store = Store {
        job: job.clone(),
        retention: limits.retention.max(RETENTION_MIN),
        first_snapshot: SnapshotId(generation.first_snapshot),
        tried: SnapshotId(0),
        held: found.newest.as_ref().map_or(SnapshotId(0), Manifest::holds),
        slots: found.slots,
        undecided: None,
        side_by_side: 1,
        collected: 0,
        buffers: Vec::new(),
        verified: found.verified,
        _lock: lock,
        directory: Arc::new(Directory {
            disk,
            path: dir.to_path_buf(),
            generation,
            segment_bytes: (
                limits.segment_bytes,
                limits.segment_bytes_max.max(limits.segment_bytes),
            ),
            next_segment: AtomicU32::new(last_segment.map_or(0, |last| last.saturating_add(1))),
            table: Mutex::new(table),
        }),
    };
    Ok(Opened {
        store,
        newest: found.newest,
        warnings: found.warnings,
        fell_back: found.fell_back,
        skipped: found.skipped,
    })
}

fn create_directory(disk: &dyn Disk, dir: &Path) -> Result<()> {
    disk.create_dir_all(dir).map_err(|source| match source.kind() {
        ErrorKind::AlreadyExists | ErrorKind::NotADirectory => Error::Directory {
            path: dir.to_path_buf(),
            reason: "it is or lies below a file that is not a directory; name another snapshot \
                     directory"
                .into(),
        },
        _ => refused(disk, "create directory", dir, source),
    })
}

/// Names by kind.
fn read_contents(disk: &dyn Disk, dir: &Path) -> Result<Contents> {
    let names = disk.list(dir).map_err(|source| refused(disk, "list", dir, source))?;
    let mut contents = Contents::default();
    for name in &names {
        match Name::of(name) {
            Name::Fixed => {}
            Name::Manifest(slot) => contents.slots.push(slot),
            Name::PassedOver => contents.passed_over.push(name.clone()),
            Name::Segment(segment) => contents.segments.push(segment),
            Name::Temporary => contents.temporaries.push(name.clone()),
            Name::Foreign => contents.foreign.push(name.clone()),
        }
    }
    contents.names = names;
    Ok(contents)
}

/// A directory that something else lives in is refused before anything is written to it. In one of
/// ours, foreign files are left alone.
fn check_foreign(contents: &Contents, dir: &Path) -> Result<()> {
    let foreign = contents.foreign.iter().find(|name| *name != "lost+found");
    match foreign {
        Some(name) if !contents.has(JOB) => Err(Error::Directory {
            path: dir.to_path_buf(),
            reason: format!(
                "it holds '{name}', which is not of a snapshot directory; name a new or empty directory"
            ),
        }),
        _ => Ok(()),
    }
}

impl Contents {
    fn has(&self, name: &str) -> bool {
        self.names.iter().any(|found| found == name)
    }

    /// Whether nothing of any snapshot is there.
    fn is_new(&self) -> bool {
        self.slots.is_empty() && self.segments.is_empty()
    }
}

fn take_lock(disk: &dyn Disk, dir: &Path) -> Result<DiskLock> {
    let path = dir.join(LOCK);
    let lock = disk.lock(&path).map_err(|source| refused(disk, "lock", &path, source))?;
    lock.ok_or_else(|| Error::Locked { path: dir.to_path_buf(), pid: read_pid(disk, &path) })
}

pub(super) fn read_pid(disk: &dyn Disk, lock: &Path) -> Option<u32> {
    String::from_utf8(disk.read(lock).ok()?).ok()?.trim().parse().ok()
}

/// Refuses another job's directory. Every manifest names the job too, so a JOB that is damaged or gone
/// is made anew from the newest that can be read; then the answer is what to warn of.
fn check_job(
    disk: &dyn Disk,
    dir: &Path,
    job: &JobIdentity,
    contents: &Contents,
) -> Result<Option<String>> {
    if !contents.has(JOB) && contents.is_new() {
        replace(disk, dir, JOB, &to_frame(FrameKind::Job, SnapshotId(0), job))?;
        return Ok(None);
    }
    let (found, warning) = match read_job(disk, dir) {
        Ok(found) => (found, None),
        Err(error) if matches!(error, Error::Corrupt { .. }) || is_missing(&error) => {
            let slots = contents.slots.iter();
            let manifests = slots.filter_map(|slot| read::slot(disk, dir, *slot).ok().flatten());
            let known = manifests.max_by_key(|manifest| manifest.snapshot);
            let Some(manifest) = known else { return Err(nobodys(dir, error)) };
            let warning =
                format!("{error}; made anew from the manifest of snapshot {}", manifest.id());
            (manifest.job, Some(warning))
        }
        Err(error) => return Err(error),
    };
    if let Some(difference) = difference(&found, job) {
        return Err(Error::OtherJob { path: dir.to_path_buf(), difference });
    }
    if warning.is_some() {
        replace(disk, dir, JOB, &to_frame(FrameKind::Job, SnapshotId(0), job))?;
    }
    Ok(warning)
}

/// Neither JOB nor any manifest says whose the directory is.
fn nobodys(dir: &Path, error: Error) -> Error {
    let (offset, reason) = match error {
        Error::Corrupt { offset, reason, .. } => (offset, reason),
        _ => (0, "the file is missing".into()),
    };
    let reason = format!(
        "{reason}, and no manifest says whose the directory is; put the file back from a copy, or \
         start over with new snapshot and output directories"
    );
    Error::corrupt(dir.join(JOB), offset, reason)
}

pub(super) fn read_job(disk: &dyn Disk, dir: &Path) -> Result<JobIdentity> {
    let path = dir.join(JOB);
    let bytes = disk.read(&path).map_err(Error::io("read", &path))?;
    from_whole_frame(&path, FrameKind::Job, &bytes)
}

/// The first thing that differs.
fn difference(found: &JobIdentity, expected: &JobIdentity) -> Option<String> {
    if found.name != expected.name {
        return Some(format!("job '{}', not '{}'", found.name, expected.name));
    }
    if found.fingerprint == expected.fingerprint {
        return None;
    }
    let (mut old, mut new) = (found.fingerprint.lines(), expected.fingerprint.lines());
    loop {
        match (old.next(), new.next()) {
            (None, None) => return Some("they differ in line ends".into()),
            (old, new) if old == new => {}
            (old, new) => return Some(in_words(old.unwrap_or_default(), new.unwrap_or_default())),
        }
    }
}

/// Two lines of a fingerprint that should be the same, as what the user gave.
fn in_words(old: &str, new: &str) -> String {
    fn cut<'a>(line: &'a str, prefix: &str, middle: &str) -> Option<(&'a str, &'a str)> {
        line.strip_prefix(prefix)?.split_once(middle)
    }
    let parameter = |line| cut(line, "parameter ", ": ");
    let source = |line| cut(line, "operator '", "': source ");
    match (parameter(old), parameter(new), source(old), source(new)) {
        (Some((name, before)), Some((same, now)), ..) if name == same => {
            format!("{name} was {before}, and now is {now}")
        }
        (.., Some((name, before)), Some((same, now))) if name == same => {
            format!("its input '{name}' was {before}, and now is {now}")
        }
        _ => {
            let [old, new] = [old, new].map(|line| if line.is_empty() { "nothing" } else { line });
            format!("it was made of other operators: with {old}, now with {new}")
        }
    }
}

/// Looks for the newest snapshot that is whole, and reads the manifests older than it for what
/// they name.
fn find_newest(
    disk: &dyn Disk,
    dir: &Path,
    job: &JobIdentity,
    contents: &Contents,
    depth: Depth,
) -> Result<Found> {
    let mut found = Found::default();
    let mut manifests = Vec::new();
    for &slot in &contents.slots {
        match read::slot(disk, dir, slot) {
            Ok(None) => {
                _ = found.slots.set(slot, slots::Content::Free);
                // Rare, as the next commit takes it; and all of them never are.
                let path = dir.join(manifest_name(slot));
                found.warnings.push(format!(
                    "{} is empty: a snapshot in it was taken back, or its bytes are lost",
                    path.display()
                ));
            }
            Ok(Some(manifest)) if manifest.job == *job => manifests.push((slot, manifest)),
            Ok(Some(other)) => {
                let reason = format!("of another job, '{}'", other.job.name);
                let error = Error::corrupt(dir.join(manifest_name(slot)), 0, reason);
                found.skip(slot, None, error)?;
            }
            Err(error) => found.skip(slot, None, error)?,
        }
    }
    manifests.sort_unstable_by_key(|(_, manifest)| std::cmp::Reverse(manifest.snapshot));
    for (slot, manifest) in manifests {
        found.snapshot_max = found.snapshot_max.max(manifest.snapshot);
        found.generation_max = found.generation_max.max(manifest.generation);
        let kept = Kept::of(&manifest);
        if found.newest.is_none() {
            match read::content(disk, dir, &manifest, depth) {
                Ok(content) => found.verified = Some((manifest.parts.clone(), content)),
                Err(error) => {
                    found.pinned.extend(kept.segments);
                    found.skip(slot, Some(manifest.id()), error)?;
                    continue;
                }
            }
        }
        found.slots.set(slot, slots::Content::Valid(kept));
        found.newest.get_or_insert(manifest);
    }
    for name in &contents.passed_over {
        // What an unreadable one names is not known, so nothing can be kept for it.
        if let Ok(Some(manifest)) = read::slot_at(disk, &dir.join(name)) {
            found.pinned.extend(manifest.segments());
        }
    }
    if found.newest.is_none() && !found.warnings.is_empty() {
        let reason = found.warnings.join("; ");
        return Err(Error::NothingToRestore { path: dir.to_path_buf(), reason });
    }
    Ok(found)
}

impl Found {
    /// Goes on without a damaged snapshot, or with a slot whose snapshot is not known. What is not damage
    /// (no permission, no memory, a newer format) is an error: to fall back from it would throw
    /// away good work.
    fn skip(&mut self, slot: SlotNumber, id: Option<SnapshotId>, error: Error) -> Result<()> {
        let damaged = match &error {
            Error::Corrupt { .. } => true,
            Error::Io { source, .. } => {
                is_missing(&error) || source.raw_os_error() == Some(Errno::IO.raw_os_error())
            }
            _ => false,
        };
        if !damaged {
            return Err(error);
        }
        self.slots.set(slot, slots::Content::Skipped);
        self.skipped.push(Skipped(slot));
        self.fell_back = true;
        self.warnings.push(match id {
            Some(id) => format!("snapshot {id} cannot be restored: {error}"),
            None => {
                self.unreadable = true;
                format!("a manifest cannot be read, damaged or cut short by a crash: {error}")
            }
        });
        Ok(())
    }
}

fn table(disk: &dyn Disk, dir: &Path, contents: &Contents, found: &Found) -> Result<Table> {
    let mut table = Table::default();
    for &segment in &contents.segments {
        let path = dir.join(segment_name(segment));
        let capacity_bytes = disk.len(&path).map_err(Error::io("look at", path))?;
        let pinned = found.unreadable || found.pinned.contains(&segment);
        table.segments.insert(segment, Known { pinned, capacity_bytes, ..Known::default() });
    }
    for content in found.slots.0.values() {
        let slots::Content::Valid(kept) = content else { continue };
        for segment in &kept.segments {
            // An older manifest may name a segment that is gone: it was not verified.
            table.segments.entry(*segment).or_default().manifests += 1;
        }
    }
    Ok(table)
}

fn raise_generation(
    disk: &dyn Disk,
    dir: &Path,
    contents: &Contents,
    found: &mut Found,
) -> Result<Generation> {
    let before = match read_generation(disk, dir) {
        Err(error) if is_missing(&error) && contents.is_new() => Ok(Generation::default()),
        before => before,
    };
    let mut next = match before {
        Ok(before) => before,
        Err(error) if matches!(error, Error::Corrupt { .. }) || is_missing(&error) => {
            let warning = format!("{error}; numbers go on {LOST_GENERATION_GAP} further");
            found.warnings.push(warning);
            Generation {
                generation: found.generation_max.saturating_add(LOST_GENERATION_GAP),
                first_snapshot: found.snapshot_max.saturating_add(LOST_GENERATION_GAP),
                opened_ns: 0,
            }
        }
        Err(error) => return Err(error),
    };
    let used = next.first_snapshot.max(found.snapshot_max);
    let skipped = if next.generation == 0 { 1 } else { UNCOMMITTED_SNAPSHOTS_MAX };
    let generation = next.generation.max(found.generation_max).checked_add(1);
    let first_snapshot = used.checked_add(skipped);
    let (Some(generation), Some(first_snapshot)) = (generation, first_snapshot) else {
        let reason = "its numbers are at their end, which no run reaches; start over with new \
                      snapshot and output directories";
        return Err(Error::Directory { path: dir.to_path_buf(), reason: reason.into() });
    };
    next = Generation { generation, first_snapshot, opened_ns: clock::machine_ns() };
    let numbers = [next.generation, next.first_snapshot, next.opened_ns];
    let payload = numbers.map(u64::to_le_bytes).concat();
    let bytes = bytes_to_frame(FrameKind::Generation, SnapshotId(0), &payload);
    replace(disk, dir, GENERATION, &bytes)?;
    Ok(next)
}

/// Whether a file is not there.
pub(super) fn is_missing(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == ErrorKind::NotFound)
}

pub(super) fn read_generation(disk: &dyn Disk, dir: &Path) -> Result<Generation> {
    let path = dir.join(GENERATION);
    let bytes = disk.read(&path).map_err(Error::io("read", &path))?;
    let (_, payload) = whole_frame(&path, FrameKind::Generation, &bytes)?;
    let numbers: Vec<u64> = payload
        .chunks_exact(8)
        .map(|number| u64::from_le_bytes(number.try_into().expect("eight bytes")))
        .collect();
    match (payload.len(), &numbers[..]) {
        (16, &[generation, first_snapshot]) => {
            Ok(Generation { generation, first_snapshot, opened_ns: 0 })
        }
        (24, &[generation, first_snapshot, opened_ns]) => {
            Ok(Generation { generation, first_snapshot, opened_ns })
        }
        _ => Err(Error::corrupt(&path, 24, "neither two numbers nor three")),
    }
}
