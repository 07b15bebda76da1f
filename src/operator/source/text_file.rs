//! A text file, split by byte ranges at line ends, the offset of the next line as state.
//!
//! Split s of n is the range `len * s / n .. len * (s + 1) / n`; a line belongs to the split that
//! its first byte lies in. Reads go through the disk queue, one chunk ahead of the lines.

use std::collections::VecDeque;
use std::fs::{self, FileType};
use std::marker::PhantomData;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::lines::{LineSplitter, line_too_long};
use super::{Read, Reader, ReaderContext, Source};
use crate::config::BATCH_RECORDS;
use crate::disk::{Disk, DiskQueue, FileHandle, Operation};
use crate::error::{Error, Result};
use crate::record::{Collector, Record};

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

/// Lines of a file, each decoded into any number of records by `decode(line, out)`, which says what
/// is wrong with a line that cannot be.
pub struct TextFile<T, D> {
    path: PathBuf,
    /// Bytes to be read: the file's length when it was opened, or less.
    length: u64,
    decode: Arc<D>,
    record: PhantomData<fn() -> T>,
}

/// What a decoder returns: `Err` says what is wrong with the line, and what it should be.
pub type Decoded = Result<(), String>;

/// Decodes a line into itself.
fn whole_line(line: &[u8], out: &mut Collector<Vec<u8>>) -> Decoded {
    out.push(line.to_vec());
    Ok(())
}

impl TextFile<Vec<u8>, fn(&[u8], &mut Collector<Vec<u8>>) -> Decoded> {
    /// The lines of `path`, as bytes without their ends.
    ///
    /// # Errors
    /// The file is missing, empty, unreadable or not a regular file.
    pub fn open(path: impl AsRef<Path>, disk: &dyn Disk) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let refuse = |reason: String| Error::Input { name: path.display().to_string(), reason };
        // Before it is opened: that would wait for whoever writes into a pipe.
        if let Some(what) = fs::metadata(&path).ok().and_then(|found| special(found.file_type())) {
            return Err(refuse(format!("it is {what}; name a text file")));
        }
        disk.open_read(&path).map_err(|error| refuse(format!("cannot be opened: {error}")))?;
        let length = disk.len(&path).map_err(|error| refuse(format!("no length: {error}")))?;
        if length == 0 {
            return Err(refuse("it is empty; there is nothing to do".into()));
        }
        Ok(Self { path, length, decode: Arc::new(whole_line), record: PhantomData })
    }
}

/// What it is, if not a regular file, which alone can be read again from any place.
fn special(kind: FileType) -> Option<&'static str> {
    match () {
        () if kind.is_file() => None,
        () if kind.is_dir() => Some("a directory"),
        () if kind.is_fifo() => Some("a pipe, which cannot be read twice"),
        () if kind.is_socket() => Some("a socket, which cannot be read twice"),
        () => Some("a device, which cannot be read twice"),
    }
}

impl<T, D> TextFile<T, D> {
    /// Decodes each line with `decode(line, out)` in the source itself: no copy of the line.
    pub fn decode<U>(
        self,
        decode: impl Fn(&[u8], &mut Collector<U>) + Send + Sync + 'static,
    ) -> TextFile<U, impl Fn(&[u8], &mut Collector<U>) -> Decoded + Send + Sync + 'static> {
        self.try_decode(move |line: &[u8], out: &mut Collector<U>| {
            decode(line, out);
            Ok(())
        })
    }

    /// As [`decode`](Self::decode), for lines that may be wrong: the job fails with an error that
    /// names the file and the line.
    pub fn try_decode<U, E: Fn(&[u8], &mut Collector<U>) -> Decoded>(
        self,
        decode: E,
    ) -> TextFile<U, E> {
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
    D: Fn(&[u8], &mut Collector<T>) -> Decoded + Send + Sync + 'static,
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
    /// Chunks asked for and how long they are, oldest first; `Some` once they are there.
    done: VecDeque<(crate::disk::Ticket, usize, Option<Vec<u8>>)>,
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

    /// The error for the line that begins at `offset`. The lines before it are counted now: splits
    /// are read side by side, so nobody has counted them.
    fn bad_line(&self, offset: u64, reason: &str) -> Error {
        let (mut chunk, mut at, mut line) = (vec![0; CHUNK_BYTES], 0, 1);
        while at < offset {
            let length = CHUNK_BYTES.min((offset - at) as usize);
            let count = match self.file.read_at(&mut chunk[..length], at) {
                Ok(0) => return self.failed(format!("the line at byte {offset}: {reason}")),
                Ok(count) => count,
                Err(error) => return self.failed(format!("cannot be read: {error}")),
            };
            line += memchr::memchr_iter(b'\n', &chunk[..count]).count();
            at += count as u64;
        }
        self.failed(format!("line {line}: {reason}"))
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
                buffer: vec![0; length].into(),
            };
            let Ok(ticket) = self.queue.submit(read) else { break };
            self.done.push_back((ticket, length, None));
            self.next_read += length as u64;
        }
        self.look()
    }

    /// Takes what has come; the queue goes on with the others only while it is looked at.
    fn look(&mut self) -> Result<()> {
        self.queue.poll(&mut self.completions);
        for completion in std::mem::take(&mut self.completions) {
            let count = completion
                .result
                .map_err(|error| self.failed(format!("cannot be read: {error}")))?;
            let place = self.done.iter_mut().find(|(ticket, ..)| *ticket == completion.ticket);
            let (_, length, chunk) = place.expect("a completion answers a read");
            // Chunks end where the file ended when the job began, so each must be whole.
            if count < *length {
                return Err(self.failed(format!(
                    "it ended before byte {}, where it ended when the job began; was it cut short \
                     while the job ran? Put it back as it was and run the same command again",
                    self.file_end
                )));
            }
            *chunk = Some(completion.buffer.into_plain());
        }
        Ok(())
    }

    /// Gives the splitter its next chunk. False if it is not there yet.
    fn next_chunk(&mut self) -> Result<bool> {
        self.turn()?;
        let Some((.., chunk @ Some(_))) = self.done.front_mut() else { return Ok(false) };
        let chunk = chunk.take().expect("matched above");
        self.done.pop_front();
        self.lines.put(chunk);
        Ok(true)
    }
}

