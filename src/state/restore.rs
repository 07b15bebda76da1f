//! Proof of a page that comes back from disk.
//!
//! The frame's checksum says that the bytes are what was written; this file says that they are a
//! page, so that not even bytes that were made to pass the checksum can do harm.
//!
//! Invariants
//! - Nothing is allocated before the sizes were found to fit the bytes there are.
//! - No key or value is looked at before its bytes passed rkyv's check.
//! - A page that is returned keeps every invariant of [`super::page`] and belongs to its group.

#![expect(unsafe_code, reason = "bytes become a page, and slots are checked in place")]

use rkyv::api::high::HighValidator;
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor;
use rkyv::validation::Validator;
use rkyv::validation::archive::ArchiveValidator;
use rkyv::validation::shared::SharedValidator;

use super::directory::{GROUP_BITS, prefix_of};
use super::page::{HEADER_BYTES, HOMES_MIN, Header, Page, PageBox, entries_max};
use super::slot::SlotLayout;
use crate::id::KeyGroup;
use crate::key::Key;
use crate::record::Data;

/// The page at the start of `bytes`, and what follows it.
pub(super) fn page<K: Key, V: Data>(
    group: KeyGroup,
    bytes: &[u8],
) -> Result<(PageBox<K, V>, &[u8]), String> {
    let header = header(bytes).ok_or("a page is cut off in its header")?;
    check_header::<K, V>(group, &header)?;
    let size = PageBox::<K, V>::heap_at(header.homes as usize)
        .checked_add(header.heap_used as usize)
        .filter(|size| *size <= bytes.len())
        .ok_or_else(|| format!("a page of {} homes is cut off", header.homes))?;
    let (bytes, behind) = bytes.split_at(size);
    let header = Header { heap_capacity: header.heap_used, ..header };
    // SAFETY: the header was read from these bytes, its sizes checked, and they are exactly a page.
    let page = unsafe { PageBox::<K, V>::from_bytes(&header, bytes) };
    check_tags(page.page())?;
    check_slots(page.page())?;
    check_places(page.page())?;
    Ok((page, behind))
}

fn header(bytes: &[u8]) -> Option<Header> {
    let bytes = bytes.get(..HEADER_BYTES)?;
    let half = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    Some(Header {
        magic: half(0),
        depth: half(4),
        prefix: u64::from(half(8)) | u64::from(half(12)) << 32,
        homes: half(16),
        len: half(20),
        key_bytes: half(24),
        value_bytes: half(28),
        heap_used: half(32),
        heap_live: half(36),
        heap_capacity: half(40),
        reserved: [half(44), half(48), half(52), half(56), half(60)],
    })
}

fn check_header<K: Key, V: Data>(group: KeyGroup, header: &Header) -> Result<(), String> {
    let (key_bytes, value_bytes) = (SlotLayout::<K, V>::KEY_BYTES, size_of::<V>());
    if header.magic != Header::MAGIC || header.reserved != [0; 5] {
        return Err(format!("not a page: it starts with {:08x}", header.magic));
    }
    if (header.key_bytes as usize, header.value_bytes as usize) != (key_bytes, value_bytes) {
        return Err(format!(
            "keys and values of {} and {} bytes, expected {key_bytes} and {value_bytes}",
            header.key_bytes, header.value_bytes
        ));
    }
    let homes = header.homes as usize;
    let is_prefix = (GROUP_BITS..=64).contains(&header.depth)
        && prefix_of(header.prefix, header.depth) == header.prefix;
    let is_homes = homes >= HOMES_MIN && homes.is_multiple_of(SlotLayout::<K, V>::BUCKET);
    if !is_prefix || !is_homes || header.len as usize > entries_max(homes) {
        return Err(format!(
            "a page of {} entries, {homes} homes, prefix {:x} of {} bits",
            header.len, header.prefix, header.depth
        ));
    }
    if KeyGroup::of_hash(header.prefix) != group {
        return Err(format!("a page of prefix {:x} in key group {}", header.prefix, group.0));
    }
    Ok(())
}

