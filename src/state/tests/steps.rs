//! How much one call of a drain looks at: a worker stands still for it.

use super::*;
use crate::config::DRAIN_BYTES_MAX;
use crate::state::Chunk;
use crate::state::capture::{CLEAN, Capture, Pages};

const PAGES: u64 = 20_000;

/// Pages of 64 bytes, and how often one was looked at.
struct Counted {
    versions: Vec<u32>,
    looks: std::cell::Cell<usize>,
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
        chunk.push((hash >> 32) as u32, hash, 32, &[7; 64]);
        Ok(())
    }
}

/// Most pages that one call looked at until all was handed over.
fn drain(capture: &mut Capture, pages: &mut Counted, shelf: &mut Shelf) -> usize {
    let mut most = 0;
    loop {
        pages.looks.set(0);
        let drained = capture.drain(pages, 1, DRAIN_BYTES_MAX, shelf).unwrap();
        most = most.max(pages.looks.get());
        if drained == Drained::Done {
            return most;
        }
    }
}

#[test]
fn pages_that_need_no_copy_are_passed_over_a_few_at_a_time() {
    let mut pages = Counted { versions: vec![CLEAN; PAGES as usize], looks: 0.into() };
    let (mut capture, mut shelf) = (Capture::default(), Shelf::new());
    shelf.begin();
    for page in 0..PAGES {
        capture.protect(&mut pages, page << 32, page << 32);
    }
    capture.mark();
    for page in 0..PAGES {
        capture.protect(&mut pages, page << 32, page << 32);
    }
    let most = drain(&mut capture, &mut pages, &mut shelf);
    assert!((1..=1000).contains(&most), "{most} pages that writes had copied in one step");
    assert_eq!(shelf.finish().0.len() as u64, PAGES);
}
