//! tidegate (map to come)
pub mod align;
pub mod config;
pub mod coordinator;
pub mod error;
pub mod id;
pub mod key;
pub mod record;
