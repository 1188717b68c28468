//! Graceful shutdown: evicts all connections in batches and cuts the rest at a deadline.

mod draining_connections;
mod report;
mod run;

use std::borrow::Cow;
use std::time::Duration;

use super::Registry;
use crate::config_error;
use crate::monitor::CloseFrame;

pub(super) use draining_connections::DrainingConnections;
pub use report::DrainReport;
use run::DrainRun;
pub(super) use run::yield_periodically;

/// tokio's timer rounds a sleep up to whole milliseconds.
const TIMER_STEP: Duration = Duration::from_millis(1);

/// The Close frame of a drain by default (RFC 6455 section 7.4.1).
pub(super) const GOING_AWAY: CloseFrame = CloseFrame {
    code: 1001,
    reason: Cow::Borrowed("server is going away"),
};

/// The settings of [`Registry::drain`].
///
/// ```
/// use std::time::Duration;
///
/// use tower_ws_liveness::Drain;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let registry = tower_ws_liveness::Registry::new();
/// // The orchestrator kills the process after 15 s.
/// let drain = Drain::default()
///     .deadline(Duration::from_secs(10))
///     .reason("a new version is deployed");
/// registry.drain(drain).await;
/// assert!(registry.is_empty());
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "settings do nothing until they are passed to `Registry::drain`"]
pub struct Drain {
    /// The status code of the Close frames. Default: 1001, going away (RFC 6455 section 7.4.1).
    /// A code that must not be sent is replaced by 1011, as by
    /// [`Liveness::evict`](crate::Liveness::evict).
    pub code: u16,
    /// The text of the Close frames. Default: "server is going away". A text of more than 123 bytes
    /// is cut at the last character that fits.
    pub reason: Cow<'static, str>,
    /// The number of connections that are evicted before the first pause, and between two pauses.
    /// Default: 100. 0 counts as 1.
    ///
    /// Every connection is evicted within the first half of the deadline, so batches are larger if
    /// the pauses would not fit into it: with the defaults, for more than 15,000 connections.
    pub batch: usize,
    /// The mean time between two batches. Default: 100 ms. Each pause lasts a random time between
    /// half of this and one and a half times this, so that the clients do not reconnect in step. It
    /// is shorter if the first half of the deadline would otherwise end before the last batch. With
    /// zero there is no pause, but the drain still yields to other tasks.
    pub pause: Duration,
    /// The total time. Default: 30 s. Connections that are not closed by then are cut; with zero,
    /// all connections are. Values above 365 days count as 365 days.
    pub deadline: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            code: GOING_AWAY.code,
            reason: GOING_AWAY.reason,
            batch: 100,
            pause: Duration::from_millis(100),
            deadline: Duration::from_secs(30),
        }
    }
}

impl Drain {
    /// Sets [`code`](Self::code).
    pub fn code(mut self, code: u16) -> Self {
        self.code = code;
        self
    }

    /// Sets [`reason`](Self::reason).
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into().into();
        self
    }

    /// Sets [`batch`](Self::batch).
    pub fn batch(mut self, batch: usize) -> Self {
        self.batch = batch;
        self
    }

    /// Sets [`pause`](Self::pause).
    pub fn pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// Sets [`deadline`](Self::deadline).
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The Close frame, with a code that may be sent.
    fn close_frame(&self) -> CloseFrame {
        CloseFrame {
            code: config_error::on_wire(self.code),
            reason: self.reason.clone(),
        }
    }

    /// The batch size for `count` connections with which the pauses fit into the first half of the
    /// deadline.
    fn batch_size(&self, count: usize) -> usize {
        if self.pause.is_zero() {
            return self.batch.max(1);
        }
        let pauses = self.deadline.as_nanos() / 2 / self.pause.max(TIMER_STEP).as_nanos();
        let pauses = usize::try_from(pauses).unwrap_or(usize::MAX);
        let needed = count.div_ceil(pauses.saturating_add(1));
        self.batch.max(needed).max(1)
    }

    /// Draws a random pause such that `pauses` (at least 1) of them always fit into `budget`.
    fn pause_within(&self, budget: Duration, pauses: usize) -> Duration {
        // Reserves half a mean pause, because the last pause may last one and a half times the
        // mean.
        let mean = self.pause.min(budget.div_f64(pauses as f64 + 0.5));
        mean / 2 + mean.mul_f64(fastrand::f64())
    }
}

