//! PageRank by passing on changes, until they are too small to matter.
//!
//! A vertex that hears of more rank (a *delta*) keeps it, and owes the damped share of it to the vertices
//! it links to. It pays as soon as each of them would get at least `smallest`; what is left it keeps
//! as a debt. Damping takes a part of all rank each round, so in the end nothing is worth paying, and
//! the loop is over.
//!
//! Ranks are integers, and no unit is lost in a division: the rest stays in the debt. In what order
//! messages arrive decides when a debt is paid, and so the result may differ from run to run, but not by
//! more than the debts that are left: each is below `smallest` times the vertex's links. Debts of `D`
//! in all, if paid on for ever, would add at most `D / (1 - damping)` to all ranks together; that is
//! the tolerance of the comparison with the power iteration below.
//!
//! That tolerance would hide a lost message. So each vertex also says what it paid, and the books must
//! balance to the unit: what a vertex heard is what it began with and what was paid to it, and its debt,
//! what it heard and did not pay, is below the bound above.
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
use tidegate::stream::{Job, Stream};
use tidegate::workload::paper::mix;

const VERTICES: u64 = 200;
/// What every vertex begins with.
pub const ONE: u64 = 1_000_000_000_000;
/// Nothing smaller is passed on: a finer answer takes more messages.
const SMALLEST: u64 = ONE / 1_000;
/// Damping 0.85 as a fraction.
const DAMPING: (u64, u64) = (85, 100);

/// The vertices that `vertex` links to: one to eight, more often the small ones.
fn links(vertex: u64) -> Vec<u64> {
    let link = |number| mix(vertex * 8 + number) % (1 + mix(number ^ vertex) % VERTICES);
    (0..=mix(vertex) % 8).map(link).collect()
}

type Delta = (u64, u64);

/// What a vertex heard of, and what it paid to each of its links.
type Books = (u64, u64);

/// The books of every vertex, once nothing is left to pay that is worth `smallest`.
///
/// A vertex's state is what it owes to those it links to, in hundredths. What leaves the loop is what it
/// heard and paid: `(vertex, heard, paid)`.
pub fn page_rank(job: &Job, smallest: u64) -> Stream<(u64, Books)> {
    let hear = move |(vertex, delta): Delta,
                     debt: &mut KeyState<'_, u64, u64>,
                     out: &mut Collector<Side<Delta, (u64, u64, u64)>>| {
        let (debt, links) = (debt.or_insert_with(|| 0), links(vertex));
        *debt += delta * DAMPING.0;
        let share = *debt / (DAMPING.1 * links.len() as u64);
        let paid = if share >= smallest { share } else { 0 };
        if paid > 0 {
            *debt -= paid * DAMPING.1 * links.len() as u64;
            out.extend(links.into_iter().map(|to| Side::Left((to, paid))));
        }
        out.push(Side::Right((vertex, delta, paid)));
    };
    let begin = |vertex, out: &mut Collector<Delta>| out.push((vertex, ONE));
    job.source("vertices", Generator::new("vertices", VERTICES, begin))
        .iterate("rank", |deltas| {
            deltas.key_by(|(to, _)| *to).process("hear", hear).split("route", |side| side)
        })
        .key_by(|(vertex, ..)| *vertex)
        .fold_final(
            "sum",
            || (0, 0),
            |books: &mut Books, (_, heard, paid)| {
                books.0 += heard;
                books.1 += paid;
            },
        )
}

fn main() -> Result<ExitCode> {
    let job = Job::new("pagerank");
    let (sink, results) = Collect::new();
    page_rank(&job, SMALLEST).sink("out", sink);
    job.run(&Config::workers(1))?;

    let found = results.take();
    if let Some((vertex, (rank, _))) = found.iter().max_by_key(|(_, (heard, _))| *heard) {
        println!("{} ranks, the highest that of {vertex}: {rank}", found.len());
    }
    Ok(match check(found, SMALLEST) {
        Ok(off) => {
            println!("all together off by {off:.2e}, allowed are {:.2e}", tolerance(SMALLEST));
            ExitCode::SUCCESS
        }
        Err(wrong) => {
            eprintln!("wrong: {wrong}");
            ExitCode::FAILURE
        }
    })
}

/// By how much all ranks together differ from those of the power iteration; an error says what is wrong.
pub fn check(mut found: Vec<(u64, Books)>, smallest: u64) -> std::result::Result<f64, String> {
    found.sort_unstable_by_key(|(vertex, _)| *vertex);
    if !found.iter().map(|(vertex, _)| *vertex).eq(0..VERTICES) {
        return Err(format!("{} results, not one of each of {VERTICES} vertices", found.len()));
    }
    let mut due = vec![ONE; VERTICES as usize];
    for (vertex, (_, paid)) in &found {
        links(*vertex).into_iter().for_each(|to| due[to as usize] += paid);
    }
    for ((vertex, (heard, paid)), due) in found.iter().zip(due) {
        if *heard != due {
            return Err(format!("vertex {vertex} was paid {due} and heard of {heard}"));
        }
        let each = DAMPING.1 * links(*vertex).len() as u64;
        let debt = (heard * DAMPING.0).checked_sub(paid * each);
        if debt.is_none_or(|debt| debt >= each * smallest) {
            return Err(format!("vertex {vertex} heard of {heard} and has a debt of {debt:?}"));
        }
    }
    let off =
        found.iter().zip(power_iteration()).map(|((_, (heard, _)), right)| right - *heard as f64);
    let (off, tolerance) = (off.map(f64::abs).sum(), tolerance(smallest));
    if off > tolerance {
        return Err(format!("off the power iteration by {off:.2e}, allowed are {tolerance:.2e}"));
    }
    Ok(off)
}

/// All that is left unpaid, and all that would follow from it: 1 / (1 - 0.85).
fn tolerance(smallest: u64) -> f64 {
    let debts = (0..VERTICES).map(|vertex| links(vertex).len() as u64 * smallest).sum::<u64>();
    debts as f64 * DAMPING.1 as f64 / (DAMPING.1 - DAMPING.0) as f64
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
