//! The reasons for which a connection ends.

use std::fmt;
use std::io;

/// Why a connection ended.
///
/// Every upgraded connection ends for exactly one reason: the first that applied. Consequences of
/// it (the peer's answer to our Close frame, the reset after the drop) are not reported.
///
/// [`as_str`](Self::as_str) is for metrics and stays the same across versions; [`Display`] is for
/// human readers and may change.
///
/// [`Display`]: fmt::Display
///
/// ```
/// use tower_ws_liveness::{Eviction, Reason};
///
/// /// An eviction hook that logs only the ends that need attention.
/// fn log_end(ev: &Eviction) {
///     match ev.reason() {
///         Reason::PeerClosed { .. } | Reason::ServerClosed { .. } | Reason::Drained => {}
///         Reason::WriteStalled => eprintln!("{} is too slow for what we send", ev.id()),
///         reason => eprintln!("{} ended: {reason}", ev.id()),
///     }
/// }
///
/// let reason = Reason::HeartbeatTimeout { missed: 2 };
/// assert_eq!(reason.as_str(), "heartbeat_timeout");
/// assert_eq!(reason.to_string(), "heartbeat timeout (2 pings unanswered)");
/// # let _ = tower_ws_liveness::HeartbeatLayer::builder().on_evict(log_end);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The peer started the closing handshake (RFC 6455 section 7.1.2).
    PeerClosed {
        /// The status code of the peer's Close frame. `None` if the frame had no body, which RFC
        /// 6455 section 7.1.5 defines to be reported as 1005.
        code: Option<u16>,
    },
    /// The handler started the closing handshake (RFC 6455 section 7.1.2), or shut its side of the
    /// stream down without one. On a client's stream the handler is the client.
    ServerClosed {
        /// The status code of the handler's Close frame. `None` if there was no such frame, or one
        /// without a body, which RFC 6455 section 7.1.5 defines to be reported as 1005.
        code: Option<u16>,
    },
    /// The handler returned, panicked or was aborted, and dropped the socket without a closing
    /// handshake; or the tokio runtime in which the connection was opened was shut down.
    HandlerDropped,
    /// The stream ended without a Close frame (a truncation, in terms of TLS): the peer's process
    /// was killed, or a middlebox cut the connection. RFC 6455 section 7.1.5: 1006.
    PeerVanished,
    /// Reading or writing the transport failed with this kind of error, such as
    /// [`ConnectionReset`](io::ErrorKind::ConnectionReset).
    Transport(io::ErrorKind),
    /// The peer is dead: pings were sent, and no proof of life was received in time. See
    /// [`Eviction::peer_kernel`](crate::Eviction::peer_kernel) for what its kernel did.
    HeartbeatTimeout {
        /// The number of consecutive unanswered pings.
        missed: u32,
    },
    /// No byte of a data message passed in the watched direction for the idle timeout. Pings and
    /// pongs do not count (RFC 6455 section 5.5.2 allows them at any time, and they do not show
    /// that the connection is used).
    IdleTimeout,
    /// The peer did not complete its first data message in time.
    FirstMessageTimeout,
    /// A data message in the watched direction was not complete within `message_timeout` of its
    /// first byte.
    MessageTimeout,
    /// The connection reached its maximum lifetime, or its credentials expired (see
    /// [`Liveness::expires_at`](crate::Liveness::expires_at)).
    MaxLifetime,
    /// The transport accepts none of the bytes that wait to be sent, and those that it has accepted
    /// do not drain, or too slowly, where the kernel can be asked. The peer may be alive.
    WriteStalled,
    /// The handler does not read bytes that were received from the peer; or it does not finish a
    /// frame that it has started, so that no ping can be sent. The peer is not at fault.
    HandlerStalled,
    /// The closing handshake was started and not completed in time (RFC 6455 section 7.1.1).
    CloseTimeout,
    /// The peer exceeded the limit of control frames (RFC 6455 section 5.5) per second.
    ControlFlood,
    /// The application evicted the connection through its handle. See
    /// [`Eviction::label`](crate::Eviction::label) for the label that it may have given.
    Kicked {
        /// The status code that the application passed for the Close frame.
        code: u16,
    },
    /// A newer connection replaced this one in a session map.
    Replaced,
    /// The registry was drained, usually because the server shuts down.
    Drained,
    /// The opening handshake was answered, but no WebSocket connection was established: the client
    /// disconnected before the protocol switched, or the server failed to switch it.
    UpgradeFailed,
}

