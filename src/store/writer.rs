//! One worker's writing end: captured state in, a durable part with its [`PartRef`] out.
//!
//! Pages go to the [`Stream`](super::stream) at once; what lists them, and everything small, is put
//! together as the part's index, which is written when the part is finished.
//!
//! Invariants
//! - Per snapshot one index, submitted and polled, never waited for; in the order in which parts
//!   are finished. The next is put together and given to the disk while some are still with it.
//! - An index goes on from the one before it, also if that one's snapshot was given up; the pages of a
//!   part that was given up before it was finished are listed by a later one. So every page that a
//!   table takes for written is found from every later index.
//! - After a failure nothing goes on from what failed: the parts behind it fail too, what was lost is
//!   reported, and the next part is a base.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;
use std::sync::Arc;

use super::LINKS_MAX;
use super::frames::Joining;
use super::index::Link;
use super::manifest::PartRef;
use super::part::{Carried, Part};
use super::segment::{BLOCK_BYTES, Directory};
use super::stream::{Progress, Stream};
use crate::clock;
use crate::config::SNAPSHOTS_PENDING_MAX;
use crate::disk::Buffer;
use crate::error::{Error, Result};
use crate::id::{SegmentId, SnapshotId, StateSlot};
use crate::state::{Chunk, Lost, PageEntry, Place, StateWriter};

/// Most parts of one worker being built, and most on their way to the disk.
pub const PARTS_MAX: usize = SNAPSHOTS_PENDING_MAX;

/// Segments of a size that may be needed beside twice the bytes that are state.
const SLACK_SEGMENTS: u64 = 4;

/// What became of a part.
#[derive(Debug)]
pub struct Written {
    /// Its snapshot.
    pub snapshot: SnapshotId,
    /// Where it is, or why it is not durable.
    pub result: Result<PartRef>,
    /// From its end until all of its pages were written and the disk was given its index, ns.
    pub write_ns: u64,
    /// From there until it was durable, as were all before it, ns.
    pub sync_ns: u64,
    /// Bytes written for it: pages and index.
    pub written_bytes: u64,
    /// Bytes of the pages in it that had changed.
    pub changed_bytes: u64,
}

/// Writes the parts of one worker.
pub struct PartWriter {
    stream: Stream,
    /// Parts that are appended to; the one that was begun last is the last.
    building: Vec<Part>,
    /// Finished parts, oldest first. Those whose index is with the disk come first.
    waiting: VecDeque<Waiting>,
    /// Results not handed out yet.
    finished: Vec<Written>,
    carried: Vec<Carried>,
    chain: Option<Chain>,
    planned: Planned,
    /// As of the last part that was finished.
    kept: BTreeMap<SegmentId, u64>,
    capacities: BTreeMap<SegmentId, u64>,
    appended_bytes: u64,
    /// Why something could not be written since the last index that was: for messages.
    failure: Option<String>,
}

/// The indices that are durable or with the disk, back to the base.
struct Chain {
    base: u64,
    newest: Link,
    /// Where they lie.
    segments: BTreeSet<SegmentId>,
}

/// The chain as it will be when all parts begun so far are durable.
#[derive(Default)]
struct Planned {
    /// Number of the last base.
    base: u64,
    /// Bases up to this one will not be durable.
    void: u64,
    links: u32,
    /// Pages listed since the base, and by it.
    entries: u64,
    mapped: u64,
}

struct Waiting {
    part: Part,
    /// What was handed over before it was finished.
    upto: u64,
    finished_ns: u64,
    index: Index,
    /// What it will be when the index is durable.
    reference: PartRef,
    written_bytes: u64,
    abandoned: bool,
}

/// How far the index of a part that waits is.
enum Index {
    /// The part has all that goes into it.
    Listed,
    /// It is being put together.
    Joining(Joining),
    /// It is put together.
    Whole(Buffer),
    /// The disk has it, since then.
    Sealing(u64),
}

impl Waiting {
    fn is_sealing(&self) -> bool {
        matches!(self.index, Index::Sealing(_))
    }
}

