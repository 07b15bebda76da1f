//! A handle on an open file: cheap to clone, positional, of the system or in memory.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{AtFlags, StatxFlags, statx};

use super::lateness::LATENESS;
use super::memory::MemoryFile;
use crate::clock;

/// The system takes no more slices at a time.
const SLICES_MAX: usize = 1024;

/// An open file. Clones share it. The methods block: they are for the control plane and for the
/// queue implementations; a worker uses [`DiskQueue`](super::DiskQueue).
#[derive(Clone, Debug)]
pub struct FileHandle {
    backing: Backing,
    direct: bool,
    reports_to_every_sync: bool,
}

#[derive(Clone, Debug)]
enum Backing {
    System(Arc<File>),
    Memory(MemoryFile),
}

impl FileHandle {
    pub(super) fn system(file: File) -> Self {
        let backing = Backing::System(Arc::new(file));
        Self { backing, direct: false, reports_to_every_sync: false }
    }

    pub(super) fn memory(file: MemoryFile) -> Self {
        // In memory a sync that fails has ended before the next one begins.
        Self { backing: Backing::Memory(file), direct: false, reports_to_every_sync: true }
    }

    /// A file of the system that was opened past the page cache.
    pub(super) fn direct(file: File) -> Self {
        let reports_to_every_sync = goes_past_the_cache(&file);
        Self { backing: Backing::System(Arc::new(file)), direct: true, reports_to_every_sync }
    }

    /// Whether it was opened to be written past the page cache.
    pub(super) fn is_direct(&self) -> bool {
        self.direct
    }

    /// Whether of several syncs at once each is told of what could not be written. Of what failed on its way
    /// out of the page cache the system tells one sync of an open file and no other.
    pub(crate) fn reports_to_every_sync(&self) -> bool {
        self.reports_to_every_sync
    }

    /// Writes all bytes at `offset`.
    ///
    /// # Errors
    /// What the system says; any part of the bytes may have been written.
    pub fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match &self.backing {
            Backing::System(file) => file.write_all_at(bytes, offset),
            Backing::Memory(file) => {
                let mut written = 0;
                while written < bytes.len() {
                    written += file.write_at(&bytes[written..], offset + written as u64)?;
                }
                Ok(())
            }
        }
    }

    /// Reads until `bytes` is full or the file ends; how many bytes were read.
    ///
    /// # Errors
    /// What the system says.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < bytes.len() {
            let rest = &mut bytes[filled..];
            let read = match &self.backing {
                Backing::System(file) => file.read_at(rest, offset + filled as u64),
                Backing::Memory(file) => file.read_at(rest, offset + filled as u64),
            };
            match read {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    /// Reads from `offset` on into one part of `memory` after the other, until all are full or the
    /// file ends; how many bytes were read.
    ///
    /// # Errors
    /// What the system says.
    pub fn read_vectored_at(
        &self,
        mut memory: &mut [IoSliceMut<'_>],
        offset: u64,
    ) -> io::Result<usize> {
        let mut filled = 0;
        // Slices of no length at the front are passed over, or a read of them would look like the end.
        IoSliceMut::advance_slices(&mut memory, 0);
        while !memory.is_empty() {
            let at = offset + filled as u64;
            let read = match &self.backing {
                Backing::System(file) => {
                    let count = memory.len().min(SLICES_MAX);
                    rustix::io::preadv(file, &mut memory[..count], at).map_err(io::Error::from)
                }
                Backing::Memory(file) => file.read_at(&mut memory[0], at),
            };
            match read {
                Ok(0) => break,
                Ok(read) => {
                    filled += read;
                    IoSliceMut::advance_slices(&mut memory, read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    /// Makes data and length durable. After an error the file must never be used again.
    ///
    /// # Errors
    /// What the system says.
    pub fn sync_data(&self) -> io::Result<()> {
        match &self.backing {
            Backing::System(file) => LATENESS.blocked(clock::now_ns, || file.sync_data()),
            Backing::Memory(file) => file.sync_data(),
        }
    }

    /// Cuts or extends (with zeros) the file.
    ///
    /// # Errors
    /// What the system says.
    pub fn set_len(&self, bytes: u64) -> io::Result<()> {
        match &self.backing {
            Backing::System(file) => file.set_len(bytes),
            Backing::Memory(file) => file.set_len(bytes),
        }
    }

    /// Extends the file to `bytes` with space set aside, so that later writes within it neither
    /// change its length nor run out of space. Where the file system cannot set space aside
    /// the file is only extended.
    ///
    /// # Errors
    /// `StorageFull`, or what else the system says.
    pub fn preallocate(&self, bytes: u64) -> io::Result<()> {
        match &self.backing {
            Backing::System(file) => {
                use rustix::{fs::FallocateFlags, io::Errno};
                loop {
                    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
                        Err(Errno::INTR) => {}
                        Err(Errno::OPNOTSUPP | Errno::NOSYS) => return file.set_len(bytes),
                        done => return Ok(done?),
                    }
                }
            }
            Backing::Memory(file) => file.preallocate(bytes),
        }
    }

    /// The descriptor, for io_uring; `None` for a file in memory.
    pub(super) fn descriptor(&self) -> Option<RawFd> {
        match &self.backing {
            Backing::System(file) => Some(file.as_raw_fd()),
            Backing::Memory(_) => None,
        }
    }
}

/// Whether direct writes of the file do go past the page cache, as far as the system says: some file systems take the
/// flag and use the cache all the same.
fn goes_past_the_cache(file: &File) -> bool {
    let found = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    found.is_ok_and(|found| {
        let says = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::DIOALIGN);
        says && found.stx_dio_offset_align > 0
    })
}
