//! The logical graph: operators and edges as the user wrote them, with the record types erased.
//!
//! The typed API ([`crate::stream`]) fills it in; [`crate::plan`] turns it into tasks. Types are
//! erased as `Box<dyn Any>` only here and only while tasks are built: each closure that boxes a
//! value is made beside the one that unboxes it, with the same `T`.
//!
//! Invariants
//! - Operator names are unique: they are the identity of state in snapshots.
//! - Every output of every operator has at least one consumer.
//! - Edges lead from an operator to one that was added later, but for those declared to feed back:
//!   every cycle has one of them ([`crate::loops`]).

use std::any::Any;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::align::InputKind;
use crate::channel::{Consumer, Producer, channel};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::flight::Flight;
use crate::id::{KEY_GROUPS, SnapshotId};
use crate::inbox::{Inbox, Input, Log, Setting, Share};
use crate::loops::{Link, Loops};
use crate::operator::sink::AnySink;
use crate::operator::source::ReaderContext;
use crate::operator::split::Tee;
use crate::operator::{Probe, Stage};
use crate::outbox::{Outbox, Route};
use crate::record::Record;
use crate::spill::{Backlog, Limits, Place};
use crate::state::{Declared, TypeName};
use crate::task::{Head, InboxHead};

/// Ends the name of a log in snapshots, behind that of the operator at the head of its task.
pub const LOG_SUFFIX: &str = "#log";

/// A value whose type its maker and its user agree on.
pub type Erased = Box<dyn Any + Send>;

/// Takes the value out.
///
/// # Panics
/// If maker and user do not agree: a defect of this module.
pub fn unerase<T: 'static>(value: Erased) -> T {
    *value.downcast().unwrap_or_else(|_| panic!("expected a {}", std::any::type_name::<T>()))
}

fn erase_stage<T: 'static>(stage: Box<dyn Stage<T>>) -> Erased {
    Box::new(stage)
}

/// Index of an operator in [`Graph::operators`].
pub type OperatorIndex = usize;

/// What an operator needs to build one of its tasks.
pub struct TaskContext {
    /// The operator's name.
    pub name: String,
    /// Which parallel copy, from 0.
    pub subtask: usize,
    /// How many there are.
    pub parallelism: usize,
    /// The key groups it owns.
    pub groups: Range<u32>,
    /// Says that this operator's code runs.
    pub probe: Probe,
    /// Files.
    pub disk: Arc<dyn Disk>,
    /// The first snapshot that its output will belong to.
    pub first_snapshot: SnapshotId,
    /// Whether the job takes snapshots.
    pub transactional: bool,
    /// Whether sources wait behind a barrier until its snapshot is durable.
    pub synchronous: bool,
    /// Records per second of this task, for a source.
    pub rate: Option<f64>,
    /// Counts what sources read.
    pub records: Arc<AtomicU64>,
}

/// Makes a part of a task from its successors, one per port.
pub type Make<P> = Box<dyn Fn(&TaskContext, Vec<Erased>) -> Result<P>>;

/// Says what a source's input is.
pub type Identity = Box<dyn Fn(&ReaderContext) -> Result<String>>;

/// What an operator is made of, by its place in the graph.
pub enum Build {
    /// A source: makes the head of a task from its successors, one per port.
    Source {
        /// Makes the head.
        head: Make<Box<dyn Head>>,
        /// What its input is, for the job's fingerprint.
        identity: Identity,
    },
    /// An operator with inputs: makes its stage from its successors, one per port.
    Stage {
        /// Makes the stage.
        stage: Make<Erased>,
        /// Makes the head of a task that begins with this operator.
        head: fn(Vec<RingEnd>, HeadContext, Erased) -> Box<dyn Head>,
        /// The sink, if it is one.
        sink: Option<Arc<dyn AnySink>>,
    },
}

/// One input of a task to be.
pub struct RingEnd {
    /// The reading end.
    pub consumer: Erased,
    /// Which kind of edge it belongs to.
    pub kind: InputKind,
    /// Whether the edge lies inside a loop.
    pub inside: bool,
    /// The [`Share`] of a keyed edge.
    pub group_of: Option<Erased>,
    /// Whether each record goes to every task.
    pub to_each: bool,
    /// Where its records are set aside on disk.
    pub place: Option<Place>,
}

