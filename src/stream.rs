//! The typed API: a job is written as streams, like iterators.
//!
//! ```
//! use tidegate::operator::sink::Collect;
//! use tidegate::operator::source::Items;
//! use tidegate::stream::Job;
//!
//! let job = Job::new("lengths");
//! let (sink, results) = Collect::new();
//! job.source("words", Items::new("three words", || ["to", "be", "or"].map(String::from).into_iter()))
//!     .map("length", |word| word.len() as u64)
//!     .key_by(|length| *length)
//!     .fold_final("count", || 0_u64, |count, _| *count += 1)
//!     .sink("out", sink);
//! # let _ = (job, results);
//! ```
//!
//! Every operator has a name, given first. Names identify state in snapshots and operators in
//! errors; two operators with one name are refused when the job is built. Closures are cloned for
//! each parallel task.

mod evolution;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use crate::config::BATCH_RECORDS;
use crate::error::Result;
use crate::graph::{
    Build, Edge, Erased, Graph, MakeGroupOf, MakeOutbox, Operator, OperatorIndex, Partition, Port,
    TaskContext, inbox_head, make_outbox, unerase,
};
use crate::id::KeyGroup;
use crate::inbox::Share;
use crate::key::Key;
use crate::operator::keyed::{
    Aggregate, AtEnd, ByReference, ByValue, EachUpdate, Fold, Keyed, Reduce, Select,
};
use crate::operator::process::{KeyState, Process};
use crate::operator::sink::{Sink, SinkStage, WriterContext};
use crate::operator::source::{Pace, ReaderContext, Source, SourceHead};
use crate::operator::split::{Side, Split};
use crate::operator::transform::{FlatMap, Transform};
use crate::operator::{Downstream, Stage};
use crate::outbox::{ByKey, RoundRobin, ToAll};
use crate::record::{Collector, Data, Drain, Record, append};
use crate::state::{Declared, Evolution, KeyedTable, Migration, TypeName};
use crate::task::SourceTask;
pub use evolution::{Migrated, Migrations, Unmigrated};

/// A job being written.
pub struct Job {
    graph: Rc<RefCell<Graph>>,
}

impl Job {
    /// An empty job. The name is part of its identity: snapshots of another job are refused.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { graph: Rc::new(RefCell::new(Graph::new(name.into()))) }
    }

    /// Makes `name = value` part of the job's identity: a run with another value is another job
    /// and does not restore this one's snapshots.
    pub fn parameter(&self, name: impl Into<String>, value: impl ToString) {
        self.graph.borrow_mut().parameters.push((name.into(), value.to_string()));
    }

    /// Records from `source`.
    pub fn source<S: Source>(&self, name: &str, source: S) -> Stream<S::Item> {
        let source = Arc::new(source);
        let looked_at = source.clone();
        let build = Build::Source {
            head: Box::new(move |context, nexts| {
                let [next] = successors(nexts);
                let downstream = Downstream::new(unerase::<Box<dyn Stage<S::Item>>>(next));
                let reader = ReaderContext { disk: context.disk.clone() };
                let head = SourceHead::new(
                    context.name.clone(),
                    source.clone(),
                    (context.subtask, context.parallelism),
                    (context.rate.map(Pace::new), context.records.clone()),
                    reader,
                    (downstream, context.probe.clone()),
                );
                Ok(Box::new(SourceTask::new(head, context.synchronous)))
            }),
            identity: Box::new(move |context| looked_at.identity(context)),
        };
        let from = add(&self.graph, name, "source", vec![Port::of::<S::Item>()], build);
        Stream::from_port(&self.graph, from, 0)
    }

    /// The logical graph, checked.
    ///
    /// # Errors
    /// [`Error::Build`](crate::error::Error::Build): what is wrong with the job as written.
    pub fn build(self) -> Result<Graph> {
        let name = self.graph.borrow().name.clone();
        let graph = self.graph.replace(Graph::new(name));
        graph.validate()?;
        Ok(graph)
    }
}

fn successors<const N: usize>(nexts: Vec<Erased>) -> [Erased; N] {
    nexts.try_into().unwrap_or_else(|nexts: Vec<_>| panic!("{} successors, not {N}", nexts.len()))
}

