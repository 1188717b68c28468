//! The settings of the two layers for a connection, already validated.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use super::moment::Moment;
use super::reason::Reason;

/// Which inbound traffic proves that the peer is alive.
///
/// ```
/// use tower_ws_liveness::{ConfigError, HeartbeatLayer, ProofOfLife};
///
/// # fn main() -> Result<(), ConfigError> {
/// // Pings clients that send all the time too, so that their round trips are measured.
/// let layer = HeartbeatLayer::builder()
///     .proof_of_life(ProofOfLife::MatchingPong)
///     .build()?;
/// assert_eq!(ProofOfLife::default(), ProofOfLife::AnyBytes);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProofOfLife {
    /// Any byte from the peer answers an outstanding ping (the default).
    ///
    /// A peer that uploads one huge frame cannot send a pong in the middle of it (RFC 6455
    /// section 5.5 allows control frames between fragments only), but the upload proves that it is
    /// alive.
    #[default]
    AnyBytes,
    /// Only a pong with the payload of an outstanding ping answers it.
    ///
    /// Other traffic then neither answers a ping nor postpones the next one: the interval runs from
    /// pong to ping, so a peer that sends continuously is pinged too.
    ///
    /// While a frame from the peer is incomplete, its bytes extend the deadline, since the peer
    /// cannot send a pong before the frame ends. So a peer whose bytes always end in the middle of
    /// a frame need not answer. And while a ping is outstanding, a pause of `timeout` within a
    /// frame ends the connection, sooner than the `interval + timeout` of `AnyBytes`. If the
    /// handler leaves more bytes unread than are read ahead for it (16 KiB), a pong among them
    /// cannot be seen. Over plain TCP on Linux any bytes that arrive then count; elsewhere no ping
    /// is missed meanwhile.
    MatchingPong,
}

/// The direction whose data counts as activity for the idle timeout. Default: `Either`.
///
/// Data is every byte of a text or binary message (RFC 6455 section 5.6), including the headers of
/// its frames, whether or not the message is complete. Pings, pongs and Close frames do not count.
/// After malformed input, which leaves the frame boundaries unknown, every byte counts.
///
/// ```
/// use std::time::Duration;
///
/// use tower_ws_liveness::{ConfigError, IdleTimeoutLayer, Traffic};
///
/// # fn main() -> Result<(), ConfigError> {
/// // The server of a price feed sends all the time. Only the client's messages show that the feed
/// // is still used.
/// let layer = IdleTimeoutLayer::builder()
///     .timeout(Duration::from_secs(3600))
///     .watch(Traffic::Inbound)
///     .build()?;
/// assert_eq!(Traffic::default(), Traffic::Either);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Traffic {
    /// Data from the peer, counted when it is read from the transport.
    Inbound,
    /// Data to the peer, counted when the transport accepts it, even if the transport then buffers
    /// it.
    Outbound,
    /// Data in either direction (the default).
    #[default]
    Either,
}

/// Code and reason of the Close frame that an eviction sends (RFC 6455 section 5.5.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CloseFrame {
    pub(crate) code: u16,
    /// At most 123 bytes: a control frame carries 125, two of which are the code.
    pub(crate) reason: Cow<'static, str>,
}

/// Close code 3008 in IANA's registry, Timeout. As after 408 in HTTP (RFC 9110 section 15.5.9), the
/// client may retry.
const TIMEOUT_CODE: u16 = 3008;

impl CloseFrame {
    /// The frame for an eviction by a layer that has no `close_frame` configured.
    ///
    /// All clients in the guide's table of reconnecting clients reconnect after every code but
    /// 1008. The text is the beginning of [`Reason`]'s `Display`, so that the logs of both ends
    /// match.
    const fn by_default(reason: Reason) -> Self {
        let (code, text) = match reason {
            // Going Away: neither the client nor the server failed.
            Reason::IdleTimeout => (1001, "idle timeout"),
            // Policy Violation: the client is at fault, and would be after a reconnect.
            Reason::ControlFlood => (1008, "too many control frames"),
            // Service Restart, by IANA's registry: the client reconnects after a random delay.
            Reason::MaxLifetime => (1012, "maximum lifetime reached"),
            // Try Again Later, by IANA's registry: the server cannot serve the client now. 1011
            // would fit too, but graphql-ws does not reconnect after it.
            Reason::HandlerStalled => (1013, "handler stalled"),
            // Best effort: a transport that is full accepts no frame.
            Reason::WriteStalled => (TIMEOUT_CODE, "write stalled"),
            Reason::FirstMessageTimeout => (TIMEOUT_CODE, "no first message in time"),
            Reason::MessageTimeout => (TIMEOUT_CODE, "message not complete in time"),
            Reason::HeartbeatTimeout { .. }
            // The layers send no Close frame of their own for the following reasons.
            | Reason::PeerClosed { .. }
            | Reason::ServerClosed { .. }
            | Reason::HandlerDropped
            | Reason::PeerVanished
            | Reason::Transport(_)
            | Reason::CloseTimeout
            | Reason::Kicked { .. }
            | Reason::Replaced
            | Reason::Drained
            | Reason::UpgradeFailed => (TIMEOUT_CODE, "heartbeat timeout"),
        };
        Self {
            code,
            reason: Cow::Borrowed(text),
        }
    }
}

