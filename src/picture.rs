//! A plan as a picture: text for a terminal, DOT for Graphviz.
//!
//! Both are functions of graph and plan alone, so that two pictures differ exactly where the plans
//! do.

use std::fmt::Write as _;

use crate::graph::{Edge, Graph, OperatorIndex, Partition};
use crate::plan::Plan;

/// Lines of text: chains, edges between them, and what each worker runs.
///
/// ```text
/// job word-count: 2 workers, 2 chains, 4 tasks, 4 rings of 8192 slots
/// ```
#[must_use]
pub fn text(graph: &Graph, plan: &Plan) -> String {
    let chains = chains(graph, plan);
    let rings: usize = crossing(graph, plan).map(|(index, edge)| plan.rings_of(index, edge)).sum();
    let mut text = format!(
        "job {}: {}, {}, {}, {} of {} slots\n\nchains (operators joined by + run as one task)\n",
        graph.name,
        count(plan.workers, "worker"),
        count(chains.len(), "chain"),
        count(plan.tasks.len(), "task"),
        count(rings, "ring"),
        plan.ring_slots,
    );
    let width = chains.iter().map(|chain| chain_name(graph, chain).len()).max().unwrap_or(0);
    for chain in &chains {
        let tasks = count(plan.parallelism[chain[0]], "task");
        line(&mut text, &format!("  {:width$}  {tasks}", chain_name(graph, chain)));
    }
    text.push_str("\nedges between chains\n");
    let name = |edge: &Edge| {
        format!("{} -> {}", graph.operators[edge.from].name, graph.operators[edge.to].name)
    };
    let width = crossing(graph, plan).map(|(_, edge)| name(edge).len()).max().unwrap_or(0);
    for (index, edge) in crossing(graph, plan) {
        let rings = count(plan.rings_of(index, edge), "ring");
        let partition = partition_name(plan.partition[index]);
        let back = if plan.loops.back_edge[index] { "  back-edge" } else { "" };
        line(&mut text, &format!("  {:width$}  {partition:9}  {rings}{back}", name(edge)));
    }
    text.push_str("\nworkers (task i of p owns the keys of groups g with g * p / 128 = i)\n");
    for worker in 0..plan.workers {
        let mine = plan.tasks.iter().filter(|task| task.worker.0 == worker);
        let names = mine.map(|t| format!("{}/{}", graph.operators[t.head].name, t.subtask));
        line(&mut text, &format!("  {worker:3}  {}", names.collect::<Vec<_>>().join("  ")));
    }
    text
}

/// The same for Graphviz: a cluster per chain, an edge with its rings.
#[must_use]
pub fn dot(graph: &Graph, plan: &Plan) -> String {
    let mut dot =
        format!("digraph {} {{\n  rankdir=LR;\n  node [shape=box];\n", quoted(&graph.name));
    for (number, chain) in chains(graph, plan).iter().enumerate() {
        let tasks = count(plan.parallelism[chain[0]], "task");
        push(
            &mut dot,
            format_args!("  subgraph cluster_{number} {{\n    label={};\n", quoted(&tasks)),
        );
        for &operator in chain {
            let operator = &graph.operators[operator];
            let (name, label) =
                (quoted(&operator.name), quoted(&format!("{}\n{}", operator.name, operator.kind)));
            push(&mut dot, format_args!("    {name} [label={label}];\n"));
        }
        dot.push_str("  }\n");
    }
    for (index, edge) in graph.edges.iter().enumerate() {
        let (from, to) = (&graph.operators[edge.from].name, &graph.operators[edge.to].name);
        let label = if plan.chained[index] {
            String::new()
        } else {
            let rings = count(plan.rings_of(index, edge), "ring");
            let label = format!("{}\n{rings}", partition_name(plan.partition[index]));
            let style =
                if plan.loops.back_edge[index] { ", style=dashed, constraint=false" } else { "" };
            format!(" [label={}{style}]", quoted(&label))
        };
        push(&mut dot, format_args!("  {} -> {}{label};\n", quoted(from), quoted(to)));
    }
    dot.push_str("}\n");
    dot
}

/// The operators of each chain, in the order of their heads.
fn chains(graph: &Graph, plan: &Plan) -> Vec<Vec<OperatorIndex>> {
    let heads = (0..graph.operators.len()).filter(|&head| !plan.is_chained(graph, head));
    heads.map(|head| plan.chain(graph, head)).collect()
}

/// Edges that are rings.
fn crossing<'a>(graph: &'a Graph, plan: &'a Plan) -> impl Iterator<Item = (usize, &'a Edge)> {
    graph.edges.iter().enumerate().filter(|(index, _)| !plan.chained[*index])
}

fn chain_name(graph: &Graph, chain: &[OperatorIndex]) -> String {
    let names = chain.iter().map(|&operator| graph.operators[operator].name.as_str());
    names.collect::<Vec<_>>().join(" + ")
}

fn partition_name(partition: Partition) -> &'static str {
    match partition {
        Partition::Forward => "forward",
        Partition::Hash => "hash",
        Partition::Rebalance => "rebalance",
        Partition::Broadcast => "broadcast",
    }
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

fn line(text: &mut String, line: &str) {
    text.push_str(line.trim_end());
    text.push('\n');
}

fn push(dot: &mut String, arguments: std::fmt::Arguments<'_>) {
    dot.write_fmt(arguments).expect("a string takes everything");
}

/// A DOT string.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::sink::Collect;
    use crate::operator::source::Items;
    use crate::stream::Job;

    fn graph() -> Graph {
        let job = Job::new("shapes");
        let (sink, _) = Collect::new();
        let words = job.source("words", Items::new("numbers", || 1..4_u64));
        let even = words.clone().filter("even", |n| n % 2 == 0).parallelism(1);
        let kept = words.map("keep", |n| n);
        kept.union(even)
            .broadcast()
            .map("both \"of\" them", |n| n)
            .key_by(|n| *n)
            .reduce("sum", |a, b| *a += b)
            .sink("out", sink);
        job.build().expect("a job")
    }

    #[test]
    fn text_shows_chains_edges_and_workers() {
        let graph = graph();
        let plan = Plan::new(&graph, 2, 64);
        assert_eq!(text(&graph, &plan), include_str!("picture/shapes.txt"));
    }

    #[test]
    fn dot_shows_the_same_for_graphviz() {
        let graph = graph();
        let plan = Plan::new(&graph, 2, 64);
        assert_eq!(dot(&graph, &plan), include_str!("picture/shapes.dot"));
    }
}
