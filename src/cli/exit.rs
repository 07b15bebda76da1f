//! How a command ends: the one place that knows exit codes.
//!
//! Usage errors are those that the arguments alone decide, on this machine; whatever depends on
//! files (a missing input, an output directory that holds something, a snapshot directory of another
//! job, in use, or corrupt) is a failure of the job. A reader that closes the pipe has what it
//! wanted: that is success.

use std::io::{self, ErrorKind, Write as _};
use std::process::ExitCode;

use tidegate::error::Error;

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const WRONG: u8 = 3;
/// What a shell reports for a process ended by SIGINT.
pub const INTERRUPTED: i32 = 130;

/// Shown below the help text.
pub const HELP: &str = "\
Exit codes:
  0    done; also: stopped by SIGTERM or SIGINT after a last snapshot, already complete before,
       or the reader of standard output has gone
  1    the job failed or could not begin: input, output or snapshot directory; `snapshot verify`
       found damage; `doctor` found a failure; a stop without snapshots
  2    wrong arguments
  3    a wrong result
  130  a second SIGINT";

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub enum Failure {
    /// Arguments that contradict each other.
    Usage(String),
    /// The library refused or failed.
    Engine(Error),
    /// What was examined is not as it should be, or the job did not come to its end.
    Failed(String),
    /// A result differs from the known answer.
    WrongResult(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

/// A [`Failure`] to write to standard output.
pub fn stdout_failure(source: io::Error) -> Failure {
    Failure::Engine(Error::io("write to", "standard output")(source))
}

/// Prints what went wrong, once, and gives the exit code.
pub fn code(result: Result<(), Failure>) -> ExitCode {
    let Some((message, code)) = result.err().and_then(explain) else { return ExitCode::SUCCESS };
    say(&format!("error: {message}"));
    ExitCode::from(code)
}

/// Message and exit code, if it is a failure after all.
fn explain(failure: Failure) -> Option<(String, u8)> {
    match failure {
        Failure::Engine(error) if is_broken_pipe(&error) => None,
        Failure::Engine(error) => Some((error.to_string(), code_of(&error))),
        Failure::Usage(message) => Some((message, USAGE)),
        Failure::Failed(message) => Some((message, FAILED)),
        Failure::WrongResult(message) => Some((message, WRONG)),
    }
}

fn code_of(error: &Error) -> u8 {
    match error {
        Error::Config { .. } | Error::Build { .. } => USAGE,
        _ => FAILED,
    }
}

fn is_broken_pipe(error: &Error) -> bool {
    match error {
        Error::Io { source, .. } => source.kind() == ErrorKind::BrokenPipe,
        Error::Operator { source, .. } => is_broken_pipe(source),
        Error::RestartsExhausted { last, .. } => is_broken_pipe(last),
        _ => false,
    }
}

/// Says so where this program is slow.
pub fn warn_of_debug_build() {
    if cfg!(debug_assertions) {
        say("warning: a debug build; its figures mean nothing");
    }
}

/// Compares a checksum with the known answer.
pub fn check_checksum(found: &str, expected: &str) -> Result<(), Failure> {
    if found == expected {
        return Ok(());
    }
    Err(Failure::WrongResult(format!(
        "checksum {found} differs from the expected {expected}: records were lost, repeated or changed"
    )))
}

/// A line for the person at the terminal. Standard error may be closed; nothing is to be done then.
pub fn say(line: &str) {
    _ = writeln!(io::stderr(), "tidegate: {line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn io_error(kind: ErrorKind) -> Error {
        Error::io("write to", "standard output")(kind.into())
    }

    fn nested(error: Error) -> Error {
        let source = Box::new(error);
        let last = Box::new(Error::Operator { operator: "out".into(), subtask: 0, source });
        Error::RestartsExhausted { failures: 4, last }
    }

    #[test]
    fn a_broken_pipe_is_success_however_deep_it_lies() {
        assert!(is_broken_pipe(&io_error(ErrorKind::BrokenPipe)));
        assert!(is_broken_pipe(&nested(io_error(ErrorKind::BrokenPipe))));
        assert!(!is_broken_pipe(&nested(io_error(ErrorKind::StorageFull))));
    }

    #[test]
    fn each_kind_of_failure_has_its_code() {
        let code = |failure| explain(failure).map(|(_, code)| code);
        assert_eq!(code(Failure::Failed("damage".into())), Some(1));
        assert_eq!(code(Failure::Usage("contradiction".into())), Some(2));
        assert_eq!(code(Failure::WrongResult("checksum".into())), Some(3));
        assert_eq!(code(Failure::Engine(nested(io_error(ErrorKind::StorageFull)))), Some(1));
        assert_eq!(code(Failure::Engine(nested(io_error(ErrorKind::BrokenPipe)))), None);
    }

    #[test]
    fn arguments_are_usage_and_files_are_not() {
        let config = Error::Config {
            setting: "parallelism".into(),
            value: "0".into(),
            reason: "too few".into(),
        };
        let input = Error::Input { name: "a".into(), reason: "empty".into() };
        assert_eq!((code_of(&config), code_of(&input)), (USAGE, FAILED));
    }
}