impl Reason {
    /// The reason as a stable `snake_case` word, without code, count or kind.
    ///
    /// The set of words is small and fixed, as the label of a metric requires.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::PeerClosed { .. } => "peer_closed",
            Self::ServerClosed { .. } => "server_closed",
            Self::HandlerDropped => "handler_dropped",
            Self::PeerVanished => "peer_vanished",
            Self::Transport(_) => "transport",
            Self::HeartbeatTimeout { .. } => "heartbeat_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::FirstMessageTimeout => "first_message_timeout",
            Self::MessageTimeout => "message_timeout",
            Self::MaxLifetime => "max_lifetime",
            Self::WriteStalled => "write_stalled",
            Self::HandlerStalled => "handler_stalled",
            Self::CloseTimeout => "close_timeout",
            Self::ControlFlood => "control_flood",
            Self::Kicked { .. } => "kicked",
            Self::Replaced => "replaced",
            Self::Drained => "drained",
            Self::UpgradeFailed => "upgrade_failed",
        }
    }

    /// How soon an end for this reason is detected.
    #[must_use]
    pub const fn tier(&self) -> Tier {
        match self {
            Self::PeerClosed { .. }
            | Self::ServerClosed { .. }
            | Self::HandlerDropped
            | Self::PeerVanished
            | Self::Transport(_)
            | Self::ControlFlood
            | Self::Kicked { .. }
            | Self::Replaced
            | Self::Drained
            | Self::UpgradeFailed => Tier::Immediate,
            Self::HeartbeatTimeout { .. }
            | Self::WriteStalled
            | Self::HandlerStalled
            | Self::CloseTimeout => Tier::Regular,
            Self::IdleTimeout
            | Self::FirstMessageTimeout
            | Self::MessageTimeout
            | Self::MaxLifetime => Tier::Long,
        }
    }

    /// The error kind that a pending read or write of the handler returns.
    pub(crate) fn io_error_kind(&self) -> io::ErrorKind {
        match self {
            Self::HeartbeatTimeout { .. }
            | Self::IdleTimeout
            | Self::FirstMessageTimeout
            | Self::MessageTimeout
            | Self::MaxLifetime
            | Self::WriteStalled
            | Self::HandlerStalled
            | Self::CloseTimeout => io::ErrorKind::TimedOut,
            Self::ControlFlood | Self::Kicked { .. } | Self::Replaced | Self::Drained => {
                io::ErrorKind::ConnectionAborted
            }
            // A WebSocket library retries after these two kinds, but the eviction is final.
            Self::Transport(io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                io::ErrorKind::Other
            }
            Self::Transport(kind) => *kind,
            Self::PeerVanished => io::ErrorKind::UnexpectedEof,
            Self::PeerClosed { .. }
            | Self::ServerClosed { .. }
            | Self::HandlerDropped
            | Self::UpgradeFailed => io::ErrorKind::BrokenPipe,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PeerClosed { code: Some(code) } => write!(f, "closed by the peer ({code})"),
            Self::PeerClosed { code: None } => f.write_str("closed by the peer (no code)"),
            Self::ServerClosed { code: Some(code) } => write!(f, "closed by the server ({code})"),
            Self::ServerClosed { code: None } => f.write_str("closed by the server (no code)"),
            Self::HandlerDropped => f.write_str("dropped by the handler without a Close"),
            Self::PeerVanished => f.write_str("peer vanished without a Close"),
            Self::Transport(kind) => write!(f, "transport error ({kind})"),
            Self::HeartbeatTimeout { missed: 1 } => {
                f.write_str("heartbeat timeout (1 ping unanswered)")
            }
            Self::HeartbeatTimeout { missed } => {
                write!(f, "heartbeat timeout ({missed} pings unanswered)")
            }
            Self::IdleTimeout => f.write_str("idle timeout"),
            Self::FirstMessageTimeout => f.write_str("no first message in time"),
            Self::MessageTimeout => f.write_str("message not complete in time"),
            Self::MaxLifetime => f.write_str("maximum lifetime reached"),
            Self::WriteStalled => f.write_str("write stalled"),
            Self::HandlerStalled => f.write_str("handler stalled"),
            Self::CloseTimeout => f.write_str("closing handshake timed out"),
            Self::ControlFlood => f.write_str("too many control frames"),
            Self::Kicked { code } => write!(f, "kicked ({code})"),
            Self::Replaced => f.write_str("replaced by a newer connection"),
            Self::Drained => f.write_str("drained"),
            Self::UpgradeFailed => f.write_str("upgrade failed"),
        }
    }
}