fn check_tags<K: Key, V: Data>(page: Page<'_, K, V>) -> Result<(), String> {
    let slots = page.slots();
    let is_ended = (slots..slots + 8).all(|index| page.tag(index) == 0);
    let are_tags = (0..slots).map(|index| page.tag(index)).all(|tag| tag == 0 || tag >= 0x80);
    let live = page.live().count();
    if !is_ended || !are_tags || live != page.len() {
        return Err(format!("a page of {} entries has {live}, or damaged tags", page.len()));
    }
    Ok(())
}

/// Checks every live key and value by itself.
fn check_slots<K: Key, V: Data>(page: Page<'_, K, V>) -> Result<(), String> {
    let mut validator = Validator::new(ArchiveValidator::new(page.bytes()), SharedValidator::new());
    let context = rancor::Strategy::wrap(&mut validator);
    let mut heap_live = 0;
    for index in page.live() {
        match K::BYTES {
            Some(byte_key) => {
                let slot = page.byte_slot(index);
                let (len, offset) = slot.heap_range().unwrap_or_default();
                heap_live += len;
                if offset + len > page.header().heap_used as usize {
                    return Err(format!("a key of {len} bytes lies outside its page"));
                }
                if slot.heap_range().is_none() && slot.inline_len() > super::slot::INLINE_BYTES {
                    return Err(format!("a short key of {} bytes", slot.inline_len()));
                }
                let bytes = page.key_bytes(index);
                if !slot.is_of(bytes, (byte_key.hash)(bytes))
                    || (byte_key.from_bytes)(bytes).is_none()
                {
                    return Err(format!("{} bytes that are not a key", bytes.len()));
                }
            }
            None => check::<K>(page.key_ptr(index).as_ptr(), context)?,
        }
        check::<V>(page.value_ptr(index).as_ptr(), context)?;
    }
    if heap_live != page.header().heap_live as usize {
        return Err(format!("keys of {heap_live} bytes, not {}", page.header().heap_live));
    }
    Ok(())
}

fn check<T: Data>(
    place: *const T,
    context: &mut HighValidator<'_, rancor::BoxedError>,
) -> Result<(), String> {
    // SAFETY: the place is initialised memory of the size and alignment of a `T`, which is plain
    // and so those of its archive.
    let checked = unsafe { T::Archived::check_bytes(place.cast(), context) };
    checked.map_err(|error| format!("an entry is not valid: {error}"))
}

