//! The program under test, and what it leaves behind.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;
use tidegate::clock;
use tidegate::workload::edges::Edges;
use tidegate::workload::zipf::ZipfText;

use crate::common::{count_words, graph};

/// Longest wait for something a process has to do, ns.
const PATIENCE_NS: u64 = 60_000_000_000;

/// A `--rate` at which 2000 lines or edges last longer than [`PATIENCE_NS`]: a job that is to be
/// stopped half way is still running whenever a busy machine lets the test look.
pub const SLOW: &str = "20";

/// How a process ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        let stderr = String::from_utf8(output.stderr).expect("messages are UTF-8");
        Self { code: output.status.code(), stdout: output.stdout, stderr }
    }

    /// Waits for the end of `child`.
    pub fn after(child: Child) -> Self {
        Self::of(child.wait_with_output().expect("a process that ends"))
    }

    /// It did what it was asked to.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self
    }

    /// It ended with `code`, nothing on standard output, and one error that says all of `needles`.
    #[track_caller]
    pub fn refused(self, code: i32, needles: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{}", self.stderr);
        assert!(self.stdout.is_empty(), "{}", String::from_utf8_lossy(&self.stdout));
        let errors = self.stderr.lines().filter(|line| line.contains("error: ")).count();
        assert_eq!(errors, 1, "{}", self.stderr);
        assert!(!self.stderr.contains("panicked at"), "{}", self.stderr);
        for needle in needles {
            assert!(self.stderr.contains(needle), "no '{needle}' in: {}", self.stderr);
        }
        self
    }
}

fn command<S: AsRef<OsStr>>(arguments: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(arguments).stdin(Stdio::null()).env_remove("RUST_BACKTRACE");
    command
}

/// Runs the program to its end.
pub fn tidegate<S: AsRef<OsStr>>(arguments: &[S]) -> Ran {
    Ran::of(command(arguments).output().expect("the program starts"))
}

/// Starts the program.
pub fn start<S: AsRef<OsStr>>(arguments: &[S]) -> Child {
    let mut command = command(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
}

/// Looks again and again until `is_so`; a process that dies meanwhile is a failure.
#[track_caller]
pub fn until(child: &mut Child, mut is_so: impl FnMut() -> bool) {
    let started_ns = clock::now_ns();
    while !is_so() {
        let ended = child.try_wait().expect("a child can be waited for");
        assert!(ended.is_none(), "the process ended early: {ended:?}");
        assert!(clock::now_ns() - started_ns < PATIENCE_NS, "waited too long");
        std::thread::yield_now();
    }
}

/// A directory of its own, with a text in it.
pub struct Place {
    directory: TempDir,
    pub text: Vec<u8>,
}

impl Place {
    /// With `lines` lines of text.
    pub fn new(lines: u64) -> Self {
        let (words, mut text) = (ZipfText::new(3, 300, 6), Vec::new());
        for index in 0..lines {
            words.line(index, &mut text);
            text.push(b'\n');
        }
        Self::with_text(text)
    }

    /// With this many edges of a random graph between as many vertices, one per line.
    pub fn of_edges(edges: u64) -> Self {
        let list = Edges { vertices: edges, seed: 5 };
        let line = |index| list.edge(index);
        let lines = (0..edges).map(line).map(|(one, other)| format!("{one} {other}\n"));
        Self::with_text(lines.collect::<String>())
    }

    /// With this text.
    pub fn with_text(text: impl Into<Vec<u8>>) -> Self {
        let (directory, text) = (tempfile::tempdir().expect("a directory"), text.into());
        std::fs::write(directory.path().join("text"), &text).expect("a file");
        Self { directory, text }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `tidegate word-count` over the text with `more`, in which `@name` is a path in this place.
    pub fn arguments(&self, more: &[&str]) -> Vec<String> {
        self.arguments_of("word-count", more)
    }

    /// The same for another command that reads the text.
    pub fn arguments_of(&self, command: &str, more: &[&str]) -> Vec<String> {
        let here = [command, "--input", "@text", "--parallelism", "1"];
        let has = |flag: &&str| more.contains(flag);
        let mut arguments = vec![here[0].to_string()];
        for pair in here[1..].chunks(2).filter(|pair| !has(&pair[0])) {
            arguments.extend(pair.iter().map(|argument| self.argument(argument)));
        }
        arguments.extend(more.iter().map(|argument| self.argument(argument)));
        arguments
    }

    fn argument(&self, argument: &str) -> String {
        match argument.strip_prefix('@') {
            Some(name) => self.path(name).display().to_string(),
            None => argument.to_string(),
        }
    }

    /// Counts the text.
    pub fn count(&self, more: &[&str]) -> Ran {
        tidegate(&self.arguments(more))
    }

    /// Finds the components of the graph that the text is.
    pub fn iterate(&self, more: &[&str]) -> Ran {
        tidegate(&self.arguments_of("iterate", more))
    }

    /// All lines that a reader of the output directory sees.
    pub fn committed(&self, name: &str) -> Vec<u8> {
        let files = contents(&self.path(name));
        files.into_iter().filter(|(name, _)| !name.starts_with('.')).flat_map(|(_, b)| b).collect()
    }
}

/// Every file of a directory (not what is in directories below it) with its bytes. A running job may rename or remove one meanwhile: then it
/// is left out.
pub fn contents(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().expect("names are UTF-8");
            match std::fs::read(entry.path()) {
                Ok(bytes) => Some((name, bytes)),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) if error.kind() == ErrorKind::IsADirectory => None,
                Err(error) => panic!("{name}: {error}"),
            }
        })
        .collect()
}

