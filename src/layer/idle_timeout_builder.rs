//! [`IdleTimeoutLayerBuilder`]: the settings of [`IdleTimeoutLayer`].

use std::time::Duration;

use super::idle_timeout::IdleTimeoutLayer;
use super::shared_settings::SharedSettings;
use crate::config_error::{self, ConfigError};
use crate::connection::{HealthChange, Liveness, OnHealth, OnOpen};
use crate::eviction::Eviction;
use crate::hooks::{IntoHook, OnEvict};
use crate::monitor::{CloseFrame, IdlePolicy, Traffic};
use crate::registry::Registry;

/// Configures an [`IdleTimeoutLayer`].
///
/// Created by [`IdleTimeoutLayer::builder`]. Setters accept any value; [`build`](Self::build)
/// checks all values. Calling a setter again replaces its value, except for
/// [`on_open`](Self::on_open), [`on_evict`](Self::on_evict) and [`on_health`](Self::on_health),
/// which add a hook.
///
/// ```
/// use std::time::Duration;
/// use tower_ws_liveness::{ConfigError, IdleTimeoutLayer, Traffic};
///
/// # fn main() -> Result<(), ConfigError> {
/// let layer = IdleTimeoutLayer::builder()
///     .timeout(Duration::from_secs(600))
///     .watch(Traffic::Inbound)
///     .first_message(Duration::from_secs(10))
///     .build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct IdleTimeoutLayerBuilder {
    policy: IdlePolicy,
    shared: SharedSettings,
}

impl IdleTimeoutLayer {
    /// Creates a layer with this timeout, and defaults for everything else.
    ///
    /// # Panics
    ///
    /// Panics if [`build`](IdleTimeoutLayerBuilder::build) refuses the timeout: zero, less than
    /// 1 ms, or more than 365 days.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        match Self::builder().timeout(timeout).build() {
            Ok(layer) => layer,
            Err(error) => panic!("{error}"),
        }
    }

    /// Returns a builder with the defaults.
    pub fn builder() -> IdleTimeoutLayerBuilder {
        IdleTimeoutLayerBuilder::default()
    }
}

