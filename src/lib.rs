//! tidegate (map to come)
pub mod id;
pub mod record;
pub mod key;
pub mod error;
pub mod config;
pub mod clock;
pub mod channel;
pub mod disk;
pub mod frame;
pub mod align;
pub mod coordinator;
pub mod state;
pub mod operator;
pub mod inbox;
pub mod outbox;
pub mod store;
pub mod task;
pub mod worker;
pub mod graph;
pub mod stream;
pub mod plan;
pub mod picture;
pub mod engine;
pub mod doctor;
pub mod workload;
pub mod jobs;

/// Compiles and runs the example in the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
