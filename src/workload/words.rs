//! What a word is.
//!
//! A word is a maximal run of bytes that are not ASCII white space. White space is space (0x20), tab
//! (0x09), line feed (0x0A), vertical tab (0x0B), form feed (0x0C) and carriage return (0x0D): the
//! `isspace` of the C locale. (`u8::is_ascii_whitespace` leaves out the vertical tab.) All
//! other bytes are part of words: control bytes, punctuation, invalid UTF-8 and the bytes of
//! non-ASCII spaces.
//!
//! Invariants
//! - Words are found in order, are never empty and do not touch each other.

/// The words of `line`, which may also be a text of many lines.
///
/// ```
/// use tidegate::workload::words::words;
/// let found: Vec<&[u8]> = words(b"to be,\tor\x0bnot \r\n").collect();
/// assert_eq!(found, [&b"to"[..], b"be,", b"or", b"not"]);
/// ```
#[inline]
#[must_use]
pub fn words(line: &[u8]) -> Words<'_> {
    Words { rest: line }
}

/// Whether `byte` separates words.
#[inline]
#[must_use]
pub const fn is_white_space(byte: u8) -> bool {
    matches!(byte, b' ' | 0x09..=0x0D)
}

/// Iterator of [`words`].
#[derive(Clone, Debug)]
pub struct Words<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        // Separators are nearly always one byte long, words are not: so bytes here, blocks there.
        while let [first, rest @ ..] = self.rest {
            if !is_white_space(*first) {
                let (word, rest) = self.rest.split_at(word_length(self.rest));
                self.rest = rest;
                return Some(word);
            }
            self.rest = rest;
        }
        None
    }
}

impl std::iter::FusedIterator for Words<'_> {}

/// How many bytes stand before the first white space.
#[inline]
fn word_length(bytes: &[u8]) -> usize {
    let mut length = 0;
    while let Some(block) = bytes.get(length..).and_then(<[u8]>::first_chunk) {
        let marks = white_space_marks(u64::from_le_bytes(*block));
        if marks != 0 {
            return length + marks.trailing_zeros() as usize / 8;
        }
        length += 8;
    }
    let tail = &bytes[length..];
    length + tail.iter().position(|byte| is_white_space(*byte)).unwrap_or(tail.len())
}

/// The top bit of every byte of `block` that is white space. No carry crosses a byte: each sum is
/// below 0x100, so the marks are exact and the lowest is the first in memory.
#[inline]
const fn white_space_marks(block: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    const TOP: u64 = 0x80 * EACH;
    let low = block & !TOP;
    let at_least_tab = low + (0x80 - 0x09) * EACH;
    let above_return = low + (0x80 - 0x0E) * EACH;
    let not_space = (low ^ (0x20 * EACH)) + 0x7F * EACH;
    ((at_least_tab & !above_return) | !not_space) & !block & TOP
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Byte by byte and by the definition.
    fn by_definition(text: &[u8]) -> Vec<&[u8]> {
        let parts = text.split(|byte| b" \t\n\x0b\x0c\r".contains(byte));
        parts.filter(|word| !word.is_empty()).collect()
    }

    #[test]
    fn a_block_marks_exactly_its_white_space_whatever_stands_beside_it() {
        for byte in 0..=u8::MAX {
            for beside in [0, b' ', b'\t', 0x0D, 0x0E, 0x7F, 0x80, 0x89, 0xA0, 0xFF] {
                for place in 0..8 {
                    let mut block = [beside; 8];
                    block[place] = byte;
                    let expected = block.map(|b| if is_white_space(b) { 0x80 } else { 0 });
                    let marks = white_space_marks(u64::from_le_bytes(block));
                    assert_eq!(marks.to_le_bytes(), expected, "{block:02x?}");
                }
            }
        }
    }

    #[test]
    fn exactly_six_bytes_are_white_space() {
        let found: Vec<u8> = (0..=u8::MAX).filter(|byte| is_white_space(*byte)).collect();
        assert_eq!(found, [9, 10, 11, 12, 13, 32]);
    }

    proptest! {
        #[test]
        fn words_are_those_of_the_definition(text in prop::collection::vec(
            prop_oneof![3 => Just(b' '), 3 => 8..15_u8, 20 => any::<u8>()], 0..200)
        ) {
            prop_assert_eq!(words(&text).collect::<Vec<_>>(), by_definition(&text));
        }
    }
}
