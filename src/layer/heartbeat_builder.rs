//! The builder of [`HeartbeatLayer`].

use std::sync::Arc;
use std::time::Duration;

use super::heartbeat::HeartbeatLayer;
use crate::config_error::{self, ConfigError};
use crate::hooks::OnHealth;
use crate::hooks::{IntoHook, OnEvict};
use crate::monitor::{CloseFrame, HeartbeatPolicy, ProofOfLife};
use crate::registry::Registry;

/// Configures a [`HeartbeatLayer`].
///
/// Made by [`HeartbeatLayer::builder`]. Setters take any value; [`build`](Self::build) checks them
/// all. Calling a setter again replaces its value, except for [`on_evict`](Self::on_evict) and
/// [`on_health`](Self::on_health), which add.
///
/// A dead peer is evicted within `interval + timeout × missed_pings`, plus one tick of the driver:
/// at most a 32nd of the shortest configured duration and at most 256 ms, or 1 ms per step. If no
/// ping can be sent, [`write_timeout`](Self::write_timeout) or
/// [`handler_stall_timeout`](Self::handler_stall_timeout) decide.
///
/// ```
/// use std::time::Duration;
/// use tower_ws_liveness::{ConfigError, HeartbeatLayer};
///
/// # fn main() -> Result<(), ConfigError> {
/// let layer = HeartbeatLayer::builder()
///     .interval(Duration::from_secs(20))
///     .timeout(Duration::from_secs(10))
///     .missed_pings(2)
///     .write_timeout(None)
///     .close_frame(4000, "are you there?")
///     .build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct HeartbeatLayerBuilder {
    policy: HeartbeatPolicy,
    registry: Option<Registry>,
    hooks: Vec<Arc<dyn OnEvict>>,
    health_hooks: Vec<Arc<dyn OnHealth>>,
}

