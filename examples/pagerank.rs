//! PageRank by passing on changes, until they are too small to matter.
//!
//! A vertex that hears of more rank (a *delta*) keeps it, and owes the damped share of it to the vertices
//! it links to. It pays as soon as each of them would get at least [`SMALLEST`]; what is left it keeps
//! as a debt. Damping takes a part of all rank each round, so in the end nothing is worth paying, and
//! the loop is over.
//!
//! Ranks are integers, and no unit is lost in a division: the rest stays in the debt. In what order
//! messages arrive decides when a debt is paid, and so the result may differ from run to run, but not by
//! more than the debts that are left: each is below `SMALLEST` times the vertex's links. Debts of `D`
//! in all, if paid on for ever, would add at most `D / (1 - damping)` to all ranks together; that is
//! the tolerance of the comparison with the power iteration below.
//!
//! ```sh
//! cargo run --release --example pagerank
//! ```

use std::process::ExitCode;

use tidegate::config::Config;
use tidegate::error::Result;
use tidegate::operator::process::KeyState;
use tidegate::operator::sink::Collect;
use tidegate::operator::source::Generator;
use tidegate::operator::split::Side;
use tidegate::record::Collector;
use tidegate::stream::Job;
use tidegate::workload::paper::mix;

const VERTICES: u64 = 200;
/// What every vertex begins with.
const ONE: u64 = 1_000_000_000_000;
/// Nothing smaller is passed on; so at most `VERTICES * ONE / SMALLEST` deltas go round at once.
const SMALLEST: u64 = ONE / 1_000;
/// Damping 0.85 as a fraction.
const DAMPING: (u64, u64) = (85, 100);

/// The vertices that `vertex` links to: one to eight, more often the small ones.
fn links(vertex: u64) -> Vec<u64> {
    let link = |number| mix(vertex * 8 + number) % (1 + mix(number ^ vertex) % VERTICES);
    (0..=mix(vertex) % 8).map(link).collect()
}

type Delta = (u64, u64);

/// A vertex hears of more rank. Its state is what it owes to those it links to, in hundredths. What
/// leaves the loop is the same delta.
fn hear(
    (vertex, delta): Delta,
    debt: &mut KeyState<'_, u64, u64>,
    out: &mut Collector<Side<Delta, Delta>>,
) {
    let (debt, links) = (debt.or_insert_with(|| 0), links(vertex));
    *debt += delta * DAMPING.0;
    let share = *debt / (DAMPING.1 * links.len() as u64);
    if share >= SMALLEST {
        *debt -= share * DAMPING.1 * links.len() as u64;
        out.extend(links.into_iter().map(|to| Side::Left((to, share))));
    }
    out.push(Side::Right((vertex, delta)));
}

fn main() -> Result<ExitCode> {
    let job = Job::new("pagerank");
    let (sink, results) = Collect::new();
    let begin = |vertex, out: &mut Collector<Delta>| out.push((vertex, ONE));
    job.source("vertices", Generator::new("vertices", VERTICES, begin))
        .iterate("rank", |deltas| {
            deltas.key_by(|(to, _)| *to).process("hear", hear).split("route", |side| side)
        })
        .key_by(|(vertex, _)| *vertex)
        .fold_final("sum", || 0_u64, |rank, (_, delta)| *rank += delta)
        .sink("out", sink);
    job.run(&Config::workers(1))?;

    let mut found = results.take();
    found.sort_unstable();
    let expected = power_iteration();
    let error: f64 =
        found.iter().zip(&expected).map(|((_, rank), right)| (right - *rank as f64).abs()).sum();
    let debts = (0..VERTICES).map(|vertex| links(vertex).len() as u64 * SMALLEST).sum::<u64>();
    // All that is left unpaid, and all that would follow from it: 1 / (1 - 0.85).
    let tolerance = debts as f64 * DAMPING.1 as f64 / (DAMPING.1 - DAMPING.0) as f64;
    let top = found.iter().max_by_key(|(_, rank)| *rank);
    println!(
        "{} ranks, the highest {top:?}; all together off by {error:.2e}, allowed are {tolerance:.2e}",
        found.len()
    );
    if found.len() as u64 != VERTICES || error > tolerance {
        eprintln!("wrong: power iteration finds other ranks");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// The same by repeating r = 1 + damping * (shares of r) until it stands still: 0.85^200 is 1e-14.
fn power_iteration() -> Vec<f64> {
    let mut ranks = vec![ONE as f64; VERTICES as usize];
    for _ in 0..200 {
        let mut next = vec![ONE as f64; VERTICES as usize];
        for (vertex, rank) in (0..).zip(&ranks) {
            let links = links(vertex);
            let share = rank * DAMPING.0 as f64 / DAMPING.1 as f64 / links.len() as f64;
            links.into_iter().for_each(|to| next[to as usize] += share);
        }
        ranks = next;
    }
    ranks
}
