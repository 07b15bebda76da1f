//! The store on every disk, and what crashes and damage make of it.

use super::*;