impl PartWriter {
    pub(super) fn new(directory: Arc<Directory>) -> Result<Self> {
        Ok(Self {
            stream: Stream::new(directory)?,
            building: Vec::with_capacity(PARTS_MAX),
            waiting: VecDeque::with_capacity(PARTS_MAX),
            finished: Vec::new(),
            carried: Vec::new(),
            chain: None,
            planned: Planned::default(),
            kept: BTreeMap::new(),
            capacities: BTreeMap::new(),
            appended_bytes: 0,
            failure: None,
        })
    }

    /// Starts the part of a snapshot, or goes on with one that is being built: what is handed over
    /// from now on belongs to it.
    ///
    /// # Panics
    /// If [`PARTS_MAX`] other parts are being built.
    pub fn begin(&mut self, snapshot: SnapshotId) {
        if let Some(at) = self.building.iter().position(|part| part.snapshot == snapshot) {
            let part = self.building.remove(at);
            self.building.push(part);
            return;
        }
        let others = self.building.len();
        assert!(others < PARTS_MAX, "snapshot {snapshot} begun while {others} are being built");
        let planned = &mut self.planned;
        let is_base = planned.base == planned.void
            || planned.links == LINKS_MAX
            || planned.entries > planned.mapped.max(64);
        if is_base {
            *planned = Planned { base: planned.base + 1, void: planned.void, ..Planned::default() };
        } else {
            planned.links += 1;
        }
        let mut part = Part::new(snapshot, is_base, planned.base);
        part.empties = self.sparse_segment();
        self.building.push(part);
    }

    /// The segment to be emptied, if more space is needed than what lies in it is worth: the one with the
    /// least in it (the log cleaning of Rosenblum and Ousterhout, SOSP 1991, by utilisation alone).
    fn sparse_segment(&mut self) -> Option<SegmentId> {
        let Self { kept, capacities, stream, .. } = self;
        capacities.retain(|segment, _| kept.contains_key(segment));
        for segment in kept.keys() {
            let capacity = || stream.directory().capacity_bytes(*segment);
            capacities.entry(*segment).or_insert_with(capacity);
        }
        let live_bytes: u64 = kept.values().sum();
        let needed_bytes: u64 = capacities.values().sum();
        if needed_bytes <= 2 * live_bytes + SLACK_SEGMENTS * stream.segment_bytes() {
            return None;
        }
        let closed = kept.iter().filter(|(segment, _)| !stream.is_open(**segment));
        let use_of = |segment, live: u64| live as f64 / capacities[segment].max(1) as f64;
        closed
            .map(|(segment, live)| (*segment, use_of(segment, *live)))
            .filter(|(_, used)| *used < 0.5)
            .min_by(|(_, a), (_, b)| a.total_cmp(b))
            .map(|(segment, _)| segment)
    }

    fn part(&mut self) -> &mut Part {
        self.building.last_mut().expect("a part was begun")
    }

    /// Ends the part begun last: what was handed over is all of it. Its index has to be [joined](Self::join) then;
    /// what becomes of it comes out of [`poll`](Self::poll).
    ///
    /// # Errors
    /// [`Error::Snapshot`]: it cannot become durable, for example because [`PARTS_MAX`] parts are on
    /// their way and the disk is too slow for the interval, or no room can be had. It is given up.
    ///
    /// # Panics
    /// If no part is being built.
    pub fn finish(&mut self) -> Result<()> {
        let part = self.building.pop().expect("a part was begun");
        debug_assert!(self.building.iter().all(|later| later.snapshot > part.snapshot));
        if let Some(reason) = self.obstacle(&part) {
            let snapshot = part.snapshot;
            self.give_up(part);
            return Err(Error::Snapshot { snapshot, reason });
        }
        if part.is_base {
            (self.planned.entries, self.planned.mapped) = (0, part.mapped);
        } else {
            self.planned.entries += part.entries;
        }
        self.kept.clone_from(&part.keeps);
        self.waiting.push_back(Waiting {
            upto: self.stream.end(),
            finished_ns: clock::now_ns(),
            index: Index::Listed,
            reference: PartRef::default(),
            written_bytes: part.chunk_bytes,
            abandoned: false,
            part,
        });
        self.start();
        Ok(())
    }

