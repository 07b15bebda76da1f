//! tidegate (map to come)
pub mod id;
pub mod error;
pub mod record;
pub mod key;
pub mod clock;
pub mod doctor;
pub mod workload;
