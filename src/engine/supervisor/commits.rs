//! Commits that are under way: carried out at once or beside the supervisor, and ended in their order.
//!
//! A commit is a write and a flush. Where it takes a small part of the interval, the supervisor waits for it: to
//! hand it over would cost two changes of threads. Where it takes longer, whoever waits triggers late, and one commit
//! behind the other bounds the cadence: then each gets a thread, and as many are with the disk as it takes for one of
//! them.
//!
//! Invariants
//! - Commits end in the order in which they began: one that is durable before an earlier one waits for what becomes
//!   of that.
//! - What was begun has ended, or will never be written, when this is dropped or [cleared](Commits::clear): the
//!   directory may be given up then.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::Sender;

use super::{Supervisor, schema};
use crate::clock;
use crate::coordinator::Action;
use crate::engine::committers::Committers;
use crate::error::{Error, Result};
use crate::id::SnapshotId;
use crate::phases::Phases;
use crate::store::{Commit, Committed, MANIFEST_FORMAT, Manifest};
use crate::worker::{Event, Share};

/// A commit that takes less than one part in so many of the interval is waited for.
const PARTS_OF_INTERVAL: u64 = 4;

/// A snapshot that every worker has acked.
pub(super) struct Decided {
    pub snapshot: SnapshotId,
    pub shares: Vec<Share>,
    pub last: bool,
    pub triggered_ns: u64,
}

/// One that was begun.
pub(super) struct UnderWay {
    pub manifest: Manifest,
    pub phases: Phases,
    /// By the clock, ns.
    pub began_ns: u64,
    /// Whether the supervisor waited for it.
    pub at_once: bool,
}

/// See the module's documentation.
pub(super) struct Commits {
    /// Oldest first, each with what came of it.
    under_way: VecDeque<(UnderWay, Option<Committed>)>,
    carried_out: CarriedOut,
    /// Above this they are slow, ns.
    quick_ns: u64,
    /// How long the last one took, ns.
    last_ns: u64,
}

enum CarriedOut {
    AtOnce,
    /// At once as long as that is quick.
    Beside(Committers),
    /// When the driver says so.
    Held(Vec<Commit>, Sender<Event>),
}

impl Commits {
    /// Carries them out at once, with snapshots each `interval_ns`.
    pub fn new(interval_ns: u64) -> Self {
        let quick_ns = interval_ns / PARTS_OF_INTERVAL;
        Self { under_way: VecDeque::new(), carried_out: CarriedOut::AtOnce, quick_ns, last_ns: 0 }
    }

    /// From now on slow ones go to threads, which tell `events`.
    pub fn start_threads(&mut self, events: Sender<Event>) {
        self.carried_out = CarriedOut::Beside(Committers::new(events));
    }

    /// From now on they are carried out by [`carry_out`](Self::carry_out) only, which tells `events`.
    pub fn hold(&mut self, events: Sender<Event>) {
        self.carried_out = CarriedOut::Held(Vec::new(), events);
    }

    /// Carries out one of those that are held, the `nth` modulo how many there are.
    pub fn carry_out(&mut self, nth: usize) {
        let CarriedOut::Held(held, events) = &mut self.carried_out else { return };
        if let Some(index) = nth.checked_rem(held.len()) {
            let committed = held.remove(index).run();
            _ = events.send(Event::Committed { committed, took_ns: 0 });
        }
    }

    /// Takes a commit that was begun.
    pub fn take(&mut self, commit: Commit, under_way: UnderWay) {
        let committed = self.hand_over(commit).map(|commit| {
            let began_ns = clock::now_ns();
            let committed = commit.run();
            self.last_ns = clock::now_ns() - began_ns;
            committed
        });
        let at_once = committed.is_some();
        self.under_way.push_back((UnderWay { at_once, ..under_way }, committed));
    }

    /// Gives a commit to whoever carries it out; back, if that is to be done at once.
    fn hand_over(&mut self, commit: Commit) -> Option<Commit> {
        let others = self.under_way.len();
        match &mut self.carried_out {
            CarriedOut::Held(held, _) => held.push(commit),
            CarriedOut::Beside(committers) => {
                let is_quick = self.last_ns <= self.quick_ns && others == 0;
                if is_quick || committers.grow(others + 1).is_err() {
                    return Some(commit);
                }
                committers.give(commit);
            }
            CarriedOut::AtOnce => return Some(commit),
        }
        None
    }

