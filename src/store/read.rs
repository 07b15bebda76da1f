//! Reading back: manifests, indices and pages, every length and checksum checked before use.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::chain::Content;
use super::index::Link;
use super::layout::{SlotNumber, manifest_name, segment_name};
use super::manifest::{Manifest, frame_error, from_frame};
use super::slots::SLOT_BYTES;
use super::{Loaded, StateEntry};
use crate::disk::{Disk, FileHandle, large};
use crate::error::{Error, Result};
use crate::frame::{self, FrameHeader, FrameKind};
use crate::id::SegmentId;
use crate::state::{PageEntry, PageSource, Place};

/// Memory for pages that are only looked at.
const VERIFY_BYTES: usize = 1 << 20;

/// The manifest in a slot; `None` in an empty one. What it names is not looked at.
pub(super) fn slot(disk: &dyn Disk, dir: &Path, slot: SlotNumber) -> Result<Option<Manifest>> {
    slot_at(disk, &dir.join(manifest_name(slot)))
}

/// The same, of a file by any name.
pub(super) fn slot_at(disk: &dyn Disk, path: &Path) -> Result<Option<Manifest>> {
    let bytes = disk.read(path).map_err(Error::io("read", path))?;
    if bytes.len() >= SLOT_BYTES && bytes.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    // Behind the frame lie zeros, or the end of a longer manifest that was here before.
    let (framed, manifest): (_, Manifest) = from_frame(path, FrameKind::Manifest, &bytes)?;
    if framed != manifest.id() {
        let found = manifest.snapshot;
        return Err(Error::corrupt(path, 16, format!("holds snapshot {found}, not {framed}")));
    }
    Ok(Some(manifest))
}

/// How thoroughly a snapshot is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// Its indices, and whether the files reach to the end of every page: time goes with the number
    /// of pages.
    Indices,
    /// Every byte: time goes with the size of the state.
    Pages,
}

/// Reads and checks what the manifest names.
pub(super) fn content(
    disk: &dyn Disk,
    dir: &Path,
    manifest: &Manifest,
    depth: Depth,
) -> Result<Content> {
    let mut content = Content::default();
    for part in &manifest.parts {
        content.read(disk, dir, manifest.id(), part)?;
    }
    content.find_ends();
    let named = manifest.segments();
    for (&segment, &end) in &content.ends {
        let path = segment_path(dir, segment.0);
        if !named.contains(&segment) {
            return Err(Error::corrupt(path, 0, "a page lies in a segment that is not named"));
        }
        let length = disk.len(&path).map_err(Error::io("read", &path))?;
        if end > length {
            let reason = format!("the file ends before its last page, at byte {end}");
            return Err(Error::corrupt(path, length, reason));
        }
    }
    if depth == Depth::Pages {
        let mut segments: BTreeMap<SegmentId, Vec<&PageEntry>> = BTreeMap::new();
        for page in content.pages() {
            segments.entry(page.place.segment).or_default().push(page);
        }
        for (segment, mut pages) in segments {
            pages.sort_unstable_by_key(|page| page.place);
            verify_pages(disk, &segment_path(dir, segment.0), &pages)?;
        }
    }
    Ok(content)
}

fn verify_pages(disk: &dyn Disk, path: &Path, pages: &[&PageEntry]) -> Result<()> {
    let file = disk.open_read(path).map_err(Error::io("open", path))?;
    let mut memory = vec![0; VERIFY_BYTES];
    for page in pages {
        if memory.len() < page.bytes as usize {
            memory.resize(page.bytes as usize, 0);
        }
        let bytes = &mut memory[..page.bytes as usize];
        let read = file.read_at(bytes, page.place.offset).map_err(Error::io("read", path))?;
        let found = crc32c::crc32c(&bytes[..read]);
        if read < bytes.len() || found != page.crc32c {
            let reason =
                format!("a page has checksum {found:08x}, {:08x} was written", page.crc32c);
            return Err(Error::corrupt(path, page.place.offset, reason));
        }
    }
    Ok(())
}

