//! The shutdown in one call: readiness, refusal, handlers, drain, report.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::Registry;
use super::drain::{Drain, DrainReport, GOING_AWAY};
use crate::config_error::{self, MAX_DURATION};
use crate::connection::Liveness;
use crate::monitor::CloseFrame;

/// The shortest pause between two batches of a drain that is spread.
const MIN_PAUSE: Duration = Duration::from_millis(20);

/// The settings of [`Registry::shutdown`].
///
/// The defaults fit into the 30 s that Kubernetes leaves a process between SIGTERM and SIGKILL: 5 s
/// of [`delay`](Self::delay), 5 s for the [handlers](Self::handler_grace), and the rest of the
/// [`deadline`](Self::deadline) of 25 s for the drain.
///
/// ```
/// use std::time::Duration;
///
/// use tower_ws_liveness::ShutdownPlan;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let (registry, signal) = (tower_ws_liveness::Registry::new(), async {});
/// // There is no load balancer, and no handler waits in `draining`.
/// let plan = ShutdownPlan::new()
///     .delay(Duration::ZERO)
///     .handler_grace(Duration::ZERO)
///     .reason("a new version is deployed");
/// registry.shutdown(signal, plan).await;
/// assert!(registry.is_empty());
/// # }
/// ```
///
/// No value is refused: times above 365 days count as 365 days.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "settings do nothing until they are passed to `Registry::shutdown`"]
pub struct ShutdownPlan {
    delay: Duration,
    handler_grace: Duration,
    spread: Duration,
    deadline: Duration,
    /// With a code that may be sent.
    close_frame: CloseFrame,
}

impl Default for ShutdownPlan {
    fn default() -> Self {
        Self {
            delay: Duration::from_secs(5),
            handler_grace: Duration::from_secs(5),
            spread: Duration::from_secs(5),
            deadline: Duration::from_secs(25),
            close_frame: GOING_AWAY,
        }
    }
}

impl ShutdownPlan {
    /// Creates a plan with the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how long upgrades are still admitted after the [readiness](Registry::readiness) has
    /// turned 503, so that the load balancers notice it first. Default: 5 s. With zero upgrades are
    /// refused at once.
    ///
    /// Use the time after which no balancer sends new requests: its interval between two checks
    /// times the number of failures that it waits for, and some time to spread that.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Sets how long handlers that wait in [`Liveness::draining`](crate::Liveness::draining) have
    /// to send what they have accepted and to close their connections. Default: 5 s. It ends
    /// earlier if no connection remains. With zero the drain follows at once.
    pub fn handler_grace(mut self, handler_grace: Duration) -> Self {
        self.handler_grace = handler_grace;
        self
    }

    /// Sets the time over which the drain distributes the evictions of the remaining connections,
    /// so that their clients do not all reconnect together. Default: 5 s. With zero all are evicted
    /// at once.
    ///
    /// The pauses between them have random lengths. All connections are evicted within the first
    /// half of the time that is left to the drain, so a longer spread is shortened to that.
    pub fn spread(mut self, spread: Duration) -> Self {
        self.spread = spread;
        self
    }

    /// Sets the time from the signal to the end of the shutdown. Default: 25 s. It includes the
    /// delay and the time for the handlers, and shortens them if they are longer. Connections that
    /// are not closed by then are cut; with zero, all connections are.
    ///
    /// SIGKILL must not follow SIGTERM before this has passed.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets the status code of the Close frames. Default and rules: as for [`Drain::code`].
    pub fn code(mut self, code: u16) -> Self {
        self.close_frame.code = config_error::on_wire(code);
        self
    }

    /// Sets the text of the Close frames. Default and rules: as for [`Drain::reason`].
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.close_frame.reason = reason.into().into();
        self
    }

    /// The drain of `count` connections with a time limit of `left`.
    fn drain(self, count: usize, left: Duration) -> Drain {
        // With longer pauses than fit into the first half, a drain makes none.
        let spread = self.spread.min(left / 2);
        let most_pauses = spread.as_nanos() / MIN_PAUSE.as_nanos();
        let most_pauses = usize::try_from(most_pauses).unwrap_or(usize::MAX);
        let batch = count.div_ceil(most_pauses.saturating_add(1)).max(1);
        let pauses = count.div_ceil(batch).saturating_sub(1);
        let pause = match pauses {
            0 => Duration::ZERO,
            _ => spread.div_f64(pauses as f64),
        };
        Drain {
            code: self.close_frame.code,
            reason: self.close_frame.reason,
            batch,
            pause,
            deadline: left,
        }
    }
}

/// The result of [`Registry::shutdown`].
///
/// ```
/// use std::time::Duration;
///
/// use tokio::io::duplex;
/// use tower_ws_liveness::{HeartbeatLayer, ShutdownPlan};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let layer = HeartbeatLayer::default();
/// let _connection = layer.wrap_server(duplex(64).0);
/// let plan = ShutdownPlan::new().deadline(Duration::from_secs(20));
/// let report = layer.registry().shutdown(async {}, plan).await;
/// println!(
///     "{} sessions, {} closed by their handlers, {} cut, within {:?}",
///     report.open(),
///     report.closed_by_handlers(),
///     report.drained().cut(),
///     report.elapsed(),
/// );
/// # assert_eq!((report.open(), report.drained().total()), (1, 1));
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    open: usize,
    closed_by_handlers: usize,
    drained: DrainReport,
    elapsed: Duration,
}

impl ShutdownReport {
    /// The number of connections that were open when upgrades began to be refused.
    #[must_use]
    pub const fn open(&self) -> usize {
        self.open
    }

    /// Of these, connections that were closed before the drain, by their handlers or their peers.
    #[must_use]
    pub const fn closed_by_handlers(&self) -> usize {
        self.closed_by_handlers
    }

