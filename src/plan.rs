//! The execution graph: which chains of operators become tasks, on which worker, and the channels
//! between them.
//!
//! A [`Plan`] is data: it can be printed, compared and tested without running anything.
//! [`Plan::instantiate`] makes the tasks.
//!
//! Rules
//! - An edge is *chained* (no ring, one task) if it is forward, both operators have the same
//!   parallelism and nothing else enters the receiver (records in transit to it, either).
//! - A forward edge between different parallelisms becomes a rebalance.
//! - Task i of every operator runs on worker i modulo the number of workers, so that equal key
//!   groups of successive operators share a core and half of a shuffle (at two cores) stays there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::align::InputKind;
use crate::config::{Mode, Spill};
use crate::disk::Disk;
use crate::error::Result;
use crate::flight::Flight;
use crate::graph::{
    Build, Edge, Erased, Graph, HeadContext, OperatorIndex, Partition, RingEnd, TaskContext,
};
use crate::guard;
use crate::id::{Attempt, KeyGroup, SnapshotId, StateSlot, TaskId, WorkerId};
use crate::inbox::Setting;
use crate::loops::Loops;
use crate::operator::{Probe, Trace};
use crate::spill::{Limits, Place, file_name};
use crate::task::Task;

/// A loop lets nothing more in while its back-edges hold more than this part of their memory.
const LOOP_SHARE: usize = 8;
/// Nor while more goes round in all than this part of what one back-edge may hold in memory: all of it may be
/// on the way to one, and what is let in before an entrance sees that is on top of it.
const FLIGHT_SHARE: usize = 2;
/// Records that have grown in a loop may take this many times what one back-edge may hold in memory, in the
/// rings of its body: a bound for a loop that has none, well above what is let in.
const ALOFT_TIMES: usize = 8;

/// A task to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedTask {
    /// Its number in the plan.
    pub id: TaskId,
    /// The operator its chain begins with.
    pub head: OperatorIndex,
    /// Which parallel copy, from 0.
    pub subtask: usize,
    /// Where it runs.
    pub worker: WorkerId,
}

/// The execution graph of one job on a number of workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Number of workers.
    pub workers: usize,
    /// Slots of each ring.
    pub ring_slots: usize,
    /// Parallelism by operator.
    pub parallelism: Vec<usize>,
    /// What each edge has become.
    pub partition: Vec<Partition>,
    /// Whether each edge is chained.
    pub chained: Vec<bool>,
    /// Tasks, chain by chain.
    pub tasks: Vec<PlannedTask>,
    /// Loops and back-edges.
    pub loops: Loops,
}

/// What tasks are made with.
pub struct Instance {
    /// Files.
    pub disk: Arc<dyn Disk>,
    /// Which start of the tasks this is.
    pub attempt: Attempt,
    /// The last snapshot before the first one of this attempt.
    pub captured: SnapshotId,
    /// Whether the job takes snapshots.
    pub transactional: bool,
    /// How snapshots are aligned.
    pub mode: Mode,
    /// Where records wait that cannot be handled yet; its directory exists, if there is one.
    pub spill: Spill,
    /// Counts what sources read.
    pub records: Arc<AtomicU64>,
}

impl Plan {
    /// Plans `graph` for `workers` workers.
    ///
    /// # Panics
    /// If the graph was not validated and has a cycle without a back-edge.
    #[must_use]
    pub fn new(graph: &Graph, workers: usize, ring_slots: usize) -> Self {
        Self::with_heads(graph, workers, ring_slots, &[])
    }

    /// As [`new`](Self::new), where the operators `heads` begin a task, although they could be
    /// chained: a snapshot holds a log for them, which only a task's inputs can take.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    #[must_use]
    pub fn with_heads(
        graph: &Graph,
        workers: usize,
        ring_slots: usize,
        heads: &[OperatorIndex],
    ) -> Self {
        let parallelism: Vec<usize> = graph
            .operators
            .iter()
            .map(|operator| operator.parallelism.unwrap_or(workers))
            .collect();
        let mut partition = Vec::with_capacity(graph.edges.len());
        let mut chained = Vec::with_capacity(graph.edges.len());
        for edge in &graph.edges {
            let same = parallelism[edge.from] == parallelism[edge.to];
            let forward = edge.partition == Partition::Forward;
            partition.push(if forward && !same { Partition::Rebalance } else { edge.partition });
            let alone = graph.inputs(edge.to).count() == 1 && !heads.contains(&edge.to);
            chained.push(forward && same && alone);
        }
        let loops = Loops::find(graph.operators.len(), &graph.links());
        let loops = loops.expect("a graph that was validated");
        let tasks = Vec::new();
        let mut plan = Self { workers, ring_slots, parallelism, partition, chained, tasks, loops };
        for head in 0..graph.operators.len() {
            if plan.is_chained(graph, head) {
                continue;
            }
            for subtask in 0..plan.parallelism[head] {
                let (id, worker) = (TaskId(plan.tasks.len()), WorkerId(subtask % workers));
                plan.tasks.push(PlannedTask { id, head, subtask, worker });
            }
        }
        plan
    }

