//! Lines from a stream of bytes: cutting them out of chunks, and the two live sources of them, a
//! TCP connection and standard input.
//!
//! The live sources are *not replayable*: what was read since the last complete snapshot and then
//! lost in a crash is not sent again. Restored, they go on with whatever comes next: at most once
//! for that stretch of input, exactly once for everything else in the job.
//!
//! A peer that closes its connection ends the input, and what it sent of a last line is a line. A
//! connection that cannot be made, or is reset, is a failure that the job may be restarted from: it
//! connects again and goes on with what is sent then. What was read since the last snapshot, and a line
//! of which only a part came, are lost as in a crash. The connection is made before the workers of an
//! attempt run, so no worker, and no barrier, waits for an address that does not answer.

use std::io::{self, ErrorKind};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::{Read, Reader, ReaderContext, Source};
use crate::config::{BATCH_RECORDS, LINE_BYTES_MAX};
use crate::error::{Error, Result};
use crate::record::Collector;

const CHUNK_BYTES: usize = 64 << 10;
/// Longest wait for one address to answer, while nothing of the job runs yet.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;

/// Cuts chunks of bytes into lines. A line ends at `\n`, which is not part of it; the last line
/// may end with the input.
#[derive(Default)]
pub struct LineSplitter {
    chunk: Vec<u8>,
    position: usize,
    /// The part of a line that earlier chunks held.
    carry: Vec<u8>,
    /// Bytes of all lines handed out, with their ends.
    consumed: u64,
}

impl LineSplitter {
    /// How many bytes of the input the lines handed out so far took.
    #[must_use]
    pub fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Whether the chunk is used up and [`put`](Self::put) may be called.
    #[must_use]
    pub fn wants_chunk(&self) -> bool {
        self.position == self.chunk.len()
    }

    /// Gives it the next chunk and takes the used one back, for its memory.
    pub fn put(&mut self, chunk: Vec<u8>) -> Vec<u8> {
        assert!(self.wants_chunk(), "{} of {} used", self.position, self.chunk.len());
        self.position = 0;
        std::mem::replace(&mut self.chunk, chunk)
    }

    /// Hands out the next line, if the chunk has its end.
    ///
    /// # Errors
    /// The line is longer than [`LINE_BYTES_MAX`]; `Err` holds its first byte's place.
    #[inline]
    pub fn next_line<R>(&mut self, use_line: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, u64> {
        let rest = &self.chunk[self.position..];
        let Some(length) = memchr::memchr(b'\n', rest) else {
            self.carry.extend_from_slice(rest);
            self.position = self.chunk.len();
            let too_long = self.carry.len() > LINE_BYTES_MAX;
            return if too_long { Err(self.consumed) } else { Ok(None) };
        };
        if self.carry.len() + length > LINE_BYTES_MAX {
            return Err(self.consumed);
        }
        let result = if self.carry.is_empty() {
            self.consumed += length as u64 + 1;
            use_line(&rest[..length])
        } else {
            self.carry.extend_from_slice(&rest[..length]);
            self.consumed += self.carry.len() as u64 + 1;
            let result = use_line(&self.carry);
            self.carry.clear();
            result
        };
        self.position += length + 1;
        Ok(Some(result))
    }

    /// Passes over the rest of a line, whatever its length. False if the chunk does not have its end.
    pub fn skip_line(&mut self) -> bool {
        assert!(self.carry.is_empty(), "a line is skipped whole or not at all");
        let rest = &self.chunk[self.position..];
        let (end, found) =
            memchr::memchr(b'\n', rest).map_or((rest.len(), false), |at| (at + 1, true));
        self.consumed += end as u64;
        self.position += end;
        found
    }

    /// The input has ended: hands out a last line that has no end.
    pub fn last_line<R>(&mut self, use_line: impl FnOnce(&[u8]) -> R) -> Option<R> {
        assert!(self.wants_chunk(), "the last line comes last");
        if self.carry.is_empty() {
            return None;
        }
        self.consumed += self.carry.len() as u64;
        let result = use_line(&self.carry);
        self.carry.clear();
        Some(result)
    }
}

/// The error for a line above the limit.
pub(super) fn line_too_long(name: &str, offset: u64) -> Error {
    Error::Input {
        name: name.into(),
        reason: format!(
            "the line at byte {offset} is longer than {LINE_BYTES_MAX} bytes; is this a text file? \
             Break the line, or raise LINE_BYTES_MAX and build again"
        ),
    }
}

/// Lines from a TCP server: connects to `address` and reads until the peer closes.
pub struct TcpLines {
    address: String,
}

impl TcpLines {
    /// Connects to `address` (`host:port`) when the job starts.
    pub fn connect(address: impl Into<String>) -> Self {
        Self { address: address.into() }
    }
}

impl Source for TcpLines {
    type Item = Vec<u8>;

