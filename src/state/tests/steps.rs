//! How much one call of a drain does: a worker stands still for it.

use super::*;
use crate::config::{CAPTURE_DRAIN_BYTES_MAX, DRAIN_BYTES_MAX};
use crate::state::Chunk;
use crate::state::capture::{CLEAN, Capture, Pages};

/// Pages of one size, and what was done with them.
struct Counted {
    versions: Vec<u32>,
    bytes: usize,
    looks: std::cell::Cell<usize>,
    copied_bytes: usize,
}

impl Pages for Counted {
    fn version(&self, hash: u64) -> u32 {
        self.looks.update(|looks| looks + 1);
        self.versions[(hash >> 32) as usize]
    }

    fn stamp(&mut self, hash: u64, version: u32) {
        self.versions[(hash >> 32) as usize] = version;
    }

    fn copy(&mut self, hash: u64, chunk: &mut Chunk) -> Result<(), String> {
        chunk.push((hash >> 32) as u32, hash, 32, &vec![7; self.bytes]);
        self.copied_bytes += self.bytes;
        Ok(())
    }
}

struct Table {
    pages: Counted,
    capture: Capture,
    shelf: Shelf,
}

impl Table {
    fn new(count: usize, bytes: usize) -> Self {
        let versions = vec![CLEAN; count];
        let pages = Counted { versions, bytes, looks: 0.into(), copied_bytes: 0 };
        let mut shelf = Shelf::new();
        shelf.begin();
        Self { pages, capture: Capture::default(), shelf }
    }

    fn write_to_all(&mut self) {
        for page in 0..self.pages.versions.len() as u64 {
            if self.pages.versions[page as usize] != self.capture.version() {
                self.capture.protect(&mut self.pages, page << 32, page << 32);
            }
        }
    }

    /// Whether all is handed over; and how many pages it looked at, and copied bytes of.
    fn drain(&mut self, budget_bytes: usize) -> (bool, usize, usize) {
        self.pages.looks.set(0);
        self.pages.copied_bytes = 0;
        let drained = self.capture.drain(&mut self.pages, 1, budget_bytes, &mut self.shelf);
        let is_done = drained.unwrap() == Drained::Done;
        (is_done, self.pages.looks.get(), self.pages.copied_bytes)
    }

    /// Most pages that one call looked at until all was handed over, and most bytes it copied.
    fn drain_all(&mut self, budget_bytes: usize) -> (usize, usize) {
        let (mut looks, mut copied) = (0, 0);
        loop {
            let (is_done, looked, bytes) = self.drain(budget_bytes);
            (looks, copied) = (looks.max(looked), copied.max(bytes));
            if is_done {
                assert_eq!(self.shelf.finish().0.len(), self.pages.versions.len());
                self.shelf.begin();
                return (looks, copied);
            }
        }
    }
}

#[test]
fn pages_that_need_no_copy_are_passed_over_a_few_at_a_time() {
    let mut table = Table::new(20_000, 64);
    table.write_to_all();
    table.capture.mark();
    table.write_to_all();
    let (looks, _) = table.drain_all(DRAIN_BYTES_MAX);
    assert!((1..=8300).contains(&looks), "{looks} pages that writes had copied in one step");
}

#[test]
fn pages_that_are_written_again_come_a_few_at_a_time() {
    let mut table = Table::new(4000, 64);
    table.write_to_all();
    table.capture.mark();
    table.drain_all(DRAIN_BYTES_MAX);
    table.shelf.empties = true;
    table.capture.mark();
    let (_, copied) = table.drain_all(5000);
    assert!((1000..=5064).contains(&copied), "{copied} bytes in one step");
}

/// As with a thousand keys at every barrier of a snapshot each millisecond, on one worker.
#[test]
fn a_small_table_is_handed_over_at_the_next_barrier_though_writes_have_copied_it() {
    let mut table = Table::new(128, 384);
    table.write_to_all();
    for round in 0..50 {
        table.capture.mark();
        table.write_to_all();
        if round % 3 == 1 {
            table.capture.abandon(&mut table.pages);
            table.write_to_all();
            continue;
        }
        let (is_done, looks, _) = table.drain(CAPTURE_DRAIN_BYTES_MAX);
        assert!(is_done, "round {round}: {looks} pages were looked at, and not all");
        table.shelf.finish();
        table.shelf.begin();
    }
}
