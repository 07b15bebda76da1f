//! `tidegate completions`: what a shell needs to complete our arguments.

use clap::{Args, CommandFactory as _};
use clap_complete::{Shell, generate};

use super::exit::Failure;
use super::summary;

/// Print completions for a shell, for example: tidegate completions bash > /etc/bash_completion.d/tidegate
#[derive(Args)]
pub struct Arguments {
    shell: Shell,
}

/// Runs it.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut script = Vec::new();
    generate(arguments.shell, &mut super::Arguments::command(), "tidegate", &mut script);
    summary::print(&String::from_utf8_lossy(&script))
}