fn add(
    graph: &Rc<RefCell<Graph>>,
    name: &str,
    kind: &'static str,
    ports: Vec<Port>,
    build: Build,
) -> OperatorIndex {
    let mut graph = graph.borrow_mut();
    graph.operators.push(Operator {
        name: name.to_string(),
        kind,
        parallelism: None,
        rate: None,
        input: None,
        state: None,
        ports,
        build,
    });
    graph.operators.len() - 1
}

/// A stream of records of type `T`: the output of one operator, or of several (after
/// [`union`](Self::union)). Cloning it copies its records to each use.
pub struct Stream<T> {
    graph: Rc<RefCell<Graph>>,
    origins: Vec<Origin>,
    record: std::marker::PhantomData<fn() -> T>,
}

/// One operator's output as a part of a stream, and how it is spread over the next operator.
#[derive(Clone)]
struct Origin {
    from: OperatorIndex,
    port: usize,
    partition: Partition,
    outbox: MakeOutbox,
    group_of: Option<MakeGroupOf>,
}

impl<T> Clone for Stream<T> {
    fn clone(&self) -> Self {
        Self {
            graph: self.graph.clone(),
            origins: self.origins.clone(),
            record: std::marker::PhantomData,
        }
    }
}

impl<T: Record> Stream<T> {
    fn from_port(graph: &Rc<RefCell<Graph>>, from: OperatorIndex, port: usize) -> Self {
        let outbox = make_outbox::<T>(|| Box::new(RoundRobin::default()));
        let partition = Partition::Forward;
        let origin = Origin { from, port, partition, outbox, group_of: None };
        Self { graph: graph.clone(), origins: vec![origin], record: std::marker::PhantomData }
    }

    /// Spreads all of the stream in this way over the next operator.
    fn spread(
        mut self,
        partition: Partition,
        outbox: MakeOutbox,
        group_of: Option<MakeGroupOf>,
    ) -> Self {
        for origin in &mut self.origins {
            (origin.partition, origin.outbox) = (partition, outbox.clone());
            origin.group_of.clone_from(&group_of);
        }
        self
    }

    /// Leads all of the stream into the operator `to`.
    fn lead(self, to: OperatorIndex, feedback: bool) {
        let mut graph = self.graph.borrow_mut();
        for Origin { from, port, partition, outbox, group_of } in self.origins {
            graph.edges.push(Edge { from, port, to, partition, outbox, group_of, feedback });
        }
    }

    /// Adds an operator behind this stream; `stage` makes its stage from its successors.
    fn add<const N: usize>(
        self,
        name: &str,
        kind: &'static str,
        ports: [Port; N],
        stage: impl Fn(&TaskContext, [Erased; N]) -> Result<Box<dyn Stage<T>>> + 'static,
    ) -> OperatorIndex {
        let build = Build::Stage {
            stage: Box::new(move |context, nexts| {
                Ok(Box::new(stage(context, successors(nexts))?) as Erased)
            }),
            head: inbox_head::<T>,
            sink: None,
        };
        let to = add(&self.graph, name, kind, ports.into(), build);
        self.graph.borrow_mut().operators[to].input = Some(TypeName::of::<T>());
        self.lead(to, false);
        to
    }

    fn add_one<O: Record>(
        self,
        name: &str,
        kind: &'static str,
        stage: impl Fn(&TaskContext, Box<dyn Stage<O>>) -> Box<dyn Stage<T>> + 'static,
    ) -> Stream<O> {
        let graph = self.graph.clone();
        let from = self.add(name, kind, [Port::of::<O>()], move |context, [next]| {
            Ok(stage(context, unerase::<Box<dyn Stage<O>>>(next)))
        });
        Stream::from_port(&graph, from, 0)
    }

