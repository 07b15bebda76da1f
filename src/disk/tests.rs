//! The same behaviour asked of every disk, then what only the disk in memory can show.

use super::*;
