//! Taking the snapshot directory: when the job is opened, and again before each restart.

use std::io::ErrorKind;

use super::*;
use crate::store::{StoreLimits, list};

/// Opens the snapshot directory. If its newest snapshot could not be read, it is put aside before anything
/// else happens: restoring the one before takes back what sinks published since, so the skipped one must
/// not come back as the newest, should it be readable another time. If that is not certain the job does
/// not go on; nothing was taken back yet, so either of them is right the next time. What was skipped
/// stays as evidence that does not count. With `verify_pages` all of it is read, because a page was
/// found damaged. State that `graph` does not know is refused before anything is changed.
pub(super) fn hold(
    disk: &Arc<dyn Disk>,
    snapshots: &Snapshots,
    (identity, graph): (&JobIdentity, &Graph),
    verify_pages: bool,
    notice: &mut dyn FnMut(Notice<'_>),
) -> Result<(Store, Option<Manifest>)> {
    let retention = snapshots.retained;
    let limits = StoreLimits { retention, verify_pages, ..StoreLimits::default() };
    let directory = &snapshots.directory;
    let takes = |newest: &Manifest| schema::refuse_unknown(graph, directory, newest);
    let opened = Store::open_if(disk.clone(), directory, identity, limits, &takes)?;
    opened.warnings.iter().for_each(|warning| notice(Notice::Warning(warning)));
    let (mut store, newest) = (opened.store, opened.newest);
    store.put_aside(&opened.skipped)?;
    if opened.fell_back
        && let Some(newest) = &newest
    {
        let before = newest.id();
        notice(Notice::Warning(&format!(
            "the job goes on from snapshot {before} instead; what cannot be restored is kept under names that \
             end in .passed-over; delete them when you do not want to look into it any more"
        )));
    }
    Ok((store, newest))
}

/// A directory that had snapshots and has none any more was deleted under the job. In a new one it
/// would begin anew, and results that sinks have published would come twice.
fn refuse_emptied(disk: &dyn Disk, path: &Path, newest: SnapshotId) -> Result<()> {
    let is_there = match list(disk, path) {
        Ok(snapshots) => !snapshots.is_empty(),
        Err(Error::Directory { .. }) => false,
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    if is_there {
        return Ok(());
    }
    let reason = format!(
        "its snapshots are gone, it was deleted or emptied while the job ran; put it back (snapshot \
         {newest} was the newest), or start over with new snapshot and output directories"
    );
    Err(Error::Directory { path: path.to_path_buf(), reason })
}

impl Supervisor<'_> {
    /// Opens the directory again: after a commit whose outcome is not known it says what holds.
    pub(super) fn reopen(&mut self, notice: &mut dyn FnMut(Notice<'_>)) -> Result<()> {
        let Some(snapshots) = &self.config.snapshots else { return Ok(()) };
        self.commits.clear();
        self.store = None; // gives up the lock
        if let Some(newest) = &self.newest {
            refuse_emptied(&*self.disk, &snapshots.directory, newest.id())?;
        }
        let held =
            hold(&self.disk, snapshots, (&self.identity, self.graph), self.found_damage, notice)?;
        (self.store, self.newest) = (Some(held.0), held.1);
        self.found_damage = false;
        Ok(())
    }
}