/// The default bound on the answer to a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(15);

/// The default bound on a pending write.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// The settings of the heartbeat layer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HeartbeatPolicy {
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
    pub(crate) missed_pings: u32,
    pub(crate) proof_of_life: ProofOfLife,
    pub(crate) jitter: f64,
    pub(crate) write_timeout: Option<Duration>,
    pub(crate) handler_stall_timeout: Option<Duration>,
    /// Frames per second, at least 1.
    pub(crate) control_frame_limit: Option<u32>,
    /// The transport accepts other bytes after a write that returned `Pending`.
    pub(crate) takes_any_bytes: bool,
    pub(crate) close_timeout: Duration,
    /// Sent for every verdict of this layer. With `None` each reason has its own frame:
    /// [`CloseFrame::by_default`].
    pub(crate) close_frame: Option<CloseFrame>,
    /// Whether the transport's socket options are derived from the timeouts.
    #[cfg(feature = "tcp")]
    pub(crate) tune_tcp: bool,
}

/// The settings of the idle layer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct IdlePolicy {
    pub(crate) timeout: Option<Duration>,
    pub(crate) watch: Traffic,
    pub(crate) first_message: Option<Duration>,
    pub(crate) message_timeout: Option<Duration>,
    pub(crate) max_lifetime: Option<Duration>,
    /// The last fraction of the lifetime in which the connection ends at random.
    pub(crate) max_lifetime_jitter: f64,
    /// When the credentials of this connection expire. Not a setting of the layer.
    pub(crate) expires_at: Option<Moment>,
    pub(crate) close_timeout: Duration,
    /// Sent for every verdict of this layer. With `None` each reason has its own frame:
    /// [`CloseFrame::by_default`].
    pub(crate) close_frame: Option<CloseFrame>,
    /// Whether the connection is under an idle layer. If not, only its lifetime is limited.
    pub(crate) has_layer: bool,
}

impl IdlePolicy {
    /// The settings of a connection without an idle layer, whose lifetime alone can be limited.
    pub(super) fn without_layer() -> Self {
        Self {
            timeout: None,
            has_layer: false,
            ..Self::default()
        }
    }
}

impl Default for HeartbeatPolicy {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(30),
            timeout: PING_TIMEOUT,
            missed_pings: 1,
            proof_of_life: ProofOfLife::AnyBytes,
            jitter: 0.5,
            write_timeout: Some(WRITE_TIMEOUT),
            handler_stall_timeout: None,
            control_frame_limit: None,
            takes_any_bytes: false,
            close_timeout: Duration::from_secs(5),
            close_frame: None,
            #[cfg(feature = "tcp")]
            tune_tcp: true,
        }
    }
}

impl Default for IdlePolicy {
    fn default() -> Self {
        Self {
            timeout: Some(Duration::from_secs(300)),
            watch: Traffic::Either,
            first_message: None,
            message_timeout: None,
            max_lifetime: None,
            max_lifetime_jitter: 0.1,
            expires_at: None,
            close_timeout: Duration::from_secs(5),
            close_frame: None,
            has_layer: true,
        }
    }
}

/// The settings of a connection, shared with all connections of the same layers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policy {
    pub(crate) heartbeat: Option<Arc<HeartbeatPolicy>>,
    pub(crate) idle: Option<Arc<IdlePolicy>>,
}

impl Policy {
    /// Adds a layer. The later layer of a kind is the inner one and replaces the outer one.
    pub(crate) fn add(&mut self, layer: &Self) {
        let Self { heartbeat, idle } = layer;
        self.heartbeat = heartbeat.clone().or(self.heartbeat.take());
        self.idle = idle.clone().or(self.idle.take());
    }