    /// Whether `operator` continues its predecessor's task.
    #[must_use]
    pub fn is_chained(&self, graph: &Graph, operator: OperatorIndex) -> bool {
        graph.inputs(operator).any(|(edge, _)| self.chained[edge])
    }

    /// The operators of the chain that begins with `head`, upstream first.
    #[must_use]
    pub fn chain(&self, graph: &Graph, head: OperatorIndex) -> Vec<OperatorIndex> {
        let mut chain = vec![head];
        let mut at = 0;
        while at < chain.len() {
            let from = chain[at];
            let edges = graph.edges.iter().enumerate();
            chain.extend(
                edges.filter(|(e, edge)| edge.from == from && self.chained[*e]).map(|(_, e)| e.to),
            );
            at += 1;
        }
        chain
    }

    /// The number of rings.
    #[must_use]
    pub fn rings(&self, graph: &Graph) -> usize {
        graph.edges.iter().enumerate().map(|(index, edge)| self.rings_of(index, edge)).sum()
    }

    /// The number of rings of one edge: one per pair of tasks; a forward edge joins equal numbers.
    #[must_use]
    pub fn rings_of(&self, index: usize, edge: &Edge) -> usize {
        let (from, to) = (self.parallelism[edge.from], self.parallelism[edge.to]);
        match self.partition[index] {
            _ if self.chained[index] => 0,
            Partition::Forward => from.min(to),
            _ => from * to,
        }
    }

    /// A count of what is in flight for each loop.
    fn flights(&self, graph: &Graph) -> Vec<Arc<Flight>> {
        let mut entries = vec![0; self.loops.count];
        for (index, edge) in graph.edges.iter().enumerate() {
            if let Some(into) = self.loops.loop_of[edge.to]
                && !self.loops.is_inside(edge.from, edge.to)
            {
                entries[into] += self.rings_of(index, edge);
            }
        }
        entries.into_iter().map(|entries| Arc::new(Flight::new(entries))).collect()
    }

    /// Makes every task, by worker.
    ///
    /// # Errors
    /// A source or sink cannot be made.
    pub fn instantiate(&self, graph: &Graph, instance: &Instance) -> Result<Vec<Vec<Task>>> {
        let mut ends = self.channels(graph);
        let flights = self.flights(graph);
        let names = names(graph);
        let mut workers: Vec<Vec<Task>> = (0..self.workers).map(|_| Vec::new()).collect();
        for planned in &self.tasks {
            let PlannedTask { head, subtask, worker, id } = *planned;
            let trace = Arc::new(Trace::default());
            let mut builder = Builder {
                plan: self,
                graph,
                instance,
                ends: &mut ends,
                flights: &flights,
                subtask,
                trace,
            };
            let nexts = builder.successors(head)?;
            let context = builder.context(head);
            let made =
                guard::named(&context.name, subtask, || match &graph.operators[head].build {
                    Build::Source { head, .. } => head(&context, nexts),
                    Build::Stage { stage, head: make_head, .. } => {
                        let stage = stage(&context, nexts)?;
                        Ok(make_head(
                            builder.ring_ends(head, id),
                            builder.head_context(head),
                            stage,
                        ))
                    }
                })?;
            let trace = builder.trace;
            workers[worker.0].push(Task::new(made, subtask, names.clone(), trace));
        }
        Ok(workers)
    }

    /// Makes every ring.
    fn channels(&self, graph: &Graph) -> Ends {
        let mut ends = Ends::default();
        for (index, edge) in graph.edges.iter().enumerate().filter(|(e, _)| !self.chained[*e]) {
            let port = &graph.operators[edge.from].ports[edge.port];
            for from in 0..self.parallelism[edge.from] {
                for to in 0..self.parallelism[edge.to] {
                    if self.partition[index] == Partition::Forward && from != to {
                        continue;
                    }
                    let (producer, consumer) = (port.channel)(self.ring_slots);
                    ends.producers.entry((index, from)).or_default().push(producer);
                    ends.consumers.entry((index, to)).or_default().push(consumer);
                }
            }
        }
        ends
    }
}

/// Names of what may run: operators, then for each edge its key function.
fn names(graph: &Graph) -> Arc<[String]> {
    let operators = graph.operators.iter().map(|operator| operator.name.clone());
    let keys = graph.edges.iter().map(|edge| {
        format!(
            "{} (key of the stream from {})",
            graph.operators[edge.to].name, graph.operators[edge.from].name
        )
    });
    operators.chain(keys).collect()
}

/// Ring ends by edge and task, to be taken by the tasks they belong to.
#[derive(Default)]
struct Ends {
    producers: BTreeMap<(usize, usize), Vec<Erased>>,
    consumers: BTreeMap<(usize, usize), Vec<Erased>>,
}

