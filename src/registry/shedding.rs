//! Shedding: evicts a fraction of the connections, spread over time.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::Registry;
use super::drain::yield_periodically;
use crate::config_error::{self, ConfigError};
use crate::connection::Liveness;
use crate::eviction::ConnectionId;
use crate::monitor::{CloseFrame, Reason};

/// Service Restart, in IANA's registry: stock clients reconnect after a random delay.
const CLOSE_CODE: u16 = 1012;
const CLOSE_REASON: &str = "rebalancing connections";

impl Registry {
    /// Evicts the fraction `f` of the open connections, one by one and evenly over the time `over`,
    /// with [`Reason::Kicked`] and Close 1012 "rebalancing connections". Returns how many it evicted, with
    /// those that are evicted after the handler's present frame.
    ///
    /// This moves connections to servers that were added: open WebSockets stay where they are, and
    /// only clients that reconnect are distributed again. If `n` servers have become `m`, and the
    /// load balancer chooses the one with the fewest connections, call this with `1 - n / m` on
    /// each of the `n`.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use tower_ws_liveness::{ConfigError, Registry};
    ///
    /// /// Two servers have become three.
    /// async fn scaled_out(registry: &Registry) -> Result<(), ConfigError> {
    ///     let moved = registry.evict_fraction(1.0 / 3.0, Duration::from_secs(300)).await?;
    ///     println!("{moved} connections were moved");
    ///     Ok(())
    /// }
    /// ```
    ///
    /// - The connections are chosen at random when this is first polled, as many as `f` times the
    ///   number of open ones, rounded to the nearest whole number. Connections that open later are
    ///   not affected, so no client is evicted a second time for having come back.
    /// - The first is evicted immediately, and the others at equal distances: of four over a minute,
    ///   one every 15 s. With an `over` of zero all are evicted now.
    /// - If the handler has written part of a frame, the connection is evicted after that frame, as
    ///   by [`drain`](Self::drain).
    /// - A connection that has ended before its turn is not replaced by another, and is not counted.
    /// - A drain that [begins](Self::begin_drain) ends the call.
    ///
    /// Hooks run inside this call, as in [`Liveness::evict`](crate::Liveness::evict). Evictions that
    /// a slow hook delayed are made up for immediately.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, no further connection is evicted. Another call chooses anew.
    ///
    /// # Errors
    ///
    /// If `f` is not a number within 0.0..=1.0, or `over` is longer than 365 days. No connection is
    /// evicted then.
    ///
    /// # Panics
    ///
    /// Panics outside of a tokio runtime with time enabled.
    pub async fn evict_fraction(&self, f: f64, over: Duration) -> Result<usize, ConfigError> {
        self.evict_fraction_with(f, over, CLOSE_CODE, CLOSE_REASON)
            .await
    }

    /// As [`evict_fraction`](Self::evict_fraction), with another code and reason. For these the
    /// rules of [`Liveness::evict`](crate::Liveness::evict) apply.
    ///
    /// # Errors
    ///
    /// As for [`evict_fraction`](Self::evict_fraction).
    pub async fn evict_fraction_with(
        &self,
        f: f64,
        over: Duration,
        code: u16,
        reason: impl Into<String>,
    ) -> Result<usize, ConfigError> {
        const SETTER: &str = "Registry::evict_fraction";
        config_error::jitter(SETTER, f)?;
        config_error::duration_or_zero(SETTER, over)?;
        let frame = CloseFrame {
            code: config_error::on_wire(code),
            reason: reason.into().into(),
        };
        let started = Instant::now();
        let chosen = self.choose(f);
        let count = chosen.len();
        let mut evicted = 0;
        let mut draining = pin!(self.draining());
        for (index, id) in chosen.into_iter().enumerate() {
            let due = started + over.mul_f64(index as f64 / count as f64);
            if due <= Instant::now() {
                yield_periodically(index).await;
            } else if timeout_at(due, draining.as_mut()).await.is_ok() {
                break;
            }
            if self.is_draining() {
                break;
            }
            if let Some(live) = self.get(id) {
                let reason = Reason::Kicked { code };
                evicted += usize::from(live.evict_at_boundary(reason, frame.clone()));
            }
        }
        Ok(evicted)
    }

    /// Chooses a fraction of the open connections at random.
    fn choose(&self, f: f64) -> Vec<ConnectionId> {
        // Ids and not handles, which would keep the memory of connections that end meanwhile.
        let mut ids: Vec<_> = self.handles().iter().map(Liveness::id).collect();
        fastrand::shuffle(&mut ids);
        ids.truncate((ids.len() as f64 * f).round() as usize);
        ids.shrink_to_fit();
        ids
    }
}
