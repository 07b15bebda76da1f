//! A text file, split by byte ranges at line ends, the offset of the next line as state.
//!
//! Split s of n is the range `len * s / n .. len * (s + 1) / n`; a line belongs to the split that
//! its first byte lies in. Reads go through the disk queue, one chunk ahead of the lines.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::lines::{LineSplitter, line_too_long};
use super::{Read, Reader, ReaderContext, Source};
use crate::config::BATCH_RECORDS;
use crate::disk::{Disk, DiskQueue, FileHandle, Operation};
use crate::error::{Error, Result};
use crate::record::Record;

const CHUNK_BYTES: usize = 256 << 10;
/// Chunks being read ahead.
const READ_AHEAD: usize = 2;
const SPLITS_MAX: u64 = 128;
const SPLIT_BYTES_MIN: u64 = 64 << 10;
/// What tells a file from another of the same length: its first and last bytes, and blocks spread
/// evenly between them. Reading all of it would cost a pass over the input at every start.
const IDENTITY_END_BYTES: u64 = 64 << 10;
const IDENTITY_BLOCK_BYTES: u64 = 4 << 10;
const IDENTITY_BLOCKS: u64 = 64;

/// Lines of a file, each decoded into any number of records.
pub struct TextFile<T, D> {
    path: PathBuf,
    /// Bytes to be read: the file's length when it was opened, or less.
    length: u64,
    decode: Arc<D>,
    record: PhantomData<fn() -> T>,
}

/// Decodes a line into itself.
fn whole_line(line: &[u8], out: &mut Vec<Vec<u8>>) {
    out.push(line.to_vec());
}

impl TextFile<Vec<u8>, fn(&[u8], &mut Vec<Vec<u8>>)> {
    /// The lines of `path`, as bytes without their ends.
    ///
    /// # Errors
    /// The file is missing, empty, unreadable or not a regular file.
    pub fn open(path: impl AsRef<Path>, disk: &dyn Disk) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let refuse = |reason: String| Error::Input { name: path.display().to_string(), reason };
        if path.is_dir() {
            return Err(refuse("it is a directory; name a text file".into()));
        }
        disk.open_read(&path).map_err(|error| refuse(format!("cannot be opened: {error}")))?;
        let length = disk.len(&path).map_err(|error| refuse(format!("no length: {error}")))?;
        if length == 0 {
            return Err(refuse(
                "it is empty (or not a regular file); there is nothing to do".into(),
            ));
        }
        Ok(Self { path, length, decode: Arc::new(whole_line), record: PhantomData })
    }
}

impl<T, D> TextFile<T, D> {
    /// Decodes each line with `decode(line, out)` in the source itself: no copy of the line.
    pub fn decode<U, E: Fn(&[u8], &mut Vec<U>)>(self, decode: E) -> TextFile<U, E> {
        let decode = Arc::new(decode);
        TextFile { path: self.path, length: self.length, decode, record: PhantomData }
    }

    /// Only the first `lines` lines. Reads the file up to there once.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn limit(mut self, lines: u64, disk: &dyn Disk) -> Result<Self> {
        let file = disk.open_read(&self.path).map_err(Error::io("open", &self.path))?;
        let (mut chunk, mut offset, mut left) = (vec![0; CHUNK_BYTES], 0, lines);
        while left > 0 && offset < self.length {
            let count = file.read_at(&mut chunk, offset).map_err(Error::io("read", &self.path))?;
            if count == 0 {
                break;
            }
            for end in memchr::memchr_iter(b'\n', &chunk[..count]) {
                left -= 1;
                if left == 0 {
                    self.length = offset + end as u64 + 1;
                    return Ok(self);
                }
            }
            offset += count as u64;
        }
        if lines == 0 {
            self.length = 0;
        }
        Ok(self)
    }

    fn start_of(&self, split: u32) -> u64 {
        let splits = u128::from(self.split_count());
        (u128::from(self.length) * u128::from(split) / splits) as u64
    }

    fn split_count(&self) -> u32 {
        (self.length / SPLIT_BYTES_MIN).clamp(1, SPLITS_MAX) as u32
    }
}

