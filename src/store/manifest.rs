//! What is written as JSON inside a frame: the job's identity and the manifest.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::frame::{self, FRAME_VERSION, FrameFault, FrameHeader, FrameKind};
use crate::id::{SnapshotId, StateSlot};

/// Version of the directory's layout and of the JSON in it: what this program writes, and the
/// newest it reads.
pub const MANIFEST_FORMAT: u32 = 1;

/// Which job a directory belongs to.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct JobIdentity {
    /// Name of the job.
    pub name: String,
    /// Canonical description of its operators and user parameters: whatever must be the same for
    /// the state to be of use. Lines are compared one by one to say what differs.
    pub fingerprint: String,
}

/// What one worker wrote for one snapshot. Of 0 bytes if it had nothing to write; then it names
/// no file.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct PartRef {
    /// Name of the segment, without its directory.
    pub file: String,
    /// First byte in it.
    pub offset: u64,
    /// Length of the frames.
    pub bytes: u64,
    /// Checksum of all of these bytes.
    pub crc32c: u32,
    /// How many frames they are.
    pub frames: u64,
}

/// An operator whose state is in a snapshot.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct OperatorEntry {
    /// The name the user gave it.
    pub name: String,
    /// Version of its state's schema.
    pub schema: u32,
}

/// The durable list of one snapshot's parts.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    /// [`MANIFEST_FORMAT`] of the program that wrote it.
    pub format: u32,
    /// Id of the snapshot.
    pub snapshot: u64,
    /// [`Store::generation`](super::Store::generation) of the process that wrote it.
    pub generation: u64,
    /// Start of the job's tasks within that process.
    pub attempt: u64,
    /// When, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Whose.
    pub job: JobIdentity,
    /// Whether the job is complete with it.
    pub last: bool,
    /// Operators with state in it.
    pub operators: Vec<OperatorEntry>,
    /// Where the state is. May name parts of earlier snapshots.
    pub parts: Vec<PartRef>,
    /// Whatever is worth knowing: durations, sizes. The unit is in the name.
    pub notes: BTreeMap<String, u64>,
}

impl Manifest {
    /// Id of the snapshot.
    #[must_use]
    pub fn id(&self) -> SnapshotId {
        SnapshotId(self.snapshot)
    }

    /// Bytes of state in all parts.
    #[must_use]
    pub fn state_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }
}

/// One frame that holds `value` as JSON.
pub(super) fn to_frame(kind: FrameKind, snapshot: SnapshotId, value: &impl Serialize) -> Vec<u8> {
    let json = serde_json::to_vec(value).expect("plain structs of strings and numbers are JSON");
    bytes_to_frame(kind, snapshot, &json)
}

/// One frame that holds `payload`.
pub(super) fn bytes_to_frame(kind: FrameKind, snapshot: SnapshotId, payload: &[u8]) -> Vec<u8> {
    let slot = StateSlot::Task(0);
    let header = FrameHeader { kind, owner: "", slot, schema: MANIFEST_FORMAT, snapshot };
    let mut bytes = Vec::new();
    frame::encode(&header, payload, &mut bytes);
    bytes
}

/// The payload of a file that is one frame of this kind, and the snapshot in its header.
pub(super) fn single_frame<'a>(
    path: &Path,
    kind: FrameKind,
    bytes: &'a [u8],
) -> Result<(SnapshotId, &'a [u8])> {
    let mut frames = frame::frames(bytes);
    let (header, payload) = frames
        .next()
        .ok_or_else(|| Error::corrupt(path, 0, "the file is empty"))?
        .map_err(|fault| frame_error(path, 0, fault))?;
    if header.kind != kind {
        return Err(Error::corrupt(path, 6, format!("a {:?} frame, not {kind:?}", header.kind)));
    }
    if header.schema > MANIFEST_FORMAT {
        return Err(newer(path, "format", header.schema.into(), MANIFEST_FORMAT.into()));
    }
    match frames.next() {
        None => Ok((header.snapshot, payload)),
        Some(_) => {
            let end = (payload.as_ptr().addr() - bytes.as_ptr().addr() + payload.len()) as u64;
            Err(Error::corrupt(path, end, "bytes behind the end"))
        }
    }
}

/// The value in a file that is one frame of JSON.
pub(super) fn from_frame<T: DeserializeOwned>(
    path: &Path,
    kind: FrameKind,
    bytes: &[u8],
) -> Result<(SnapshotId, T)> {
    let (snapshot, payload) = single_frame(path, kind, bytes)?;
    let value = serde_json::from_slice(payload)
        .map_err(|error| Error::corrupt(path, 0, format!("checksum matches, but: {error}")))?;
    Ok((snapshot, value))
}

/// The public error for a bad frame in the part of `path` that starts at `base`.
pub(super) fn frame_error(path: &Path, base: u64, fault: frame::FrameError) -> Error {
    match fault.reason {
        FrameFault::Newer(found) => newer(path, "frame", found.into(), FRAME_VERSION.into()),
        reason => Error::corrupt(path, base + fault.offset, reason.to_string()),
    }
}

fn newer(path: &Path, what: &str, found: u64, supported: u64) -> Error {
    Error::Newer { path: path.to_path_buf(), what: what.to_owned(), found, supported }
}
