//! Arguments that every command that runs a job shares, and the engine's configuration from them.

use std::num::NonZero;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tidegate::config::{Config, Driver, Snapshots};
use tidegate::id::KEY_GROUPS;

use super::exit::Failure;

/// How the workers run.
#[derive(Args)]
pub struct Workers {
    /// Pinned worker threads [default: one per core]
    #[arg(long, value_name = "N")]
    parallelism: Option<usize>,
    /// What runs the workers: glommio needs io_uring; auto falls back to plain threads
    #[arg(long, value_enum, default_value_t = DriverName::Auto, value_name = "DRIVER")]
    driver: DriverName,
    /// Never give up a core: lowest latency, for a machine that has nothing else to do
    #[arg(long)]
    busy_poll: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum DriverName {
    Auto,
    Glommio,
    Threads,
}

/// Cores this process may use, at most as many as a job can.
pub fn default_parallelism() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    cores.min(KEY_GROUPS as usize)
}

impl Workers {
    /// The configuration, with snapshots if there is a directory for them. Checked.
    pub fn config(&self, snapshots: Option<(PathBuf, Duration)>) -> Result<Config, Failure> {
        let mut config = Config::workers(self.parallelism.unwrap_or_else(default_parallelism));
        config.snapshots =
            snapshots.map(|(directory, interval)| Snapshots::every(interval, directory));
        config.idle.busy_poll = self.busy_poll;
        config.driver = match self.driver {
            DriverName::Auto => Driver::Auto,
            DriverName::Glommio => Driver::Glommio,
            DriverName::Threads => Driver::Threads,
        };
        config.validate()?;
        Ok(config)
    }
}
