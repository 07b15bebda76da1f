//! Inputs with a known answer: what tests, benches and the command line feed to the engine.
//!
//! - [`paper`]: the functions of the "paper" topology, three shuffles with a closed-form checksum
//! - [`zipf`]: text made from a seed, line by line
//! - [`ranks`]: Zipf's law
//! - [`words`]: what a word is
//! - [`updates`]: values of any size that are updated by key
//! - [`edges`]: a random graph, edge by edge
//!
//! Invariants
//! - Everything is a pure function of its arguments, the same on every machine and in every version:
//!   known answers and restored offsets depend on it.
//! - Nothing here knows the engine, so that an answer can be computed without it.

pub mod edges;
pub mod paper;
pub mod ranks;
pub mod updates;
pub mod words;
pub mod zipf;
