//! Bad input: for each, one clear message that names the thing and the way out, and an exit code.

mod common;
#[allow(dead_code, reason = "this file uses a part of it")]
#[path = "common/command.rs"]
mod command;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use command::{
    Place, Ran, SLOW, assert_final, assert_updates, contents, ended, start, tidegate, until,
};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tidegate::disk::ThreadDisk;
use tidegate::store;

/// Changes one byte in a manifest.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).expect("a file");
    bytes[300] ^= 0x10;
    fs::write(path, bytes).expect("a file");
}

fn manifests(place: &Place) -> Vec<PathBuf> {
    manifests_of(place, "s")
}

/// The files of manifests that can be read, the oldest first.
fn manifests_of(place: &Place, directory: &str) -> Vec<PathBuf> {
    numbered(place, directory).into_iter().map(|(_, path)| path).collect()
}

/// The same, each with the number of its snapshot.
fn numbered(place: &Place, directory: &str) -> Vec<(u64, PathBuf)> {
    let directory = place.path(directory);
    let infos = store::list(&ThreadDisk::new(), &directory).unwrap_or_default();
    infos.into_iter().filter_map(|i| Some((i.snapshot?, directory.join(i.file)))).collect()
}

#[test]
fn a_missing_input_is_named() {
    let place = Place::with_text("");
    let path = place.path("none").display().to_string();
    place.count(&["--input", "@none"]).refused(1, &[&path, "No such file"]);
}

#[test]
fn an_empty_input_is_named() {
    let place = Place::with_text("");
    let path = place.path("text").display().to_string();
    place.count(&[]).refused(1, &[&path, "is empty"]);
}

#[test]
fn a_directory_as_input_is_named() {
    let place = Place::with_text("");
    let path = place.path("").display().to_string();
    place.count(&["--input", "@"]).refused(1, &[&path, "is a directory", "name a text file"]);
}

/// Opening a pipe waited for someone to write into it, for ever and before signals were heeded.
#[test]
fn an_input_that_is_no_regular_file_is_named_and_not_waited_for() {
    let place = Place::with_text("");
    rustix::fs::mkfifoat(rustix::fs::CWD, place.path("pipe"), rustix::fs::Mode::RWXU)
        .expect("a pipe");
    let _socket = std::os::unix::net::UnixListener::bind(place.path("socket")).expect("a socket");
    for (input, is) in [
        ("@pipe", "a pipe, which"),
        ("@socket", "a socket, which"),
        ("/dev/zero", "a device, which"),
    ] {
        let name = input.trim_start_matches('@');
        place.count(&["--input", input]).refused(1, &[name, is, "name a text file"]);
    }
}

#[test]
fn an_unreadable_input_is_named() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::with_text("a");
    let path = place.path("text");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).expect("a file of ours");
    if !geteuid().is_root() {
        place.count(&[]).refused(1, &[&path.display().to_string(), "ermission denied"]);
    }
}

#[test]
fn a_line_longer_than_the_limit_is_named_with_its_place() {
    let mut text = b"first line\n".to_vec();
    text.resize(text.len() + (3 << 20), b'x');
    text.extend_from_slice(b"\nlast line\n");
    let place = Place::with_text(text);
    let path = place.path("text").display().to_string();
    for more in [&[][..], &["--snapshots", "@s"], &["--parallelism", "2"]] {
        // Splits begin within the line: they used to say that it begins there.
        place.count(more).refused(1, &[&path, "1048576", "byte 11 "]);
    }
}

#[test]
fn an_edge_list_that_is_missing_empty_or_a_directory_is_named() {
    let place = Place::with_text("");
    let path = |name: &str| place.path(name).display().to_string();
    place.iterate(&["--input", "@none"]).refused(1, &[&path("none"), "No such file"]);
    place.iterate(&[]).refused(1, &[&path("text"), "is empty"]);
    place.iterate(&["--input", "@"]).refused(1, &[&path(""), "is a directory"]);
}