/// Checks that every entry belongs to this page and is found where it lies.
fn check_places<K: Key, V: Data>(page: Page<'_, K, V>) -> Result<(), String> {
    let header = page.header();
    for index in page.live() {
        let hash = page.hash_at(index);
        let is_here = prefix_of(hash, header.depth) == header.prefix;
        if !is_here || !page.is_in_place(index, hash) {
            return Err(format!("an entry of prefix {:x} lies in a wrong place", header.prefix));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::super::{Cursor, Drained, KeyedTable, OperatorState, StateWriter};
    use super::*;
    use crate::id::{SnapshotId, StateSlot};

    #[derive(Default)]
    struct Pieces(Vec<(StateSlot, u32, Vec<u8>)>);

    impl StateWriter for Pieces {
        fn write(&mut self, slot: StateSlot, schema: u32, bytes: &[u8]) {
            self.0.push((slot, schema, bytes.to_vec()));
        }
    }

    /// The pieces of a table of `count` entries.
    fn pieces<K: Key, V: Data>(count: u32, key: fn(u32) -> K, value: fn(u32) -> V) -> Pieces {
        let mut table = KeyedTable::<K, V>::new(0..128);
        for key in (0..count).map(|i| (i, key(i))) {
            table.insert(key.1.key_hash(), &key.1, value(key.0));
        }
        table.mark(SnapshotId(1));
        let mut pieces = Pieces::default();
        assert_eq!(table.drain(usize::MAX, &mut pieces).unwrap(), Drained::Done);
        pieces
    }

    /// Damages a piece as `damage` says and takes it back: an error, or a table that works.
    fn take_damaged<K: Key, V: Data>(pieces: &Pieces, damage: &[(usize, u8)], cut: usize) {
        let (slot, schema, bytes) = &pieces.0[damage[0].0 % pieces.0.len()];
        let mut bytes = bytes.clone();
        for (place, byte) in damage {
            let place = place % bytes.len();
            bytes[place] = *byte;
        }
        bytes.truncate(bytes.len() - cut % bytes.len());
        let mut table = KeyedTable::<K, V>::new(0..128);
        if table.restore(*slot, *schema, &bytes).is_err() {
            return;
        }
        let StateSlot::KeyGroup(group) = *slot else { unreachable!() };
        let mut entries = Vec::new();
        assert!(!table.entries(group, &mut Cursor::default(), usize::MAX, &mut entries));
        assert_eq!(entries.len(), table.len());
        for (key, _) in entries {
            assert!(table.remove(key.key_hash(), &key).is_some());
        }
        assert!(table.is_empty());
    }

    fn word(i: u32) -> String {
        "x".repeat((i % 30) as usize) + &i.to_string()
    }

    /// Few places and telling values, so that headers, tags and slots are hit often.
    fn damage() -> impl Strategy<Value = (Vec<(usize, u8)>, usize)> {
        let place = prop_oneof![0..64usize, 0..20_000usize];
        let byte = prop_oneof![Just(0), Just(1), Just(0x80), Just(0xFF), any::<u8>()];
        let cut = prop_oneof![3 => Just(0usize), 1 => 0..5000usize];
        (prop::collection::vec((place, byte), 1..4), cut)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        #[test]
        fn damaged_numbers_are_an_error_or_a_table(damage in damage()) {
            static PIECES: LazyLock<Pieces> = LazyLock::new(|| pieces::<u64, u64>(9000, u64::from, u64::from));
            take_damaged::<u64, u64>(&PIECES, &damage.0, damage.1);
        }

        #[test]
        fn damaged_values_with_invalid_bytes_are_an_error_or_a_table(damage in damage()) {
            static PIECES: LazyLock<Pieces> = LazyLock::new(|| pieces::<u32, [char; 2]>(9000, |i| i, |_| ['a', '\u{10FFFF}']));
            take_damaged::<u32, [char; 2]>(&PIECES, &damage.0, damage.1);
        }

        #[test]
        fn damaged_words_are_an_error_or_a_table(damage in damage()) {
                        static PIECES: LazyLock<Pieces> = LazyLock::new(|| pieces::<String, bool>(6000, word, |i| i % 2 == 0));
            take_damaged::<String, bool>(&PIECES, &damage.0, damage.1);
        }

        #[test]
        fn damaged_native_entries_are_an_error_or_a_table(damage in damage()) {
            static PIECES: LazyLock<Pieces> = LazyLock::new(|| pieces::<u64, Vec<String>>(900, u64::from, |i| vec![i.to_string()]));
            take_damaged::<u64, Vec<String>>(&PIECES, &damage.0, damage.1);
        }
    }

    #[test]
    fn a_piece_is_refused_with_the_reason() {
        let written = pieces::<u64, u64>(1000, u64::from, u64::from);
        let (slot, schema, bytes) = &written.0[0];
        let refuse = |slot: StateSlot, schema: u32, bytes: &[u8]| {
            KeyedTable::<u64, u64>::new(0..64).restore(slot, schema, bytes).unwrap_err()
        };
        let other = StateSlot::KeyGroup(KeyGroup(77));
        assert!(refuse(*slot, 9, bytes).contains("schema 9, expected 1"));
        assert!(refuse(other, *schema, bytes).contains("key group 77 is not of this task"));
        assert!(refuse(StateSlot::Task(0), *schema, bytes).contains("not a key group"));
        assert!(refuse(*slot, *schema, &bytes[..40]).contains("cut off"));
        assert!(refuse(*slot, *schema, &bytes[..bytes.len() - 1]).contains("cut off"));
        assert!(refuse(*slot, *schema, &bytes.repeat(2)).contains("twice"));
        let mut wide = KeyedTable::<u64, [u64; 2]>::new(0..64);
        let refused = wide.restore(*slot, *schema, bytes).unwrap_err();
        assert!(refused.contains("8 and 8 bytes, expected 8 and 16"), "{refused}");
    }
}
