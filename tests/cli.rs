//! The program as its users meet it: results, resuming, stopping, JSON.

mod common;
#[allow(dead_code, reason = "this file uses a part of it")]
#[path = "common/command.rs"]
mod command;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};

use command::{
    Place, Ran, SLOW, assert_components, assert_final, assert_updates, component_lines, contents,
    start, tidegate, until, whole_lines,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tidegate::workload::edges::Edges;

/// What was spilled and logged is said, also where it is nothing.
#[track_caller]
fn assert_inputs(numbers: &Value) {
    for number in ["spilled_records", "spilled_bytes", "logged_records", "logged_bytes"] {
        assert!(numbers["inputs"][number].is_u64(), "{number} in {numbers}");
    }
    for number in ["spill_write_ms", "spill_read_ms", "logs_failed", "timeouts_refused"] {
        assert!(numbers["inputs"][number].is_number(), "{number} in {numbers}");
    }
}

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
            let names = files.iter().filter(|(name, _)| name.starts_with("manifest-"));
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
        let slow = [&more[..], &["--rate", SLOW, "--parallelism", parallelism]].concat();
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
    assert_inputs(&first);
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
        assert_inputs(numbers);
    }
    assert_eq!(none["snapshots_completed"], 0);
    assert!(none["delivered"].is_null(), "{none}");
    let completed = abs["snapshots_completed"].as_u64();
    assert!(completed >= Some(2), "{abs}");
    assert!(abs["snapshot_ms_p50"].as_f64() > Some(0.0), "{abs}");
    assert_eq!(abs["delivered"].is_number(), abs["snapshots_asked"] != 0, "{abs}");
    for phase in ["start_delay", "alignment", "drain", "write", "sync", "commit"] {
        assert_eq!(abs["phases_us"][phase]["samples"].as_u64(), completed, "{phase} in {abs}");
    }
    assert!(abs["phases_us"]["capture"]["samples"].as_u64() > completed, "{abs}");
}

#[test]
fn the_paper_workload_is_right_in_every_mode_and_says_which() {
    for mode in [&["none"][..], &["abs"], &["sync"], &["unaligned", "--align-timeout", "1ms"]] {
        let more = ["bench", "paper", "--records", "20000", "--keys", "50", "--parallelism", "2"];
        let mode_given = ["--json", "--interval", "2ms", "--spill", "off", "--mode"];
        let numbers = json(&tidegate(&[&more[..], &mode_given, mode].concat()).succeeded());
        assert_eq!(numbers["mode"], mode[0]);
        assert_eq!(numbers["checksum"], numbers["expected_checksum"]);
        assert_eq!(numbers["snapshots_completed"] == 0, mode[0] == "none", "{numbers}");
    }
}

#[test]
fn an_open_loop_gives_latency_with_hiccups_beside_it_and_null_where_samples_are_few() {
    let more = ["bench", "paper", "--rate", "20000", "--records", "4000", "--keys", "50", "--json"];
    for mode in [&["none"][..], &["abs", "--interval", "10ms"]] {
        let numbers = json(&tidegate(&[&more[..], &["--mode"], mode].concat()).succeeded());
        assert_eq!(numbers["checksum"], numbers["expected_checksum"], "{numbers}");
        assert!(numbers["late_generator"].is_boolean() && numbers["rate"] == 20_000.0, "{numbers}");
        // A tenth of so short a run is warm-up.
        assert_eq!(numbers["latency_us"]["samples"], 3_600, "{numbers}");
        for row in ["latency_us", "hiccup_us"] {
            assert!(numbers[row]["p50"].as_f64() >= Some(0.0), "{row} in {numbers}");
            assert!(numbers[row]["max"].as_f64() > Some(0.0), "{row} in {numbers}");
        }
        assert_eq!(numbers["latency_us"]["p9999"], Value::Null, "{numbers}");
    }
    let text = String::from_utf8(tidegate(&more[..8]).succeeded().stdout).expect("text");
    let rows = text.lines().map(|line| line.split_whitespace().next()).collect::<Vec<_>>();
    let at = rows.iter().position(|row| *row == Some("latency")).expect("a row");
    assert_eq!(rows[at + 1], Some("hiccups"), "{text}");
}

