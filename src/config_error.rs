//! What the builders refuse, and how they say so.
//!
//! Every rule lives here once: all builders call these checks from `build()`, and a connection's
//! handle from its setters, so a value that is refused in one place is accepted in none.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::monitor::CloseFrame;

/// The driver's finest tick: a shorter duration could only be rounded, so it is refused instead.
pub(crate) const MIN_DURATION: Duration = Duration::from_millis(1);

/// The longest duration that is taken at its word; anything above it is a unit mix-up, not a wish.
pub(crate) const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The most consecutive pings that may go unanswered.
pub(crate) const MAX_MISSED_PINGS: u32 = 255;

/// The most control frames per second that can be told from no limit at all.
pub(crate) const MAX_CONTROL_FRAMES: u32 = 1_000_000;

/// The longest reason that fits a Close frame: 125 bytes of payload less 2 for the code (RFC 6455
/// section 5.5).
pub(crate) const MAX_CLOSE_REASON: usize = 123;

// The total bound on detecting a dead peer is `interval + timeout * missed_pings`. With each factor
// within its limits the sum fits a signed 64-bit count of nanoseconds, so nothing downstream that
// computes it can overflow, and no check of the combination is needed.
const _: () = assert!(
    MAX_DURATION.as_nanos() * (MAX_MISSED_PINGS as u128 + 1) <= i64::MAX as u128,
    "interval + timeout * missed_pings must not overflow"
);

/// A builder, or a setter of [`Liveness`](crate::Liveness), was given a value that it cannot work
/// with.
///
/// It names the setter, the value and the rule, as in
/// `HeartbeatLayer::interval: 0ns: must be greater than zero`. If several values are refused, the
/// error tells of the first one, in the order in which the builder's methods are documented.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    setter: &'static str,
    value: String,
    rule: &'static str,
}

impl ConfigError {
    /// The setter whose value was refused, with its layer: `"HeartbeatLayer::interval"`.
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

/// A duration that cannot be turned off.
pub(crate) fn duration(setter: &'static str, value: Duration) -> Result<(), ConfigError> {
    duration_or(setter, value, "must be greater than zero")
}

/// A duration that is off when absent. Zero does not mean "off", and the error says what does.
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

/// A value for a connection that has no layer that it could mean anything to.
pub(crate) fn missing_layer(setter: &'static str, value: Duration) -> ConfigError {
    let rule = "needs the layer whose setting it is: the request has passed none so far";
    ConfigError::new(setter, format!("{value:?}"), rule)
}

/// How many control frames a peer may send per second. Zero does not mean "off".
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

/// The number of consecutive pings that may go unanswered.
pub(crate) fn missed_pings(setter: &'static str, value: u32) -> Result<(), ConfigError> {
    if (1..=MAX_MISSED_PINGS).contains(&value) {
        return Ok(());
    }
    let rule = "must be within 1..=255";
    Err(ConfigError::new(setter, value.to_string(), rule))
}

/// By how many sessions a growth is worth an alarm. More than none, or every one would be.
pub(crate) fn growth(setter: &'static str, value: usize) -> Result<(), ConfigError> {
    if value > 0 {
        return Ok(());
    }
    let rule = "must be at least 1";
    Err(ConfigError::new(setter, value.to_string(), rule))
}

/// A fraction; NaN lies in no range and is refused with the rest.
pub(crate) fn jitter(setter: &'static str, value: f64) -> Result<(), ConfigError> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    let rule = "must be a number within 0.0..=1.0";
    Err(ConfigError::new(setter, format!("{value:?}"), rule))
}

/// A Close frame that an endpoint may send: RFC 6455 section 7.4 on the code, section 5.5 on the
/// length of the reason.
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

/// The code that a Close frame carries for this one: 1011 stands in for one that may not be sent.
pub(crate) fn on_wire(code: u16) -> u16 {
    match unsendable(code) {
        None => code,
        Some(_) => 1011,
    }
}

/// The rule that keeps a close code off the wire, if there is one.
fn unsendable(code: u16) -> Option<&'static str> {
    match code {
        // 1012 to 1014 came later than the RFC; IANA's registry has them.
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
    fn error_names_setter_value_and_rule() {
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
    fn durations_at_the_edges() {
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
    fn missed_pings_at_the_edges() {
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
    fn jitter_at_the_edges() {
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
    fn every_close_code() {
        // An independent list, so that a slip in the match's ranges shows.
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
    fn refused_close_codes_say_why() {
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
    fn close_reason_is_measured_in_bytes() {
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
