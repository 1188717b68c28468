//! Checks that the unit tests of both builders share.

use std::fmt::Debug;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::{HeartbeatLayer, HeartbeatLayerBuilder, IdleTimeoutLayer, IdleTimeoutLayerBuilder};
use crate::config_error::{ConfigError, MAX_DURATION, MIN_DURATION};

/// The rule that a refused zero names, for a duration that cannot be turned off.
pub(super) const NOT_ZERO: &str = "must be greater than zero";

/// The rule that a refused zero names, for a duration that can be turned off.
pub(super) const NOT_ZERO_OR_NONE: &str = "must be greater than zero (None turns it off)";

/// A builder as these checks use it.
pub(super) trait Builder: Default {
    /// The prefix of the setters' names in errors.
    const LAYER: &'static str;

    type Layer: Debug;

    fn build(self) -> Result<Self::Layer, ConfigError>;
}

macro_rules! impl_builder {
    ($builder:ident, $layer:ident) => {
        impl Builder for $builder {
            const LAYER: &'static str = stringify!($layer);

            type Layer = $layer;

            fn build(self) -> Result<$layer, ConfigError> {
                Self::build(self)
            }
        }
    };
}

impl_builder!(HeartbeatLayerBuilder, HeartbeatLayer);
impl_builder!(IdleTimeoutLayerBuilder, IdleTimeoutLayer);

/// The name of a setter, the rule that it names for zero, and the setter.
pub(super) type DurationSetter<B> = (&'static str, &'static str, fn(B, Duration) -> B);

/// Asserts that each setter refuses a duration just outside the bounds and accepts the bounds.
pub(super) fn assert_duration_bounds<B: Builder>(setters: &[DurationSetter<B>]) {
    let too_long = MAX_DURATION + Duration::from_secs(1);
    for (name, zero, set) in setters {
        let refused = [
            (Duration::ZERO, format!("0ns: {zero}")),
            (
                Duration::from_micros(999),
                "999µs: must be at least 1ms".to_owned(),
            ),
            (too_long, "31536001s: must be at most 365 days".to_owned()),
        ];
        for (value, expected) in refused {
            let expected = format!("{}::{name}: {expected}", B::LAYER);
            assert_refused(set(B::default(), value), &expected);
        }
        for value in [MIN_DURATION, MAX_DURATION] {
            let built = set(B::default(), value).build();
            assert!(built.is_ok(), "{name}: {value:?}");
        }
    }
}

/// Asserts that `build` fails with this text.
pub(super) fn assert_refused<B: Builder>(builder: B, expected: &str) {
    let error = builder.build().expect_err("must be refused");
    assert_eq!(error.to_string(), expected);
}

/// Checks, within a proptest, that an error of `build` begins with the name of a setter.
pub(super) fn check_names_setter<B: Builder>(error: &ConfigError) -> Result<(), TestCaseError> {
    let text = error.to_string();
    let prefix = format!("{}::", B::LAYER);
    prop_assert!(error.setter().starts_with(&prefix));
    prop_assert!(text.starts_with(error.setter()), "{}", text);
    Ok(())
}

/// Generates durations of which `build` accepts some and refuses some.
pub(super) fn durations() -> impl Strategy<Value = Duration> {
    prop_oneof![
        3 => (1_u64..100_000).prop_map(Duration::from_millis),
        1 => any::<Duration>(),
        1 => Just(Duration::ZERO),
    ]
}

/// Generates close codes around the defined ones as well as any others.
pub(super) fn close_codes() -> impl Strategy<Value = u16> {
    prop_oneof![1000_u16..1016, any::<u16>()]
}

#[test]
fn the_defaults_are_accepted() {
    assert!(HeartbeatLayerBuilder::default().build().is_ok());
    assert!(IdleTimeoutLayerBuilder::default().build().is_ok());
}
