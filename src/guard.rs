//! Panics turned into errors: the one place that catches them.
//!
//! A thread that dies of a panic tells nobody, and its job waits for ever. So whatever runs on a
//! worker runs inside [`caught`], and what it panicked with goes to the supervisor as an error.
//!
//! A panic hook that prints (the usual one does) says the same a second time. It may ask
//! [`takes`] and keep quiet if that is true. It is true for the first panic inside a `caught` only:
//! a second one before the first is caught, as when something dropped during the unwinding panics
//! too, is the end of the process in Rust, and the hook is all that can still say so.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::error::Error;

/// What ended the work of a [`caught`].
#[derive(Debug)]
pub enum Caught {
    /// A panic, with this message.
    Panic(String),
    /// An error that was [`raise`]d where the code could not return it.
    Error(Box<Error>),
}

impl Caught {
    /// The error, or what `name` makes of a panic's message.
    pub fn into_error(self, name: impl FnOnce(String) -> Error) -> Error {
        match self {
            Self::Panic(message) => name(message),
            Self::Error(error) => *error,
        }
    }
}

/// Ends the work of the [`caught`] around with this error. For the one place where user code stands
/// in between and cannot pass an error on: state that has to be read from disk when it is asked for.
pub fn raise(error: Error) -> ! {
    resume_unwind(Box::new(error))
}

thread_local! {
    /// Whether the next panic on this thread comes back from a [`caught`].
    static ARMED: Cell<bool> = const { Cell::new(false) };
}

/// What `work` returns, or what ended it. What it was at then is in doubt:
/// the caller must not go on with it.
///
/// # Errors
/// The panic's message, or the error that was raised.
#[inline]
pub fn caught<R>(work: impl FnOnce() -> R) -> Result<R, Caught> {
    let before = ARMED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    ARMED.set(before);
    result.map_err(Caught::of)
}

/// What `work` returns, which is code of this operator; if that panics, an error that says so. For what an
/// operator does beside the records of a task: for all of its tasks at once, `subtask` is 0.
///
/// # Errors
/// Those of `work`; [`Error::Panicked`].
pub fn named<R>(
    operator: &str,
    subtask: usize,
    work: impl FnOnce() -> Result<R, Error>,
) -> Result<R, Error> {
    let panicked = |message| Error::Panicked { operator: operator.into(), subtask, message };
    caught(work).unwrap_or_else(|caught| Err(caught.into_error(panicked)))
}

/// For a panic hook: whether the panic at hand will come back as an error.
#[must_use]
pub fn takes() -> bool {
    ARMED.replace(false)
}

impl Caught {
    /// The panic's value may be of the job's own making and panic when it is dropped: it is not.
    fn of(panic: Box<dyn Any + Send>) -> Self {
        let panic = match panic.downcast::<Error>() {
            Ok(error) => return Self::Error(error),
            Err(panic) => panic,
        };
        let text = panic.downcast_ref::<&str>().map(ToString::to_string);
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        if text.is_none() {
            std::mem::forget(panic);
        }
        Self::Panic(text.unwrap_or_else(|| "no message".into()))
    }
}

#[cfg(test)]
mod tests {
    use std::panic::panic_any;

    use super::*;

    fn message<R>(work: impl FnOnce() -> R) -> Result<R, String> {
        caught(work).map_err(|caught| match caught {
            Caught::Panic(message) => message,
            Caught::Error(error) => panic!("{error}"),
        })
    }

    #[test]
    fn a_panic_comes_back_as_its_message_and_an_error_as_it_is() {
        assert_eq!(message(|| 7), Ok(7));
        assert_eq!(message(|| panic!("as asked")), Err("as asked".into()));
        assert_eq!(message(|| panic!("{} times", 2)), Err("2 times".into()));
        let raised = caught(|| raise(Error::corrupt("a", 7, "so it is")));
        let error = raised.map_err(|caught| caught.into_error(|_| unreachable!())).unwrap_err();
        assert_eq!(error.to_string(), "a is corrupt at byte 7: so it is");
    }

    #[test]
    fn a_panic_with_a_value_that_panics_when_dropped_is_caught_all_the_same() {
        struct Spiteful;
        impl Drop for Spiteful {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        assert_eq!(message(|| panic_any(Spiteful)), Err("no message".into()));
    }

    #[test]
    fn a_hook_keeps_quiet_about_the_first_panic_of_what_is_caught_and_no_other() {
        assert!(!takes(), "nobody would report it");
        _ = caught(|| {
            assert_eq!(message(|| (takes(), takes())), Ok((true, false)));
            assert!(takes(), "the inner one is over");
        });
        assert!(!takes(), "nobody would report it");
    }
}
