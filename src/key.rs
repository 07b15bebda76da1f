//! Keys: what state is grouped by, and the partitioning hash.
//!
//! Owns the [`Key`] trait and the hash functions behind it. The hash is *part of the on-disk
//! format*: a snapshot stores state by hash, and key groups, its top seven bits, say whose it is, so neither
//! function ever changes. `std::hash::Hash` is not used because what it feeds to a hasher may
//! differ between versions of Rust.
//!
//! - integers: `fold(x ^ A, B)` with the constants below, where `fold(a, b)` is the high and the
//!   low half of the 128-bit product, XORed (the multiply-fold of wyhash);
//! - byte strings: XXH3-64 with seed 0 (a published, frozen specification);
//! - tuples: `combine(first, second)`.
//!
//! A key type of one's own needs the three rkyv derives, `Eq`, `Clone` and a hash made of the
//! functions here:
//! ```
//! use rkyv::{Archive, Deserialize, Serialize};
//! use tidegate::key::{Key, combine, hash_word};
//!
//! #[derive(Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
//! struct Cell {
//!     row: u64,
//!     column: u64,
//! }
//!
//! impl Key for Cell {
//!     fn key_hash(&self) -> u64 {
//!         combine(hash_word(self.row), hash_word(self.column))
//!     }
//! }
//! ```
//! A struct of numbers without padding, as here, is kept in pages as it is. A key that *is* a byte
//! string says so with [`Key::BYTES`] and is kept in pages too. Every other key works, more slowly:
//! see [`crate::state`].

use smallvec::SmallVec;

use crate::record::Record;

const A: u64 = 0x9E37_79B9_7F4A_7C15;
const B: u64 = 0xBF58_476D_1CE4_E5B9;

/// Hash of one machine word.
#[inline]
#[must_use]
pub fn hash_word(word: u64) -> u64 {
    let product = u128::from(word ^ A) * u128::from(B);
    (product as u64) ^ ((product >> 64) as u64)
}

/// Hash of a byte string.
#[inline]
#[must_use]
pub fn hash_bytes(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// Hash of a pair from the hashes of its parts.
#[inline]
#[must_use]
pub fn combine(first: u64, second: u64) -> u64 {
    hash_word(first.rotate_left(29) ^ second)
}

/// What records are grouped by.
///
/// Equal keys must have equal hashes, on every machine and in every version of the program.
pub trait Key: Record + Eq {
    /// How to see this key as a byte string, if it is one.
    const BYTES: Option<ByteKey<Self>> = None;

    /// 64 well-mixed bits; the top seven are the key group.
    fn key_hash(&self) -> u64;
}

/// How a key that is a byte string is taken apart and put together. Keys are equal exactly if their
/// bytes are.
///
/// ```
/// use rkyv::{Archive, Deserialize, Serialize};
/// use tidegate::key::{ByteKey, Key, hash_bytes};
///
/// #[derive(Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
/// struct Url(String);
///
/// impl Key for Url {
///     const BYTES: Option<ByteKey<Self>> = Some(ByteKey {
///         bytes: |url| url.0.as_bytes(),
///         from_bytes: |bytes| String::from_utf8(bytes.to_vec()).ok().map(Url),
///         hash: hash_bytes,
///     });
///
///     fn key_hash(&self) -> u64 {
///         hash_bytes(self.0.as_bytes())
///     }
/// }
/// ```
pub struct ByteKey<K> {
    /// The bytes of a key.
    pub bytes: fn(&K) -> &[u8],
    /// The key with these bytes; `None` if there is none.
    pub from_bytes: fn(&[u8]) -> Option<K>,
    /// [`Key::key_hash`] of the key with these bytes.
    pub hash: fn(&[u8]) -> u64,
}

macro_rules! integer_keys {
    ($($int:ty),*) => {$(
        impl Key for $int {
            #[inline]
            fn key_hash(&self) -> u64 {
                hash_word(*self as u64)
            }
        }
    )*};
}
integer_keys!(u8, u16, u32, u64, i8, i16, i32, i64);

impl Key for String {
    const BYTES: Option<ByteKey<Self>> = Some(ByteKey {
        bytes: String::as_bytes,
        from_bytes: |bytes| String::from_utf8(bytes.to_vec()).ok(),
        hash: hash_bytes,
    });

    #[inline]
    fn key_hash(&self) -> u64 {
        hash_bytes(self.as_bytes())
    }
}

impl Key for Vec<u8> {
    const BYTES: Option<ByteKey<Self>> = Some(ByteKey {
        bytes: Vec::as_slice,
        from_bytes: |bytes| Some(bytes.to_vec()),
        hash: hash_bytes,
    });

    #[inline]
    fn key_hash(&self) -> u64 {
        hash_bytes(self)
    }
}

impl<const N: usize> Key for SmallVec<[u8; N]>
where
    SmallVec<[u8; N]>: Record,
{
    const BYTES: Option<ByteKey<Self>> = Some(ByteKey {
        bytes: |key| key,
        from_bytes: |bytes| Some(SmallVec::from_slice(bytes)),
        hash: hash_bytes,
    });

    #[inline]
    fn key_hash(&self) -> u64 {
        hash_bytes(self)
    }
}

impl<K: Key, L: Key> Key for (K, L)
where
    (K, L): Record,
{
    #[inline]
    fn key_hash(&self) -> u64 {
        combine(self.0.key_hash(), self.1.key_hash())
    }
}
