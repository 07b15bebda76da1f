//! State that outlives the code it was written by: golden snapshots of version 1 are restored, turned
//! into version 2, or refused by name.
//!
//! `tests/golden/state-v1` was written by [`first`] and is never written again but on purpose: a change
//! of anything on disk that makes it unreadable fails here. A new format that reads the old one leaves
//! it alone and adds a directory of its own. To write one:
//!
//! ```sh
//! TIDEGATE_GOLDEN=tests/golden/state-v1 cargo test --test schema golden_files_are_written
//! ```

mod common;
#[path = "schema/golden.rs"]
mod golden;
#[path = "schema/jobs.rs"]
mod jobs;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::quiet::quietly;
use common::run::{Run, Told, config};
use jobs::{Counted, Second, declaring, first, first_counting, mistaken, second};
use tidegate::disk::MemoryDisk;
use tidegate::engine::End;
use tidegate::error::{Error, Result};
use tidegate::graph::Graph;
use tidegate::state::{Layout, TypeName};
use tidegate::store::{self, MANIFEST_FORMAT, Manifest};

fn newest(disk: &MemoryDisk) -> Manifest {
    let infos = store::list(disk, "/snapshots".as_ref()).expect("a snapshot directory");
    infos.into_iter().rev().find_map(|info| info.manifest).expect("a snapshot")
}

/// Versions of the three operators with state, in the newest snapshot.
fn versions(disk: &MemoryDisk) -> Vec<u32> {
    let operators = newest(disk).operators.into_iter();
    operators.filter(|operator| operator.state.is_some()).map(|operator| operator.schema).collect()
}

/// The error that opening `graph` on `disk` ends with; nothing on it has changed.
fn refused(graph: &Graph, disk: &MemoryDisk) -> Error {
    let before = golden::files(disk);
    let opened = Run::try_open(graph, &config(1), disk).map(drop);
    let error = opened.expect_err("it is refused when it is opened");
    assert!(!error.is_retryable(), "{error}");
    assert!(golden::files(disk) == before, "the directory was changed: {error}");
    error
}

fn reason_of(error: &Error, name: &str) -> String {
    let Error::State { operator, reason } = error else { panic!("{error}") };
    assert_eq!(operator, name, "{error}");
    reason.clone()
}

#[test]
fn golden_files_are_written_as_they_were_or_written_anew_when_asked_for() {
    let disk = MemoryDisk::new(1);
    let (graph, _found) = first();
    let mut run = Run::open(&graph, &config(1), &disk);
    run.until_completed(2);
    drop(run);
    if let Some(directory) = std::env::var_os("TIDEGATE_GOLDEN") {
        golden::write(&disk, directory.as_ref());
    }
    let (now, then) = (newest(&disk), newest(&golden::read("state-v1")));
    assert_eq!((then.format, &then.operators), (MANIFEST_FORMAT, &now.operators));
    let state: Vec<_> = then.operators.iter().filter_map(|o| o.state.as_ref()).collect();
    let layouts: Vec<_> = state.iter().map(|state| state.layout).collect();
    assert_eq!(layouts, [Layout::Pages, Layout::BytePages, Layout::Entries]);
    assert_eq!(state[1].to_string(), "String (8 bytes) -> u64 (8 bytes), byte pages");
    assert_eq!(state[2].value, TypeName { name: "Vec<u64>".into(), bytes: 8 });
}

#[test]
fn golden_snapshots_are_restored_in_their_version_and_counted_to_the_end() -> Result<()> {
    for workers in [1, 2] {
        let disk = golden::read("state-v1");
        let found = store::verify(&disk, "/snapshots".as_ref())?;
        assert!(found.is_whole() && found.snapshots.len() == 2, "{:?}", found.problems);
        let (graph, found) = first();
        let mut run = Run::open(&graph, &config(workers), &disk);
        assert_eq!(run.end()?.end, End::Complete);
        let restored = |told: &&Told| matches!(told, Told::Restored(_));
        assert_eq!(run.told.iter().filter(restored).count(), 1);
        assert_eq!(versions(&disk), [1, 1, 1]);
        found.assert_exact();
    }
    Ok(())
}

