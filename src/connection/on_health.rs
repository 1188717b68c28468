//! The health hook, and the change of a connection's health that it gets.

use std::fmt;
use std::sync::Arc;

use super::handle::Liveness;
use crate::eviction::ConnectionId;
use crate::hooks::sealed::{IntoArc, Shared, SharedDyn, Value};
use crate::monitor::{Health, Rtt, Stats};
use crate::panic_guard;

/// A hook that is called when the health of a connection has changed for a while.
///
/// Closures implement it:
///
/// ```
/// use tower_ws_liveness::{ConfigError, HeartbeatLayer};
///
/// # fn main() -> Result<(), ConfigError> {
/// let layer = HeartbeatLayer::builder()
///     .on_health(|change| {
///         println!("{}: {} -> {}", change.id(), change.from(), change.to());
///     })
///     .build()?;
/// # Ok(())
/// # }
/// ```
///
/// # Reported changes
///
/// A hook is called for changes between the states of an open connection, of which the first is
/// [`Health::Live`]. It is called neither when the connection opens nor at its end, for which there
/// are [`OnOpen`](crate::OnOpen) and [`OnEvict`](crate::OnEvict). Transient states are not
/// reported, because every ping makes its peer silent for a moment: the following states are
/// reported when they have lasted, while [`Liveness::health`](crate::Liveness::health) shows them
/// immediately:
///
/// | state | is reported |
/// |---|---|
/// | [`PeerSilent`](Health::PeerSilent) | when a ping is unanswered for half of `timeout`, and at each ping that is missed |
/// | [`WriteStalled`](Health::WriteStalled) | when the transport has accepted no byte for half of `write_timeout`, or of its default of 30 s where it is off |
/// | [`HandlerStalled`](Health::HandlerStalled) | when the handler has left bytes unread, or its frame unfinished, for half of `handler_stall_timeout`, or for an `interval` where that is off |
/// | [`Degraded`](Health::Degraded) | immediately; when the last error no longer counts, the state without it is reported |
/// | [`Idle`](Health::Idle) | after half of the idle timeout |
/// | [`Closing`](Health::Closing), [`Live`](Health::Live) | immediately |
///
/// The times are those of the heartbeat, or its defaults where there is none; one tick of the
/// driver may be added (see [`HeartbeatLayerBuilder`](crate::HeartbeatLayerBuilder)). Time for
/// which the server's own process was stopped counts, but the bytes that arrived meanwhile are
/// checked first.
///
/// # Calls
///
/// Each change is reported once, and the changes of a connection are reported in order, one after
/// the other: `from` is always the `to` of the previous call. If hooks are so slow that 16 changes
/// are queued, the latest of them are merged into one. No call begins after the end of the
/// connection, and queued changes are dropped; only a hook that was called at the same moment on
/// another thread may still be running.
///
/// A hook runs on the task or thread that notices the change, in the context of the connection's
/// runtime as [`OnEvict`](crate::OnEvict) hooks do, and outside every lock: it may use the
/// connection's handle, and end the connection. It must not block: hand slow work to a task or a
/// channel. A slow hook is logged at WARN, with its duration, as [`OnEvict`](crate::OnEvict) hooks
/// are. If a hook panics, the panic is caught and logged at WARN and has no other effect; a program
/// built with `panic = "abort"` ends, as with any panic.
///
/// Connections of layers without such a hook have no cost for it. A connection with a hook also
/// wakes the driver at the times above.
pub trait OnHealth: Send + Sync + 'static {
    /// Called once for each reported change.
    fn on_health(&self, change: &HealthChange);
}

impl<T: OnHealth> IntoArc<dyn OnHealth, Value> for T {
    fn into_arc(self) -> Arc<dyn OnHealth> {
        Arc::new(self)
    }
}

impl<T: OnHealth> IntoArc<dyn OnHealth, Shared> for Arc<T> {
    fn into_arc(self) -> Arc<dyn OnHealth> {
        self
    }
}

impl IntoArc<dyn OnHealth, SharedDyn> for Arc<dyn OnHealth> {
    fn into_arc(self) -> Arc<dyn OnHealth> {
        self
    }
}

impl<F> OnHealth for F
where
    F: Fn(&HealthChange) + Send + Sync + 'static,
{
    fn on_health(&self, change: &HealthChange) {
        self(change);
    }
}

// A closure has no `Debug`, which types that hold hooks need to derive theirs.
impl fmt::Debug for dyn OnHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnHealth")
    }
}

