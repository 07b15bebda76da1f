//! Which types are *plain*: their memory is their archive.
//!
//! A plain value may be copied byte by byte, lies in a page as it is, and its page can be written to
//! disk as it is. rkyv 0.8 calls that the copy optimisation and grants it to numbers, `bool`, `char`,
//! arrays of such, and derived structs without type parameters, padding or `with` attributes whose
//! fields lie where the archive's do. It never grants it to tuples, so [`is_plain`] adds those of
//! two, three or four numbers of the same width, after checking that each field lies where the
//! archive's does. A value of any other shape: name it with a derived struct and it is plain.
//!
//! Invariants
//! - A plain type has no drop glue, no uninitialised byte, and the size of its archive.
//! - Bytes that pass the archive's `CheckBytes` are a valid value. This follows for everything rkyv
//!   implements or derives; whoever enables the copy optimisation by hand (it is `unsafe`) vouches
//!   for both directions.

use std::any::TypeId;
use std::mem::{needs_drop, offset_of};

use rkyv::Archive;
use rkyv::tuple::{ArchivedTuple2, ArchivedTuple3, ArchivedTuple4};

use super::memory::PAGE_ALIGN;

/// Whether the memory of a `T` is its archive. A constant once compiled.
#[must_use]
pub(super) fn is_plain<T: Archive + 'static>() -> bool {
    (T::COPY_OPTIMIZATION.is_enabled() || is_plain_tuple::<T>())
        && !needs_drop::<T>()
        && size_of::<T>() == size_of::<T::Archived>()
        && align_of::<T>() >= align_of::<T::Archived>()
        && align_of::<T>() <= PAGE_ALIGN
}

fn is_plain_tuple<T: 'static>() -> bool {
    /// Pairs, triples and quadruples of one kind of number.
    macro_rules! of_one {
        ($($n:ty),+) => {
            $(is_pair::<T, $n, $n>() || is_triple::<T, $n>() || is_quadruple::<T, $n>())||+
        };
    }
    /// Pairs of two kinds.
    macro_rules! of_two {
        ($(($a:ty, $b:ty)),+) => { $(is_pair::<T, $a, $b>() || is_pair::<T, $b, $a>())||+ };
    }
    of_one!(u8, i8, u16, i16, u32, i32, f32, u64, i64, f64, u128, i128)
        || of_two!((u64, i64), (u64, f64), (i64, f64), (u32, i32), (u32, f32), (i32, f32))
}

/// Whether `T` is the pair and each field lies where its archive's does.
fn is_pair<T: 'static, A: Archive + 'static, B: Archive + 'static>() -> bool {
    type Archived<A, B> = ArchivedTuple2<rkyv::Archived<A>, rkyv::Archived<B>>;
    TypeId::of::<T>() == TypeId::of::<(A, B)>()
        && A::COPY_OPTIMIZATION.is_enabled()
        && B::COPY_OPTIMIZATION.is_enabled()
        && size_of::<T>() == size_of::<A>() + size_of::<B>()
        && offset_of!((A, B), 0) == offset_of!(Archived<A, B>, 0)
        && offset_of!((A, B), 1) == offset_of!(Archived<A, B>, 1)
}

fn is_triple<T: 'static, A: Archive + 'static>() -> bool {
    type Archived<A> = ArchivedTuple3<rkyv::Archived<A>, rkyv::Archived<A>, rkyv::Archived<A>>;
    TypeId::of::<T>() == TypeId::of::<(A, A, A)>()
        && A::COPY_OPTIMIZATION.is_enabled()
        && size_of::<T>() == 3 * size_of::<A>()
        && offset_of!((A, A, A), 0) == offset_of!(Archived<A>, 0)
        && offset_of!((A, A, A), 1) == offset_of!(Archived<A>, 1)
        && offset_of!((A, A, A), 2) == offset_of!(Archived<A>, 2)
}

fn is_quadruple<T: 'static, A: Archive + 'static>() -> bool {
    type One<A> = rkyv::Archived<A>;
    type Archived<A> = ArchivedTuple4<One<A>, One<A>, One<A>, One<A>>;
    TypeId::of::<T>() == TypeId::of::<(A, A, A, A)>()
        && A::COPY_OPTIMIZATION.is_enabled()
        && size_of::<T>() == 4 * size_of::<A>()
        && offset_of!((A, A, A, A), 0) == offset_of!(Archived<A>, 0)
        && offset_of!((A, A, A, A), 1) == offset_of!(Archived<A>, 1)
        && offset_of!((A, A, A, A), 2) == offset_of!(Archived<A>, 2)
        && offset_of!((A, A, A, A), 3) == offset_of!(Archived<A>, 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rkyv::{Deserialize, Serialize};

    #[derive(Archive, Serialize, Deserialize)]
    struct Count {
        count: u64,
        first: u32,
        last: u32,
    }

    #[derive(Archive, Serialize, Deserialize)]
    struct Padded {
        count: u64,
        flag: u8,
    }

    #[test]
    fn numbers_arrays_structs_without_padding_and_equal_tuples_are_plain() {
        assert!(is_plain::<()>() && is_plain::<u64>() && is_plain::<bool>() && is_plain::<char>());
        assert!(is_plain::<[u64; 2]>() && is_plain::<[[u8; 3]; 5]>() && is_plain::<Count>());
        assert!(is_plain::<(u64, u64)>() && is_plain::<(i32, i32, i32)>());
        assert!(is_plain::<(u64, f64)>() && is_plain::<(u64, u64, u64, u64)>());
    }

    #[test]
    fn pointers_padding_and_other_tuples_are_not() {
        assert!(!is_plain::<String>() && !is_plain::<Vec<u8>>() && !is_plain::<Option<u64>>());
        assert!(!is_plain::<Padded>() && !is_plain::<(u64, u8)>() && !is_plain::<(u64, String)>());
    }
}
