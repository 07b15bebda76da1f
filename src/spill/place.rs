//! Where a spill file is, how it is named, and what to do with those of a dead process.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::id::{Attempt, StateSlot, TaskId};

/// Where a backlog may write to, and whose records they are.
#[derive(Clone)]
pub struct Place {
    /// The disk of the file.
    pub disk: Arc<dyn Disk>,
    /// The file, of no other backlog. It must not exist; its directory is created where missing.
    /// A name made by [`file_name`] is found by [`remove_leftovers`].
    pub path: PathBuf,
    /// Name of the operator that the input belongs to.
    pub owner: String,
    /// Which task of it.
    pub slot: StateSlot,
    /// Which input of the task.
    pub input: u32,
}

/// The name for the spill file of this input of this task.
#[must_use]
pub fn file_name(task: TaskId, input: u32, attempt: Attempt) -> String {
    format!("task-{}-{input}-{}.spill", task.0, attempt.0)
}

fn is_file_name(name: &str) -> bool {
    let fields = name.strip_prefix("task-").and_then(|rest| rest.strip_suffix(".spill"));
    let numbers = fields.map(|fields| {
        let is_number = |field: &str| field.parse::<u64>().is_ok_and(|n| n.to_string() == field);
        (fields.split('-').count(), fields.split('-').all(is_number))
    });
    numbers == Some((3, true))
}

/// Removes the spill files in `directory` that a killed process left behind, and says how many there
/// were; a directory that does not exist holds none. Files of other names are not touched. Call it
/// before the first backlog is made, by the process that has the directory to itself.
///
/// # Errors
/// [`Error::Io`] naming the file or directory.
pub fn remove_leftovers(disk: &dyn Disk, directory: &Path) -> Result<usize> {
    let names = match disk.list(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        listed => listed.map_err(Error::io("list", directory))?,
    };
    let leftovers = names.iter().filter(|name| is_file_name(name));
    let paths: Vec<PathBuf> = leftovers.map(|name| directory.join(name)).collect();
    for path in &paths {
        disk.remove(path).map_err(Error::io("remove", path))?;
    }
    Ok(paths.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;

    #[test]
    fn leftovers_are_removed_and_nothing_else() {
        let disk = MemoryDisk::new(1);
        let directory = Path::new("/job/spill");
        assert_eq!(remove_leftovers(&disk, directory).unwrap(), 0);
        disk.create_dir_all(directory).unwrap();
        let ours = [file_name(TaskId(12), 0, Attempt(3)), file_name(TaskId(0), 7, Attempt(0))];
        let foreign =
            ["a.spill", "task-1-2-3", "task-1-2.spill", "task-1-02-3.spill", "task-1-2-3-4.spill"];
        for name in ours.iter().map(String::as_str).chain(foreign) {
            disk.create_new(&directory.join(name)).unwrap();
        }
        assert_eq!(remove_leftovers(&disk, directory).unwrap(), 2);
        let mut left = foreign.map(String::from);
        left.sort();
        assert_eq!(disk.list(directory).unwrap(), left);
    }
}
