//! The queue over io_uring: a write and its sync are two linked submissions.
//!
//! Invariants
//! - A slot owns the file and the buffer of its operation and is emptied only when every completion
//!   the kernel owes for it has been reaped. Dropping the queue waits for them; if even waiting
//!   fails, slots are leaked rather than freed under the kernel.
//! - At most two submissions per slot are in the ring, which has room for two per slot, so neither
//!   ring overflows.
//! - A short write breaks the link: the kernel cancels the sync behind it. The rest is then
//!   submitted with a new sync, and only a sync behind the last byte counts.
//!
//! The copy into the page cache happens inside `submit` (buffered I/O without waiting); what would
//! wait for the device, the sync always, goes to the kernel's own threads.

#![expect(unsafe_code, reason = "the kernel works on buffers that the slots keep alive")]

use std::io;

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, Probe, opcode, squeue};
use rustix::io::Errno;

use super::lateness::{LATENESS, Watch};
use super::system::SystemQueue;
use super::{Bytes, Completion, DIRECT_BYTES, DiskQueue, FileHandle, Operation, Ticket};
use crate::clock;

/// One submission moves at most this much: the kernel's own bound is just below 2 GiB.
const TRANSFER_BYTES_MAX: usize = 1 << 30;

/// Queue of [`UringDisk`](super::UringDisk).
pub struct UringQueue {
    ring: IoUring,
    /// Fixed length: the depth. Declared behind `ring`, so the ring closes first.
    slots: Vec<Option<Slot>>,
    /// Completions the kernel owes, over all slots.
    owed: usize,
    watch: Watch,
    next_ticket: u64,
}

struct Slot {
    ticket: Ticket,
    operation: Operation,
    /// Bytes transferred so far.
    done: usize,
    /// Completions the kernel owes for this slot: 0 to 2.
    owed: usize,
    /// A read met the end of the file.
    ended: bool,
    /// A sync succeeded and no write was submitted since.
    synced: bool,
    error: Option<io::Error>,
}

/// Which of a slot's two submissions a completion is for: the low bit of `user_data`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Transfer = 0,
    Sync = 1,
}

/// Whether this system allows io_uring with what the queue needs; why not otherwise.
pub(super) fn probe() -> Result<(), String> {
    let ring = IoUring::new(2).map_err(|error| {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::PERM | Errno::ACCESS) => {
            "the system refuses io_uring (see /proc/sys/kernel/io_uring_disabled, or a container's \
             seccomp profile)"
                .to_owned()
        }
        Some(Errno::NOSYS) => "this kernel has no io_uring".to_owned(),
        _ => format!("cannot set up io_uring: {error}"),
    }
    })?;
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(|error| format!("cannot ask io_uring what it supports: {error}"))?;
    for (code, name) in [
        (opcode::Write::CODE, "write"),
        (opcode::Read::CODE, "read"),
        (opcode::Fsync::CODE, "fsync"),
    ] {
        if !probe.is_supported(code) {
            return Err(format!("io_uring of this kernel does not support {name}"));
        }
    }
    Ok(())
}

/// From now on the kernel's threads that do for the calling thread what would block it run on these cores only.
/// They belong to the thread, not to a ring: it must be the one that will submit.
///
/// # Errors
/// What the system says: io_uring is refused, or the process may not use one of these cores. Of cores that the
/// machine has not, the system may say nothing.
pub fn place_kernel_threads(cores: &[usize]) -> io::Result<()> {
    // SAFETY: a set of processors is plain bits; here none is set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for core in cores {
        if *core >= libc::CPU_SETSIZE as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the set has a bit for each number below CPU_SETSIZE.
        unsafe { libc::CPU_SET(*core, &mut set) };
    }
    IoUring::new(1)?.submitter().register_iowq_aff(&set)
}

/// A ring whose completions do not interrupt the thread that waits for them: what the kernel has to do for one in the
/// thread's own time is done when it looks for them, or is in the kernel anyway. Kernels before 5.19 know only
/// the other way.
fn ring(entries: u32) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.dontfork().setup_coop_taskrun().setup_taskrun_flag();
    match builder.build(entries) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            IoUring::builder().dontfork().build(entries)
        }
        built => built,
    }
}

