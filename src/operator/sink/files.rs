//! Results into files, exactly once: a reader sees committed lines only, at any moment.
//!
//! ```text
//! .part-<first snapshot>-<task>   being written, or waiting for its snapshot; hidden
//!  part-<first snapshot>-<task>   committed, never written again
//! ```
//!
//! The directory belongs to one job at a time: see [`directory`].
//!
//! A writer appends to one hidden file across snapshots. When the file is old or long enough (see
//! [`Roll`]) or the input has ended, the next snapshot closes it, and when that snapshot is complete
//! the file is renamed. A rename shows all of a file or nothing; appending to a visible file could
//! show half a line after a crash.
//!
//! The handle in a snapshot lists `(name, length)` of every file with data of that snapshot that is
//! not known to be visible for good. Recovery cuts each to its length and shows it, and removes the
//! rest: hidden files, and visible ones that only newer snapshots name (they exist if a damaged
//! newest snapshot made recovery fall back; their records will be written again).
//!
//! Fault model: a crash at any point; unsynced data and renames may be lost. A rename is synced
//! before the file leaves the handle, and replaces nothing.

mod directory;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rkyv::{Archive, Deserialize, Serialize};

use super::{Sink, Writer, WriterContext, bad_handle};
use crate::clock;
use crate::disk::{Completion, Disk, DiskLock, DiskQueue, FileHandle, Operation, Ticket};
use crate::error::Result;
use crate::id::SnapshotId;
use crate::operator::Flow;
use crate::record::{Batch, Collector, Data, Record};
use directory::{failed, name_of};

/// Bytes handed to the disk at once.
const WRITE_BYTES: usize = 256 << 10;
/// Writes under way at once; with more, the sink holds its input back.
const WRITES_MAX: usize = 8;

/// When a file is closed, to become visible with the next snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roll {
    /// At this length.
    pub bytes: u64,
    /// At this age. Zero: every snapshot shows its output, in a file of its own.
    pub age: Duration,
}

impl Default for Roll {
    fn default() -> Self {
        Self { bytes: 64 << 20, age: Duration::from_secs(1) }
    }
}

/// Sink of lines in files of one directory.
pub struct Files<T, F> {
    directory: PathBuf,
    format: F,
    roll: Roll,
    record: std::marker::PhantomData<fn(T)>,
}

impl<T: Record, F: Fn(&T, &mut Collector<u8>) + Clone + Send + Sync + 'static> Files<T, F> {
    /// Into `directory`, made if missing. `format(record, out)` appends a record's line, with its
    /// end.
    pub fn new(directory: impl Into<PathBuf>, roll: Roll, format: F) -> Self {
        let directory = directory.into();
        Self { directory, format, roll, record: std::marker::PhantomData }
    }

    fn start(&self, context: &WriterContext) -> Result<FilesWriter<F>> {
        let queue = context.disk.queue(WRITES_MAX * 2);
        Ok(FilesWriter {
            owner: directory::owner(&self.directory, &*context.disk)?,
            directory: self.directory.clone(),
            format: self.format.clone(),
            roll: self.roll,
            subtask: context.subtask,
            disk: context.disk.clone(),
            queue: queue.map_err(failed("write in", &self.directory))?,
            completions: Vec::new(),
            next_snapshot: context.first_snapshot,
            buffer: Vec::new(),
            open: None,
            closed: VecDeque::new(),
            prepared: VecDeque::new(),
            open_at: VecDeque::new(),
            writing: Vec::new(),
            writes: 0,
            ended: false,
        })
    }
}

/// One file in a handle.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
struct Listed {
    /// Without the dot that hides it.
    name: String,
    /// Bytes that belong to the snapshot.
    length: u64,
}

