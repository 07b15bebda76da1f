//! Reading back: manifests and the parts they name, every length and checksum checked before use.

use std::path::Path;

use super::StateEntry;
use super::layout::{Name, manifest_name};
use super::manifest::{Manifest, PartRef, frame_error, from_frame};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::frame::{self, FrameHeader, FrameKind};
use crate::id::SnapshotId;

/// The manifest of a snapshot; its parts are not looked at.
pub(super) fn manifest(disk: &dyn Disk, dir: &Path, snapshot: SnapshotId) -> Result<Manifest> {
    manifest_in(disk, &dir.join(manifest_name(snapshot)), snapshot)
}

/// The same, of a manifest that goes by another name.
pub(super) fn manifest_in(disk: &dyn Disk, path: &Path, snapshot: SnapshotId) -> Result<Manifest> {
    let bytes = disk.read(path).map_err(Error::io("read", path))?;
    let (framed, manifest): (_, Manifest) = from_frame(path, FrameKind::Manifest, &bytes)?;
    if framed != snapshot || manifest.id() != snapshot {
        let found = manifest.snapshot;
        return Err(Error::corrupt(path, 16, format!("holds snapshot {found}, not {snapshot}")));
    }
    Ok(manifest)
}

/// Reads and checks every byte that the manifest names.
pub(super) fn verify_parts(disk: &dyn Disk, dir: &Path, manifest: &Manifest) -> Result<()> {
    manifest.parts.iter().try_for_each(|part| each_frame(disk, dir, manifest.id(), part, |_, _| ()))
}

/// All state of a snapshot.
pub(super) fn load(disk: &dyn Disk, dir: &Path, manifest: &Manifest) -> Result<Vec<StateEntry>> {
    let mut entries = Vec::new();
    for part in &manifest.parts {
        each_frame(disk, dir, manifest.id(), part, |header, payload| {
            entries.push(StateEntry {
                operator: header.owner.to_owned(),
                slot: header.slot,
                schema: header.schema,
                bytes: payload.to_vec(),
            });
        })?;
    }
    Ok(entries)
}

fn each_frame(
    disk: &dyn Disk,
    dir: &Path,
    snapshot: SnapshotId,
    part: &PartRef,
    mut visit: impl FnMut(FrameHeader<'_>, &[u8]),
) -> Result<()> {
    if part.bytes == 0 {
        return Ok(());
    }
    let path = dir.join(&part.file);
    let corrupt = |offset, reason: String| Err(Error::corrupt(&path, offset, reason));
    let bytes = part_bytes(disk, dir, part)?;
    let mut count = 0;
    for frame in frame::frames(&bytes) {
        let (header, payload) = frame.map_err(|fault| frame_error(&path, part.offset, fault))?;
        if header.kind != FrameKind::State || header.snapshot > snapshot {
            let reason = format!("a {:?} frame of snapshot {}", header.kind, header.snapshot);
            return corrupt(part.offset, reason);
        }
        visit(header, payload);
        count += 1;
    }
    // Behind the frames: a frame's own checksum names the damaged byte more closely.
    let found = crc32c::crc32c(&bytes);
    if found != part.crc32c || count != part.frames {
        let (expected, frames) = (part.crc32c, part.frames);
        let reason = format!(
            "{count} frames with checksum {found:08x}, {frames} with {expected:08x} were written"
        );
        return corrupt(part.offset, reason);
    }
    Ok(())
}

fn part_bytes(disk: &dyn Disk, dir: &Path, part: &PartRef) -> Result<Vec<u8>> {
    if !matches!(Name::of(&part.file), Name::Part { .. }) {
        let reason = format!("a part in file '{}', which is no segment", part.file);
        return Err(Error::corrupt(dir, 0, reason));
    }
    let path = dir.join(&part.file);
    let length = disk.len(&path).map_err(Error::io("read", &path))?;
    if part.offset.checked_add(part.bytes).is_none_or(|end| end > length) {
        let reason = format!("{} bytes from {} on, the file ends before", part.bytes, part.offset);
        return Err(Error::corrupt(path, length, reason));
    }
    let mut bytes = vec![0; part.bytes as usize];
    let file = disk.open_read(&path).map_err(Error::io("open", &path))?;
    let read = file.read_at(&mut bytes, part.offset).map_err(Error::io("read", &path))?;
    if read < bytes.len() {
        return Err(Error::corrupt(path, part.offset + read as u64, "the file ends here"));
    }
    Ok(bytes)
}