/// Vertex, component and degree of each vertex of the graph that `text` is, as lines in order.
pub fn component_lines(text: &[u8]) -> BTreeSet<Vec<u8>> {
    let text = std::str::from_utf8(text).expect("numbers");
    let edges =
        text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
            let mut ends = line.split_whitespace().map(|end| end.parse().expect("a number"));
            (ends.next().expect("one end"), ends.next().expect("the other end"))
        });
    let line = |(vertex, (component, degree))| format!("{vertex}\t{component}\t{degree}").into();
    graph::components(edges).into_iter().map(line).collect()
}

/// Each vertex of the graph that `text` is once, with its component and degree.
#[track_caller]
pub fn assert_components(output: &[u8], text: &[u8]) {
    let mut found = whole_lines(output);
    found.sort_unstable();
    assert_eq!(found, component_lines(text).into_iter().collect::<Vec<_>>());
}

/// The lines of `output`, each of which has its end.
#[track_caller]
pub fn whole_lines(output: &[u8]) -> Vec<Vec<u8>> {
    assert!(output.is_empty() || output.ends_with(b"\n"), "a half line at the end");
    let lines = output.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(Vec::from).collect()
}

/// Word and count of each line.
pub fn lines_of(output: &[u8]) -> Vec<(Vec<u8>, u64)> {
    let lines = whole_lines(output).into_iter();
    lines
        .map(|line| {
            let tab = line.iter().position(|byte| *byte == b'\t').expect("word, tab, count");
            let count = std::str::from_utf8(&line[tab + 1..]).expect("a number");
            (line[..tab].to_vec(), count.parse().expect("a number"))
        })
        .collect()
}

/// Each word of `text` once, with its count.
#[track_caller]
pub fn assert_final(output: &[u8], text: &[u8]) {
    let mut found = lines_of(output);
    found.sort_unstable();
    assert_eq!(found, count_words(text).into_iter().collect::<Vec<_>>());
}

/// For a word that `text` has C times, 1 to C each once.
#[track_caller]
pub fn assert_updates(output: &[u8], text: &[u8]) {
    let mut found = lines_of(output);
    found.sort_unstable();
    let counts = count_words(text).into_iter();
    let expected = counts.flat_map(|(word, count)| (1..=count).map(move |n| (word.clone(), n)));
    assert_eq!(found, expected.collect::<Vec<_>>());
}

/// Waits for the end of a process that may hang: then it is killed, and that is a failure.
#[track_caller]
pub fn ended(mut child: Child) -> Ran {
    let started_ns = clock::now_ns();
    while child.try_wait().expect("a child can be waited for").is_none() {
        if clock::now_ns() - started_ns > PATIENCE_NS {
            child.kill().expect("a child of ours");
            panic!("it hangs");
        }
        std::thread::yield_now();
    }
    Ran::after(child)
}