impl SystemQueue for UringQueue {
    fn with_depth(depth: usize) -> io::Result<Self> {
        assert!((1..=1024).contains(&depth), "a queue of depth {depth}");
        let ring = ring(2 * depth as u32)?;
        let slots = (0..depth).map(|_| None).collect();
        Ok(Self { ring, slots, owed: 0, watch: Watch::default(), next_ticket: 0 })
    }
}

impl DiskQueue for UringQueue {
    fn submit(&mut self, operation: Operation) -> Result<Ticket, Operation> {
        let ticket = self.accept(operation)?;
        self.enter();
        Ok(ticket)
    }

    fn submit_all(&mut self, operations: Vec<Operation>) -> Vec<Ticket> {
        let accepted = operations.into_iter().map(|operation| self.accept(operation));
        let tickets = accepted.map(|ticket| ticket.expect("the queue takes all of them")).collect();
        self.enter();
        tickets
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) {
        if self.owed == 0 {
            return;
        }
        self.enter();
        if self.reap(completions) {
            self.watch.restart(clock::now_ns());
        } else {
            self.watch.nothing_came(clock::now_ns(), &LATENESS);
        }
        self.enter();
    }

    fn in_flight(&self) -> usize {
        self.slots.iter().flatten().count()
    }
}

impl UringQueue {
    /// Puts an operation into the submission ring.
    fn accept(&mut self, operation: Operation) -> Result<Ticket, Operation> {
        let Some(index) = self.slots.iter().position(Option::is_none) else {
            return Err(operation);
        };
        if self.owed == 0 {
            self.watch.restart(clock::now_ns());
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.slots[index] = Some(Slot::new(ticket, operation));
        self.push(index);
        Ok(ticket)
    }

    /// Hands the kernel what is in the submission ring, and lets it do what it has put off. A passing refusal is
    /// made good by the next poll: the submissions stay where they are.
    fn enter(&mut self) {
        let submission = self.ring.submission();
        if submission.is_empty() && !submission.taskrun() {
            return;
        }
        drop(submission);
        if let Err(error) = self.ring.submit() {
            let passing = matches!(
                error.raw_os_error().map(Errno::from_raw_os_error),
                Some(Errno::INTR | Errno::AGAIN | Errno::BUSY | Errno::NOMEM | Errno::BADR)
            );
            assert!(passing, "io_uring refuses valid submissions: {error}");
        }
    }

    /// Takes in what has come; whether anything had.
    fn reap(&mut self, completions: &mut Vec<Completion>) -> bool {
        let mut came = false;
        loop {
            let Some(entry) = self.ring.completion().next() else { break };
            let index = (entry.user_data() >> 1) as usize;
            let part = if entry.user_data() & 1 == 0 { Part::Transfer } else { Part::Sync };
            came = true;
            self.owed -= 1;
            let slot = self.slots[index].as_mut().expect("a completion for a slot in use");
            slot.owed -= 1;
            slot.complete(part, entry.result());
            if slot.owed > 0 {
                continue;
            }
            if slot.is_finished() {
                completions.extend(self.slots[index].take().map(Slot::into_completion));
            } else {
                self.push(index);
            }
        }
        came
    }

    /// Puts what the slot's operation still needs into the submission ring.
    fn push(&mut self, index: usize) {
        let slot = self.slots[index].as_mut().expect("a slot in use");
        debug_assert_eq!(slot.owed, 0, "nothing of the slot is with the kernel");
        let entries = slot.entries((index as u64) << 1);
        let entries: Vec<squeue::Entry> = entries.into_iter().flatten().collect();
        slot.owed = entries.len();
        self.owed += entries.len();
        // SAFETY: file and buffer of the entries are owned by the slot, which is neither touched
        // nor dropped before the kernel has completed every entry.
        let pushed = unsafe { self.ring.submission().push_multiple(&entries) };
        pushed.expect("the ring has room for two submissions per slot");
    }
}

impl Slot {
    /// One of which the kernel has nothing yet.
    fn new(ticket: Ticket, operation: Operation) -> Self {
        Self { ticket, operation, done: 0, owed: 0, ended: false, synced: false, error: None }
    }

