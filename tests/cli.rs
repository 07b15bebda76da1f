//! The program as its users meet it: results, resuming, stopping, JSON.

mod common;
#[path = "common/command.rs"]
mod command;

use std::io::{BufRead as _, BufReader};

use command::{Place, Ran, assert_final, assert_updates, contents, start, tidegate, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn json(ran: &Ran) -> Value {
    serde_json::from_slice(&ran.stdout).expect("one JSON value on standard output")
}

fn signal(child: &std::process::Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("a running process");
}

#[test]
fn final_counts_equal_the_oracle_on_one_worker_and_on_two() {
    let place = Place::new(2000);
    for parallelism in ["1", "2"] {
        let ran = place.count(&["--parallelism", parallelism]).succeeded();
        assert_final(&ran.stdout, &place.text);
        let more = ["--parallelism", parallelism, "--snapshots"];
        let ran = place.count(&[&more[..], &[&format!("@s{parallelism}")]].concat()).succeeded();
        assert_final(&ran.stdout, &place.text);
    }
}

#[test]
fn update_counts_equal_the_oracle_with_and_without_snapshots() {
    let place = Place::new(2000);
    for parallelism in ["1", "2"] {
        let more = ["--emit", "updates", "--parallelism", parallelism];
        assert_updates(&place.count(&more).succeeded().stdout, &place.text);
        let (output, snapshots) = (format!("@o{parallelism}"), format!("@s{parallelism}"));
        let files = ["--output", &output, "--snapshots", &snapshots, "--roll", "0"];
        place.count(&[&more[..], &files].concat()).succeeded();
        assert_updates(&place.committed(&output[1..]), &place.text);
    }
}

#[test]
fn files_without_snapshots_hold_the_counts_too() {
    let place = Place::new(500);
    place.count(&["--output", "@out", "--parallelism", "2"]).succeeded();
    assert_final(&place.committed("out"), &place.text);
}

#[test]
fn both_drivers_give_the_same_counts() {
    let place = Place::new(300);
    for driver in ["auto", "threads"] {
        let ran = place.count(&["--driver", driver, "--parallelism", "2"]).succeeded();
        assert_final(&ran.stdout, &place.text);
    }
}

#[test]
fn a_limit_reads_as_much_as_head_does() {
    // The last line has no end: head prints it, and so it counts.
    let text = "a b\n\nb\nc c\nd";
    for (limit, expected) in
        [(0, ""), (1, "a b\n"), (2, "a b\n\n"), (4, "a b\n\nb\nc c\n"), (5, text)]
    {
        let place = Place::with_text(text);
        let ran = place.count(&["--limit", &limit.to_string()]).succeeded();
        assert_final(&ran.stdout, expected.as_bytes());
    }
    let place = Place::with_text(text);
    assert_final(&place.count(&["--limit", "99"]).succeeded().stdout, text.as_bytes());
}

#[test]
fn words_are_bytes_whether_they_are_utf_8_or_not() {
    let place = Place::with_text(b"\xff\xfe \xff\xfe\r\n\0x \x80\xc3\x28\n\xe2\x80\x83".to_vec());
    assert_final(&place.count(&[]).succeeded().stdout, &place.text);
}

#[test]
fn generated_text_is_what_the_text_command_prints() {
    let text = tidegate(&["text", "--limit", "200"]).succeeded().stdout;
    assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 200);
    let counted = tidegate(&["word-count", "--limit", "200", "--parallelism", "1"]).succeeded();
    assert_final(&counted.stdout, &text);
    let other = tidegate(&["text", "--limit", "200", "--seed", "2"]).succeeded().stdout;
    assert_ne!(text, other);
}

