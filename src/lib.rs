//! tidegate: a shared-nothing, thread-per-core stream engine with Asynchronous Barrier Snapshotting.
//!
//! Each *worker* (one pinned thread per core) steps its *tasks*; tasks exchange *records* over
//! single-producer single-consumer *channels*; a *barrier* in the stream tells a task when its state
//! belongs to *snapshot* n; the *coordinator* injects barriers and calls a snapshot complete when
//! every task's bytes are durable; *restore* starts from the newest complete one. The algorithm is
//! Carbone, Fóra, Ewen, Haridi, Tzoumas, "Lightweight Asynchronous Snapshots for Distributed
//! Dataflows", 2015.
//!
//! # A job
//!
//! ```
//! use tidegate::config::Config;
//! use tidegate::operator::sink::Collect;
//! use tidegate::operator::source::Items;
//! use tidegate::stream::Job;
//!
//! let job = Job::new("parity");
//! let (sink, results) = Collect::new();
//! job.source("numbers", Items::new("1 to 10", || 1..=10_u64))
//!     .key_by(|number| number % 2)
//!     .fold_final("sum", || 0_u64, |sum, number| *sum += number)
//!     .sink("out", sink);
//! job.run(&Config::workers(1))?;
//!
//! let mut sums = results.take();
//! sums.sort();
//! assert_eq!(sums, [(0, 30), (1, 25)]);
//! # Ok::<(), tidegate::error::Error>(())
//! ```
//!
//! With [`Config::with_snapshots`](config::Config::with_snapshots) the same job survives a crash:
//! run again, it goes on from its last complete snapshot.
//!
//! # The map
//!
//! Modules are declared bottom-up and import only what is declared above them; a test keeps it so.
//!
//! | layer | modules |
//! |---|---|
//! | words | [`id`] [`record`] [`weight`] [`key`] [`error`] [`guard`] [`config`] [`clock`] [`phases`] |
//! | plumbing | [`channel`] (the ring), [`disk`] (files without blocking), [`frame`] (bytes on disk), [`spill`] (records that wait) |
//! | the algorithm, pure | [`align`] (a task's barriers), [`flight`] (what goes round in a loop), [`coordinator`] (a job's snapshots) |
//! | running | [`state`], [`operator`], [`inbox`], [`outbox`], [`store`], [`task`], [`worker`] |
//! | assembly | [`loops`], [`graph`], [`stream`] (the API users write), [`plan`], [`picture`], [`engine`] (the drivers) |
//! | edges | [`doctor`], [`workload`], [`jobs`] |
//!
//! How a record travels: [`operator::source`] -> [`outbox`] -> [`channel`] -> [`inbox`] (asks
//! [`align`]) -> [`task`] -> [`operator`] on a batch -> [`outbox`] -> ... -> [`operator::sink`].
//! How a barrier travels: [`coordinator`] -> source task -> [`channel`] -> [`inbox`] and [`align`]
//! -> [`task::Task::capture`] -> on along the channels, while [`worker`] drains the captured state
//! into [`store`] and acks.

pub mod id;
pub mod record;
pub mod weight;
pub mod key;
pub mod error;
pub mod guard;
pub mod config;
pub mod clock;
pub mod phases;
pub mod channel;
pub mod disk;
pub mod frame;
pub mod spill;
pub mod align;
pub mod flight;
pub mod coordinator;
pub mod state;
pub mod operator;
pub mod inbox;
pub mod outbox;
pub mod store;
pub mod task;
pub mod worker;
pub mod loops;
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