    /// The next transfer and the sync behind it, as far as they are needed.
    fn entries(&mut self, user_data: u64) -> [Option<squeue::Entry>; 2] {
        let transfer_data = user_data | Part::Transfer as u64;
        let sync_data = user_data | Part::Sync as u64;
        let done = self.done;
        match &mut self.operation {
            Operation::Write { file, offset, buffer, sync } => {
                let left = buffer.len() - done;
                if left == 0 && *sync && done > 0 {
                    return [Some(sync_entry(file, sync_data)), None];
                }
                let bytes = left.min(TRANSFER_BYTES_MAX);
                let last = bytes == left;
                let write = opcode::Write::new(fd(file), buffer[done..].as_ptr(), bytes as u32)
                    .offset(*offset + done as u64)
                    .build()
                    .user_data(transfer_data);
                self.synced = false;
                // Never in the submitter's own time: ext4 waits there for its lock on the file's extents,
                // up to a third of a second while a journal is being written (perf/0004).
                let flags = squeue::Flags::ASYNC;
                if *sync && last {
                    let write = write.flags(flags | squeue::Flags::IO_LINK);
                    [Some(write), Some(sync_entry(file, sync_data))]
                } else {
                    [Some(write.flags(flags)), None]
                }
            }
            Operation::Read { file, offset, buffer } => {
                let bytes = (buffer.len() - done).min(TRANSFER_BYTES_MAX);
                let read = opcode::Read::new(fd(file), buffer[done..].as_mut_ptr(), bytes as u32)
                    .offset(*offset + done as u64)
                    .build()
                    .user_data(transfer_data);
                [Some(read), None]
            }
            Operation::Sync { file } => [Some(sync_entry(file, sync_data)), None],
        }
    }

    fn complete(&mut self, part: Part, result: i32) {
        let errno = (result < 0).then(|| Errno::from_raw_os_error(-result));
        match (part, errno) {
            (_, Some(Errno::INTR | Errno::AGAIN)) => {}
            // The write before it went short or failed; what is needed is submitted again.
            (Part::Sync, Some(Errno::CANCELED)) if self.is_linked() => {}
            (_, Some(errno)) => self.error = Some(self.error.take().unwrap_or(errno.into())),
            (Part::Sync, None) => self.synced = true,
            (Part::Transfer, None) => {
                let before = self.done;
                self.done += result as usize;
                if self.is_direct_write() && self.done < self.operation_bytes() {
                    // The rest has to begin at a multiple again.
                    self.done -= self.done % DIRECT_BYTES;
                }
                self.ended = self.done == before;
            }
        }
    }

    fn is_direct_write(&self) -> bool {
        matches!(&self.operation, Operation::Write { file, .. } if file.is_direct())
    }

    fn operation_bytes(&self) -> usize {
        match &self.operation {
            Operation::Write { buffer, .. } | Operation::Read { buffer, .. } => buffer.len(),
            Operation::Sync { .. } => 0,
        }
    }

    fn is_linked(&self) -> bool {
        matches!(self.operation, Operation::Write { .. })
    }

    /// Whether nothing is left to submit. Called when the kernel owes nothing for the slot.
    fn is_finished(&mut self) -> bool {
        if self.error.is_some() {
            return true;
        }
        match &self.operation {
            Operation::Write { buffer, sync, .. } if self.done == buffer.len() => {
                !*sync || self.synced
            }
            Operation::Write { .. } if self.ended => {
                self.error = Some(io::ErrorKind::WriteZero.into());
                true
            }
            Operation::Write { .. } => false,
            Operation::Read { buffer, .. } => self.ended || self.done == buffer.len(),
            Operation::Sync { .. } => self.synced,
        }
    }

