//! Who is told that a connection's health has changed, and of what.

use std::fmt;
use std::sync::Arc;

use super::into_hook::sealed::{IntoArc, Shared, SharedDyn, Value};
use crate::eviction::ConnectionId;
use crate::monitor::{Health, Rtt, Stats};
use crate::panic_guard;

/// Is told when the health of a connection has changed for a while.
///
/// Closures implement it; the argument's type has to be written out for the compiler to see that the
/// closure takes any lifetime:
///
/// ```
/// use tower_ws_liveness::{ConfigError, HealthChange, HeartbeatLayer};
///
/// # fn main() -> Result<(), ConfigError> {
/// let layer = HeartbeatLayer::builder()
///     .on_health(|change: &HealthChange| {
///         println!("{}: {} -> {}", change.id(), change.from(), change.to());
///     })
///     .build()?;
/// # Ok(())
/// # }
/// ```
///
/// # What is told
///
/// Changes between the states of an open connection, of which the first is [`Health::Live`]. Not
/// that it has opened, and not its end, which is for [`OnEvict`](crate::OnEvict). A passing state is
/// no news: every ping makes its peer silent for a moment. So these are told when they have lasted,
/// though [`Liveness::health`](crate::Liveness::health) shows them at once:
///
/// | state | is told |
/// |---|---|
/// | [`PeerSilent`](Health::PeerSilent) | when a ping is unanswered for half of `timeout`, and at each ping that is missed |
/// | [`WriteStalled`](Health::WriteStalled) | when the transport has accepted nothing for half of `write_timeout`, or of its default of 30 s where it is off |
/// | [`HandlerStalled`](Health::HandlerStalled) | when the handler has left the bytes or its frame for half of `handler_stall_timeout`, or for an `interval` where that is off |
/// | [`Degraded`](Health::Degraded) | at once, and again what it is otherwise when the last error does not count any more |
/// | [`Idle`](Health::Idle) | after half of the idle timeout |
/// | [`Closing`](Health::Closing), [`Live`](Health::Live) | at once |
///
/// Times are the heartbeat's, or its defaults where there is none; one tick of the driver may be
/// added (see [`HeartbeatLayerBuilder`](crate::HeartbeatLayerBuilder)). Time for which the server's own
/// process stood still counts, after a look at what has come meanwhile.
///
/// # How
///
/// Each change is told once, and those of a connection in order, one after the other: `from` is
/// always the `to` that was told before. If hooks are so slow that 16 changes wait, the latest of
/// them are merged into one. After the end nothing is told any more, and what waits is dropped; only
/// a hook that is being called at the same moment, on another thread, may still be running.
///
/// A hook runs on whatever task or thread noticed the change, in the context of the connection's runtime
/// as [`OnEvict`](crate::OnEvict)'s do, and outside every lock: it may use the connection's
/// handle, and end the connection. It must not block: hand slow work to a task or a channel. One that
/// is slow is logged at WARN, with the time it took, as [`OnEvict`](crate::OnEvict)'s are. If it
/// panics, the panic is caught and logged at WARN and nothing else comes of it; a program built with
/// `panic = "abort"` ends, as with any panic.
///
/// Connections of layers without such a hook pay nothing for it. One with a hook wakes the driver
/// for the times above as well.
pub trait OnHealth: Send + Sync + 'static {
    /// Called once for each change.
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

// A closure has nothing to show, and without this no holder of hooks could derive `Debug`.
impl fmt::Debug for dyn OnHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnHealth")
    }
}

/// A change of a connection's health, and what the connection looked like in that moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HealthChange {
    pub(crate) id: ConnectionId,
    pub(crate) from: Health,
    pub(crate) to: Health,
    pub(crate) rtt: Option<Rtt>,
    pub(crate) stats: Stats,
}

impl HealthChange {
    /// Whose health changed.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// The state that was told before; [`Health::Live`] if none was.
    #[must_use]
    pub fn from(&self) -> Health {
        self.from
    }

    /// The state from now on.
    #[must_use]
    pub fn to(&self) -> Health {
        self.to
    }

    /// The round-trip times measured so far. `None` if no ping was answered yet.
    #[must_use]
    pub fn rtt(&self) -> Option<Rtt> {
        self.rtt
    }

    /// What has passed through the connection so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }
}

/// Calls a hook and survives its panic.
pub(crate) fn call_on_health(hook: &dyn OnHealth, change: &HealthChange) {
    let slow = |took_ms| {
        tracing::warn!(
            conn_id = %change.id,
            health = %change.to,
            took_ms,
            "a health hook was slow, others may have had to wait"
        );
    };
    let panicked = |panic: &str| {
        tracing::warn!(
            conn_id = %change.id,
            health = %change.to,
            panic,
            "a health hook panicked"
        );
    };
    panic_guard::call_timed(|| hook.on_health(change), slow, panicked);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic;
    use std::thread;
    use std::time::Duration;
    use tracing_test::traced_test;

    fn change() -> HealthChange {
        HealthChange {
            id: ConnectionId::next(),
            from: Health::Live,
            to: Health::WriteStalled,
            rtt: None,
            stats: Stats::default(),
        }
    }

    #[test]
    fn a_list_of_hooks_can_be_shown() {
        let hooks: Vec<Arc<dyn OnHealth>> = vec![Arc::new(|_: &HealthChange| {})];
        assert_eq!(format!("{hooks:?}"), "[OnHealth]");
    }

    #[traced_test]
    #[test]
    fn panics_of_health_hooks_are_caught_and_logged() {
        let change = change();
        call_on_health(
            &|change: &HealthChange| panic!("at {}", change.to()),
            &change,
        );
        call_on_health(&|_: &HealthChange| panic::panic_any(7_u8), &change);
        logs_assert(|lines| {
            let conn_id = format!("conn_id={}", change.id());
            for text in ["at write stalled", "(no message)"] {
                let wanted = ["WARN", "a health hook panicked", &conn_id, text];
                let found = |line: &&&str| wanted.iter().all(|wanted| line.contains(wanted));
                assert_eq!(lines.iter().filter(found).count(), 1, "{text}: {lines:?}");
            }
            Ok(())
        });
    }

    #[traced_test]
    #[test]
    fn slow_health_hooks_are_logged_with_their_duration() {
        let slow = |_: &HealthChange| thread::sleep(Duration::from_millis(150));
        let change = change();
        call_on_health(&slow, &change);
        logs_assert(|lines| {
            assert_eq!(lines.len(), 1, "{lines:?}");
            let conn_id = format!("conn_id={}", change.id());
            for wanted in ["WARN", "a health hook was slow", "write stalled", &conn_id] {
                assert!(lines[0].contains(wanted), "{wanted:?} is not in {lines:?}");
            }
            let (_, took) = lines[0].split_once("took_ms=").unwrap();
            let took = took.split(' ').next().unwrap();
            assert!(took.parse::<u64>().unwrap() >= 150, "{lines:?}");
            Ok(())
        });
    }

    #[test]
    fn a_payload_that_panics_when_dropped_is_caught() {
        struct Bomb;

        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("as it is dropped");
            }
        }

        call_on_health(&|_: &HealthChange| panic::panic_any(Bomb), &change());
    }
}
