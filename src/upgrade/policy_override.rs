//! [`PolicyOverride`]: other times for the connection of one request.

use std::time::Duration;

use crate::config_error::{self, ConfigError};
use crate::monitor::Overrides;

/// Replaces values of the layers for one connection.
///
/// Insert it into the extensions of the request, in a layer further out than the layers of this
/// crate: an authentication layer may know that a client is a phone, or when its token expires. It
/// applies to all layers of this crate on the request's path, whichever it passes later. An
/// override that is inserted further in than the innermost of them has no effect. A second override
/// that is inserted before the first layer replaces the first as a whole. A value for a layer that
/// the request does not pass is ignored. Values without a setter here (write, stall and close
/// timeouts, the limit on control frames, Close frames) are those of the layers.
///
/// At run time, [`Liveness::set_interval`](crate::Liveness::set_interval),
/// [`set_timeout`](crate::Liveness::set_timeout) and
/// [`set_idle_timeout`](crate::Liveness::set_idle_timeout) change these three times.
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyOverride {
    values: Overrides,
}

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
/// let token_expires_in = Duration::from_secs(900);
/// let with_expiry = PolicyOverride::builder().max_lifetime(token_expires_in).build()?;
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
        self.values.interval = Some(interval);
        self
    }

    /// Overrides [`HeartbeatLayerBuilder::timeout`](crate::HeartbeatLayerBuilder::timeout).
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.values.timeout = Some(timeout);
        self
    }

    /// Overrides
    /// [`HeartbeatLayerBuilder::missed_pings`](crate::HeartbeatLayerBuilder::missed_pings).
    ///
    /// Refused: 0, more than 255.
    pub fn missed_pings(mut self, missed_pings: u32) -> Self {
        self.values.missed_pings = Some(missed_pings);
        self
    }

    /// Overrides [`IdleTimeoutLayerBuilder::timeout`](crate::IdleTimeoutLayerBuilder::timeout).
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn idle_timeout(mut self, idle_timeout: Duration) -> Self {
        self.values.idle_timeout = Some(idle_timeout);
        self
    }

    /// Overrides
    /// [`IdleTimeoutLayerBuilder::first_message`](crate::IdleTimeoutLayerBuilder::first_message).
    /// `None` turns the check off for this connection.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn first_message(mut self, first_message: impl Into<Option<Duration>>) -> Self {
        self.values.first_message = Some(first_message.into());
        self
    }

    /// Overrides
    /// [`IdleTimeoutLayerBuilder::message_timeout`](crate::IdleTimeoutLayerBuilder::message_timeout).
    /// `None` turns the check off for this connection.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn message_timeout(mut self, message_timeout: impl Into<Option<Duration>>) -> Self {
        self.values.message_timeout = Some(message_timeout.into());
        self
    }

    /// Overrides
    /// [`IdleTimeoutLayerBuilder::max_lifetime`](crate::IdleTimeoutLayerBuilder::max_lifetime).
    /// `None` turns the check off for this connection.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn max_lifetime(mut self, max_lifetime: impl Into<Option<Duration>>) -> Self {
        self.values.max_lifetime = Some(max_lifetime.into());
        self
    }

    /// Checks all values and builds the override.
    ///
    /// # Errors
    ///
    /// Returns an error if a value is refused. Each setter lists the values that it refuses. The
    /// error names the first refused one.
    pub fn build(self) -> Result<PolicyOverride, ConfigError> {
        let values = &self.values;
        if let Some(interval) = values.interval {
            config_error::duration("PolicyOverride::interval", interval)?;
        }
        if let Some(timeout) = values.timeout {
            config_error::duration("PolicyOverride::timeout", timeout)?;
        }
        if let Some(missed_pings) = values.missed_pings {
            config_error::missed_pings("PolicyOverride::missed_pings", missed_pings)?;
        }
        if let Some(idle_timeout) = values.idle_timeout {
            config_error::duration("PolicyOverride::idle_timeout", idle_timeout)?;
        }
        let first_message = values.first_message.flatten();
        config_error::optional_duration("PolicyOverride::first_message", first_message)?;
        let message_timeout = values.message_timeout.flatten();
        config_error::optional_duration("PolicyOverride::message_timeout", message_timeout)?;
        let max_lifetime = values.max_lifetime.flatten();
        config_error::optional_duration("PolicyOverride::max_lifetime", max_lifetime)?;
        Ok(PolicyOverride {
            values: self.values,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            .idle_timeout(seconds(4))
            .first_message(seconds(5))
            .message_timeout(seconds(6))
            .max_lifetime(None)
            .build()
            .unwrap();
        let expected = Overrides {
            interval: Some(seconds(1)),
            timeout: Some(seconds(2)),
            missed_pings: Some(3),
            idle_timeout: Some(seconds(4)),
            first_message: Some(Some(seconds(5))),
            message_timeout: Some(Some(seconds(6))),
            max_lifetime: Some(None),
        };
        assert_eq!(all.values(), &expected);
        let nothing = builder().build().unwrap();
        assert_eq!(nothing.values(), &Overrides::default());
    }

    #[test]
    fn a_refused_value_is_reported_with_its_setter() {
        let zero = Duration::ZERO;
        let must = "0ns: must be greater than zero";
        let optional = "0ns: must be greater than zero (None turns it off)";
        let refused = [
            (builder().interval(zero), "interval", must),
            (builder().timeout(zero), "timeout", must),
            (
                builder().missed_pings(0),
                "missed_pings",
                "0: must be within 1..=255",
            ),
            (builder().idle_timeout(zero), "idle_timeout", must),
            (builder().first_message(zero), "first_message", optional),
            (builder().message_timeout(zero), "message_timeout", optional),
            (builder().max_lifetime(zero), "max_lifetime", optional),
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