/// First byte and length of the parts of a file of `length` bytes that its identity is made of: all of
/// a short one.
fn identity_parts(length: u64) -> Vec<(u64, u64)> {
    if length <= 2 * IDENTITY_END_BYTES + IDENTITY_BLOCKS * IDENTITY_BLOCK_BYTES {
        return vec![(0, length)];
    }
    let last = (length - IDENTITY_END_BYTES, IDENTITY_END_BYTES);
    let gap = (last.0 - IDENTITY_END_BYTES) / IDENTITY_BLOCKS;
    let starts = (0..IDENTITY_BLOCKS).map(|block| IDENTITY_END_BYTES + block * gap);
    let blocks = starts.map(|start| (start, IDENTITY_BLOCK_BYTES));
    [(0, IDENTITY_END_BYTES)].into_iter().chain(blocks).chain([last]).collect()
}

impl<T, D> Source for TextFile<T, D>
where
    T: Record,
    D: Fn(&[u8], &mut Vec<T>) + Send + Sync + 'static,
{
    type Item = T;

    fn identity(&self, context: &ReaderContext) -> Result<String> {
        let file = context.disk.open_read(&self.path).map_err(Error::io("open", &self.path))?;
        let (mut sum, mut bytes) = (0, Vec::new());
        for (start, length) in identity_parts(self.length) {
            bytes.resize(length as usize, 0);
            let read = file.read_at(&mut bytes, start);
            let count = read.map_err(Error::io("read", &self.path))?;
            sum = crc32c::crc32c_append(sum, &bytes[..count]);
        }
        Ok(format!("a text file of {} bytes with checksum {sum:08x}", self.length))
    }

    fn splits(&self) -> u32 {
        self.split_count()
    }

    fn reader(
        &self,
        split: u32,
        offset: Option<u64>,
        context: &ReaderContext,
    ) -> Result<Box<dyn Reader<T>>> {
        let (start, end) = (self.start_of(split), self.start_of(split + 1));
        let file = context.disk.open_read(&self.path).map_err(Error::io("open", &self.path))?;
        let queue = context.disk.queue(READ_AHEAD).map_err(Error::io("read", &self.path))?;
        // A split begins at the first line that starts in it: the line end before that may be the
        // very byte before the split. An offset before the split says that it was not found yet.
        let skip_line = start > 0 && offset.is_none_or(|offset| offset < start);
        let base = if skip_line { start - 1 } else { offset.unwrap_or(start) };
        Ok(Box::new(RangeReader {
            path: self.path.clone(),
            file,
            queue,
            file_end: self.length,
            split_end: end,
            next_read: base,
            done: VecDeque::new(),
            completions: Vec::new(),
            base,
            lines: LineSplitter::default(),
            skip_line,
            decode: self.decode.clone(),
        }))
    }
}

struct RangeReader<D> {
    path: PathBuf,
    file: FileHandle,
    queue: Box<dyn DiskQueue>,
    file_end: u64,
    split_end: u64,
    /// Where the next chunk to be asked for begins.
    next_read: u64,
    /// Chunks asked for, oldest first; `Some` once they are there.
    done: VecDeque<(crate::disk::Ticket, Option<Vec<u8>>)>,
    completions: Vec<crate::disk::Completion>,
    /// Where the first line of `lines` began.
    base: u64,
    lines: LineSplitter,
    skip_line: bool,
    decode: Arc<D>,
}

impl<D> RangeReader<D> {
    fn position(&self) -> u64 {
        self.base + self.lines.consumed()
    }

    fn failed(&self, reason: String) -> Error {
        Error::Input { name: self.path.display().to_string(), reason }
    }

