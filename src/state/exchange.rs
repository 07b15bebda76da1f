//! What state and whoever keeps it on disk hand each other: pages, in chunks, and where they lie.
//!
//! A *page* is the unit of change: the bytes of all entries whose hashes begin with its prefix. A
//! snapshot writes the pages that changed since the last one, gathered in *chunks*, which change
//! hands as they are. Whoever takes a chunk says where it will lie; the table remembers that for
//! each page, and so does the index that is written with the snapshot.
//!
//! Invariants
//! - The pages of a chunk lie one behind another at multiples of [`PAGE_ALIGN`], in the order of
//!   [`Chunk::pages`]; between them are zeros.
//! - A page's checksum is that of the bytes as they lie in the chunk. It is taken before the chunk is handed
//!   over, not when the page is put there: that is often on the way of a record, which waits for it.

use std::io::IoSliceMut;

use super::memory::PAGE_ALIGN;
use crate::disk::Buffer;
use crate::error::Error;
use crate::id::SegmentId;

/// A chunk that holds this much is handed on. Large enough to spread the cost of a system call,
/// small enough that handing it on does not hold up a worker.
pub const CHUNK_BYTES: usize = 256 << 10;

/// Where bytes lie on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// In which file.
    pub segment: SegmentId,
    /// At which byte of it.
    pub offset: u64,
}

/// A page that lies on disk, as an index lists it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageEntry {
    /// The first hash that belongs to it.
    pub prefix: u64,
    /// How many bits of `prefix` its hashes share; the top seven are the key group, so with fewer it holds
    /// several.
    pub depth: u32,
    /// Its length.
    pub bytes: u32,
    /// Checksum of these bytes.
    pub crc32c: u32,
    /// Where they are.
    pub place: Place,
}

/// A page in a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkPage {
    /// The table's own number of the page.
    pub id: u32,
    /// As in [`PageEntry`].
    pub prefix: u64,
    /// As in [`PageEntry`].
    pub depth: u32,
    /// First byte in the chunk.
    pub at: u32,
    /// Length.
    pub bytes: u32,
    /// Checksum of these bytes, once the page is [summed up](Chunk::sum).
    pub crc32c: u32,
}

impl ChunkPage {
    /// The page as it lies on disk if its chunk begins at `chunk`.
    #[must_use]
    pub fn entry(&self, chunk: Place) -> PageEntry {
        let place = Place { offset: chunk.offset + u64::from(self.at), ..chunk };
        let Self { prefix, depth, bytes, crc32c, .. } = *self;
        PageEntry { prefix, depth, bytes, crc32c, place }
    }
}

/// Memory of a chunk: one page is put into it before it is full.
const CAPACITY_BYTES: usize = CHUNK_BYTES + (16 << 10);

/// Pages on their way to disk.
#[derive(Default)]
pub struct Chunk {
    /// Their bytes.
    pub bytes: Buffer,
    /// Which they are.
    pub pages: Vec<ChunkPage>,
    /// So many of them, the first ones, have their checksum.
    summed: usize,
}

impl Chunk {
    /// Appends a page, which is to be [summed up](Self::sum).
    pub fn push(&mut self, id: u32, prefix: u64, depth: u32, bytes: &[u8]) {
        if self.bytes.capacity() == 0 {
            self.bytes = Buffer::with_capacity(CAPACITY_BYTES);
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(PAGE_ALIGN), 0);
        let at = u32::try_from(self.bytes.len()).expect("a chunk of less than 4 GiB");
        self.bytes.extend_from_slice(bytes);
        let bytes = u32::try_from(bytes.len()).expect("a page of less than 4 GiB");
        self.pages.push(ChunkPage { id, prefix, depth, at, bytes, crc32c: 0 });
    }

    /// Takes the checksum of the first page that has none: how long it is, in bytes. `None`: all have theirs.
    pub fn sum(&mut self) -> Option<usize> {
        let page = self.pages.get_mut(self.summed)?;
        self.summed += 1;
        let bytes = page.bytes as usize;
        page.crc32c = crc32c::crc32c(&self.bytes[page.at as usize..][..bytes]);
        Some(bytes)
    }

    /// Whether all pages have their checksum.
    #[must_use]
    pub fn is_summed(&self) -> bool {
        self.summed == self.pages.len()
    }

    /// Whether it should be handed on.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= CHUNK_BYTES
    }

    /// Whether there is no page in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Forgets the pages; the memory stays.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.pages.clear();
        self.summed = 0;
    }
}

/// Where pages of a restored job are read from when they are needed. Reads block: a page that is
/// asked for before it was loaded is like a page fault.
pub trait PageSource: Send + Sync {
    /// Fills `memory`, one part after the other, with the bytes from `place` on.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Corrupt`] where the file ends before.
    fn read(&self, place: Place, memory: &mut [IoSliceMut<'_>]) -> Result<(), Error>;

    /// The error for a page at `place` that is not what was written, with the file's name.
    fn corrupt(&self, place: Place, reason: String) -> Error;
}
