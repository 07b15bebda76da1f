//! `tidegate graph`: what of a job runs where, as text or for Graphviz.

use clap::{Args, ValueEnum};
use tidegate::config::Config;
use tidegate::engine::default_disk;
use tidegate::jobs::components::Components;
use tidegate::jobs::{paper, word_count::WordCount};
use tidegate::picture;
use tidegate::plan::Plan;

use super::exit::Failure;
use super::settings::default_parallelism;
use super::summary;

/// Print the execution graph of a job: tasks, workers, channels
#[derive(Args)]
pub struct Arguments {
    #[arg(value_enum)]
    job: JobName,
    /// Worker threads; may be more than this machine has [default: one per core]
    #[arg(long, value_name = "N")]
    parallelism: Option<usize>,
    /// Print DOT, for example for `dot -Tsvg`
    #[arg(long)]
    dot: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum JobName {
    WordCount,
    Iterate,
    Paper,
}

/// Runs it.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let config = Config::workers(arguments.parallelism.unwrap_or_else(default_parallelism));
    config.validate()?;
    let graph = match arguments.job {
        JobName::WordCount => WordCount::default().job(&*default_disk().0)?,
        JobName::Iterate => Components::default().job(&*default_disk().0)?,
        // Neither number changes the graph.
        JobName::Paper => paper::job(1, 1)?.0,
    };
    let plan = Plan::new(&graph, config.workers, config.ring_slots);
    let draw = if arguments.dot { picture::dot } else { picture::text };
    summary::print(&draw(&graph, &plan))
}
