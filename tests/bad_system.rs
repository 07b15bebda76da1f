//! Bad circumstances: limits of the system, file systems that refuse, impatient users. For each, one
//! clear message that names the thing and the way out, and nothing hangs.

mod common;
#[allow(dead_code, reason = "this file uses a part of it")]
#[path = "common/command.rs"]
mod command;

use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::process::{Child, Command, Stdio};

use command::{Place, Ran, assert_final, ended, start};
use rustix::process::{Pid, Signal, kill_process};

/// Starts the program below a limit of the shell's, as `ulimit` takes it: "-n 16".
fn start_within<S: AsRef<OsStr>>(limit: &str, arguments: &[S]) -> Child {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("ulimit {limit} && exec \"$0\" \"$@\"")]);
    shell.arg(env!("CARGO_BIN_EXE_tidegate")).args(arguments).env_remove("RUST_BACKTRACE");
    let shell = shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    shell.spawn().expect("a shell starts")
}

/// glommio's executors did not come up, each on its thread after it had been started; the workers
/// handed to them were never stepped, and the job waited for ever.
#[test]
fn a_memlock_limit_too_low_for_glommio_falls_back_to_plain_threads_and_says_why() {
    let place = Place::new(50);
    let limited = |more: &[&str]| ended(start_within("-l 64", &place.arguments(more)));
    let ran = limited(&["--snapshots", "@s", "--output", "@out"]).succeeded();
    for needle in ["plain threads", "64 KiB (RLIMIT_MEMLOCK)", "ulimit -l"] {
        assert!(ran.stderr.contains(needle), "no '{needle}' in: {}", ran.stderr);
    }
    assert_final(&place.committed("out"), &place.text);
    let needles = ["driver is glommio", "64 KiB (RLIMIT_MEMLOCK)", "ulimit -l", "threads"];
    limited(&["--driver", "glommio", "--snapshots", "@t"]).refused(2, &needles);
    assert!(!place.path("t").exists(), "nothing is made for a command that was refused");
    let doctor = ended(start_within("-l 64", &["doctor"]));
    assert!(String::from_utf8_lossy(&doctor.stdout).contains("glommio starts none"));
}

/// Without a descriptor left the program panicked ("a thread takes workers until the pool is gone"),
/// or hung, by where exactly it ran out.
#[test]
fn a_limit_of_open_files_that_is_too_low_is_named() {
    let place = Place::new(50);
    let mut refusals = 0;
    for files in 6..32 {
        let (s, o) = (format!("@s{files}"), format!("@o{files}"));
        let more = ["--parallelism", "2", "--snapshots", &s, "--output", &o];
        let ran = ended(start_within(&format!("-n {files}"), &place.arguments(&more)));
        if ran.code == Some(0) {
            assert_final(&place.committed(&o[1..]), &place.text);
            continue;
        }
        let limit = format!("limit of {files} (RLIMIT_NOFILE)");
        ran.refused(1, &["open files", &limit, "ulimit -n"]);
        refusals += 1;
    }
    assert!(refusals > 3, "{refusals} limits were too low");
}

/// Runs `word-count` in a mount namespace of its own, in which the place's directory `m` is a file
/// system with these options. `None`, and a word about it, where such a thing is not allowed.
fn mounted(place: &Place, options: &str, more: &[&str]) -> Option<Ran> {
    fs::create_dir_all(place.path("m")).expect("a directory");
    let mount = place.path("m").display().to_string();
    let unshare = |then: &str| {
        let script = format!("mount -t tmpfs -o {options} none \"$0\" && {then}");
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, &mount]);
        command.stdin(Stdio::null());
        command
    };
    if !unshare("true").output().is_ok_and(|output| output.status.success()) {
        eprintln!("NOT TESTED: this system allows no mount in a user namespace");
        return None;
    }
    let mut command = unshare("exec \"$@\"");
    command.arg(env!("CARGO_BIN_EXE_tidegate")).args(place.arguments(more));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Some(Ran::after(command.spawn().expect("a process")))
}

#[test]
fn a_snapshot_directory_that_cannot_be_written_to_is_named_with_a_way_out() {
    let place = Place::new(50);
    let path = place.path("m").display().to_string();
    if let Some(ran) = mounted(&place, "ro", &["--snapshots", "@m"]) {
        ran.refused(1, &[&path, "Read-only", "name another snapshot directory"]);
    }
    if let Some(ran) = mounted(&place, "ro", &["--output", "@m"]) {
        ran.refused(1, &[&path, "Read-only", "that can be written to"]);
    }
    place.count(&["--snapshots", "@text/below"]).refused(1, &["below", "not a directory"]);
    place.count(&["--output", "@text/below"]).refused(1, &["below", "can be written to"]);
}

#[test]
fn a_full_snapshot_or_output_directory_is_named_with_a_way_out_in_the_end() {
    let place = Place::new(2000);
    let path = place.path("m").display().to_string();
    if let Some(ran) = mounted(&place, "size=1m", &["--snapshots", "@m"]) {
        ran.refused(1, &[&path, "No space left", "make room"]);
    }
    let more = ["--output", "@m", "--snapshots", "@s", "--emit", "updates", "--roll", "0"];
    if let Some(ran) = mounted(&place, "size=16k", &more) {
        // Someone may make room meanwhile, so it is tried again before it is given up.
        let ran = ran.refused(1, &[&path, "No space left", "make room", "4 times in a row"]);
        assert!(ran.stderr.contains("starting again in"), "{}", ran.stderr);
    }
}

#[test]
fn a_snapshot_directory_that_is_moved_away_ends_the_job_which_goes_on_when_it_is_put_back() {
    let place = Place::new(2000);
    let more = ["--snapshots", "@s", "--output", "@out", "--interval", "5ms"];
    let (there, away) = (place.path("s"), place.path("away"));
    let child = start(&place.arguments(&[&more[..], &["--rate", "20"]].concat()));
    while !there.join("manifest-1").exists() {
        std::thread::yield_now();
    }
    fs::rename(&there, &away).expect("a directory");
    let path = there.display().to_string();
    Ran::after(child).refused(1, &[&path, "moved away while the job ran", "put it back"]);
    fs::rename(&away, &there).expect("a directory");
    place.count(&more).succeeded();
    assert_final(&place.committed("out"), &place.text);
}

#[test]
fn a_second_interrupt_ends_a_program_that_cannot_stop_in_order() {
    let place = Place::new(20_000);
    let mut child = start(&place.arguments(&["--emit", "updates"]));
    // Nobody reads what follows, so the job stands still with a full pipe.
    let mut first = [0];
    child.stdout.as_mut().expect("a pipe").read_exact(&mut first).expect("a line");
    let (mut sent, pid) = (0, Pid::from_child(&child));
    while child.try_wait().expect("a child").is_none() {
        kill_process(pid, Signal::INT).expect("a child not waited for");
        sent += 1;
        std::thread::yield_now();
    }
    assert_eq!(Ran::after(child).code, Some(130));
    assert!(sent >= 2, "one is a request");
}
