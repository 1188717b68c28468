//! Calls of code outside this crate that may panic: tracing subscribers and wakers.

use std::any::Any;
use std::fmt::Display;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::time::{Duration, Instant};

/// Calls foreign code and catches its panic. `None` if it panicked.
pub(crate) fn catch<R>(foreign: impl FnOnce() -> R) -> Option<R> {
    // Unwind safety: the callers share no state with it that a panic could leave inconsistent.
    match panic::catch_unwind(AssertUnwindSafe(foreign)) {
        Ok(result) => Some(result),
        Err(payload) => {
            dispose(payload);
            None
        }
    }
}

/// Emits a log event. All log events go through here, so that a tracing subscriber that panics neither
/// prevents the calls of eviction hooks nor ends the driver's task.
pub(crate) fn log(line: impl FnOnce()) {
    catch(line);
}

/// Wakes tasks or drops their wakers. If a waker panics, the caller can still wake the others.
pub(crate) fn wake(conn_id: impl Display, wake: impl FnOnce()) {
    if catch(wake).is_none() {
        log(|| tracing::warn!(%conn_id, "a waker panicked"));
    }
}

/// What takes longer than this, and runs where other connections wait for their turn, is worth a
/// warning.
pub(crate) const SLOW: Duration = Duration::from_millis(100);

/// Calls `foreign` and catches its panic. For the log, calls `slow` with the duration in milliseconds if it
/// took at least [`SLOW`], and `panicked` with the panic's message if there was one.
pub(crate) fn call_timed(
    foreign: impl FnOnce(),
    slow: impl FnOnce(u64),
    panicked: impl FnOnce(&str),
) {
    // Not tokio's clock: a thread that is held up is held up in real time, also where a test has
    // paused the other.
    let begun = Instant::now();
    // Unwind safety: what is called shares nothing with us but references through which we do not
    // write. Whatever else it may leave half done is its own, and its own locks are poisoned for it.
    let outcome = panic::catch_unwind(AssertUnwindSafe(foreign));
    let took = begun.elapsed();
    if took >= SLOW {
        log(|| slow(u64::try_from(took.as_millis()).unwrap_or(u64::MAX)));
    }
    let Err(payload) = outcome else {
        return;
    };
    log(|| panicked(message(payload.as_ref())));
    dispose(payload);
}

/// The text that `panic!` was given, in either of the types it may arrive in.
fn message(payload: &(dyn Any + Send)) -> &str {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        text
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text
    } else {
        "(no message)"
    }
}

/// Drops what is the application's and survives its panic.
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
    fn a_payload_that_panics_when_dropped_is_caught() {
        struct Bomb(u32);

        impl Drop for Bomb {
            fn drop(&mut self) {
                if let Some(fuse) = self.0.checked_sub(1) {
                    panic::panic_any(Bomb(fuse));
                }
            }
        }

        let escaped = panic::catch_unwind(|| {
            log(|| panic::panic_any(Bomb(3)));
            wake("it", || panic::panic_any(Bomb(3)));
        });
        // Forgotten first, or it would go off in the test harness, which then hangs.
        assert!(escaped.map_err(mem::forget).is_ok());
    }
}