#[test]
fn without_a_rate_there_is_no_latency() {
    let more = ["bench", "paper", "--records", "1000", "--keys", "5", "--json"];
    let numbers = json(&tidegate(&more).succeeded());
    for number in ["rate", "late_generator", "latency_us", "hiccup_us"] {
        assert_eq!(numbers[number], Value::Null, "{number} in {numbers}");
    }
}

#[test]
fn a_rate_that_cannot_be_kept_is_said_to_be() {
    let more = ["bench", "paper", "--rate", "1e9", "--records", "200000", "--keys", "50", "--json"];
    let ran = tidegate(&more).succeeded();
    assert_eq!(json(&ran)["late_generator"], true);
}

#[test]
fn state_of_every_size_and_skew_is_right_in_every_mode() {
    let more = ["bench", "state", "--keys", "300", "--records", "5000", "--json"];
    let sizes = ["8", "16", "32", "64", "128", "256", "512", "1024"];
    for (index, bytes) in sizes.into_iter().enumerate() {
        let mode = ["none", "abs", "sync"][index % 3];
        let skew = ["uniform", "zipf"][index % 2];
        let shape = ["--value-bytes", bytes, "--skew", skew, "--mode", mode, "--interval", "1ms"];
        let numbers = json(&tidegate(&[&more[..], &shape].concat()).succeeded());
        assert_eq!(numbers["checksum"], numbers["expected_checksum"], "{numbers}");
        assert_eq!(numbers["state_bytes"], 300 * (8 + bytes.parse::<u64>().unwrap()));
        assert_eq!((&numbers["skew"], &numbers["mode"]), (&skew.into(), &mode.into()));
        assert!(numbers["updates_per_second"].as_f64() > Some(0.0), "{numbers}");
        assert!(numbers["peak_rss_bytes"].is_u64(), "{numbers}");
        let snapshots = mode != "none";
        assert_eq!(numbers["snapshots_completed"] != 0, snapshots, "{numbers}");
        assert_eq!(numbers["snapshot_bytes"].is_u64(), snapshots, "{numbers}");
        for phase in ["start_delay", "alignment", "capture", "drain", "write", "sync", "commit"] {
            assert_eq!(numbers["phases_us"][phase]["max"].is_number(), snapshots, "{numbers}");
        }
    }
}

#[test]
fn state_at_a_rate_has_latency_and_goes_on_from_its_snapshots_where_that_is_asked() {
    let more = ["bench", "state", "--keys", "1000", "--rate", "50000", "--records", "10000"];
    let rest = ["--interval", "5ms", "--restart", "--json"];
    let numbers = json(&tidegate(&[&more[..], &rest].concat()).succeeded());
    assert_eq!(numbers["latency_us"]["samples"], 9_000, "{numbers}");
    assert!(numbers["hiccup_us"]["max"].as_f64() > Some(0.0), "{numbers}");
    let restart = &numbers["restart"];
    assert!(restart["restored"].is_u64(), "{numbers}");
    let [process, engine] = ["process_to_first_ms", "engine_to_first_ms"]
        .map(|name| restart[name].as_f64().expect("a number"));
    assert!(process > engine && engine > 0.0, "{numbers}");
    let text = String::from_utf8(tidegate(&more).succeeded().stdout).expect("text");
    for row in ["updates in", "snapshots: ", "capture", "latency", "hiccups", "memory: "] {
        assert!(text.contains(row), "no '{row}' in {text}");
    }
}