#[test]
fn running_again_after_completion_says_so_and_changes_nothing() {
    for emit in ["final", "updates"] {
        let place = Place::new(300);
        let more = ["--emit", emit, "--output", "@out", "--snapshots", "@s", "--interval", "1ms"];
        place.count(&more).succeeded();
        let (output, snapshots) = (contents(&place.path("out")), contents(&place.path("s")));
        for parallelism in ["1", "2"] {
            let more = [&more[..], &["--parallelism", parallelism]].concat();
            let again = place.count(&more).succeeded();
            assert!(again.stderr.contains("already complete: nothing to do"), "{}", again.stderr);
            assert!(again.stdout.is_empty());
        }
        assert_eq!(contents(&place.path("out")), output);
        let manifests = |files: &std::collections::BTreeMap<String, Vec<u8>>| {
            let names = files.iter().filter(|(name, _)| name.ends_with(".manifest"));
            names.map(|(name, bytes)| (name.clone(), bytes.clone())).collect::<Vec<_>>()
        };
        assert_eq!(manifests(&contents(&place.path("s"))), manifests(&snapshots));
    }
}

#[test]
fn after_a_stop_the_same_command_goes_on_to_the_right_counts() {
    for (number, parallelism) in [(Signal::TERM, "2"), (Signal::INT, "1")] {
        let place = Place::new(2000);
        let more = ["--emit", "updates", "--output", "@out", "--roll", "0", "--snapshots", "@s"];
        let slow = [&more[..], &["--rate", "3000", "--parallelism", parallelism]].concat();
        let mut child = start(&place.arguments(&slow));
        until(&mut child, || !place.committed("out").is_empty());
        signal(&child, number);
        let stopped = Ran::after(child).succeeded();
        let message = "; run the same command again to go on";
        assert!(stopped.stderr.contains("stopped at snapshot "), "{}", stopped.stderr);
        assert!(stopped.stderr.contains(message), "{}", stopped.stderr);
        let hidden =
            contents(&place.path("out")).into_keys().find(|name| name.starts_with(".part-"));
        assert_eq!(hidden, None, "a stop commits everything");
        let ended = place.count(&[&more[..], &["--parallelism", "2"]].concat()).succeeded();
        assert!(ended.stderr.contains("going on from snapshot"), "{}", ended.stderr);
        assert_updates(&place.committed("out"), &place.text);
    }
}

#[test]
fn a_stop_without_snapshots_fails_and_says_that_nothing_was_kept() {
    let place = Place::new(10);
    let mut child = start(&place.arguments(&["--rate", "0"]));
    let mut line = String::new();
    let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
    stderr.read_line(&mut line).expect("a line");
    assert!(line.contains("without --snapshots"), "{line}");
    signal(&child, Signal::TERM);
    line.clear();
    stderr.read_line(&mut line).expect("a line");
    assert!(line.contains("nothing of it was kept"), "{line}");
    assert_eq!(child.wait().expect("an end").code(), Some(1));
}

#[test]
fn json_is_one_object_with_the_numbers_of_the_run() {
    let place = Place::new(400);
    let more = ["--json", "--output", "@out", "--snapshots", "@s", "--parallelism", "2"];
    let first = json(&place.count(&more).succeeded());
    assert_eq!((&first["end"], &first["lines"]), (&"complete".into(), &400.into()), "{first}");
    assert_eq!((&first["restored"], &first["restarts"]), (&Value::Null, &0.into()), "{first}");
    assert!(first["snapshots"]["completed"].as_u64() >= Some(2), "{first}");
    for number in ["seconds", "lines_per_second", "peak_rss_bytes"] {
        assert!(first[number].as_f64() > Some(0.0), "{number} in {first}");
    }
    for number in ["asked", "triggered", "aborted", "p50_ms", "p99_ms"] {
        assert!(first["snapshots"][number].is_number(), "{number} in {first}");
    }
    let second = json(&place.count(&more).succeeded());
    assert_eq!(second["end"], "already_complete");
    assert_eq!(second["restored"], first["snapshot"]);
}

