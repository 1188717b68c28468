//! The current health of a connection.

use std::fmt;

/// The state of a connection as the layers see it now.
///
/// It combines three signals: the state of the transport, the behaviour of the application, and
/// past errors. The three kinds of failure have separate states while they develop, as they have
/// separate [`Reason`](crate::Reason)s when they end the connection. If several apply at the same
/// time, unread bytes take precedence, then a stalled write, a silent peer, a past error, and
/// idleness. A state holds for the moment and may be brief; it leads to an eviction only if the
/// setting for its kind is on. [`OnHealth`](crate::OnHealth) hooks are called only for states that
/// have lasted.
///
/// ```
/// use std::time::Duration;
///
/// use tokio::{io::duplex, time::sleep};
/// use tower_ws_liveness::{Health, HeartbeatLayer};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), tower_ws_liveness::ConfigError> {
/// // Pings after 30 s of silence, and waits 15 s for the pong.
/// let layer = HeartbeatLayer::builder().jitter(0.0).build()?;
/// let (io, _peer) = duplex(1024);
/// let (_io, live) = layer.wrap_server(io);
/// assert_eq!(live.health(), Health::Live);
/// sleep(Duration::from_secs(40)).await;
/// assert_eq!(live.health(), Health::PeerSilent { missed: 0 });
/// sleep(Duration::from_secs(10)).await;
/// assert_eq!(live.health(), Health::Ended);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Health {
    /// The opening handshake is not complete yet.
    Opening,
    /// Bytes from the peer were received within the interval, or no other state applies.
    Live,
    /// The peer is alive, but no byte of a data message passed in the watched direction for half of
    /// the idle timeout or longer. Only with an [`IdleTimeoutLayer`](crate::IdleTimeoutLayer).
    Idle,
    /// Nothing is wrong now, but there were recent errors:
    ///
    /// - a ping of the layer was missed: see [`Stats::missed_pings`](crate::Stats::missed_pings),
    /// - a pong was slow: see [`Stats::slow_pongs`](crate::Stats::slow_pongs),
    /// - a write stalled temporarily: see [`Stats::write_stalls`](crate::Stats::write_stalls),
    /// - frame boundaries were lost in malformed input (RFC 6455 section 5.2), so that the layer
    ///   can send no more pings and does not detect a dead peer.
    ///
    /// The last one counts forever. The others count for ten times the heartbeat's `interval +
    /// timeout`: 7.5 minutes with the defaults, which apply where there is no heartbeat. So a link
    /// that loses one ping in ten is degraded all the time and does not alternate between states.
    Degraded,
    /// A ping is unanswered and no other bytes were received from the peer since.
    PeerSilent {
        /// Pings of this silence whose timeout has already expired.
        missed: u32,
    },
    /// The handler does not read bytes that were received from the peer; or a ping waits for the
    /// end of a frame that the handler has started.
    HandlerStalled,
    /// The transport does not accept bytes that wait to be sent to the peer.
    WriteStalled,
    /// The handler has sent its Close frame, and the peer has not answered yet.
    Closing,
    /// The connection has ended: its eviction was reported.
    Ended,
}

impl Health {
    /// The state as a stable `snake_case` word, without the count.
    ///
    /// The set of words is small and fixed, as the label of a metric requires. `Display` is for
    /// human readers and may change.
    ///
    /// ```
    /// use tower_ws_liveness::Health;
    ///
    /// let health = Health::PeerSilent { missed: 1 };
    /// assert_eq!(health.as_str(), "peer_silent");
    /// assert_eq!(health.to_string(), "ping unanswered, 1 missed");
    /// ```
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Live => "live",
            Self::Idle => "idle",
            Self::Degraded => "degraded",
            Self::PeerSilent { .. } => "peer_silent",
            Self::HandlerStalled => "handler_stalled",
            Self::WriteStalled => "write_stalled",
            Self::Closing => "closing",
            Self::Ended => "ended",
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opening => f.write_str("opening"),
            Self::Live => f.write_str("live"),
            Self::Idle => f.write_str("idle"),
            Self::Degraded => f.write_str("degraded"),
            Self::PeerSilent { missed: 0 } => f.write_str("ping unanswered"),
            Self::PeerSilent { missed } => write!(f, "ping unanswered, {missed} missed"),
            Self::HandlerStalled => f.write_str("handler stalled"),
            Self::WriteStalled => f.write_str("write stalled"),
            Self::Closing => f.write_str("closing"),
            Self::Ended => f.write_str("ended"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Users rely on these words.
    #[test]
    fn every_state_has_its_word() {
        let table = [
            (Health::Opening, "opening"),
            (Health::Live, "live"),
            (Health::Idle, "idle"),
            (Health::Degraded, "degraded"),
            (Health::PeerSilent { missed: 0 }, "peer_silent"),
            (Health::PeerSilent { missed: 2 }, "peer_silent"),
            (Health::HandlerStalled, "handler_stalled"),
            (Health::WriteStalled, "write_stalled"),
            (Health::Closing, "closing"),
            (Health::Ended, "ended"),
        ];
        for (health, word) in table {
            assert_eq!(health.as_str(), word);
        }
    }
}
