//! `tidegate iterate`: the connected components of a graph, by a loop, exactly once.

use std::path::PathBuf;

use clap::Args;
use tidegate::engine::default_disk;
use tidegate::jobs::components::{
    Components, GENERATED_EDGES, GENERATED_SEED, GENERATED_VERTICES, Input,
};
use tidegate::workload::edges::Edges;

use super::exit::Failure;
use super::results::{EmitName, Results, Unit, rate};
use super::watch;

/// Find the connected components of a growing graph, by a loop, exactly once
///
/// The input is a line per edge: two vertices, which are numbers, with spaces or tabs between; lines
/// that begin with # are skipped. A line of output is vertex, component (its smallest vertex) and
/// degree, with tabs between; of updates: vertex, component so far. Run the same command again after
/// a crash or a stop to go on from the last snapshot.
#[derive(Args)]
pub struct Arguments {
    /// File of edges to read [default: a generated random graph]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["vertices", "edges", "seed"])]
    input: Option<PathBuf>,
    /// Vertices of the generated graph, at least 1
    #[arg(long, value_name = "N", default_value_t = GENERATED_VERTICES, value_parser = clap::value_parser!(u64).range(1..))]
    vertices: u64,
    /// Edges of the generated graph
    #[arg(long, value_name = "N", default_value_t = GENERATED_EDGES)]
    edges: u64,
    /// Another seed gives another graph
    #[arg(long, value_name = "SEED", default_value_t = GENERATED_SEED)]
    seed: u64,
    /// final: each vertex once, with its component and degree; updates: every new component of every
    /// vertex
    #[arg(long, value_enum, default_value_t = EmitName::Final, value_name = "final|updates", hide_possible_values = true)]
    emit: EmitName,
    /// Read only so many edges per second; 0: reads nothing, for ever; stop it with a signal
    #[arg(long, value_name = "EDGES", value_parser = rate, allow_negative_numbers = true)]
    rate: Option<f64>,
    /// Read only the first edges; of a file, lines
    #[arg(long, value_name = "EDGES")]
    limit: Option<u64>,
    #[command(flatten)]
    results: Results,
}

/// Runs it.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let handle = watch::stop_on_signals()?;
    let Arguments { input, vertices, edges, seed, emit, rate, limit, results } = arguments;
    let generated = Input::Generated { list: Edges { vertices, seed }, edges };
    let input = input.map_or(generated, Input::File);
    let job = Components { input, emit: emit.into(), output: results.output(), rate, limit };
    let resolved = results.resolve()?;
    resolved.run(&job.job(&*default_disk().0)?, handle, Unit::Edges)
}
