//! Calls of other people's code on input of strangers. Some of it panics on files that it does not expect (tokenizers on a damaged
//! `precompiled_charsmap`, for one); here that is an error like any other.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is in such a call, whose panic will be an error: nothing that a hook should print.
#[must_use]
pub fn is_inside() -> bool {
    INSIDE.get()
}

/// What `work` gives, or what it panicked with. `work` may leave what it holds half-changed, so that should not be used for more.
pub(crate) fn call<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let outer = INSIDE.replace(true);
    let found = catch_unwind(AssertUnwindSafe(work));
    INSIDE.set(outer);
    found.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        format!("its reader gave up on it: {text}")
    })
}

/// Stack of a thread that [`call_within`] makes, bytes. A template may nest lists as deep as its fuel lasts, some 570 000 times, and each level takes
/// some hundred bytes when the value is printed or dropped. Only what is used is taken from the system.
const STACK: usize = 1 << 30;

/// [`call`] on a thread of its own, which is given up where it takes longer than `limit`: it goes on without anybody waiting for it, since a
/// thread cannot be ended from outside.
pub(crate) fn call_within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (sender, receiver) = mpsc::channel();
    let thread = thread::Builder::new().stack_size(STACK);
    // Nobody listens any more where the limit was passed.
    let started = thread.spawn(move || sender.send(call(work)).unwrap_or_default());
    started.map_err(|error| format!("no thread for it: {error}"))?;
    receiver
        .recv_timeout(limit)
        .unwrap_or_else(|_| Err(format!("takes longer than {} seconds", limit.as_secs())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_too_long_is_given_up() {
        assert_eq!(call_within(Duration::from_secs(60), || 7), Ok(7));
        let (_keep, never) = mpsc::channel::<()>();
        let error = call_within(Duration::from_millis(1), move || never.recv()).unwrap_err();
        assert!(error.contains("longer than"), "{error}");
    }

    #[test]
    fn a_panic_is_an_error_and_leaves_no_trace() {
        let error = call(|| -> u8 { panic!("number {}", 7) }).unwrap_err();
        assert_eq!(error, "its reader gave up on it: number 7");
        assert!(!is_inside());
        assert_eq!(call(is_inside), Ok(true));
    }
}
