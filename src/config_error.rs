//! [`ConfigError`], and the bounds that configured values must meet.
//!
//! The builders call these checks from `build()`, and [`Liveness`](crate::Liveness) from its
//! setters, so that all of them refuse the same values.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::monitor::CloseFrame;

/// The shortest accepted duration: the driver's finest tick, to which a shorter one would be
/// rounded.
pub(crate) const MIN_DURATION: Duration = Duration::from_millis(1);

/// The longest accepted duration. A longer one is most likely a value in the wrong unit.
pub(crate) const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The most consecutive pings that may go unanswered.
pub(crate) const MAX_MISSED_PINGS: u32 = 255;

/// The largest accepted limit on control frames per second. A larger one has no effect in practice.
pub(crate) const MAX_CONTROL_FRAMES: u32 = 1_000_000;

/// The most messages that an outbox may keep.
const MAX_OUTBOX_MESSAGES: usize = 1_000_000;

/// The most bytes that the messages of an outbox may have, 1 GiB.
const MAX_OUTBOX_BYTES: usize = 1 << 30;

/// The longest reason in a Close frame, in bytes: a payload of 125 less 2 for the code (RFC 6455
/// section 5.5).
pub(crate) const MAX_CLOSE_REASON: usize = 123;

// A dead peer is detected within `interval + timeout * missed_pings`. With each factor within its
// bounds the sum fits an `i64` of nanoseconds, so no computation of it can overflow, and the
// combination needs no check of its own.
const _: () = assert!(
    MAX_DURATION.as_nanos() * (MAX_MISSED_PINGS as u128 + 1) <= i64::MAX as u128,
    "interval + timeout * missed_pings must not overflow"
);

/// A value was refused by a builder's `build`, by [`OutboxLimits::new`](crate::OutboxLimits::new) or
/// by a setter of [`Liveness`](crate::Liveness).
///
/// The text names the setter, the value and the rule, as in
/// `HeartbeatLayer::interval: 0ns: must be greater than zero`. If several values are refused, the
/// error names the first one, in the order in which the builder's methods are documented.
///
/// ```
/// use std::time::Duration;
///
/// use tower_ws_liveness::HeartbeatLayer;
///
/// let error = HeartbeatLayer::builder().interval(Duration::ZERO).build().unwrap_err();
/// assert_eq!(error.setter(), "HeartbeatLayer::interval");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    setter: &'static str,
    value: String,
    rule: &'static str,
}

impl ConfigError {
    /// Returns the setter whose value was refused, with its type: `"HeartbeatLayer::interval"`.
    #[must_use]
    pub fn setter(&self) -> &'static str {
        self.setter
    }

    fn new(setter: &'static str, value: impl Into<String>, rule: &'static str) -> Self {
        Self {
            setter,
            value: value.into(),
            rule,
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.setter, self.value, self.rule)
    }
}

impl Error for ConfigError {}

/// Checks a duration that cannot be turned off.
pub(crate) fn duration(setter: &'static str, value: Duration) -> Result<(), ConfigError> {
    duration_or(setter, value, "must be greater than zero")
}

/// Checks a duration that `None` turns off. Zero does not turn it off; the error says that `None`
/// does.
pub(crate) fn optional_duration(
    setter: &'static str,
    value: Option<Duration>,
) -> Result<(), ConfigError> {
    match value {
        Some(value) => duration_or(
            setter,
            value,
            "must be greater than zero (None turns it off)",
        ),
        None => Ok(()),
    }
}

fn duration_or(
    setter: &'static str,
    value: Duration,
    zero: &'static str,
) -> Result<(), ConfigError> {
    let rule = if value.is_zero() {
        zero
    } else if value < MIN_DURATION {
        "must be at least 1ms"
    } else if value > MAX_DURATION {
        "must be at most 365 days"
    } else {
        return Ok(());
    };
    Err(ConfigError::new(setter, format!("{value:?}"), rule))
}

/// Checks a duration that may be zero.
pub(crate) fn duration_or_zero(setter: &'static str, value: Duration) -> Result<(), ConfigError> {
    if value <= MAX_DURATION {
        return Ok(());
    }
    let rule = "must be at most 365 days";
    Err(ConfigError::new(setter, format!("{value:?}"), rule))
}

/// The error for a setting of a layer that is not applied to the connection.
pub(crate) fn missing_layer(setter: &'static str, value: Option<Duration>) -> ConfigError {
    let rule = "needs the layer whose setting it is: the request has passed none so far";
    let value = value.map_or_else(|| "None".to_owned(), |value| format!("{value:?}"));
    ConfigError::new(setter, value, rule)
}