#[test]
fn components_equal_union_find_in_every_mode_on_one_worker_and_on_two() {
    let place = Place::of_edges(2000);
    assert_components(&place.iterate(&[]).succeeded().stdout, &place.text);
    let modes: [(&str, &[&str]); 4] = [
        ("abs", &[]),
        ("sync", &["--spill", "off"]),
        ("unaligned", &["--spill", "@elsewhere"]),
        ("unaligned", &["--align-timeout", "0"]),
    ];
    for (index, (mode, settings)) in modes.into_iter().enumerate() {
        for parallelism in ["1", "2"] {
            let (out, snapshots) =
                (format!("@o{index}{parallelism}"), format!("@s{index}{parallelism}"));
            let more = ["--mode", mode, "--parallelism", parallelism, "--interval", "1ms"];
            let places = ["--output", &out, "--snapshots", &snapshots];
            place.iterate(&[&more[..], &places, settings].concat()).succeeded();
            assert_components(&place.committed(&out[1..]), &place.text);
        }
    }
}

#[test]
fn component_updates_come_once_each_and_fall_to_the_component() {
    let place = Place::of_edges(500);
    let more = ["--emit", "updates", "--parallelism", "2", "--output", "@out", "--snapshots", "@s"];
    place.iterate(&more).succeeded();
    let lines = whole_lines(&place.committed("out"));
    let unique: BTreeSet<_> = lines.iter().cloned().collect();
    assert_eq!(unique.len(), lines.len(), "an update came twice");
    let mut last = BTreeMap::new();
    for line in &lines {
        let text = std::str::from_utf8(line).expect("text");
        let (vertex, label) = text.split_once('\t').expect("vertex, tab, component");
        let (vertex, label): (u64, u64) = (vertex.parse().unwrap(), label.parse().unwrap());
        let lowest = last.entry(vertex).or_insert(label);
        *lowest = label.min(*lowest);
    }
    let expected = component_lines(&place.text).into_iter().map(|line| {
        let numbers: Vec<u64> =
            String::from_utf8(line).unwrap().split('\t').map(|n| n.parse().unwrap()).collect();
        (numbers[0], numbers[1])
    });
    assert_eq!(last, expected.collect());
}

#[test]
fn a_generated_graph_is_the_same_each_time_and_another_with_another_seed() {
    let place = Place::with_text("");
    let arguments = ["iterate", "--vertices", "300", "--edges", "200", "--parallelism", "1"];
    let run = |more: &[&str]| tidegate(&[&arguments[..], more].concat()).succeeded().stdout;
    let sorted = |output: Vec<u8>| whole_lines(&output).into_iter().collect::<BTreeSet<_>>();
    let first = sorted(run(&[]));
    let list = Edges { vertices: 300, seed: 1 };
    let edges = |count| (0..count).map(|index| list.edge(index)).collect::<Vec<_>>();
    let text = |count: u64| -> String {
        edges(count).iter().map(|(one, other)| format!("{one} {other}\n")).collect()
    };
    assert_eq!(first, component_lines(text(200).as_bytes()));
    let snapshots = place.path("s").display().to_string();
    let sync = ["--mode", "sync", "--snapshots", &snapshots, "--interval", "1ms"];
    assert_eq!(sorted(run(&sync)), first);
    let mut names = contents(&place.path("s")).into_keys();
    assert!(names.any(|name| name == "manifest-0"), "it took no snapshot");
    assert_ne!(sorted(run(&["--seed", "2"])), first);
    assert_components(&run(&["--limit", "50"]), text(50).as_bytes());
    assert_components(&run(&["--limit", "0"]), b"");
}

#[test]
fn an_edge_list_may_hold_comments_tabs_carriage_returns_and_no_last_line_end() {
    let place = Place::with_text("# a b\n1 2\r\n\n\t3\t 4 \n#5 6\n4 1\n9 9");
    let text = b"1 2\n3 4\n4 1\n9 9\n";
    assert_components(&place.iterate(&[]).succeeded().stdout, text);
    let only_comments = Place::with_text("# nothing\n\n");
    assert!(only_comments.iterate(&[]).succeeded().stdout.is_empty());
}

