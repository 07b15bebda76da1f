//! Where drained versions go: chunks, which change hands as they are, as in `tidegate::state`.

/// A chunk that holds this much is handed on.
pub const CHUNK_BYTES: usize = 256 << 10;
/// Records that lie together: a page where pages are the unit, else what is pushed at a time.
pub const PAGE_BYTES: usize = 4096;

pub type Record<const W: usize> = [u64; W];

/// Records per page.
pub const fn page_len<const W: usize>() -> usize {
    PAGE_BYTES / size_of::<Record<W>>()
}

/// Runs of records, all of one length.
pub struct Chunk<const W: usize> {
    /// First key of each run.
    pub firsts: Vec<u32>,
    pub records: Vec<Record<W>>,
}

impl<const W: usize> Default for Chunk<W> {
    fn default() -> Self {
        let records = CHUNK_BYTES / size_of::<Record<W>>() + page_len::<W>();
        Self { firsts: Vec::new(), records: Vec::with_capacity(records) }
    }
}

impl<const W: usize> Chunk<W> {
    /// Appends a run; how many bytes that is.
    #[inline]
    pub fn push(&mut self, first: usize, records: &[Record<W>]) -> usize {
        self.firsts.push(first as u32);
        self.records.extend_from_slice(records);
        size_of_val(records) + size_of::<u32>()
    }

    /// As [`push`](Self::push), of a page whose records are chosen one by one.
    pub fn push_page(&mut self, first: usize, record: impl FnMut(usize) -> Record<W>) -> usize {
        self.firsts.push(first as u32);
        self.records.extend((first..first + page_len::<W>()).map(record));
        PAGE_BYTES + size_of::<u32>()
    }

    pub fn bytes(&self) -> usize {
        size_of_val(&self.records[..]) + size_of_val(&self.firsts[..])
    }

    pub fn is_full(&self) -> bool {
        size_of_val(&self.records[..]) >= CHUNK_BYTES
    }

    pub fn memory_bytes(&self) -> usize {
        self.records.capacity() * size_of::<Record<W>>() + self.firsts.capacity() * 4
    }

    fn clear(&mut self) {
        self.firsts.clear();
        self.records.clear();
    }
}

/// Keeps the chunks of one capture until they are looked at; their memory is used again.
#[derive(Default)]
pub struct Disk<const W: usize> {
    taken: Vec<Chunk<W>>,
    spare: Vec<Chunk<W>>,
}

impl<const W: usize> Disk<W> {
    /// Takes what is in `chunk` and leaves it empty, with other memory.
    pub fn take(&mut self, chunk: &mut Chunk<W>) {
        let empty = self.spare.pop().unwrap_or_default();
        self.taken.push(std::mem::replace(chunk, empty));
    }

    pub fn take_if_full(&mut self, chunk: &mut Chunk<W>) {
        if chunk.is_full() {
            self.take(chunk);
        }
    }

    /// Brings `image`, the version before, to the one that was written; how many bytes that took.
    pub fn apply(&mut self, image: &mut [Record<W>]) -> usize {
        let bytes = self.taken.iter().map(Chunk::bytes).sum();
        for mut chunk in self.taken.drain(..) {
            let run = chunk.records.len().checked_div(chunk.firsts.len()).unwrap_or(1).max(1);
            for (first, records) in chunk.firsts.iter().zip(chunk.records.chunks(run)) {
                image[*first as usize..][..run].copy_from_slice(records);
            }
            chunk.clear();
            self.spare.push(chunk);
        }
        bytes
    }
}
