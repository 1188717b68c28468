use proptest::prelude::*;

use super::*;
use crate::eviction::Eviction;
use crate::layer::builder_checks::{
    NOT_ZERO, NOT_ZERO_OR_NONE, assert_duration_bounds, assert_refused, check_names_setter,
    close_codes, durations,
};

fn builder() -> IdleTimeoutLayerBuilder {
    IdleTimeoutLayerBuilder::default()
}

#[test]
fn every_setter_sets_its_value() {
    let seconds = Duration::from_secs;
    let builder = builder()
        .timeout(seconds(1))
        .watch(Traffic::Outbound)
        .first_message(seconds(2))
        .message_timeout(seconds(5))
        .max_lifetime(Some(seconds(3)))
        .max_lifetime_jitter(0.25)
        .close_timeout(seconds(4))
        .close_frame(4001, "bye")
        .registry(Registry::default())
        .on_open(|_| {})
        .on_evict(|_: &Eviction| {})
        .on_evict(|_: &Eviction| {});
    let expected = IdlePolicy {
        timeout: Some(seconds(1)),
        watch: Traffic::Outbound,
        first_message: Some(seconds(2)),
        message_timeout: Some(seconds(5)),
        max_lifetime: Some(seconds(3)),
        max_lifetime_jitter: 0.25,
        close_timeout: seconds(4),
        close_frame: Some(CloseFrame {
            code: 4001,
            reason: "bye".into(),
        }),
        ..IdlePolicy::default()
    };
    assert_eq!(builder.policy, expected);
    assert!(builder.shared.has_registry());
    assert_eq!(builder.shared.open_hook_count(), 1);
    assert_eq!(builder.shared.evict_hook_count(), 2);
    assert!(builder.clone().build().is_ok());

    let off = builder.first_message(None).message_timeout(None);
    let off = off.max_lifetime(None).timeout(None);
    assert_eq!(off.policy.first_message, None);
    assert_eq!(off.policy.message_timeout, None);
    assert_eq!(off.policy.max_lifetime, None);
    assert_eq!(off.policy.timeout, None);
    assert!(off.build().is_ok());
}

#[test]
fn a_refused_duration_is_reported_with_its_setter() {
    assert_duration_bounds::<IdleTimeoutLayerBuilder>(&[
        ("timeout", NOT_ZERO_OR_NONE, |b, d| b.timeout(d)),
        ("first_message", NOT_ZERO_OR_NONE, |b, d| b.first_message(d)),
        ("message_timeout", NOT_ZERO_OR_NONE, |b, d| {
            b.message_timeout(d)
        }),
        ("max_lifetime", NOT_ZERO_OR_NONE, |b, d| b.max_lifetime(d)),
        ("close_timeout", NOT_ZERO, |b, d| b.close_timeout(d)),
    ]);
}

#[test]
fn a_refused_jitter_is_reported_with_its_setter() {
    for (jitter, shown) in [(f64::NAN, "NaN"), (-0.1, "-0.1"), (1.5, "1.5")] {
        let expected = format!(
            "IdleTimeoutLayer::max_lifetime_jitter: {shown}: must be a number within 0.0..=1.0"
        );
        assert_refused(builder().max_lifetime_jitter(jitter), &expected);
    }
    for jitter in [0.0, 1.0] {
        assert!(builder().max_lifetime_jitter(jitter).build().is_ok());
    }
}

#[test]
fn a_refused_close_frame_is_reported_with_its_setter() {
    assert_refused(
        builder().close_frame(1005, ""),
        "IdleTimeoutLayer::close_frame: code 1005: must be a code that may be sent, \
         this is for reports only (RFC 6455 section 7.4.1)",
    );
    assert_refused(
        builder().close_frame(1001, "r".repeat(124)),
        "IdleTimeoutLayer::close_frame: reason of 124 bytes: \
         must be at most 123 bytes of UTF-8 (RFC 6455 section 5.5)",
    );
    assert!(builder().close_frame(4999, "r".repeat(123)).build().is_ok());
}

#[test]
fn the_error_names_the_first_refused_setter() {
    let error = builder()
        .close_timeout(Duration::ZERO)
        .first_message(Duration::ZERO)
        .build()
        .unwrap_err();
    assert_eq!(error.setter(), "IdleTimeoutLayer::first_message");
}

proptest! {
    #[test]
    fn build_never_panics(
        (timeout, close_timeout) in (proptest::option::of(durations()), durations()),
        first_message in proptest::option::of(durations()),
        message_timeout in proptest::option::of(durations()),
        max_lifetime in proptest::option::of(durations()),
        code in close_codes(),
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
                prop_assert!(close_timeout >= config_error::MIN_DURATION);
                prop_assert_ne!(timeout, Some(Duration::ZERO));
                prop_assert_ne!(first_message, Some(Duration::ZERO));
                prop_assert_ne!(message_timeout, Some(Duration::ZERO));
                prop_assert_ne!(max_lifetime, Some(Duration::ZERO));
                prop_assert!(reason.len() <= config_error::MAX_CLOSE_REASON);
            }
            Err(error) => check_names_setter::<IdleTimeoutLayerBuilder>(&error)?,
        }
    }
}
