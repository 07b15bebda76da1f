//! tidegate (map to come)
pub mod id;
pub mod record;
pub mod key;
pub mod error;
pub mod config;
pub mod clock;
pub mod channel;
pub mod align;
pub mod coordinator;
pub mod workload;