/// How soon the end of a connection is detected: see [`Reason::tier`].
///
/// The later the tier, the longer an unusable session was counted as live.
///
/// ```
/// use tower_ws_liveness::{Reason, Tier};
///
/// /// Whether messages may have been sent to a client that was no longer there.
/// fn may_have_lost_messages(reason: Reason) -> bool {
///     reason.tier() > Tier::Immediate
/// }
///
/// assert!(!may_have_lost_messages(Reason::PeerVanished));
/// assert!(may_have_lost_messages(Reason::HeartbeatTimeout { missed: 1 }));
/// assert_eq!(Reason::IdleTimeout.tier().as_str(), "long");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Tier {
    /// At once, by an event: either side's Close frame, the transport's end or error, a dropped
    /// stream, a call of the application. An event from the peer is detected at the next ping if
    /// the handler does not read.
    Immediate,
    /// By the heartbeat: after its `interval`, `timeout`, `write_timeout`, `handler_stall_timeout`
    /// or `close_timeout`.
    Regular,
    /// By the idle layer: after its `timeout`, `first_message`, `message_timeout` or
    /// `max_lifetime`, or when credentials expire.
    Long,
}

impl Tier {
    /// The tier as a stable word, suitable as the label of a metric.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Immediate => "immediate",
            Self::Regular => "regular",
            Self::Long => "long",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use io::ErrorKind;

