//! `kill -9` at random moments: the program started again goes on to exactly the right counts.
//!
//! A campaign is one job, killed and started again until it is complete: final counts or updates, on
//! one worker and on two by turns, with files rolled at every snapshot or now and then, at intervals
//! of 1 to 20 ms. After every kill the output directory holds whole, committed lines only, each at
//! most once, and everything that was visible before. At the end it equals the oracle.
//!
//! `TIDEGATE_KILL_CYCLES` sets how many kills, `TIDEGATE_SEED` the delays and settings.

mod common;
#[allow(dead_code, reason = "this file uses a part of it")]
#[path = "common/command.rs"]
mod command;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Child;
use std::thread::park_timeout;
use std::time::Duration;

use command::{Place, Ran, assert_final, assert_updates, lines_of, start};
use common::count_words;
use common::random::Random;
use rustix::process::{Pid, Signal, kill_process};
use tidegate::clock;

const CYCLES: u64 = 40;
const LINES: u64 = 3_000;
/// Kills of one campaign at the paced rate; then it runs at full speed, so that some hit its end.
const PACED: u64 = 7;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |value| value.parse().expect("a number"))
}

struct Campaign {
    place: Place,
    counts: BTreeMap<Vec<u8>, u64>,
    updates: bool,
    roll: &'static str,
    seen: BTreeSet<(Vec<u8>, u64)>,
    story: String,
}

impl Campaign {
    fn new(number: u64, story: String) -> Self {
        let place = Place::new(LINES);
        let counts = count_words(&place.text);
        let updates = number.is_multiple_of(2);
        let roll = if number % 4 < 2 { "0" } else { "50ms" };
        Self { place, counts, updates, roll, seen: BTreeSet::new(), story }
    }

    fn arguments(&self, life: u64, random: &mut Random) -> Vec<String> {
        let interval = format!("{}ms", 1 + random.below(20));
        let parallelism = (1 + life % 2).to_string();
        let emit = if self.updates { "updates" } else { "final" };
        let mut arguments = vec!["--emit", emit, "--output", "@out", "--snapshots", "@snapshots"];
        arguments.extend(["--interval", &interval, "--roll", self.roll]);
        arguments.extend(["--parallelism", &parallelism]);
        if life < PACED {
            arguments.extend(["--rate", "4000"]);
        }
        self.place.arguments(&arguments)
    }

    /// What a reader sees now: only what belongs there, once, and all that was there before.
    fn check(&mut self) {
        let lines = lines_of(&self.place.committed("out"));
        let found: BTreeSet<_> = lines.iter().cloned().collect();
        assert_eq!(found.len(), lines.len(), "a line came twice; {}", self.story);
        for (word, count) in &found {
            let known = self.counts.get(word).copied().unwrap_or_default();
            let allowed = if self.updates { 1..=known } else { known..=known };
            assert!(allowed.contains(count), "{word:?} has {known}, not {count}; {}", self.story);
        }
        let gone = self.seen.difference(&found).next();
        assert!(gone.is_none(), "{gone:?} was visible and is gone; {}", self.story);
        self.seen = found;
    }

    fn complete(&mut self) {
        self.check();
        let committed = self.place.committed("out");
        if self.updates {
            assert_updates(&committed, &self.place.text);
        } else {
            assert_final(&committed, &self.place.text);
        }
        let ran = self.place.count(&[
            "--emit",
            if self.updates { "updates" } else { "final" },
            "--output",
            "@out",
            "--snapshots",
            "@snapshots",
            "--roll",
            self.roll,
        ]);
        ran.succeeded();
        assert_eq!(self.place.committed("out"), committed, "complete is complete; {}", self.story);
    }
}

/// Waits until `child` ends, at most `time`. Whether it has ended.
fn ended_within(child: &mut Child, time: Duration) -> bool {
    let until_ns = clock::now_ns() + time.as_nanos() as u64;
    loop {
        if child.try_wait().expect("a child can be waited for").is_some() {
            return true;
        }
        let left = until_ns.saturating_sub(clock::now_ns());
        if left == 0 {
            return false;
        }
        park_timeout(Duration::from_nanos(left.min(500_000)));
    }
}

#[test]
fn after_kill_9_at_random_moments_the_counts_are_exact_and_readers_saw_committed_lines_only() {
    let (cycles, seed) = (number("TIDEGATE_KILL_CYCLES", CYCLES), number("TIDEGATE_SEED", 1));
    let mut random = Random::new(seed);
    let (mut kills, mut campaigns) = (0, 0);
    // Four campaigns are every pair of emission and roll.
    while kills < cycles || campaigns < 4 {
        let story = format!(
            "campaign {campaigns}; repeat: TIDEGATE_SEED={seed} TIDEGATE_KILL_CYCLES={cycles} \
             cargo test --test kill"
        );
        println!("{story}");
        let mut campaign = Campaign::new(campaigns, story);
        campaigns += 1;
        for life in 0.. {
            let mut child = start(&campaign.arguments(life, &mut random));
            let most = if life < PACED { 150 } else { 60 };
            let delay = Duration::from_micros(1_000 + random.below(most * 1_000));
            // A campaign ends by itself at the latest after this many kills.
            let ended = ended_within(
                &mut child,
                if life > 3 * PACED { Duration::from_secs(60) } else { delay },
            );
            if !ended {
                kills += 1;
                child.kill().expect("it runs");
            }
            let ran = Ran::after(child);
            campaign.check();
            if ended {
                assert_eq!(ran.code, Some(0), "{}; {}", ran.stderr, campaign.story);
                break;
            }
        }
        campaign.complete();
    }
    println!("{kills} kills in {campaigns} campaigns, seed {seed}");
}

#[test]
fn after_sigterm_at_random_moments_all_that_was_read_is_visible_and_the_rest_follows() {
    let seed = number("TIDEGATE_SEED", 1);
    let mut random = Random::new(seed);
    for number in 0..2 {
        let mut campaign = Campaign::new(number, format!("SIGTERM, seed {seed}"));
        for life in 0..6 {
            let mut child = start(&campaign.arguments(life, &mut random));
            if ended_within(&mut child, Duration::from_millis(30 + random.below(120))) {
                break;
            }
            kill_process(Pid::from_child(&child), Signal::TERM).expect("it runs");
            let ran = Ran::after(child);
            // Before the program listens to signals it dies of them, which must do no harm either.
            assert!(matches!(ran.code, Some(0) | None), "{:?}: {}", ran.code, ran.stderr);
            campaign.check();
            if ran.code == Some(0) && campaign.place.path("out").exists() {
                let files = command::contents(&campaign.place.path("out"));
                let hidden = files.keys().find(|name| name.starts_with(".part-"));
                assert!(hidden.is_none(), "{hidden:?} is left hidden after a stop; {}", ran.stderr);
            }
        }
        let rest = campaign.arguments(PACED, &mut random);
        Ran::after(start(&rest)).succeeded();
        campaign.complete();
    }
}
