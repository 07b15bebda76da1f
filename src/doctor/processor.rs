//! Cores, clock and memory pages: what decides how even the speed is.
//!
//! Invariants
//! - None of these fails a machine: a job runs on any, only slower or less evenly.

use super::{Check, kernel_file};

const CLOCK_READ_NS_SLOW: u64 = 200;
const CLOCK_READS: u64 = 1000;

pub(super) fn examine(now_ns: &impl Fn() -> u64) -> Vec<Check> {
    let source = kernel_file("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    let online = kernel_file("/sys/devices/system/cpu/online");
    let governor = kernel_file("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
    let threading = kernel_file("/sys/devices/system/cpu/smt/active");
    let pages = kernel_file("/sys/kernel/mm/transparent_hugepage/enabled");
    vec![
        clock(source.as_deref(), read_cost_ns(now_ns)),
        cores(&Cores {
            online: online.as_deref().and_then(count_of_ranges),
            allowed: rustix::thread::sched_getaffinity(None).ok().map(|set| set.count() as usize),
        }),
        quota(kernel_file("/sys/fs/cgroup/cpu.max").as_deref()),
        frequency(governor.as_deref()),
        hyper_threads(threading.as_deref()),
        huge_pages(pages.as_deref()),
    ]
}

/// What one reading of the clock costs, on average.
fn read_cost_ns(now_ns: &impl Fn() -> u64) -> u64 {
    let start = now_ns();
    let end = (0..CLOCK_READS).fold(start, |_, _| now_ns());
    (end - start) / CLOCK_READS
}

fn clock(source: Option<&str>, cost_ns: u64) -> Check {
    let name = "clock";
    let found = format!("{}, {cost_ns} ns a reading", source.unwrap_or("source unknown"));
    // A virtual machine's own sources read the TSC without a system call: judge by what it costs.
    if source == Some("tsc") || cost_ns < CLOCK_READ_NS_SLOW {
        return Check::ok(name, found);
    }
    Check::warn(
        name,
        format!("{found}: every reading is a system call"),
        "where /sys/devices/system/clocksource/clocksource0/available_clocksource lists tsc: echo \
         tsc as root into current_clocksource beside it, or boot with clocksource=tsc",
    )
}

/// How many cores there are, and how many this process may use.
struct Cores {
    online: Option<usize>,
    allowed: Option<usize>,
}

fn cores(cores: &Cores) -> Check {
    let name = "cores";
    match *cores {
        Cores { allowed: None, .. } => Check::ok(name, "cannot be read"),
        Cores { allowed: Some(1), .. } => Check::warn(
            name,
            "1: the worker shares it with the coordinator and everything else",
            "give it two cores or more; expect uneven latency on one",
        ),
        Cores { allowed: Some(allowed), online: Some(online) } if allowed < online => Check::warn(
            name,
            format!("{allowed} of {online} allowed by the affinity mask"),
            format!(
                "use --parallelism {allowed} at most, or widen taskset, cpuset or --cpuset-cpus"
            ),
        ),
        Cores { allowed: Some(allowed), .. } => Check::ok(name, format!("{allowed}, all allowed")),
    }
}

/// How many numbers a list such as `0-3,8` names.
fn count_of_ranges(list: &str) -> Option<usize> {
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some(last.checked_sub(first)? + 1)
    };
    list.split(',').map(count).sum()
}

/// Judges `cpu.max` of the control group: quota and period in microseconds, or "max".
fn quota(limit: Option<&str>) -> Check {
    let name = "cpu quota";
    let mut words = limit.unwrap_or("max").split_whitespace().map(str::parse::<f64>);
    let (Some(Ok(quota)), Some(Ok(period))) = (words.next(), words.next()) else {
        return Check::ok(name, "none found");
    };
    let cores = quota / period;
    Check::warn(
        name,
        format!("{cores:.2} cores: workers that use more are stopped for the rest of each period"),
        format!(
            "use --parallelism {} at most, or take whole cores (--cpuset-cpus) without a quota",
            (cores as usize).max(1)
        ),
    )
}

fn frequency(governor: Option<&str>) -> Check {
    let name = "frequency governor";
    match governor {
        None => Check::ok(name, "cannot be read, as is usual in a virtual machine"),
        Some("performance") => Check::ok(name, "performance"),
        Some(other) => Check::warn(
            name,
            format!("{other}: cores clock down when idle, figures vary"),
            "for measurements, as root: cpupower frequency-set --governor performance",
        ),
    }
}

fn hyper_threads(active: Option<&str>) -> Check {
    let name = "hyper-threads";
    match active {
        None => Check::ok(name, "cannot be read"),
        Some("0") => Check::ok(name, "off: each core is a whole one"),
        Some(_) => Check::warn(
            name,
            "on: two workers may share one physical core",
            "use --parallelism no larger than the number of physical cores (see lscpu)",
        ),
    }
}

/// Judges `always [madvise] never`, where the brackets mark the choice.
fn huge_pages(setting: Option<&str>) -> Check {
    let name = "huge pages";
    let chosen = |text: &str| Some(text.split_once('[')?.1.split_once(']')?.0.to_string());
    match setting.and_then(chosen).as_deref() {
        None => Check::ok(name, "cannot be read"),
        Some("never") => Check::warn(
            name,
            "never: large state costs more address translation",
            "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        Some(other) => Check::ok(name, other),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn judged(online: usize, allowed: usize) -> Status {
        cores(&Cores { online: Some(online), allowed: Some(allowed) }).status
    }

    #[test]
    fn cores_count_only_if_the_process_may_use_them() {
        assert_eq!(judged(4, 4), Status::Ok);
        assert_eq!(judged(4, 2), Status::Warn);
        assert_eq!(judged(1, 1), Status::Warn);
        assert_eq!(cores(&Cores { online: None, allowed: Some(8) }).status, Status::Ok);
        assert_eq!(cores(&Cores { online: Some(8), allowed: None }).status, Status::Ok);
    }

    #[test]
    fn a_list_of_cores_is_counted() {
        assert_eq!(count_of_ranges("0-3,8,10-11"), Some(7));
        assert_eq!(count_of_ranges("0"), Some(1));
        assert_eq!(count_of_ranges(""), None);
        assert_eq!(count_of_ranges("3-1"), None);
    }

    #[test]
    fn a_quota_is_flagged_with_the_parallelism_that_fits() {
        assert_eq!(quota(None).status, Status::Ok);
        assert_eq!(quota(Some("max 100000")).status, Status::Ok);
        let limited = quota(Some("250000 100000"));
        assert_eq!(limited.status, Status::Warn);
        assert!(limited.remedy.is_some_and(|text| text.contains("--parallelism 2 ")));
    }

    #[test]
    fn a_clock_is_judged_by_its_source_and_its_cost() {
        assert_eq!(clock(Some("tsc"), 900).status, Status::Ok);
        assert_eq!(clock(Some("kvm-clock"), 50).status, Status::Ok);
        assert_eq!(clock(Some("hpet"), 1500).status, Status::Warn);
        assert_eq!(clock(None, 50).status, Status::Ok);
        let time = std::cell::Cell::new(0);
        assert_eq!(read_cost_ns(&|| time.replace(time.get() + 30)), 30);
    }

    #[test]
    fn settings_of_the_system_are_read_as_the_kernel_writes_them() {
        assert_eq!(huge_pages(Some("always [madvise] never")).found, "madvise");
        assert_eq!(huge_pages(Some("always madvise [never]")).status, Status::Warn);
        assert_eq!(frequency(Some("powersave")).status, Status::Warn);
        assert_eq!(frequency(Some("performance")).status, Status::Ok);
        assert_eq!(hyper_threads(Some("1")).status, Status::Warn);
        assert_eq!(hyper_threads(Some("0")).status, Status::Ok);
    }
}