impl<T: Record, F: Fn(&T, &mut Collector<u8>) + Clone + Send + Sync + 'static> Sink
    for Files<T, F>
{
    type Item = T;

    fn identity(&self) -> String {
        "files".into()
    }

    fn claim(
        &self,
        owner: &str,
        handles: Option<&[Vec<u8>]>,
        disk: &dyn Disk,
    ) -> Result<Option<DiskLock>> {
        let handles = handles.map(read_handles).transpose()?;
        directory::claim(&self.directory, owner, handles.as_deref(), disk).map(Some)
    }

    fn recover(&self, handles: Option<&[Vec<u8>]>, disk: &dyn Disk) -> Result<()> {
        let handles = handles.map(read_handles).transpose()?;
        directory::recover(&self.directory, handles.as_deref(), disk)
    }

    fn writer(&self, context: &WriterContext) -> Result<Box<dyn Writer<T>>> {
        Ok(Box::new(self.start(context)?))
    }
}

/// What a snapshot holds of a writer.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
struct Handle {
    snapshot: u64,
    /// Whose directory it is: see [`directory`].
    owner: String,
    listed: Vec<Listed>,
}

fn read_handles(handles: &[Vec<u8>]) -> Result<Vec<Handle>> {
    let read = |handle: &Vec<u8>| Handle::from_archive(handle);
    handles.iter().map(|handle| read(handle).map_err(|e| bad_handle("files", e))).collect()
}

/// The hidden file being written.
struct OpenFile {
    name: String,
    file: FileHandle,
    length: u64,
    opened_ns: u64,
}

/// How far the data of one snapshot is.
struct Prepared {
    snapshot: SnapshotId,
    /// The file that has to be synced, once every write up to number `writes` is done, and its name.
    file: FileHandle,
    name: String,
    writes: u64,
    sync: Synced,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Synced {
    Waiting,
    Submitted(Ticket),
    Done,
}

struct FilesWriter<F> {
    directory: PathBuf,
    owner: String,
    format: F,
    roll: Roll,
    subtask: usize,
    disk: Arc<dyn Disk>,
    queue: Box<dyn DiskQueue>,
    completions: Vec<Completion>,
    /// The snapshot that what is written now belongs to.
    next_snapshot: SnapshotId,
    buffer: Vec<u8>,
    open: Option<OpenFile>,
    /// Files that become visible with their snapshot.
    closed: VecDeque<(SnapshotId, Listed)>,
    prepared: VecDeque<Prepared>,
    /// What each snapshot has of the file that was open then.
    open_at: VecDeque<(SnapshotId, Option<Listed>)>,
    /// Writes under way, by number; the number rises by one per write.
    writing: Vec<(Ticket, u64)>,
    writes: u64,
    ended: bool,
}

impl<F> FilesWriter<F> {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn open_file(&mut self) -> Result<&mut OpenFile> {
        if self.open.is_none() {
            let name = name_of(self.next_snapshot, self.subtask);
            let path = self.path(&format!(".{name}"));
            let file = self.disk.create_new(&path).map_err(failed("create", &path))?;
            let sync = self.disk.sync_dir(&self.directory);
            sync.map_err(failed("sync", &self.directory))?;
            self.open = Some(OpenFile { name, file, length: 0, opened_ns: clock::now_ns() });
        }
        Ok(self.open.as_mut().expect("opened above"))
    }

    /// Hands the buffer to the disk. False: no room now, the buffer stays.
    fn submit_buffer(&mut self) -> Result<bool> {
        if self.buffer.is_empty() {
            return Ok(true);
        }
        let open = self.open_file()?;
        let (file, offset) = (open.file.clone(), open.length);
        let buffer = std::mem::take(&mut self.buffer);
        let length = buffer.len() as u64;
        let buffer = buffer.into();
        let write = Operation::Write { file, offset, buffer, sync: false };
        match self.queue.submit(write) {
            Ok(ticket) => {
                self.writes += 1;
                self.writing.push((ticket, self.writes));
                self.open.as_mut().expect("opened above").length += length;
                Ok(true)
            }
            Err(Operation::Write { buffer, .. }) => {
                self.buffer = buffer.into_plain();
                Ok(false)
            }
            Err(other) => unreachable!("a refused write comes back as it was, not {other:?}"),
        }
    }