/// A change of a connection's health, and the connection's state at that moment.
///
/// A hook that finds a connection unwell may end it through its [handle](Self::live). A change that
/// is kept keeps what the connection has in memory, but not its socket.
///
/// ```
/// use tokio::{io::duplex, sync::mpsc};
/// use tower_ws_liveness::{Health, HealthChange, HeartbeatLayer};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), tower_ws_liveness::ConfigError> {
/// let (tx, mut changes) = mpsc::unbounded_channel();
/// let layer = HeartbeatLayer::builder()
///     .on_health(move |change: &HealthChange| {
///         let _ = tx.send(change.clone());
///     })
///     .build()?;
/// let (io, _peer) = duplex(64);
/// let (_io, _live) = layer.wrap_server(io);
/// // Half of the timeout after the first ping.
/// let change = changes.recv().await.expect("a change");
/// assert_eq!((change.from(), change.to()), (Health::Live, Health::PeerSilent { missed: 0 }));
/// assert_eq!(change.stats().pings_sent(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HealthChange {
    pub(crate) live: Liveness,
    pub(crate) from: Health,
    pub(crate) to: Health,
    pub(crate) rtt: Option<Rtt>,
    pub(crate) stats: Stats,
}

impl HealthChange {
    /// The id of the connection.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.live.id()
    }

    /// The handle of the connection.
    #[must_use]
    pub fn live(&self) -> &Liveness {
        &self.live
    }

    /// The state that was reported before; [`Health::Live`] if none was.
    #[must_use]
    pub fn from(&self) -> Health {
        self.from
    }

    /// The state from now on.
    #[must_use]
    pub fn to(&self) -> Health {
        self.to
    }

    /// The round-trip times of the layer's own pings. `None` before the first pong.
    #[must_use]
    pub fn rtt(&self) -> Option<Rtt> {
        self.rtt
    }

    /// Counters since the upgrade.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }
}

/// Calls a hook and catches its panic.
pub(crate) fn call_on_health(hook: &dyn OnHealth, change: &HealthChange) {
    let slow = |took_ms| {
        tracing::warn!(
            conn_id = %change.id(),
            health = %change.to,
            took_ms,
            "a health hook was slow, others may have had to wait"
        );
    };
    let panicked = |panic: &str| {
        tracing::warn!(
            conn_id = %change.id(),
            health = %change.to,
            panic,
            "a health hook panicked"
        );
    };
    panic_guard::call_timed(|| hook.on_health(change), slow, panicked);
}

#[cfg(all(test, not(liveness_loom)))]
mod tests {
    use super::*;
    use crate::logs::Logs;
    use std::panic;
    use std::thread;
    use std::time::Duration;

    fn change() -> HealthChange {
        HealthChange {
            live: Liveness::detached(ConnectionId::next()),
            from: Health::Live,
            to: Health::WriteStalled,
            rtt: None,
            stats: Stats::default(),
        }
    }

    #[test]
    fn hooks_implement_debug() {
        let hooks: Vec<Arc<dyn OnHealth>> = vec![Arc::new(|_: &HealthChange| {})];
        assert_eq!(format!("{hooks:?}"), "[OnHealth]");
    }

    #[test]
    fn panics_of_health_hooks_are_caught_and_logged() {
        let logs = Logs::keep();
        let change = change();
        call_on_health(
            &|change: &HealthChange| panic!("at {}", change.to()),
            &change,
        );
        call_on_health(&|_: &HealthChange| panic::panic_any(7_u8), &change);
        let lines = logs.lines();
        let conn_id = format!("conn_id={}", change.id());
        for text in ["at write stalled", "(no message)"] {
            let wanted = ["WARN", "a health hook panicked", &conn_id, text];
            let found = |line: &&String| wanted.iter().all(|wanted| line.contains(wanted));
            assert_eq!(lines.iter().filter(found).count(), 1, "{text}: {lines:?}");
        }
    }

    #[test]
    fn slow_health_hooks_are_logged_with_their_duration() {
        let logs = Logs::keep();
        let slow = |_: &HealthChange| thread::sleep(Duration::from_millis(150));
        let change = change();
        call_on_health(&slow, &change);
        let lines = logs.lines();
        assert_eq!(lines.len(), 1, "{lines:?}");
        let conn_id = format!("conn_id={}", change.id());
        for wanted in ["WARN", "a health hook was slow", "write stalled", &conn_id] {
            assert!(lines[0].contains(wanted), "{wanted:?} is not in {lines:?}");
        }
        let (_, took) = lines[0].split_once("took_ms=").unwrap();
        let took = took.split(' ').next().unwrap();
        assert!(took.parse::<u64>().unwrap() >= 150, "{lines:?}");
    }
}