/// Checks a limit on control frames per second. Zero does not turn the limit off, `None` does.
pub(crate) fn control_frame_limit(
    setter: &'static str,
    value: Option<u32>,
) -> Result<(), ConfigError> {
    let rule = match value {
        Some(0) => "must be at least 1 (None turns it off)",
        Some(limit) if limit > MAX_CONTROL_FRAMES => "must be at most 1000000",
        Some(_) | None => return Ok(()),
    };
    let value = value.unwrap_or_default();
    Err(ConfigError::new(setter, value.to_string(), rule))
}

/// Checks a number of consecutive unanswered pings.
pub(crate) fn missed_pings(setter: &'static str, value: u32) -> Result<(), ConfigError> {
    if (1..=MAX_MISSED_PINGS).contains(&value) {
        return Ok(());
    }
    let rule = "must be within 1..=255";
    Err(ConfigError::new(setter, value.to_string(), rule))
}

/// Checks a number for which zero has no meaning: a growth in sessions that triggers an alarm, or a
/// capacity.
pub(crate) fn at_least_one(setter: &'static str, value: usize) -> Result<(), ConfigError> {
    if value > 0 {
        return Ok(());
    }
    let rule = "must be at least 1";
    Err(ConfigError::new(setter, value.to_string(), rule))
}

/// Checks the number of messages that an outbox may keep.
pub(crate) fn outbox_messages(setter: &'static str, value: usize) -> Result<(), ConfigError> {
    if (1..=MAX_OUTBOX_MESSAGES).contains(&value) {
        return Ok(());
    }
    let rule = "must be within 1..=1000000";
    Err(ConfigError::new(setter, format!("{value} messages"), rule))
}

/// Checks the number of bytes that the messages of an outbox may have.
pub(crate) fn outbox_bytes(setter: &'static str, value: usize) -> Result<(), ConfigError> {
    if (1..=MAX_OUTBOX_BYTES).contains(&value) {
        return Ok(());
    }
    let rule = "must be within 1..=1073741824 (1 GiB)";
    Err(ConfigError::new(setter, format!("{value} bytes"), rule))
}

/// Checks a fraction. NaN is in no range, so it is refused too.
pub(crate) fn jitter(setter: &'static str, value: f64) -> Result<(), ConfigError> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    let rule = "must be a number within 0.0..=1.0";
    Err(ConfigError::new(setter, format!("{value:?}"), rule))
}

/// Checks a Close frame that is optional.
pub(crate) fn optional_close_frame(
    setter: &'static str,
    frame: Option<&CloseFrame>,
) -> Result<(), ConfigError> {
    frame.map_or(Ok(()), |frame| close_frame(setter, frame))
}

/// Checks that an endpoint may send this Close frame: its code by RFC 6455 section 7.4, the length
/// of its reason by section 5.5.
pub(crate) fn close_frame(setter: &'static str, frame: &CloseFrame) -> Result<(), ConfigError> {
    if let Some(rule) = unsendable(frame.code) {
        let value = format!("code {}", frame.code);
        return Err(ConfigError::new(setter, value, rule));
    }
    let len = frame.reason.len();
    if len > MAX_CLOSE_REASON {
        let value = format!("reason of {len} bytes");
        let rule = "must be at most 123 bytes of UTF-8 (RFC 6455 section 5.5)";
        return Err(ConfigError::new(setter, value, rule));
    }
    Ok(())
}

/// Returns the code to send for `code`: 1011 in place of a code that must not be sent.
pub(crate) fn on_wire(code: u16) -> u16 {
    match unsendable(code) {
        None => code,
        Some(_) => 1011,
    }
}

