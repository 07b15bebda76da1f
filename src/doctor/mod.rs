//! Whether this machine lets tidegate do what it promises, and how to mend what does not.
//!
//! Owns the checks, each a [`Check`] with what was found and a remedy. Printing them is the command
//! line's business. A check comes in two parts: reading the machine, and a pure judgement of what was
//! read, so that every verdict is tested without such a machine.
//!
//! Invariants
//! - Every check that is not [`Status::Ok`] has a remedy that says what to type or change.
//! - What cannot be read is never a failure by itself: it is said, and judged `Ok`.
//! - Nothing is left behind: the probe file has no name while it is used.

mod disk;
mod kernel;
mod processor;

use std::path::Path;

use serde::Serialize;

/// Verdict of a check, from good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// A job runs, but slower, by a fallback, or with less certainty.
    Warn,
    /// A job cannot run here.
    Fail,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at: "io_uring".
    pub name: &'static str,
    /// The verdict.
    pub status: Status,
    /// What was found, in one line.
    pub found: String,
    /// What to do about it, in one line; none exactly if all is well.
    pub remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, found: found.into(), remedy: None }
    }

    fn warn(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into());
        Self { name, status: Status::Warn, found: found.into(), remedy }
    }

    fn fail(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into());
        Self { name, status: Status::Fail, found: found.into(), remedy }
    }
}

/// All checks, with `directory` as the place where snapshots would go. Takes well below a second on
/// a disk that works. `now_ns` is a monotonic clock, such as [`now_ns`](crate::clock::now_ns).
#[must_use]
pub fn examine(directory: &Path, now_ns: impl Fn() -> u64) -> Vec<Check> {
    let mut checks = vec![build(cfg!(debug_assertions))];
    checks.extend(kernel::examine());
    checks.extend(disk::examine(directory, &now_ns));
    checks.extend(processor::examine(&now_ns));
    checks
}

/// The worst verdict among `checks`; `Ok` if there are none.
#[must_use]
pub fn worst(checks: &[Check]) -> Status {
    checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok)
}

fn build(has_debug_assertions: bool) -> Check {
    let name = "build";
    if has_debug_assertions {
        return Check::warn(
            name,
            "debug build: several times slower, its figures mean nothing",
            "build with `cargo build --release`, or run with `cargo run --release`",
        );
    }
    Check::ok(name, "release build")
}

/// The trimmed text of a small file of the kernel's, if it can be read.
fn kernel_file(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn every_check_that_is_not_ok_has_a_remedy_and_no_name_comes_twice() {
        let directory = tempfile::tempdir().expect("a directory");
        let checks = examine(directory.path(), clock::now_ns);
        for check in &checks {
            assert_eq!(check.remedy.is_none(), check.status == Status::Ok, "{check:?}");
            assert!(!check.found.is_empty() && !check.found.contains('\n'), "{check:?}");
        }
        let mut names: Vec<&str> = checks.iter().map(|check| check.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), checks.len());
        let left = std::fs::read_dir(directory.path()).expect("a directory").count();
        assert_eq!(left, 0, "the probe file is gone");
    }

    #[test]
    fn a_debug_build_is_flagged() {
        assert_eq!((build(true).status, build(false).status), (Status::Warn, Status::Ok));
    }

    #[test]
    fn the_worst_verdict_counts() {
        let ok = Check::ok("a", "b");
        assert_eq!(worst(&[]), Status::Ok);
        assert_eq!(worst(&[ok.clone(), Check::warn("a", "b", "c")]), Status::Warn);
        assert_eq!(worst(&[Check::fail("a", "b", "c"), ok]), Status::Fail);
    }
}
