//! Takes state that has no pages: values and logs.

use crate::id::{SegmentId, StateSlot};
use crate::state::{Chunk, PageEntry, Place, StateWriter};

/// The pieces that were written, with slot and schema.
#[derive(Default)]
pub struct Pieces(pub Vec<(StateSlot, u32, Vec<u8>)>);

impl StateWriter for Pieces {
    fn enter(&mut self, operator: &str) {
        panic!("{operator} is no state");
    }

    fn write(&mut self, slot: StateSlot, schema: u32, bytes: &[u8]) {
        self.0.push((slot, schema, bytes.to_vec()));
    }

    fn pages(&mut self, schema: u32, chunk: &mut Chunk) -> Place {
        panic!("{} pages of schema {schema}", chunk.pages.len());
    }

    fn wants_map(&self) -> bool {
        true
    }

    fn map(&mut self, schema: u32, entries: &[PageEntry]) {
        panic!("a map of {} pages of schema {schema}", entries.len());
    }

    fn keeps(&mut self, segment: SegmentId, bytes: u64) {
        panic!("{bytes} bytes in {segment:?}");
    }

    fn empties(&self) -> Option<SegmentId> {
        None
    }

    fn may_rewrite(&mut self, _bytes: usize) -> bool {
        false
    }
}
