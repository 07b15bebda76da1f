//! Live input, TCP and standard input: every line once while nothing fails; after a failure what was read
//! since the last snapshot is lost, and nothing comes twice.

mod common;

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::run::{Run, Told, config};
use rustix::net::sockopt::set_socket_linger;
use tidegate::config::Config;
use tidegate::disk::MemoryDisk;
use tidegate::engine::End;
use tidegate::error::Error;
use tidegate::graph::Graph;
use tidegate::operator::sink::{Collect, Collected, Files, Roll};
use tidegate::operator::source::{StdinLines, TcpLines};
use tidegate::record::Collector;
use tidegate::stream::Job;

/// A server on a port of its own, and a job that collects what it sends.
fn server() -> (TcpListener, Graph, Collected<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it has one").to_string();
    let (graph, collected) = job(address);
    (listener, graph, collected)
}

fn job(address: String) -> (Graph, Collected<String>) {
    let job = Job::new("live");
    let (sink, collected) = Collect::new();
    let text = |line: Vec<u8>| String::from_utf8(line).expect("text");
    job.source("lines", TcpLines::connect(address)).map("text", text).sink("out", sink);
    (job.build().expect("well formed"), collected)
}

/// Steps until the job has connected.
fn accept(run: &mut Run<'_>, listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).expect("a socket");
    let mut accepted = None;
    run.until("a connection", |_| {
        accepted = accepted.take().or_else(|| listener.accept().ok());
        accepted.is_some()
    });
    accepted.expect("it has connected").0
}

fn send(run: &mut Run<'_>, stream: &mut TcpStream, text: &str, lines: u64) {
    stream.write_all(text.as_bytes()).expect("it is connected");
    run.until("its lines", |run| run.handle.records() == lines);
}

/// Resets the connection instead of closing it.
fn reset(stream: TcpStream) {
    set_socket_linger(&stream, Some(Duration::ZERO)).expect("a socket");
}

#[test]
fn lines_from_tcp_are_those_that_were_sent_however_they_arrive() {
    let (listener, graph, collected) = server();
    let mut run = Run::open(&graph, &config(1), &MemoryDisk::new(1));
    let mut stream = accept(&mut run, &listener);
    send(&mut run, &mut stream, "one\ntw", 1);
    run.until_completed(2);
    send(&mut run, &mut stream, "o\n\nfo", 3);
    stream.write_all(b"ur").expect("it is connected");
    drop(stream);
    assert_eq!(run.end().expect("the peer has closed").end, End::Complete);
    assert_eq!(collected.take(), ["one", "two", "", "four"]);
}

#[test]
fn a_server_that_is_not_there_is_named_and_asked_again_only_where_a_restart_is_safe() {
    let (listener, graph, _) = server();
    let address = listener.local_addr().expect("it has one").to_string();
    drop(listener);
    let name = format!("connect to tcp {address}");
    let mut run = Run::open(&graph, &Config::workers(1), &MemoryDisk::new(1));
    let error = run.end().expect_err("nobody listens").to_string();
    assert!(error.contains(&name) && error.contains("is the server running"), "{error}");
    assert!(run.told.is_empty(), "without snapshots nothing is tried again: {:?}", run.told);

    let mut run = Run::open(&graph, &config(1), &MemoryDisk::new(1));
    let error = run.end().expect_err("nobody listens");
    assert!(matches!(error, Error::RestartsExhausted { failures: 4, .. }), "{error}");
    assert!(error.to_string().contains(&name), "{error}");
}

#[test]
fn an_address_that_is_none_is_not_tried_again() {
    let (graph, _) = job("no port".into());
    let mut run = Run::open(&graph, &config(1), &MemoryDisk::new(1));
    let error = run.end().expect_err("it is no address").to_string();
    assert!(error.contains("tcp no port") && error.contains("host:port"), "{error}");
    assert!(run.told.is_empty(), "{:?}", run.told);
}

#[test]
fn after_a_reset_within_a_line_the_job_connects_again_and_only_that_line_is_lost() {
    let (listener, graph, collected) = server();
    let mut run = Run::open(&graph, &config(1), &MemoryDisk::new(1));
    let mut stream = accept(&mut run, &listener);
    send(&mut run, &mut stream, "one\ntwo\nhalf a li", 2);
    run.until_completed(2);
    reset(stream);
    let mut stream = accept(&mut run, &listener);
    let restarted = |told: &Told| matches!(told, Told::Restarting(why) if why.contains("reset"));
    assert!(run.told.iter().any(restarted), "{:?}", run.told);
    send(&mut run, &mut stream, "three\n", 3);
    drop(stream);
    assert_eq!(run.end().expect("the peer has closed").restarts, 1);
    assert_eq!(collected.take(), ["one", "two", "three"]);
}

#[test]
fn after_a_crash_what_was_read_since_the_last_snapshot_is_lost_and_nothing_comes_twice() {
    let (listener, graph, collected) = server();
    let disk = MemoryDisk::new(1);
    let mut run = Run::open(&graph, &config(1), &disk);
    let mut stream = accept(&mut run, &listener);
    send(&mut run, &mut stream, "kept\nkept too\n", 2);
    run.until_completed(2);
    stream.write_all(b"lost\n").expect("it is connected");
    // Without the supervisor no snapshot completes any more.
    while run.handle.records() < 3 {
        run.step(0);
    }
    drop(run);
    disk.crash();
    let mut run = Run::open(&graph, &config(1), &disk);
    let mut stream = accept(&mut run, &listener);
    stream.write_all(b"next\n").expect("it is connected");
    drop(stream);
    assert_eq!(run.end().expect("the peer has closed").end, End::Complete);
    assert_eq!(collected.take(), ["kept", "kept too", "next"]);
}

/// Where the child writes; without it the child has nothing to do.
const CHILD_OUTPUT: &str = "TIDEGATE_TEST_STDIN_OUTPUT";

/// Not a test by itself: what the next one runs in a process whose standard input it holds.
#[test]
fn child_that_copies_standard_input() {
    let Some(output) = std::env::var_os(CHILD_OUTPUT) else { return };
    let job = Job::new("copy");
    let write = |line: &Vec<u8>, out: &mut Collector<u8>| {
        out.extend_from_slice(line);
        out.push(b'\n');
    };
    job.source("lines", StdinLines).sink("out", Files::new(output, Roll::default(), write));
    assert_eq!(job.run(&Config::workers(1)).expect("it ends").end, End::Complete);
}

#[test]
fn standard_input_is_read_to_its_end() {
    let place = tempfile::tempdir().expect("a directory");
    let output = place.path().join("out");
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "child_that_copies_standard_input"])
        .env(CHILD_OUTPUT, &output)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("this test starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let lines: String = (0..20_000).map(|number| format!("line {number}\n")).collect();
    stdin.write_all(lines.as_bytes()).expect("it reads");
    stdin.write_all(b"no end").expect("it reads");
    drop(stdin);
    assert!(child.wait().expect("a child").success());
    let entries = std::fs::read_dir(&output).expect("a directory").flatten();
    let mut names = entries.map(|entry| entry.file_name());
    let name = names.find(|name| !name.to_string_lossy().starts_with('.'));
    let copied = std::fs::read_to_string(output.join(name.expect("a file"))).expect("a file");
    assert_eq!(copied, lines + "no end\n");
}
