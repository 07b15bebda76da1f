//! Whether a job knows the state in a snapshot: by operator, version and types.
//!
//! Invariants
//! - What is not known is refused with the operator's name, and not tried again.
//! - Of state this is asked before anything in the directory is changed.

use std::path::Path;

use super::*;
use crate::state::Refusal;

/// What a manifest says of the job's operators.
pub(super) fn entries(graph: &Graph) -> Vec<OperatorEntry> {
    let entry = |operator: &crate::graph::Operator| OperatorEntry {
        name: operator.name.clone(),
        schema: operator.state.as_ref().map_or(1, |state| state.version),
        state: operator.state.as_ref().map(|state| state.types.clone()),
        input: operator.input.clone(),
    };
    graph.operators.iter().map(entry).collect()
}

/// Refuses a snapshot with state that the job does not know. Of one that the job is complete with no
/// state is needed.
pub(super) fn refuse_unknown(graph: &Graph, directory: &Path, manifest: &Manifest) -> Result<()> {
    if manifest.last {
        return Ok(());
    }
    for operator in &graph.operators {
        let Some(state) = &operator.state else { continue };
        let Some(found) = entry_of(manifest, &operator.name) else { continue };
        match state.refusal(found.schema, found.state.as_ref()) {
            None => {}
            Some(Refusal::Newer) => {
                return Err(Error::Newer {
                    path: directory.to_path_buf(),
                    what: format!("schema of operator '{}'", operator.name),
                    found: found.schema.into(),
                    supported: state.version.into(),
                });
            }
            Some(Refusal::Unfit(reason)) => {
                let reason = format!("snapshot {} {reason}", manifest.id());
                return Err(Error::State { operator: operator.name.clone(), reason });
            }
        }
    }
    Ok(())
}

/// Refuses records in transit that are not of the type that their operator now takes. They are not
/// migrated: a job that is stopped without any in transit leaves none.
pub(super) fn refuse_other_records(
    graph: &Graph,
    manifest: &Manifest,
    pieces: &[StateEntry],
) -> Result<()> {
    for operator in &graph.operators {
        let log = format!("{}{LOG_SUFFIX}", operator.name);
        let found = entry_of(manifest, &operator.name).and_then(|entry| entry.input.as_ref());
        let (Some(found), Some(now)) = (found, &operator.input) else { continue };
        if found != now && pieces.iter().any(|piece| piece.operator == log) {
            let reason = format!(
                "snapshot {} holds records in transit to it, of {found}, and now they are of {now}; \
                 let the program that wrote it go on, and stop it where none are: outside loops, \
                 with aligned snapshots (`--mode abs`)",
                manifest.id()
            );
            return Err(Error::State { operator: operator.name.clone(), reason });
        }
    }
    Ok(())
}

fn entry_of<'m>(manifest: &'m Manifest, name: &str) -> Option<&'m OperatorEntry> {
    manifest.operators.iter().find(|entry| entry.name == name)
}