    fn identity(&self, _context: &ReaderContext) -> Result<String> {
        Ok(format!("lines from tcp {}", self.address))
    }

    fn splits(&self) -> u32 {
        1
    }

    fn reader(
        &self,
        _split: u32,
        offset: Option<u64>,
        _context: &ReaderContext,
    ) -> Result<Box<dyn Reader<Vec<u8>>>> {
        let name = format!("tcp {}", self.address);
        let stream = self.open().map_err(|error| match error.kind() {
            ErrorKind::InvalidInput => Error::Input {
                name: name.clone(),
                reason: format!("{error}; give an address as host:port"),
            },
            kind => {
                let reason = format!("{error}; is the server running, and the address right?");
                Error::io("connect to", &name)(io::Error::new(kind, reason))
            }
        })?;
        Ok(Box::new(LiveLines::new(name, stream, offset)))
    }
}

impl TcpLines {
    fn open(&self) -> io::Result<TcpStream> {
        let mut refused = None;
        for address in self.address.to_socket_addrs()?.take(ADDRESSES_MAX) {
            match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
                Ok(stream) => return Ok(stream),
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.unwrap_or_else(|| io::Error::other("the name has no address")))
    }
}

/// Lines from standard input, until it ends.
pub struct StdinLines;

impl Source for StdinLines {
    type Item = Vec<u8>;

    fn identity(&self, _context: &ReaderContext) -> Result<String> {
        Ok("lines from standard input".into())
    }

    fn splits(&self) -> u32 {
        1
    }

    fn reader(
        &self,
        _split: u32,
        offset: Option<u64>,
        _context: &ReaderContext,
    ) -> Result<Box<dyn Reader<Vec<u8>>>> {
        Ok(Box::new(LiveLines::new("standard input".into(), io::stdin(), offset)))
    }
}

/// Reads only when the system says that a read will not block.
struct LiveLines<S> {
    name: String,
    stream: S,
    lines: LineSplitter,
    /// Bytes consumed by earlier runs: shown to the user, never sought to.
    consumed_before: u64,
    ended: bool,
}

impl<S: io::Read + AsFd> LiveLines<S> {
    fn new(name: String, stream: S, offset: Option<u64>) -> Self {
        let lines = LineSplitter::default();
        Self { name, stream, lines, consumed_before: offset.unwrap_or(0), ended: false }
    }

    /// The next chunk; empty at the end of input, `None` if none is there yet.
    fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut ready = [PollFd::new(&self.stream, PollFlags::IN)];
        match poll(&mut ready, Some(&Timespec::default())) {
            // A signal came; the next call looks again.
            Ok(0) | Err(Errno::INTR) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut chunk = vec![0; CHUNK_BYTES];
        let count = loop {
            match self.stream.by_ref().read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        chunk.truncate(count);
        Ok(Some(chunk))
    }
}

impl<S: io::Read + AsFd + Send> Reader<Vec<u8>> for LiveLines<S> {
    fn read(&mut self, max: usize, out: &mut Collector<Vec<u8>>) -> Result<(Read, usize)> {
        let max = max.min(BATCH_RECORDS);
        while out.len() < max && !self.ended {
            let line = self.lines.next_line(<[u8]>::to_vec);
            if let Some(line) = line.map_err(|offset| line_too_long(&self.name, offset))? {
                out.push(line);
                continue;
            }
            let chunk = self.chunk().map_err(Error::io("read from", &self.name))?;
            match chunk {
                None => return Ok((Read::Idle, out.len())),
                Some(chunk) if chunk.is_empty() => {
                    self.ended = true;
                    out.extend(self.lines.last_line(<[u8]>::to_vec));
                }
                Some(chunk) => _ = self.lines.put(chunk),
            }
        }
        Ok((if self.ended { Read::End } else { Read::More }, out.len()))
    }