    fn transform<O: Record>(
        self,
        name: &str,
        kind: &'static str,
        apply: impl FnMut(&mut Drain<'_, T>, &mut Vec<O>) + Clone + Send + 'static,
    ) -> Stream<O> {
        self.add_one(name, kind, move |context, next| {
            Box::new(Transform::new(apply.clone(), next, context.probe.clone()))
        })
    }

    /// `apply` to each record.
    pub fn map<O: Record>(
        self,
        name: &str,
        mut apply: impl FnMut(T) -> O + Clone + Send + 'static,
    ) -> Stream<O> {
        self.transform(name, "map", move |records, out| append(out, records.map(&mut apply)))
    }

    /// The records for which `keep` is true.
    pub fn filter(
        self,
        name: &str,
        mut keep: impl FnMut(&T) -> bool + Clone + Send + 'static,
    ) -> Stream<T> {
        self.transform(name, "filter", move |records, out| out.extend(records.filter(&mut keep)))
    }

    /// Calls `look` with each record on its way.
    pub fn inspect(
        self,
        name: &str,
        mut look: impl FnMut(&T) + Clone + Send + 'static,
    ) -> Stream<T> {
        self.transform(name, "inspect", move |records, out| out.extend(records.inspect(&mut look)))
    }

    /// The items that `expand` makes of each record. An expansion of any length is handed on piece
    /// by piece.
    pub fn flat_map<E>(
        self,
        name: &str,
        expand: impl FnMut(T) -> E + Clone + Send + 'static,
    ) -> Stream<E::Item>
    where
        E: IntoIterator<Item: Record, IntoIter: Send + 'static> + 'static,
    {
        self.add_one(name, "flat_map", move |context, next| {
            Box::new(FlatMap::new(expand.clone(), next, context.probe.clone()))
        })
    }

    /// What `expand(record, out)` pushes for each record: for expansions that borrow from the
    /// record. All that one record expands to is held in memory, with up to a batch
    /// ([`BATCH_RECORDS`]) of what those before it expanded to.
    pub fn flat_map_into<O: Record>(
        self,
        name: &str,
        mut expand: impl FnMut(T, &mut Collector<O>) + Clone + Send + 'static,
    ) -> Stream<O> {
        self.transform(name, "flat_map", move |records, out| {
            for record in records {
                expand(record, Collector::over(out));
                if out.len() >= BATCH_RECORDS {
                    break;
                }
            }
        })
    }

    /// Groups by `key(record)`.
    pub fn key_by<K: Key>(
        self,
        key: impl FnMut(&T) -> K + Clone + Send + 'static,
    ) -> KeyedStream<T, ByValue<impl FnMut(&T) -> K + Clone + Send + 'static>> {
        KeyedStream::new(self, ByValue(key))
    }

