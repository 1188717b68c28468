//! Guarded calls of application code at the end of a session.

use crate::eviction::ConnectionId;
use crate::panic_guard;

/// Calls a hook of a session and catches its panic. `connection` is the last one of the session.
pub(crate) fn call_on_session_end(
    connection: ConnectionId,
    cause: &'static str,
    hook: impl FnOnce(),
) {
    call_guarded("session hook", connection, cause, hook);
}

/// Calls `remove`, which removes a lingering seat from an application's session map, and catches its
/// panic.
pub(crate) fn guard_session_map(
    connection: ConnectionId,
    cause: &'static str,
    remove: impl FnOnce(),
) {
    call_guarded("session map", connection, cause, remove);
}

fn call_guarded(
    what: &'static str,
    connection: ConnectionId,
    cause: &'static str,
    call: impl FnOnce(),
) {
    let slow = |took_ms| {
        let message = "slow at a session's end, others may have had to wait";
        tracing::warn!(conn_id = %connection, cause, what, took_ms, "{message}");
    };
    let panicked = |panic: &str| {
        tracing::warn!(conn_id = %connection, cause, what, panic, "panicked at a session's end");
    };
    panic_guard::call_timed(call, slow, panicked);
}
