//! `tidegate snapshot`: looks at a snapshot directory without taking part in it.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use tidegate::disk::Disk;
use tidegate::engine::default_disk;
use tidegate::id::SnapshotId;
use tidegate::store::{self, Condition, Manifest, OperatorEntry, PartRef, SnapshotInfo};

use super::exit::Failure;
use super::summary;

/// Look at a snapshot directory; a job may be running on it
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List the snapshots, oldest first
    List(Which),
    /// Show what one snapshot holds
    Show(Shown),
    /// Read and check every byte of all snapshots, or of one
    Verify(Verified),
}

#[derive(Args)]
struct Which {
    /// Snapshot directory
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Shown {
    #[command(flatten)]
    which: Which,
    /// Number of the snapshot [default: the newest]
    #[arg(value_name = "ID")]
    id: Option<u64>,
}

#[derive(Args)]
struct Verified {
    #[command(flatten)]
    which: Which,
    /// Number of the snapshot [default: all]
    #[arg(value_name = "ID")]
    id: Option<u64>,
}

/// Runs it.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (disk, _) = default_disk();
    match &arguments.action {
        Action::List(which) => list(which, &*disk),
        Action::Show(one) => show(&one.which, one.id, &*disk),
        Action::Verify(one) => verify(&one.which, one.id, &*disk),
    }
}

fn refuse(directory: &Path, reason: String) -> Failure {
    Failure::Failed(format!("snapshot directory {}: {reason}", directory.display()))
}

fn list(which: &Which, disk: &dyn Disk) -> Result<(), Failure> {
    let snapshots = store::list(disk, &which.directory)?;
    if which.json {
        return summary::print_json(&snapshots);
    }
    let mut text = String::from("snapshot  created (UTC)        state bytes  notes\n");
    for info in &snapshots {
        text.push_str(&row(info));
    }
    summary::print(&text)
}

fn row(info: &SnapshotInfo) -> String {
    let problem = info.problem.as_deref().unwrap_or("its state could not be read");
    let id = info.snapshot.map_or_else(|| info.file.clone(), |id| id.to_string());
    let say = |what: &str| format!("{id:>8}  {what}: {problem}\n");
    let manifest = match (&info.manifest, info.condition) {
        (_, Condition::PassedOver) => return say("passed over, kept as evidence"),
        (None, Condition::Newer) => return say("of a newer tidegate"),
        (None, _) => return say("DAMAGED"),
        (Some(manifest), _) => manifest,
    };
    let (created, bytes) = (utc(manifest.created_unix_ms), manifest.state_bytes());
    let notes = if manifest.last { "the job is complete" } else { "" };
    let row = format!("{id:>8}  {created}  {bytes:>11}  {notes}");
    format!("{}\n", row.trim_end())
}

fn show(which: &Which, id: Option<u64>, disk: &dyn Disk) -> Result<(), Failure> {
    let mut snapshots = store::list(disk, &which.directory)?;
    snapshots.retain(|info| info.condition != Condition::PassedOver);
    let ids: Vec<u64> = snapshots.iter().filter_map(|info| info.snapshot).collect();
    let Some(newest) = ids.last() else {
        let damaged = snapshots.into_iter().find_map(|info| info.problem);
        let reason = damaged.unwrap_or_else(|| "it holds no snapshot".into());
        return Err(refuse(&which.directory, reason));
    };
    let id = id.unwrap_or(*newest);
    if !ids.contains(&id) {
        let all = ids.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        return Err(refuse(&which.directory, format!("it holds no snapshot {id}, but {all}")));
    }
    // What was just read: while the job runs, another snapshot may have taken the place of this one.
    let read = snapshots.into_iter().find(|info| info.snapshot == Some(id));
    let manifest = match read.and_then(|info| info.manifest) {
        Some(manifest) => manifest,
        None => store::show(disk, &which.directory, SnapshotId(id))?,
    };
    if which.json {
        return summary::print_json(&manifest);
    }
    summary::print(&describe(&manifest))
}