    /// The report of the drain that followed.
    #[must_use]
    pub const fn drained(&self) -> DrainReport {
        self.drained
    }

    /// The time since the signal.
    #[must_use]
    pub const fn elapsed(&self) -> Duration {
        self.elapsed
    }
}

impl Registry {
    /// Waits for `signal`, then shuts down all connections in order and reports how they ended.
    ///
    /// 1. When `signal` completes, the [readiness](Self::readiness) turns 503. For the plan's
    ///    [`delay`](ShutdownPlan::delay) upgrades are still admitted, so that no client is refused
    ///    while load balancers still choose this server.
    /// 2. Upgrades are refused from now on, and handlers that wait in
    ///    [`Liveness::draining`](crate::Liveness::draining) are woken, as by
    ///    [`begin_drain`](Self::begin_drain). This cannot be undone. The handlers have
    ///    [`handler_grace`](ShutdownPlan::handler_grace) to close their connections, which ends as
    ///    soon as [no connection is left](Self::wait_idle).
    /// 3. The remaining connections are evicted over the plan's [`spread`](ShutdownPlan::spread),
    ///    as by [`drain`](Self::drain).
    /// 4. At the plan's [`deadline`](ShutdownPlan::deadline), which is counted from the signal, the
    ///    connections that are left are cut.
    ///
    /// The server must keep serving meanwhile: close its port when this has returned.
    ///
    /// ```
    /// use axum::Router;
    /// use tokio::net::TcpListener;
    /// use tower_ws_liveness::{HeartbeatLayer, ShutdownPlan};
    ///
    /// # async fn serve(routes: Router, sigterm: impl Future<Output = ()>) -> std::io::Result<()> {
    /// let heartbeat = HeartbeatLayer::default();
    /// let registry = heartbeat.registry();
    /// let app = routes
    ///     .route_service("/ready", registry.readiness())
    ///     .layer(heartbeat);
    /// let listener = TcpListener::bind("0.0.0.0:3000").await?;
    /// tokio::select! {
    ///     served = axum::serve(listener, app) => served?,
    ///     report = registry.shutdown(sigterm, ShutdownPlan::new()) => println!("{report:?}"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # More than one call
    ///
    /// If a drain has begun, by another call of this method or by [`begin_drain`](Self::begin_drain)
    /// or [`drain`](Self::drain), there is no delay, or the delay ends: upgrades are refused
    /// already. After that, two calls are as two drains: each connection is evicted once and is
    /// counted by one of them as clean or cut, and the earlier deadline cuts the connections of
    /// both. What another call or drain has ended counts as closed by the handlers. A call after the
    /// end of another one returns an empty report when its signal completes.
    ///
    /// # Cancel safety
    ///
    /// Before `signal` completes, dropping the future changes nothing. After that, it leaves the
    /// readiness at 503, and the rest as dropping a [`drain`](Self::drain) does: another call
    /// continues where this one ended.
    ///
    /// # Panics
    ///
    /// Panics outside of a tokio runtime with time enabled.
    pub async fn shutdown(
        &self,
        signal: impl Future<Output = ()>,
        plan: ShutdownPlan,
    ) -> ShutdownReport {
        signal.await;
        let started = Instant::now();
        let deadline = after(started, plan.deadline);
        self.state.admission.set_unready();
        wait_until(after(started, plan.delay).min(deadline), self.draining()).await;

        // Before the drain begins: a connection that opens from then on is sent this frame.
        self.state
            .admission
            .set_close_frame(plan.close_frame.clone());
        // Before and after the handlers are woken: they may end their connections immediately, and
        // others open until then.
        let mut open: BTreeSet<_> = self.handles().iter().map(Liveness::id).collect();
        self.begin_drain();
        open.extend(self.handles().iter().map(Liveness::id));
        let grace_ends = after(Instant::now(), plan.handler_grace);
        wait_until(grace_ends.min(deadline), self.wait_idle()).await;

        // Not the difference to the total: handshakes that were admitted before may complete.
        let remaining = open.iter().filter(|&&id| self.get(id).is_some()).count();
        let left = deadline.saturating_duration_since(Instant::now());
        let drained = self.drain(plan.drain(self.len(), left)).await;
        ShutdownReport {
            open: open.len(),
            closed_by_handlers: open.len() - remaining,
            drained,
            elapsed: started.elapsed(),
        }
    }
}

fn after(time: Instant, delay: Duration) -> Instant {
    time + delay.min(MAX_DURATION)
}

/// Waits for `event` until `time`, and not at all if `time` has passed.
async fn wait_until(time: Instant, event: impl Future<Output = ()>) {
    if time > Instant::now() {
        let _ = timeout_at(time, event).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_batches_of_a_drain_take_the_spread() {
        let left = Duration::from_secs(60);
        let table = [
            // Count, spread, batch, and pause in ms.
            (0, 5_000, 1, 0),
            (1, 5_000, 1, 0),
            (2, 5_000, 1, 5_000),
            (11, 5_000, 1, 500),
            (251, 5_000, 1, 20),
            (252, 5_000, 2, 40),
            (100_400, 5_000, 400, 20),
            (100, 19, 100, 0),
            (100, 0, 100, 0),
        ];
        for (count, spread, batch, pause) in table {
            let plan = ShutdownPlan::new().spread(Duration::from_millis(spread));
            let drain = plan.drain(count, left);
            let expected = Drain::default().batch(batch).deadline(left);
            assert_eq!(
                drain,
                expected.pause(Duration::from_millis(pause)),
                "{count}"
            );
        }
        let drain = ShutdownPlan::new().spread(Duration::MAX).drain(2, left);
        assert_eq!(drain.pause, left / 2);
    }
}