#[test]
fn a_reader_that_closes_the_pipe_ends_the_program_with_success() {
    let place = Place::new(20_000);
    for more in [&["--emit", "updates"][..], &["--emit", "updates", "--snapshots", "@s"]] {
        let mut child = start(&place.arguments(more));
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        stdout.read_line(&mut line).expect("a line");
        drop(stdout);
        let ran = Ran::after(child).succeeded();
        assert!(!ran.stderr.contains("error"), "{}", ran.stderr);
    }
    let mut child = start(&["text"]);
    drop(child.stdout.take());
    Ran::after(child).succeeded();
}

#[test]
fn bench_paper_checks_its_answer_and_prints_the_numbers() {
    let more = ["bench", "paper", "--records", "20000", "--keys", "100", "--parallelism", "2"];
    let none = json(&tidegate(&[&more[..], &["--json"]].concat()).succeeded());
    let abs = ["--json", "--mode", "abs", "--interval", "2ms"];
    let abs = json(&tidegate(&[&more[..], &abs].concat()).succeeded());
    for numbers in [&none, &abs] {
        assert_eq!(numbers["checksum"], numbers["expected_checksum"]);
        assert_eq!(numbers["checksum"].as_str().map(str::len), Some(16));
        assert_eq!(numbers["records"], 20_000);
        assert!(numbers["records_per_second"].as_f64() > Some(0.0));
        assert!(numbers["peak_rss_bytes"].is_u64());
    }
    assert_eq!(none["snapshots_completed"], 0);
    assert!(abs["snapshots_completed"].as_u64() >= Some(2), "{abs}");
    assert!(abs["snapshot_ms_p50"].as_f64() > Some(0.0), "{abs}");
}

#[test]
fn snapshots_are_listed_shown_and_verified() {
    let place = Place::new(300);
    place.count(&["--snapshots", "@s", "--output", "@out"]).succeeded();
    let directory = place.path("s").display().to_string();
    let list = json(&tidegate(&["snapshot", "list", &directory, "--json"]).succeeded());
    let newest = list.as_array().and_then(|all| all.last()).expect("a snapshot");
    let id = newest["snapshot"].to_string();
    let text = tidegate(&["snapshot", "list", &directory]).succeeded().stdout;
    let text = String::from_utf8(text).expect("text");
    assert!(text.contains("the job is complete") && text.contains(&id), "{text}");
    let shown = json(&tidegate(&["snapshot", "show", &directory, &id, "--json"]).succeeded());
    assert_eq!((&shown, &shown["last"]), (&newest["manifest"], &true.into()));
    let shown = tidegate(&["snapshot", "show", &directory]).succeeded().stdout;
    assert!(String::from_utf8(shown).expect("text").contains("operator 'count': fold_final"));
    let verdict = json(&tidegate(&["snapshot", "verify", &directory, "--json"]).succeeded());
    assert_eq!(verdict["whole"], true);
    tidegate(&["snapshot", "verify", &directory, &id]).succeeded();
    tidegate(&["snapshot", "show", &directory, "99999"]).refused(1, &[&directory, "99999", &id]);
}

#[test]
fn the_plan_is_printed_as_text_and_as_dot() {
    let text = tidegate(&["graph", "paper", "--parallelism", "2"]).succeeded().stdout;
    let text = String::from_utf8(text).expect("text");
    assert!(text.starts_with("job paper: 2 workers, 4 chains, 8 tasks, 12 rings"), "{text}");
    let dot = tidegate(&["graph", "word-count", "--parallelism", "128", "--dot"]).succeeded();
    assert!(dot.stdout.starts_with(b"digraph \"word-count\" {"));
}

#[test]
fn doctor_and_completions_print_something_of_use() {
    let checks = json(&tidegate(&["doctor", "--json"]));
    assert!(checks.as_array().is_some_and(|checks| checks.len() > 5), "{checks}");
    for shell in ["bash", "zsh", "fish"] {
        let script = tidegate(&["completions", shell]).succeeded().stdout;
        assert!(String::from_utf8(script).expect("text").contains("word-count"));
    }
}