#[test]
fn a_loop_that_is_stopped_goes_on_and_once_complete_changes_nothing() {
    let place = Place::of_edges(2000);
    let more = ["--output", "@out", "--snapshots", "@s", "--interval", "2ms"];
    let slow = [&more[..], &["--rate", SLOW, "--parallelism", "2"]].concat();
    let mut child = start(&place.arguments_of("iterate", &slow));
    let has_manifest = || contents(&place.path("s")).into_keys().any(|name| name == "manifest-0");
    until(&mut child, has_manifest);
    signal(&child, Signal::TERM);
    let stopped = Ran::after(child).succeeded();
    assert!(stopped.stderr.contains("; run the same command again"), "{}", stopped.stderr);
    let ended = json(&place.iterate(&[&more[..], &["--json"]].concat()).succeeded());
    assert_eq!(ended["end"], "complete");
    assert!(ended["restored"].is_u64() && ended["edges"].is_u64(), "{ended}");
    assert!(ended["edges_per_second"].as_f64() > Some(0.0), "{ended}");
    assert_inputs(&ended);
    let output = contents(&place.path("out"));
    assert_components(&place.committed("out"), &place.text);
    let again = place.iterate(&more).succeeded();
    assert!(again.stderr.contains("already complete: nothing to do"), "{}", again.stderr);
    assert_eq!(contents(&place.path("out")), output);
}

#[test]
fn help_names_every_argument_of_iterate_and_what_a_line_is() {
    for help in [&["iterate", "--help"][..], &["help", "iterate"]] {
        let help = String::from_utf8(tidegate(help).succeeded().stdout).expect("text");
        for argument in [
            "--input <FILE>",
            "--vertices <N>",
            "--edges <N>",
            "--seed <SEED>",
            "--emit <final|updates>",
            "--output <DIR>",
            "--snapshots <DIR>",
            "--interval <DURATION>",
            "--mode <abs|sync|unaligned>",
            "--align-timeout <DURATION>",
            "--spill <DIR|off>",
            "--parallelism <N>",
            "--rate <EDGES>",
            "--limit <EDGES>",
            "--json",
            "vertex, component",
            "Run the same command again",
        ] {
            assert!(help.contains(argument), "no '{argument}' in: {help}");
        }
    }
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
    let shown = String::from_utf8(shown).expect("text");
    let phases =
        ["start_delay_ns", "alignment_ns", "capture_ns", "drain_ns", "write_ns", "sync_ns"];
    let bytes = ["changed_bytes", "written_bytes", "operator 'count': fold_final"];
    for expected in phases.iter().chain(&bytes) {
        assert!(shown.contains(expected), "no '{expected}' in {shown}");
    }
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
    let text = tidegate(&["graph", "iterate", "--parallelism", "2"]).succeeded().stdout;
    let text = String::from_utf8(text).expect("text");
    let back_edge =
        |line: &&str| line.contains("route -> propagate") && line.ends_with("back-edge");
    assert_eq!(text.lines().filter(back_edge).count(), 1, "{text}");
    let dot = tidegate(&["graph", "iterate", "--dot"]).succeeded().stdout;
    assert!(String::from_utf8(dot).expect("text").contains("style=dashed"));
}

#[test]
fn doctor_and_completions_print_something_of_use() {
    let checks = json(&tidegate(&["doctor", "--json"]));
    assert!(checks.as_array().is_some_and(|checks| checks.len() > 5), "{checks}");
    for shell in ["bash", "zsh", "fish"] {
        let script = tidegate(&["completions", shell]).succeeded().stdout;
        let script = String::from_utf8(script).expect("text");
        assert!(script.contains("word-count") && script.contains("iterate"), "{shell}");
    }
}
