//! Operator state in place: what a task knows, captured in O(1) and written behind.
//!
//! Owns the tables and values operators keep, and how one version of them is held still while it is
//! written. Knows nothing of barriers, files or threads: a mark comes from outside, bytes go to a
//! [`StateWriter`].
//!
//! Invariants
//! - [`OperatorState::mark`] costs the same whatever the size of the state.
//! - What [`OperatorState::drain`] writes is the state as of the mark, whatever was updated, removed,
//!   grown or split meanwhile; and the same marked state is the same bytes however drains and
//!   updates interleave.
//! - After [`Drained::Done`] or [`OperatorState::abandon`] nothing is preserved.
//! - A piece that is given back is checked completely before any of it is used: hostile bytes are
//!   an error, never a panic.
//!
//! # Which table a key and a value get
//! | key | value | kept as |
//! |---|---|---|
//! | plain (numbers, arrays, structs of such without padding), or a byte string (`String`, `Vec<u8>`, `SmallVec<[u8; N]>`, any [`Key::BYTES`](crate::key::Key::BYTES)) | plain | `paged`: open-addressed pages whose memory is what goes to disk |
//! | anything else | anything else | `native`: one hash table of native values per key group, serialised with rkyv |
//!
//! "Plain" is rkyv's copy optimisation, and tuples of equally wide numbers (see `plain`). An update of native
//! values takes five times as long, and writing one forty times (`perf/0004-snapshots.md`): a value of fixed
//! size is worth some thought.
//!
//! Each is written with its [`Schema`]: how it is laid out, and the user's version of it. Pages of an
//! older version are turned into this one's by a [`Migration`] before a record is read.
//!
//! # Why copy on first write
//! A captured version must survive in-place updates until it is written. Published ways, and what an
//! update costs with each, as a multiple of one without capture: a million records of 16 bytes, one
//! thread, a capture every million updates and every 131,072 (`perf/0005-capture.md`):
//! - *Copying all at the mark*: 1.2 and 2.7, but it stops for 3.5 ms, and for 15 ms at four times the
//!   size.
//! - *Copy on update*, a page as the unit: 1.3 and 3.1. Between snapshots an update costs one comparison;
//!   one `memcpy` serves some hundred entries, and is the write to disk as well. The price is that the
//!   first updates after a mark all copy: a batch of 1,024 then takes 1 ms instead of 0.07.
//! - *CALC* (Ren et al., SIGMOD 2016), a stable copy per *record*: 1.6 and 4.9. It holds two copies all
//!   the time and writes everything; its virtual points of consistency a barrier gives us for nothing.
//! - *CPR* (Prasaad et al., SIGMOD 2019) moves threads through versions one by one; with one thread per
//!   table the move is one assignment, and what is left is copy on update per record: 5.4 and 7.2. It
//!   writes the least.
//! - *Zigzag*, *Ping-Pong* (Cao et al., SIGMOD 2011) keep two or three copies of everything and touch a
//!   bit or a second copy on *every* update, snapshot or not: 3.8 and 6.2, 2.9 and 4.6.

mod capture;
mod directory;
mod exchange;
mod keyed;
mod ledger;
mod load;
mod memory;
mod migrate;
mod native;
mod page;
mod paged;
mod plain;
mod restore;
mod schema;
mod slot;
#[cfg(test)]
pub(crate) mod tests;
mod tiles;
mod value;

pub use exchange::{CHUNK_BYTES, Chunk, ChunkPage, PageEntry, PageSource, Place};
pub use keyed::{Cursor, KeyedTable};
pub use ledger::Lost;
pub use migrate::{Evolution, Migration};
pub use schema::{Declared, Layout, Refusal, Schema, StateTypes, TypeName, VERSION_MAX};
pub use value::ValueState;

use std::sync::Arc;

use crate::error::Error;
use crate::id::{SegmentId, SnapshotId, StateSlot};

/// The interface of everything that is part of a snapshot.
pub trait OperatorState: Send {
    /// From here on writes belong to the next snapshot; the version as of now is what
    /// [`drain`](Self::drain) writes. O(1). At most one mark is open at a time.
    fn mark(&mut self, snapshot: SnapshotId);

    /// Hands about `budget_bytes` of the marked version to `out`, at least one step of it.
    ///
    /// # Errors
    /// The version cannot be written (a value does not serialise): the snapshot fails.
    fn drain(&mut self, budget_bytes: usize, out: &mut dyn StateWriter) -> Result<Drained, Error>;