    /// One that was carried out elsewhere has come to this. What was given up by then is passed over.
    pub fn ended(&mut self, committed: Committed, took_ns: u64) {
        self.last_ns = took_ns;
        let snapshot = committed.snapshot();
        let is_it = |under_way: &UnderWay| under_way.manifest.id() == snapshot;
        if let Some((_, end)) = self.under_way.iter_mut().find(|(under_way, _)| is_it(under_way)) {
            *end = Some(committed);
        }
    }

    /// The oldest, if it is known what came of it.
    pub fn next_ended(&mut self) -> Option<(UnderWay, Committed)> {
        let (under_way, committed) = self.under_way.pop_front_if(|(_, end)| end.is_some())?;
        Some((under_way, committed.expect("just seen")))
    }

    /// Waits for those that are carried out, and forgets all.
    pub fn clear(&mut self) {
        match &mut self.carried_out {
            CarriedOut::AtOnce => {}
            CarriedOut::Beside(committers) => committers.stop(),
            CarriedOut::Held(held, _) => held.clear(),
        }
        self.under_way.clear();
    }
}

/// What a manifest says of how its snapshot was taken. It cannot say how long its own commit took.
fn notes_of(phases: &Phases, durable_parts_ns: u64) -> BTreeMap<String, u64> {
    let named = phases.named().into_iter().filter(|(name, _)| *name != "commit_ns");
    let total = ("trigger_to_durable_parts_ns", durable_parts_ns);
    named.chain([total]).map(|(name, value)| (name.to_owned(), value)).collect()
}

