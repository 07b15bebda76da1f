//! `tidegate doctor`: what this machine lacks, and how to mend it.

use std::path::PathBuf;

use clap::Args;
use tidegate::clock;
use tidegate::doctor::{Check, Status, examine, worst};

use super::exit::Failure;
use super::summary;

/// Check kernel, io_uring, memory limits, disk, clock and cores, and say how to mend what is missing
#[derive(Args)]
pub struct Arguments {
    /// Where snapshots would go
    #[arg(value_name = "DIR", default_value = ".")]
    directory: PathBuf,
    /// Print the checks as a JSON array
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let checks = examine(&arguments.directory, clock::now_ns);
    if arguments.json {
        summary::print_json(&checks)?;
    } else {
        summary::print(&text(&checks))?;
    }
    if worst(&checks) < Status::Fail {
        return Ok(());
    }
    let failed = checks.iter().filter(|check| check.status == Status::Fail).map(|check| check.name);
    Err(Failure::Failed(format!("jobs cannot run here: {}", failed.collect::<Vec<_>>().join(", "))))
}

fn text(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let status = match check.status {
            Status::Ok => "ok  ",
            Status::Warn => "WARN",
            Status::Fail => "FAIL",
        };
        text.push_str(&format!("{status}  {:width$}  {}\n", check.name, check.found));
        if let Some(remedy) = &check.remedy {
            text.push_str(&format!("      {:width$}  -> {remedy}\n", ""));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_stands_below_what_it_mends() {
        let check = |name, status, remedy: Option<&str>| Check {
            name,
            status,
            found: "found".into(),
            remedy: remedy.map(Into::into),
        };
        let checks = [check("cores", Status::Ok, None), check("io", Status::Warn, Some("mend"))];
        let expected = "ok    cores  found\nWARN  io     found\n             -> mend\n";
        assert_eq!(text(&checks), expected);
    }
}
