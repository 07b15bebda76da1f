//! Connected components of a growing graph, by label propagation in a loop.
//!
//! ```text
//! edges --> propagate (loop) --> hear (by vertex) --+--> components, or updates --> out
//!               ^                                   |
//!               +------ labels for neighbours ------+
//! ```
//!
//! Each edge tells both of its ends about the other. A vertex keeps the smallest vertex that it knows
//! to be in its component (its *label*) and its neighbours. A new neighbour is sent the label; a
//! smaller label is adopted, and sent to all neighbours. When nothing goes round any more, two
//! vertices have the same label exactly if a path joins them.
//!
//! Why that is so in any order of messages: along every edge the newest label of one end has been sent
//! to the other, or is on its way, or is not below the other's own number and so of no use to it.
//!
//! A line of final output is vertex, component (its smallest vertex) and degree, with tabs between. The
//! degree counts the ends of edges that the vertex was told of, so that a lost or doubled edge shows
//! even where it changes no component; an edge from a vertex to itself has two ends there. A line of
//! updates is a vertex and its new label.

use std::path::PathBuf;

use rkyv::{Archive, Deserialize, Serialize};

use super::{Emit, Output, name_options, paced, write_number};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::operator::process::KeyState;
use crate::operator::source::{Decoded, Generator, TextFile};
use crate::operator::split::Side;
use crate::record::Collector;
use crate::stream::{Job, Stream};
use crate::workload::edges::Edges;
use crate::workload::words::words;

/// Vertices of the generated graph where no number is given.
pub const GENERATED_VERTICES: u64 = 100_000;
/// Edges of the generated graph where no number is given: one large component and many small ones.
pub const GENERATED_EDGES: u64 = 100_000;
/// Seed of the generated graph where none is given.
pub const GENERATED_SEED: u64 = 1;
/// How much of a bad line is shown.
const SHOWN_BYTES: usize = 60;

/// Where the edges come from.
#[derive(Clone, Debug)]
pub enum Input {
    /// A text file: two vertices per line, with spaces or tabs between; empty lines and lines that
    /// begin with `#` are skipped.
    File(PathBuf),
    /// A random graph with this many edges.
    Generated {
        /// Its edges.
        list: Edges,
        /// How many of them.
        edges: u64,
    },
}

/// Which graph, and where the results go.
#[derive(Clone, Debug)]
pub struct Components {
    /// The edges.
    pub input: Input,
    /// What is emitted.
    pub emit: Emit,
    /// Where results go.
    pub output: Output,
    /// Edges per second; without one, as fast as possible.
    pub rate: Option<f64>,
    /// Only so many edges; of a file, lines.
    pub limit: Option<u64>,
}

impl Default for Components {
    fn default() -> Self {
        let list = Edges { vertices: GENERATED_VERTICES, seed: GENERATED_SEED };
        Self {
            input: Input::Generated { list, edges: GENERATED_EDGES },
            emit: Emit::default(),
            output: Output::default(),
            rate: None,
            limit: None,
        }
    }
}

/// What goes round: something that `vertex` is told. A struct of numbers, so that its memory is its
/// archive (an enum with data has padding).
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    vertex: u64,
    /// The neighbour or the label.
    number: u64,
    /// [`NEIGHBOUR`] or [`LABEL`].
    kind: u64,
}

const NEIGHBOUR: u64 = 0;
const LABEL: u64 = 1;

impl Message {
    /// An end of an edge: `vertex` has this neighbour.
    #[must_use]
    pub fn neighbour(vertex: u64, neighbour: u64) -> Self {
        Self { vertex, number: neighbour, kind: NEIGHBOUR }
    }

    /// `vertex` is in one component with the vertex `label`.
    #[must_use]
    pub fn label(vertex: u64, label: u64) -> Self {
        Self { vertex, number: label, kind: LABEL }
    }
}

/// What leaves the loop: news of a vertex.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    vertex: u64,
    label: u64,
    /// Ends of edges that it was told of since the last update: 0 or 1.
    ends: u64,
}

/// The result for a vertex.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Component {
    /// The smallest vertex of its component.
    pub label: u64,
    /// Ends of edges that it has.
    pub degree: u64,
}

/// What a vertex knows.
#[derive(Archive, Serialize, Deserialize, Clone, Debug)]
struct Vertex {
    /// The smallest vertex known to be in its component.
    label: u64,
    /// One entry for each end of an edge.
    neighbours: Vec<u64>,
}

/// What a record of the loop's body leads to.
type Sent = Side<Message, Update>;

/// A vertex is told something.
fn hear(message: Message, state: &mut KeyState<'_, u64, Vertex>, out: &mut Collector<Sent>) {
    let Message { vertex, number, kind } = message;
    let known = state.get().map(|known| known.label);
    let own = || Vertex { label: vertex, neighbours: Vec::new() };
    let Vertex { label, neighbours } = state.or_insert_with(own);
    // To a vertex that is not above the label, the label says nothing new.
    let tell = |label: u64, to: u64| (label < to).then(|| Side::Left(Message::label(to, label)));
    if kind == NEIGHBOUR {
        neighbours.push(number);
        out.extend(tell(*label, number));
    } else if number < *label {
        *label = number;
        out.extend(neighbours.iter().filter_map(|&neighbour| tell(number, neighbour)));
    }
    let ends = u64::from(kind == NEIGHBOUR);
    if ends > 0 || known != Some(*label) {
        out.push(Side::Right(Update { vertex, label: *label, ends }));
    }
}

