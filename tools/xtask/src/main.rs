//! `cargo xtask check`, `cargo xtask ci` and parts of them: what a change must pass, in one command.
//!
//! Owns the list of steps ([`CHECK`], [`PROOFS`]) and how they are run and summed up. To add a step,
//! add a row; nothing else changes. Uses the standard library only, so that it builds in a second.
//!
//! Invariants
//! - A failed step does not hide the ones behind it: all run, and the exit code is 1 if any failed.
//! - A step whose test filter matches nothing fails: a renamed test must not turn its step off.

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// One call of cargo.
struct Step {
    name: &'static str,
    arguments: &'static [&'static str],
    /// Set for this step only.
    environment: &'static [(&'static str, &'static str)],
    /// Whether `arguments` are a `cargo test` that must find at least one test.
    finds_tests: bool,
}

/// What every change passes, in the order in which a mistake is found soonest.
const CHECK: &[Step] = &[
    Step {
        name: "format",
        arguments: &["fmt", "--all", "--check"],
        environment: &[],
        finds_tests: false,
    },
    Step {
        name: "lints",
        arguments: &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
        environment: &[],
        finds_tests: false,
    },
    Step {
        name: "tests",
        arguments: &["test", "--workspace"],
        environment: &[],
        finds_tests: false,
    },
    Step {
        name: "example collatz",
        arguments: &["run", "--example", "collatz"],
        environment: &[],
        finds_tests: false,
    },
    Step {
        name: "example connected_components",
        arguments: &["run", "--example", "connected_components"],
        environment: &[],
        finds_tests: false,
    },
    Step {
        name: "example pagerank",
        arguments: &["run", "--example", "pagerank"],
        environment: &[],
        finds_tests: false,
    },
    Step {
        name: "documentation",
        arguments: &["doc", "--workspace", "--no-deps"],
        environment: &[("RUSTDOCFLAGS", "-D warnings")],
        finds_tests: false,
    },
];

/// Every schedule of the ring, bounded: about two minutes from nothing, 20 s when built.
const MODEL: Step = Step {
    name: "model check of the ring",
    arguments: &["test", "--package", "tidegate", "--release", "--lib", "channel::loom"],
    // Another cfg is another build of every crate: its own directory keeps the usual one warm.
    environment: &[("RUSTFLAGS", "--cfg tidegate_loom"), ("CARGO_TARGET_DIR", "target/loom")],
    finds_tests: true,
};

/// What CI adds: proofs that take longer or need a build of their own.
const PROOFS: &[Step] = &[
    MODEL,
    Step {
        name: "short fault campaign",
        arguments: &["test", "--package", "tidegate", "--test", "simulated"],
        environment: &[("TIDEGATE_SEEDS", "1000")],
        finds_tests: true,
    },
];

/// The deep campaign: hours, not for CI.
const CAMPAIGN: &[Step] = &[
    Step {
        name: "kill -9, ten thousand times",
        arguments: &["test", "--package", "tidegate", "--release", "--test", "kill"],
        environment: &[("TIDEGATE_KILL_CYCLES", "10000")],
        finds_tests: true,
    },
    Step {
        name: "simulated jobs, a million seeds",
        arguments: &["test", "--package", "tidegate", "--release", "--test", "simulated"],
        environment: &[("TIDEGATE_SEEDS", "1000000")],
        finds_tests: true,
    },
];

const USAGE: &str = "\
usage: cargo xtask <command>

  check      format, lints, tests (kill -9 forty times among them), examples, documentation
  model      the model check of the ring
  ci         check, then model and a short fault campaign
  campaign   the fault campaigns at full length: hours";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let steps: Vec<&'static Step> = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..]
    {
        ["check"] => CHECK.iter().collect(),
        ["model"] => vec![&MODEL],
        ["ci"] => CHECK.iter().chain(PROOFS).collect(),
        ["campaign"] => CAMPAIGN.iter().collect(),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    let outcomes: Vec<Outcome> =
        steps.iter().enumerate().map(|(index, step)| run(step, index + 1, steps.len())).collect();
    sum_up(&outcomes)
}

/// How one step ended.
struct Outcome {
    name: &'static str,
    failure: Option<String>,
    took: Duration,
}

fn run(step: &'static Step, number: usize, of: usize) -> Outcome {
    eprintln!("\n==> {number}/{of} {}: {}", step.name, command_line(step));
    #[expect(clippy::disallowed_methods, reason = "a tool that times its steps, not the engine")]
    let now = Instant::now;
    let start = now();
    let failure = attempt(step).err();
    if let Some(failure) = &failure {
        eprintln!("==> {} FAILED: {failure}", step.name);
    }
    Outcome { name: step.name, failure, took: now() - start }
}

fn attempt(step: &Step) -> Result<(), String> {
    if step.finds_tests && !lists_a_test(step)? {
        return Err("no test has this name; mend the row in tools/xtask/src/main.rs".into());
    }
    let status = cargo(step).status().map_err(|error| format!("cannot start cargo: {error}"))?;
    if status.success() { Ok(()) } else { Err(status.to_string()) }
}

/// Asks the test harness what it would run. Building the tests is part of this call.
fn lists_a_test(step: &Step) -> Result<bool, String> {
    let listing = cargo(step)
        .args(["--", "--list", "--format", "terse"])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot start cargo: {error}"))?;
    if !listing.status.success() {
        return Err(listing.status.to_string());
    }
    Ok(String::from_utf8_lossy(&listing.stdout).lines().any(|line| line.ends_with(": test")))
}

fn cargo(step: &Step) -> Command {
    // Cargo names itself to what it runs; it may not be on the path.
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(step.arguments).envs(step.environment.iter().copied());
    command
}

/// The step as it would be typed, so that it can be repeated alone.
fn command_line(step: &Step) -> String {
    let set: String =
        step.environment.iter().map(|(name, value)| format!("{name}='{value}' ")).collect();
    format!("{set}cargo {}", step.arguments.join(" "))
}

fn sum_up(outcomes: &[Outcome]) -> ExitCode {
    eprintln!("\n==> summary");
    for outcome in outcomes {
        let verdict =
            outcome.failure.as_deref().map_or("ok".into(), |why| format!("FAILED, {why}"));
        eprintln!("  {:<26} {:>6.1} s  {verdict}", outcome.name, outcome.took.as_secs_f64());
    }
    match outcomes.iter().filter(|outcome| outcome.failure.is_some()).count() {
        0 => {
            eprintln!("all {} steps passed", outcomes.len());
            ExitCode::SUCCESS
        }
        failed => {
            eprintln!("{failed} of {} steps failed", outcomes.len());
            ExitCode::FAILURE
        }
    }
}