/// What the head of a task with inputs is made with.
pub struct HeadContext {
    /// For its inbox.
    pub setting: Setting,
    /// Bounds of what is set aside, per input.
    pub limits: Limits,
    /// Which copy of its operator it is: (subtask, parallelism).
    pub copy: (usize, usize),
}

/// The head of a task whose inputs carry `T`.
pub fn inbox_head<T: Record>(
    ends: Vec<RingEnd>,
    context: HeadContext,
    stage: Erased,
) -> Box<dyn Head> {
    let HeadContext { setting, limits, copy } = context;
    let (mut inputs, mut shares) = (Vec::new(), Vec::new());
    for RingEnd { consumer, kind, inside, group_of, to_each, place } in ends {
        let (ring, backlog) = (unerase::<Consumer<T>>(consumer), Backlog::new(limits, place));
        inputs.push(Input { ring, kind, inside, backlog, unlogged: false });
        let other = if to_each { Share::Each } else { Share::Any };
        shares.push(group_of.map_or(other, unerase::<Share<T>>));
    }
    let log = format!("{}{LOG_SUFFIX}", setting.operator);
    let inbox = Inbox::new(inputs, Log::new(copy, shares), setting);
    Box::new(InboxHead { inbox, stage: unerase::<Box<dyn Stage<T>>>(stage), log })
}

/// One output of an operator, with its record type behind it.
pub struct Port {
    /// Copies to several successors.
    pub tee: fn(Vec<Erased>) -> Erased,
    /// A ring: its producer and consumer.
    pub channel: fn(usize) -> (Erased, Erased),
}

impl Port {
    /// A port of records of type `T`.
    #[must_use]
    pub fn of<T: Record>() -> Self {
        Self {
            tee: |branches| {
                let branches = branches.into_iter().map(unerase::<Box<dyn Stage<T>>>).collect();
                erase_stage::<T>(Box::new(Tee::new(branches)))
            },
            channel: |slots| {
                let (producer, consumer) = channel::<T>(slots);
                (Box::new(producer), Box::new(consumer))
            },
        }
    }
}

/// Which task of the receiver a record goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partition {
    /// From task i to task i. Chained into one task where nothing else enters the receiver.
    Forward,
    /// To the owner of its key group.
    Hash,
    /// To one after the other.
    Rebalance,
    /// To all.
    Broadcast,
}

/// Makes the sending end of an edge: from its producers, the probe of its key function, and the
/// count of the loop it lies inside.
pub type MakeOutbox = Arc<dyn Fn(Vec<Erased>, Probe, Option<Arc<Flight>>) -> Erased>;

/// Makes the [`Share`] of a keyed edge.
pub type MakeGroupOf = Arc<dyn Fn() -> Erased>;

/// The [`MakeOutbox`] for records of type `T`.
pub fn make_outbox<T: Record>(route: impl Fn() -> Box<dyn Route<T>> + 'static) -> MakeOutbox {
    Arc::new(move |producers, probe, flight| {
        let producers = producers.into_iter().map(unerase::<Producer<T>>).collect();
        erase_stage::<T>(Box::new(Outbox::new(route(), producers, probe, flight)))
    })
}

/// An operator.
pub struct Operator {
    /// Unique in the job; the identity of its state.
    pub name: String,
    /// What it is: "map", "fold".
    pub kind: &'static str,
    /// Parallel copies, where the user said so.
    pub parallelism: Option<usize>,
    /// Records per second of all its tasks together, for a source.
    pub rate: Option<f64>,
    /// What its records are, if it has inputs.
    pub input: Option<TypeName>,
    /// What it declares of its keyed state, if it has any.
    pub state: Option<Declared>,
    /// Its outputs.
    pub ports: Vec<Port>,
    /// How it is made.
    pub build: Build,
}

/// From one operator's port to another operator.
pub struct Edge {
    /// Sender.
    pub from: OperatorIndex,
    /// Its output.
    pub port: usize,
    /// Receiver.
    pub to: OperatorIndex,
    /// How records are spread.
    pub partition: Partition,
    /// Makes the sending end.
    pub outbox: MakeOutbox,
    /// For a keyed edge.
    pub group_of: Option<MakeGroupOf>,
    /// Declared to feed back into a loop.
    pub feedback: bool,
}

