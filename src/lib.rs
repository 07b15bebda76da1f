//! tidegate (map to come)
pub mod channel;
pub mod error;
pub mod id;
pub mod key;
pub mod record;
