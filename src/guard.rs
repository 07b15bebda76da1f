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
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    /// Whether the next panic on this thread comes back from a [`caught`].
    static ARMED: Cell<bool> = const { Cell::new(false) };
}

/// What `work` returns, or the message of the panic that ended it. What it was at then is in doubt:
/// the caller must not go on with it.
///
/// # Errors
/// The panic's message.
#[inline]
pub fn caught<R>(work: impl FnOnce() -> R) -> Result<R, String> {
    let before = ARMED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    ARMED.set(before);
    result.map_err(message_of)
}

/// For a panic hook: whether the panic at hand will come back as an error.
#[must_use]
pub fn takes() -> bool {
    ARMED.replace(false)
}

/// The panic's value may be of the job's own making and panic when it is dropped: it is not.
fn message_of(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    if text.is_none() {
        std::mem::forget(panic);
    }
    text.unwrap_or_else(|| "no message".into())
}

#[cfg(test)]
mod tests {
    use std::panic::panic_any;

    use super::*;

    #[test]
    fn a_panic_comes_back_as_its_message() {
        assert_eq!(caught(|| 7), Ok(7));
        assert_eq!(caught(|| panic!("as asked")), Err::<(), _>("as asked".into()));
        assert_eq!(caught(|| panic!("{} times", 2)), Err::<(), _>("2 times".into()));
    }

    #[test]
    fn a_panic_with_a_value_that_panics_when_dropped_is_caught_all_the_same() {
        struct Spiteful;
        impl Drop for Spiteful {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        assert_eq!(caught(|| panic_any(Spiteful)), Err::<(), _>("no message".into()));
    }

    #[test]
    fn a_hook_keeps_quiet_about_the_first_panic_of_what_is_caught_and_no_other() {
        assert!(!takes(), "nobody would report it");
        _ = caught(|| {
            assert_eq!(caught(|| (takes(), takes())), Ok((true, false)));
            assert!(takes(), "the inner one is over");
        });
        assert!(!takes(), "nobody would report it");
    }
}