/// The loop, over messages about neighbours. What comes out of it has every end of an edge and every
/// new label, those of a vertex in order.
fn propagate(messages: Stream<Message>) -> Stream<Update> {
    messages.iterate("propagate", |messages| {
        messages.key_by(|message| message.vertex).process("hear", hear).split("route", |sent| sent)
    })
}

/// The component and the degree of each vertex, once, when the input has ended.
#[must_use]
pub fn components(messages: Stream<Message>) -> Stream<(u64, Component)> {
    let none = || Component { label: u64::MAX, degree: 0 };
    propagate(messages).key_by(|update| update.vertex).fold_final(
        "components",
        none,
        |component, update| {
            component.label = component.label.min(update.label);
            component.degree += update.ends;
        },
    )
}

/// Every label of every vertex, each once: a vertex's labels fall.
#[must_use]
pub fn updates(messages: Stream<Message>) -> Stream<(u64, u64)> {
    propagate(messages).key_by(|update| update.vertex).process(
        "updates",
        |update: Update, last: &mut KeyState<'_, u64, u64>, out| {
            if last.get() != Some(&update.label) {
                last.set(update.label);
                out.push((update.vertex, update.label));
            }
        },
    )
}

fn tell_both((one, other): (u64, u64), out: &mut Collector<Message>) {
    out.extend([Message::neighbour(one, other), Message::neighbour(other, one)]);
}

/// The edge on `line`, if there is one.
fn decode(line: &[u8], out: &mut Collector<Message>) -> Decoded {
    let mut words = words(line);
    let Some(first) = words.next().filter(|word| word[0] != b'#') else { return Ok(()) };
    let vertex = |word: &[u8]| std::str::from_utf8(word).ok()?.parse().ok();
    match (vertex(first), words.next().and_then(vertex), words.next()) {
        (Some(one), Some(other), None) => tell_both((one, other), out),
        _ => {
            let shown = String::from_utf8_lossy(&line[..line.len().min(SHOWN_BYTES)]);
            return Err(format!(
                "'{}' is no edge; write two vertices, numbers from 0 to {}, for example '3 14'",
                shown.trim(),
                u64::MAX
            ));
        }
    }
    Ok(())
}

fn write_component((vertex, component): &(u64, Component), out: &mut Collector<u8>) {
    write_number(*vertex, b'\t', out);
    write_number(component.label, b'\t', out);
    write_number(component.degree, b'\n', out);
}

fn write_update((vertex, label): &(u64, u64), out: &mut Collector<u8>) {
    write_number(*vertex, b'\t', out);
    write_number(*label, b'\n', out);
}

impl Components {
    /// The job.
    ///
    /// # Errors
    /// The input is missing, empty or unreadable; a generated graph has no vertices.
    pub fn job(&self, disk: &dyn Disk) -> Result<Graph> {
        let job = Job::new("iterate");
        name_options(&job, self.emit, self.limit);
        let messages = paced(self.messages(&job, disk)?, self.rate);
        match self.emit {
            Emit::Final => self.output.take(components(messages), write_component),
            Emit::Updates => self.output.take(updates(messages), write_update),
        }
        job.build()
    }

    fn messages(&self, job: &Job, disk: &dyn Disk) -> Result<Stream<Message>> {
        Ok(match &self.input {
            Input::File(path) => {
                let mut file = TextFile::open(path, disk)?;
                if let Some(limit) = self.limit {
                    file = file.limit(limit, disk)?;
                }
                job.source("edges", file.try_decode(decode))
            }
            Input::Generated { list, edges } => {
                let Edges { vertices, seed } = *list;
                if vertices == 0 {
                    return Err(Error::Config {
                        setting: "vertices".into(),
                        value: "0".into(),
                        reason: "an edge needs at least one".into(),
                    });
                }
                let (list, edges) = (*list, self.limit.map_or(*edges, |limit| limit.min(*edges)));
                let make =
                    move |index, out: &mut Collector<Message>| tell_both(list.edge(index), out);
                let identity = format!("of edges between {vertices} vertices, seed {seed}");
                job.source("edges", Generator::new(identity, edges, make))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_two_numbers_or_nothing() {
        for (line, edges) in [
            ("1 2", vec![(1, 2), (2, 1)]),
            ("\t7\t 7 \r", vec![(7, 7), (7, 7)]),
            ("18446744073709551615 0", vec![(u64::MAX, 0), (0, u64::MAX)]),
            ("", vec![]),
            (" \r", vec![]),
            ("# 1 2", vec![]),
            ("  #1 2", vec![]),
        ] {
            let mut out = Vec::new();
            assert_eq!(decode(line.as_bytes(), Collector::over(&mut out)), Ok(()), "{line:?}");
            let expected = edges.iter().map(|&(one, other)| Message::neighbour(one, other));
            assert_eq!(out, expected.collect::<Vec<_>>(), "{line:?}");
        }
    }

    #[test]
    fn any_other_line_is_refused_and_shown() {
        for line in ["1", "1 2 3", "a b", "1 -2", "1 18446744073709551616", "1,2", "1 \u{661}"] {
            let refusal =
                decode(line.as_bytes(), Collector::over(&mut Vec::new())).expect_err(line);
            assert!(refusal.contains(&format!("'{line}'")), "{refusal}");
        }
        let refusal =
            decode(&[b'x'; 5000], Collector::over(&mut Vec::new())).expect_err("too long to show");
        assert!(refusal.len() < 200, "{refusal}");
    }
}
