//! How much memory there is for state.

use std::fs::read_to_string;
use std::path::Path;

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
    fn the_kernel_says_how_much_memory_is_available() {
        let text = "MemTotal:       100 kB\nMemAvailable:     24 kB\n";
        assert_eq!(in_meminfo(text), Some(24 << 10));
        assert_eq!(in_meminfo("MemTotal: 100 kB"), None);
        assert_eq!(in_group("1:cpu:/a"), None);
        assert!(available_bytes().is_none_or(|bytes| bytes > 1 << 20));
    }
}
