//! Runs a job while a person looks on: signals stop it, what happens goes to standard error.
//!
//! On a terminal a line of progress is kept up to date. Snapshots that fail may do so hundreds of
//! times per second: the first is told, then at most one line per [`ABORTED_PAUSE_NS`].

use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;
use tidegate::clock;
use tidegate::config::Config;
use tidegate::engine::{self, Handle, Notice, Report};
use tidegate::error::Error;
use tidegate::graph::Graph;
use tidegate::id::SnapshotId;

use super::exit::{self, Failure, INTERRUPTED};
use super::summary;

/// From one line about aborted snapshots to the next, ns.
const ABORTED_PAUSE_NS: u64 = 5_000_000_000;
/// From one change of the progress line to the next, ns.
const PROGRESS_NS: u64 = 250_000_000;
/// From one look at the memory to the next, ns.
const MEMORY_NS: u64 = 100_000_000;

/// What is shown of a run.
pub struct Show {
    /// What the job reads, in the plural: "lines".
    pub unit: &'static str,
    /// Whether progress may be drawn; not where results go to the same terminal.
    pub progress: bool,
    /// A warning to give once the job runs, and not before: a job that cannot begin has one
    /// message, which is why.
    pub warning: Option<&'static str>,
    /// Stops the job once this is so; looked at about every 20 ms.
    pub until: Option<Box<dyn Fn() -> bool>>,
    /// Whether to note how much memory is resident, ten times a second.
    pub memory: bool,
}

/// What a run did, and the last snapshot it completed.
pub struct Watched {
    pub report: Report,
    pub last_snapshot: Option<SnapshotId>,
    /// Memory that was resident at these times, ns and bytes, where the kernel says.
    pub resident: Vec<(u64, u64)>,
}

impl Watched {
    /// The median of what was resident from `since_ns` on.
    pub fn resident_bytes_since(&self, since_ns: u64) -> Option<u64> {
        let samples = self.resident.iter().filter(|(at_ns, _)| *at_ns >= since_ns);
        let mut bytes: Vec<u64> = samples.map(|(_, bytes)| *bytes).collect();
        bytes.sort_unstable();
        bytes.get(bytes.len() / 2).copied()
    }
}

/// Runs `graph` until it ends or `handle` stops it.
pub fn run(graph: &Graph, config: &Config, handle: Handle, show: Show) -> Result<Watched, Failure> {
    let mut watch = Watch::new(show, handle.clone());
    let result = engine::run(graph, config, &handle, &mut |notice| watch.hear(&notice));
    watch.bar.finish_and_clear();
    watch.aborted.tell_rest(clock::now_ns());
    let last_snapshot = watch.last.map(|(snapshot, _)| snapshot);
    Ok(Watched { report: result?, last_snapshot, resident: watch.resident })
}

/// What signals stop: the first SIGINT or SIGTERM asks for a last snapshot; a SIGINT after that ends
/// the process. To be called before anything else: until then a signal just ends the process.
pub fn stop_on_signals() -> Result<Handle, Failure> {
    let handle = Handle::default();
    let register = || -> io::Result<()> {
        // Looks at the flag before the next line's action sets it: actions run in this order.
        flag::register_conditional_shutdown(SIGINT, INTERRUPTED, handle.flag())?;
        flag::register(SIGINT, Arc::clone(&handle.flag()))?;
        flag::register(SIGTERM, Arc::clone(&handle.flag()))?;
        // A write above the limit on file sizes is an error like any other then, and says where.
        flag::register(SIGXFSZ, Arc::default())?;
        Ok(())
    };
    let refused = |source| Failure::Engine(Error::io("set up", "signal handlers")(source));
    register().map(|()| handle.clone()).map_err(refused)
}

struct Watch {
    show: Show,
    handle: Handle,
    bar: ProgressBar,
    completed: u64,
    last: Option<(SnapshotId, Duration)>,
    aborted: Aborted,
    /// When the progress line was last changed, and what had been read then.
    shown: (u64, u64),
    resident: Vec<(u64, u64)>,
}

impl Watch {
    fn new(show: Show, handle: Handle) -> Self {
        let visible = show.progress && io::stderr().is_terminal();
        let target = if visible {
            ProgressDrawTarget::stderr_with_hz(4)
        } else {
            ProgressDrawTarget::hidden()
        };
        let style = ProgressStyle::with_template("{spinner} {elapsed_precise}  {msg}");
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(style.expect("the template is valid"));
        let shown = (clock::now_ns(), 0);
        let aborted = Aborted::default();
        Self { show, handle, bar, completed: 0, last: None, aborted, shown, resident: Vec::new() }
    }