/// Makes the stages of one task.
struct Builder<'a> {
    plan: &'a Plan,
    graph: &'a Graph,
    instance: &'a Instance,
    ends: &'a mut Ends,
    flights: &'a [Arc<Flight>],
    subtask: usize,
    trace: Arc<Trace>,
}

impl Builder<'_> {
    fn context(&self, operator: OperatorIndex) -> TaskContext {
        let parallelism = self.plan.parallelism[operator];
        let made = &self.graph.operators[operator];
        TaskContext {
            name: made.name.clone(),
            subtask: self.subtask,
            parallelism,
            groups: KeyGroup::owned_by(self.subtask, parallelism),
            probe: Probe::new(self.trace.clone(), operator),
            disk: self.instance.disk.clone(),
            first_snapshot: self.instance.captured.next(),
            transactional: self.instance.transactional,
            synchronous: self.instance.mode == Mode::Synchronous,
            rate: made.rate.map(|rate| rate / parallelism as f64),
            records: self.instance.records.clone(),
        }
    }

    /// What follows each port of `operator`.
    fn successors(&mut self, operator: OperatorIndex) -> Result<Vec<Erased>> {
        let graph = self.graph;
        let mut nexts = Vec::new();
        for (index, port) in graph.operators[operator].ports.iter().enumerate() {
            let mut branches = Vec::new();
            for (edge, to) in graph.outputs(operator, index).map(|(e, edge)| (e, edge.to)) {
                let chained = self.plan.chained[edge];
                branches.push(if chained { self.stage(to)? } else { self.outbox(edge) });
            }
            nexts.push(match branches.len() {
                1 => branches.remove(0),
                _ => (port.tee)(branches),
            });
        }
        Ok(nexts)
    }

    fn stage(&mut self, operator: OperatorIndex) -> Result<Erased> {
        let nexts = self.successors(operator)?;
        let context = self.context(operator);
        guard::named(&context.name, self.subtask, || match &self.graph.operators[operator].build {
            Build::Stage { stage, .. } => stage(&context, nexts),
            Build::Source { .. } => unreachable!("a source has no predecessor"),
        })
    }

    fn outbox(&mut self, edge: usize) -> Erased {
        let producers = self.ends.producers.remove(&(edge, self.subtask));
        let producers = producers.expect("each task takes its own ends once");
        let probe = Probe::new(self.trace.clone(), self.graph.operators.len() + edge);
        let made = &self.graph.edges[edge];
        let inside = self.plan.loops.is_inside(made.from, made.to);
        (made.outbox)(producers, probe, if inside { self.flight(made.from) } else { None })
    }

    fn flight(&self, operator: OperatorIndex) -> Option<Arc<Flight>> {
        self.plan.loops.loop_of[operator].map(|index| self.flights[index].clone())
    }

    fn head_context(&self, head: OperatorIndex) -> HeadContext {
        let Instance { captured, mode, spill, .. } = self.instance;
        let directory = spill.directory.is_some();
        let disk_bytes = if directory { spill.disk_bytes } else { 0 };
        HeadContext {
            setting: Setting {
                operator: self.graph.operators[head].name.clone(),
                captured: *captured,
                flight: self.flight(head),
                mode: *mode,
                spill: spill.blocked,
                loop_limit: format!(
                    "{} bytes in memory and {disk_bytes} on disk",
                    spill.memory_bytes
                ),
                loop_bytes_max: spill.memory_bytes / LOOP_SHARE,
                flight_bytes_max: spill.memory_bytes / FLIGHT_SHARE,
                aloft_bytes_max: spill.memory_bytes.saturating_mul(ALOFT_TIMES),
            },
            limits: Limits { memory_bytes: spill.memory_bytes, disk_bytes },
            copy: (self.subtask, self.plan.parallelism[head]),
        }
    }

    fn ring_ends(&mut self, head: OperatorIndex, task: TaskId) -> Vec<RingEnd> {
        let mut ends = Vec::new();
        for (index, edge) in self.graph.inputs(head) {
            let mine = self.ends.consumers.remove(&(index, self.subtask));
            let loops = &self.plan.loops;
            for consumer in mine.into_iter().flatten() {
                let back_edge = loops.back_edge[index];
                let directory = self.instance.spill.directory.as_ref();
                let place = directory.map(|directory| Place {
                    disk: self.instance.disk.clone(),
                    path: directory.join(file_name(task, ends.len() as u32, self.instance.attempt)),
                    owner: self.graph.operators[head].name.clone(),
                    slot: StateSlot::Task(self.subtask as u32),
                    input: ends.len() as u32,
                });
                ends.push(RingEnd {
                    consumer,
                    kind: if back_edge { InputKind::BackEdge } else { InputKind::Regular },
                    inside: loops.is_inside(edge.from, edge.to),
                    group_of: edge.group_of.as_ref().map(|group_of| group_of()),
                    to_each: edge.partition == Partition::Broadcast,
                    place,
                });
            }
        }
        ends
    }
}
