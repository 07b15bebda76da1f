//! Where user code puts the records that it makes.
//!
//! What records lead to is gathered in one vector per batch and handed on together. User code gets it as
//! a [`Collector`], which can be added to: with the vector itself in hand, an `out.clear()` meant for one
//! record's output took away that of others, without a word. It is there against that mistake. It is no
//! wall: whoever wants to can put another collector in its place.

use std::io;

use super::append;

/// Records, or bytes of output, to add to.
///
/// ```
/// use tidegate::record::Collector;
///
/// fn words(line: &str, out: &mut Collector<String>) {
///     out.extend(line.split(' ').map(String::from));
/// }
///
/// let mut made = vec!["before".to_string()];
/// words("to be", Collector::over(&mut made));
/// assert_eq!(made, ["before", "to", "be"]);
/// ```
///
/// It has no way to take something out again:
///
/// ```compile_fail
/// # use tidegate::record::Collector;
/// fn anew(out: &mut Collector<u64>) {
///     out.clear();
/// }
/// ```
#[repr(transparent)]
pub struct Collector<T>(Vec<T>);

impl<T> Collector<T> {
    /// Adds to the end of `records`: to call from a test what is otherwise called by the engine.
    #[inline]
    pub fn over(records: &mut Vec<T>) -> &mut Self {
        let records: *mut Vec<T> = records;
        // SAFETY: the collector is a vector in memory, borrowed for as long as the vector is.
        unsafe { &mut *records.cast::<Self>() }
    }

    /// How many are in it: of the batch so far, not of one record.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is in it.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds one.
    #[inline]
    pub fn push(&mut self, record: T) {
        self.0.push(record);
    }

    /// Adds those of an iterator that knows how many it has; faster than [`Extend`].
    #[inline]
    pub fn append(&mut self, records: impl ExactSizeIterator<Item = T>) {
        append(&mut self.0, records);
    }

    /// Adds copies.
    #[inline]
    pub fn extend_from_slice(&mut self, records: &[T])
    where
        T: Clone,
    {
        self.0.extend_from_slice(records);
    }
}

impl<T> Extend<T> for Collector<T> {
    #[inline]
    fn extend<I: IntoIterator<Item = T>>(&mut self, records: I) {
        self.0.extend(records);
    }
}

impl<'a, T: Copy + 'a> Extend<&'a T> for Collector<T> {
    #[inline]
    fn extend<I: IntoIterator<Item = &'a T>>(&mut self, records: I) {
        self.0.extend(records);
    }
}

/// For `write!`; never fails.
impl io::Write for Collector<u8> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_is_added_stands_behind_what_was_there() {
        let mut records = vec![1];
        let out = Collector::over(&mut records);
        assert!(!out.is_empty());
        out.push(2);
        out.extend([3]);
        out.extend(&[4]);
        out.append([5, 6].into_iter());
        out.extend_from_slice(&[7]);
        assert_eq!(out.len(), 7);
        assert_eq!(records, [1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn text_is_written_into_it() {
        let mut bytes = Vec::new();
        writeln!(Collector::over(&mut bytes), "the {}", 3).unwrap();
        assert_eq!(bytes, b"the 3\n");
    }
}