    /// Users rely on the words and kinds: a change here is a breaking change.
    #[test]
    fn every_reason_has_its_word_text_and_error_kind() {
        let table = [
            (
                Reason::PeerClosed { code: Some(1000) },
                "peer_closed",
                "closed by the peer (1000)",
                ErrorKind::BrokenPipe,
            ),
            (
                Reason::PeerClosed { code: None },
                "peer_closed",
                "closed by the peer (no code)",
                ErrorKind::BrokenPipe,
            ),
            (
                Reason::ServerClosed { code: Some(4321) },
                "server_closed",
                "closed by the server (4321)",
                ErrorKind::BrokenPipe,
            ),
            (
                Reason::ServerClosed { code: None },
                "server_closed",
                "closed by the server (no code)",
                ErrorKind::BrokenPipe,
            ),
            (
                Reason::HandlerDropped,
                "handler_dropped",
                "dropped by the handler without a Close",
                ErrorKind::BrokenPipe,
            ),
            (
                Reason::PeerVanished,
                "peer_vanished",
                "peer vanished without a Close",
                ErrorKind::UnexpectedEof,
            ),
            (
                Reason::Transport(ErrorKind::ConnectionReset),
                "transport",
                "transport error (connection reset)",
                ErrorKind::ConnectionReset,
            ),
            (
                Reason::HeartbeatTimeout { missed: 1 },
                "heartbeat_timeout",
                "heartbeat timeout (1 ping unanswered)",
                ErrorKind::TimedOut,
            ),
            (
                Reason::HeartbeatTimeout { missed: 3 },
                "heartbeat_timeout",
                "heartbeat timeout (3 pings unanswered)",
                ErrorKind::TimedOut,
            ),
            (
                Reason::IdleTimeout,
                "idle_timeout",
                "idle timeout",
                ErrorKind::TimedOut,
            ),
            (
                Reason::FirstMessageTimeout,
                "first_message_timeout",
                "no first message in time",
                ErrorKind::TimedOut,
            ),
            (
                Reason::MessageTimeout,
                "message_timeout",
                "message not complete in time",
                ErrorKind::TimedOut,
            ),
            (
                Reason::MaxLifetime,
                "max_lifetime",
                "maximum lifetime reached",
                ErrorKind::TimedOut,
            ),
            (
                Reason::WriteStalled,
                "write_stalled",
                "write stalled",
                ErrorKind::TimedOut,
            ),
            (
                Reason::HandlerStalled,
                "handler_stalled",
                "handler stalled",
                ErrorKind::TimedOut,
            ),
            (
                Reason::CloseTimeout,
                "close_timeout",
                "closing handshake timed out",
                ErrorKind::TimedOut,
            ),
            (
                Reason::ControlFlood,
                "control_flood",
                "too many control frames",
                ErrorKind::ConnectionAborted,
            ),
            (
                Reason::Kicked { code: 4000 },
                "kicked",
                "kicked (4000)",
                ErrorKind::ConnectionAborted,
            ),
            (
                Reason::Replaced,
                "replaced",
                "replaced by a newer connection",
                ErrorKind::ConnectionAborted,
            ),
            (
                Reason::Drained,
                "drained",
                "drained",
                ErrorKind::ConnectionAborted,
            ),
            (
                Reason::UpgradeFailed,
                "upgrade_failed",
                "upgrade failed",
                ErrorKind::BrokenPipe,
            ),
        ];
        let guide = include_str!("../../docs/troubleshooting.md");
        for (reason, word, text, kind) in table {
            let heading = format!("\n### `{word}`\n");
            let (_, section) = guide.split_once(&heading).expect(word);
            let section = section.split("\n#").next().expect(word);
            for part in ["**What happened:**", "**Check:**", "**Change:**"] {
                assert!(section.contains(part), "{word} has no {part}");
            }
            assert_eq!(reason.as_str(), word);
            assert_eq!(reason.to_string(), text, "{reason:?}");
            assert_eq!(reason.io_error_kind(), kind, "{reason:?}");
        }
    }

    /// Users rely on the tiers too.
    #[test]
    fn every_reason_has_its_tier() {
        let immediate = [
            Reason::PeerClosed { code: Some(1000) },
            Reason::ServerClosed { code: None },
            Reason::HandlerDropped,
            Reason::PeerVanished,
            Reason::Transport(ErrorKind::ConnectionReset),
            Reason::ControlFlood,
            Reason::Kicked { code: 4000 },
            Reason::Replaced,
            Reason::Drained,
            Reason::UpgradeFailed,
        ];
        let regular = [
            Reason::HeartbeatTimeout { missed: 1 },
            Reason::WriteStalled,
            Reason::HandlerStalled,
            Reason::CloseTimeout,
        ];
        let long = [
            Reason::IdleTimeout,
            Reason::FirstMessageTimeout,
            Reason::MessageTimeout,
            Reason::MaxLifetime,
        ];
        let table: [(&[Reason], Tier, &str); 3] = [
            (&immediate, Tier::Immediate, "immediate"),
            (&regular, Tier::Regular, "regular"),
            (&long, Tier::Long, "long"),
        ];
        for (reasons, tier, word) in table {
            assert_eq!((tier.as_str(), tier.to_string().as_str()), (word, word));
            for reason in reasons {
                assert_eq!(reason.tier(), tier, "{reason:?}");
            }
        }
        assert!(Tier::Immediate < Tier::Regular && Tier::Regular < Tier::Long);
    }

    #[test]
    fn no_error_kind_makes_the_handler_retry() {
        for kind in [ErrorKind::WouldBlock, ErrorKind::Interrupted] {
            assert_eq!(Reason::Transport(kind).io_error_kind(), ErrorKind::Other);
        }
    }
}