impl IdleTimeoutLayerBuilder {
    /// Sets how long a connection may go without a byte of a data message. `None` turns the check
    /// off. Default: 5 min.
    ///
    /// Ends the connection with [`Reason::IdleTimeout`]. Each byte of a text or binary message
    /// counts, so a connection is not idle during a transfer, even one that takes longer than this.
    /// Nor is it idle while an endless message arrives a few bytes at a time:
    /// [`message_timeout`](Self::message_timeout) bounds that. Pings and pongs of either side do
    /// not count, so a heartbeat does not keep an unused connection open. [`watch`](Self::watch)
    /// sets which direction counts.
    ///
    /// Inbound bytes count when they are read from the transport. If the handler does not read, the
    /// layer itself does, at the latest when this time has passed: it reads up to 16 KiB ahead, and
    /// the time restarts if it finds data. Bytes behind a full read-ahead buffer do not count.
    ///
    /// Time during which the server's process is stopped counts too: the layer first reads the data
    /// that has arrived meanwhile, and then the connection may be idle immediately.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    ///
    /// [`Reason::IdleTimeout`]: crate::Reason::IdleTimeout
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.policy.timeout = timeout.into();
        self
    }

    /// Sets the direction in which data counts as use, and in which
    /// [`message_timeout`](Self::message_timeout) bounds messages. Default: [`Traffic::Either`].
    ///
    /// No value is refused.
    pub fn watch(mut self, traffic: Traffic) -> Self {
        self.policy.watch = traffic;
        self
    }

    /// Sets how long the peer may take to complete its first data message, counted from the
    /// upgrade. `None` turns the check off. Default: off.
    ///
    /// Ends the connection with [`Reason::FirstMessageTimeout`]. For protocols in which the client
    /// sends first: the check evicts connections that are opened and never used. Only the peer's
    /// messages count, whatever [`watch`](Self::watch) is set to. The check does not apply while
    /// the end of the message may be unread: while the read-ahead buffer (16 KiB) is full because
    /// the handler does not read, and once malformed input has lost the frame boundaries.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    ///
    /// [`Reason::FirstMessageTimeout`]: crate::Reason::FirstMessageTimeout
    pub fn first_message(mut self, first_message: impl Into<Option<Duration>>) -> Self {
        self.policy.first_message = first_message.into();
        self
    }

    /// Sets how long one data message may take from its first byte to its last. `None` turns the
    /// check off. Default: off.
    ///
    /// Ends the connection with [`Reason::MessageTimeout`]. The check bounds messages that arrive a
    /// few bytes at a time, since each of their bytes resets the idle timeout. The time covers all
    /// fragments of a message (RFC 6455 section 5.4): a control frame between them neither ends nor
    /// restarts it. It applies to the directions that [`watch`](Self::watch) names. For an outbound
    /// message it is measured at the transport, from the first byte accepted to the last, whether
    /// the handler or the peer is slow. For an inbound message it is measured where bytes are read:
    /// by the handler, or by the layer while the handler does not read. The layer reads when a
    /// deadline is due, at the latest when the connection would be idle. With
    /// [`timeout`](Self::timeout) off, that is the deadline of a heartbeat or of another check; if
    /// there is none, a message that the handler does not read is not noticed.
    ///
    /// The peer is not evicted because the handler does not read. While the read-ahead buffer (16
    /// KiB) is full, the end of the message may be behind it, so the check does not apply; the time
    /// restarts when the handler reads on. Over a transport that buffers less than 16 KiB, a slow
    /// handler may use up the peer's time.
    ///
    /// Once malformed input has lost the frame boundaries, there are no messages, and the check
    /// does not apply.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    ///
    /// [`Reason::MessageTimeout`]: crate::Reason::MessageTimeout
    pub fn message_timeout(mut self, message_timeout: impl Into<Option<Duration>>) -> Self {
        self.policy.message_timeout = message_timeout.into();
        self
    }

    /// Sets how long a connection may last, used or not, counted from the upgrade. `None` turns the
    /// check off. Default: off.
    ///
    /// Ends the connection with [`Reason::MaxLifetime`]. For credentials that expire, and to
    /// redistribute clients over servers. The end is earlier by up to a tenth, at random: see
    /// [`max_lifetime_jitter`](Self::max_lifetime_jitter).
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    ///
    /// [`Reason::MaxLifetime`]: crate::Reason::MaxLifetime
    pub fn max_lifetime(mut self, max_lifetime: impl Into<Option<Duration>>) -> Self {
        self.policy.max_lifetime = max_lifetime.into();
        self
    }

    /// Sets how far to spread the ends by [`max_lifetime`](Self::max_lifetime), as a fraction of
    /// it. Default: 0.1.
    ///
    /// A connection ends at a random point in the last `jitter` fraction of its lifetime: with 0.1
    /// in its last tenth, with 0.0 at its end, with 1.0 anywhere in it. Clients that all connected
    /// at the same time, after a deployment for example, then do not all reconnect at the same
    /// time. No connection ends later than without jitter.
    ///
    /// Refused: NaN, and any value outside `0.0..=1.0`.
    pub fn max_lifetime_jitter(mut self, jitter: f64) -> Self {
        self.policy.max_lifetime_jitter = jitter;
        self
    }

    /// Sets how long the closing handshake, and the close of the transport after it, may take.
    /// Default: 5 s.
    ///
    /// RFC 6455 section 7.1.1 leaves the bound to the endpoint.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn close_timeout(mut self, close_timeout: Duration) -> Self {
        self.policy.close_timeout = close_timeout;
        self
    }

    /// Sets the code and reason of the Close frame that this layer's evictions send. Default: a
    /// frame for each reason.
    ///
    /// | evicted for | code | reason | because |
    /// |---|---|---|---|
    /// | [`IdleTimeout`] | 1001 | "idle timeout" | RFC 6455 section 7.4.1: Going Away. Nothing failed |
    /// | [`FirstMessageTimeout`] | 3008 | "no first message in time" | IANA: Timeout. A slow start may succeed next time |
    /// | [`MessageTimeout`] | 3008 | "message not complete in time" | IANA: Timeout |
    /// | [`MaxLifetime`] | 1012 | "maximum lifetime reached" | IANA: Service Restart. The client should reconnect after a random delay |
    ///
    /// The [tested stock clients] reconnect after all of these.
    ///
    /// [tested stock clients]: crate::guide::compatibility#clients-that-reconnect
    ///
    /// A frame that is set here replaces the defaults of all these reasons. The reason may be
    /// empty.
    ///
    /// While the handler has written only part of a frame, no Close frame can be sent (RFC 6455
    /// section 5.4), and the transport is closed without one.
    ///
    /// Refused, by RFC 6455 section 7.4: codes that must not be sent (1004, 1005, 1006, 1015),
    /// reserved codes (1016 to 2999), and codes below 1000 or above 4999. Refused, by section 5.5:
    /// reasons of more than 123 bytes.
    ///
    /// [`IdleTimeout`]: crate::Reason::IdleTimeout
    /// [`FirstMessageTimeout`]: crate::Reason::FirstMessageTimeout
    /// [`MessageTimeout`]: crate::Reason::MessageTimeout
    /// [`MaxLifetime`]: crate::Reason::MaxLifetime
    pub fn close_frame(mut self, code: u16, reason: impl Into<String>) -> Self {
        self.policy.close_frame = Some(CloseFrame {
            code,
            reason: reason.into().into(),
        });
        self
    }

    /// Sets a registry in which connections are entered, in addition to the registry of a stacked
    /// [`HeartbeatLayer`](crate::HeartbeatLayer). Default: none.
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
    /// the hooks were added. The hook is called for every end, not only for this layer's own
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
    pub fn build(self) -> Result<IdleTimeoutLayer, ConfigError> {
        validate(&self.policy)?;
        Ok(IdleTimeoutLayer::from_parts(self.policy, self.shared))
    }
}

fn validate(policy: &IdlePolicy) -> Result<(), ConfigError> {
    config_error::optional_duration("IdleTimeoutLayer::timeout", policy.timeout)?;
    config_error::optional_duration("IdleTimeoutLayer::first_message", policy.first_message)?;
    config_error::optional_duration("IdleTimeoutLayer::message_timeout", policy.message_timeout)?;
    config_error::optional_duration("IdleTimeoutLayer::max_lifetime", policy.max_lifetime)?;
    config_error::jitter(
        "IdleTimeoutLayer::max_lifetime_jitter",
        policy.max_lifetime_jitter,
    )?;
    config_error::duration("IdleTimeoutLayer::close_timeout", policy.close_timeout)?;
    config_error::optional_close_frame("IdleTimeoutLayer::close_frame", policy.close_frame.as_ref())
}

#[cfg(test)]
mod tests;
