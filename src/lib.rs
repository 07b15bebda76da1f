//! tidegate (map to come)
pub mod error;
pub mod id;
pub mod key;
pub mod record;
pub mod state;