#[test]
fn golden_snapshots_are_turned_into_version_2_and_the_next_ones_are_of_it() -> Result<()> {
    for workers in [1, 2] {
        let disk = golden::read("state-v1");
        let (graph, found) = second(Second::default());
        let mut run = Run::open(&graph, &config(workers), &disk);
        run.until_completed(1);
        assert_eq!(versions(&disk), [2, 2, 2]);
        // As after a crash: from here on there is nothing to migrate.
        drop(run);
        disk.crash();
        let may_migrate = Arc::new(AtomicBool::new(false));
        let (graph, again) = second(Second { may_migrate, ..Second::default() });
        let mut run = Run::open(&graph, &config(workers), &disk);
        assert_eq!(run.end()?.end, End::Complete);
        assert!(store::verify(&disk, "/snapshots".as_ref())?.is_whole());
        assert!(found.is_empty(), "results come at the end only");
        again.assert_exact();
    }
    Ok(())
}

#[test]
fn an_older_version_without_a_migration_is_refused_by_name() {
    let (graph, _found) = second(Second { migrates: false, ..Second::default() });
    let reason = reason_of(&refused(&graph, &golden::read("state-v1")), "count");
    assert!(reason.contains("has version 1 (u64 (8 bytes) -> u64 (8 bytes), pages)"), "{reason}");
    assert!(reason.contains("add `.migrate(1, |old| ..)` behind `.schema(2)`"), "{reason}");
}

#[test]
fn a_version_from_the_future_is_refused_by_name() {
    let disk = golden::read("state-v1");
    let (graph, _found) = second(Second::default());
    Run::open(&graph, &config(1), &disk).until_completed(1);
    let (graph, _found) = first();
    let error = refused(&graph, &disk);
    let Error::Newer { what, found: 2, supported: 1, .. } = &error else { panic!("{error}") };
    assert_eq!(what, "schema of operator 'count'");
    assert!(error.to_string().contains("this program knows up to 1"), "{error}");
}

#[test]
fn another_type_under_the_same_version_is_refused_by_name() {
    let (graph, _found) = first_counting(|count: &mut i64| *count += 1);
    let reason = reason_of(&refused(&graph, &golden::read("state-v1")), "count");
    assert!(reason.contains("version 1 is of u64 (8 bytes) -> i64 (8 bytes)"), "{reason}");
    assert!(reason.contains("`.schema(2)`"), "{reason}");
}

#[test]
fn a_migration_from_a_type_it_was_not_is_refused_by_name() {
    let reason = reason_of(&refused(&mistaken(), &golden::read("state-v1")), "count");
    assert!(reason.contains("cannot be read as the u64 (8 bytes) -> u128"), "{reason}");
}

#[test]
fn a_migration_that_panics_names_its_operator_and_leaves_the_snapshot() {
    let disk = golden::read("state-v1");
    let may_migrate = Arc::new(AtomicBool::new(false));
    let switch = may_migrate.clone();
    let (graph, found) = second(Second { may_migrate, ..Second::default() });
    let mut run = Run::open(&graph, &config(1), &disk);
    run.turn();
    quietly(|| run.until("a restart", |run| matches!(run.told.last(), Some(Told::Restarting(_)))));
    let Some(Told::Restarting(error)) = run.told.last() else { panic!("it restarts") };
    assert!(error.contains("operator 'count' (task 0) panicked: not now"), "{error}");
    switch.store(true, Ordering::Relaxed);
    assert_eq!(run.end().expect("it is mended").end, End::Complete);
    found.assert_exact();
}

#[test]
fn a_declaration_that_cannot_be_is_refused_when_the_job_is_built() {
    for (version, expected) in [(0, "declares schema 0"), (1 << 25, "it must be 1 to 16777216")] {
        let error = declaring(version, &[]).build().map(drop).expect_err("no such version");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let error = declaring(2, &[2]).build().map(drop).expect_err("not from an earlier one");
    assert!(error.to_string().contains("migrates from version 2 to 2"), "{error}");
}

#[test]
fn only_state_and_not_the_version_decides_whose_snapshots_they_are() {
    let disk = golden::read("state-v1");
    let (graph, _found) = second(Second::default());
    Run::open(&graph, &config(1), &disk).until_completed(1);
    assert_eq!(newest(&golden::read("state-v1")).job, newest(&disk).job);
    let entry = newest(&disk).operators.into_iter().find(|operator| operator.name == "count");
    let types = entry.and_then(|entry| entry.state).expect("it has state");
    assert_eq!(types.value, TypeName::of::<Counted>());
}
