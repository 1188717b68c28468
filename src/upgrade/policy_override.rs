//! [`PolicyOverride`]: other times for one request's connection.

use std::time::Duration;

use crate::config_error::{self, ConfigError};
use crate::monitor::Overrides;

/// Replaces values of the layers for one connection.
///
/// Put it into the extensions of the request, in a layer further out than those of this crate: an
/// authentication layer may know that a client is a phone, or until when its token is valid. It
/// holds against all layers, whichever of them the request passes later. Put in behind the innermost
/// of them it comes too late, and does nothing. A second one that is put in before the first layer
/// takes the place of the first as a whole. A value for a layer that the request does not pass is
/// ignored. What has no setter here (write, stall and close timeouts, the limit on control frames,
/// Close frames) is the layers' for all.
///
/// At run time, [`Liveness::set_interval`](crate::Liveness::set_interval) and its neighbours do the
/// same for the interval, the timeout and the idle timeout.
///
/// ```
/// use std::time::Duration;
/// use axum::extract::Request;
/// use axum::middleware::Next;
/// use axum::response::Response;
/// use tower_ws_liveness::PolicyOverride;
///
/// // To be layered outside of `HeartbeatLayer`: `.layer(heartbeat).layer(from_fn(phones))`.
/// async fn phones(mut request: Request, next: Next) -> Response {
///     if request.headers().contains_key("x-phone") {
///         let patient = PolicyOverride::builder()
///             .interval(Duration::from_secs(240))
///             .timeout(Duration::from_secs(60))
///             .build()
///             .expect("times within their limits");
///         request.extensions_mut().insert(patient);
///     }
///     next.run(request).await
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyOverride {
    values: Overrides,
}

impl PolicyOverride {
    /// A builder that overrides nothing yet.
    pub fn builder() -> PolicyOverrideBuilder {
        PolicyOverrideBuilder::default()
    }

    pub(crate) fn values(&self) -> &Overrides {
        &self.values
    }
}

/// Configures a [`PolicyOverride`].
///
/// Setters take any value; [`build`](Self::build) checks them all. Values that are not set are the
/// layers'.
#[derive(Clone, Debug, Default)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct PolicyOverrideBuilder {
    values: Overrides,
}

impl PolicyOverrideBuilder {
    /// Instead of [`HeartbeatLayerBuilder::interval`](crate::HeartbeatLayerBuilder::interval).
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.values.interval = Some(interval);
        self
    }

    /// Instead of [`HeartbeatLayerBuilder::timeout`](crate::HeartbeatLayerBuilder::timeout).
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.values.timeout = Some(timeout);
        self
    }

    /// Instead of
    /// [`HeartbeatLayerBuilder::missed_pings`](crate::HeartbeatLayerBuilder::missed_pings).
    ///
    /// Refused: 0, more than 255.
    pub fn missed_pings(mut self, missed_pings: u32) -> Self {
        self.values.missed_pings = Some(missed_pings);
        self
    }

    /// Instead of [`IdleTimeoutLayerBuilder::timeout`](crate::IdleTimeoutLayerBuilder::timeout).
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn idle_timeout(mut self, idle_timeout: Duration) -> Self {
        self.values.idle_timeout = Some(idle_timeout);
        self
    }

    /// Instead of
    /// [`IdleTimeoutLayerBuilder::first_message`](crate::IdleTimeoutLayerBuilder::first_message).
    /// `None` turns the check off for this connection.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn first_message(mut self, first_message: impl Into<Option<Duration>>) -> Self {
        self.values.first_message = Some(first_message.into());
        self
    }

    /// Instead of
    /// [`IdleTimeoutLayerBuilder::message_timeout`](crate::IdleTimeoutLayerBuilder::message_timeout).
    /// `None` turns the check off for this connection.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn message_timeout(mut self, message_timeout: impl Into<Option<Duration>>) -> Self {
        self.values.message_timeout = Some(message_timeout.into());
        self
    }

    /// Instead of
    /// [`IdleTimeoutLayerBuilder::max_lifetime`](crate::IdleTimeoutLayerBuilder::max_lifetime).
    /// `None` turns the check off for this connection.
    ///
    /// Refused: zero, less than 1 ms, more than 365 days.
    pub fn max_lifetime(mut self, max_lifetime: impl Into<Option<Duration>>) -> Self {
        self.values.max_lifetime = Some(max_lifetime.into());
        self
    }

    /// Checks the values.
    ///
    /// # Errors
    ///
    /// If a value is refused; each setter tells which values are. The error names the first one.
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
    fn setters_set() {
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
    fn values_are_refused_by_name() {
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
