//! Connected components of a graph, found while its edges arrive.
//!
//! Every vertex tells its neighbours the smallest vertex that it has heard of, and they tell theirs: news
//! goes round a loop until nobody hears anything new. `tidegate::jobs::components` is the job, and
//! `tidegate iterate` runs it on files; here it runs on a generated graph, with a snapshot every 10
//! ms, and its answer is compared with that of union-find. Degrees are compared too: they would show an
//! edge that was lost or counted twice.
//!
//! ```sh
//! cargo run --release --example connected_components
//! ```

use std::process::ExitCode;
use std::time::Duration;

use tidegate::config::{Config, Snapshots};
use tidegate::error::Result;
use tidegate::jobs::components::{Component, Message, components};
use tidegate::operator::sink::Collect;
use tidegate::operator::source::Generator;
use tidegate::record::Collector;
use tidegate::stream::Job;
use tidegate::workload::edges::Edges;

const VERTICES: u64 = 20_000;
const EDGES: u64 = 15_000;
const GRAPH: Edges = Edges { vertices: VERTICES, seed: 42 };

fn main() -> Result<ExitCode> {
    let job = Job::new("connected components");
    let edges = Generator::new("edges", EDGES, |index, out: &mut Collector<Message>| {
        let (one, other) = GRAPH.edge(index);
        out.extend([Message::neighbour(one, other), Message::neighbour(other, one)]);
    });
    let (sink, results) = Collect::new();
    components(job.source("edges", edges)).sink("out", sink);

    let snapshots = tempfile::tempdir().expect("a temporary directory");
    let every = Snapshots::every(Duration::from_millis(10), snapshots.path());
    let report = job.run(&Config::workers(1).with_snapshots(every))?;

    let mut found = results.take();
    found.sort_unstable_by_key(|(vertex, _)| *vertex);
    let expected = union_find();
    let count = expected.iter().filter(|(vertex, component)| *vertex == component.label).count();
    let snapshots = report.cadence.completed;
    println!("{} vertices, {count} components, {snapshots} snapshots", found.len());
    if found != expected {
        eprintln!("wrong: union-find finds other components or degrees");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// The same by union-find: the root of a tree is its smallest vertex.
fn union_find() -> Vec<(u64, Component)> {
    let mut parents: Vec<u64> = (0..VERTICES).collect();
    let mut degrees = vec![0; VERTICES as usize];
    for (one, other) in (0..EDGES).map(|index| GRAPH.edge(index)) {
        let roots = (root(&parents, one), root(&parents, other));
        parents[roots.0.max(roots.1) as usize] = roots.0.min(roots.1);
        degrees[one as usize] += 1;
        degrees[other as usize] += 1;
    }
    let component =
        |vertex: u64| Component { label: root(&parents, vertex), degree: degrees[vertex as usize] };
    let told = (0..VERTICES).filter(|vertex| degrees[*vertex as usize] > 0);
    told.map(|vertex| (vertex, component(vertex))).collect()
}

fn root(parents: &[u64], mut vertex: u64) -> u64 {
    while parents[vertex as usize] != vertex {
        vertex = parents[vertex as usize];
    }
    vertex
}