    fn obstacle(&self, part: &Part) -> Option<String> {
        if let Some(reason) = &part.failed {
            return Some(reason.clone());
        }
        if self.in_flight() >= PARTS_MAX {
            return Some(format!("{PARTS_MAX} earlier snapshots are still being written to disk"));
        }
        let is_void = part.base <= self.planned.void || self.stream.has_lost();
        is_void.then(|| self.baseless())
    }

    /// Why a snapshot fails whose base is not there.
    #[must_use]
    pub fn baseless(&self) -> String {
        match &self.failure {
            Some(reason) => format!("what it builds on could not be written: {reason}"),
            None => "what it builds on was given up".into(),
        }
    }

    /// Nothing will be heard of a part that is not finished. Its pages are still where they are; of one
    /// that failed some are and some are not, which only a base can list.
    fn give_up(&mut self, part: Part) {
        if part.is_base || part.failed.is_some() {
            self.planned.void = self.planned.void.max(part.base);
        }
        if part.failed.is_none() && part.entries > 0 {
            self.carried.push(part.into_carried());
        }
    }

    /// Parts that are durable, or failed, since the last call: the durable ones in their order, but one that
    /// failed may come before an earlier one that the disk still has.
    pub fn poll(&mut self) -> Vec<Written> {
        let Progress { sealed, failed } = self.stream.poll();
        (0..sealed).for_each(|_| self.sealed());
        if let Some(reason) = failed {
            self.fail(&reason);
        }
        self.start();
        mem::take(&mut self.finished)
    }

    /// What turned out not to be on disk, since this was asked last: to be told to the tables.
    pub fn take_lost(&mut self) -> Vec<Lost> {
        self.stream.take_lost()
    }

