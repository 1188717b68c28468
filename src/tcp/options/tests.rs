use proptest::prelude::*;
use tokio::net::TcpListener;

use super::*;
use crate::HeartbeatLayer;
use crate::config_error::{MAX_DURATION, MAX_MISSED_PINGS, MIN_DURATION};

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn policy(interval: Duration, timeout: Duration, missed_pings: u32) -> HeartbeatPolicy {
    HeartbeatPolicy {
        interval,
        timeout,
        missed_pings,
        ..HeartbeatPolicy::default()
    }
}

#[test]
fn the_default_options_follow_from_the_default_times() {
    let expected = TcpOptions {
        unsent_limit: Some(16_384),
        user_timeout: Some(secs(75)),
        keepalive: Some(TcpKeepalive {
            idle: secs(30),
            interval: secs(15),
            retries: 3,
        }),
    };
    assert_eq!(TcpOptions::default(), expected);
    assert_eq!(HeartbeatLayer::default().tcp_options(), expected);
    let layer = HeartbeatLayer::new(secs(20), secs(40));
    assert_eq!(layer.tcp_options().user_timeout, Some(secs(140)));
    assert_eq!(layer.tcp_options().keepalive.unwrap().idle, secs(20));
}

#[test]
fn the_user_timeout_follows_from_the_heartbeats_times() {
    let day = secs(24 * 60 * 60);
    let with = |policy: HeartbeatPolicy, write, stall| HeartbeatPolicy {
        write_timeout: write,
        handler_stall_timeout: stall,
        ..policy
    };
    let write = |seconds| Some(secs(seconds));
    let millis = |limit: u64| Some(ms(limit));
    let five = || policy(secs(5), secs(5), 1);
    let table = [
        // The dead peer's verdict after 15 s if it is postponed, plus another timeout.
        (with(five(), write(7), None), millis(20_000)),
        // A stalled write may take longer, which may be postponed too.
        (with(five(), write(30), None), millis(65_000)),
        // So may a stalled handler, which is noticed up to one interval late.
        (with(five(), write(30), write(60)), millis(70_000)),
        (with(five(), write(30), write(1)), millis(65_000)),
        // Several missed pings.
        (
            with(policy(secs(5), secs(5), 4), write(7), None),
            millis(35_000),
        ),
        // Without a write timeout a peer may read nothing for any time.
        (with(five(), None, None), None),
        (with(five(), None, write(60)), None),
        // At least 5 s for retransmissions.
        (
            with(policy(ms(10), ms(10), 1), Some(ms(10)), None),
            millis(5_000),
        ),
        (
            with(policy(secs(2), secs(1), 1), write(1), None),
            millis(5_000),
        ),
        (
            with(policy(secs(2), ms(1_001), 1), write(1), None),
            millis(5_003),
        ),
        // The kernel's limit: 2,147,483,647 ms.
        (
            with(policy(day, day, 1), write(1), None),
            Some(secs(4 * 24 * 60 * 60)),
        ),
        (
            with(policy(ms(2_147_483_644), ms(1), 1), write(1), None),
            millis(2_147_483_647),
        ),
        (
            with(policy(ms(2_147_483_645), ms(1), 1), write(1), None),
            None,
        ),
        (
            with(
                policy(MAX_DURATION, MAX_DURATION, MAX_MISSED_PINGS),
                Some(MAX_DURATION),
                Some(MAX_DURATION),
            ),
            None,
        ),
    ];
    for (policy, expected) in table {
        assert_eq!(TcpOptions::of(&policy).user_timeout, expected, "{policy:?}");
    }
}

