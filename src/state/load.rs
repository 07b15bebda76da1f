//! Loading the pages of a restored table: on demand, and in the background.
//!
//! Owns what is still on disk only and in which order it is read. A page that is asked for before it
//! is there is read at once, like a page fault; the others come in the order they lie on disk, several
//! with one read, in steps the caller asks for.
//!
//! Invariants
//! - A page is read at most once, straight into the memory it stays in.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::sync::Arc;

use super::exchange::{PageEntry, PageSource, Place};
use super::page::{HEADER_BYTES, Incoming, PAGE_ALIGN};
use crate::error::Error;

/// Pages read at once: with the gaps between them below the system's bound of 1024 pieces.
const PAGES_PER_READ: usize = 256;

/// A page that was read.
pub(super) struct Read {
    /// The table's number of it.
    pub id: u32,
    /// What the index says of it.
    pub entry: PageEntry,
    /// Its bytes, not looked at yet.
    pub incoming: Incoming,
}

impl Read {
    fn into(id: u32, entry: PageEntry) -> Self {
        Self { id, entry, incoming: Incoming::new(entry.bytes as usize) }
    }
}

/// Pages that are on disk only.
pub(super) struct Unloaded {
    /// Number and place by first hash.
    pages: BTreeMap<u64, (u32, PageEntry)>,
    /// First hashes in the order of places, the last first.
    order: Vec<u64>,
    source: Arc<dyn PageSource>,
}

impl Unloaded {
    /// Pages with their numbers.
    pub fn new(pages: &[(u32, PageEntry)], source: Arc<dyn PageSource>) -> Self {
        let mut order: Vec<_> = pages.iter().map(|(_, page)| (page.place, page.prefix)).collect();
        order.sort_unstable_by(|a, b| b.cmp(a));
        Self {
            pages: pages.iter().map(|page| (page.1.prefix, *page)).collect(),
            order: order.into_iter().map(|(_, prefix)| prefix).collect(),
            source,
        }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Reads the page that `hash` belongs to.
    pub fn fault(&mut self, hash: u64) -> Result<Read, Error> {
        let (prefix, page) = self.pages.range(..=hash).next_back().expect("it is not loaded");
        let (prefix, (id, entry)) = (*prefix, *page);
        self.check(&entry)?;
        let mut read = Read::into(id, entry);
        self.source.read(entry.place, &mut [IoSliceMut::new(read.incoming.bytes_mut())])?;
        self.pages.remove(&prefix);
        Ok(read)
    }

    /// Reads the next pages that lie one behind the other, about `budget_bytes` of them; none if
    /// nothing is left.
    pub fn next(&mut self, budget_bytes: usize) -> Result<Vec<Read>, Error> {
        let (mut run, mut bytes) = (Vec::<Read>::new(), 0);
        while let Some(prefix) = self.order.last() {
            let Some((id, entry)) = self.pages.get(prefix).copied() else {
                self.order.pop(); // it was asked for
                continue;
            };
            let is_next = run.last().is_none_or(|last| behind(&last.entry) == entry.place);
            if !is_next || run.len() == PAGES_PER_READ || bytes >= budget_bytes {
                break;
            }
            self.check(&entry)?;
            self.order.pop();
            bytes += entry.bytes as usize;
            run.push(Read::into(id, entry));
        }
        self.fill(&mut run)?;
        run.iter().for_each(|read| _ = self.pages.remove(&read.entry.prefix));
        Ok(run)
    }

    /// Reads a run of pages into their memory, and the zeros between them into nowhere.
    fn fill(&self, run: &mut [Read]) -> Result<(), Error> {
        let Some(place) = run.first().map(|read| read.entry.place) else { return Ok(()) };
        let (mut gaps, last) = (vec![[0; PAGE_ALIGN]; run.len()], run.len() - 1);
        let mut memory = Vec::with_capacity(2 * run.len());
        for (index, (read, gap)) in run.iter_mut().zip(&mut gaps).enumerate() {
            let bytes = read.entry.bytes as usize;
            memory.push(IoSliceMut::new(read.incoming.bytes_mut()));
            let gap = &mut gap[..bytes.next_multiple_of(PAGE_ALIGN) - bytes];
            if index < last && !gap.is_empty() {
                memory.push(IoSliceMut::new(gap));
            }
        }
        self.source.read(place, &mut memory)
    }

    fn check(&self, entry: &PageEntry) -> Result<(), Error> {
        if entry.bytes as usize >= HEADER_BYTES {
            return Ok(());
        }
        Err(self.corrupt(entry, format!("a page of {} bytes", entry.bytes)))
    }

    /// The error for a page that is not what it should be.
    pub fn corrupt(&self, entry: &PageEntry, reason: String) -> Error {
        self.source.corrupt(entry.place, reason)
    }
}

/// Where a page would lie that follows `page` in its chunk.
fn behind(page: &PageEntry) -> Place {
    let bytes = u64::from(page.bytes).next_multiple_of(PAGE_ALIGN as u64);
    Place { offset: page.place.offset + bytes, ..page.place }
}