impl<T, D: Fn(&[u8], &mut Collector<T>) -> Decoded + Send + Sync> Reader<T> for RangeReader<D> {
    fn read(&mut self, max: usize, out: &mut Collector<T>) -> Result<(Read, usize)> {
        let mut taken = 0;
        if self.queue.in_flight() > 0 {
            self.look()?;
        }
        while taken < max && out.len() < BATCH_RECORDS {
            let position = self.position();
            if position >= self.split_end && !self.skip_line {
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
                Some(Err(reason)) => return Err(self.bad_line(position, &reason)),
                Some(Ok(())) => taken += 1,
                None if self.next_read >= self.file_end && self.done.is_empty() => {
                    if skip {
                        return Ok((Read::End, taken));
                    }
                    let last = self.lines.last_line(|line| decode(line, out));
                    if let Some(Err(reason)) = &last {
                        return Err(self.bad_line(position, reason));
                    }
                    assert_eq!(self.position(), self.file_end, "a split ended too early");
                    return Ok((Read::End, taken + usize::from(last.is_some())));
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
    use crate::disk::MemoryDisk;

    type Whole = fn(&[u8], &mut Collector<Vec<u8>>) -> Decoded;

    const LINE: &[u8] = b"a line of sixteen\n";

    /// A file of `bytes` on a disk in memory, and its lines as read from it now.
    fn file(bytes: usize) -> (Arc<MemoryDisk>, TextFile<Vec<u8>, Whole>) {
        let (disk, path) = (Arc::new(MemoryDisk::new(1)), PathBuf::from("/text"));
        let text: Vec<u8> = LINE.iter().copied().cycle().take(bytes).collect();
        disk.create_new(&path).unwrap().write_all_at(&text, 0).unwrap();
        let length = bytes as u64;
        let decode: Arc<Whole> = Arc::new(whole_line);
        (disk, TextFile { path, length, decode, record: PhantomData })
    }

    fn read_all(reader: &mut dyn Reader<Vec<u8>>) -> Result<usize> {
        let (mut lines, mut out) = (0, Vec::new());
        loop {
            let (read, taken) = reader.read(usize::MAX, Collector::over(&mut out))?;
            lines += taken;
            out.clear();
            if read == Read::End {
                return Ok(lines);
            }
        }
    }

    /// The last chunk of a file that was cut meanwhile came back short, and the split ended there as
    /// if that were the end of the file: a wrong result with no word about it.
    #[test]
    fn a_file_that_is_cut_while_it_is_read_is_an_error_wherever_it_is_cut() {
        let bytes = 3 * LINE.len() * 1000;
        for cut in [0, 1, 18, 18 * 1000, 18 * 1000 + 7, bytes - 18, bytes - 1, bytes] {
            let (disk, file) = file(bytes);
            let context = ReaderContext { disk: disk.clone() };
            let mut reader = file.reader(0, None, &context).unwrap();
            disk.open(Path::new("/text")).unwrap().set_len(cut as u64).unwrap();
            match read_all(&mut *reader) {
                Ok(lines) => assert_eq!((cut, lines), (bytes, 3000)),
                Err(error) => {
                    assert!(cut < bytes, "{error}");
                    assert!(error.to_string().contains("cut short"), "{cut}: {error}");
                }
            }
        }
    }

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
