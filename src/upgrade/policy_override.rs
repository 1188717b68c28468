//! [`PolicyOverride`]: other times for the connection of one request.

use std::time::Duration;

use crate::config_error::{self, ConfigError};
use crate::connection::Expiry;
use crate::monitor::{CloseFrame, Overrides, ProofOfLife, Traffic};

/// Replaces values of the layers for one connection.
///
/// Insert it into the extensions of the request, in a layer further out than the layers of this
/// crate: an authentication layer may know that a client is a phone, or when its token expires. It
/// applies to all layers of this crate on the request's path, whichever it passes later. A second
/// override that is inserted before the first layer replaces the first as a whole.
///
/// An override that is inserted further in than the innermost layer of this crate has no effect: no
/// layer sees it. A value for a layer that the request does not pass has no effect either, and is
/// logged at ERROR, once per process, when the connection opens.
///
/// All settings of the layers can be overridden but `registry`, `on_open`, `on_evict` and `on_health`. The
/// registry of a layer counts all connections of that layer, and its hooks are called for all of
/// them. Hooks of one connection are added to its handle, with
/// [`Liveness::on_evict`](crate::Liveness::on_evict).
///
/// At run time, [`Liveness::set_interval`](crate::Liveness::set_interval),
/// [`set_timeout`](crate::Liveness::set_timeout),
/// [`set_idle_timeout`](crate::Liveness::set_idle_timeout),
/// [`set_max_lifetime`](crate::Liveness::set_max_lifetime) and
/// [`expires_at`](crate::Liveness::expires_at) change these times.
///
/// ```
/// use std::time::Duration;
/// use axum::extract::Request;
/// use axum::middleware::Next;
/// use axum::response::Response;
/// use tower_ws_liveness::PolicyOverride;
///
/// // Further out than `HeartbeatLayer`: `.layer(heartbeat).layer(from_fn(override_phones))`.
/// async fn override_phones(mut request: Request, next: Next) -> Response {
///     if request.headers().contains_key("x-phone") {
///         let longer = PolicyOverride::builder()
///             .interval(Duration::from_secs(240))
///             .timeout(Duration::from_secs(60))
///             .build()
///             .expect("times within their limits");
///         request.extensions_mut().insert(longer);
///     }
///     next.run(request).await
/// }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyOverride {
    values: Overrides,
}

// The numbers in it are within their ranges, so none is NaN.
impl Eq for PolicyOverride {}

impl PolicyOverride {
    /// Returns a builder that overrides nothing yet.
    pub fn builder() -> PolicyOverrideBuilder {
        PolicyOverrideBuilder::default()
    }

    pub(crate) fn values(&self) -> &Overrides {
        &self.values
    }
}

/// Configures a [`PolicyOverride`].
///
/// Created by [`PolicyOverride::builder`]. Setters accept any value; [`build`](Self::build) checks
/// all values. Values that are not set are those of the layers.
///
/// ```
/// use std::time::Duration;
///
/// use tower_ws_liveness::{ConfigError, PolicyOverride};
///
/// # fn main() -> Result<(), ConfigError> {
/// let for_guests = PolicyOverride::builder()
///     .max_lifetime(Duration::from_secs(900))
///     .build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct PolicyOverrideBuilder {
    values: Overrides,
}

