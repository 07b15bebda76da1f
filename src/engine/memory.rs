//! How much memory there is for state.

use std::fs::read_to_string;
use std::path::Path;

use crate::config::{MEMORY_CHECK_NS, MEMORY_RESERVE_BYTES};
use crate::error::Error;

/// Looks from time to time whether memory is left: a job whose state outgrows it is better ended with an
/// error, and goes on from its last snapshot elsewhere, than killed by the kernel.
#[derive(Debug, Default)]
pub struct Watch {
    next_ns: u64,
}

impl Watch {
    /// The error that the job has to end with, if it has to.
    pub fn check(&mut self, now_ns: u64) -> Option<Error> {
        if now_ns < self.next_ns {
            return None;
        }
        self.next_ns = now_ns + MEMORY_CHECK_NS;
        shortage(available_bytes()?, resident_bytes())
    }
}

fn shortage(available: u64, resident: Option<u64>) -> Option<Error> {
    if available >= MEMORY_RESERVE_BYTES {
        return None;
    }
    let resident = resident.map_or(String::new(), |b| format!(" ({} MiB by this job)", b >> 20));
    Some(Error::Limit {
        what: format!("the memory in use{resident}"),
        limit: format!("all but {} MiB of what there is", MEMORY_RESERVE_BYTES >> 20),
        remedy: format!(
            "{} MiB are left; with snapshots the job goes on from the last one where there is more \
             memory, or with other programs ended",
            available >> 20
        ),
    })
}

/// The error that refuses a job whose state, in bytes, is more than the memory that is available.
pub fn too_large(state: u64, available: u64) -> Option<Error> {
    (state > available).then(|| Error::Limit {
        what: format!("the state of the job, {} MiB,", state >> 20),
        limit: format!("{} MiB of memory that is available", available >> 20),
        remedy: "run it on a machine with more memory, or end what else takes memory on this one"
            .into(),
    })
}

/// Memory that this process has, where the kernel says.
fn resident_bytes() -> Option<u64> {
    let pages = read_to_string("/proc/self/statm").ok()?;
    let resident: u64 = pages.split(' ').nth(1)?.parse().ok()?;
    Some(resident * rustix::param::page_size() as u64)
}

/// Memory that this process can still have without swapping, where the kernel says: what the machine
/// has, or what is left of the control group's limit if that is less.
#[must_use]
pub fn available_bytes() -> Option<u64> {
    let machine = read_to_string("/proc/meminfo").ok().and_then(|text| in_meminfo(&text));
    let group = read_to_string("/proc/self/cgroup").ok().and_then(|text| in_group(&text));
    machine.into_iter().chain(group).min()
}

fn in_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// What is left of the limit of this process's group (control groups, version 2).
fn in_group(text: &str) -> Option<u64> {
    let group = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let group = Path::new("/sys/fs/cgroup").join(group);
    let number = |file: &str| read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok();
    Some(number("memory.max")?.saturating_sub(number("memory.current")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_memory_left_is_an_error_with_sizes_and_enough_is_none() {
        assert!(shortage(MEMORY_RESERVE_BYTES, None).is_none());
        let error = shortage(5 << 20, Some(900 << 20)).unwrap();
        let text = error.to_string();
        assert!(text.contains("900 MiB by this job") && text.contains("5 MiB are left"), "{text}");
        assert!(!error.is_retryable());
        let mut watch = Watch::default();
        assert!(watch.check(7).is_none() && watch.next_ns == 7 + MEMORY_CHECK_NS);
        assert!(resident_bytes().is_none_or(|bytes| bytes > 1 << 20));
    }

    #[test]
    fn state_larger_than_memory_is_an_error_with_sizes_and_state_that_fits_is_none() {
        assert!(too_large(900 << 20, 900 << 20).is_none());
        let error = too_large((901 << 20) + 5, 900 << 20).unwrap();
        let text = error.to_string();
        assert!(text.contains("of the job, 901 MiB") && text.contains("900 MiB of mem"), "{text}");
        assert!(!error.is_retryable());
    }

    #[test]
    fn the_kernel_says_how_much_memory_is_available() {
        let text = "MemTotal:       100 kB\nMemAvailable:     24 kB\n";
        assert_eq!(in_meminfo(text), Some(24 << 10));
        assert_eq!(in_meminfo("MemTotal: 100 kB"), None);
        assert_eq!(in_group("1:cpu:/a"), None);
        assert!(available_bytes().is_none_or(|bytes| bytes > 1 << 20));
    }
}