    /// Bound on the answer to a ping, and on its wait for the end of a message. The application may
    /// request pings without a heartbeat.
    pub(super) fn ping_timeout(&self) -> Duration {
        let heartbeat = self.heartbeat.as_ref();
        heartbeat.map_or(PING_TIMEOUT, |heartbeat| heartbeat.timeout)
    }

    /// Bound on the closing handshake: that of the layer that evicts, else the heartbeat's, else
    /// the idle layer's.
    pub(crate) fn close_timeout(&self, reason: Option<Reason>) -> Duration {
        let idle = reason.is_some_and(Self::is_idle_layers);
        match (&self.heartbeat, &self.idle) {
            (_, Some(policy)) if idle && policy.has_layer => policy.close_timeout,
            (Some(heartbeat), _) => heartbeat.close_timeout,
            (None, Some(idle)) => idle.close_timeout,
            (None, None) => HeartbeatPolicy::default().close_timeout,
        }
    }

    /// The Close frame for `reason`: the one configured on the layer that evicts, or the default
    /// for `reason`.
    pub(crate) fn close_frame(&self, reason: Reason) -> CloseFrame {
        let configured = match (&self.heartbeat, &self.idle) {
            // The peer is alive and at fault: the frame configured for dead peers would mislead it.
            _ if reason == Reason::ControlFlood => &None,
            (_, Some(policy)) if Self::is_idle_layers(reason) => &policy.close_frame,
            (Some(policy), _) => &policy.close_frame,
            (None, Some(policy)) => &policy.close_frame,
            (None, None) => &None,
        };
        let default = || CloseFrame::by_default(reason);
        configured.clone().unwrap_or_else(default)
    }

    /// Whether the connection is under an idle layer.
    pub(crate) fn has_idle_layer(&self) -> bool {
        self.idle.as_ref().is_some_and(|idle| idle.has_layer)
    }

    fn is_idle_layers(reason: Reason) -> bool {
        matches!(
            reason,
            Reason::IdleTimeout
                | Reason::FirstMessageTimeout
                | Reason::MessageTimeout
                | Reason::MaxLifetime
        )
    }

    /// What proves that the peer is alive; without a heartbeat the default.
    pub(super) fn proof_of_life(&self) -> ProofOfLife {
        let heartbeat = self.heartbeat.as_ref();
        heartbeat
            .map(|heartbeat| heartbeat.proof_of_life)
            .unwrap_or_default()
    }

    /// Whether messages have a deadline, so that the start of a message may move the deadline.
    pub(super) fn limits_messages(&self) -> bool {
        let idle = self.idle.as_ref();
        idle.is_some_and(|idle| idle.message_timeout.is_some())
    }

    /// The granularity in milliseconds, a power of two, to which this connection's deadlines are
    /// rounded up, so that connections with close deadlines share a wake-up.
    ///
    /// The total delay is at most a 32nd of the shortest configured duration, and at most 256 ms. A
    /// verdict takes up to `1 + missed_pings` steps, each of which may be late by one rounding, so
    /// the granularity is that total divided by the number of steps.
    pub(crate) fn step_millis(&self) -> u32 {
        let never = Duration::MAX;
        let heartbeat = self.heartbeat.as_ref().map_or(never, |policy| {
            policy
                .interval
                .min(policy.timeout)
                .min(policy.close_timeout)
                .min(policy.write_timeout.unwrap_or(never))
                .min(policy.handler_stall_timeout.unwrap_or(never))
        });
        let idle = self.idle.as_ref().map_or(never, |policy| {
            policy
                .close_timeout
                .min(policy.timeout.unwrap_or(never))
                .min(policy.first_message.unwrap_or(never))
                .min(policy.message_timeout.unwrap_or(never))
                .min(policy.max_lifetime.unwrap_or(never))
        });
        let missed = self
            .heartbeat
            .as_ref()
            .map_or(0, |policy| policy.missed_pings);
        granularity_millis(heartbeat.min(idle), missed.saturating_add(1))
    }
}

/// The granularity in milliseconds, a power of two, to which `steps` deadlines in a row are rounded
/// up. The total delay is at most a 32nd of `duration`, and at most 256 ms.
pub(crate) fn granularity_millis(duration: Duration, steps: u32) -> u32 {
    let total = u32::try_from(duration.as_millis() / 32).unwrap_or(u32::MAX);
    let step = total.min(256) / steps;
    1 << step.max(1).ilog2()
}
