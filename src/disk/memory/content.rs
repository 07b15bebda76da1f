//! One file on the medium: what the running system sees, what is durable, and what a crash keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::random::Random;

const SECTOR_BYTES: usize = 512;

#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    sectors: BTreeMap<u64, Box<[u8; SECTOR_BYTES]>>,
    pub(super) length: u64,
}

#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) cached: Image,
    durable: Image,
    pub(super) dirty: BTreeSet<u64>,
    length_dirty: bool,
    /// Space taken, to the end of what was ever written or set aside.
    pub(super) charged_bytes: u64,
    /// Counts open handles.
    pub(super) handles: Arc<()>,
}

/// How much of what was not synced survives a crash.
#[derive(Clone, Copy)]
pub(super) enum Survival {
    None,
    All,
    Any,
}

impl Survival {
    pub(super) fn draw(random: &mut Random) -> Self {
        match random.below(4) {
            0 => Self::None,
            1 => Self::All,
            _ => Self::Any,
        }
    }

    pub(super) fn one(self, random: &mut Random) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Any => random.below(2) == 0,
        }
    }
}

impl File {
    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset as usize + done;
            let (sector, start) = ((at / SECTOR_BYTES) as u64, at % SECTOR_BYTES);
            let length = (SECTOR_BYTES - start).min(bytes.len() - done);
            let content =
                self.cached.sectors.entry(sector).or_insert_with(|| Box::new([0; SECTOR_BYTES]));
            content[start..start + length].copy_from_slice(&bytes[done..done + length]);
            self.dirty.insert(sector);
            done += length;
        }
        let end = offset + bytes.len() as u64;
        self.charged_bytes = self.charged_bytes.max(end);
        if end > self.cached.length {
            self.cached.length = end;
            self.length_dirty = true;
        }
    }

    pub(super) fn set_len(&mut self, bytes: u64) {
        self.cached.cut(bytes);
        self.length_dirty = true;
    }

    pub(super) fn sync(&mut self) {
        for sector in std::mem::take(&mut self.dirty) {
            self.keep(sector);
        }
        if std::mem::take(&mut self.length_dirty) {
            self.durable.cut(self.cached.length);
        }
    }

    /// Makes one sector durable.
    fn keep(&mut self, sector: u64) {
        if let Some(content) = self.cached.sectors.get(&sector) {
            self.durable.sectors.insert(sector, content.clone());
        }
    }

    pub(super) fn crash(&mut self, random: &mut Random) {
        let keeps = Survival::draw(random);
        for sector in std::mem::take(&mut self.dirty) {
            if keeps.one(random) {
                self.keep(sector);
            }
        }
        if std::mem::take(&mut self.length_dirty) && keeps.one(random) {
            self.durable.cut(self.cached.length);
        }
        self.durable.cut(self.durable.length);
        self.cached = self.durable.clone();
        self.handles = Arc::default();
    }
}

impl Image {
    pub(super) fn read(&self, bytes: &mut [u8], offset: u64) -> usize {
        let length = self.length.saturating_sub(offset).min(bytes.len() as u64) as usize;
        let mut done = 0;
        while done < length {
            let at = offset as usize + done;
            let (sector, start) = ((at / SECTOR_BYTES) as u64, at % SECTOR_BYTES);
            let part = &mut bytes[done..length.min(done + SECTOR_BYTES - start)];
            match self.sectors.get(&sector) {
                Some(content) => part.copy_from_slice(&content[start..start + part.len()]),
                None => part.fill(0),
            }
            done += part.len();
        }
        length
    }

    /// Sets the length; what is cut off reads as zeros if the file grows again.
    fn cut(&mut self, length: u64) {
        self.length = length;
        let (sector, start) =
            (length / SECTOR_BYTES as u64, (length % SECTOR_BYTES as u64) as usize);
        self.sectors.split_off(&(sector + 1));
        if let Some(content) = self.sectors.get_mut(&sector) {
            content[start..].fill(0);
        }
    }
}
