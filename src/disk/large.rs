//! Large pages for long lists: a restart waits for lists of all pages of the state, and new memory costs it
//! a fault for each 4 KiB.

#![expect(unsafe_code, reason = "the system is advised about memory by its address")]

use rustix::mm::{Advice, madvise};

use super::DIRECT_BYTES;

/// The size of a large page on the machines we know; for shorter lists nothing is asked.
const LARGE_PAGE_BYTES: usize = 2 << 20;

/// A list with memory for `capacity` elements, in large pages where it is that long and the system has some.
#[must_use]
pub fn long_list<T>(capacity: usize) -> Vec<T> {
    let mut list = Vec::with_capacity(capacity);
    advise(&mut list);
    list
}

/// Sees to it that `list` has room for `more` elements, as [`long_list`] does, and for twice as many as
/// before.
pub fn reserve<T>(list: &mut Vec<T>, more: usize) {
    if list.capacity() - list.len() >= more {
        return;
    }
    // Advised before the first byte is written: a vector that grows by itself is moved first.
    let mut longer = Vec::with_capacity((list.len() + more).max(2 * list.capacity()));
    advise(&mut longer);
    longer.append(list);
    *list = longer;
}

/// So many zeros.
#[must_use]
pub fn zeros(count: usize) -> Vec<u8> {
    // The system's own zeros, which nobody has to write; they get their pages when they are touched.
    let mut list = vec![0; count];
    advise(&mut list);
    list
}

fn advise<T>(list: &mut Vec<T>) {
    let begin = list.as_mut_ptr().cast::<u8>();
    let skipped = begin.align_offset(DIRECT_BYTES);
    let bytes = (list.capacity() * size_of::<T>()).saturating_sub(skipped);
    if bytes < LARGE_PAGE_BYTES {
        return;
    }
    let (begin, whole) = (begin.wrapping_add(skipped), bytes / DIRECT_BYTES * DIRECT_BYTES);
    // SAFETY: the range is part of the list's own memory, and the advice changes no byte of it.
    let advised = unsafe { madvise(begin.cast(), whole, Advice::LinuxHugepage) };
    // A system that has no large pages, or is told not to give any, gives small ones.
    _ = advised;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_a_list_whatever_the_pages_are() {
        assert!(zeros(5_000_000).iter().all(|byte| *byte == 0));
        for capacity in [0, 1, 1 << 17, 1 << 18, (1 << 19) + 1] {
            let mut list = long_list::<u64>(capacity);
            assert!(list.capacity() >= capacity && list.is_empty());
            list.extend(0..capacity as u64);
            reserve(&mut list, 300_000);
            list.extend(capacity as u64..capacity as u64 + 300_000);
            assert!(list.iter().copied().eq(0..capacity as u64 + 300_000));
        }
    }
}
