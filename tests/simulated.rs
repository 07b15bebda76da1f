//! Exactly once, whatever happens: jobs, schedules, faults and crashes drawn from seeds.
//!
//! Each seed draws a graph, runs it on the caller-driven driver over a disk in memory through a row
//! of kills, power failures, panics, disk errors, full disks and stops, each time on another number
//! of workers, with other parallelism, rings and intervals, until it is complete. Then everything
//! committed is compared with plain loops over the input.
//!
//! `TIDEGATE_SEEDS` sets how many seeds, `TIDEGATE_SEED` a single one, `TIDEGATE_TRACE=1` prints
//! what happened.

mod common;
#[path = "simulated/job.rs"]
mod job;
#[path = "simulated/life.rs"]
mod life;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::quiet::quietly;
use life::{Summary, simulate};

const SEEDS: u64 = 300;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().expect("a number"))
}

/// Runs a seed; a failure of any kind names the seed and how to repeat it.
fn run(seed: u64) -> Result<Summary, String> {
    let caught = || catch_unwind(AssertUnwindSafe(|| simulate(seed)));
    let traced = std::env::var_os("TIDEGATE_TRACE").is_some();
    let result = if traced { caught() } else { quietly(caught) };
    let result = result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        Err(format!("panic: {}", text.unwrap_or_default()))
    });
    result.map_err(|reason| {
        format!(
            "seed {seed}: {reason}\n  repeat: TIDEGATE_SEED={seed} TIDEGATE_TRACE=1 \
             cargo test --test simulated every_seed"
        )
    })
}

#[test]
fn every_seed_ends_with_each_record_counted_exactly_once() {
    let seeds = match number("TIDEGATE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TIDEGATE_SEEDS").unwrap_or(SEEDS),
    };
    let (mut total, mut failures) = (Summary::default(), Vec::new());
    for seed in seeds.clone() {
        match run(seed) {
            Ok(summary) => total.add(&summary),
            Err(failure) => failures.push(failure),
        }
    }
    println!("seeds {seeds:?}: {total:?}");
    assert!(failures.is_empty(), "{} seeds failed\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn the_same_seed_takes_the_same_steps() {
    for seed in 0..number("TIDEGATE_SEEDS").unwrap_or(SEEDS).min(40) {
        let (first, second) = (run(seed), run(seed));
        assert_eq!(first, second, "seed {seed}");
    }
}

impl Summary {
    fn add(&mut self, other: &Self) {
        self.trace ^= other.trace;
        self.lives += other.lives;
        self.steps += other.steps;
        self.completed += other.completed;
        self.aborted += other.aborted;
        self.restarts += other.restarts;
        self.errors += other.errors;
        self.fallbacks += other.fallbacks;
    }
}
