//! `kill -9` at random moments: the program started again goes on to exactly the right results.
//!
//! A campaign is one job, killed and started again until it is complete: word count, final counts or
//! updates, or the components of a graph, found by a loop; on one worker and on two by turns, with files
//! rolled at every snapshot or now and then, at intervals of 1 to 20 ms, the loop with all three kinds
//! of snapshots. After every kill the output directory holds whole, committed lines only, each at most
//! once, and everything that was visible before. At the end it equals the oracle.
//!
//! `TIDEGATE_KILL_CYCLES` sets how many kills of each job, `TIDEGATE_SEED` the delays and settings.

mod common;
#[allow(dead_code, reason = "this file uses a part of it")]
#[path = "common/command.rs"]
mod command;

use std::collections::BTreeSet;
use std::process::Child;
use std::thread::park_timeout;
use std::time::Duration;

use command::{Place, Ran, component_lines, start, tidegate, whole_lines};
use common::count_words;
use common::random::Random;
use rustix::process::{Pid, Signal, kill_process};
use tidegate::clock;

const CYCLES: u64 = 40;
/// Of text, or edges.
const LINES: u64 = 3_000;
/// Different words of the campaign with much state.
const WORDS: u64 = 40_000;
/// Kills of one campaign at the paced rate; then it runs at full speed, so that some hit its end.
const PACED: u64 = 7;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |value| value.parse().expect("a number"))
}

type Line = Vec<u8>;

struct Campaign {
    place: Place,
    /// The command, and what of its arguments does not change from life to life.
    settings: Vec<&'static str>,
    modes: &'static [&'static [&'static str]],
    /// All lines of the output, once it is complete.
    expected: BTreeSet<Line>,
    seen: BTreeSet<Line>,
    story: String,
}

/// Makes a campaign from its number and story.
type Make = fn(u64, String) -> Campaign;

impl Campaign {
    /// Counts words. Four of them are every pair of emission and roll.
    fn word_count(number: u64, story: String) -> Self {
        let place = Place::new(LINES);
        let updates = number.is_multiple_of(2);
        let counts = count_words(&place.text).into_iter();
        let lines = |(word, count): (Line, u64)| {
            let counts = if updates { 1..=count } else { count..=count };
            counts.map(move |count| [&word[..], b"\t", count.to_string().as_bytes()].concat())
        };
        let expected = counts.flat_map(lines).collect();
        let emit = if updates { "updates" } else { "final" };
        let roll = if number % 4 < 2 { "0" } else { "50ms" };
        let settings = vec!["word-count", "--emit", emit, "--roll", roll];
        Self { place, settings, modes: &[&[]], expected, seen: BTreeSet::new(), story }
    }

    /// Counts so many different words that a snapshot writes a part of the state only, and that a
    /// life may end before all state of the one before was in memory again.
    fn many_words(number: u64, story: String) -> Self {
        let word = |index: u64| format!("word-{}", index * 7919 % WORDS);
        // The second half counts every word again that the first half left in the state.
        let lines = (0..2 * WORDS / 20).map(|line| {
            let words = (0..20).map(|index| word(line * 20 + index));
            words.collect::<Vec<_>>().join(" ") + "\n"
        });
        let place = Place::with_text(lines.collect::<String>());
        let counts = count_words(&place.text).into_iter();
        let expected =
            counts.map(|(word, count)| [&word[..], b"\t", count.to_string().as_bytes()].concat());
        let expected = expected.collect();
        let roll = if number.is_multiple_of(2) { "0" } else { "50ms" };
        let settings = vec!["word-count", "--emit", "final", "--roll", roll];
        Self { place, settings, modes: &[&[]], expected, seen: BTreeSet::new(), story }
    }

    /// Finds components.
    fn iterate(number: u64, story: String) -> Self {
        let place = Place::of_edges(LINES);
        let expected = component_lines(&place.text);
        let settings =
            vec!["iterate", "--roll", if number.is_multiple_of(2) { "0" } else { "50ms" }];
        let modes: &[&[&str]] =
            &[&[], &["--mode", "unaligned", "--align-timeout", "1ms"], &["--mode", "sync"]];
        Self { place, settings, modes, expected, seen: BTreeSet::new(), story }
    }

    fn with(&self, more: &[&str]) -> Vec<String> {
        let more = [&self.settings[1..], &["--output", "@out", "--snapshots", "@snapshots"], more];
        self.place.arguments_of(self.settings[0], &more.concat())
    }

    fn arguments(&self, life: u64, random: &mut Random) -> Vec<String> {
        let interval = format!("{}ms", 1 + random.below(20));
        let parallelism = (1 + life % 2).to_string();
        let mut arguments = vec!["--interval", &interval, "--parallelism", &parallelism];
        arguments.extend(random.pick(self.modes));
        if life < PACED {
            arguments.extend(["--rate", "4000"]);
        }
        self.with(&arguments)
    }

    /// What a reader sees now: only what belongs there, once, and all that was there before.
    fn check(&mut self) {
        let lines = whole_lines(&self.place.committed("out"));
        let count = lines.len();
        let found: BTreeSet<_> = lines.into_iter().collect();
        assert_eq!(found.len(), count, "a line came twice; {}", self.story);
        let text = |line: &Line| String::from_utf8_lossy(line).into_owned();
        let strange = found.difference(&self.expected).next().map(text);
        assert_eq!(strange, None, "a line does not belong there; {}", self.story);
        let gone = self.seen.difference(&found).next().map(text);
        assert_eq!(gone, None, "a line was visible and is gone; {}", self.story);
        self.seen = found;
    }

    fn complete(&mut self) {
        self.check();
        let missing = self.expected.difference(&self.seen).count();
        assert_eq!(missing, 0, "lines are missing; {}", self.story);
        let committed = self.place.committed("out");
        tidegate(&self.with(&[])).succeeded();
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

/// Kills at least `cycles` times, in at least four campaigns.
fn kill_and_restart(test: &str, make: Make) {
    let (cycles, seed) = (number("TIDEGATE_KILL_CYCLES", CYCLES), number("TIDEGATE_SEED", 1));
    let mut random = Random::new(seed);
    let (mut kills, mut campaigns) = (0, 0);
    while kills < cycles || campaigns < 4 {
        let story = format!(
            "campaign {campaigns}; repeat: TIDEGATE_SEED={seed} TIDEGATE_KILL_CYCLES={cycles} \
             cargo test --test kill {test}"
        );
        println!("{story}");
        let mut campaign = make(campaigns, story);
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
fn after_kill_9_at_random_moments_the_counts_are_exact_and_readers_saw_committed_lines_only() {
    kill_and_restart("counts", Campaign::word_count);
}

#[test]
fn after_kill_9_while_much_state_is_written_or_loaded_the_counts_are_exact() {
    kill_and_restart("much_state", Campaign::many_words);
}

#[test]
fn after_kill_9_at_random_moments_of_a_loop_components_and_degrees_are_exact() {
    kill_and_restart("components", Campaign::iterate);
}

#[test]
fn after_sigterm_at_random_moments_all_that_was_read_is_visible_and_the_rest_follows() {
    let seed = number("TIDEGATE_SEED", 1);
    let mut random = Random::new(seed);
    let makes: [(u64, Make); 3] =
        [(0, Campaign::word_count), (1, Campaign::word_count), (0, Campaign::iterate)];
    for (number, make) in makes {
        let mut campaign = make(number, format!("SIGTERM, seed {seed}"));
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