/// All state of a snapshot: pieces as they are, pages by where they lie.
pub(super) fn load(disk: &dyn Disk, dir: &Path, mut content: Content) -> Result<Loaded> {
    let mut files = BTreeMap::new();
    for &segment in content.ends.keys() {
        let path = segment_path(dir, segment.0);
        files.insert(segment, disk.open_read(&path).map_err(Error::io("open", path))?);
    }
    let pieces: Vec<StateEntry> = std::mem::take(&mut content.pieces);
    let source = Arc::new(Segments { dir: dir.to_path_buf(), files });
    Ok(Loaded { pieces, pages: content.into_pages().collect(), source })
}

/// The segments of a snapshot, open: what they hold stays there as long as pages are read, whatever
/// becomes of their names.
struct Segments {
    dir: PathBuf,
    files: BTreeMap<SegmentId, FileHandle>,
}

impl PageSource for Segments {
    fn read(&self, place: Place, memory: &mut [IoSliceMut<'_>]) -> Result<()> {
        let path = || segment_path(&self.dir, place.segment.0);
        let wanted: usize = memory.iter().map(|part| part.len()).sum();
        let file = self.files.get(&place.segment);
        let file = file.ok_or_else(|| self.corrupt(place, "no page lies there".into()))?;
        let read = file.read_vectored_at(memory, place.offset);
        if read.map_err(|error| Error::io("read", path())(error))? < wanted {
            return Err(self.corrupt(place, "the file ends within a page".into()));
        }
        Ok(())
    }

    fn corrupt(&self, place: Place, reason: String) -> Error {
        Error::corrupt(segment_path(&self.dir, place.segment.0), place.offset, reason)
    }
}

pub(super) fn segment_path(dir: &Path, segment: u32) -> PathBuf {
    dir.join(segment_name(SegmentId(segment)))
}

/// Reads an index and visits its frames; what is wrong with one, in words, becomes an error.
pub(super) fn each_frame(
    disk: &dyn Disk,
    dir: &Path,
    link: &Link,
    mut visit: impl FnMut(FrameHeader<'_>, &[u8]) -> Result<(), String>,
) -> Result<()> {
    let path = segment_path(dir, link.segment);
    let corrupt = |offset, reason: String| Error::corrupt(&path, offset, reason);
    let bytes = index_bytes(disk, &path, link)?;
    let mut count = 0;
    for frame in frame::frames(&bytes) {
        let (header, payload) = frame.map_err(|fault| frame_error(&path, link.offset, fault))?;
        if header.snapshot.0 > link.snapshot {
            let reason = format!("a {:?} frame of snapshot {}", header.kind, header.snapshot);
            return Err(corrupt(link.offset, reason));
        }
        visit(header, payload).map_err(|reason| corrupt(link.offset, reason))?;
        count += 1;
    }
    // Behind the frames: a frame's own checksum names the damaged byte more closely.
    let found = crc32c::crc32c(&bytes);
    if found != link.crc32c || count != link.frames {
        let (expected, frames) = (link.crc32c, link.frames);
        let reason = format!(
            "{count} frames with checksum {found:08x}, {frames} with {expected:08x} were written"
        );
        return Err(corrupt(link.offset, reason));
    }
    Ok(())
}

fn index_bytes(disk: &dyn Disk, path: &Path, link: &Link) -> Result<Vec<u8>> {
    let length = disk.len(path).map_err(Error::io("read", path))?;
    if link.offset.checked_add(link.bytes).is_none_or(|end| end > length) {
        let reason = format!("{} bytes from {} on, the file ends before", link.bytes, link.offset);
        return Err(Error::corrupt(path, length, reason));
    }
    let mut bytes = large::zeros(link.bytes as usize);
    let file = disk.open_read(path).map_err(Error::io("open", path))?;
    let read = file.read_at(&mut bytes, link.offset).map_err(Error::io("read", path))?;
    if read < bytes.len() {
        return Err(Error::corrupt(path, link.offset + read as u64, "the file ends here"));
    }
    Ok(bytes)
}
