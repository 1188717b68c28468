//! Tests of the policy: close timeouts, Close frames and the granularity of deadlines.

use proptest::prelude::*;

use super::*;

const IDLE_REASONS: [Reason; 4] = [
    Reason::IdleTimeout,
    Reason::FirstMessageTimeout,
    Reason::MessageTimeout,
    Reason::MaxLifetime,
];
const OTHER_REASONS: [Reason; 6] = [
    Reason::HeartbeatTimeout { missed: 1 },
    Reason::WriteStalled,
    Reason::HandlerStalled,
    Reason::CloseTimeout,
    Reason::PeerClosed { code: None },
    Reason::HandlerDropped,
];

#[test]
fn the_layer_that_evicts_determines_the_close_timeout_and_the_close_frame() {
    let heart = heartbeat(|policy| policy.close_frame = Some(frame(4001)));
    let still = idle(|policy| policy.close_frame = Some(frame(4002)));
    let stacked = both(heart.clone(), still.clone());
    // (policy, close_timeout and code for the idle layer's verdicts, the same for the others)
    for (policy, of_idle, of_others) in [
        (&heart, (1_000, 4001), (1_000, 4001)),
        (&still, (3_000, 4002), (3_000, 4002)),
        (&stacked, (3_000, 4002), (1_000, 4001)),
    ] {
        for (reasons, (timeout, code)) in
            [(&IDLE_REASONS[..], of_idle), (&OTHER_REASONS, of_others)]
        {
            for &reason in reasons {
                assert_eq!(policy.close_timeout(Some(reason)), ms(timeout), "{reason}");
                assert_eq!(policy.close_frame(reason), frame(code), "{reason}");
            }
        }
        assert_eq!(policy.close_timeout(None), ms(of_others.0), "the server's");
        assert_eq!(policy.close_frame(Reason::ControlFlood).code, 1008);
    }
    assert_eq!(Policy::default().close_timeout(None), ms(5_000));
}

#[test]
fn without_an_idle_layer_the_end_of_the_lifetime_is_closed_like_one_of_a_heartbeat() {
    let mut policy = heartbeat(|policy| policy.close_frame = Some(frame(4001)));
    policy.idle = Some(Arc::new(IdlePolicy {
        max_lifetime: Some(ms(1_000)),
        ..IdlePolicy::without_layer()
    }));
    assert!(!policy.has_idle_layer());
    let reason = Some(Reason::MaxLifetime);
    assert_eq!(policy.close_timeout(reason), ms(1_000), "the heartbeat's");
    // The frame for dead peers would mislead the client.
    assert_eq!(policy.close_frame(Reason::MaxLifetime).code, 1012);
    let sim = Simulation::new(policy);
    assert_eq!(sim.health(), Health::Live);
}

/// Clients decide by these codes whether to reconnect: a change is a breaking change.
#[test]
fn every_verdict_has_its_own_default_close_frame() {
    let (heart, still) = (heartbeat(|_| {}), idle(|_| {}));
    let policies = [
        both(heart.clone(), still.clone()),
        heart,
        still,
        Policy::default(),
    ];
    for (reason, code, text) in [
        (
            Reason::HeartbeatTimeout { missed: 1 },
            3008,
            "heartbeat timeout",
        ),
        (Reason::WriteStalled, 3008, "write stalled"),
        (Reason::HandlerStalled, 1013, "handler stalled"),
        (Reason::ControlFlood, 1008, "too many control frames"),
        (Reason::IdleTimeout, 1001, "idle timeout"),
        (Reason::MessageTimeout, 3008, "message not complete in time"),
        (
            Reason::FirstMessageTimeout,
            3008,
            "no first message in time",
        ),
        (Reason::MaxLifetime, 1012, "maximum lifetime reached"),
    ] {
        assert!(reason.to_string().starts_with(text), "{reason}");
        assert_eq!(crate::config_error::on_wire(code), code);
        for policy in &policies {
            let frame = policy.close_frame(reason);
            assert_eq!((frame.code, &*frame.reason), (code, text), "{policy:?}");
        }
    }
}

fn frame(code: u16) -> CloseFrame {
    CloseFrame {
        code,
        reason: "configured".into(),
    }
}

#[test]
fn the_granularity_follows_from_the_shortest_duration() {
    let long = ms(1_000_000);
    let longest = || {
        let heart = heartbeat(|policy| {
            policy.interval = long;
            policy.timeout = long;
            policy.close_timeout = long;
        });
        let still = idle(|policy| {
            policy.timeout = Some(long);
            policy.close_timeout = long;
        });
        both(heart, still)
    };
    assert_eq!(longest().step_millis(), 128, "at most, in two steps");
    assert_eq!(Policy::default().step_millis(), 256);
    for (shortest, tick) in [
        (1, 1),
        (31, 1),
        (32, 1),
        (64, 1),
        (127, 1),
        (128, 2),
        (4_000, 32),
        (8_191, 64),
        (8_192, 128),
    ] {
        let shortest = ms(shortest);
        let heart: [fn(&mut HeartbeatPolicy, Duration); 5] = [
            |policy, value| policy.interval = value,
            |policy, value| policy.timeout = value,
            |policy, value| policy.close_timeout = value,
            |policy, value| policy.write_timeout = Some(value),
            |policy, value| policy.handler_stall_timeout = Some(value),
        ];
        let still: [fn(&mut IdlePolicy, Duration); 5] = [
            |policy, value| policy.timeout = Some(value),
            |policy, value| policy.close_timeout = value,
            |policy, value| policy.first_message = Some(value),
            |policy, value| policy.message_timeout = Some(value),
            |policy, value| policy.max_lifetime = Some(value),
        ];
        for (index, set) in heart.iter().enumerate() {
            let mut policy = longest();
            set(Arc::make_mut(policy.heartbeat.as_mut().unwrap()), shortest);
            assert_eq!(
                policy.step_millis(),
                tick,
                "heartbeat's {index}: {shortest:?}"
            );
        }
        for (index, set) in still.iter().enumerate() {
            let mut policy = longest();
            set(Arc::make_mut(policy.idle.as_mut().unwrap()), shortest);
            assert_eq!(policy.step_millis(), tick, "idle's {index}: {shortest:?}");
        }
    }
}

proptest! {
    #[test]
    fn the_granularity_is_a_power_of_two_and_a_small_part_of_the_shortest_duration(
        interval in 1..u64::MAX / 2,
        timeout in 1..20_000_u64,
        lifetime in proptest::option::of(1..20_000_u64),
        missed in 1..=255_u32,
    ) {
        let heart = heartbeat(|policy| {
            policy.interval = ms(interval);
            policy.timeout = ms(timeout);
            policy.missed_pings = missed;
        });
        let still = idle(|policy| policy.max_lifetime = lifetime.map(ms));
        let step = u64::from(both(heart, still).step_millis());
        let shortest = [interval, timeout, 1_000, lifetime.unwrap_or(u64::MAX)]
            .into_iter()
            .min()
            .unwrap();
        prop_assert!(step.is_power_of_two());
        // A silent peer is evicted after one step more than there are pings to miss.
        let steps = u64::from(missed) + 1;
        let most = (shortest / 32).min(256);
        prop_assert!(step == 1 || step * steps <= most);
        prop_assert!(2 * step * steps > most - most % steps, "smaller than necessary");
    }
}
