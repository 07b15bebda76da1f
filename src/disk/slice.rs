//! How long a thread of the engine may run before another that wants its core does: one of the disk's, mostly.
//!
//! A worker that never waits is taken from its core by the scheduler alone. Linux lets a thread run for its *slice*,
//! some 3 ms, before one that has become ready: the kernel's thread that sends a flush to the disk, or the
//! one that commits. A snapshot has several such waits one behind the other. With slices of 0.1 ms a thread of the highest
//! ordinary priority beside two workers is late by 0.06 instead of 1 ms at p99 (`perf/0006-snapshots-once-more.md`). Who has
//! a short slice also gets a core sooner, so the thread that triggers and commits has one too. A core without
//! other threads is not concerned.
//!
//! Linux 6.12 and later take a thread's wish for a slice, without any right; before that it is ignored.

#![expect(unsafe_code, reason = "the call has no wrapper")]

use std::io;
use std::mem::size_of;

use libc::{SYS_sched_getattr, SYS_sched_setattr, sched_attr, syscall};

/// The slice, ns: the least that the kernel takes.
const SLICE_NS: u64 = 100_000;

/// While it lives, the thread that made it has a short slice, and so have those that it starts.
#[must_use = "dropped, it takes the wish back"]
pub struct ShortSlice {
    /// How the thread was scheduled before.
    before: Option<sched_attr>,
}

impl ShortSlice {
    /// One for the calling thread. Nothing comes of it where the thread is not scheduled by time shares, or the
    /// system has none to wish for: that is no reason not to run.
    pub fn wish() -> Self {
        let is_shared = |before: &sched_attr| before.sched_policy == libc::SCHED_OTHER as u32;
        let before = current().ok().filter(is_shared);
        let wished =
            before.filter(|before| set(&sched_attr { sched_runtime: SLICE_NS, ..*before }).is_ok());
        Self { before: wished }
    }
}

impl Drop for ShortSlice {
    fn drop(&mut self) {
        // What could be wished for can be taken back.
        self.before.iter().for_each(|before| _ = set(before));
    }
}

/// How the calling thread is scheduled.
fn current() -> io::Result<sched_attr> {
    // SAFETY: plain numbers, of which all may be 0.
    let mut attributes: sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of::<sched_attr>();
    // SAFETY: the kernel writes at most `size` bytes.
    let done = unsafe { syscall(SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    attributes.size = size as u32;
    if done == 0 { Ok(attributes) } else { Err(io::Error::last_os_error()) }
}

fn set(attributes: &sched_attr) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as `size` says, which is those of the struct.
    let done = unsafe { syscall(SYS_sched_setattr, 0, attributes, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The version of the kernel, as far as it counts here.
    fn version() -> (u32, u32) {
        let name = rustix::system::uname();
        let release = name.release().to_str().expect("text");
        let mut numbers = release.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }

    #[test]
    fn only_the_slice_is_another_and_only_for_a_while() {
        let all = |of: sched_attr| {
            (of.sched_policy, of.sched_nice, of.sched_flags, of.sched_priority, of.sched_runtime)
        };
        let before = current().expect("it can be asked for");
        let short = ShortSlice::wish();
        let mut expected = all(before);
        if version() >= (6, 12) && before.sched_policy == libc::SCHED_OTHER as u32 {
            expected.4 = SLICE_NS;
        }
        assert_eq!(all(current().expect("it can be asked for")), expected);
        drop(short);
        assert_eq!(all(current().expect("it can be asked for")), all(before));
    }
}
