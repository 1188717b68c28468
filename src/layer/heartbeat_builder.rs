//! [`HeartbeatLayerBuilder`]: the settings of [`HeartbeatLayer`].

use std::time::Duration;

use super::heartbeat::HeartbeatLayer;
use super::shared_settings::SharedSettings;
use crate::config_error::{self, ConfigError};
use crate::connection::{HealthChange, Liveness, OnHealth, OnOpen};
use crate::eviction::Eviction;
use crate::hooks::{IntoHook, OnEvict};
use crate::monitor::{CloseFrame, HeartbeatPolicy, ProofOfLife};
use crate::registry::Registry;

/// Configures a [`HeartbeatLayer`].
///
/// Created by [`HeartbeatLayer::builder`]. Setters accept any value; [`build`](Self::build) checks
/// all values. Calling a setter again replaces its value, except for [`on_open`](Self::on_open),
/// [`on_evict`](Self::on_evict) and [`on_health`](Self::on_health), which add a hook.
///
/// A dead peer is evicted within `interval + timeout × missed_pings`, plus one tick of the driver.
/// A tick is at most a 32nd of the shortest configured duration and at most 256 ms, or 1 ms per
/// step. If no ping can be sent, [`write_timeout`](Self::write_timeout) or
/// [`handler_stall_timeout`](Self::handler_stall_timeout) applies instead.
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
    shared: SharedSettings,
}

impl HeartbeatLayer {
    /// Creates a layer with these times, and defaults for everything else.
    ///
    /// # Panics
    ///
    /// Panics if [`build`](HeartbeatLayerBuilder::build) refuses a time: zero, less than 1 ms, or
    /// more than 365 days.
    #[must_use]
    pub fn new(interval: Duration, timeout: Duration) -> Self {
        match Self::builder().interval(interval).timeout(timeout).build() {
            Ok(layer) => layer,
            Err(error) => panic!("{error}"),
        }
    }

    /// Returns a builder with the defaults.
    pub fn builder() -> HeartbeatLayerBuilder {
        HeartbeatLayerBuilder::default()
    }
}

