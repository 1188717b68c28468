use proptest::prelude::*;

use super::*;
use crate::eviction::Eviction;
use crate::layer::builder_checks::{
    NOT_ZERO, NOT_ZERO_OR_NONE, assert_duration_bounds, assert_refused, check_names_setter,
    close_codes, durations,
};

fn builder() -> HeartbeatLayerBuilder {
    HeartbeatLayerBuilder::default()
}

#[test]
fn every_setter_sets_its_value() {
    let seconds = Duration::from_secs;
    let builder = builder()
        .interval(seconds(1))
        .timeout(seconds(2))
        .missed_pings(3)
        .proof_of_life(ProofOfLife::MatchingPong)
        .jitter(0.25)
        .write_timeout(seconds(4))
        .handler_stall_timeout(Some(seconds(5)))
        .control_frame_limit(7)
        .takes_any_bytes(true)
        .close_timeout(seconds(6))
        .close_frame(4000, "bye")
        .registry(Registry::default())
        .on_open(|_| {})
        .on_evict(|_: &Eviction| {})
        .on_evict(|_: &Eviction| {});
    #[cfg(feature = "tcp")]
    let builder = builder.tune_tcp(false);
    let expected = HeartbeatPolicy {
        interval: seconds(1),
        timeout: seconds(2),
        missed_pings: 3,
        proof_of_life: ProofOfLife::MatchingPong,
        jitter: 0.25,
        write_timeout: Some(seconds(4)),
        handler_stall_timeout: Some(seconds(5)),
        control_frame_limit: Some(7),
        takes_any_bytes: true,
        close_timeout: seconds(6),
        close_frame: Some(CloseFrame {
            code: 4000,
            reason: "bye".into(),
        }),
        #[cfg(feature = "tcp")]
        tune_tcp: false,
    };
    assert_eq!(builder.policy, expected);
    assert!(builder.shared.has_registry());
    assert_eq!(builder.shared.open_hook_count(), 1);
    assert_eq!(builder.shared.evict_hook_count(), 2);
    assert!(builder.clone().build().is_ok());

    let off = builder
        .write_timeout(None)
        .handler_stall_timeout(None)
        .control_frame_limit(None);
    assert_eq!(off.policy.write_timeout, None);
    assert_eq!(off.policy.control_frame_limit, None);
    assert_eq!(off.policy.handler_stall_timeout, None);
    assert!(off.build().is_ok());
}

#[test]
fn a_refused_duration_is_reported_with_its_setter() {
    assert_duration_bounds::<HeartbeatLayerBuilder>(&[
        ("interval", NOT_ZERO, |b, d| b.interval(d)),
        ("timeout", NOT_ZERO, |b, d| b.timeout(d)),
        ("write_timeout", NOT_ZERO_OR_NONE, |b, d| b.write_timeout(d)),
        ("handler_stall_timeout", NOT_ZERO_OR_NONE, |b, d| {
            b.handler_stall_timeout(d)
        }),
        ("close_timeout", NOT_ZERO, |b, d| b.close_timeout(d)),
    ]);
}

#[test]
fn other_refused_values_are_reported_with_their_setter() {
    let refused = [
        (
            builder().missed_pings(0),
            "HeartbeatLayer::missed_pings: 0: must be within 1..=255",
        ),
        (
            builder().missed_pings(256),
            "HeartbeatLayer::missed_pings: 256: must be within 1..=255",
        ),
        (
            builder().control_frame_limit(0),
            "HeartbeatLayer::control_frame_limit: 0: must be at least 1 (None turns it off)",
        ),
        (
            builder().control_frame_limit(1_000_001),
            "HeartbeatLayer::control_frame_limit: 1000001: must be at most 1000000",
        ),
        (
            builder().jitter(f64::NAN),
            "HeartbeatLayer::jitter: NaN: must be a number within 0.0..=1.0",
        ),
        (
            builder().jitter(1.01),
            "HeartbeatLayer::jitter: 1.01: must be a number within 0.0..=1.0",
        ),
        (
            builder().close_frame(1006, ""),
            "HeartbeatLayer::close_frame: code 1006: must be a code that may be sent, \
             this is for reports only (RFC 6455 section 7.4.1)",
        ),
        (
            builder().close_frame(1011, "r".repeat(124)),
            "HeartbeatLayer::close_frame: reason of 124 bytes: \
             must be at most 123 bytes of UTF-8 (RFC 6455 section 5.5)",
        ),
    ];
    for (builder, expected) in refused {
        assert_refused(builder, expected);
    }
}

#[test]
fn the_error_names_the_first_refused_setter() {
    let zero = Duration::ZERO;
    let error = builder().jitter(2.0).interval(zero).build().unwrap_err();
    assert_eq!(error.setter(), "HeartbeatLayer::interval");
}

#[test]
fn the_largest_values_do_not_overflow_together() {
    let builder = builder()
        .interval(config_error::MAX_DURATION)
        .timeout(config_error::MAX_DURATION)
        .missed_pings(config_error::MAX_MISSED_PINGS);
    let policy = &builder.policy;
    let total = policy.interval + policy.timeout * policy.missed_pings;
    assert!(u64::try_from(total.as_nanos()).is_ok());
    assert!(builder.build().is_ok());
}

proptest! {
    #[test]
    fn build_never_panics(
        (interval, timeout, close_timeout) in (durations(), durations(), durations()),
        write_timeout in proptest::option::of(durations()),
        handler_stall_timeout in proptest::option::of(durations()),
        missed_pings in prop_oneof![1_u32..300, any::<u32>()],
        jitter in prop_oneof![0.0..=1.0, any::<f64>()],
        code in close_codes(),
        reason in ".{0,60}",
    ) {
        let builder = builder()
            .interval(interval)
            .timeout(timeout)
            .missed_pings(missed_pings)
            .jitter(jitter)
            .write_timeout(write_timeout)
            .handler_stall_timeout(handler_stall_timeout)
            .close_timeout(close_timeout)
            .close_frame(code, reason.as_str());
        match builder.build() {
            Ok(_) => {
                let least = interval.min(timeout).min(close_timeout);
                prop_assert!(least >= config_error::MIN_DURATION);
                prop_assert!(timeout.checked_mul(missed_pings).is_some());
                prop_assert!(jitter.is_finite());
                prop_assert!(reason.len() <= config_error::MAX_CLOSE_REASON);
            }
            Err(error) => check_names_setter::<HeartbeatLayerBuilder>(&error)?,
        }
    }
}
