//! The memory of an operation: plain, or aligned as direct I/O wants it.

use std::ops::{Deref, DerefMut};

use super::Buffer;

/// Bytes on their way to or from a disk. Whoever sends aligned memory gets aligned memory back.
#[derive(Debug)]
pub enum Bytes {
    /// Anywhere in memory.
    Plain(Vec<u8>),
    /// At a multiple of 4096; the only kind for a file that was opened to be written directly.
    Aligned(Buffer),
}

impl Bytes {
    /// Forgets what is behind `length`.
    pub(super) fn truncate(&mut self, length: usize) {
        match self {
            Self::Plain(bytes) => bytes.truncate(length),
            Self::Aligned(bytes) => bytes.resize(length.min(bytes.len()), 0),
        }
    }

    /// The vector, copied if it was aligned.
    #[must_use]
    pub fn into_plain(self) -> Vec<u8> {
        match self {
            Self::Plain(bytes) => bytes,
            Self::Aligned(bytes) => bytes.to_vec(),
        }
    }

    /// The aligned memory; none if it was plain.
    #[must_use]
    pub fn into_aligned(self) -> Option<Buffer> {
        match self {
            Self::Plain(_) => None,
            Self::Aligned(bytes) => Some(bytes),
        }
    }
}

impl Default for Bytes {
    fn default() -> Self {
        Self::Plain(Vec::new())
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Plain(bytes) => bytes,
            Self::Aligned(bytes) => bytes,
        }
    }
}

impl DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Plain(bytes) => bytes,
            Self::Aligned(bytes) => bytes,
        }
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Plain(bytes)
    }
}

impl From<Buffer> for Bytes {
    fn from(bytes: Buffer) -> Self {
        Self::Aligned(bytes)
    }
}