    /// Parts finished whose end [`poll`](Self::poll) has not returned.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.waiting.iter().filter(|waiting| !waiting.abandoned).count() + self.finished.len()
    }

    /// Whether an index is to be [joined](Self::join) or the disk is awaited, so that [`poll`](Self::poll) has
    /// something to do.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty() || !self.finished.is_empty() || !self.stream.is_idle()
    }

    /// Whether captured state should wait: the disk has enough to do.
    #[must_use]
    pub fn is_backlogged(&self) -> bool {
        self.stream.is_backlogged()
    }

    /// Whether [`Store::refill`](super::Store::refill) should be called soon.
    pub fn wants_segment(&mut self) -> bool {
        self.stream.wants_segment()
    }

    /// Whether [`join`](Self::join) has something to do.
    #[must_use]
    pub fn is_joining(&self) -> bool {
        let next = self.first_unsealed().map(|at| &self.waiting[at].index);
        matches!(next, Some(Index::Joining(_)))
    }

    /// The first finished part whose index the disk has not been given.
    fn first_unsealed(&self) -> Option<usize> {
        self.waiting.iter().position(|waiting| !waiting.is_sealing())
    }

    /// As [`Store::refill`](super::Store::refill), if it is only a file that is awaited.
    #[cfg(test)]
    pub(super) fn refill(&self) {
        if self.stream.is_idle() && !self.waiting.is_empty() && !self.is_joining() {
            self.stream.directory().refill();
        }
    }

    /// As [`Stream::sealing`].
    #[cfg(test)]
    pub(super) fn sealing(&self) -> usize {
        self.stream.sealing()
    }

    /// As [`Stream::with_disk`].
    #[cfg(test)]
    pub(super) fn with_disk(&self) -> usize {
        self.stream.with_disk()
    }

    /// Bytes of state handed over so far.
    #[must_use]
    pub fn appended_bytes(&self) -> u64 {
        self.appended_bytes
    }

    /// Forgets a snapshot wherever its part is; `poll` will not mention it. A part that is finished
    /// becomes durable all the same: later ones go on from it.
    pub fn abandon(&mut self, snapshot: SnapshotId) {
        if let Some(at) = self.building.iter().position(|part| part.snapshot == snapshot) {
            let part = self.building.remove(at);
            self.give_up(part);
        }
        for waiting in self.waiting.iter_mut().filter(|w| w.part.snapshot == snapshot) {
            waiting.abandoned = true;
        }
        self.finished.retain(|written| written.snapshot != snapshot);
    }

    /// Gives the disk the next indices if their time has come.
    fn start(&mut self) {
        while let Some(at) = self.first_unsealed() {
            let next = &mut self.waiting[at];
            let snapshot = next.part.snapshot;
            let result = match &mut next.index {
                Index::Sealing(_) => unreachable!("the disk has not been given it"),
                Index::Listed => {
                    let is_carrying =
                        self.carried.iter().any(|carried| carried.snapshot < snapshot);
                    if !next.part.is_empty() || is_carrying || self.chain.is_some() {
                        self.begin_index(at);
                        if !self.join_some(at, 0).1 {
                            return;
                        }
                        continue;
                    }
                    Ok(PartRef::default())
                }
                Index::Joining(_) => return,
                Index::Whole(index) => match self.stream.seal(snapshot, next.upto, index) {
                    Ok(None) => return,
                    Ok(Some(place)) => {
                        let PartRef { segment, offset, segments, .. } = &mut next.reference;
                        (*segment, *offset) = (place.segment.0, place.offset);
                        if !segments.contains(segment) {
                            segments.push(*segment);
                        }
                        next.index = Index::Sealing(clock::now_ns());
                        self.extend_chain(at);
                        continue;
                    }
                    Err(error) => Err(error.to_string()),
                },
            };
            let waiting = self.waiting.remove(at).expect("seen above");
            let (base, failed) = (waiting.part.base, result.as_ref().err().cloned());
            self.report(waiting, result);
            failed.into_iter().for_each(|reason| self.void(base, &reason));
        }
    }

    /// The next index goes on from this one, which the disk was given.
    fn extend_chain(&mut self, at: usize) {
        let Waiting { part, reference, .. } = &self.waiting[at];
        let newest = Link::of(reference, part.snapshot);
        let segment = SegmentId(newest.segment);
        match self.chain.as_mut().filter(|_| newest.links > 0) {
            Some(chain) => {
                debug_assert_eq!(chain.base, part.base, "an index goes on from its own base");
                chain.newest = newest;
                chain.segments.insert(segment);
            }
            None => {
                self.chain = Some(Chain { base: part.base, newest, segments: [segment].into() });
            }
        }
    }

    /// Puts some more of the next index together, some `budget_bytes` of it; how many that were.
    pub fn join(&mut self, budget_bytes: usize) -> usize {
        let Some(at) = self.first_unsealed().filter(|_| self.is_joining()) else { return 0 };
        let (bytes, is_whole) = self.join_some(at, budget_bytes);
        if is_whole {
            self.start();
        }
        bytes
    }

    /// As [`join`](Self::join), and whether the index is whole now.
    fn join_some(&mut self, at: usize, budget_bytes: usize) -> (usize, bool) {
        let next = &mut self.waiting[at];
        let Index::Joining(joining) = &mut next.index else { unreachable!("it was begun") };
        let (bytes, is_whole) = joining.step(budget_bytes);
        if !is_whole {
            return (bytes, false);
        }
        let Joining { out, crc32c, .. } = mem::take(joining);
        next.reference.bytes = out.len() as u64;
        next.reference.crc32c = crc32c;
        next.written_bytes += out.len().next_multiple_of(BLOCK_BYTES) as u64;
        next.index = Index::Whole(out);
        (bytes, true)
    }

    /// What the index of the next part consists of. One without a base and without an index to go on
    /// from is the first that is not empty: it lists all there is.
    fn begin_index(&mut self, at: usize) {
        let out = self.stream.buffer();
        let next = &mut self.waiting[at];
        let snapshot = next.part.snapshot;
        let carried = mem::take(&mut self.carried).into_iter();
        let (mut carried, later): (Vec<_>, _) = carried.partition(|c| c.snapshot < snapshot);
        self.carried = later;
        // Of two entries for the same hashes the later one counts, and parts are not given up in order.
        carried.sort_unstable_by_key(|carried| carried.snapshot);
        self.planned.entries += carried.iter().map(|carried| carried.entries).sum::<u64>();
        let chain = self.chain.as_ref().filter(|_| !next.part.is_base);
        let before = chain.map(|chain| chain.newest);
        let links = chain.map(|chain| &chain.segments).into_iter().flatten();
        let segments: BTreeSet<&SegmentId> = next.part.keeps.keys().chain(links).collect();
        next.reference = PartRef {
            links: before.map_or(0, |before| before.links + 1),
            segments: segments.into_iter().map(|segment| segment.0).collect(),
            page_bytes: next.part.keeps.values().sum(),
            ..PartRef::default()
        };
        let frames = next.part.take_index(before, carried);
        next.reference.frames = frames.count();
        next.index = Index::Joining(Joining::new(frames, out, BLOCK_BYTES));
    }

    /// The index of the first part is durable.
    fn sealed(&mut self) {
        let waiting = self.waiting.pop_front().expect("the part whose index was with the disk");
        if waiting.part.base > self.planned.void {
            self.failure = None;
        }
        let reference = waiting.reference.clone();
        self.report(waiting, Ok(reference));
    }

    fn report(&mut self, waiting: Waiting, result: Result<PartRef, String>) {
        let Waiting { part, finished_ns, index, written_bytes, abandoned, .. } = waiting;
        if abandoned {
            return;
        }
        let (snapshot, now_ns) = (part.snapshot, clock::now_ns());
        let sealing_ns = if let Index::Sealing(since_ns) = index { since_ns } else { now_ns };
        let result = result.map_err(|reason| Error::Snapshot { snapshot, reason });
        let (write_ns, sync_ns) = (sealing_ns - finished_ns, now_ns - sealing_ns);
        let changed_bytes = part.changed_bytes();
        let written = Written { snapshot, result, write_ns, sync_ns, written_bytes, changed_bytes };
        self.finished.push(written);
    }

    /// Parts that go on from this base or an earlier one cannot become durable, but for those whose
    /// index is with the disk.
    fn void(&mut self, base: u64, reason: &str) {
        self.planned.void = self.planned.void.max(base);
        self.failure = Some(reason.to_owned());
        for waiting in mem::take(&mut self.waiting) {
            if !waiting.is_sealing() && waiting.part.base <= base {
                self.report(waiting, Err(reason.to_owned()));
            } else {
                self.waiting.push_back(waiting);
            }
        }
    }

    /// The disk has failed.
    fn fail(&mut self, reason: &str) {
        self.planned.void = self.planned.base;
        self.failure = Some(reason.to_owned());
        for waiting in mem::take(&mut self.waiting) {
            self.report(waiting, Err(reason.to_owned()));
        }
        self.building.iter_mut().for_each(|part| part.failed = Some(reason.to_owned()));
        self.carried.clear();
        self.chain = None;
    }
}

