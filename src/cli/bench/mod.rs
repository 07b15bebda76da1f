//! `tidegate bench`: measures the engine on workloads whose answers are known, and checks them.

mod latency;
mod paper;
mod phases;
mod place;
mod restart;
mod state;

use clap::{Args, Subcommand};

use super::exit::Failure;

/// Measure the engine, and check what it computes
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    workload: Workload,
}

#[derive(Subcommand)]
enum Workload {
    Paper(paper::Paper),
    State(state::State),
}

/// Runs it.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.workload {
        Workload::Paper(paper) => paper::run(&paper),
        Workload::State(state) => state::run(&state),
    }
}
