//! Calls of code outside this crate that may panic: tracing subscribers and wakers.

use std::any::Any;
use std::fmt::Display;
use std::mem;
use std::panic::{self, AssertUnwindSafe};

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
