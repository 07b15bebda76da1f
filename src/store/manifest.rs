//! What is written as JSON inside a frame: the job's identity and the manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::frame::{self, ALIGNMENT, FRAME_VERSION, FrameFault, FrameHeader, FrameKind};
use crate::id::{SegmentId, SnapshotId, StateSlot};
use crate::state::{StateTypes, TypeName};

/// Version of the directory's layout, of the JSON in it and of pages: what this program writes, and the
/// newest it reads. What an older program refuses by itself leaves it as it is: pages that hold several key groups
/// do not fit together for one that knows none.
pub const MANIFEST_FORMAT: u32 = 3;

/// Which job a directory belongs to.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct JobIdentity {
    /// Name of the job.
    pub name: String,
    /// Canonical description of its operators and user parameters: whatever must be the same for
    /// the state to be of use. Lines are compared one by one to say what differs.
    pub fingerprint: String,
}

/// What one worker wrote for one snapshot: its index, which says what else belongs to it. Of 0 bytes
/// if the worker has no state; then it names no file.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
pub struct PartRef {
    /// The segment that the index lies in.
    pub segment: u32,
    /// First byte in it.
    pub offset: u64,
    /// Length of the index.
    pub bytes: u64,
    /// Checksum of all of these bytes.
    pub crc32c: u32,
    /// How many frames they are.
    pub frames: u64,
    /// How many earlier indices have to be read with it.
    pub links: u32,
    /// Every segment that it needs: those of its pages, of the earlier indices and its own.
    pub segments: Vec<u32>,
    /// Bytes of the pages that are state as of this snapshot, wherever they lie.
    pub page_bytes: u64,
}

/// An operator whose state is in a snapshot.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct OperatorEntry {
    /// The name the user gave it.
    pub name: String,
    /// Version of its state's schema, as the user counts it, from 1 on.
    pub schema: u32,
    /// What its keyed state is made of; `None` if it has none, or it was not noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<StateTypes>,
    /// What the records were that it was given, which a snapshot may hold some of in transit; `None`
    /// for a source, or if it was not noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<TypeName>,
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
    /// The snapshot that was restored before, if pages of it may not have been read since: they may turn out
    /// to be damaged, in this snapshot too. Those up to it stay in the directory until all were read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread_since: Option<u64>,
    /// Operators with state in it.
    pub operators: Vec<OperatorEntry>,
    /// Where the state is, by worker.
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

    /// Bytes of state: of the indices, which hold what is small, and of all pages.
    #[must_use]
    pub fn state_bytes(&self) -> u64 {
        let bytes = self.parts.iter().flat_map(|part| [part.bytes, part.page_bytes]);
        bytes.fold(0, u64::saturating_add)
    }

    /// The last snapshot that has to stay, whatever retention asks for.
    pub(super) fn holds(&self) -> SnapshotId {
        SnapshotId(self.unread_since.unwrap_or(0))
    }

    /// Every segment that it needs, each once.
    pub(super) fn segments(&self) -> BTreeSet<SegmentId> {
        let parts = self.parts.iter().filter(|part| part.bytes > 0);
        parts.flat_map(|part| part.segments.iter().copied().map(SegmentId)).collect()
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
pub(super) fn whole_frame<'a>(
    path: &Path,
    kind: FrameKind,
    bytes: &'a [u8],
) -> Result<(SnapshotId, &'a [u8])> {
    let (snapshot, payload) = first_frame(path, kind, bytes)?;
    let end = payload.as_ptr().addr() - bytes.as_ptr().addr() + payload.len();
    if end.next_multiple_of(ALIGNMENT) < bytes.len() {
        return Err(Error::corrupt(path, end as u64, "bytes behind the end"));
    }
    Ok((snapshot, payload))
}

/// The payload of the frame of this kind that a file begins with, and the snapshot in its header.
fn first_frame<'a>(
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
    if header.schema < MANIFEST_FORMAT {
        let reason = format!(
            "{} is of format {}, which this version does not read; finish the job with the \
             version that began it, or name another snapshot directory",
            path.file_name().unwrap_or_default().to_string_lossy(),
            header.schema
        );
        let path = path.parent().unwrap_or(path).to_path_buf();
        return Err(Error::Directory { path, reason });
    }
    Ok((header.snapshot, payload))
}

/// The value in a file that begins with a frame of JSON.
pub(super) fn from_frame<T: DeserializeOwned>(
    path: &Path,
    kind: FrameKind,
    bytes: &[u8],
) -> Result<(SnapshotId, T)> {
    let (snapshot, payload) = first_frame(path, kind, bytes)?;
    Ok((snapshot, from_json(path, payload)?))
}

/// The value in a file that is one frame of JSON.
pub(super) fn from_whole_frame<T: DeserializeOwned>(
    path: &Path,
    kind: FrameKind,
    bytes: &[u8],
) -> Result<T> {
    from_json(path, whole_frame(path, kind, bytes)?.1)
}

fn from_json<T: DeserializeOwned>(path: &Path, payload: &[u8]) -> Result<T> {
    serde_json::from_slice(payload)
        .map_err(|error| Error::corrupt(path, 0, format!("checksum matches, but: {error}")))
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
