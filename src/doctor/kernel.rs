//! Kernel version, io_uring and locked memory: what decides between io_uring and the fallback; and whom the
//! scheduler lets wait.
//!
//! Invariants
//! - None of these fails a machine: where io_uring is refused, workers run as plain pinned threads
//!   with positional file I/O.

use std::io;

use io_uring::{IoUring, Probe, opcode};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::{Check, kernel_file};
use crate::engine::{MEMLOCK_BYTES_MIN, MEMLOCK_REMEDY, try_executor};

const KERNEL_MIN: (u32, u32) = (5, 8);
/// A job of a few workers with snapshots keeps a few dozen files open.
const OPEN_FILES_MIN: u64 = 256;
const FALLBACK: &str = "workers fall back to plain threads";

pub(super) fn examine() -> Vec<Check> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    vec![
        kernel(&release),
        io_uring(&try_ring(), kernel_file("/proc/sys/kernel/io_uring_disabled").as_deref()),
        memlock(getrlimit(Resource::Memlock).current),
        open_files(getrlimit(Resource::Nofile).current),
        scheduler(kernel_file("/proc/sys/kernel/sched_autogroup_enabled").as_deref()),
        executor(try_executor().map_err(|error| error.to_string())),
        container(&container_marks()),
    ]
}

fn kernel(release: &str) -> Check {
    let name = "kernel";
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Check::ok(name, format!("Linux {release}, a version this check cannot read"));
    };
    if (major, minor) >= KERNEL_MIN {
        return Check::ok(name, format!("Linux {release}"));
    }
    let (need_major, need_minor) = KERNEL_MIN;
    Check::warn(
        name,
        format!("Linux {release} is too old for io_uring as used here; {FALLBACK}"),
        format!("boot Linux {need_major}.{need_minor} or newer"),
    )
}

/// Creates a ring and lists what is missing of the operations needed.
fn try_ring() -> io::Result<Vec<&'static str>> {
    let ring = IoUring::new(8)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        ("read", opcode::Read::CODE),
        ("write", opcode::Write::CODE),
        ("fsync", opcode::Fsync::CODE),
        ("openat", opcode::OpenAt::CODE),
        ("timeout", opcode::Timeout::CODE),
        ("poll", opcode::PollAdd::CODE),
    ];
    let missing = needed.iter().filter(|(_, code)| !probe.is_supported(*code));
    Ok(missing.map(|(name, _)| *name).collect())
}

/// Judges the attempt; `disabled` is the sysctl `kernel.io_uring_disabled`.
fn io_uring(attempt: &io::Result<Vec<&'static str>>, disabled: Option<&str>) -> Check {
    let name = "io_uring";
    let error = match attempt {
        Ok(missing) if missing.is_empty() => return Check::ok(name, "a ring was created"),
        Ok(missing) => {
            let found = format!("the kernel lacks {}; {FALLBACK}", missing.join(", "));
            return Check::warn(name, found, "boot a newer kernel");
        }
        Err(error) => error,
    };
    let refused = |why: &str, remedy: &str| {
        Check::warn(name, format!("refused ({error}): {why}; {FALLBACK}"), remedy)
    };
    match (Errno::from_io_error(error), disabled) {
        (Some(Errno::NOSYS), _) => refused(
            "this kernel was built without it, or a sandbox such as gVisor hides it",
            "boot a kernel with CONFIG_IO_URING, or leave the sandbox",
        ),
        (Some(Errno::PERM | Errno::ACCESS), Some("2")) => refused(
            "kernel.io_uring_disabled is 2, off for everybody",
            "as root on the host: sysctl -w kernel.io_uring_disabled=0",
        ),
        (Some(Errno::PERM | Errno::ACCESS), Some("1")) => refused(
            "kernel.io_uring_disabled is 1, on for members of kernel.io_uring_group only",
            "join that group, or as root on the host: sysctl -w kernel.io_uring_disabled=0",
        ),
        (Some(Errno::PERM | Errno::ACCESS), _) => refused(
            "a seccomp filter or security module, as Docker's default profile does",
            "start the container with --security-opt seccomp=PROFILE, where PROFILE is Docker's \
             default with io_uring_setup, io_uring_enter and io_uring_register allowed",
        ),
        (Some(Errno::NOMEM), _) => refused(
            "too little memory may be locked",
            "raise the memlock limit, see the check of that name",
        ),
        (Some(Errno::MFILE | Errno::NFILE), _) => {
            refused("too many open files", "raise the limit with: ulimit -n 4096")
        }
        _ => refused("an error this check does not know", "look at dmesg, and report it"),
    }
}

/// Judges the limit in bytes; none means without limit.
fn memlock(limit_bytes: Option<u64>) -> Check {
    let name = "memlock";
    match limit_bytes {
        None => Check::ok(name, "unlimited"),
        Some(bytes) if bytes >= MEMLOCK_BYTES_MIN => {
            Check::ok(name, format!("{} KiB may be locked", bytes / 1024))
        }
        Some(bytes) => Check::warn(
            name,
            format!(
                "only {} KiB may be locked, glommio asks for {}; {FALLBACK}",
                bytes / 1024,
                MEMLOCK_BYTES_MIN / 1024
            ),
            MEMLOCK_REMEDY,
        ),
    }
}