#[test]
fn the_keepalive_times_follow_from_the_heartbeats_times() {
    let table = [
        ((secs(30), secs(15), 4), (30, 15, 4)),
        // At least three probes.
        ((secs(30), secs(15), 1), (30, 15, 3)),
        // Rounded up to whole seconds.
        ((ms(1_500), ms(2_001), 3), (2, 3, 3)),
        ((MIN_DURATION, MIN_DURATION, 2), (1, 1, 3)),
        ((secs(32_767), secs(32_767), 127), (32_767, 32_767, 127)),
        ((ms(32_766_001), secs(32_768), 128), (32_767, 32_767, 127)),
        (
            (MAX_DURATION, MAX_DURATION, MAX_MISSED_PINGS),
            (32_767, 32_767, 127),
        ),
    ];
    for ((interval, timeout, missed), (idle, between, retries)) in table {
        let expected = TcpKeepalive {
            idle: secs(idle),
            interval: secs(between),
            retries,
        };
        let options = TcpOptions::of(&policy(interval, timeout, missed));
        assert_eq!(
            options.keepalive,
            Some(expected),
            "{interval:?} {timeout:?}"
        );
    }
}

async fn socket() -> TcpStream {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let connecting = TcpStream::connect(listener.local_addr().unwrap());
    let (accepted, _peer) = tokio::join!(listener.accept(), connecting);
    accepted.unwrap().0
}

#[tokio::test]
async fn an_option_that_is_none_keeps_the_sockets_value() {
    let socket = socket().await;
    let off = TcpOptions {
        unsent_limit: None,
        user_timeout: None,
        keepalive: None,
    };
    TcpOptions::default().apply(&socket).unwrap();
    off.apply(&socket).unwrap();
    let kept = SockRef::from(&socket);
    assert!(kept.keepalive().unwrap());

    let fresh = self::socket().await;
    off.apply(&fresh).unwrap();
    assert!(!SockRef::from(&fresh).keepalive().unwrap());
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_refused_option_does_not_prevent_the_others() {
    let refused = TcpOptions {
        unsent_limit: Some(1_000),
        user_timeout: Some(Duration::MAX),
        keepalive: Some(TcpKeepalive {
            idle: secs(7),
            interval: secs(8),
            retries: 9,
        }),
    };
    let socket = socket().await;
    let error = refused.apply(&socket).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    let socket = SockRef::from(&socket);
    assert_eq!(socket.tcp_notsent_lowat().unwrap(), 1_000);
    assert_eq!(socket.tcp_user_timeout().unwrap(), None);
    assert_eq!(socket.tcp_keepalive_retries().unwrap(), 9);
}

/// Generates durations that a builder accepts.
fn durations() -> impl Strategy<Value = Duration> {
    prop_oneof![
        (1_u64..100_000).prop_map(ms),
        (1_u64..365 * 24 * 60 * 60).prop_map(secs),
        Just(MIN_DURATION),
        Just(MAX_DURATION),
    ]
}

proptest! {
    /// The kernel never ends a connection before the layer's own verdicts.
    #[test]
    fn the_user_timeout_is_later_than_every_verdict_of_the_layer(
        (interval, timeout, write) in (durations(), durations(), durations()),
        handler_stall_timeout in proptest::option::of(durations()),
        missed_pings in 1..=MAX_MISSED_PINGS,
    ) {
        let policy = HeartbeatPolicy {
            write_timeout: Some(write),
            handler_stall_timeout,
            ..policy(interval, timeout, missed_pings)
        };
        let options = TcpOptions::of(&policy);
        if let Some(limit) = options.user_timeout {
            prop_assert!(limit > interval + timeout * (missed_pings + 1));
            prop_assert!(limit > write * 2);
            prop_assert!(handler_stall_timeout.is_none_or(|stall| limit > interval + stall));
            prop_assert!(i32::try_from(limit.as_millis()).is_ok());
        }
        let keepalive = options.keepalive.unwrap();
        for time in [keepalive.idle, keepalive.interval] {
            prop_assert!((1..=32_767).contains(&time.as_secs()));
            prop_assert_eq!(time.subsec_nanos(), 0);
        }
        prop_assert!((1..=127).contains(&keepalive.retries));
    }
}
