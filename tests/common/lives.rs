//! A job run to its end in every way: on one worker and on two, with every kind of snapshot, with rings
//! of one slot and of eight, killed at random snapshots and restored on another number of workers.
//!
//! `TIDEGATE_SEED` sets where runs are killed.

use std::fmt::Debug;
use std::time::Duration;

use tidegate::config::{Config, Mode};
use tidegate::disk::MemoryDisk;
use tidegate::engine::End;
use tidegate::graph::Graph;
use tidegate::operator::sink::{Collect, Collected};
use tidegate::record::Record;
use tidegate::stream::{Job, Stream};

use super::random::Random;
use super::run::{Run, config};

/// Lives of a job; the last one is let live to the end.
const LIVES_MAX: u64 = 5;
pub const MODES: [Mode; 3] =
    [Mode::Abs, Mode::Unaligned { after: Duration::from_micros(200) }, Mode::Synchronous];

pub fn seed() -> u64 {
    std::env::var("TIDEGATE_SEED").map_or(1, |seed| seed.parse().expect("a number"))
}

pub fn with(workers: usize, ring_slots: usize, mode: Mode) -> Config {
    let mut config = Config { ring_slots, ..config(workers) };
    config.snapshots.as_mut().expect("it takes snapshots").mode = mode;
    config
}

/// One way to run a job.
#[derive(Debug)]
pub struct Case {
    pub workers: usize,
    pub mode: Mode,
    pub ring_slots: usize,
    pub seed: u64,
}

/// Runs `check` in every way.
pub fn in_every_way(check: impl Fn(&Case)) {
    for workers in [1, 2] {
        for mode in MODES {
            for ring_slots in [1, 8] {
                check(&Case { workers, mode, ring_slots, seed: seed() });
            }
        }
    }
}

impl Case {
    /// Runs `graph` to its end through kills at random snapshots, on other numbers of workers by turns.
    /// How often it was killed.
    pub fn run(&self, graph: &Graph) -> u64 {
        let disk = MemoryDisk::new(self.seed);
        let mut random = Random::new(self.seed ^ (self.ring_slots * 2 + self.workers) as u64);
        for life in 0..LIVES_MAX {
            let workers = if life % 2 == 0 { self.workers } else { 3 - self.workers };
            let mut run = Run::open(graph, &with(workers, self.ring_slots, self.mode), &disk);
            let last = life + 1 == LIVES_MAX;
            let goal = if last { usize::MAX } else { 1 + random.below(3) as usize };
            run.until(&format!("the end of life {life} of {self:?}"), |run| {
                run.ended.is_some() || run.completed().len() >= goal
            });
            if let Some(ended) = run.ended.take() {
                let end = ended.expect("nothing goes wrong").end;
                // The last snapshot may have been the one that it was killed at.
                assert!(matches!(end, End::Complete | End::AlreadyComplete), "{end:?}; {self:?}");
                return life;
            }
            drop(run);
            disk.crash();
        }
        unreachable!("the last life has no goal but the end")
    }
}

/// `stream` into memory.
pub fn collected<T: Record>(job: Job, stream: Stream<T>) -> (Graph, Collected<T>) {
    let (sink, collected) = Collect::new();
    stream.sink("out", sink);
    (job.build().expect("well formed"), collected)
}

#[track_caller]
pub fn assert_same<T: Ord + Debug>(mut found: Vec<T>, mut expected: Vec<T>, case: &Case) {
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected, "{case:?}");
}
