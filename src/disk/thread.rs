//! The queue where io_uring is refused: one side thread per queue does plain positional I/O, so
//! that a sync never blocks the worker that asked for it.
//!
//! Operations run one after the other; a dropped queue waits until the thread has run them all.

#![allow(
    clippy::disallowed_methods,
    reason = "the side thread is what this queue is; it starts nowhere but here"
)]

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use super::lateness::LATENESS;
use super::system::SystemQueue;
use super::{Bytes, Completion, DiskQueue, Operation, Ticket};
use crate::clock;

/// Queue of [`ThreadDisk`](super::ThreadDisk).
pub struct ThreadQueue {
    /// `None` only while dropping.
    operations: Option<Sender<(Ticket, Operation)>>,
    completions: Receiver<Completion>,
    thread: Option<JoinHandle<()>>,
    depth: usize,
    in_flight: usize,
    next_ticket: u64,
}

impl SystemQueue for ThreadQueue {
    fn with_depth(depth: usize) -> io::Result<Self> {
        assert!(depth > 0, "a queue of depth 0");
        let (operations, received) = channel();
        let (completed, completions) = channel();
        let thread = std::thread::Builder::new()
            .name("tidegate-disk".into())
            .spawn(move || run(&received, &completed))?;
        Ok(Self {
            operations: Some(operations),
            completions,
            thread: Some(thread),
            depth,
            in_flight: 0,
            next_ticket: 0,
        })
    }
}

fn run(operations: &Receiver<(Ticket, Operation)>, completed: &Sender<Completion>) {
    for (ticket, operation) in operations {
        let (buffer, result) = perform(operation);
        if completed.send(Completion { ticket, buffer, result }).is_err() {
            // The queue is being dropped: nobody wants completions, what is accepted still runs.
            continue;
        }
    }
}

pub(super) fn perform(operation: Operation) -> (Bytes, io::Result<usize>) {
    match operation {
        Operation::Write { file, offset, buffer, sync } => {
            let write = || file.write_all_at(&buffer, offset);
            let mut result = LATENESS.blocked(clock::now_ns, write);
            if sync && result.is_ok() {
                result = file.sync_data();
            }
            let written = buffer.len();
            (buffer, result.map(|()| written))
        }
        Operation::Read { file, offset, mut buffer } => {
            let result = file.read_at(&mut buffer, offset);
            buffer.truncate(*result.as_ref().unwrap_or(&0));
            (buffer, result)
        }
        Operation::Sync { file } => (Bytes::default(), file.sync_data().map(|()| 0)),
    }
}

impl DiskQueue for ThreadQueue {
    fn submit(&mut self, operation: Operation) -> Result<Ticket, Operation> {
        if self.in_flight == self.depth {
            return Err(operation);
        }
        let ticket = Ticket(self.next_ticket);
        let operations = self.operations.as_ref().expect("present until dropped");
        operations.send((ticket, operation)).expect("the thread ends only after this sender");
        self.next_ticket += 1;
        self.in_flight += 1;
        Ok(ticket)
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) {
        while let Ok(completion) = self.completions.try_recv() {
            self.in_flight -= 1;
            completions.push(completion);
        }
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl Drop for ThreadQueue {
    fn drop(&mut self) {
        self.operations = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed; what it did not complete nobody waits for any more.
            let _ = thread.join();
        }
    }
}
