//! Incremental parts: every snapshot that was committed is found whole through its links.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::*;

/// Chances that a seed decides.
pub(super) struct Random {
    seed: u64,
    drawn: u64,
}

impl Random {
    pub(super) fn below(&mut self, bound: u32) -> u32 {
        self.drawn += 1;
        (xxh3_64_with_seed(&self.drawn.to_le_bytes(), self.seed) % u64::from(bound)) as u32
    }
}

/// One worker with a table of pages, driven at random against a copy of the pages as of each committed
/// snapshot.
pub(super) struct Run {
    pub(super) disk: MemoryDisk,
    pub(super) running: Running,
    pub(super) random: Random,
    pub(super) story: String,
    pub(super) committed: Vec<(SnapshotId, Book)>,
    last: SnapshotId,
}

pub(super) fn small(seed: u64) -> Run {
    let disk = MemoryDisk::new(seed);
    let limits = StoreLimits {
        retention: 2,
        segment_bytes: 32 << 10,
        segment_bytes_max: 128 << 10,
        verify_pages: false,
    };
    let opened = Store::open_with(shared(&disk), Path::new(DIR), &job(), limits).unwrap();
    let mut running = Running::start(opened.store).unwrap();
    running.writers.truncate(1);
    running.books.truncate(1);
    let random = Random { seed, drawn: 0 };
    Run {
        disk,
        running,
        random,
        story: format!("seed {seed}"),
        committed: Vec::new(),
        last: SnapshotId(0),
    }
}

impl Run {
    /// An id above all that were used.
    pub(super) fn next(&mut self) -> SnapshotId {
        self.last = self.running.store.next_snapshot().max(self.last.next());
        self.last
    }

    pub(super) fn change_some(&mut self, most: u32) {
        for _ in 0..self.random.below(most + 1) {
            let page = self.random.below(60).min(self.random.below(60));
            let length = 1 + self.random.below(750) as usize;
            let bytes = self.random.below(u32::MAX).to_le_bytes().repeat(length);
            self.running.books[0].change(page, &bytes);
        }
    }

    pub(super) fn begin(&mut self, id: SnapshotId) {
        let writer = &mut self.running.writers[0];
        writer.begin(id);
        writer.enter("offsets");
        writer.write(StateSlot::Task(0), 1, &id.0.to_le_bytes());
        self.running.books[0].write(writer);
    }

    pub(super) fn commit(&mut self, id: SnapshotId, part: PartRef, pages: Book) {
        let manifest = self.running.manifest(id, vec![part]);
        self.running.store.commit(&manifest).unwrap();
        self.running.store.collect().unwrap();
        self.committed.push((id, pages));
    }

    /// Every snapshot that is kept is what it was.
    fn check(&mut self) {
        let infos = list(&self.disk, Path::new(DIR)).unwrap();
        assert!(!infos.is_empty());
        for info in infos {
            let manifest = info.manifest.expect("nothing is damaged");
            let (_, pages) = self
                .committed
                .iter()
                .find(|(id, _)| *id == manifest.id())
                .expect("only what was committed");
            let loaded = self.running.store.load(&manifest);
            let loaded = loaded.unwrap_or_else(|error| panic!("{}: {error}", self.story));
            pages.check(&loaded, &format!("{}, snapshot {}", self.story, manifest.snapshot));
        }
    }
}

#[test]
fn every_snapshot_is_found_whole_through_more_links_than_there_may_be() {
    let mut run = small(1);
    let mut links = 0;
    for n in 0..300 {
        run.change_some(1);
        let id = run.next();
        run.begin(id);
        run.running.writers[0].finish().unwrap();
        let part = wait(&mut run.running.writers[0]).remove(0).result.unwrap();
        links = links.max(part.links);
        let pages = run.running.books[0].clone();
        run.commit(id, part, pages);
        if n % 10 == 0 {
            run.check();
        }
    }
    assert_eq!(links, LINKS_MAX);
    run.check();
}