#[test]
fn a_line_that_is_no_edge_is_named_with_its_number_wherever_it_stands() {
    // Long enough for several splits, which are read side by side.
    let edges = "10000001 20000002\n".repeat(20_000);
    for (bad, before) in [("1", 0), ("1 2 3", 3), ("one two", 19_999), ("-1 2", 20_000)] {
        let at = before * "10000001 20000002\n".len();
        for end in ["\n", ""] {
            let text =
                [&edges[..at], bad, end, if end == "\n" { &edges[at..] } else { "" }].concat();
            let place = Place::with_text(text);
            let path = place.path("text").display().to_string();
            let line = format!("line {}: '{bad}'", before + 1);
            for more in [&["--parallelism", "2"][..], &["--snapshots", "@s"]] {
                place.iterate(more).refused(1, &[&path, &line, "no edge", "for example"]);
            }
        }
    }
}

#[test]
fn an_interval_below_a_millisecond_is_a_usage_error() {
    let place = Place::with_text("a");
    for interval in ["999us", "0", "0.5ms"] {
        let ran = place.count(&["--snapshots", "@s", "--interval", interval]);
        ran.refused(2, &["--interval", interval, "1ms"]);
    }
    place.count(&["--interval", "10"]).refused(2, &["--interval", "10ms"]);
    assert!(!place.path("s").exists(), "nothing is made for a command that was refused");
}

#[test]
fn a_parallelism_of_nothing_or_above_the_machine_is_a_usage_error() {
    let place = Place::with_text("a");
    for parallelism in ["0", "1000"] {
        let needles = ["parallelism", parallelism, "between 1 and 128"];
        place.count(&["--parallelism", parallelism]).refused(2, &needles);
    }
    let cores = std::thread::available_parallelism().expect("a machine").get();
    if cores < 128 {
        let ran = place.count(&["--parallelism", "128", "--snapshots", "@s"]);
        ran.refused(2, &["parallelism is 128", "cores"]);
        let ran = place.count(&["--parallelism", "1", "--disk-cores", "777", "--snapshots", "@s"]);
        ran.refused(2, &["disk core is 777", "may use cores "]);
        assert!(!place.path("s").exists());
    }
}