    fn offset(&self) -> u64 {
        self.consumed_before + self.lines.consumed()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn split(chunks: &[&str]) -> Vec<String> {
        let mut lines = LineSplitter::default();
        let mut out = Vec::new();
        for chunk in chunks {
            lines.put(chunk.as_bytes().to_vec());
            while let Some(line) = lines.next_line(|l| String::from_utf8_lossy(l).into()).unwrap() {
                out.push(line);
            }
        }
        out.extend(lines.last_line(|line| String::from_utf8_lossy(line).into()));
        let total: usize = chunks.iter().map(|chunk| chunk.len()).sum();
        assert_eq!(lines.consumed(), total as u64);
        out
    }

    #[test]
    fn lines_are_the_same_however_the_chunks_are_cut() {
        let text = "one\n\ntwo three\nfour";
        for first in 0..=text.len() {
            for second in first..=text.len() {
                let chunks = [&text[..first], &text[first..second], &text[second..]];
                assert_eq!(split(&chunks), ["one", "", "two three", "four"], "{chunks:?}");
            }
        }
    }

    /// A split whose first bytes belong to a line above the limit said that the line began there.
    #[test]
    fn the_rest_of_a_line_is_passed_over_whatever_its_length() {
        let mut lines = LineSplitter::default();
        lines.put(vec![b'x'; LINE_BYTES_MAX + 1]);
        assert!(!lines.skip_line());
        lines.put(b"x\nnext\n".to_vec());
        assert!(lines.skip_line());
        assert_eq!(lines.consumed(), LINE_BYTES_MAX as u64 + 3);
        assert_eq!(lines.next_line(<[u8]>::to_vec), Ok(Some(b"next".to_vec())));
    }

    #[test]
    fn a_line_above_the_limit_is_an_error_that_says_where() {
        let mut lines = LineSplitter::default();
        lines.put(b"ok\n".to_vec());
        assert_eq!(lines.next_line(<[u8]>::len), Ok(Some(2)));
        lines.put(vec![b'x'; LINE_BYTES_MAX + 1]);
        assert_eq!(lines.next_line(<[u8]>::len), Err(3));
    }

    #[test]
    fn a_live_input_is_read_as_it_comes_and_never_waited_for() {
        let (receiver, mut sender) = io::pipe().unwrap();
        let mut reader = LiveLines::new("a pipe".into(), receiver, Some(100));
        let mut read = |max| {
            let mut out = Vec::new();
            let (read, count) = reader.read(max, Collector::over(&mut out)).unwrap();
            assert_eq!(count, out.len());
            let lines = out.into_iter().map(|line| String::from_utf8(line).unwrap());
            (read, lines.collect::<Vec<_>>().join("|"), reader.offset())
        };
        assert_eq!(read(9), (Read::Idle, String::new(), 100), "nothing there, nothing waited for");
        sender.write_all(b"one\ntwo\nthr").unwrap();
        assert_eq!(read(1), (Read::More, "one".into(), 104));
        assert_eq!(read(9), (Read::Idle, "two".into(), 108), "a part of a line is not counted");
        sender.write_all(b"ee\n\nfour").unwrap();
        assert_eq!(read(9), (Read::Idle, "three|".into(), 115));
        drop(sender);
        assert_eq!(read(9), (Read::End, "four".into(), 119));
    }
}
