//! Arguments that every command that runs a job shares, and the engine's configuration from them.

use std::ffi::OsStr;
use std::num::NonZero;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use serde::Serialize;
use tidegate::config::{Config, Driver, Mode, Snapshots, Spill};
use tidegate::id::KEY_GROUPS;

use super::duration;
use super::exit::Failure;

/// What `--align-timeout` is where it is not given.
const ALIGN_TIMEOUT: Duration = Duration::from_millis(10);

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
    /// Cores for the kernel's threads that write for the workers, such as 2,3 [default: those that no worker
    /// has, if they are one for each four workers]
    #[arg(long, value_name = "CORES", value_delimiter = ',')]
    disk_cores: Vec<usize>,
}

#[derive(Clone, Copy, ValueEnum)]
enum DriverName {
    Auto,
    Glommio,
    Threads,
}

/// How snapshots are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ModeName {
    None,
    Abs,
    Sync,
    Unaligned,
}

impl ModeName {
    /// Parses one of `names`, for commands that have not all modes.
    pub fn parser<const N: usize>(names: [&'static str; N]) -> impl TypedValueParser<Value = Self> {
        PossibleValuesParser::new(names).try_map(|name| Self::from_str(&name, false))
    }

    /// Those of commands for which snapshots are asked for by their directory.
    pub fn with_directory() -> impl TypedValueParser<Value = Self> {
        Self::parser(["abs", "sync", "unaligned"])
    }
}

/// How long barriers are waited for, and where records wait meanwhile.
#[derive(Args, Default)]
pub struct Alignment {
    /// With --mode unaligned: wait so long for barriers, then make the records of inputs that are
    /// late a part of the snapshot [default: 10ms]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    align_timeout: Option<Duration>,
    /// Directory for records that wait for a barrier, or go round in a loop, and do not fit in
    /// memory; off: senders wait instead, and only loops spill [default: inside --snapshots; without, nothing spills]
    #[arg(long, value_name = "DIR|off", value_parser = clap::value_parser!(PathBuf))]
    spill: Option<PathBuf>,
}

impl Alignment {
    /// The directory given for records that wait.
    pub fn directory(&self) -> Option<&PathBuf> {
        self.spill.as_ref().filter(|directory| directory.as_os_str() != OsStr::new("off"))
    }

    fn mode(&self, name: ModeName) -> Result<Option<Mode>, Failure> {
        if self.align_timeout.is_some() && name != ModeName::Unaligned {
            return Err(Failure::Usage(
                "--align-timeout needs --mode unaligned: in every other mode a task waits for all \
                 barriers"
                    .into(),
            ));
        }
        Ok(match name {
            ModeName::None => None,
            ModeName::Abs => Some(Mode::Abs),
            ModeName::Sync => Some(Mode::Synchronous),
            ModeName::Unaligned => {
                Some(Mode::Unaligned { after: self.align_timeout.unwrap_or(ALIGN_TIMEOUT) })
            }
        })
    }

    fn spill(&self) -> Spill {
        let directory = self.directory().cloned();
        let blocked = self.spill.is_none() || directory.is_some();
        Spill { blocked, directory, ..Spill::default() }
    }
}

/// Which snapshots a command was asked for.
pub struct Asked<'a> {
    pub directory: Option<PathBuf>,
    pub interval: Duration,
    pub mode: ModeName,
    pub alignment: &'a Alignment,
}

/// Cores this process may use, at most as many as a job can.
pub fn default_parallelism() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    cores.min(KEY_GROUPS as usize)
}

impl Workers {
    /// The same, for a process that is to run like this one.
    pub fn as_arguments(&self, config: &Config) -> Vec<String> {
        let driver = self.driver.to_possible_value().expect("none is skipped");
        let mut arguments = vec!["--parallelism".into(), config.workers.to_string()];
        arguments.extend(["--driver".into(), driver.get_name().into()]);
        arguments.extend(self.busy_poll.then(|| "--busy-poll".into()));
        let disk_cores = self.disk_cores.iter();
        arguments.extend(disk_cores.flat_map(|core| ["--disk-cores".into(), core.to_string()]));
        arguments
    }

    /// The configuration, with snapshots if there is a directory for them. Checked.
    pub fn config(&self, asked: Asked<'_>) -> Result<Config, Failure> {
        let Asked { directory, interval, mode, alignment } = asked;
        let mut config = Config::workers(self.parallelism.unwrap_or_else(default_parallelism));
        let mode = alignment.mode(mode)?;
        config.snapshots = directory
            .zip(mode)
            .map(|(directory, mode)| Snapshots { mode, ..Snapshots::every(interval, directory) });
        config.spill = alignment.spill();
        config.idle.busy_poll = self.busy_poll;
        config.disk_cores.clone_from(&self.disk_cores);
        config.driver = match self.driver {
            DriverName::Auto => Driver::Auto,
            DriverName::Glommio => Driver::Glommio,
            DriverName::Threads => Driver::Threads,
        };
        config.validate()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alignment(align_timeout: Option<u64>, spill: Option<&str>) -> Alignment {
        let align_timeout = align_timeout.map(Duration::from_millis);
        Alignment { align_timeout, spill: spill.map(PathBuf::from) }
    }

    #[test]
    fn a_timeout_belongs_to_unaligned_snapshots_only() {
        let mode = |timeout, name| alignment(timeout, None).mode(name);
        let after = |ms| Some(Mode::Unaligned { after: Duration::from_millis(ms) });
        assert_eq!(mode(None, ModeName::Unaligned).expect("valid"), after(10));
        assert_eq!(mode(Some(0), ModeName::Unaligned).expect("valid"), after(0));
        assert_eq!(mode(None, ModeName::Sync).expect("valid"), Some(Mode::Synchronous));
        for name in [ModeName::None, ModeName::Abs, ModeName::Sync] {
            assert!(matches!(mode(Some(5), name), Err(Failure::Usage(_))), "{name:?}");
        }
    }

    #[test]
    fn off_leaves_backpressure_and_any_other_name_is_a_directory() {
        let spill = |given| alignment(None, given).spill();
        assert_eq!(spill(None), Spill::default());
        assert_eq!(spill(Some("off")), Spill { blocked: false, ..Spill::default() });
        let directory = Some("./off".into());
        assert_eq!(spill(Some("./off")), Spill { directory, ..Spill::default() });
    }
}