impl PolicyOverrideBuilder {
    /// Overrides [`HeartbeatLayerBuilder::interval`](crate::HeartbeatLayerBuilder::interval).
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.values.heartbeat.interval = Some(interval);
        self
    }

    /// Overrides [`HeartbeatLayerBuilder::timeout`](crate::HeartbeatLayerBuilder::timeout).
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.values.heartbeat.timeout = Some(timeout);
        self
    }

    /// Overrides
    /// [`HeartbeatLayerBuilder::missed_pings`](crate::HeartbeatLayerBuilder::missed_pings).
    ///
    /// Refused: 0, more than 255.
    pub fn missed_pings(mut self, missed_pings: u32) -> Self {
        self.values.heartbeat.missed_pings = Some(missed_pings);
        self
    }

    /// Overrides
    /// [`HeartbeatLayerBuilder::proof_of_life`](crate::HeartbeatLayerBuilder::proof_of_life).
    ///
    /// No value is refused.
    pub fn proof_of_life(mut self, proof_of_life: ProofOfLife) -> Self {
        self.values.heartbeat.proof_of_life = Some(proof_of_life);
        self
    }

    /// Overrides [`HeartbeatLayerBuilder::jitter`](crate::HeartbeatLayerBuilder::jitter).
    ///
    /// Refused: NaN, and any value outside `0.0..=1.0`.
    pub fn jitter(mut self, jitter: f64) -> Self {
        self.values.heartbeat.jitter = Some(jitter);
        self
    }

    /// Overrides
    /// [`HeartbeatLayerBuilder::write_timeout`](crate::HeartbeatLayerBuilder::write_timeout).
    /// `None` turns the check off for this connection.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn write_timeout(mut self, write_timeout: impl Into<Option<Duration>>) -> Self {
        self.values.heartbeat.write_timeout = Some(write_timeout.into());
        self
    }

    /// Overrides
    /// [`HeartbeatLayerBuilder::handler_stall_timeout`](crate::HeartbeatLayerBuilder::handler_stall_timeout).
    /// `None` turns the check off for this connection.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn handler_stall_timeout(
        mut self,
        handler_stall_timeout: impl Into<Option<Duration>>,
    ) -> Self {
        self.values.heartbeat.handler_stall_timeout = Some(handler_stall_timeout.into());
        self
    }

    /// Overrides
    /// [`HeartbeatLayerBuilder::control_frame_limit`](crate::HeartbeatLayerBuilder::control_frame_limit).
    /// `None` turns the check off for this connection.
    ///
    /// Refused: 0, more than 1,000,000.
    pub fn control_frame_limit(mut self, per_second: impl Into<Option<u32>>) -> Self {
        self.values.heartbeat.control_frame_limit = Some(per_second.into());
        self
    }

    /// Overrides
    /// [`HeartbeatLayerBuilder::takes_any_bytes`](crate::HeartbeatLayerBuilder::takes_any_bytes).
    ///
    /// No value is refused.
    pub fn takes_any_bytes(mut self, takes_any_bytes: bool) -> Self {
        self.values.heartbeat.takes_any_bytes = Some(takes_any_bytes);
        self
    }

    /// Overrides [`HeartbeatLayerBuilder::tune_tcp`](crate::HeartbeatLayerBuilder::tune_tcp).
    ///
    /// No value is refused.
    #[cfg(feature = "tcp")]
    pub fn tune_tcp(mut self, tune_tcp: bool) -> Self {
        self.values.heartbeat.tune_tcp = Some(tune_tcp);
        self
    }

    /// Overrides [`IdleTimeoutLayerBuilder::timeout`](crate::IdleTimeoutLayerBuilder::timeout).
    /// `None` turns the check off for this connection.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn idle_timeout(mut self, idle_timeout: impl Into<Option<Duration>>) -> Self {
        self.values.idle.timeout = Some(idle_timeout.into());
        self
    }

    /// Overrides [`IdleTimeoutLayerBuilder::watch`](crate::IdleTimeoutLayerBuilder::watch).
    ///
    /// No value is refused.
    pub fn watch(mut self, traffic: Traffic) -> Self {
        self.values.idle.watch = Some(traffic);
        self
    }

    /// Overrides
    /// [`IdleTimeoutLayerBuilder::first_message`](crate::IdleTimeoutLayerBuilder::first_message).
    /// `None` turns the check off for this connection.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn first_message(mut self, first_message: impl Into<Option<Duration>>) -> Self {
        self.values.idle.first_message = Some(first_message.into());
        self
    }

    /// Overrides
    /// [`IdleTimeoutLayerBuilder::message_timeout`](crate::IdleTimeoutLayerBuilder::message_timeout).
    /// `None` turns the check off for this connection.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn message_timeout(mut self, message_timeout: impl Into<Option<Duration>>) -> Self {
        self.values.idle.message_timeout = Some(message_timeout.into());
        self
    }

    /// Overrides
    /// [`IdleTimeoutLayerBuilder::max_lifetime`](crate::IdleTimeoutLayerBuilder::max_lifetime).
    /// `None` turns the check off for this connection.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn max_lifetime(mut self, max_lifetime: impl Into<Option<Duration>>) -> Self {
        self.values.idle.max_lifetime = Some(max_lifetime.into());
        self
    }

    /// Overrides
    /// [`IdleTimeoutLayerBuilder::max_lifetime_jitter`](crate::IdleTimeoutLayerBuilder::max_lifetime_jitter).
    ///
    /// Refused: NaN, and any value outside `0.0..=1.0`.
    pub fn max_lifetime_jitter(mut self, jitter: f64) -> Self {
        self.values.idle.max_lifetime_jitter = Some(jitter);
        self
    }

    /// Overrides `close_timeout` of both layers.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn close_timeout(mut self, close_timeout: Duration) -> Self {
        self.values.close_timeout = Some(close_timeout);
        self
    }

    /// Overrides `close_frame` of both layers: clients of another protocol may know other codes.
    ///
    /// Refused: what [`HeartbeatLayerBuilder::close_frame`] refuses.
    ///
    /// [`HeartbeatLayerBuilder::close_frame`]: crate::HeartbeatLayerBuilder::close_frame
    pub fn close_frame(mut self, code: u16, reason: impl Into<String>) -> Self {
        self.values.close_frame = Some(CloseFrame {
            code,
            reason: reason.into().into(),
        });
        self
    }

    /// Sets when the credentials of the request expire, as
    /// [`Liveness::expires_at`](crate::Liveness::expires_at) does.
    ///
    /// No value is refused: a time in the past evicts the connection as soon as it opens.
    ///
    /// ```
    /// use std::time::{Duration, UNIX_EPOCH};
    ///
    /// use tower_ws_liveness::{ConfigError, PolicyOverride};
    ///
    /// # fn main() -> Result<(), ConfigError> {
    /// // The claim `exp` of the request's token.
    /// let exp = UNIX_EPOCH + Duration::from_secs(1_893_456_000);
    /// let with_expiry = PolicyOverride::builder().expires_at(exp).build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn expires_at(mut self, expiry: impl Into<Expiry>) -> Self {
        self.values.expires_at = Some(expiry.into().instant());
        self
    }

    /// Checks all values and builds the override.
    ///
    /// # Errors
    ///
    /// Returns an error if a value is refused. Each setter lists the values that it refuses. The
    /// error names the first refused one.
    pub fn build(self) -> Result<PolicyOverride, ConfigError> {
        validate(&self.values)?;
        Ok(PolicyOverride {
            values: self.values,
        })
    }
}

