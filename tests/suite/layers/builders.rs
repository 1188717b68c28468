//! Builder errors contain the setter, the value and the rule; valid values are accepted.

use std::fmt::Display;
use std::panic::catch_unwind;
use std::time::Duration;

use tower_ws_liveness::{
    HeartbeatLayer, HeartbeatLayerBuilder, IdleTimeoutLayer, IdleTimeoutLayerBuilder,
};

const ZERO: Duration = Duration::ZERO;
const LONGEST: Duration = Duration::MAX;

fn heartbeat() -> HeartbeatLayerBuilder {
    HeartbeatLayer::builder()
}

fn idle() -> IdleTimeoutLayerBuilder {
    IdleTimeoutLayer::builder()
}

/// Asserts that the error message contains the setter, the value and a rule.
fn assert_refused<T, E: Display>(result: Result<T, E>, setter: &str, value: &str) {
    let Err(error) = result else {
        panic!("{setter}({value}) was accepted");
    };
    let message = error.to_string();
    assert!(message.contains(setter), "no {setter:?} in {message:?}");
    assert!(message.contains(value), "no {value:?} in {message:?}");
    let rule = message.replace(setter, "").replace(value, "");
    assert!(rule.contains("must"), "no rule in {message:?}");
}

#[test]
fn invalid_durations_are_refused() {
    for (value, shown) in [
        (ZERO, "0ns"),
        (Duration::from_nanos(1), "1ns"),
        (LONGEST, "18446744073709551615.999999999s"),
    ] {
        assert_refused(heartbeat().interval(value).build(), "interval", shown);
        assert_refused(heartbeat().timeout(value).build(), "timeout", shown);
        let built = heartbeat().write_timeout(value).build();
        assert_refused(built, "write_timeout", shown);
        let built = heartbeat().handler_stall_timeout(value).build();
        assert_refused(built, "handler_stall_timeout", shown);
        let built = heartbeat().close_timeout(value).build();
        assert_refused(built, "close_timeout", shown);
        assert_refused(idle().timeout(value).build(), "timeout", shown);
        assert_refused(idle().first_message(value).build(), "first_message", shown);
        let built = idle().message_timeout(value).build();
        assert_refused(built, "message_timeout", shown);
        assert_refused(idle().max_lifetime(value).build(), "max_lifetime", shown);
        assert_refused(idle().close_timeout(value).build(), "close_timeout", shown);
    }
}

#[test]
fn other_invalid_values_are_refused() {
    assert_refused(heartbeat().missed_pings(0).build(), "missed_pings", "0");
    let all = u32::MAX;
    let built = heartbeat().missed_pings(all).build();
    assert_refused(built, "missed_pings", &all.to_string());
    for (jitter, shown) in [
        (-0.1, "-0.1"),
        (1.1, "1.1"),
        (f64::NAN, "NaN"),
        (f64::INFINITY, "inf"),
    ] {
        assert_refused(heartbeat().jitter(jitter).build(), "jitter", shown);
        let built = idle().max_lifetime_jitter(jitter).build();
        assert_refused(built, "max_lifetime_jitter", shown);
    }
}

#[test]
fn invalid_close_frames_are_refused() {
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, u16::MAX] {
        let shown = code.to_string();
        let built = heartbeat().close_frame(code, "").build();
        assert_refused(built, "close_frame", &shown);
        assert_refused(idle().close_frame(code, "").build(), "close_frame", &shown);
    }
    // The limit is in bytes, not characters.
    for reason in ["x".repeat(124), "ä".repeat(62)] {
        let built = heartbeat().close_frame(1000, reason.as_str()).build();
        assert_refused(built, "close_frame", "124");
        let built = idle().close_frame(1000, reason).build();
        assert_refused(built, "close_frame", "124");
    }
}

#[test]
fn the_short_constructors_panic_on_zero() {
    let second = Duration::from_secs(1);
    assert!(catch_unwind(|| HeartbeatLayer::new(ZERO, second)).is_err());
    assert!(catch_unwind(|| HeartbeatLayer::new(second, ZERO)).is_err());
    assert!(catch_unwind(|| IdleTimeoutLayer::new(ZERO)).is_err());
    let _ = HeartbeatLayer::new(second, second);
    let _ = IdleTimeoutLayer::new(second);
}

#[test]
fn values_are_accepted_up_to_their_limits() {
    let (least, year) = (Duration::from_millis(1), Duration::from_secs(365 * 86_400));
    for value in [least, year] {
        let built = heartbeat()
            .interval(value)
            .timeout(value)
            .write_timeout(value)
            .handler_stall_timeout(value)
            .close_timeout(value)
            .missed_pings(100)
            .jitter(0.0)
            .build();
        built.unwrap();
        let built = idle()
            .timeout(value)
            .first_message(value)
            .message_timeout(value)
            .max_lifetime(value)
            .close_timeout(value)
            .build();
        built.unwrap();
    }
    heartbeat().jitter(1.0).missed_pings(1).build().unwrap();
    for off in [None, Some(least)] {
        let built = heartbeat().write_timeout(off).handler_stall_timeout(off);
        built.build().unwrap();
        let built = idle().first_message(off).message_timeout(off);
        let built = built.max_lifetime(off).timeout(off);
        built.build().unwrap();
    }
    for code in [1000, 1001, 1003, 1007, 1011, 1014, 3000, 4000, 4999] {
        let reason = "x".repeat(123);
        let built = heartbeat().close_frame(code, reason.clone()).build();
        built.unwrap();
        idle().close_frame(code, reason).build().unwrap();
    }
    HeartbeatLayer::builder().build().unwrap();
    IdleTimeoutLayer::builder().build().unwrap();
    let _ = HeartbeatLayer::default();
}