/// The logical graph of one job.
pub struct Graph {
    /// The job's name.
    pub name: String,
    /// User parameters that are part of the job's identity, in the order they were given.
    pub parameters: Vec<(String, String)>,
    /// Operators; upstream before downstream, but for what feeds back.
    pub operators: Vec<Operator>,
    /// Edges.
    pub edges: Vec<Edge>,
}

impl Graph {
    /// An empty graph.
    #[must_use]
    pub fn new(name: String) -> Self {
        Self { name, parameters: Vec::new(), operators: Vec::new(), edges: Vec::new() }
    }

    /// Edges into `operator`.
    pub fn inputs(&self, operator: OperatorIndex) -> impl Iterator<Item = (usize, &Edge)> {
        self.edges.iter().enumerate().filter(move |(_, edge)| edge.to == operator)
    }

    /// Edges out of `port` of `operator`.
    pub fn outputs(
        &self,
        operator: OperatorIndex,
        port: usize,
    ) -> impl Iterator<Item = (usize, &Edge)> {
        let from = move |edge: &Edge| edge.from == operator && edge.port == port;
        self.edges.iter().enumerate().filter(move |(_, edge)| from(edge))
    }

    fn refuse<T>(&self, reason: String) -> Result<T> {
        Err(Error::Build { job: self.name.clone(), reason })
    }

    /// Checks the invariants of this module.
    ///
    /// # Errors
    /// [`Error::Build`] naming the operator and the way out.
    pub fn validate(&self) -> Result<()> {
        if self.operators.is_empty() {
            return self.refuse("it has no operators; begin with `job.source(..)`".into());
        }
        let mut names = BTreeSet::new();
        for (index, operator) in self.operators.iter().enumerate() {
            let name = &operator.name;
            if name.is_empty() || name.len() > 200 || name.contains(['#', '\n', '\0']) {
                return self.refuse(format!(
                    "'{name}' is no operator name: use 1 to 200 bytes without '#' or line ends"
                ));
            }
            if !names.insert(name) {
                return self.refuse(format!(
                    "two operators are named '{name}'; names identify state in snapshots, so \
                     give each its own"
                ));
            }
            for port in 0..operator.ports.len() {
                if self.outputs(index, port).next().is_none() {
                    return self.refuse(format!(
                        "the stream out of '{name}' goes nowhere; end it with `.sink(..)`"
                    ));
                }
            }
            if operator.parallelism.is_some_and(|p| p == 0 || p > KEY_GROUPS as usize) {
                let given = operator.parallelism.unwrap_or_default();
                return self.refuse(format!(
                    "operator '{name}' has parallelism {given}; it must be 1 to {KEY_GROUPS}"
                ));
            }
            if let Some(Err(reason)) = operator.state.as_ref().map(Declared::check) {
                return self.refuse(format!("operator '{name}' {reason}"));
            }
            let is_source = matches!(operator.build, Build::Source { .. });
            if operator.rate.is_some_and(|rate| !is_source || !rate.is_finite() || rate < 0.0) {
                return self.refuse(format!(
                    "operator '{name}': a rate belongs to a source and is 0 or more records per \
                     second"
                ));
            }
        }
        self.validate_loops()
    }

    /// The edges, for [`Loops::find`].
    #[must_use]
    pub fn links(&self) -> Vec<Link> {
        let link = |edge: &Edge| Link { from: edge.from, to: edge.to, feedback: edge.feedback };
        self.edges.iter().map(link).collect()
    }

    fn validate_loops(&self) -> Result<()> {
        let name = |operator: &OperatorIndex| format!("'{}'", self.operators[*operator].name);
        let loops = match Loops::find(self.operators.len(), &self.links()) {
            Ok(loops) => loops,
            Err(cycle) => {
                let path: Vec<_> = cycle.iter().chain(cycle.first()).map(name).collect();
                return self.refuse(format!(
                    "{} is a cycle and none of its edges is declared to feed back; write it with \
                     `.iterate(..)`",
                    path.join(" -> ")
                ));
            }
        };
        for (index, operator) in self.operators.iter().enumerate() {
            if loops.loop_of[index].is_some() && operator.kind == "fold_final" {
                return self.refuse(format!(
                    "operator '{}' emits when its input has ended, and stands in a loop, whose \
                     input ends when nothing goes round any more; use `.fold(..)`, or move it \
                     behind the loop",
                    operator.name
                ));
            }
        }
        Ok(())
    }
}
