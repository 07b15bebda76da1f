//! Results to standard output, as lines.
//!
//! With snapshots, lines are held back until their snapshot is complete; then they are written.
//! A pipe cannot be asked what it has, so the lines of the last complete snapshot may be written
//! again after a crash: at least once there, exactly once otherwise. (Files have no such gap.)

use std::collections::VecDeque;
use std::io::{self, Write as _};

use super::{Sink, Writer, WriterContext};
use crate::config::UNCOMMITTED_BYTES_MAX;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::id::SnapshotId;
use crate::operator::Flow;
use crate::record::{Batch, Collector, Record};

/// Bytes written at once.
const WRITE_BYTES: usize = 64 << 10;

/// Sink of lines on standard output.
pub struct Console<T, F> {
    format: F,
    record: std::marker::PhantomData<fn(T)>,
}

impl<T: Record, F: Fn(&T, &mut Collector<u8>) + Clone + Send + Sync + 'static> Console<T, F> {
    /// `format(record, out)` appends a record's line, with its end.
    pub fn new(format: F) -> Self {
        Self { format, record: std::marker::PhantomData }
    }
}

fn write_out(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    written.map_err(Error::io("write to", "standard output"))
}

impl<T: Record, F: Fn(&T, &mut Collector<u8>) + Clone + Send + Sync + 'static> Sink
    for Console<T, F>
{
    type Item = T;

    fn identity(&self) -> String {
        "console".into()
    }

    fn recover(&self, handles: Option<&[Vec<u8>]>, _disk: &dyn Disk) -> Result<()> {
        handles.unwrap_or_default().iter().try_for_each(|lines| write_out(lines))
    }

    fn writer(&self, context: &WriterContext) -> Result<Box<dyn Writer<T>>> {
        Ok(Box::new(ConsoleWriter {
            format: self.format.clone(),
            transactional: context.transactional,
            open: Vec::new(),
            prepared: VecDeque::new(),
            held_bytes: 0,
        }))
    }
}

struct ConsoleWriter<F> {
    format: F,
    transactional: bool,
    open: Vec<u8>,
    prepared: VecDeque<(SnapshotId, Vec<u8>)>,
    /// Bytes in `prepared`.
    held_bytes: usize,
}

impl<T, F: Fn(&T, &mut Collector<u8>) + Send> Writer<T> for ConsoleWriter<F> {
    fn write(&mut self, records: &mut Batch<'_, T>) -> Result<Flow> {
        for record in records.drain(usize::MAX) {
            (self.format)(&record, Collector::over(&mut self.open));
        }
        if !self.transactional {
            if self.open.len() >= WRITE_BYTES {
                write_out(&self.open)?;
                self.open.clear();
            }
        } else if self.open.len() + self.held_bytes > UNCOMMITTED_BYTES_MAX {
            return Err(Error::Limit {
                what: "output held back for standard output".into(),
                limit: format!("{UNCOMMITTED_BYTES_MAX} bytes"),
                remedy: "snapshots are not completing; see the warnings above, or write to files"
                    .into(),
            });
        }
        Ok(Flow::Done)
    }

    fn prepare(&mut self, snapshot: SnapshotId) -> Result<Vec<u8>> {
        let lines = std::mem::take(&mut self.open);
        self.held_bytes += lines.len();
        self.prepared.push_back((snapshot, lines));
        Ok(self.prepared.iter().flat_map(|(_, lines)| lines).copied().collect())
    }

    fn commit(&mut self, snapshot: SnapshotId, _last: bool) -> Result<()> {
        while let Some((_, lines)) = self.prepared.pop_front_if(|(id, _)| *id <= snapshot) {
            self.held_bytes -= lines.len();
            write_out(&lines)?;
        }
        Ok(())
    }

    fn commit_all(&mut self) -> Result<()> {
        write_out(&std::mem::take(&mut self.open))
    }
}
