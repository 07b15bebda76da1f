//! The store on every disk, and what crashes and damage make of it.

mod book;
mod bounds;
mod commits;
mod crash;
mod damage;
mod links;
mod places;
mod side_by_side;

use std::collections::BTreeMap;

use self::book::Book;
use super::*;
use crate::disk::{Faults, MemoryDisk, ThreadDisk, UringDisk};
use crate::error::Error;
use crate::id::{KeyGroup, SegmentId};
use crate::state::StateWriter;

const DIR: &str = "/snapshots";
/// Room for one part or two, so that short runs change segments too.
const SEGMENT_BYTES: u64 = 12 << 10;

fn job() -> JobIdentity {
    JobIdentity { name: "count".into(), fingerprint: "source\ncount\nsink".into() }
}

fn limits() -> StoreLimits {
    StoreLimits {
        retention: 2,
        segment_bytes: SEGMENT_BYTES,
        segment_bytes_max: SEGMENT_BYTES,
        verify_pages: false,
    }
}

fn try_open(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Opened> {
    Store::open_with(disk.clone(), dir, &job(), limits())
}

fn open(disk: &MemoryDisk) -> Opened {
    try_open(&shared(disk), Path::new(DIR)).unwrap()
}

fn shared(disk: &MemoryDisk) -> Arc<dyn Disk> {
    Arc::new(disk.clone())
}

/// The state that worker `worker` has in snapshot `id`: says which snapshot it is of.
fn state(id: SnapshotId, worker: usize) -> Vec<u8> {
    format!("state of worker {worker} in snapshot {id};").into_bytes().repeat(6)
}

/// A store and two writers with a table each, as a running job has them.
struct Running {
    store: Store,
    writers: Vec<PartWriter>,
    books: Vec<Book>,
    unread_since: Option<u64>,
}

impl Running {
    fn start(store: Store) -> Result<Self> {
        let writers = (0..2).map(|_| store.writer()).collect::<Result<_>>()?;
        Ok(Self { store, writers, books: [0, 64].map(Book::of).into(), unread_since: None })
    }

    /// Writes and commits one snapshot, then collects.
    fn snapshot(&mut self) -> Result<SnapshotId> {
        let id = self.store.next_snapshot();
        let parts = self.write(id)?;
        self.store.commit(&self.manifest(id, parts))?;
        self.store.collect()?;
        Ok(id)
    }

    fn snapshots(&mut self, count: usize) {
        for _ in 0..count {
            self.snapshot().unwrap();
        }
    }

    /// Changes a page of each table and writes the parts.
    fn write(&mut self, id: SnapshotId) -> Result<Vec<PartRef>> {
        let mut finished = Ok(());
        for (worker, writer) in self.writers.iter_mut().enumerate() {
            let book = &mut self.books[worker];
            book.change(id.0 as u32 % 4, &state(id, worker));
            writer.begin(id);
            append_state(writer, id, worker);
            book.write(writer);
            finished = finished.and(writer.finish());
        }
        let mut parts = Vec::new();
        for (writer, book) in self.writers.iter_mut().zip(&mut self.books) {
            let written = wait(writer);
            book.lose(&writer.take_lost());
            parts.extend(written.into_iter().map(|written| written.result));
        }
        finished?;
        parts.into_iter().collect()
    }

    /// Waits for whatever is with the disk, and tells tables what was lost.
    fn settle(&mut self) {
        for (writer, book) in self.writers.iter_mut().zip(&mut self.books) {
            drop(wait(writer));
            book.lose(&writer.take_lost());
        }
    }

    fn manifest(&self, id: SnapshotId, parts: Vec<PartRef>) -> Manifest {
        Manifest {
            format: MANIFEST_FORMAT,
            snapshot: id.0,
            generation: self.store.generation(),
            attempt: 1,
            created_unix_ms: 1_000,
            job: job(),
            last: false,
            unread_since: self.unread_since,
            operators: vec![OperatorEntry {
                name: "count".into(),
                schema: 3,
                state: None,
                input: None,
            }],
            parts,
            notes: BTreeMap::from([("duration_us".into(), 12)]),
        }
    }
}

fn append_state(writer: &mut PartWriter, id: SnapshotId, worker: usize) {
    writer.enter("count");
    writer.write(StateSlot::KeyGroup(KeyGroup(worker as u32)), 3, &state(id, worker));
    writer.enter("source");
    writer.write(StateSlot::Split(worker as u32), 1, &id.0.to_le_bytes());
}

/// What a worker does in each of its rounds.
fn poll(writer: &mut PartWriter) -> Vec<Written> {
    writer.join(0);
    writer.poll()
}

/// Polls until nothing is in flight.
fn wait(writer: &mut PartWriter) -> Vec<Written> {
    let mut parts = Vec::new();
    while writer.is_waiting() {
        parts.extend(poll(writer));
        writer.refill();
        std::thread::yield_now();
    }
    parts
}

/// Checks that the state in the manifest is all of that snapshot.
fn check_state(store: &mut Store, manifest: &Manifest) {
    let id = manifest.id();
    let loaded = store.load(manifest).unwrap();
    assert_eq!(loaded.pieces.len(), 4);
    for (worker, pair) in loaded.pieces.chunks(2).enumerate() {
        let slot = StateSlot::KeyGroup(KeyGroup(worker as u32));
        let bytes = state(id, worker);
        assert_eq!(pair[0], StateEntry { operator: "count".into(), slot, schema: 3, bytes });
        let (slot, bytes) = (StateSlot::Split(worker as u32), id.0.to_le_bytes().to_vec());
        assert_eq!(pair[1], StateEntry { operator: "source".into(), slot, schema: 1, bytes });
    }
    let [(operator, 7, pages)] = &loaded.pages[..] else { panic!("{:?}", loaded.pages.len()) };
    assert_eq!(operator, "table");
    let newest = pages.iter().map(|page| book::text(&*loaded.source, page));
    let expected: Vec<_> = (0..2).map(|worker| state(id, worker)).collect();
    let newest: Vec<_> = newest.filter(|text| expected.contains(text)).collect();
    assert!(!newest.is_empty(), "a page was changed for each snapshot");
}

/// A medium on which a job ran for this many snapshots and stopped.
fn after_snapshots(seed: u64, count: usize) -> (MemoryDisk, SnapshotId) {
    let disk = MemoryDisk::new(seed);
    let mut running = Running::start(open(&disk).store).unwrap();
    let ids: Vec<SnapshotId> = (0..count).map(|_| running.snapshot().unwrap()).collect();
    (disk, *ids.last().unwrap())
}

#[test]
fn what_was_committed_is_restored_on_every_disk() {
    let system = tempfile::tempdir().unwrap();
    let mut disks: Vec<(Arc<dyn Disk>, PathBuf)> = vec![
        (Arc::new(ThreadDisk::new()), system.path().join("deep/thread")),
        (Arc::new(MemoryDisk::new(3)), PathBuf::from(DIR)),
    ];
    if UringDisk::new().queue(1).is_ok() {
        disks.push((Arc::new(UringDisk::new()), system.path().join("deep/ring")));
    }
    for (disk, dir) in disks {
        let opened = try_open(&disk, &dir).unwrap();
        assert_eq!((opened.newest, opened.warnings.len()), (None, 0));
        assert_eq!(opened.store.next_snapshot(), SnapshotId(1));
        let mut running = Running::start(opened.store).unwrap();
        for _ in 0..50 {
            running.snapshot().unwrap();
        }
        drop(running);
        let mut opened = try_open(&disk, &dir).unwrap();
        assert_eq!(opened.warnings, Vec::<String>::new());
        assert_eq!(opened.store.generation(), 2);
        assert!(opened.store.next_snapshot() > SnapshotId(50 + 4));
        let newest = opened.newest.unwrap();
        assert_eq!(newest.id(), SnapshotId(50));
        check_state(&mut opened.store, &newest);
        assert_eq!(show(&*disk, &dir, newest.id()).unwrap(), newest);
        let report = verify(&*disk, &dir).unwrap();
        assert!(report.is_whole(), "{:?}", report.problems);
        assert_eq!(report.snapshots.len(), 3, "two, and the one to be overwritten");
        assert_eq!((report.job, report.generation), (Some(job()), Some(2)));
    }
}

#[test]
fn ids_are_not_used_twice_though_nothing_was_committed() {
    let disk = MemoryDisk::new(1);
    let mut last = SnapshotId(0);
    for _ in 0..5 {
        let store = open(&disk).store;
        assert!(store.next_snapshot() > last, "the process before may have used {last}");
        last = SnapshotId(store.next_snapshot().0 + UNCOMMITTED_SNAPSHOTS_MAX - 1);
    }
}

#[test]
fn parts_of_several_snapshots_are_built_side_by_side() {
    let disk = MemoryDisk::new(4);
    let mut running = Running::start(open(&disk).store).unwrap();
    let (first, second) = (SnapshotId(1), SnapshotId(2));
    let writer = &mut running.writers[0];
    writer.begin(first);
    writer.enter("a");
    writer.write(StateSlot::Task(0), 1, b"first");
    writer.begin(second);
    writer.enter("a");
    writer.write(StateSlot::Task(0), 1, b"second");
    writer.begin(first);
    writer.enter("b");
    writer.write(StateSlot::Task(1), 1, b"more of the first");
    writer.finish().unwrap();
    writer.finish().unwrap();
    let parts = wait(writer);
    assert_eq!(parts.iter().map(|part| part.snapshot).collect::<Vec<_>>(), [first, second]);
    let parts: Vec<PartRef> = parts.into_iter().map(|part| part.result.unwrap()).collect();
    assert!(parts.iter().all(|part| part.offset.is_multiple_of(4096)));
    let manifest = running.manifest(first, vec![parts[0].clone()]);
    let entries = running.store.load(&manifest).unwrap();
    assert_eq!(
        entries.pieces.iter().map(|entry| entry.operator.as_str()).collect::<String>(),
        "ab"
    );
}

#[test]
fn a_worker_without_state_has_an_empty_part() {
    let disk = MemoryDisk::new(4);
    let mut running = Running::start(open(&disk).store).unwrap();
    running.writers[0].begin(SnapshotId(1));
    running.writers[0].finish().unwrap();
    let part = wait(&mut running.writers[0]).remove(0).result.unwrap();
    assert_eq!(part, PartRef::default());
    let manifest = running.manifest(SnapshotId(1), vec![part]);
    running.store.commit(&manifest).unwrap();
    drop(running);
    assert_eq!(open(&disk).newest.unwrap(), manifest);
}

fn listed(disk: &MemoryDisk) -> Vec<SnapshotId> {
    let infos = list(disk, Path::new(DIR)).unwrap();
    infos.iter().map(|info| info.manifest.as_ref().unwrap().id()).collect()
}

#[test]
fn what_was_there_at_a_restore_stays_until_all_of_it_was_read() {
    let disk = MemoryDisk::new(3);
    Running::start(open(&disk).store).unwrap().snapshots(6);
    let before = listed(&disk);
    assert_eq!(before.len(), limits().retention + 1);
    // Both end before all was read, and the second one began from what the first has made.
    for _ in 0..2 {
        let Opened { store, newest, .. } = open(&disk);
        let newest = newest.unwrap();
        let mut running = Running::start(store).unwrap();
        running.unread_since = Some(newest.unread_since.unwrap_or(newest.snapshot));
        assert_eq!(running.unread_since, before.iter().max().map(|id| id.0));
        running.snapshots(9);
        let now = listed(&disk);
        assert!(before.iter().all(|id| now.contains(id)), "{now:?}");
        assert_eq!(now.len(), before.len() + limits().retention + 1, "{now:?}");
    }
    let mut running = Running::start(open(&disk).store).unwrap();
    running.snapshots(1);
    let now = listed(&disk);
    assert!(before.iter().all(|id| !now.contains(id)), "{now:?}");
    assert_eq!(now.len(), limits().retention + 1);
}

/// A worker stood still for a tenth of a second while it made a segment for an index.
#[test]
fn an_index_without_room_waits_for_a_segment_that_is_large_enough_and_makes_none() {
    let disk = MemoryDisk::new(4);
    let mut running = Running::start(open(&disk).store).unwrap();
    let files = || disk.list(Path::new(DIR)).unwrap();
    let (before, id) = (files(), running.store.next_snapshot());
    let writer = &mut running.writers[0];
    writer.begin(id);
    writer.enter("count");
    writer.write(StateSlot::Task(0), 3, &[7; 2 * SEGMENT_BYTES as usize]);
    writer.finish().unwrap();
    for _ in 0..50 {
        assert!(poll(writer).is_empty());
    }
    assert!(writer.is_waiting());
    assert_eq!(files(), before);
    running.store.refill(); // as large as segments are now, which is too small
    assert!(poll(&mut running.writers[0]).is_empty());
    running.store.refill();
    let written = wait(&mut running.writers[0]).remove(0);
    assert!(written.result.unwrap().bytes > 2 * SEGMENT_BYTES);
}

/// It is 10 MB for a base of a GB of state, and a worker stood still for up to 25 ms.
#[test]
fn a_large_index_is_put_together_in_small_steps() {
    let disk = MemoryDisk::new(4);
    let mut running = Running::start(open(&disk).store).unwrap();
    let id = running.store.next_snapshot();
    let writer = &mut running.writers[0];
    writer.begin(id);
    writer.enter("count");
    let state: Vec<u8> = (0..4 << 20).map(|n: u32| (n % 251) as u8).collect();
    for (group, bytes) in state.chunks(10_000).enumerate() {
        writer.write(StateSlot::KeyGroup(KeyGroup(group as u32 % 128)), 3, bytes);
    }
    writer.finish().unwrap();
    let mut polls = 0;
    let written = loop {
        polls += 1;
        writer.refill();
        if let Some(written) = poll(writer).pop() {
            break written;
        }
    };
    let part = written.result.unwrap();
    assert!(polls >= 4 << 20 >> 17, "{polls} polls for {} bytes", part.bytes);
    let manifest = running.manifest(id, vec![part]);
    let loaded = running.store.load(&manifest).unwrap();
    let pieces = loaded.pieces.iter().map(|piece| &piece.bytes[..]);
    assert!(pieces.collect::<Vec<_>>().concat() == state, "all of it, in order");
}