#[test]
fn arguments_that_contradict_each_other_are_usage_errors() {
    let place = Place::with_text("a");
    place.count(&["--json"]).refused(2, &["--json", "--output DIR"]);
    place.count(&["--output", "@d", "--snapshots", "@d"]).refused(2, &["--output and --snapshots"]);
    fs::create_dir(place.path("there")).expect("a directory");
    std::os::unix::fs::symlink(place.path("there"), place.path("link")).expect("a link");
    let linked = ["--snapshots", "@there", "--spill", "@link"];
    place.count(&linked).refused(2, &["--snapshots and --spill"]);
    for rate in ["-1", "NaN", "inf", "1e300", "x"] {
        let needles = ["--rate", rate, "from 0 to 1000000000", "leave it out"];
        place.count(&["--rate", rate]).refused(2, &needles);
    }
    place.count(&["--limit", "x"]).refused(2, &["--limit"]);
    place.count(&["--emit", "all"]).refused(2, &["--emit", "final"]);
    tidegate(&["bench", "paper", "--keys", "0"]).refused(2, &["--keys"]);
    place.count(&["--interval", "10ms"]).refused(2, &["--snapshots <DIR>"]);
    place.count(&["--roll", "1s"]).refused(2, &["--output <DIR>"]);
    // The allocation failed, and with it the process.
    tidegate(&["bench", "paper", "--ring-slots", "1099511627776"])
        .refused(2, &["ring slots", "at most 1048576 records"]);
    tidegate(&["bench", "paper", "--keys", "99999999999", "--parallelism", "1"])
        .refused(2, &["keys is 99999999999", "MiB of memory are available"]);
    tidegate(&["bench", "paper", "--ring-slots", "1000"])
        .refused(2, &["ring slots", "power of two"]);
    tidegate(&["bench", "paper", "--snapshots", "x"]).refused(2, &["--mode abs"]);
    for rate in ["0", "-5", "NaN", "x", "2e9"] {
        let needles = ["--rate", rate, "from 1 to 1000000000", "leave it out"];
        tidegate(&["bench", "paper", "--rate", rate]).refused(2, &needles);
        tidegate(&["bench", "state", "--rate", rate]).refused(2, &needles);
    }
    let state =
        |more: &[&str]| tidegate(&[&["bench", "state", "--parallelism", "1"], more].concat());
    let sizes = ["value-bytes is 48", "8, 16, 32, 64, 128, 256, 512, 1024"];
    state(&["--value-bytes", "48"]).refused(2, &sizes);
    state(&["--keys", "0"]).refused(2, &["--keys"]);
    for bytes in ["8", "1024"] {
        state(&["--keys", "99999999999", "--value-bytes", bytes])
            .refused(2, &["keys is 99999999999", "MiB of memory are available", "keys fit"]);
    }
    state(&["--skew", "pareto"]).refused(2, &["--skew", "uniform", "zipf"]);
    state(&["--mode", "unaligned"]).refused(2, &["--mode", "none", "abs", "sync"]);
    state(&["--mode", "none", "--restart"]).refused(2, &["--restart", "--mode abs"]);
    state(&["--mode", "none", "--snapshots", "x"]).refused(2, &["--snapshots", "--mode abs"]);
    state(&["--seconds", "3"]).refused(2, &["--rate <N>"]);
    state(&["--seconds", "3", "--rate", "5", "--records", "9"]).refused(2, &["--records"]);
    state(&["--interval", "10us"]).refused(2, &["--interval", "1ms"]);
    let needles = ["--align-timeout", "--mode unaligned"];
    tidegate(&["bench", "paper", "--align-timeout", "5ms"]).refused(2, &needles);
    place.count(&["--align-timeout", "5ms"]).refused(2, &needles);
    let sync = ["--mode", "sync", "--snapshots", "@d", "--align-timeout", "5ms"];
    place.iterate(&sync).refused(2, &needles);
    // A mode without a directory was ignored: no snapshot was taken, and none was missed until a
    // crash.
    for mode in ["abs", "sync", "unaligned"] {
        place.count(&["--mode", mode]).refused(2, &["--snapshots <DIR>"]);
        place.iterate(&["--mode", mode]).refused(2, &["--snapshots <DIR>"]);
    }
    place.count(&["--mode", "none"]).refused(2, &["--mode", "abs", "sync", "unaligned"]);
    place.count(&["--align-timeout", "5"]).refused(2, &["--align-timeout", "10ms"]);
    let same = ["--snapshots", "@d", "--spill", "@d"];
    place.iterate(&same).refused(2, &["--snapshots and --spill"]);
    place.iterate(&["--output", "@d", "--spill", "@d"]).refused(2, &["--output and --spill"]);
    let read_only = tidegate(&["iterate", "--spill", "/sys"]);
    read_only.refused(2, &["spill directory is /sys", "turn spilling off"]);
    place.iterate(&["--seed", "1"]).refused(2, &["--input", "--seed"]);
    tidegate(&["iterate", "--vertices", "0"]).refused(2, &["--vertices"]);
    tidegate(&["iterate", "--json"]).refused(2, &["--json", "--output DIR"]);
    assert!(!place.path("d").exists(), "nothing is made for a command that was refused");
}