    /// The marked snapshot is aborted: forget what is preserved. What was handed over may still
    /// become durable, and counts as such until [`lost`](Self::lost) says otherwise.
    fn abandon(&mut self);

    /// What was handed over to lie there will not be read from there: it has to be handed over
    /// again with the next mark. No mark is open.
    fn lost(&mut self, lost: &[Lost]) {
        _ = lost;
    }

    /// Takes one piece back, before any update.
    ///
    /// # Errors
    /// What is wrong with the piece. The state is then partly restored and not to be used.
    fn restore(&mut self, slot: StateSlot, schema: u32, bytes: &[u8]) -> Result<(), String> {
        Err(format!("{slot:?} of schema {schema}, {} bytes: it has none", bytes.len()))
    }

    /// Takes its pages back, by first hash, before any update; those of key groups it does not hold are
    /// passed over.
    /// They stay on disk until they are asked for, or loaded; but [`migrate`](Self::migrate) has to follow.
    ///
    /// # Errors
    /// What is wrong with them. The state is then not to be used.
    fn restore_pages(
        &mut self,
        schema: u32,
        pages: &[PageEntry],
        source: &Arc<dyn PageSource>,
    ) -> Result<(), String> {
        _ = source;
        Err(format!("{} pages of schema {schema}: it has none", pages.len()))
    }

    /// Reads what of it cannot stay on disk, before any update: all that was given back in an older version,
    /// which it turns into this one's, and pages that hold state of other tasks too.
    ///
    /// # Errors
    /// The disk's, or a page that is not what was written. What the user's code panics with, it
    /// panics with.
    fn migrate(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Loads about `budget_bytes` of what is still on disk only; whether there is more.
    ///
    /// # Errors
    /// The disk's, or a page that is not what was written.
    fn load(&mut self, budget_bytes: usize) -> Result<bool, Error> {
        _ = budget_bytes;
        Ok(false)
    }

    /// Bytes of memory it takes, about; 0 where it is next to nothing.
    fn memory_bytes(&self) -> usize {
        0
    }
}

/// Whether a marked version is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Some of it is left.
    More,
    /// All of it is out; nothing is preserved any more.
    Done,
    /// The rest of it does not exist yet: a log whose inputs have not all delivered.
    Waiting,
}

/// Takes a marked version, one state after the other.
///
/// A state is handed over as pieces ([`write`](Self::write)), all of which every snapshot holds, or
/// as pages ([`pages`](Self::pages)), of which a snapshot writes those that changed and refers to
/// the others where they lie.
pub trait StateWriter {
    /// What follows is state of this operator.
    fn enter(&mut self, operator: &str);

    /// One piece: opaque bytes that [`OperatorState::restore`] takes back with the same `slot` and
    /// `schema`.
    fn write(&mut self, slot: StateSlot, schema: u32, bytes: &[u8]);

    /// Takes the pages of `chunk`, all of them with their checksum. Where its first byte will lie. It may take the
    /// bytes with their memory and leave others, which count for nothing; it leaves the list of the pages.
    fn pages(&mut self, schema: u32, chunk: &mut Chunk) -> Place;

    /// Whether this snapshot must list every page, because there is no earlier index to go on from
    /// or the way back to one is long: then all of them go through [`map`](Self::map) before the
    /// state is done, besides the chunks.
    fn wants_map(&self) -> bool;

    /// Some pages that lie on disk as of this snapshot.
    fn map(&mut self, schema: u32, entries: &[PageEntry]);

    /// As of this snapshot, pages of the state lie in this segment, so many bytes.
    fn keeps(&mut self, segment: SegmentId, bytes: u64);

    /// The segment whose pages should be written again, so that it is not needed any more.
    fn empties(&self) -> Option<SegmentId>;

    /// Whether another `bytes` of it may be written again with this snapshot.
    fn may_rewrite(&mut self, bytes: usize) -> bool;
}

/// Schema of a piece: one archived value.
pub const SCHEMA_VALUE: u32 = Schema { layout: Layout::Value, version: 1 }.word();
/// Schema of a piece: records that were in transit.
pub const SCHEMA_LOG: u32 = Schema { layout: Layout::Log, version: 3 }.word();
