//! Atomics, cells and slot accesses: the standard ones, or loom's when the ring is model-checked.
//!
//! Owns the switch (`--cfg tidegate_loom`, not `loom`: that name changes dependencies too). Every
//! file of the ring takes its primitives from here.
//!
//! Invariants
//! - Outside the model check everything here compiles to nothing or to the plain operation.

#[cfg(all(test, tidegate_loom))]
pub(super) use checked::*;
#[cfg(not(all(test, tidegate_loom)))]
pub(super) use plain::*;

#[cfg(not(all(test, tidegate_loom)))]
mod plain {
    use std::ops::Range;
    pub(in super::super) use std::sync::Arc;
    pub(in super::super) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    /// A cell in the shape of loom's.
    pub(in super::super) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(in super::super) fn new(value: T) -> Self {
            Self(std::cell::UnsafeCell::new(value))
        }

        #[inline]
        pub(in super::super) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
            read(self.0.get())
        }

        #[inline]
        pub(in super::super) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
            write(self.0.get())
        }
    }

    /// Tells loom who touches which slot when; here, nobody.
    pub(in super::super) struct Accesses;

    /// An access that lasts until it is ended.
    pub(in super::super) struct Access;

    impl Accesses {
        pub(in super::super) fn new(_slots: usize) -> Self {
            Self
        }

        #[inline]
        pub(in super::super) fn begin(&self, _indices: impl FnOnce() -> Range<usize>) -> Access {
            Access
        }
    }

    impl Access {
        #[inline]
        pub(in super::super) fn end(&mut self) {}
    }
}

#[cfg(all(test, tidegate_loom))]
mod checked {
    use std::ops::Range;

    pub(in super::super) use loom::cell::UnsafeCell;
    pub(in super::super) use loom::sync::Arc;
    pub(in super::super) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    /// One cell per slot: loom reports two accesses that nothing orders.
    pub(in super::super) struct Accesses(Vec<UnsafeCell<()>>);

    /// An access that lasts until it is ended.
    pub(in super::super) struct Access(Vec<loom::cell::MutPtr<()>>);

    impl Accesses {
        pub(in super::super) fn new(slots: usize) -> Self {
            Self((0..slots).map(|_| UnsafeCell::new(())).collect())
        }

        pub(in super::super) fn begin(&self, indices: impl FnOnce() -> Range<usize>) -> Access {
            Access(self.0[indices()].iter().map(UnsafeCell::get_mut).collect())
        }
    }

    impl Access {
        pub(in super::super) fn end(&mut self) {
            self.0.clear();
        }
    }
}