impl HeartbeatLayerBuilder {
    /// Sets how long the peer may be silent before the layer sends a ping. Default: 30 s.
    ///
    /// Any byte from the peer restarts the interval, so the layer never pings a busy connection.
    /// With [`ProofOfLife::MatchingPong`] only a matching pong restarts it. Keep the interval below
    /// the idle timeout of the proxies in between: nginx and AWS ALB close after 60 s.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.policy.interval = interval;
        self
    }

    /// Sets how long to wait for proof of life after a ping. Default: 15 s.
    ///
    /// The timeout runs from the moment the ping is handed to the transport, anew for each ping.
    /// [`proof_of_life`](Self::proof_of_life) sets what counts as proof.
    ///
    /// A ping that becomes due between two fragments of an outbound message first waits for the end
    /// of the message, for at most this timeout. RFC 6455 section 5.4 allows control frames there,
    /// but wsproto 1.3 and aiohttp before 3.14.5 lose a compressed message that a control frame
    /// interrupts. The eviction of a dead peer is delayed by as much as the pings during its
    /// silence wait.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.policy.timeout = timeout;
        self
    }

    /// Sets how many pings in a row must go unanswered for the peer to count as dead. Default: 1.
    ///
    /// Refused: 0, more than 255.
    pub fn missed_pings(mut self, missed_pings: u32) -> Self {
        self.policy.missed_pings = missed_pings;
        self
    }

    /// Sets which inbound traffic answers a ping. Default: [`ProofOfLife::AnyBytes`].
    ///
    /// No value is refused.
    pub fn proof_of_life(mut self, proof_of_life: ProofOfLife) -> Self {
        self.policy.proof_of_life = proof_of_life;
        self
    }

    /// Sets how far to spread the first pings, as a fraction of the interval. Default: 0.5.
    ///
    /// The layer sends the first ping of a connection at a random point in the last `jitter`
    /// fraction of the first interval: with 0.5 in its second half, with 0.0 at its end, with 1.0
    /// anywhere in it. Clients that all reconnect at the same time, after a deployment for example,
    /// are then not pinged at the same time.
    ///
    /// Refused: NaN, and any value outside `0.0..=1.0`.
    pub fn jitter(mut self, jitter: f64) -> Self {
        self.policy.jitter = jitter;
        self
    }

    /// Sets how long a pending write may wait without the transport accepting one byte of it.
    /// `None` turns the check off. Default: 30 s.
    ///
    /// Ends the connection with [`Reason::WriteStalled`]. A slow peer is safe if it drains any
    /// bytes at all. Before the verdict the task that waits to write is woken to try once more, and
    /// has up to 100 ms for that.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    ///
    /// [`Reason::WriteStalled`]: crate::Reason::WriteStalled
    pub fn write_timeout(mut self, write_timeout: impl Into<Option<Duration>>) -> Self {
        self.policy.write_timeout = write_timeout.into();
        self
    }

    /// Sets how long the peer's bytes may wait for the handler to read them, or a ping for the end
    /// of a frame that the handler has begun to write. `None` turns the check off. Default: off.
    ///
    /// While the handler does not read, the driver checks the transport once per interval, so
    /// waiting bytes may be noticed up to one interval late.
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

    /// Sets how many control frames the peer may send per second: pings, and pongs that answer no
    /// ping of the layer. `None` turns the check off. Default: off.
    ///
    /// The frames of one second may arrive at the same time. Frames that are read after a pause are
    /// assumed to have arrived as slowly as the pause allows, because the layer cannot know whether
    /// they were there earlier (the runtime may have been stopped, or the handler busy). So after a
    /// quiet minute, a minute's worth of frames may arrive at the same time, and a peer that keeps
    /// the limit is not evicted because its frames are read late. Frames that the network holds
    /// back for seconds may still arrive in two pieces, the second of which is a burst: keep the
    /// limit well above the rate at which clients send.
    ///
    /// Ends the connection with [`Reason::ControlFlood`] and close code 1008 (RFC 6455 section
    /// 7.4.1). A flood is expensive because the WebSocket library must answer every ping (section
    /// 5.5.2). Stock clients send none, or one every few seconds.
    ///
    /// Refused: 0, more than 1,000,000.
    ///
    /// [`Reason::ControlFlood`]: crate::Reason::ControlFlood
    pub fn control_frame_limit(mut self, per_second: impl Into<Option<u32>>) -> Self {
        self.policy.control_frame_limit = per_second.into();
        self
    }

    /// Sets whether the transport accepts other bytes after a write that returned `Pending`.
    /// Default: false.
    ///
    /// Ignored for transports that are known to accept other bytes: tokio's TCP sockets; Unix
    /// sockets given to [`wrap_server`](HeartbeatLayer::wrap_server) and the other `wrap_*` methods
    /// (both with the feature `tcp`); and HTTP/2 streams. Any other transport may be TLS by
    /// OpenSSL, which sends the bytes of a pending write whatever is written next, so the same
    /// bytes must be written again first. Until the handler does that, the layer sends no ping and
    /// no Close frame. Normally the transport is full at that time and would accept neither. But if
    /// the handler abandons the write, the ping and the Close frame stay unsent, and
    /// [`write_timeout`](Self::write_timeout) ends the connection.
    ///
    /// Set this to true for transports that forget a write that returned `Pending`: rustls, Unix
    /// sockets behind the layers, QUIC streams, in-memory pipes. The layer then also sends pings
    /// after an abandoned write. Over OpenSSL, true corrupts what the peer receives.
    ///
    /// No value is refused.
    pub fn takes_any_bytes(mut self, takes_any_bytes: bool) -> Self {
        self.policy.takes_any_bytes = takes_any_bytes;
        self
    }

    /// Sets how long the closing handshake, and the close of the transport after it, may take.
    /// Default: 5 s.
    ///
    /// This also bounds how long a slow peer has to read earlier data: the transport is kept until
    /// the peer ends its direction, but no longer than this.
    ///
    /// RFC 6455 section 7.1.1 leaves the bound to the endpoint.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn close_timeout(mut self, close_timeout: Duration) -> Self {
        self.policy.close_timeout = close_timeout;
        self
    }

    /// Sets the code and reason of the Close frame that the heartbeat's evictions send. Default: a
    /// frame for each reason.
    ///
    /// | evicted for | code | reason | because |
    /// |---|---|---|---|
    /// | [`HeartbeatTimeout`] | 3008 | "heartbeat timeout" | IANA: Timeout. The device may have slept; its client should reconnect |
    /// | [`WriteStalled`] | 3008 | "write stalled" | IANA: Timeout. Best effort: rarely accepted by a transport that is full |
    /// | [`HandlerStalled`] | 1013 | "handler stalled" | IANA: Try Again Later. The server is at fault; the client should reconnect |
    /// | [`ControlFlood`] | 1008 | "too many control frames" | RFC 6455 section 7.4.1: Policy Violation. The client is at fault |
    ///
    /// The [tested stock clients] reconnect after 3008 and 1013. After 1011, which RFC 6455 section
    /// 7.4.1 assigns to server errors, some of them never reconnect.
    ///
    /// [tested stock clients]: crate::guide::compatibility#clients-that-reconnect
    ///
    /// A frame that is set here replaces the defaults of all these reasons except `ControlFlood`.
    /// The reason may be empty. Sending is best effort, since the peer is most likely dead. While
    /// the handler has written only part of a frame, no Close frame can be sent (RFC 6455 section
    /// 5.4), and the transport is closed without one.
    ///
    /// Refused, by RFC 6455 section 7.4: codes that must not be sent (1004, 1005, 1006, 1015),
    /// reserved codes (1016 to 2999), and codes below 1000 or above 4999. Refused, by section 5.5:
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

    /// Sets whether the layer sets socket options on plain TCP connections, derived from its times.
    /// Default: true.
    ///
    /// They are those of [`HeartbeatLayer::tcp_options`]. The layer sets them when the connection
    /// opens, if the transport is a tokio `TcpStream` (behind `axum::serve` for example). A socket
    /// that refuses an option is used as it is. With false, and on every other transport, the layer
    /// sets no options; TLS servers apply [`TcpOptions`](crate::TcpOptions) themselves. The options
    /// follow from the times that hold for the connection, also when these change later, and
    /// replace earlier options of the socket: turn this off to keep other options. The layer sets
    /// no options on streams that are given to [`wrap_server`](HeartbeatLayer::wrap_server).
    ///
    /// On Linux, and on wrapped streams too, the layer also enlarges the receive buffer of a socket
    /// whose handler does not read and whose receive window is closed, unless this is off.
    ///
    /// No value is refused.
    #[cfg(feature = "tcp")]
    pub fn tune_tcp(mut self, tune_tcp: bool) -> Self {
        self.policy.tune_tcp = tune_tcp;
        self
    }

    /// Sets the registry in which connections are entered. Default: a registry of this layer alone.
    ///
    /// Share one between layers to count their connections together.
    ///
    /// No value is refused.
    pub fn registry(mut self, registry: Registry) -> Self {
        self.shared.set_registry(registry);
        self
    }

    /// Adds a closure that is called when a connection has opened, with its handle. Default: none.
    ///
    /// May be called several times. Each hook is called once per connection, in the order in which
    /// the hooks were added, before the connection's eviction hooks: see [`OnOpen`].
    ///
    /// No value is refused.
    pub fn on_open(self, hook: impl Fn(&Liveness) + Send + Sync + 'static) -> Self {
        self.on_open_hook(hook)
    }

    /// Like [`on_open`](Self::on_open), for a value that implements [`OnOpen`], or an
    /// [`Arc`](std::sync::Arc) of one. An `Arc` that is given to several layers is one hook, called
    /// once per connection: see [`IntoHook`].
    ///
    /// No value is refused.
    pub fn on_open_hook<M>(mut self, hook: impl IntoHook<dyn OnOpen, M>) -> Self {
        self.shared.add_open_hook(hook);
        self
    }

    /// Adds a closure that is called when a connection ends. Default: none.
    ///
    /// May be called several times. Each hook is called once per connection, in the order in which
    /// the hooks were added. The hook is called for every end, not only for the heartbeat's own
    /// verdicts: see [`Reason`](crate::Reason).
    ///
    /// No value is refused.
    pub fn on_evict(self, hook: impl Fn(&Eviction) + Send + Sync + 'static) -> Self {
        self.on_evict_hook(hook)
    }

    /// Like [`on_evict`](Self::on_evict), for a value that implements [`OnEvict`], or an
    /// [`Arc`](std::sync::Arc) of one. An `Arc` that is given to several layers is one hook, called
    /// once per connection: see [`IntoHook`].
    ///
    /// No value is refused.
    pub fn on_evict_hook<M>(mut self, hook: impl IntoHook<dyn OnEvict, M>) -> Self {
        self.shared.add_evict_hook(hook);
        self
    }

    /// Adds a closure that is called when a changed health of a connection has lasted. Default:
    /// none.
    ///
    /// May be called several times. Each hook is called once per change, in the order in which the
    /// hooks were added. [`OnHealth`] defines what counts as a change.
    ///
    /// No value is refused.
    pub fn on_health(self, hook: impl Fn(&HealthChange) + Send + Sync + 'static) -> Self {
        self.on_health_hook(hook)
    }

    /// Like [`on_health`](Self::on_health), for a value that implements [`OnHealth`], or an
    /// [`Arc`](std::sync::Arc) of one: see [`IntoHook`].
    ///
    /// No value is refused.
    pub fn on_health_hook<M>(mut self, hook: impl IntoHook<dyn OnHealth, M>) -> Self {
        self.shared.add_health_hook(hook);
        self
    }

    /// Checks all values and builds the layer.
    ///
    /// # Errors
    ///
    /// Returns an error if a value is refused. Each setter lists the values that it refuses. The
    /// error names the first refused one.
    pub fn build(self) -> Result<HeartbeatLayer, ConfigError> {
        validate(&self.policy)?;
        Ok(HeartbeatLayer::from_parts(self.policy, self.shared))
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
    config_error::optional_close_frame("HeartbeatLayer::close_frame", policy.close_frame.as_ref())
}

#[cfg(test)]
mod tests;
