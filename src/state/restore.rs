//! Proof of a page that comes back from disk.
//!
//! Its checksum says that the bytes are what was written; this file says that they are a page of the
//! table's types and of the range that the index names, so that no later access leaves the page's
//! memory. It does no work per entry where every bit pattern is a valid key and value (numbers, arrays and
//! structs of such), and checks each entry where that is not so.
//!
//! What it does not prove is that every entry lies where a search for it ends: bytes that were made to
//! pass the checksum can hide entries or repeat them. Whoever can write such bytes can as well
//! write other counts; the directory has to be trusted as far as that.
//!
//! Invariants
//! - No key or value is looked at before its bytes passed rkyv's check.
//! - A page that is returned keeps every invariant of [`super::page`] that memory safety rests on.

#![expect(unsafe_code, reason = "bytes become a page, and slots are checked in place")]

use rkyv::api::high::HighValidator;
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor;
use rkyv::validation::Validator;
use rkyv::validation::archive::ArchiveValidator;
use rkyv::validation::shared::SharedValidator;

use super::exchange::PageEntry;
use super::memory::Room;
use super::page::{HOMES_MIN, Header, Page, PageBox, slots_of};
use super::slot::{INLINE_BYTES, SlotLayout};
use crate::key::Key;
use crate::record::Data;

/// The page that was read into `room`, as `entry` names it.
pub(super) fn page<K: Key, V: Data>(
    entry: &PageEntry,
    room: Room,
) -> Result<PageBox<K, V>, String> {
    let found = crc32c::crc32c(room.bytes());
    if found != entry.crc32c {
        return Err(format!("a page has checksum {found:08x}, {:08x} was written", entry.crc32c));
    }
    let header = Header::of(room.bytes()).ok_or("a page is cut off in its header")?;
    check_header::<K, V>(entry, &header)?;
    // SAFETY: the header was read from these bytes, and its sizes were found to come to their number.
    let page = unsafe { PageBox::restored(room, &header) };
    check_tags(page.page())?;
    check_slots(page.page())?;
    Ok(page)
}

fn check_header<K: Key, V: Data>(entry: &PageEntry, header: &Header) -> Result<(), String> {
    let (key_bytes, value_bytes) = (SlotLayout::<K, V>::KEY_BYTES, size_of::<V>());
    if ![Header::MAGIC, Header::MAGIC_2].contains(&header.magic) || header.reserved != [0; 4] {
        return Err(format!("not a page: it starts with {:08x}", header.magic));
    }
    if (header.key_bytes as usize, header.value_bytes as usize) != (key_bytes, value_bytes) {
        return Err(format!(
            "keys and values of {} and {} bytes, expected {key_bytes} and {value_bytes}",
            header.key_bytes, header.value_bytes
        ));
    }
    let homes = header.homes as usize;
    let is_homes = homes >= HOMES_MIN && homes.is_multiple_of(SlotLayout::<K, V>::BUCKET);
    if !is_homes || header.len as usize > slots_of(homes) {
        return Err(format!("a page of {} entries and {homes} homes", header.len));
    }
    if (header.prefix, header.depth) != (entry.prefix, entry.depth) {
        let (found, depth) = (header.prefix, header.depth);
        return Err(format!(
            "a page of prefix {found:x} of {depth} bits, not {:x} of {}",
            entry.prefix, entry.depth
        ));
    }
    let size = PageBox::<K, V>::heap_at(homes).checked_add(header.heap_used as usize);
    if size != Some(entry.bytes as usize) {
        return Err(format!("a page of {homes} homes in {} bytes", entry.bytes));
    }
    Ok(())
}

fn check_tags<K: Key, V: Data>(page: Page<'_, K, V>) -> Result<(), String> {
    match page.count_tags() {
        Some(live) if live == page.len() => Ok(()),
        Some(live) => Err(format!("a page of {} entries has {live}", page.len())),
        None => Err("damaged tags".into()),
    }
}

/// Checks every live key and value by itself. Where any bytes are valid the loop is empty, and is
/// compiled to nothing.
fn check_slots<K: Key, V: Data>(page: Page<'_, K, V>) -> Result<(), String> {
    let mut validator = Validator::new(ArchiveValidator::new(page.bytes()), SharedValidator::new());
    let context = rancor::Strategy::wrap(&mut validator);
    for index in page.live() {
        match K::BYTES {
            Some(byte_key) => {
                let slot = page.byte_slot(index);
                if let Some((len, offset)) = slot.heap_range() {
                    if offset + len > page.header().heap_used as usize {
                        return Err(format!("a key of {len} bytes lies outside its page"));
                    }
                } else if slot.inline_len() > INLINE_BYTES {
                    return Err(format!("a short key of {} bytes", slot.inline_len()));
                }
                if (byte_key.from_bytes)(page.key_bytes(index)).is_none() {
                    return Err("bytes that are not a key".into());
                }
            }
            None => check::<K>(page.key_ptr(index).as_ptr(), context)?,
        }
        check::<V>(page.value_ptr(index).as_ptr(), context)?;
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