#[test]
fn an_output_that_is_already_there_is_left_alone() {
    let place = Place::with_text("a");
    fs::create_dir(place.path("out")).expect("a directory");
    fs::write(place.path("out").join("mine"), "keep").expect("a file");
    let path = place.path("out").display().to_string();
    for more in [&["--output", "@out"][..], &["--output", "@out", "--snapshots", "@s"]] {
        place.count(more).refused(1, &[&path, "'mine'", "empty directory"]);
    }
    assert_eq!(contents(&place.path("out")), [("mine".into(), b"keep".to_vec())].into());
    place.count(&["--output", "@text"]).refused(1, &["text"]);
}

/// A second job on the output directory of a running one took its hidden file for a leftover of its
/// own and removed it. The first died, and could never go on: its snapshots listed what was gone.
#[test]
fn an_output_directory_in_use_or_of_another_job_is_left_alone() {
    let place = Place::new(2000);
    let mine = ["--emit", "updates", "--roll", "1h", "--output", "@out", "--snapshots", "@mine"];
    let slow = [&mine[..], &["--rate", SLOW]].concat();
    let mut child = start(&place.arguments(&slow));
    let pid = child.id().to_string();
    let written = || {
        contents(&place.path("out")).iter().any(|(n, b)| n.starts_with(".part-") && !b.is_empty())
    };
    until(&mut child, || written() && manifests_of(&place, "mine").len() > 2);
    let path = place.path("out").display().to_string();
    let others = [&["--output", "@out", "--snapshots", "@other"][..], &["--output", "@out"]];
    for other in others {
        place.count(other).refused(1, &[&path, &format!("pid {pid}"), "another output directory"]);
    }
    kill_process(Pid::from_child(&child), Signal::KILL).expect("a running process");
    Ran::after(child);
    let before = contents(&place.path("out"));
    for other in others {
        let owner = place.path("mine").display().to_string();
        place.count(other).refused(1, &[&path, &owner, "job 'word-count'", "another directory"]);
    }
    let mut after = contents(&place.path("out"));
    after.insert(".tidegate-lock".into(), before[".tidegate-lock"].clone());
    assert_eq!(after, before);
    place.count(&mine).succeeded();
    assert_updates(&place.committed("out"), &place.text);
}

#[test]
fn a_run_that_was_killed_before_its_first_snapshot_or_without_any_is_in_nobodys_way() {
    for (first, then) in [
        (&["--output", "@out"][..], &["--output", "@out", "--snapshots", "@s"][..]),
        (
            &["--output", "@out", "--snapshots", "@s", "--interval", "1h"],
            &["--output", "@out", "--snapshots", "@s"],
        ),
    ] {
        // The first line is more than the sink holds back, so that a hidden file is made.
        let first_line = "word ".repeat(60_000) + "\n";
        let place = Place::with_text(first_line + &"more\n".repeat(2000));
        let updates = ["--emit", "updates", "--rate", SLOW];
        let mut child = start(&place.arguments(&[first, &updates].concat()));
        until(&mut child, || {
            contents(&place.path("out")).keys().any(|name| name.starts_with(".part-"))
        });
        kill_process(Pid::from_child(&child), Signal::KILL).expect("a running process");
        Ran::after(child);
        place.count(&[then, &["--emit", "updates"]].concat()).succeeded();
        assert_updates(&place.committed("out"), &place.text);
    }
}

#[test]
fn another_output_directory_than_the_snapshots_go_on_from_is_refused_and_a_moved_one_is_not() {
    let place = Place::new(2000);
    let run = |output: &'static str, snapshots: &'static str| {
        ["--emit", "updates", "--roll", "0", "--output", output, "--snapshots", snapshots]
    };
    let slow = [&run("@out", "@s")[..], &["--rate", SLOW]].concat();
    let mut child = start(&place.arguments(&slow));
    until(&mut child, || !place.committed("out").is_empty());
    kill_process(Pid::from_child(&child), Signal::TERM).expect("a running process");
    Ran::after(child).succeeded();
    fs::create_dir(place.path("empty")).expect("a directory");
    let path = place.path("empty").display().to_string();
    place.count(&run("@empty", "@s")).refused(1, &[&path, "not the directory", "name that one"]);
    let path = place.path("none").display().to_string();
    place.count(&run("@none", "@s")).refused(1, &[&path, "it is gone", "put it back"]);
    assert!(!place.path("none").exists());
    fs::rename(place.path("out"), place.path("moved")).expect("a directory");
    fs::rename(place.path("s"), place.path("moved s")).expect("a directory");
    place.count(&run("@moved", "@moved s")).succeeded();
    assert_updates(&place.committed("moved"), &place.text);
}

