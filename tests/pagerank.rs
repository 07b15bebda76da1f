//! PageRank, as `examples/pagerank.rs` has it, exactly once through kills.
//!
//! What it computes depends on the order of messages, so its oracle is its books: what a vertex heard
//! is to the unit what it began with and what was paid to it. A message lost, doubled or replayed to
//! another vertex breaks them; a debt restored from another moment shows once it leaves its bounds.

mod common;
#[path = "../examples/pagerank.rs"]
#[expect(dead_code, reason = "the example's `main` is run by `cargo xtask check`")]
mod pagerank;

use common::lives::{collected, in_every_way};
use pagerank::{ONE, check, page_rank};
use tidegate::config::Config;
use tidegate::operator::sink::Collect;
use tidegate::stream::Job;

/// Coarser than the example's, for fewer rounds.
const SMALLEST: u64 = ONE / 50;

#[test]
fn the_books_of_page_rank_balance_to_the_unit_through_kills() {
    in_every_way(|case| {
        let job = Job::new("pagerank");
        let books = page_rank(&job, SMALLEST);
        let (graph, out) = collected(job, books);
        let kills = case.run(&graph);
        assert!(kills >= 1, "{kills} kills; {case:?}");
        check(out.take(), SMALLEST).unwrap_or_else(|wrong| panic!("{wrong}; {case:?}"));
    });
}

#[test]
fn a_unit_too_few_a_vertex_too_few_and_a_debt_too_large_are_found() {
    let job = Job::new("pagerank");
    let (sink, out) = Collect::new();
    page_rank(&job, SMALLEST).sink("out", sink);
    job.run(&Config::workers(1)).expect("nothing goes wrong");
    let right = out.take();
    check(right.clone(), SMALLEST).expect("nothing was killed");
    let mut unpaid = right.clone();
    unpaid[7].1.0 -= 1;
    assert!(check(unpaid, SMALLEST).unwrap_err().contains("and heard of"));
    assert!(check(right[1..].to_vec(), SMALLEST).unwrap_err().contains("199 results"));
    // The debts that are left are those of a coarser answer.
    assert!(check(right, 1).unwrap_err().contains("has a debt of"));
}