    /// Takes completions and starts the syncs that are due.
    fn turn(&mut self) -> Result<()> {
        self.queue.poll(&mut self.completions);
        let mut refused = None;
        for Completion { ticket, result, .. } in self.completions.drain(..) {
            if let Err(error) = result {
                // The ticket stays open, so nothing that depends on it is ever prepared.
                refused = Some(error);
                continue;
            }
            self.writing.retain(|(writing, _)| *writing != ticket);
            for prepared in &mut self.prepared {
                if prepared.sync == Synced::Submitted(ticket) {
                    prepared.sync = Synced::Done;
                }
            }
        }
        if let Some(error) = refused {
            return Err(failed("write in", &self.directory)(error));
        }
        self.sync_some();
        Ok(())
    }

    /// Starts the sync that is due, for all snapshots that it covers. One at a time: of a failed write back the system
    /// tells one sync of a file and no other, which would then vouch for what is lost.
    fn sync_some(&mut self) {
        if self.prepared.iter().any(|prepared| matches!(prepared.sync, Synced::Submitted(_))) {
            return;
        }
        let oldest = self.writing.iter().map(|(_, number)| *number).min().unwrap_or(u64::MAX);
        let waits = |prepared: &&mut Prepared| prepared.sync == Synced::Waiting;
        let mut due = self.prepared.iter_mut().filter(waits).take_while(|due| due.writes < oldest);
        let Some(first) = due.next() else { return };
        let sync = Operation::Sync { file: first.file.clone() };
        let Ok(ticket) = self.queue.submit(sync) else { return };
        first.sync = Synced::Submitted(ticket);
        due.take_while(|next| next.name == first.name)
            .for_each(|next| next.sync = Synced::Submitted(ticket));
    }

    /// Waits until nothing is under way. Only at the end of the job.
    fn settle(&mut self) -> Result<()> {
        while !self.submit_buffer()? || !self.writing.is_empty() || self.queue.in_flight() > 0 {
            self.turn()?;
            std::thread::yield_now();
        }
        Ok(())
    }

    fn show(&self, name: &str) -> Result<()> {
        let (hidden, visible) = (self.path(&format!(".{name}")), self.path(name));
        self.disk.rename_new(&hidden, &visible).map_err(failed("show", &visible))
    }

    /// Shows the open file, cut to the length a complete snapshot has of it.
    fn show_open(&mut self, length: u64) -> Result<()> {
        self.settle()?;
        let Some(open) = self.open.take() else { return Ok(()) };
        let hidden = self.path(&format!(".{}", open.name));
        open.file.sync_data().map_err(failed("sync", &hidden))?;
        if open.length > length {
            directory::cut(&self.directory, &hidden, length, &*self.disk)?;
        }
        self.show(&open.name)
    }
}

impl<T, F: Fn(&T, &mut Collector<u8>) + Send> Writer<T> for FilesWriter<F> {
    fn write(&mut self, records: &mut Batch<'_, T>) -> Result<Flow> {
        loop {
            if self.buffer.len() >= WRITE_BYTES {
                self.turn()?;
                if self.writing.len() >= WRITES_MAX || !self.submit_buffer()? {
                    return Ok(Flow::Full);
                }
            }
            if records.is_empty() {
                return Ok(Flow::Done);
            }
            for record in records.drain(256) {
                (self.format)(&record, Collector::over(&mut self.buffer));
            }
        }
    }

    fn ended(&mut self) {
        self.ended = true;
    }