#[test]
fn an_output_file_that_something_else_made_is_not_replaced_and_is_not_tried_again() {
    let place = Place::new(2000);
    let more = ["--emit", "updates", "--roll", "1h", "--output", "@out", "--snapshots", "@s"];
    let mut child = start(&place.arguments(&[&more[..], &["--rate", SLOW]].concat()));
    let hidden = || contents(&place.path("out")).into_keys().find(|n| n.starts_with(".part-"));
    until(&mut child, || hidden().is_some() && manifests(&place).len() > 2);
    let name = hidden().expect("seen above")[1..].to_string();
    let path = place.path("out").join(&name);
    fs::write(&path, "theirs").expect("a file");
    kill_process(Pid::from_child(&child), Signal::TERM).expect("a running process");
    let needles = [&*path.display().to_string(), "did not write", "move it away"];
    let ran = Ran::after(child).refused(1, &needles);
    assert!(!ran.stderr.contains("starting again"), "{}", ran.stderr);
    let ran = place.count(&more).refused(1, &needles);
    assert!(!ran.stderr.contains("starting again"), "{}", ran.stderr);
    assert_eq!(fs::read(&path).expect("a file"), b"theirs");
    fs::remove_file(&path).expect("a file");
    place.count(&more).succeeded();
    assert_updates(&place.committed("out"), &place.text);
}

#[test]
fn a_snapshot_directory_of_another_job_is_left_alone() {
    let place = Place::new(20);
    place.count(&["--snapshots", "@s"]).succeeded();
    let before = contents(&place.path("s"));
    let path = place.path("s").display().to_string();
    let refused = |more: &[&str], difference| {
        let needles = [&*path, "another job", difference, "another directory"];
        place.count(&[&["--snapshots", "@s"], more].concat()).refused(1, &needles);
    };
    refused(&["--limit", "3"], "--limit was none, and now is 3");
    refused(&["--emit", "updates"], "--emit was final, and now is updates");
    fs::write(place.path("text"), "another text").expect("a file");
    refused(&[], "its input 'words' was a text file of");
    let mut after = contents(&place.path("s"));
    after.insert("LOCK".into(), before["LOCK"].clone());
    assert_eq!(after, before);
}

/// The kind of sink was not part of the job: without --output the handles of files, which are binary,
/// were printed as if they were lines held back.
#[test]
fn snapshots_of_a_job_with_another_kind_of_output_are_refused_both_ways() {
    let place = Place::new(50);
    place.count(&["--output", "@out", "--snapshots", "@files"]).succeeded();
    place.count(&["--snapshots", "@console"]).succeeded();
    let (files, console) = (place.path("files"), place.path("console"));
    let needles = ["another job", "sink files", "sink console"];
    let ran = place.count(&["--snapshots", "@files"]);
    ran.refused(1, &[&needles[..], &[&*files.display().to_string()]].concat());
    let ran = place.count(&["--output", "@other", "--snapshots", "@console"]);
    ran.refused(1, &[&needles[..], &[&*console.display().to_string()]].concat());
    assert!(!place.path("other").exists());
}

