//! Calls foreign code that may panic: hooks, tracing subscribers, wakers and destructors.

use std::any::Any;
use std::fmt::Display;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::time::{Duration, Instant};

/// Calls foreign code and catches its panic. `None` if it panicked.
pub(crate) fn catch<R>(foreign: impl FnOnce() -> R) -> Option<R> {
    // Unwind safety: the callers share no state with `foreign` that a panic could leave
    // inconsistent.
    match panic::catch_unwind(AssertUnwindSafe(foreign)) {
        Ok(result) => Some(result),
        Err(payload) => {
            dispose(payload);
            None
        }
    }
}

/// Emits a log event. All log events use this function, so that a tracing subscriber that panics
/// neither prevents calls of eviction hooks nor ends the driver's task.
pub(crate) fn log(event: impl FnOnce()) {
    catch(event);
}

/// Wakes tasks or drops their wakers. If a waker panics, the caller can still wake the others.
pub(crate) fn wake(conn_id: impl Display, wake: impl FnOnce()) {
    if catch(wake).is_none() {
        log(|| tracing::warn!(%conn_id, "a waker panicked"));
    }
}

/// Like [`wake`], for tasks that wait for no single connection.
pub(crate) fn wake_waiting(wake: impl FnOnce()) {
    if catch(wake).is_none() {
        log(|| tracing::warn!("a waker panicked"));
    }
}

/// Calls of foreign code that block other connections for this long or longer are logged.
pub(crate) const SLOW: Duration = Duration::from_millis(100);

/// Calls `foreign` and catches its panic. For the log, calls `slow` with the duration in
/// milliseconds if it took at least [`SLOW`], and `panicked` with the panic's message if there was
/// one.
pub(crate) fn call_timed(
    foreign: impl FnOnce(),
    slow: impl FnOnce(u64),
    panicked: impl FnOnce(&str),
) {
    // Not tokio's clock: a thread is blocked in real time, also where a test has paused tokio's.
    let started = Instant::now();
    // Unwind safety: the call shares nothing with this crate but references through which the crate
    // does not write. A panic poisons the foreign code's own locks.
    let outcome = panic::catch_unwind(AssertUnwindSafe(foreign));
    let elapsed = started.elapsed();
    if elapsed >= SLOW {
        log(|| slow(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)));
    }
    let Err(payload) = outcome else {
        return;
    };
    log(|| panicked(message(payload.as_ref())));
    dispose(payload);
}

/// The text that was passed to `panic!`: a `&str` or a `String`.
fn message(payload: &(dyn Any + Send)) -> &str {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        text
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text
    } else {
        "(no message)"
    }
}

/// Drops a value of the application and catches its panic.
pub(crate) fn discard<T>(conn_id: impl Display, value: T) {
    if catch(|| drop(value)).is_none() {
        let message = "a session value panicked while it was dropped";
        log(|| tracing::warn!(%conn_id, "{message}"));
    }
}

/// Drops a panic's payload. If the drop panics too, the second payload is leaked.
pub(crate) fn dispose(payload: Box<dyn Any + Send>) {
    if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        mem::forget(payload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_payload_that_panics_when_dropped_is_caught() {
        /// Panics when dropped, with a payload that does the same `self.0 - 1` times.
        struct PanicOnDrop(u32);

        impl Drop for PanicOnDrop {
            fn drop(&mut self) {
                if let Some(remaining) = self.0.checked_sub(1) {
                    panic::panic_any(PanicOnDrop(remaining));
                }
            }
        }

        let escaped = panic::catch_unwind(|| {
            log(|| panic::panic_any(PanicOnDrop(3)));
            wake("connection", || panic::panic_any(PanicOnDrop(3)));
        });
        // Leaked before the assertion: dropped in the test harness, the payload would hang it.
        assert!(escaped.map_err(mem::forget).is_ok());
    }
}
