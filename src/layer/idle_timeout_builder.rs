//! The builder of [`IdleTimeoutLayer`].

use std::sync::Arc;
use std::time::Duration;

use super::idle_timeout::IdleTimeoutLayer;
use crate::config_error::{self, ConfigError};
use crate::hooks::OnHealth;
use crate::hooks::{IntoHook, OnEvict};
use crate::monitor::{CloseFrame, IdlePolicy, Traffic};
use crate::registry::Registry;

/// Configures an [`IdleTimeoutLayer`].
///
/// Made by [`IdleTimeoutLayer::builder`]. Setters take any value; [`build`](Self::build) checks
/// them all. Calling a setter again replaces its value, except for [`on_evict`](Self::on_evict) and
/// [`on_health`](Self::on_health), which add.
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
    registry: Option<Registry>,
    hooks: Vec<Arc<dyn OnEvict>>,
    health_hooks: Vec<Arc<dyn OnHealth>>,
}

impl IdleTimeoutLayerBuilder {
    /// How long a connection may go without a byte of a data message. Default: 5 min.
    ///
    /// Ends the connection with [`Reason::IdleTimeout`]. Each byte of a text or binary message counts,
    /// so a connection is not idle during a transfer, even one that takes longer than this. Nor is it idle
    /// while a message trickles in without end: [`message_timeout`](Self::message_timeout) bounds that.
    /// Pings and pongs of either side do not count, so a heartbeat does not keep an unused connection
    /// open. Which direction counts is set by [`watch`](Self::watch).
    ///
    /// Inbound bytes count when they are read from the transport. If the handler does not read, the
    /// layer itself does, at the latest when this time has passed: it reads up to 16 KiB ahead, and the
    /// time restarts if it finds data. Bytes that wait behind a full read-ahead buffer do not count.
    ///
    /// The time for which the server's process stood still counts too: what has come meanwhile is seen
    /// first, and then the connection may be idle at once.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    ///
    /// [`Reason::IdleTimeout`]: crate::Reason::IdleTimeout
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.policy.timeout = timeout;
        self
    }

    /// The direction in which data counts as use, and in which
    /// [`message_timeout`](Self::message_timeout) bounds messages. Default: [`Traffic::Either`].
    ///
    /// Nothing is refused.
    pub fn watch(mut self, traffic: Traffic) -> Self {
        self.policy.watch = traffic;
        self
    }

    /// How long the peer may take to complete its first data message, counted from the upgrade.
    /// `None` turns the check off. Default: off.
    ///
    /// Ends the connection with [`Reason::FirstMessageTimeout`]. For protocols in which the client
    /// speaks first: it cuts sockets that are opened and never used. Only the peer's messages
    /// count, whatever [`watch`](Self::watch) is set to. Nothing is evicted while the end of the message
    /// may be unseen: while the read-ahead buffer (16 KiB) is full because the handler does not read, and
    /// once malformed input has lost the frame boundaries.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    ///
    /// [`Reason::FirstMessageTimeout`]: crate::Reason::FirstMessageTimeout
    pub fn first_message(mut self, first_message: impl Into<Option<Duration>>) -> Self {
        self.policy.first_message = first_message.into();
        self
    }

    /// How long one data message may take from its first byte to its last. `None` turns the check off.
    /// Default: off.
    ///
    /// Ends the connection with [`Reason::MessageTimeout`]. It bounds messages that trickle in, since each
    /// of their bytes resets the idle timeout. The time covers all fragments of a message (RFC 6455
    /// section 5.4): a control frame between them neither ends nor restarts it. It applies to the
    /// directions that [`watch`](Self::watch) names. For an outbound message it is measured at the
    /// transport, from the first byte accepted to the last, whether the handler or the peer is slow. For an
    /// inbound message it is measured where bytes are read: by the handler, or by the layer while the
    /// handler does not read. The layer reads when a deadline is due, at the latest when the connection
    /// would be idle.
    ///
    /// A handler that does not read is not held against the peer. While the read-ahead buffer (16 KiB) is
    /// full, the end of the message may be behind it, so nothing is evicted; the time restarts when the
    /// handler reads on. Over a transport that buffers less than 16 KiB a slow handler may use up the
    /// peer's time.
    ///
    /// Once malformed input has lost the frame boundaries there are no messages, and nothing is evicted
    /// for this reason.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    ///
    /// [`Reason::MessageTimeout`]: crate::Reason::MessageTimeout
    pub fn message_timeout(mut self, message_timeout: impl Into<Option<Duration>>) -> Self {
        self.policy.message_timeout = message_timeout.into();
        self
    }

    /// How long a connection may last, used or not, counted from the upgrade. `None` turns the
    /// check off. Default: off.
    ///
    /// Ends the connection with [`Reason::MaxLifetime`]. For credentials that expire, and for
    /// spreading clients over servers anew.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    ///
    /// [`Reason::MaxLifetime`]: crate::Reason::MaxLifetime
    pub fn max_lifetime(mut self, max_lifetime: impl Into<Option<Duration>>) -> Self {
        self.policy.max_lifetime = max_lifetime.into();
        self
    }

    /// How long the closing handshake, and the close of the transport after it, may take. Default:
    /// 5 s.
    ///
    /// RFC 6455 section 7.1.1 leaves the bound to the endpoint.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn close_timeout(mut self, close_timeout: Duration) -> Self {
        self.policy.close_timeout = close_timeout;
        self
    }

    /// Code and reason of the Close frame that is sent to a peer that is evicted by this layer.
    /// Default: for each reason its own.
    ///
    /// | evicted for | code | reason | because |
    /// |---|---|---|---|
    /// | [`IdleTimeout`] | 1001 | "idle timeout" | RFC 6455 section 7.4.1: Going Away. Nothing failed |
    /// | [`FirstMessageTimeout`] | 3008 | "no first message in time" | IANA: Timeout. A slow start may succeed next time |
    /// | [`MessageTimeout`] | 3008 | "message not complete in time" | IANA: Timeout |
    /// | [`MaxLifetime`] | 1012 | "maximum lifetime reached" | IANA: Service Restart. The client should reconnect after a random delay |
    ///
    /// The stock clients in the README's table reconnect after all of these.
    ///
    /// A frame that is set replaces the defaults of all these reasons. The reason may be empty.
    ///
    /// In the middle of a frame of the handler's no Close frame can be sent (RFC 6455 section 5.4), and
    /// the transport is closed without one.
    ///
    /// Refused, by RFC 6455 section 7.4: codes that are not to be sent (1004, 1005, 1006, 1015),
    /// reserved ones (1016 to 2999), and those below 1000 or above 4999. Refused, by section 5.5:
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

    /// A registry that connections are entered in, besides that of a
    /// [`HeartbeatLayer`](crate::HeartbeatLayer) that is stacked with this layer. Default: none.
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
    /// they were added. The hook is told of every end, not only of those that this layer brings
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
    pub fn build(self) -> Result<IdleTimeoutLayer, ConfigError> {
        validate(&self.policy)?;
        Ok(IdleTimeoutLayer::from_parts(
            self.policy,
            self.registry,
            self.hooks,
            self.health_hooks,
        ))
    }
}

