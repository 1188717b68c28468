//! What can be said of a connection at this moment.

use std::fmt;

/// State of a connection as the layers see it now.
///
/// Three signals are in it: the state of the transport, what the application does, and the errors of
/// the past. The three ways in which a connection goes bad are kept apart while they develop, as they
/// are in [`Reason`](crate::Reason) when they end. If there are several at once, waiting bytes come
/// first, then a stalled write, then a silent peer, then an error of the past, then idleness. A state
/// says what is so now, and may pass in a moment; a verdict comes of it only with the setting of its
/// kind. [`OnHealth`](crate::OnHealth) hooks are told only of what has lasted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Health {
    /// The opening handshake is not complete yet.
    Opening,
    /// The peer was heard within the interval, or nothing speaks against it.
    Live,
    /// Alive, but no byte of a data message passed in the watched direction for half of the idle
    /// timeout or longer. Never without an [`IdleTimeoutLayer`](crate::IdleTimeoutLayer).
    Idle,
    /// Nothing is wrong now, but there were errors lately:
    ///
    /// - a ping of the layer was missed: see [`Stats::missed_pings`](crate::Stats::missed_pings),
    /// - a pong was slow: see [`Stats::slow_pongs`](crate::Stats::slow_pongs),
    /// - a write stalled for a while: see [`Stats::write_stalls`](crate::Stats::write_stalls),
    /// - frame boundaries were lost in malformed input (RFC 6455 section 5.2), so that no ping can be
    ///   sent any more and nobody watches over the peer.
    ///
    /// The last one counts for ever. The others count for ten times the heartbeat's `interval +
    /// timeout`: 7.5 minutes with the defaults, which are taken where there is no heartbeat. So a link
    /// that loses one ping in ten is degraded all the time, rather than by turns.
    Degraded,
    /// A ping is unanswered and nothing else has come from the peer since.
    PeerSilent {
        /// Pings of this silence whose timeout has already run out.
        missed: u32,
    },
    /// Bytes from the peer wait, and the handler does not read them; or a ping waits for the end of a
    /// frame that the handler has begun.
    HandlerStalled,
    /// Bytes to the peer wait, and the transport does not accept them.
    WriteStalled,
    /// The handler has sent its Close frame, and the peer has not answered yet.
    Closing,
    /// The connection has ended: its eviction was reported.
    Ended,
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