/// What is given up at any point, what overlaps, and what fails: random, against the pages of old.
#[test]
fn snapshots_given_up_and_writes_that_fail_leave_no_trace_in_later_ones() {
    let (mut failures, mut given_up, mut overlapped) = (0, 0, 0);
    for seed in 0..150 {
        let mut run = small(seed);
        for _ in 0..40 {
            run.change_some(8);
            let id = run.next();
            let fate = run.random.below(10);
            if fate == 3 {
                run.disk.set_faults(Faults { capacity_bytes: Some(0), ..Faults::default() });
            }
            run.begin(id);
            if fate == 0 {
                run.running.writers[0].abandon(id);
                given_up += 1;
                continue;
            }
            let pages = run.running.books[0].clone();
            if fate == 1 {
                let faults = Faults { sync_error: 5_000, write_error: 3_000, ..Faults::default() };
                run.disk.set_faults(faults);
            }
            let finished = run.running.writers[0].finish();
            let second = (fate > 5 && finished.is_ok()).then(|| {
                overlapped += 1;
                run.change_some(8);
                let second = run.next();
                run.begin(second);
                let pages = run.running.books[0].clone();
                (second, pages, run.running.writers[0].finish())
            });
            if fate == 2 {
                run.running.writers[0].abandon(id);
                given_up += 1;
            }
            let written = wait(&mut run.running.writers[0]);
            run.disk.set_faults(Faults::default());
            let lost = run.running.writers[0].take_lost();
            run.running.books[0].lose(&lost);
            failures += u32::from(!lost.is_empty());
            for Written { snapshot, result, .. } in written {
                let Ok(part) = result else { continue };
                if snapshot == id {
                    run.commit(id, part, pages.clone());
                } else if let Some((second, pages, Ok(()))) = &second {
                    run.commit(*second, part, pages.clone());
                }
            }
            run.running.store.collect().unwrap();
        }
        if !run.committed.is_empty() {
            run.check();
        }
    }
    assert!(
        failures > 50 && given_up > 200 && overlapped > 500,
        "{failures} {given_up} {overlapped}"
    );
}

/// What the second had of a page that both have was then taken for older than what the first had.
#[test]
fn of_two_parts_given_up_the_later_counts_though_it_was_given_up_first() {
    let mut run = small(5);
    run.running.books[0].change(3, b"a base");
    let base = run.next();
    run.begin(base);
    run.running.writers[0].finish().unwrap();
    let part = wait(&mut run.running.writers[0]).remove(0).result.unwrap();
    let pages = run.running.books[0].clone();
    run.commit(base, part, pages);
    let mut begun = Vec::new();
    for content in [b"one", b"two"] {
        run.running.books[0].change(1, content);
        begun.push(run.next());
        run.begin(begun[begun.len() - 1]);
    }
    run.running.books[0].change(2, b"else");
    let last = run.next();
    run.begin(last);
    begun.into_iter().rev().for_each(|id| run.running.writers[0].abandon(id));
    run.running.writers[0].finish().unwrap();
    let part = wait(&mut run.running.writers[0]).remove(0).result.unwrap();
    let pages = run.running.books[0].clone();
    run.commit(last, part, pages);
    run.check();
}

/// The second chunk of a snapshot had no room. The pages of the first were taken for written, and
/// listed nowhere: a later snapshot had them as they were before.
#[test]
fn what_a_part_that_failed_has_written_is_listed_by_the_next_one() {
    let mut run = small(6);
    // Afterwards there is room for all, also where the file that could not be made was to be.
    for round in 0..9_u8 {
        let id = run.next();
        let (pages, has_room) = if round == 2 { (62..63, true) } else { (0..60, round != 1) };
        for page in pages {
            run.running.books[0].change(page, &[round + 1; 6000]);
        }
        if !has_room {
            run.disk.set_faults(Faults { capacity_bytes: Some(0), ..Faults::default() });
        }
        run.begin(id);
        let finished = run.running.writers[0].finish();
        assert_eq!(finished.is_ok(), has_room);
        let written = wait(&mut run.running.writers[0]);
        run.disk.set_faults(Faults::default());
        let lost = run.running.writers[0].take_lost();
        run.running.books[0].lose(&lost);
        for Written { result, .. } in written {
            let pages = run.running.books[0].clone();
            run.commit(id, result.unwrap(), pages);
        }
        if round != 1 {
            run.check();
            // Nor is a file that could not be made taken for one with room.
            for name in run.disk.list(Path::new(DIR)).unwrap() {
                let bytes = run.disk.len(&Path::new(DIR).join(&name)).unwrap();
                assert!(!name.starts_with("segment") || bytes >= 32 << 10, "{name}: {bytes} bytes");
            }
        }
    }
}

#[test]
fn space_is_bounded_by_what_lies_in_it() {
    let mut run = small(3);
    // Pages that are written once and stay, beside one that always changes.
    for page in 0..60 {
        run.running.books[0].change(page, &[page as u8; 2000]);
    }
    let mut most = 0;
    for n in 0..400_u32 {
        run.running.books[0].change(n % 7, &n.to_le_bytes().repeat(500));
        if n % 20 == 0 {
            run.running.books[0].change(n / 20 % 60, &[n as u8; 2000]);
        }
        let id = run.next();
        run.begin(id);
        run.running.writers[0].finish().unwrap();
        let part = wait(&mut run.running.writers[0]).remove(0).result.unwrap();
        let pages = run.running.books[0].clone();
        run.commit(id, part, pages);
        let segments = run.disk.list(Path::new(DIR)).unwrap();
        let sizes = segments.iter().filter(|name| name.starts_with("segment"));
        let bytes: u64 = sizes.map(|name| run.disk.len(&Path::new(DIR).join(name)).unwrap()).sum();
        most = most.max(bytes);
    }
    // 120 KB of pages and indices in segments of 128 KiB.
    assert!(most <= 14 * (128 << 10), "{most} bytes");
    run.check();
}
