//! The open hook, which is called when a connection has opened.

use std::fmt;
use std::sync::Arc;

use super::handle::Liveness;
use crate::hooks::sealed::{IntoArc, Shared, SharedDyn, Value};
use crate::panic_guard;

/// A hook that is called when a connection has opened, once per connection.
///
/// Closures implement it:
///
/// ```
/// use tower_ws_liveness::{ConfigError, HeartbeatLayer};
///
/// # fn main() -> Result<(), ConfigError> {
/// let layer = HeartbeatLayer::builder()
///     .on_open(|live| println!("{} opened, from {:?}", live.id(), live.peer_addr()))
///     .on_evict(|ev| println!("{} ended: {}", ev.id(), ev.reason()))
///     .build()?;
/// # Ok(())
/// # }
/// ```
///
/// A connection has opened when its upgrade is complete: it is in its registries, its deadlines
/// run, and its peer may send frames. The handler gets its socket after the hooks have returned.
/// Below HTTP they are called by [`wrap_server`](crate::HeartbeatLayer::wrap_server) and
/// [`wrap_client`](crate::HeartbeatLayer::wrap_client); behind
/// [`wrap_server_handshake`](crate::HeartbeatLayer::wrap_server_handshake) and
/// [`wrap_client_handshake`](crate::HeartbeatLayer::wrap_client_handshake), when the handshake
/// completes. They are not called if the upgrade fails, if the connection was evicted before it was
/// complete, or if the response is not an upgrade.
///
/// # Order
///
/// All open hooks of a connection have returned before its first eviction hook is called. So a pair
/// of hooks can keep a map of the open connections: what the first inserts, the second removes. The
/// eviction hooks of a connection that never opened are called without the open hooks.
///
/// If the connection ends while its open hooks are called (by a timeout, another task, or a hook),
/// the rest of them is called nevertheless, and then, by the same thread, the eviction hooks. Only
/// in that case may [`Liveness::evict`] return, and the Close frame be sent, before their calls. The
/// registries, the session maps, [`evictions`](crate::Registry::evictions) and health hooks do not
/// wait for the open hooks; nor does a hook that is passed to [`Liveness::on_evict`] after the end.
/// An open hook must not wait for the end of its own connection.
///
/// # Calls
///
/// A hook is called by the task that completes the upgrade, outside every lock, in the context of
/// the runtime in which the connection opens. It may use the handle, and end the connection. It
/// must not block, since the handler and the peer wait for it: hand slow work to a task or a
/// channel. A slow hook is logged at WARN, with its duration, as [`OnEvict`](crate::OnEvict) hooks
/// are. If a hook panics, the panic is caught and logged at WARN and has no other effect; a program
/// built with `panic = "abort"` ends, as with any panic.
pub trait OnOpen: Send + Sync + 'static {
    /// Called once for each connection that opens.
    fn on_open(&self, live: &Liveness);
}

impl<T: OnOpen> IntoArc<dyn OnOpen, Value> for T {
    fn into_arc(self) -> Arc<dyn OnOpen> {
        Arc::new(self)
    }
}

impl<T: OnOpen> IntoArc<dyn OnOpen, Shared> for Arc<T> {
    fn into_arc(self) -> Arc<dyn OnOpen> {
        self
    }
}

impl IntoArc<dyn OnOpen, SharedDyn> for Arc<dyn OnOpen> {
    fn into_arc(self) -> Arc<dyn OnOpen> {
        self
    }
}

impl<F> OnOpen for F
where
    F: Fn(&Liveness) + Send + Sync + 'static,
{
    fn on_open(&self, live: &Liveness) {
        self(live);
    }
}

// A closure has no `Debug`, which types that hold hooks need to derive theirs.
impl fmt::Debug for dyn OnOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnOpen")
    }
}

/// Calls a hook and catches its panic.
pub(crate) fn call_on_open(hook: &dyn OnOpen, live: &Liveness) {
    let slow = |took_ms| {
        tracing::warn!(
            conn_id = %live.id(),
            took_ms,
            "an open hook was slow, the handler had to wait"
        );
    };
    let panicked = |panic: &str| {
        tracing::warn!(conn_id = %live.id(), panic, "an open hook panicked");
    };
    panic_guard::call_timed(|| hook.on_open(live), slow, panicked);
}

#[cfg(all(test, not(liveness_loom)))]
mod tests {
    use super::*;
    use crate::connection::{Connection, ErasedConnection, TransportTraits};
    use crate::logs::Logs;
    use crate::panic_guard::SLOW;
    use crate::wire::Role;
    use std::thread;
    use tokio::io::DuplexStream;

    #[test]
    fn open_hooks_implement_debug() {
        let hooks: Vec<Arc<dyn OnOpen>> = vec![Arc::new(|_: &Liveness| {})];
        assert_eq!(format!("{hooks:?}"), "[OnOpen]");
    }

    #[test]
    fn slow_and_panicking_open_hooks_are_logged() {
        let logs = Logs::keep();
        let connection = Connection::<DuplexStream>::new(Role::Server, TransportTraits::FOREIGN);
        let live = Liveness::new(connection as Arc<dyn ErasedConnection>);
        let hook = |live: &Liveness| {
            thread::sleep(SLOW);
            panic!("at {}", live.id());
        };
        call_on_open(&hook, &live);
        let conn_id = format!("conn_id={}", live.id());
        let panic = format!("at {}", live.id());
        let lines = logs.lines();
        let expected = [
            ["an open hook was slow", "took_ms="],
            ["an open hook panicked", panic.as_str()],
        ];
        assert_eq!(lines.len(), expected.len(), "{lines:?}");
        for (line, [message, detail]) in lines.iter().zip(expected) {
            for wanted in ["WARN", message, detail, &conn_id] {
                assert!(line.contains(wanted), "{wanted:?} is not in {line}");
            }
        }
    }
}