#[test]
fn a_directory_of_other_files_is_no_snapshot_directory() {
    let place = Place::new(20);
    fs::create_dir(place.path("s")).expect("a directory");
    fs::write(place.path("s").join("thesis.tex"), "keep").expect("a file");
    let path = place.path("s").display().to_string();
    let named = format!("snapshot directory {path}: it holds 'thesis.tex'");
    place.count(&["--snapshots", "@s"]).refused(1, &[&named, "empty directory"]);
    assert_eq!(contents(&place.path("s")).len(), 1);
    place.count(&["--snapshots", "@text"]).refused(1, &["snapshot directory", "not a directory"]);
    for action in ["list", "show", "verify"] {
        let needles = ["snapshot directory", &path, "neither a JOB file nor a snapshot"];
        tidegate(&["snapshot", action, &path]).refused(1, &needles);
    }
}

#[test]
fn a_snapshot_directory_in_use_names_the_process() {
    let place = Place::new(20);
    let more = ["--snapshots", "@s", "--rate", "0", "--output", "@out"];
    let mut child = start(&place.arguments(&more));
    let pid = child.id().to_string();
    until(&mut child, || contents(&place.path("s")).get("LOCK").is_some_and(|b| b.len() > 1));
    let path = place.path("s").display().to_string();
    let other = ["--snapshots", "@s", "--output", "@other"];
    place.count(&other).refused(1, &[&path, &format!("pid {pid}"), "stop it"]);
    kill_process(Pid::from_child(&child), Signal::TERM).expect("a running process");
    Ran::after(child).succeeded();
    assert!(!place.path("other").exists());
    place.count(&["--snapshots", "@s", "--output", "@out"]).succeeded();
    assert_final(&place.committed("out"), &place.text);
}

#[test]
fn a_damaged_newest_snapshot_is_passed_over_with_a_warning_that_names_it() {
    let place = Place::new(2000);
    let more = ["--snapshots", "@s", "--output", "@out", "--emit", "updates", "--roll", "0"];
    let mut child = start(&place.arguments(&[&more[..], &["--rate", SLOW]].concat()));
    until(&mut child, || manifests(&place).len() >= 3);
    kill_process(Pid::from_child(&child), Signal::TERM).expect("a running process");
    Ran::after(child).succeeded();
    let mut all = numbered(&place, "s");
    let (_, newest) = all.pop().expect("a manifest");
    let (before_newest, _) = all.pop().expect("a manifest");
    let whole = fs::read(&newest).expect("a manifest");
    flip(&newest);
    let (newest, directory) = (newest.display().to_string(), place.path("s").display().to_string());
    tidegate(&["snapshot", "list", &directory]).succeeded();
    let verified = tidegate(&["snapshot", "verify", &directory]);
    assert_eq!(verified.code, Some(1));
    let counted = String::from_utf8_lossy(&verified.stdout);
    assert!(counted.contains(", 1 of them not whole, "), "{counted}");
    assert!(
        verified.stderr.contains(&format!("{newest} is corrupt at byte ")),
        "{}",
        verified.stderr
    );
    let ran = place.count(&more).succeeded();
    assert!(ran.stderr.contains("warning: ") && ran.stderr.contains(&newest), "{}", ran.stderr);
    let instead = format!("goes on from snapshot {} instead", before_newest);
    assert!(ran.stderr.contains(&instead), "{}", ran.stderr);
    assert_updates(&place.committed("out"), &place.text);
    // It used to stay, so that verify failed and every start warned for ever.
    let evidence: Vec<PathBuf> = fs::read_dir(&directory)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension() == Some(OsStr::new("passed-over")))
        .collect();
    let [evidence] = &evidence[..] else { panic!("one is kept: {evidence:?}") };
    assert!(evidence.display().to_string().starts_with(&newest));
    assert_ne!(fs::read(evidence).expect("a copy"), whole, "it is the damaged one");
    let listed = tidegate(&["snapshot", "list", &directory]).succeeded();
    assert!(String::from_utf8_lossy(&listed.stdout).contains("passed over"), "{listed:?}");
    tidegate(&["snapshot", "verify", &directory]).succeeded();
    assert!(!place.count(&more).succeeded().stderr.contains("warning: "));
}