fn describe(manifest: &Manifest) -> String {
    let mut text = format!(
        "snapshot    {}{}\ncreated     {} UTC\njob         {}\nwritten by  generation {}, attempt {}, format {}\n",
        manifest.snapshot,
        if manifest.last { ", the job is complete" } else { "" },
        utc(manifest.created_unix_ms),
        manifest.job.name,
        manifest.generation,
        manifest.attempt,
        manifest.format,
    );
    for line in manifest.job.fingerprint.lines() {
        text.push_str(&format!("            {line}\n"));
    }
    for operator in &manifest.operators {
        if let Some(state) = &operator.state {
            let OperatorEntry { name, schema, .. } = operator;
            text.push_str(&format!("state       '{name}': schema {schema}, {state}\n"));
        }
    }
    for (worker, part) in manifest.parts.iter().enumerate() {
        let PartRef { segment, offset, bytes, crc32c, frames, links, .. } = part;
        if *bytes == 0 {
            text.push_str(&format!("worker {worker:<4} no state\n"));
            continue;
        }
        let (pages, segments) =
            (part.page_bytes, summary::counted(part.segments.len() as u64, "segments"));
        text.push_str(&format!(
            "worker {worker:<4} {pages} bytes of pages in {segments}; index of {bytes} bytes in {frames} \
             frames, CRC32C {crc32c:08x}, at byte {offset} of segment-{segment}, going on from {links} \
             earlier\n"
        ));
    }
    if let Some(restored) = manifest.unread_since {
        text.push_str(&format!(
            "unread      some pages, since snapshot {restored} was restored; those up to it are kept\n"
        ));
    }
    for (note, value) in &manifest.notes {
        text.push_str(&format!("{note} {value}\n"));
    }
    text
}

/// What was found, as far as it was asked about.
#[derive(Serialize)]
struct Verdict {
    #[serde(flatten)]
    report: store::Report,
    whole: bool,
}

fn verify(which: &Which, id: Option<u64>, disk: &dyn Disk) -> Result<(), Failure> {
    let mut report = store::verify(disk, &which.directory)?;
    if let Some(id) = id {
        report.snapshots.retain(|info| info.snapshot == Some(id));
        let counting = report.snapshots.iter().filter(|i| i.condition != Condition::PassedOver);
        report.problems = counting.filter_map(|info| info.problem.clone()).collect();
        report.verified_bytes = report
            .snapshots
            .iter()
            .filter(|info| info.condition == Condition::Whole)
            .filter_map(|info| Some(info.manifest.as_ref()?.state_bytes()))
            .sum();
        if report.snapshots.is_empty() {
            return Err(refuse(&which.directory, format!("it holds no snapshot {id}")));
        }
    }
    let verdict = Verdict { whole: report.is_whole(), report };
    let snapshots = &verdict.report.snapshots;
    let aside = snapshots.iter().filter(|i| i.condition == Condition::PassedOver).count() as u64;
    let count = summary::counted(snapshots.len() as u64 - aside, "snapshots");
    let passed = if aside > 0 { format!(", {aside} passed over") } else { String::new() };
    let bytes = verdict.report.verified_bytes;
    if which.json {
        summary::print_json(&verdict)?;
    } else {
        let is_bad =
            |i: &&SnapshotInfo| matches!(i.condition, Condition::Damaged | Condition::Newer);
        let bad = match snapshots.iter().filter(is_bad).count() {
            0 => String::new(),
            bad => format!(", {bad} of them not whole"),
        };
        let gone = match verdict.report.overwritten {
            0 => String::new(),
            gone => format!(", {gone} more overwritten by a running job while they were read"),
        };
        summary::print(&format!(
            "{count}{bad}{passed}, {bytes} bytes of state found whole{gone}\n"
        ))?;
    }
    match &verdict.report.problems[..] {
        [] => Ok(()),
        problems => Err(Failure::Failed(format!("not whole: {}", problems.join("; ")))),
    }
}

/// A time in milliseconds since 1970 as "2026-01-31 23:59:58".
///
/// Days to a date by the civil calendar of Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms" (`civil_from_days`).
fn utc(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02}", second % 60)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tidegate::store::{JobIdentity, MANIFEST_FORMAT};

    use super::*;

    #[test]
    fn a_snapshot_with_pages_that_were_not_read_says_since_when() {
        let mut manifest = Manifest {
            format: MANIFEST_FORMAT,
            snapshot: 9,
            generation: 2,
            attempt: 1,
            created_unix_ms: 0,
            job: JobIdentity { name: "count".into(), fingerprint: String::new() },
            last: false,
            unread_since: Some(7),
            operators: Vec::new(),
            parts: Vec::new(),
            notes: BTreeMap::new(),
        };
        let said =
            "unread      some pages, since snapshot 7 was restored; those up to it are kept\n";
        assert!(describe(&manifest).contains(said), "{}", describe(&manifest));
        manifest.unread_since = None;
        assert!(!describe(&manifest).contains("unread"));
    }

    #[test]
    fn times_are_dates_of_the_civil_calendar() {
        for (unix_s, expected) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (951_868_800, "2000-03-01 00:00:00"),
            (1_767_225_599, "2025-12-31 23:59:59"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(utc(unix_s * 1000), expected);
        }
    }
}