    fn say(&self, line: &str) {
        self.bar.suspend(|| exit::say(line));
    }

    fn hear(&mut self, notice: &Notice<'_>) {
        match notice {
            Notice::Fallback(reason) => self.say(&format!(
                "warning: running on plain threads, not under glommio: {reason}; see `tidegate doctor`"
            )),
            Notice::Warning(warning) => self.say(&format!("warning: {warning}")),
            Notice::Restored(snapshot) => self.say(&format!("going on from snapshot {snapshot}")),
            Notice::Completed { snapshot, took } => {
                self.completed += 1;
                self.last = Some((*snapshot, *took));
            }
            Notice::Aborted { snapshot, reason } => {
                let line = self.aborted.line(*snapshot, reason, clock::now_ns());
                line.iter().for_each(|line| self.say(line));
            }
            Notice::Behind { asked, completed } => self.say(&format!(
                "warning: of the last {asked} snapshots asked for {completed} were completed, as each takes longer \
                 than the interval; ask for fewer, or use a faster disk"
            )),
            Notice::Restarting { error, after } => {
                self.say(&format!("warning: {error}; starting again in {after:?}"));
            }
            Notice::Tick => {
                if self.show.until.as_ref().is_some_and(|reached| reached()) {
                    self.handle.stop();
                }
                self.tick(clock::now_ns());
            }
            _ => {}
        }
    }

    fn tick(&mut self, now_ns: u64) {
        if let Some(warning) = self.show.warning.take() {
            self.say(&format!("warning: {warning}"));
        }
        let is_due = self.resident.last().is_none_or(|(at_ns, _)| now_ns - at_ns >= MEMORY_NS);
        if self.show.memory && is_due {
            self.resident.extend(summary::rss_bytes().map(|bytes| (now_ns, bytes)));
        }
        let (since_ns, before) = self.shown;
        let passed_ns = now_ns - since_ns;
        if self.bar.is_hidden() || passed_ns < PROGRESS_NS {
            return;
        }
        let records = self.handle.records();
        let per_second = ((records - before) as f64 / (passed_ns as f64 / 1e9)) as u64;
        let mut line =
            format!("{} {}, {}/s", HumanCount(records), self.show.unit, HumanCount(per_second));
        if let Some((_, took)) = self.last {
            let (count, took_ms) = (HumanCount(self.completed), took.as_secs_f64() * 1e3);
            line.push_str(&format!(", {count} snapshots, the last in {took_ms:.1} ms"));
        }
        self.bar.set_message(line);
        self.bar.tick();
        self.shown = (now_ns, records);
    }
}

/// Keeps lines about aborted snapshots apart.
#[derive(Default)]
struct Aborted {
    told_ns: Option<u64>,
    untold: u64,
}

impl Aborted {
    fn line(&mut self, snapshot: SnapshotId, reason: &str, now_ns: u64) -> Option<String> {
        if self.told_ns.is_some_and(|told_ns| now_ns - told_ns < ABORTED_PAUSE_NS) {
            self.untold += 1;
            return None;
        }
        self.told_ns = Some(now_ns);
        let before = match std::mem::take(&mut self.untold) {
            0 => String::new(),
            untold => format!(" ({untold} more before it)"),
        };
        Some(format!("warning: snapshot {snapshot} was given up{before}: {reason}"))
    }

    /// At the end, says how many were not told.
    fn tell_rest(&mut self, _now_ns: u64) {
        if self.untold > 0 {
            exit::say(&format!("warning: {} more snapshots were given up", self.untold));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aborted_snapshots_are_told_at_once_and_then_seldom_with_a_count() {
        let mut aborted = Aborted::default();
        let mut line = |id, now_ns| aborted.line(SnapshotId(id), "disk full", now_ns);
        assert_eq!(line(1, 10).as_deref(), Some("warning: snapshot 1 was given up: disk full"));
        assert_eq!(line(2, 20), None);
        assert_eq!(line(3, ABORTED_PAUSE_NS), None);
        assert_eq!(
            line(4, 10 + ABORTED_PAUSE_NS).as_deref(),
            Some("warning: snapshot 4 was given up (2 more before it): disk full")
        );
    }
}