    /// Asks for chunks ahead and takes what has come.
    fn turn(&mut self) -> Result<()> {
        // Behind the split's end only what its last line needs is read.
        while self.done.len() < READ_AHEAD
            && self.next_read < self.file_end
            && (self.next_read < self.split_end || self.done.is_empty())
        {
            let length = CHUNK_BYTES.min((self.file_end - self.next_read) as usize);
            let read = Operation::Read {
                file: self.file.clone(),
                offset: self.next_read,
                buffer: vec![0; length],
            };
            let Ok(ticket) = self.queue.submit(read) else { break };
            self.done.push_back((ticket, None));
            self.next_read += length as u64;
        }
        self.queue.poll(&mut self.completions);
        for completion in std::mem::take(&mut self.completions) {
            let count = completion
                .result
                .map_err(|error| self.failed(format!("cannot be read: {error}")))?;
            let place = self.done.iter_mut().find(|(ticket, _)| *ticket == completion.ticket);
            let (_, chunk) = place.expect("a completion answers a read");
            let mut buffer = completion.buffer;
            buffer.truncate(count);
            *chunk = Some(buffer);
        }
        Ok(())
    }

    /// Gives the splitter its next chunk. False if it is not there yet.
    fn next_chunk(&mut self) -> Result<bool> {
        self.turn()?;
        let Some((_, chunk @ Some(_))) = self.done.front_mut() else { return Ok(false) };
        let chunk = chunk.take().expect("matched above");
        if chunk.is_empty() {
            return Err(self.failed(format!(
                "it ended before byte {}; was it cut short while the job ran?",
                self.file_end
            )));
        }
        self.done.pop_front();
        self.lines.put(chunk);
        Ok(true)
    }
}

impl<T, D: Fn(&[u8], &mut Vec<T>) + Send + Sync> Reader<T> for RangeReader<D> {
    fn read(&mut self, max: usize, out: &mut Vec<T>) -> Result<(Read, usize)> {
        let mut taken = 0;
        while taken < max && out.len() < BATCH_RECORDS {
            if self.position() >= self.split_end && !self.skip_line {
                return Ok((Read::End, taken));
            }
            // A line that began before the split is not ours to judge, whatever its length.
            if self.skip_line && self.lines.skip_line() {
                self.skip_line = false;
                continue;
            }
            let (decode, skip) = (&self.decode, self.skip_line);
            let found = self.lines.next_line(|line| decode(line, out));
            let name = || self.path.display().to_string();
            match found.map_err(|offset| line_too_long(&name(), self.base + offset))? {
                Some(()) => taken += 1,
                None if self.next_read >= self.file_end && self.done.is_empty() => {
                    if !skip {
                        taken +=
                            usize::from(self.lines.last_line(|line| decode(line, out)).is_some());
                    }
                    return Ok((Read::End, taken));
                }
                None => {
                    if !self.next_chunk()? {
                        return Ok((if taken == 0 { Read::Soon } else { Read::More }, taken));
                    }
                }
            }
        }
        Ok((Read::More, taken))
    }

    fn offset(&self) -> u64 {
        // Before the split as long as its first line was not found.
        if self.skip_line { self.base } else { self.position() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_reads_a_bounded_part_of_a_file_and_both_of_its_ends() {
        for length in [0, 1, 393_216, 393_217, 500_000, 1 << 30, 1 << 50] {
            let parts = identity_parts(length);
            let ends = parts.iter().map(|(start, length)| start + length);
            assert_eq!((parts[0].0, ends.clone().max()), (0, Some(length)));
            let overlap = ends.zip(&parts[1..]).find(|(end, next)| *end > next.0);
            assert_eq!(overlap, None, "{length}: {parts:?}");
            let bytes: u64 = parts.iter().map(|(_, length)| length).sum();
            assert!(bytes <= 393_216, "{length}: {bytes}");
        }
    }
}