    /// Groups by a part of the record, without copying it.
    pub fn key_by_ref<K: Key>(
        self,
        key: impl FnMut(&T) -> &K + Clone + Send + 'static,
    ) -> KeyedStream<T, ByReference<impl FnMut(&T) -> &K + Clone + Send + 'static>> {
        KeyedStream::new(self, ByReference(key))
    }

    /// The records of both streams, in no particular order between them.
    ///
    /// # Panics
    /// If the other stream belongs to another job.
    #[must_use]
    pub fn union(mut self, other: Stream<T>) -> Stream<T> {
        assert!(Rc::ptr_eq(&self.graph, &other.graph), "a union of streams of two jobs");
        self.origins.extend(other.origins);
        self
    }

    /// Two streams: `route` says which of them each record goes to, and as what.
    pub fn split<L: Record, R: Record>(
        self,
        name: &str,
        route: impl FnMut(T) -> Side<L, R> + Clone + Send + 'static,
    ) -> (Stream<L>, Stream<R>) {
        let graph = self.graph.clone();
        let ports = [Port::of::<L>(), Port::of::<R>()];
        let from = self.add(name, "split", ports, move |context, [left, right]| {
            let left = unerase::<Box<dyn Stage<L>>>(left);
            let right = unerase::<Box<dyn Stage<R>>>(right);
            Ok(Box::new(Split::new(route.clone(), left, right, context.probe.clone())))
        });
        (Stream::from_port(&graph, from, 0), Stream::from_port(&graph, from, 1))
    }

    /// Every record to every task of the next operator.
    #[must_use]
    pub fn broadcast(self) -> Stream<T> {
        self.spread(Partition::Broadcast, make_outbox::<T>(|| Box::new(ToAll)), None)
    }

    /// Records spread evenly over the tasks of the next operator.
    #[must_use]
    pub fn rebalance(self) -> Stream<T> {
        let outbox = make_outbox::<T>(|| Box::new(RoundRobin::default()));
        self.spread(Partition::Rebalance, outbox, None)
    }

    /// Parallel copies of the operator that this stream comes out of; the default is the number of
    /// workers.
    #[must_use]
    pub fn parallelism(self, tasks: usize) -> Stream<T> {
        for Origin { from, .. } in &self.origins {
            self.graph.borrow_mut().operators[*from].parallelism = Some(tasks);
        }
        self
    }

    /// Keeps the source that this stream comes out of to a rate, over all its tasks; 0 is never.
    #[must_use]
    pub fn rate(self, records_per_second: f64) -> Stream<T> {
        for Origin { from, .. } in &self.origins {
            self.graph.borrow_mut().operators[*from].rate = Some(records_per_second);
        }
        self
    }

    /// A loop. `body` is given what goes round, which is this stream and what is fed back, and
    /// returns what it feeds back and what leaves the loop. The loop ends when this stream has ended
    /// and nothing goes round any more. Loops may be nested, and take in other streams.
    ///
    /// Snapshots are exactly-once in loops too: what goes round at the cut is logged. What goes round
    /// is held in rings, then in memory, then on disk, within the bounds of
    /// [`Spill`](crate::config::Spill); a loop that outgrows them is an error.
    ///
    /// ```
    /// # use tidegate::{config::Config, operator::{sink::Collect, source::Items, split::Side}, stream::Job};
    /// let job = Job::new("halve");
    /// let (sink, results) = Collect::new();
    /// let halve = |n: u64| if n % 2 == 0 { Side::Left(n / 2) } else { Side::Right(n) };
    /// job.source("numbers", Items::new("40 to 42", || 40..=42_u64))
    ///     .iterate("again", |numbers| numbers.split("halve", halve))
    ///     .sink("odd", sink);
    /// job.run(&Config::workers(1))?;
    /// let mut odd = results.take();
    /// odd.sort();
    /// assert_eq!(odd, [5, 21, 41]);
    /// # Ok::<(), tidegate::error::Error>(())
    /// ```
    pub fn iterate<O: Record>(
        self,
        name: &str,
        body: impl FnOnce(Stream<T>) -> (Stream<T>, Stream<O>),
    ) -> Stream<O> {
        // The entrance only merges: its stage is its successor's.
        let inside = self.add_one(name, "iterate", |_, next: Box<dyn Stage<T>>| next);
        let (graph, entrance) = (inside.graph.clone(), inside.origins[0].from);
        let (again, out) = body(inside);
        let of_this_job = Rc::ptr_eq(&graph, &again.graph) && Rc::ptr_eq(&graph, &out.graph);
        assert!(of_this_job, "the streams of a loop belong to one job");
        again.lead(entrance, true);
        out
    }

    /// Ends the stream in `sink`.
    pub fn sink<S: Sink<Item = T>>(self, name: &str, sink: S) {
        let graph = self.graph.clone();
        let sink = Arc::new(sink);
        let asked = sink.clone();
        let to = self.add(name, "sink", [], move |context, []| {
            let writer = sink.writer(&WriterContext {
                subtask: context.subtask,
                first_snapshot: context.first_snapshot,
                transactional: context.transactional,
                disk: context.disk.clone(),
            })?;
            let (name, probe) = (context.name.clone(), context.probe.clone());
            let this = (sink.identity(), context.subtask);
            Ok(Box::new(SinkStage::new(name, this, writer, probe)))
        });
        if let Build::Stage { sink, .. } = &mut graph.borrow_mut().operators[to].build {
            *sink = Some(asked);
        }
    }
}

/// A stream grouped by key: all records of a key go to one task, in the order their task sent them.
///
/// What state the operator that follows keeps by key may change between releases of a job: see
/// [`schema`](Self::schema).
pub struct KeyedStream<T, S, M = Unmigrated> {
    stream: Stream<T>,
    select: S,
    version: u32,
    migrations: M,
}

impl<T, S> KeyedStream<T, S> {
    fn new(stream: Stream<T>, select: S) -> Self {
        Self { stream, select, version: 1, migrations: Unmigrated }
    }
}

impl<T: Record, S: Select<T>, M> KeyedStream<T, S, M> {
    fn keyed<V: Data, O: Record>(
        self,
        name: &str,
        kind: &'static str,
        stage: impl Fn(&TaskContext, Keyed<S::Key, V, S>, Box<dyn Stage<O>>) -> Box<dyn Stage<T>>
        + 'static,
    ) -> Stream<O>
    where
        M: Migrations<S::Key, V>,
    {
        let Self { stream, select, version, migrations } = self;
        let older = migrations.list().iter().map(Migration::from).collect();
        let declared = Declared { version, types: KeyedTable::<S::Key, V>::types(), older };
        let route = select.clone();
        let outbox = make_outbox::<T>(move || Box::new(ByKey(route.clone())));
        let of_key = select.clone();
        let group_of: MakeGroupOf = Arc::new(move || {
            let mut select = of_key.clone();
            let group = move |record: &T| KeyGroup::of_hash(select.with(record, Key::key_hash));
            Box::new(Share::Group(Box::new(group)))
        });
        let stream = stream.spread(Partition::Hash, outbox, Some(group_of));
        let stream = stream.add_one(name, kind, move |context, next| {
            let (name, groups) = (context.name.clone(), context.groups.clone());
            let evolution = Evolution { version, migrations: migrations.list() };
            stage(context, Keyed::new(name, select.clone(), groups, evolution), next)
        });
        let operator = stream.origins[0].from;
        stream.graph.borrow_mut().operators[operator].state = Some(declared);
        stream
    }