/// Judges the limit; none means without limit.
fn open_files(limit: Option<u64>) -> Check {
    let name = "open files";
    match limit {
        None => Check::ok(name, "unlimited"),
        Some(files) if files >= OPEN_FILES_MIN => Check::ok(name, format!("{files} at once")),
        Some(files) => Check::warn(
            name,
            format!("only {files} at once: a job with many workers may not start"),
            "in a shell: ulimit -n 4096; Docker: --ulimit nofile=4096; systemd: LimitNOFILE=4096",
        ),
    }
}

/// Judges what an attempt to start an executor came to.
fn executor(attempt: Result<(), String>) -> Check {
    let name = "executor";
    match attempt {
        Ok(()) => Check::ok(name, "glommio starts one"),
        Err(reason) => Check::warn(
            name,
            format!("glommio starts none ({reason}); {FALLBACK}"),
            "mend what the checks of io_uring, memlock and open files say",
        ),
    }
}

/// `grouped` is the sysctl `kernel.sched_autogroup_enabled`.
fn scheduler(grouped: Option<&str>) -> Check {
    let name = "scheduler";
    match grouped {
        Some("1") => {}
        Some(_) => return Check::ok(name, "does not group processes by session"),
        None => return Check::ok(name, "is not known to group processes by session"),
    }
    Check::warn(
        name,
        "groups processes by session: the kernel's threads for the disk may have to wait beside workers \
         that never sleep, and snapshots with them",
        "sysctl kernel.sched_autogroup_enabled=0",
    )
}

/// What of the things that container engines leave behind is here.
fn container_marks() -> Vec<&'static str> {
    let exists = |path: &str| std::path::Path::new(path).exists();
    let groups = kernel_file("/proc/1/cgroup").unwrap_or_default();
    let marks = [
        ("/.dockerenv", exists("/.dockerenv")),
        ("/run/.containerenv", exists("/run/.containerenv")),
        ("KUBERNETES_SERVICE_HOST", std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()),
        (
            "/proc/1/cgroup",
            ["docker", "kubepods", "lxc", "containerd"].iter().any(|word| groups.contains(word)),
        ),
    ];
    marks.iter().filter(|(_, here)| *here).map(|(mark, _)| *mark).collect()
}

/// A hint, not a fault: it explains the other findings.
fn container(marks: &[&str]) -> Check {
    let name = "container";
    if marks.is_empty() {
        return Check::ok(name, "no sign of one");
    }
    let found = format!(
        "probably inside one ({}): its engine may limit io_uring, memlock and cores",
        marks.join(", ")
    );
    Check::ok(name, found)
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn a_kernel_is_judged_by_its_numbers_not_by_its_letters() {
        for good in ["5.8.0", "5.10.0-8-amd64", "6.18.44-x", "10.0", "unreadable"] {
            assert_eq!(kernel(good).status, Status::Ok, "{good}");
        }
        for old in ["5.7.19", "4.19.0", "3.10.0-1160.el7"] {
            assert_eq!(kernel(old).status, Status::Warn, "{old}");
        }
    }

    #[test]
    fn each_way_to_refuse_io_uring_has_its_own_remedy() {
        let refusal = |errno: Errno, disabled| io_uring(&Err(errno.into()), disabled);
        let checks = [
            refusal(Errno::NOSYS, None),
            refusal(Errno::PERM, Some("2")),
            refusal(Errno::PERM, Some("1")),
            refusal(Errno::PERM, Some("0")),
            refusal(Errno::NOMEM, Some("0")),
            refusal(Errno::MFILE, Some("0")),
            refusal(Errno::INVAL, None),
            io_uring(&Ok(vec!["write"]), None),
        ];
        let mut remedies: Vec<_> = checks.iter().map(|check| check.remedy.clone()).collect();
        assert!(checks.iter().all(|check| check.status == Status::Warn));
        remedies.sort();
        remedies.dedup();
        assert_eq!(remedies.len(), checks.len());
        assert_eq!(refusal(Errno::PERM, None).remedy, refusal(Errno::PERM, Some("0")).remedy);
        assert_eq!(io_uring(&Ok(vec![]), None).status, Status::Ok);
    }

    #[test]
    fn a_scheduler_that_groups_by_session_is_told_how_not_to() {
        assert_eq!(scheduler(None).status, Status::Ok);
        assert_eq!(scheduler(Some("0")).status, Status::Ok);
        assert_eq!(scheduler(Some("1")).status, Status::Warn);
    }

    #[test]
    fn locked_memory_is_enough_from_512_kib_on() {
        assert_eq!(memlock(None).status, Status::Ok);
        assert_eq!(memlock(Some(512 * 1024)).status, Status::Ok);
        assert_eq!(memlock(Some(512 * 1024 - 1)).status, Status::Warn);
    }

    #[test]
    fn an_executor_that_does_not_start_is_no_failure_and_says_why() {
        assert_eq!(executor(Ok(())).status, Status::Ok);
        let check = executor(Err("too little memory".into()));
        assert_eq!(check.status, Status::Warn);
        assert!(check.found.contains("too little memory") && check.found.contains(FALLBACK));
        assert_eq!(open_files(Some(16)).status, Status::Warn);
        assert_eq!(open_files(None).status, Status::Ok);
    }
}