fn validate(values: &Overrides) -> Result<(), ConfigError> {
    let heartbeat = &values.heartbeat;
    if let Some(interval) = heartbeat.interval {
        config_error::duration("PolicyOverride::interval", interval)?;
    }
    if let Some(timeout) = heartbeat.timeout {
        config_error::duration("PolicyOverride::timeout", timeout)?;
    }
    if let Some(missed_pings) = heartbeat.missed_pings {
        config_error::missed_pings("PolicyOverride::missed_pings", missed_pings)?;
    }
    if let Some(jitter) = heartbeat.jitter {
        config_error::jitter("PolicyOverride::jitter", jitter)?;
    }
    let checks = [
        ("PolicyOverride::write_timeout", heartbeat.write_timeout),
        (
            "PolicyOverride::handler_stall_timeout",
            heartbeat.handler_stall_timeout,
        ),
    ];
    for (setter, duration) in checks {
        config_error::optional_duration(setter, duration.flatten())?;
    }
    config_error::control_frame_limit(
        "PolicyOverride::control_frame_limit",
        heartbeat.control_frame_limit.flatten(),
    )?;
    let idle = &values.idle;
    let checks = [
        ("PolicyOverride::idle_timeout", idle.timeout),
        ("PolicyOverride::first_message", idle.first_message),
        ("PolicyOverride::message_timeout", idle.message_timeout),
        ("PolicyOverride::max_lifetime", idle.max_lifetime),
    ];
    for (setter, duration) in checks {
        config_error::optional_duration(setter, duration.flatten())?;
    }
    if let Some(jitter) = idle.max_lifetime_jitter {
        config_error::jitter("PolicyOverride::max_lifetime_jitter", jitter)?;
    }
    if let Some(close_timeout) = values.close_timeout {
        config_error::duration("PolicyOverride::close_timeout", close_timeout)?;
    }
    config_error::optional_close_frame("PolicyOverride::close_frame", values.close_frame.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::{HeartbeatOverrides, IdleOverrides};

    fn builder() -> PolicyOverrideBuilder {
        PolicyOverride::builder()
    }

    #[test]
    fn every_setter_sets_its_value() {
        let seconds = Duration::from_secs;
        let all = builder()
            .interval(seconds(1))
            .timeout(seconds(2))
            .missed_pings(3)
            .proof_of_life(ProofOfLife::MatchingPong)
            .jitter(0.25)
            .write_timeout(None)
            .handler_stall_timeout(seconds(4))
            .control_frame_limit(5)
            .takes_any_bytes(true)
            .idle_timeout(seconds(6))
            .watch(Traffic::Inbound)
            .first_message(seconds(7))
            .message_timeout(seconds(8))
            .max_lifetime(None)
            .max_lifetime_jitter(0.75)
            .close_timeout(seconds(9))
            .close_frame(4000, "own")
            .expires_at(None);
        #[cfg(feature = "tcp")]
        let all = all.tune_tcp(false);
        let expected = Overrides {
            heartbeat: HeartbeatOverrides {
                interval: Some(seconds(1)),
                timeout: Some(seconds(2)),
                missed_pings: Some(3),
                proof_of_life: Some(ProofOfLife::MatchingPong),
                jitter: Some(0.25),
                write_timeout: Some(None),
                handler_stall_timeout: Some(Some(seconds(4))),
                control_frame_limit: Some(Some(5)),
                takes_any_bytes: Some(true),
                #[cfg(feature = "tcp")]
                tune_tcp: Some(false),
            },
            idle: IdleOverrides {
                timeout: Some(Some(seconds(6))),
                watch: Some(Traffic::Inbound),
                first_message: Some(Some(seconds(7))),
                message_timeout: Some(Some(seconds(8))),
                max_lifetime: Some(None),
                max_lifetime_jitter: Some(0.75),
            },
            close_timeout: Some(seconds(9)),
            close_frame: Some(CloseFrame {
                code: 4000,
                reason: "own".into(),
            }),
            expires_at: Some(None),
        };
        let all = all.build().unwrap();
        assert_eq!(all.values(), &expected);
        assert_eq!(all, all.clone());
        let nothing = builder().build().unwrap();
        assert_eq!(nothing.values(), &Overrides::default());
    }

    #[test]
    fn a_refused_value_is_reported_with_its_setter() {
        let zero = Duration::ZERO;
        let must = "0ns: must be greater than zero";
        let optional = "0ns: must be greater than zero (None turns it off)";
        let fraction = "1.5: must be a number within 0.0..=1.0";
        let refused = [
            (builder().interval(zero), "interval", must),
            (builder().timeout(zero), "timeout", must),
            (
                builder().missed_pings(0),
                "missed_pings",
                "0: must be within 1..=255",
            ),
            (builder().jitter(1.5), "jitter", fraction),
            (builder().write_timeout(zero), "write_timeout", optional),
            (
                builder().handler_stall_timeout(zero),
                "handler_stall_timeout",
                optional,
            ),
            (
                builder().control_frame_limit(0),
                "control_frame_limit",
                "0: must be at least 1 (None turns it off)",
            ),
            (builder().idle_timeout(zero), "idle_timeout", optional),
            (builder().first_message(zero), "first_message", optional),
            (builder().message_timeout(zero), "message_timeout", optional),
            (builder().max_lifetime(zero), "max_lifetime", optional),
            (
                builder().max_lifetime_jitter(1.5),
                "max_lifetime_jitter",
                fraction,
            ),
            (builder().close_timeout(zero), "close_timeout", must),
            (
                builder().close_frame(999, ""),
                "close_frame",
                "code 999: must be within 1000..=4999 (RFC 6455 section 7.4.2)",
            ),
        ];
        for (builder, setter, rule) in refused {
            let error = builder.build().unwrap_err();
            assert_eq!(error.setter(), format!("PolicyOverride::{setter}"));
            assert_eq!(
                error.to_string(),
                format!("PolicyOverride::{setter}: {rule}")
            );
        }
    }
}