#[test]
fn snapshots_that_are_all_damaged_are_an_error_and_nothing_is_lost() {
    let place = Place::new(50);
    place.count(&["--snapshots", "@s", "--output", "@out"]).succeeded();
    manifests(&place).iter().for_each(|path| flip(path));
    let slots = || {
        let files = contents(&place.path("s")).into_iter();
        files.filter(|(name, _)| name.starts_with("manifest-")).collect::<Vec<_>>()
    };
    let (output, snapshots) = (contents(&place.path("out")), slots());
    let path = place.path("s").display().to_string();
    let ran = place.count(&["--snapshots", "@s", "--output", "@out"]);
    ran.refused(1, &[&path, "can be restored", "is corrupt at byte"]);
    assert_eq!((contents(&place.path("out")), slots()), (output, snapshots));
}

#[test]
fn a_full_standard_output_fails_the_job() {
    let Ok(full) = fs::OpenOptions::new().write(true).open("/dev/full") else { return };
    let place = Place::new(50);
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    let output = command.args(place.arguments(&[])).stdout(full).output().expect("a process");
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("standard output") && stderr.contains("No space left"), "{stderr}");
}

#[test]
fn a_snapshot_directory_that_is_not_there_is_named_by_who_looks_at_it() {
    for action in ["list", "show", "verify"] {
        tidegate(&["snapshot", action, "/nowhere/at/all"]).refused(1, &["/nowhere/at/all"]);
    }
}

/// The job went on in a directory made anew: it read and published everything once more. Later it ran on, and
/// gave up one snapshot after the other, for as long as its input lasted.
#[test]
fn a_snapshot_directory_that_is_deleted_while_the_job_runs_ends_it() {
    let place = Place::new(2000);
    let more = ["--snapshots", "@s", "--emit", "updates", "--rate", "20", "--interval", "1ms"];
    let mut child = start(&place.arguments(&[&more[..], &["--output", "@out"]].concat()));
    until(&mut child, || manifests(&place).len() >= 3);
    let published = place.committed("out");
    while fs::remove_dir_all(place.path("s")).is_err() {}
    let path = place.path("s").display().to_string();
    let ran = ended(child);
    ran.refused(1, &[&format!("snapshot directory {path}: its snapshots are gone"), "start over"]);
    assert!(!place.path("s").exists());
    assert!(place.committed("out").starts_with(&published));
}

#[test]
fn a_file_of_the_same_length_that_differs_far_behind_its_beginning_is_another_input() {
    let place = Place::with_text("word\n".repeat(100_000));
    place.count(&["--snapshots", "@s", "--output", "@out"]).succeeded();
    let end = place.text.len() - 5;
    fs::write(place.path("text"), [&place.text[..end], b"sand\n"].concat()).expect("a file");
    let ran = place.count(&["--snapshots", "@s", "--output", "@out"]);
    ran.refused(1, &["another job", "a text file of 500000 bytes"]);
}

#[test]
fn snapshots_of_a_newer_program_are_refused_and_not_passed_over() {
    let place = Place::new(50);
    place.count(&["--snapshots", "@s"]).succeeded();
    let newest = manifests(&place).pop().expect("a manifest");
    let mut bytes = fs::read(&newest).expect("a file");
    bytes[12] = 9;
    let payload_bytes = u64::from_le_bytes(bytes[24..32].try_into().expect("8 bytes")) as usize;
    let payload = &bytes[48..48 + payload_bytes.next_multiple_of(16)];
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..44]), payload);
    bytes[44..48].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&newest, bytes).expect("a file");
    let needles =
        [&*newest.display().to_string(), "format version 9", "up to 3", "another directory"];
    place.count(&["--snapshots", "@s"]).refused(1, &needles);
}