    fn each_update<V: Data, O: Record>(
        self,
        name: &str,
        kind: &'static str,
        fold: impl Fold<T, S::Key, V, O> + Clone + 'static,
    ) -> Stream<O>
    where
        M: Migrations<S::Key, V>,
    {
        self.keyed(name, kind, move |context, keyed, next| {
            Box::new(EachUpdate::new(keyed, fold.clone(), next, context.probe.clone()))
        })
    }

    fn at_end<V: Data, O: Record>(
        self,
        name: &str,
        kind: &'static str,
        fold: impl Fold<T, S::Key, V, O> + Clone + 'static,
    ) -> Stream<O>
    where
        M: Migrations<S::Key, V>,
    {
        self.keyed(name, kind, move |context, keyed, next| {
            let (groups, probe) = (context.groups.clone(), context.probe.clone());
            Box::new(AtEnd::new(keyed, groups, fold.clone(), next, probe))
        })
    }

    /// Combines the records of a key into one with `combine(value, record)`; emits the new value
    /// for every record.
    pub fn reduce(
        self,
        name: &str,
        combine: impl FnMut(&mut T, T) + Clone + Send + 'static,
    ) -> Stream<T>
    where
        M: Migrations<S::Key, T>,
    {
        self.each_update(name, "reduce", Reduce::new(combine))
    }

    /// Folds the records of a key into a value that begins as `init()`; emits key and new value for
    /// every record.
    pub fn fold<V: Data>(
        self,
        name: &str,
        init: impl FnMut() -> V + Clone + Send + 'static,
        update: impl FnMut(&mut V, T) + Clone + Send + 'static,
    ) -> Stream<(S::Key, V)>
    where
        (S::Key, V): Record,
        M: Migrations<S::Key, V>,
    {
        let emit = |key: S::Key, value: &V| (key, value.clone());
        self.each_update(name, "fold", Aggregate { init, update, emit })
    }

    /// As [`fold`](Self::fold), emitting each key once with its last value when the input has
    /// ended.
    pub fn fold_final<V: Data>(
        self,
        name: &str,
        init: impl FnMut() -> V + Clone + Send + 'static,
        update: impl FnMut(&mut V, T) + Clone + Send + 'static,
    ) -> Stream<(S::Key, V)>
    where
        (S::Key, V): Record,
        M: Migrations<S::Key, V>,
    {
        let emit = |key: S::Key, value: &V| (key, value.clone());
        self.at_end(name, "fold_final", Aggregate { init, update, emit })
    }

    /// As [`fold`](Self::fold), emitting `emit(key, value)`.
    pub fn aggregate<V: Data, O: Record>(
        self,
        name: &str,
        init: impl FnMut() -> V + Clone + Send + 'static,
        update: impl FnMut(&mut V, T) + Clone + Send + 'static,
        mut emit: impl FnMut(&S::Key, &V) -> O + Clone + Send + 'static,
    ) -> Stream<O>
    where
        M: Migrations<S::Key, V>,
    {
        let emit = move |key: S::Key, value: &V| emit(&key, value);
        self.each_update(name, "aggregate", Aggregate { init, update, emit })
    }

    /// User code with one value of state per key: `apply(record, state, out)` pushes any number of
    /// records. What up to 128 records lead to is held in memory.
    pub fn process<V: Data, O: Record>(
        self,
        name: &str,
        apply: impl FnMut(T, &mut KeyState<'_, S::Key, V>, &mut Collector<O>) + Clone + Send + 'static,
    ) -> Stream<O>
    where
        M: Migrations<S::Key, V>,
    {
        self.keyed(name, "process", move |context, keyed, next| {
            Box::new(Process::new(keyed, apply.clone(), next, context.probe.clone()))
        })
    }
}