    fn prepare(&mut self, snapshot: SnapshotId) -> Result<Vec<u8>> {
        let now_ns = clock::now_ns();
        while !self.submit_buffer()? {
            self.turn()?; // only with more snapshots pending than the queue is deep
        }
        self.next_snapshot = snapshot.next();
        let (roll, ended) = (self.roll, self.ended);
        let mut open_at = None;
        if let Some(open) = &self.open {
            let (file, name, writes) = (open.file.clone(), open.name.clone(), self.writes);
            let listed = Listed { name: name.clone(), length: open.length };
            let sync = Synced::Waiting;
            self.prepared.push_back(Prepared { snapshot, file, name, writes, sync });
            let age_ns = now_ns.saturating_sub(open.opened_ns);
            if ended || open.length >= roll.bytes || u128::from(age_ns) >= roll.age.as_nanos() {
                self.closed.push_back((snapshot, listed));
                self.open = None;
            } else {
                open_at = Some(listed);
            }
        }
        let listed = self.closed.iter().map(|(_, listed)| listed).chain(&open_at).cloned();
        let (owner, listed) = (self.owner.clone(), listed.collect());
        let handle = Handle { snapshot: snapshot.0, owner, listed };
        self.open_at.push_back((snapshot, open_at));
        self.turn()?;
        Ok(handle.to_archive().map_err(|error| bad_handle("files", error))?.to_vec())
    }

    fn is_prepared(&mut self, snapshot: SnapshotId) -> Result<bool> {
        self.turn()?;
        let settled = |prepared: &mut Prepared| prepared.sync == Synced::Done;
        while self.prepared.pop_front_if(settled).is_some() {}
        Ok(self.prepared.front().is_none_or(|prepared| prepared.snapshot > snapshot))
    }

    fn commit(&mut self, snapshot: SnapshotId, last: bool) -> Result<()> {
        let mut shown = false;
        while let Some((_, file)) = self.closed.pop_front_if(|(id, _)| *id <= snapshot) {
            self.show(&file.name)?;
            shown = true;
        }
        let mut open_at = None;
        while let Some((_, open)) = self.open_at.pop_front_if(|(id, _)| *id <= snapshot) {
            open_at = open;
        }
        if last && let Some(open) = open_at {
            self.show_open(open.length)?;
            shown = true;
        }
        if shown {
            let sync = self.disk.sync_dir(&self.directory);
            sync.map_err(failed("sync", &self.directory))?;
        }
        Ok(())
    }

    fn commit_all(&mut self) -> Result<()> {
        self.settle()?;
        let length = self.open.as_ref().map_or(0, |open| open.length);
        self.show_open(length)?;
        self.disk.sync_dir(&self.directory).map_err(failed("sync", &self.directory))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::disk::MemoryDisk;

    /// Several syncs of one file were under way at once. If bytes could not be written, the system tells one of
    /// them; another vouched for them.
    #[test]
    fn one_sync_is_under_way_and_covers_every_snapshot_that_waits_for_it() {
        let mut shared = 0;
        for seed in 0..40 {
            let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new(seed));
            disk.create_dir_all("/out".as_ref()).unwrap();
            let format = |n: &u64, out: &mut Collector<u8>| out.extend_from_slice(&n.to_le_bytes());
            let files = Files::new("/out", Roll::default(), format);
            let _claim = files.claim("a test", None, &*disk).unwrap();
            files.recover(None, &*disk).unwrap();
            let first_snapshot = SnapshotId(1);
            let context = WriterContext { subtask: 0, first_snapshot, transactional: true, disk };
            let mut writer = files.start(&context).unwrap();
            let mut look = |writer: &FilesWriter<_>| {
                let mut syncs = BTreeMap::<Ticket, u32>::new();
                for prepared in &writer.prepared {
                    if let Synced::Submitted(ticket) = prepared.sync {
                        *syncs.entry(ticket).or_default() += 1;
                    }
                }
                assert!(syncs.len() <= 1, "{} syncs at once", syncs.len());
                shared += u32::from(syncs.values().any(|snapshots| *snapshots > 1));
            };
            for id in (1..=30).map(SnapshotId) {
                writer.buffer.extend_from_slice(&id.0.to_le_bytes());
                Writer::<u64>::prepare(&mut writer, id).unwrap();
                look(&writer);
                _ = Writer::<u64>::is_prepared(&mut writer, SnapshotId(id.0 - 1)).unwrap();
                look(&writer);
            }
            while !Writer::<u64>::is_prepared(&mut writer, SnapshotId(30)).unwrap() {
                look(&writer);
            }
            assert!(writer.prepared.is_empty() && writer.queue.in_flight() == 0);
        }
        assert!(shared > 20, "{shared}");
    }
}