fn validate(policy: &IdlePolicy) -> Result<(), ConfigError> {
    config_error::duration("IdleTimeoutLayer::timeout", policy.timeout)?;
    config_error::optional_duration("IdleTimeoutLayer::first_message", policy.first_message)?;
    config_error::optional_duration("IdleTimeoutLayer::message_timeout", policy.message_timeout)?;
    config_error::optional_duration("IdleTimeoutLayer::max_lifetime", policy.max_lifetime)?;
    config_error::duration("IdleTimeoutLayer::close_timeout", policy.close_timeout)?;
    match &policy.close_frame {
        Some(frame) => config_error::close_frame("IdleTimeoutLayer::close_frame", frame),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eviction::Eviction;
    use proptest::prelude::*;

    const ZERO: Duration = Duration::ZERO;
    const SHORT: Duration = Duration::from_micros(999);
    const LONG: Duration = Duration::from_secs(365 * 24 * 60 * 60 + 1);

    fn builder() -> IdleTimeoutLayerBuilder {
        IdleTimeoutLayerBuilder::default()
    }

    fn refusal(builder: IdleTimeoutLayerBuilder) -> String {
        builder.build().expect_err("must be refused").to_string()
    }

    #[test]
    fn defaults_are_accepted() {
        assert!(builder().build().is_ok());
    }

    #[test]
    fn setters_set() {
        let seconds = Duration::from_secs;
        let registry = Registry::default();
        let builder = builder()
            .timeout(seconds(1))
            .watch(Traffic::Outbound)
            .first_message(seconds(2))
            .message_timeout(seconds(5))
            .max_lifetime(Some(seconds(3)))
            .close_timeout(seconds(4))
            .close_frame(4001, "bye")
            .registry(registry)
            .on_evict(|_: &Eviction| {})
            .on_evict(|_: &Eviction| {});
        let expected = IdlePolicy {
            timeout: seconds(1),
            watch: Traffic::Outbound,
            first_message: Some(seconds(2)),
            message_timeout: Some(seconds(5)),
            max_lifetime: Some(seconds(3)),
            close_timeout: seconds(4),
            close_frame: Some(CloseFrame {
                code: 4001,
                reason: "bye".into(),
            }),
        };
        assert_eq!(builder.policy, expected);
        assert!(builder.registry.is_some());
        assert_eq!(builder.hooks.len(), 2);
        assert!(builder.clone().build().is_ok());

        let off = builder.first_message(None).message_timeout(None);
        let off = off.max_lifetime(None);
        assert_eq!(off.policy.first_message, None);
        assert_eq!(off.policy.message_timeout, None);
        assert_eq!(off.policy.max_lifetime, None);
        assert!(off.build().is_ok());
    }

    #[test]
    fn durations_are_refused_by_name() {
        type Setter = fn(IdleTimeoutLayerBuilder, Duration) -> IdleTimeoutLayerBuilder;
        let must = "must be greater than zero";
        let optional = "must be greater than zero (None turns it off)";
        let setters: [(&str, &str, Setter); 5] = [
            ("timeout", must, |b, d| b.timeout(d)),
            ("first_message", optional, |b, d| b.first_message(d)),
            ("message_timeout", optional, |b, d| b.message_timeout(d)),
            ("max_lifetime", optional, |b, d| b.max_lifetime(d)),
            ("close_timeout", must, |b, d| b.close_timeout(d)),
        ];
        for (name, zero, set) in setters {
            let refused = [
                (ZERO, format!("0ns: {zero}")),
                (SHORT, "999µs: must be at least 1ms".to_owned()),
                (LONG, "31536001s: must be at most 365 days".to_owned()),
            ];
            for (value, expected) in refused {
                assert_eq!(
                    refusal(set(builder(), value)),
                    format!("IdleTimeoutLayer::{name}: {expected}")
                );
            }
            for value in [config_error::MIN_DURATION, config_error::MAX_DURATION] {
                assert!(set(builder(), value).build().is_ok(), "{name}: {value:?}");
            }
        }
    }

    #[test]
    fn close_frames_are_refused_by_name() {
        let refused = [
            (
                builder().close_frame(1005, ""),
                "IdleTimeoutLayer::close_frame: code 1005: must be a code that may be sent, \
                 this is for reports only (RFC 6455 section 7.4.1)",
            ),
            (
                builder().close_frame(1001, "r".repeat(124)),
                "IdleTimeoutLayer::close_frame: reason of 124 bytes: \
                 must be at most 123 bytes of UTF-8 (RFC 6455 section 5.5)",
            ),
        ];
        for (builder, expected) in refused {
            assert_eq!(refusal(builder), expected);
        }
        assert!(builder().close_frame(4999, "r".repeat(123)).build().is_ok());
    }

    #[test]
    fn first_refused_setter_is_named() {
        let error = builder()
            .close_timeout(ZERO)
            .first_message(ZERO)
            .build()
            .unwrap_err();
        assert_eq!(error.setter(), "IdleTimeoutLayer::first_message");
    }

    /// Values around the edges as well as any, so that both answers of `build` are seen.
    fn durations() -> impl Strategy<Value = Duration> {
        prop_oneof![
            3 => (1_u64..100_000).prop_map(Duration::from_millis),
            1 => any::<Duration>(),
            1 => Just(ZERO),
        ]
    }

    proptest! {
        #[test]
        fn build_never_panics(
            (timeout, close_timeout) in (durations(), durations()),
            first_message in proptest::option::of(durations()),
            message_timeout in proptest::option::of(durations()),
            max_lifetime in proptest::option::of(durations()),
            code in prop_oneof![1000_u16..1016, any::<u16>()],
            reason in ".{0,60}",
        ) {
            let builder = builder()
                .timeout(timeout)
                .first_message(first_message)
                .message_timeout(message_timeout)
                .max_lifetime(max_lifetime)
                .close_timeout(close_timeout)
                .close_frame(code, reason.as_str());
            match builder.build() {
                Ok(_) => {
                    let least = timeout.min(close_timeout);
                    prop_assert!(least >= config_error::MIN_DURATION);
                    prop_assert_ne!(first_message, Some(ZERO));
                    prop_assert_ne!(message_timeout, Some(ZERO));
                    prop_assert_ne!(max_lifetime, Some(ZERO));
                    prop_assert!(reason.len() <= config_error::MAX_CLOSE_REASON);
                }
                Err(error) => {
                    let text = error.to_string();
                    prop_assert!(error.setter().starts_with("IdleTimeoutLayer::"));
                    prop_assert!(text.starts_with(error.setter()), "{}", text);
                }
            }
        }
    }
}