impl Supervisor<'_> {
    /// From now on commits that take long are written beside this.
    pub fn commit_beside(&mut self) {
        self.commits.start_threads(self.events.0.clone());
    }

    /// From now on manifests are written by [`carry_out`](Self::carry_out) only.
    pub fn hold_commits(&mut self) {
        self.commits.hold(self.events.0.clone());
    }

    /// Writes one of the manifests that are held.
    pub fn carry_out(&mut self, nth: usize) {
        self.commits.carry_out(nth);
    }

    /// Decides by `now_ns` only, which is the driver's time; the clock measures what it took.
    pub(super) fn commit(&mut self, decided: Decided, now_ns: u64) -> Vec<Action<Share>> {
        let Decided { snapshot, shares, last, triggered_ns } = decided;
        let phases = shares.iter().map(|share| share.phases);
        let phases = phases.reduce(Phases::joined).unwrap_or_default();
        let parts = shares.into_iter().map(|share| share.part).collect();
        let began_ns = clock::now_ns();
        let store = self.store.as_mut().expect("there are snapshots");
        let manifest = Manifest {
            format: MANIFEST_FORMAT,
            snapshot: snapshot.0,
            generation: store.generation(),
            attempt: self.attempt.0,
            created_unix_ms: clock::unix_ms(),
            job: self.identity.clone(),
            last,
            unread_since: self.unread_since.filter(|_| !self.loading.is_empty()),
            operators: schema::entries(self.graph),
            parts,
            notes: notes_of(&phases, now_ns.saturating_sub(triggered_ns)),
        };
        match store.begin_commit(&manifest) {
            Ok(commit) => {
                self.commits.take(commit, UnderWay { manifest, phases, began_ns, at_once: false });
                self.end_commits(now_ns)
            }
            Err(error) => {
                self.stop(error);
                Vec::new()
            }
        }
    }

    pub(super) fn end_commits(&mut self, now_ns: u64) -> Vec<Action<Share>> {
        let mut actions = Vec::new();
        while let Some((under_way, committed)) = self.commits.next_ended() {
            let store = self.store.as_mut().expect("a commit under way keeps it");
            let result = store.end_commit(committed);
            actions.extend(self.end_commit(under_way, result, now_ns));
        }
        actions
    }

    fn end_commit(
        &mut self,
        under_way: UnderWay,
        result: Result<()>,
        now_ns: u64,
    ) -> Vec<Action<Share>> {
        let UnderWay { manifest, mut phases, began_ns, at_once } = under_way;
        let snapshot = manifest.id();
        match result {
            Ok(()) => {
                self.newest = Some(manifest);
                phases.commit_ns = clock::now_ns() - began_ns;
                self.report.phases.record(&phases);
                let mut actions = self.coordinator.committed(snapshot, now_ns);
                if let Some(Action::Complete { duration_ns, .. }) = actions.first_mut() {
                    // It was not over yet when this turn began.
                    *duration_ns += if at_once { phases.commit_ns } else { 0 };
                }
                // A failed collection leaves files behind that the next one finds.
                _ = self.store.as_mut().expect("there are snapshots").collect();
                actions
            }
            Err(Error::Snapshot { reason, .. }) => {
                self.coordinator.failed(snapshot, self.attempt, reason, now_ns)
            }
            Err(error) => {
                // Whether the manifest is durable is not known, so sinks may neither commit nor
                // give up: only a restore from what the directory then holds can tell.
                self.stop(error);
                Vec::new()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    use super::*;
    use crate::disk::MemoryDisk;
    use crate::store::{JobIdentity, MANIFEST_FORMAT, Store};

    fn store() -> Store {
        let job = JobIdentity { name: "commits".into(), fingerprint: String::new() };
        let disk = Arc::new(MemoryDisk::new(1));
        Store::open(disk, Path::new("/snapshots"), &job, 3).expect("a new directory").store
    }

    /// Begins a commit of the next snapshot and hands it over.
    fn take(commits: &mut Commits, store: &mut Store) -> u64 {
        let manifest = Manifest {
            format: MANIFEST_FORMAT,
            snapshot: store.next_snapshot().0,
            generation: store.generation(),
            attempt: 1,
            created_unix_ms: 0,
            job: JobIdentity { name: "commits".into(), fingerprint: String::new() },
            last: false,
            unread_since: None,
            operators: Vec::new(),
            parts: Vec::new(),
            notes: BTreeMap::new(),
        };
        let snapshot = manifest.snapshot;
        let commit = store.begin_commit(&manifest).expect("nothing is in doubt");
        let phases = Phases::default();
        commits.take(commit, UnderWay { manifest, phases, began_ns: 0, at_once: false });
        snapshot
    }

    /// What has ended by now, and whether it had been waited for.
    fn ended(commits: &mut Commits, store: &mut Store) -> Vec<(u64, bool)> {
        let ended = std::iter::from_fn(|| commits.next_ended());
        let ended = ended.map(|(under_way, committed)| {
            store.end_commit(committed).expect("it is durable");
            (under_way.manifest.snapshot, under_way.at_once)
        });
        ended.collect()
    }

    fn hear(commits: &mut Commits, event: Event) {
        let Event::Committed { committed, took_ns } = event else { panic!("{event:?}") };
        commits.ended(committed, took_ns);
    }

    #[test]
    fn one_that_is_durable_before_an_earlier_one_ends_behind_it() {
        let (mut commits, mut store) = (Commits::new(1_000_000), store());
        let (sender, events) = channel();
        commits.hold(sender);
        let [first, second] = [(); 2].map(|()| take(&mut commits, &mut store));
        commits.carry_out(3);
        hear(&mut commits, events.recv().expect("one"));
        assert_eq!(ended(&mut commits, &mut store), []);
        commits.carry_out(3);
        hear(&mut commits, events.recv().expect("the other"));
        assert_eq!(ended(&mut commits, &mut store), [(first, false), (second, false)]);
    }

    #[test]
    fn quick_ones_are_waited_for_and_slow_ones_go_to_threads_side_by_side() {
        let (mut commits, mut store) = (Commits::new(1 << 40), store());
        let (sender, events) = channel();
        commits.start_threads(sender);
        let first = take(&mut commits, &mut store);
        assert_eq!(ended(&mut commits, &mut store), [(first, true)]);
        commits.last_ns = 1 << 40;
        let slow: Vec<u64> = (0..3).map(|_| take(&mut commits, &mut store)).collect();
        let mut found = Vec::new();
        while found.len() < 3 {
            hear(&mut commits, events.recv().expect("each is told"));
            found.extend(ended(&mut commits, &mut store));
        }
        assert_eq!(found, slow.iter().map(|id| (*id, false)).collect::<Vec<_>>());
        let last = take(&mut commits, &mut store);
        assert_eq!(ended(&mut commits, &mut store), [(last, true)], "they are quick again");
    }

    #[test]
    fn what_is_under_way_when_it_is_cleared_was_written_and_its_end_is_passed_over() {
        let (mut commits, mut store) = (Commits::new(4), store());
        let (sender, events) = channel();
        commits.start_threads(sender);
        commits.last_ns = 5;
        take(&mut commits, &mut store);
        commits.clear();
        hear(&mut commits, events.try_recv().expect("cleared, it has ended"));
        assert_eq!(ended(&mut commits, &mut store), []);
    }
}
