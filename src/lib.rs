//! tidegate (map to come)
pub mod error;
pub mod config;
pub mod align;
pub mod id;
pub mod key;
pub mod record;