impl HeartbeatLayerBuilder {
    /// How long the peer may be silent before it is sent a ping. Default: 30 s.
    ///
    /// Any byte from the peer starts the interval anew, so a busy connection is never pinged; with
    /// [`ProofOfLife::MatchingPong`] only pongs do. Keep it below the idle timeout of the proxies in
    /// between: nginx and AWS ALB cut after 60 s.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.policy.interval = interval;
        self
    }

    /// How long to wait for a sign of life after a ping. Default: 15 s.
    ///
    /// Counted from the moment the ping was handed to the transport, for each ping anew. What is a
    /// sign of life is up to [`proof_of_life`](Self::proof_of_life).
    ///
    /// A ping that becomes due between two fragments of an outbound message first waits for the end of
    /// the message, for at most this time. RFC 6455 section 5.4 allows control frames there, but wsproto
    /// 1.3 and aiohttp before 3.14.5 lose a compressed message that one interrupts. A dead peer is
    /// evicted later by as much as the pings of its silence wait.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.policy.timeout = timeout;
        self
    }

    /// How many pings in a row have to go unanswered for the peer to count as dead. Default: 1.
    ///
    /// Refused: 0, more than 255.
    pub fn missed_pings(mut self, missed_pings: u32) -> Self {
        self.policy.missed_pings = missed_pings;
        self
    }

    /// Which inbound traffic answers a ping. Default: [`ProofOfLife::AnyBytes`].
    ///
    /// Nothing is refused.
    pub fn proof_of_life(mut self, proof_of_life: ProofOfLife) -> Self {
        self.policy.proof_of_life = proof_of_life;
        self
    }

    /// How far to spread the first pings, as a fraction of the interval. Default: 0.5.
    ///
    /// A connection's first ping comes at a random point of the last `jitter` part of its first
    /// interval: with 0.5 in its second half, with 0.0 at its end, with 1.0 anywhere in it. So
    /// clients that reconnected all at once, after a deployment say, are not pinged all at once.
    ///
    /// Refused: NaN, anything outside of `0.0..=1.0`.
    pub fn jitter(mut self, jitter: f64) -> Self {
        self.policy.jitter = jitter;
        self
    }

    /// How long a pending write may go without one byte of it being accepted. `None` turns the
    /// check off. Default: 30 s.
    ///
    /// Ends the connection with [`Reason::WriteStalled`]. A slow peer is safe as long as it drains
    /// anything at all. Before the verdict whoever waits is asked to try once more, for which there are
    /// up to 100 ms.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    ///
    /// [`Reason::WriteStalled`]: crate::Reason::WriteStalled
    pub fn write_timeout(mut self, write_timeout: impl Into<Option<Duration>>) -> Self {
        self.policy.write_timeout = write_timeout.into();
        self
    }

    /// How long the peer's bytes may wait for the handler to read them, or a ping for the end of a
    /// frame that the handler has begun. `None` turns the check off. Default: off.
    ///
    /// While the handler does not read, the driver looks at the transport once an interval, so it
    /// may take an interval more until it is noticed that bytes wait.
    ///
    /// Ends the connection with [`Reason::HandlerStalled`]. Off by default because a handler that
    /// does long work between two reads is slow, not broken.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    ///
    /// [`Reason::HandlerStalled`]: crate::Reason::HandlerStalled
    pub fn handler_stall_timeout(
        mut self,
        handler_stall_timeout: impl Into<Option<Duration>>,
    ) -> Self {
        self.policy.handler_stall_timeout = handler_stall_timeout.into();
        self
    }

    /// How many control frames the peer may send per second: pings, and pongs that answer no ping of
    /// the layer. `None` turns the check off. Default: off.
    ///
    /// A second's worth may come all at once. What is seen after a time of silence is taken to have
    /// come as slowly as it may have, for nobody knows whether it was there before (the runtime stood
    /// still, the handler was busy): after a quiet minute, a minute's worth may come at once. So a
    /// peer that keeps to the limit is not evicted because its frames are seen late. But what the
    /// network holds back for seconds may come in two pieces, the second of which is a burst: keep
    /// the limit well above what clients send.
    ///
    /// Ends the connection with [`Reason::ControlFlood`] and a Close frame of 1008 (RFC 6455 section
    /// 7.4.1). The WebSocket library has to answer every ping (section 5.5.2), which is what makes a
    /// flood of them expensive. Stock clients send none or one every few seconds.
    ///
    /// Refused: 0, more than 1,000,000.
    ///
    /// [`Reason::ControlFlood`]: crate::Reason::ControlFlood
    pub fn control_frame_limit(mut self, per_second: impl Into<Option<u32>>) -> Self {
        self.policy.control_frame_limit = per_second.into();
        self
    }

    /// Whether the transport accepts other bytes after a write that returned `Pending`. Default: false.
    ///
    /// Ignored for tokio's TCP sockets, for Unix sockets given to
    /// [`wrap_server`](HeartbeatLayer::wrap_server) and its like (both with the feature `tcp`), and for
    /// HTTP/2 streams, which are known to. Any other transport may be TLS by OpenSSL, which sends the bytes of such a write
    /// whatever is written next, so the same bytes must be written again first. Until the handler does
    /// that, no ping and no Close frame is sent. As a rule the transport is full at that time and would
    /// accept neither. But if the handler abandons the write, they stay unsent, and
    /// [`write_timeout`](Self::write_timeout) ends the connection.
    ///
    /// Set this to true over transports that forget a write which returned `Pending`: rustls, Unix
    /// sockets behind the layers, QUIC streams, in-memory pipes. Pings are then sent behind an abandoned write too. Over OpenSSL, true
    /// corrupts what the peer receives.
    ///
    /// Nothing is refused.
    pub fn takes_any_bytes(mut self, takes_any_bytes: bool) -> Self {
        self.policy.takes_any_bytes = takes_any_bytes;
        self
    }

    /// How long the closing handshake, and the close of the transport after it, may take. Default:
    /// 5 s.
    ///
    /// This also bounds how long a slow peer has to read what was sent before: the transport is kept
    /// until the peer ends its direction, but no longer than this.
    ///
    /// RFC 6455 section 7.1.1 leaves the bound to the endpoint.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn close_timeout(mut self, close_timeout: Duration) -> Self {
        self.policy.close_timeout = close_timeout;
        self
    }

    /// Code and reason of the Close frame that is sent to a peer that is evicted by the heartbeat.
    /// Default: for each reason its own.
    ///
    /// | evicted for | code | reason | because |
    /// |---|---|---|---|
    /// | [`HeartbeatTimeout`] | 3008 | "heartbeat timeout" | IANA: Timeout. The device may have slept; its client should reconnect |
    /// | [`WriteStalled`] | 3008 | "write stalled" | IANA: Timeout. The device may have slept while the server kept sending |
    /// | [`HandlerStalled`] | 1013 | "handler stalled" | IANA: Try Again Later. The server is at fault; the client should reconnect |
    /// | [`ControlFlood`] | 1008 | "too many control frames" | RFC 6455 section 7.4.1: Policy Violation. The client is at fault |
    ///
    /// The stock clients in the README's table reconnect after 3008 and 1013. After 1011, which RFC 6455
    /// section 7.4.1 assigns to a server's faults, some of them never do.
    ///
    /// A frame that is set replaces the defaults of all these reasons except `ControlFlood`. The reason
    /// may be empty. The frame is sent on a best effort, since the peer is most likely dead. While the
    /// handler has a frame half-written no Close frame can be sent (RFC 6455 section 5.4), and the
    /// transport is closed without one.
    ///
    /// Refused, by RFC 6455 section 7.4: codes that are not to be sent (1004, 1005, 1006, 1015),
    /// reserved ones (1016 to 2999), and those below 1000 or above 4999. Refused, by section 5.5:
    /// reasons of more than 123 bytes.
    ///
    /// [`HeartbeatTimeout`]: crate::Reason::HeartbeatTimeout
    /// [`WriteStalled`]: crate::Reason::WriteStalled
    /// [`HandlerStalled`]: crate::Reason::HandlerStalled
    /// [`ControlFlood`]: crate::Reason::ControlFlood
    pub fn close_frame(mut self, code: u16, reason: impl Into<String>) -> Self {
        self.policy.close_frame = Some(CloseFrame {
            code,
            reason: reason.into().into(),
        });
        self
    }

    /// Whether a connection over plain TCP gets socket options that follow from the layer's times.
    /// Default: true.
    ///
    /// They are those of [`HeartbeatLayer::tcp_options`], and are set when the connection opens, if
    /// the transport is a tokio `TcpStream` (behind `axum::serve`, say). A socket that refuses one is
    /// used as it is. With false, and for every other transport, the socket is left alone; TLS
    /// servers apply [`TcpOptions`](crate::TcpOptions) themselves. They follow from the times that
    /// hold for the connection, also when these are changed later, and replace what was set on the
    /// socket before: turn this off to have other options than these. Streams that are given to
    /// [`wrap_server`](HeartbeatLayer::wrap_server) are left alone.
    ///
    /// Nothing is refused.
    #[cfg(feature = "tcp")]
    pub fn tune_tcp(mut self, tune_tcp: bool) -> Self {
        self.policy.tune_tcp = tune_tcp;
        self
    }

    /// The registry that connections are entered in. Default: one of the layer's own.
    ///
    /// LayerConfig one between layers to count their connections together.
    ///
    /// Nothing is refused.
    pub fn registry(mut self, registry: Registry) -> Self {
        self.registry = Some(registry);
        self
    }

    /// Adds a hook that is told of each connection's end. Default: none.
    ///
    /// May be called several times. Each hook is called once per connection, in the order in which
    /// they were added. The hook is told of every end, not only of those that the heartbeat brings
    /// about: see [`Reason`](crate::Reason). An [`Arc`] that is given to several layers is one hook,
    /// called once per connection: see [`IntoHook`].
    ///
    /// Nothing is refused.
    pub fn on_evict<M>(mut self, hook: impl IntoHook<dyn OnEvict, M>) -> Self {
        self.hooks.push(hook.into_arc());
        self
    }

    /// Adds a hook that is told when the health of a connection has changed for a while. Default:
    /// none.
    ///
    /// May be called several times. Each hook is told of each change once, in the order in which they
    /// were added. What counts as a change is said at [`OnHealth`]. An [`Arc`] that is given to several
    /// layers is one hook, see [`IntoHook`].
    ///
    /// Nothing is refused.
    pub fn on_health<M>(mut self, hook: impl IntoHook<dyn OnHealth, M>) -> Self {
        self.health_hooks.push(hook.into_arc());
        self
    }

    /// Checks the values and makes the layer.
    ///
    /// # Errors
    ///
    /// If a value is refused; each setter tells which values are. The error names the first one.
    pub fn build(self) -> Result<HeartbeatLayer, ConfigError> {
        validate(&self.policy)?;
        let registry = self.registry.unwrap_or_default();
        Ok(HeartbeatLayer::from_parts(
            self.policy,
            registry,
            self.hooks,
            self.health_hooks,
        ))
    }
}

fn validate(policy: &HeartbeatPolicy) -> Result<(), ConfigError> {
    config_error::duration("HeartbeatLayer::interval", policy.interval)?;
    config_error::duration("HeartbeatLayer::timeout", policy.timeout)?;
    config_error::missed_pings("HeartbeatLayer::missed_pings", policy.missed_pings)?;
    config_error::jitter("HeartbeatLayer::jitter", policy.jitter)?;
    config_error::optional_duration("HeartbeatLayer::write_timeout", policy.write_timeout)?;
    config_error::optional_duration(
        "HeartbeatLayer::handler_stall_timeout",
        policy.handler_stall_timeout,
    )?;
    config_error::control_frame_limit(
        "HeartbeatLayer::control_frame_limit",
        policy.control_frame_limit,
    )?;
    config_error::duration("HeartbeatLayer::close_timeout", policy.close_timeout)?;
    match &policy.close_frame {
        Some(frame) => config_error::close_frame("HeartbeatLayer::close_frame", frame),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
