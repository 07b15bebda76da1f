//! tidegate (map to come)
pub mod id;
pub mod error;
pub mod record;
pub mod key;