impl Registry {
    /// Evicts all connections with [`Reason::Drained`](crate::Reason::Drained) and waits until their
    /// transports are closed.
    ///
    /// 1. Upgrades are refused from now on, as by [`begin_drain`](Self::begin_drain). This cannot
    ///    be undone.
    /// 2. The open connections are evicted in batches, oldest first, all within the first half of
    ///    the deadline. An eviction calls the connection's hooks, fails its handler's reads and
    ///    writes, and sends its peer a Close frame (RFC 6455 section 5.5.1). If the handler has
    ///    written part of a frame, the connection is evicted after that frame, so that no message
    ///    is torn, provided that the frame ends before the deadline. (The drain does not wait for
    ///    the remaining *fragments* of a message.)
    /// 3. The drain waits for the closing handshakes, each for at most the `close_timeout` of its
    ///    layer, and for everything else that keeps [`wait_idle`](Self::wait_idle) from returning,
    ///    including handshakes that were admitted before.
    /// 4. At the deadline every remaining connection is cut: its transport is dropped. A peer that
    ///    was not sent a Close frame yet gets one if the transport accepts it immediately.
    ///
    /// When this returns, the registry is empty, the transports of all connections that were in it
    /// are dropped, and the hooks of the connections that this drain ended have returned. After the
    /// deadline two things may remain: the transport of a connection that had ended before the
    /// drain found it, or ended as it opened, for at most its `close_timeout`; and a handshake that
    /// was admitted before and has no response yet. If such a handshake completes later, the
    /// connection ends as it opens, and its peer gets the Close frame of this drain as well.
    ///
    /// Handlers are not asked first: data that they have not written yet is not sent. To let them
    /// finish, call [`begin_drain`](Self::begin_drain), wait in [`wait_idle`](Self::wait_idle) for
    /// as long as is acceptable, and then drain the remaining connections.
    ///
    /// Hooks run inside this call, as in [`Liveness::evict`](crate::Liveness::evict): a hook that
    /// blocks delays all later evictions, and the deadline. The pauses are shortened by the time
    /// that hooks take; if the hooks alone take more than half of the deadline, the last
    /// connections are evicted after that half.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it completes, the closing handshakes of the connections that
    /// were evicted continue, the other connections stay open, and upgrades stay refused. Call
    /// `drain` again to continue. Two drains may run at the same time: each connection is evicted
    /// once; one drain counts it as clean or cut, the other, if it found it, as already gone; and
    /// the earlier deadline cuts the connections of both.
    ///
    /// # Panics
    ///
    /// Panics outside of a tokio runtime with time enabled.
    pub async fn drain(&self, drain: Drain) -> DrainReport {
        DrainRun::new(self, drain).run().await
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;
    use crate::HeartbeatLayer;

    #[test]
    fn batches_grow_so_that_all_are_evicted_within_half_of_the_deadline() {
        let millis = Duration::from_millis;
        let table = [
            // With the defaults 150 pauses fit.
            (Drain::default(), 15_100, 100),
            (Drain::default(), 15_101, 101),
            (Drain::default(), 100_000, 663),
            (Drain::default(), 0, 100),
        ];
        for (drain, count, batch) in table {
            assert_eq!(drain.batch_size(count), batch, "{count}");
        }
        let drain = |batch, pause, deadline| {
            let drain = Drain::default().batch(batch);
            drain.pause(millis(pause)).deadline(millis(deadline))
        };
        assert_eq!(drain(0, 10, 1_000).batch_size(5), 1);
        assert_eq!(drain(1, 1_000, 1_600).batch_size(52), 52, "no pause fits");
        assert_eq!(drain(7, 0, 1_000).batch_size(1_000_000), 7, "no pauses");
        assert_eq!(drain(1, 0, 0).batch_size(10), 1, "no pauses");
        let endless = drain(1, 1, 0).deadline(Duration::MAX);
        assert_eq!(endless.batch_size(1_000_000), 1);
        // The timer rounds this pause up to a millisecond.
        let short = drain(1, 0, 1_000).pause(Duration::from_nanos(1));
        assert_eq!(short.batch_size(5_010), 10);
    }

    #[test]
    fn random_pauses_always_fit_into_their_budget() {
        let drain = Drain::default();
        let millis = Duration::from_millis;
        for pauses in [1, 2, 3, 150] {
            for budget in [0, 1, 70, 15_000, 1_000_000].map(millis) {
                let mut left = budget;
                for pauses in (1..=pauses).rev() {
                    let pause = drain.pause_within(left, pauses);
                    assert!(pause <= millis(150), "{pause:?}");
                    left = left.checked_sub(pause).expect("a pause fits into the rest");
                }
                if budget > millis(150) * pauses as u32 {
                    let pause = drain.pause_within(budget, pauses);
                    assert!(pause >= millis(50), "{pause:?}");
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn closed_connections_are_removed_and_a_cancelled_drain_is_cut_by_the_next() {
        let layer = HeartbeatLayer::default();
        let registry = layer.registry();
        let _pairs = [(); 3].map(|()| {
            let (ours, theirs) = duplex(64);
            (layer.wrap_server(ours), theirs)
        });
        let cancelled = tokio::time::timeout(Duration::ZERO, registry.drain(Drain::default()));
        assert!(cancelled.await.is_err());
        assert_eq!(registry.draining_connections().open().len(), 3);
        let drain = Drain::default().deadline(Duration::from_secs(1));
        // The second drain finds no open connection, and still cuts those of the first.
        assert_eq!(registry.drain(drain).await, DrainReport::default());
        assert!(registry.draining_connections().open().is_empty());
        assert!(registry.draining_connections().lock().is_empty());
    }
}