/// Returns the rule that forbids sending this close code, if there is one.
fn unsendable(code: u16) -> Option<&'static str> {
    match code {
        // 1012 to 1014 are not in the RFC but in IANA's registry.
        1000..=1003 | 1007..=1014 | 3000..=4999 => None,
        1004 => Some("must be a defined code, 1004 is not (RFC 6455 section 7.4.1)"),
        1005 | 1006 | 1015 => Some(
            "must be a code that may be sent, this is for reports only (RFC 6455 section 7.4.1)",
        ),
        1016..=2999 => {
            Some("must be a registered code, 1016 to 2999 are reserved (RFC 6455 section 7.4.2)")
        }
        0..=999 | 5000.. => Some("must be within 1000..=4999 (RFC 6455 section 7.4.2)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::borrow::Cow;

    fn text(result: Result<(), ConfigError>) -> String {
        result.expect_err("must be refused").to_string()
    }

    fn frame(code: u16, reason: impl Into<Cow<'static, str>>) -> CloseFrame {
        CloseFrame {
            code,
            reason: reason.into(),
        }
    }

    #[test]
    fn the_error_names_setter_value_and_rule() {
        let error = duration("HeartbeatLayer::interval", Duration::ZERO).unwrap_err();
        assert_eq!(error.setter(), "HeartbeatLayer::interval");
        assert_eq!(
            error.to_string(),
            "HeartbeatLayer::interval: 0ns: must be greater than zero"
        );
        assert_eq!(error, error.clone());
        let error: Box<dyn Error + Send + Sync> = error.into();
        assert!(error.source().is_none());
    }

    #[test]
    fn durations_are_accepted_within_their_bounds_only() {
        for value in [MIN_DURATION, Duration::from_secs(30), MAX_DURATION] {
            assert_eq!(duration("x", value), Ok(()));
            assert_eq!(optional_duration("x", Some(value)), Ok(()));
        }
        assert_eq!(optional_duration("x", None), Ok(()));

        let below = MIN_DURATION - Duration::from_nanos(1);
        let above = MAX_DURATION + Duration::from_nanos(1);
        let refused = [
            (Duration::from_nanos(1), "x: 1ns: must be at least 1ms"),
            (below, "x: 999.999µs: must be at least 1ms"),
            (above, "x: 31536000.000000001s: must be at most 365 days"),
            (
                Duration::MAX,
                "x: 18446744073709551615.999999999s: must be at most 365 days",
            ),
        ];
        for (value, expected) in refused {
            assert_eq!(text(duration("x", value)), expected);
            assert_eq!(text(optional_duration("x", Some(value))), expected);
        }
        assert_eq!(
            text(optional_duration("x", Some(Duration::ZERO))),
            "x: 0ns: must be greater than zero (None turns it off)"
        );
    }

    #[test]
    fn missed_pings_are_accepted_within_their_bounds_only() {
        for value in [1, 2, MAX_MISSED_PINGS] {
            assert_eq!(missed_pings("x", value), Ok(()));
        }
        assert_eq!(text(missed_pings("x", 0)), "x: 0: must be within 1..=255");
        assert_eq!(
            text(missed_pings("x", 256)),
            "x: 256: must be within 1..=255"
        );
        assert_eq!(
            text(missed_pings("x", u32::MAX)),
            "x: 4294967295: must be within 1..=255"
        );
    }

    #[test]
    fn jitter_is_accepted_from_0_to_1_only() {
        for value in [0.0, -0.0, f64::MIN_POSITIVE, 0.5, 1.0] {
            assert_eq!(jitter("x", value), Ok(()));
        }
        let refused = [
            (f64::NAN, "NaN"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (-0.1, "-0.1"),
            (1.5, "1.5"),
        ];
        for (value, shown) in refused {
            assert_eq!(
                text(jitter("x", value)),
                format!("x: {shown}: must be a number within 0.0..=1.0")
            );
        }
    }

    #[test]
    fn a_close_code_is_accepted_if_an_endpoint_may_send_it() {
        // Listed independently of the ranges in `unsendable`, to detect a mistake there.
        let sendable = |code: u16| {
            let registered = [
                1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014,
            ];
            registered.contains(&code) || (3000..5000).contains(&code)
        };
        for code in 0..=u16::MAX {
            let result = close_frame("x", &frame(code, ""));
            assert_eq!(result.is_ok(), sendable(code), "{code}: {result:?}");
        }
    }

    #[test]
    fn a_refused_close_code_is_reported_with_its_rule() {
        let range = "must be within 1000..=4999 (RFC 6455 section 7.4.2)";
        let reports = "must be a code that may be sent, this is for reports only \
                       (RFC 6455 section 7.4.1)";
        let reserved =
            "must be a registered code, 1016 to 2999 are reserved (RFC 6455 section 7.4.2)";
        let refused = [
            (0, range),
            (999, range),
            (
                1004,
                "must be a defined code, 1004 is not (RFC 6455 section 7.4.1)",
            ),
            (1005, reports),
            (1006, reports),
            (1015, reports),
            (1016, reserved),
            (2999, reserved),
            (5000, range),
            (u16::MAX, range),
        ];
        for (code, rule) in refused {
            assert_eq!(
                text(close_frame("x", &frame(code, ""))),
                format!("x: code {code}: {rule}")
            );
        }
    }

    #[test]
    fn a_close_reason_is_limited_in_bytes_not_characters() {
        assert_eq!(close_frame("x", &frame(1000, "r".repeat(123))), Ok(()));
        // 41 three-byte characters are 123 bytes, 42 are 126.
        assert_eq!(close_frame("x", &frame(1000, "€".repeat(41))), Ok(()));
        assert_eq!(
            text(close_frame("x", &frame(1000, "r".repeat(124)))),
            "x: reason of 124 bytes: must be at most 123 bytes of UTF-8 (RFC 6455 section 5.5)"
        );
        assert_eq!(
            text(close_frame("x", &frame(1000, "€".repeat(42)))),
            "x: reason of 126 bytes: must be at most 123 bytes of UTF-8 (RFC 6455 section 5.5)"
        );
    }
}