    fn into_completion(self) -> Completion {
        let result = self.error.map_or(Ok(self.done), Err);
        let buffer = match self.operation {
            Operation::Write { buffer, .. } => buffer,
            Operation::Read { mut buffer, .. } => {
                buffer.truncate(*result.as_ref().unwrap_or(&0));
                buffer
            }
            Operation::Sync { .. } => Bytes::default(),
        };
        Completion { ticket: self.ticket, buffer, result }
    }
}

fn sync_entry(file: &FileHandle, user_data: u64) -> squeue::Entry {
    opcode::Fsync::new(fd(file)).flags(FsyncFlags::DATASYNC).build().user_data(user_data)
}

fn fd(file: &FileHandle) -> Fd {
    Fd(file.descriptor().expect("a file of this system, not one in memory"))
}

impl Drop for UringQueue {
    fn drop(&mut self) {
        let mut completions = Vec::new();
        while self.owed > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(_) => _ = self.reap(&mut completions),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    // The kernel may still write into these buffers: memory lost, not corrupted.
                    std::mem::forget(std::mem::take(&mut self.slots));
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(bytes: usize, sync: bool) -> Slot {
        let file = FileHandle::system(tempfile::tempfile().unwrap());
        let buffer = vec![0; bytes].into();
        let operation = Operation::Write { file, offset: 0, buffer, sync };
        Slot::new(Ticket(0), operation)
    }

    fn submissions(slot: &mut Slot) -> usize {
        slot.entries(0).into_iter().flatten().count()
    }

    const CANCELED: i32 = -(Errno::CANCELED.raw_os_error());

    #[test]
    fn a_short_write_is_continued_and_the_sync_behind_it_issued_again() {
        // The kernel cancels the sync behind a short write; some versions might run it.
        for sync_result in [CANCELED, 0] {
            let mut slot = slot(100, true);
            assert_eq!(submissions(&mut slot), 2);
            slot.complete(Part::Transfer, 40);
            slot.complete(Part::Sync, sync_result);
            assert!(!slot.is_finished());
            assert_eq!(submissions(&mut slot), 2);
            assert!(!slot.synced, "a sync before the last byte does not count");
            slot.complete(Part::Sync, 0);
            slot.complete(Part::Transfer, 60);
            assert!(slot.is_finished());
            assert_eq!(slot.into_completion().result.unwrap(), 100);
        }
    }

    #[test]
    fn a_sync_that_was_interrupted_behind_a_whole_write_is_issued_alone() {
        let mut slot = slot(100, true);
        assert_eq!(submissions(&mut slot), 2);
        slot.complete(Part::Transfer, 100);
        slot.complete(Part::Sync, -(Errno::INTR.raw_os_error()));
        assert!(!slot.is_finished());
        assert_eq!(submissions(&mut slot), 1);
        slot.complete(Part::Sync, 0);
        assert!(slot.is_finished());
    }

    #[test]
    fn the_error_is_that_of_the_write_not_of_the_sync_it_cancelled() {
        let mut slot = slot(100, true);
        assert_eq!(submissions(&mut slot), 2);
        slot.complete(Part::Sync, CANCELED);
        slot.complete(Part::Transfer, -(Errno::NOSPC.raw_os_error()));
        assert!(slot.is_finished());
        let error = slot.into_completion().result.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn a_write_that_moves_nothing_fails_instead_of_looping() {
        let mut slot = slot(100, false);
        assert_eq!(submissions(&mut slot), 1);
        slot.complete(Part::Transfer, 0);
        assert!(slot.is_finished());
        let error = slot.into_completion().result.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }

    #[test]
    fn a_failed_sync_is_an_error_though_the_write_was_whole() {
        let mut slot = slot(100, true);
        assert_eq!(submissions(&mut slot), 2);
        slot.complete(Part::Transfer, 100);
        slot.complete(Part::Sync, -(Errno::IO.raw_os_error()));
        assert!(slot.is_finished());
        assert!(slot.into_completion().result.is_err());
    }
}