impl StateWriter for PartWriter {
    fn enter(&mut self, operator: &str) {
        self.part().enter(operator);
    }

    fn write(&mut self, slot: StateSlot, schema: u32, bytes: &[u8]) {
        self.appended_bytes += bytes.len() as u64;
        self.part().piece(slot, schema, bytes);
    }

    fn pages(&mut self, schema: u32, chunk: &mut Chunk) -> Place {
        assert!(chunk.is_summed(), "pages without a checksum");
        let bytes = chunk.bytes.len() as u64;
        self.appended_bytes += bytes;
        let part = self.building.last_mut().expect("a part was begun");
        let place = match self.stream.push(part.snapshot, &mut chunk.bytes) {
            Ok(place) => place,
            Err(error) => {
                self.failure = Some(error.to_string());
                part.failed.get_or_insert(error.to_string());
                self.stream.push_nowhere(bytes as usize)
            }
        };
        part.chunk(schema, &chunk.pages, place, bytes);
        place
    }

    fn wants_map(&self) -> bool {
        self.building.last().expect("a part was begun").is_base
    }

    fn map(&mut self, schema: u32, entries: &[PageEntry]) {
        self.part().map(schema, entries);
    }

    fn keeps(&mut self, segment: SegmentId, bytes: u64) {
        *self.part().keeps.entry(segment).or_default() += bytes;
    }

    fn empties(&self) -> Option<SegmentId> {
        self.building.last().expect("a part was begun").empties
    }

    fn may_rewrite(&mut self, bytes: usize) -> bool {
        self.part().may_rewrite(bytes as u64)
    }
}
