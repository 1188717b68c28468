//! Per-connection overrides, set through the handle or a request extension.

use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use tokio::io::DuplexStream;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tower_ws_liveness::{
    Health, HeartbeatLayer, IdleTimeoutLayer, Liveness, PolicyOverride, PolicyOverrideBuilder,
    Reason, Traffic,
};

use crate::script::*;
use crate::support::raw::{self, Answer, Frame, RawClient};
use crate::support::recorder::Recorder;
use crate::support::{echo, in_memory, watched_route};

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(start_paused = true)]
async fn a_shorter_interval_takes_effect_immediately() {
    let (_stream, live, peer) = wrap_with(heartbeat().interval(HOUR).missed_pings(200));
    sleep(ms(500)).await;
    live.set_interval(ms(700)).unwrap();
    sleep(ms(190)).await;
    assert_eq!(peer.pings().len(), 0);
    sleep(ms(30)).await;
    assert_eq!(peer.pings().len(), 1, "700 ms after the last read");

    // The new deadline has already expired.
    let (_stream, live, peer) = wrap_with(heartbeat().interval(HOUR).missed_pings(200));
    sleep(ms(500)).await;
    live.set_interval(ms(100)).unwrap();
    sleep(ms(10)).await;
    assert_eq!(peer.pings().len(), 1);
}

/// Deadlines are rounded up to a 32nd of the shortest duration, including overrides.
#[tokio::test(start_paused = true)]
async fn a_short_override_is_as_exact_as_a_short_setting_of_the_layer() {
    let coarse = heartbeat().interval(HOUR).timeout(HOUR).close_timeout(HOUR);
    let recorder = Recorder::new();
    let (_stream, live, _peer) = wrap_with(coarse.on_evict(recorder.hook()));
    sleep(ms(1_003)).await;
    let begun = Instant::now();
    live.set_timeout(ms(64)).unwrap();
    live.set_interval(ms(1_005)).unwrap();
    let event = recorder.nth(1).await;
    let after = event.at - begun;
    assert!((ms(66)..=ms(69)).contains(&after), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_longer_interval_takes_effect_immediately() {
    let (_stream, live, peer) = wrap_with(heartbeat());
    sleep(ms(90)).await;
    live.set_interval(ms(1_000)).unwrap();
    sleep(ms(900)).await;
    assert_eq!(peer.pings().len(), 0);
    sleep(ms(40)).await;
    assert_eq!(peer.pings().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_timeout_applies_to_the_outstanding_ping() {
    for (changed, dead_after) in [(400, 500), (10, 120)] {
        let recorder = Recorder::new();
        let (_stream, live, _peer) = wrap_with(heartbeat().on_evict(recorder.hook()));
        let begun = Instant::now();
        sleep(ms(120)).await;
        live.set_timeout(ms(changed)).unwrap();
        let event = recorder.nth(1).await;
        assert_eq!(event.reason, Reason::HeartbeatTimeout { missed: 1 });
        let after = event.at - begun;
        let bound = ms(dead_after)..=ms(dead_after + 10);
        assert!(bound.contains(&after), "{changed}: {after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn other_connections_keep_the_settings_of_the_layer() {
    let layer = heartbeat().build().unwrap();
    let (one, other) = (script(), script());
    let (_one_stream, live) = layer.wrap_server(one.0);
    let (_other_stream, _) = layer.wrap_server(other.0);
    live.set_interval(HOUR).unwrap();
    sleep(ms(105)).await;
    assert_eq!((one.1.pings().len(), other.1.pings().len()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn an_invalid_value_is_refused_with_its_setter_and_rule() {
    let (_stream, live, peer) = wrap_with(heartbeat());
    let refused = [
        (
            live.set_interval(Duration::ZERO),
            "Liveness::set_interval: 0ns: must be greater than zero",
        ),
        (
            live.set_timeout(Duration::from_micros(10)),
            "Liveness::set_timeout: 10µs: must be at least 1ms",
        ),
        (
            live.set_idle_timeout(Duration::MAX),
            "Liveness::set_idle_timeout: 18446744073709551615.999999999s: must be at most 365 days",
        ),
        (
            live.set_idle_timeout(Duration::ZERO),
            "Liveness::set_idle_timeout: 0ns: must be greater than zero (None turns it off)",
        ),
        (
            live.set_idle_timeout(None),
            "Liveness::set_idle_timeout: None: needs the layer whose setting it is: \
             the request has passed none so far",
        ),
        (
            live.set_idle_timeout(ms(10)),
            "Liveness::set_idle_timeout: 10ms: needs the layer whose setting it is: \
             the request has passed none so far",
        ),
    ];
    for (result, expected) in refused {
        assert_eq!(result.unwrap_err().to_string(), expected);
    }
    sleep(ms(105)).await;
    assert_eq!(peer.pings().len(), 1, "the layer's settings apply");
}

#[tokio::test(start_paused = true)]
async fn setters_have_no_effect_after_the_connection_has_ended() {
    let (stream, live, _peer) = wrap_with(heartbeat());
    drop(stream);
    live.set_interval(ms(1)).unwrap();
    live.set_timeout(ms(1)).unwrap();
    sleep(ms(1_000)).await;
    assert_eq!(live.evicted().await.reason(), Reason::HandlerDropped);
}

// Over HTTP, with layers.

/// Connects to an echo route under the layers that `layered` adds.
async fn connect(layered: impl FnOnce(Router) -> Router) -> (RawClient<DuplexStream>, Liveness) {
    let (route, handles) = watched_route(echo);
    let app = layered(Router::new().route("/ws", route));
    open(app, handles).await
}

async fn open(
    app: Router,
    mut handles: UnboundedReceiver<Liveness>,
) -> (RawClient<DuplexStream>, Liveness) {
    let client = RawClient::handshake(in_memory(app, 64 * 1024), "/ws").await;
    (client, handles.recv().await.unwrap())
}

/// A layer that overrides the policy of every request.
fn overriding(router: Router, overrides: PolicyOverrideBuilder) -> Router {
    let overrides = overrides.build().unwrap();
    router.layer(from_fn(move |mut request: Request, next: Next| {
        request.extensions_mut().insert(overrides.clone());
        next.run(request)
    }))
}

fn beat() -> HeartbeatLayer {
    heartbeat().build().unwrap()
}

/// Reads until the eviction, and returns the time until then and the reason.
async fn end(mut client: RawClient<DuplexStream>, live: &Liveness) -> (Duration, Reason) {
    let begun = Instant::now();
    tokio::select! {
        eviction = live.evicted() => (begun.elapsed(), eviction.reason()),
        () = async { while let Ok(Some(_)) = client.next().await {} } => panic!("no eviction"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_extension_overrides_the_settings_of_the_layer() {
    // The override may be outside all layers or between them.
    let twice = PolicyOverride::builder().interval(ms(300)).timeout(ms(200));
    let orders: [fn(Router, PolicyOverrideBuilder) -> Router; 3] = [
        |router, own| overriding(router.layer(beat()), own),
        |router, own| overriding(router.layer(beat()).layer(IdleTimeoutLayer::new(HOUR)), own),
        |router, own| {
            let inner = overriding(router.layer(beat()), own);
            inner.layer(IdleTimeoutLayer::new(HOUR))
        },
    ];
    for (index, order) in orders.into_iter().enumerate() {
        let (client, live) = connect(|router| order(router, twice.clone())).await;
        let client = client.answering(Answer::Nothing);
        let (after, reason) = end(client, &live).await;
        assert_eq!(
            reason,
            Reason::HeartbeatTimeout { missed: 1 },
            "order {index}"
        );
        assert!(
            (ms(500)..ms(520)).contains(&after),
            "order {index}: {after:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn every_value_can_be_overridden() {
    let all = |router: Router, own| {
        let idle = IdleTimeoutLayer::builder()
            .timeout(ms(1_000))
            .first_message(ms(400))
            .max_lifetime(ms(3_000))
            .max_lifetime_jitter(0.0)
            .build()
            .unwrap();
        overriding(router.layer(idle).layer(beat()), own)
    };
    let own = PolicyOverride::builder;
    let off = own().first_message(None);
    let missed = Reason::HeartbeatTimeout { missed: 2 };
    let table = [
        (own(), true, 400, Reason::FirstMessageTimeout),
        (
            own().first_message(ms(700)),
            true,
            700,
            Reason::FirstMessageTimeout,
        ),
        (off.clone(), true, 1_000, Reason::IdleTimeout),
        (
            off.clone().idle_timeout(None),
            true,
            3_000,
            Reason::MaxLifetime,
        ),
        (
            off.clone().idle_timeout(ms(2_000)),
            true,
            2_000,
            Reason::IdleTimeout,
        ),
        (
            off.clone().idle_timeout(HOUR),
            true,
            3_000,
            Reason::MaxLifetime,
        ),
        (
            off.clone().idle_timeout(HOUR).max_lifetime(ms(500)),
            true,
            500,
            Reason::MaxLifetime,
        ),
        (
            off.idle_timeout(ms(9_000)).max_lifetime(None),
            true,
            9_000,
            Reason::IdleTimeout,
        ),
        (own().missed_pings(2), false, 200, missed),
    ];
    for (own, answers, millis, expected) in table {
        let (client, live) = connect(|router| all(router, own)).await;
        let client = match answers {
            true => client,
            false => client.answering(Answer::Nothing),
        };
        let (after, reason) = end(client, &live).await;
        assert_eq!(reason, expected);
        assert!(
            (ms(millis)..=ms(millis + millis / 20)).contains(&after),
            "{reason}: {after:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_message_timeout_can_be_overridden_and_turned_off() {
    let all = |router: Router, own| {
        let idle = IdleTimeoutLayer::builder()
            .timeout(ms(3_000))
            .message_timeout(ms(1_000))
            .build()
            .unwrap();
        overriding(router.layer(idle).layer(beat()), own)
    };
    let own = PolicyOverride::builder;
    for (own, millis, expected) in [
        (own(), 1_000, Reason::MessageTimeout),
        (
            own().message_timeout(ms(2_000)),
            2_000,
            Reason::MessageTimeout,
        ),
        (own().message_timeout(None), 3_000, Reason::IdleTimeout),
    ] {
        let (mut client, live) = connect(|router| all(router, own)).await;
        let begins = Frame::text("once").unfinished();
        client.send(&begins).await.unwrap();
        let (after, reason) = end(client, &live).await;
        assert_eq!(reason, expected);
        assert!(
            (ms(millis)..=ms(millis + millis / 20)).contains(&after),
            "{reason}: {after:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_close_frame_of_both_layers_can_be_overridden() {
    let layers: [fn(Router) -> Router; 2] = [
        |router| router.layer(beat()),
        |router| router.layer(IdleTimeoutLayer::new(ms(150))),
    ];
    for layer in layers {
        let own = PolicyOverride::builder().close_frame(4001, "own");
        let (client, _live) = connect(|router| overriding(layer(router), own)).await;
        let mut client = client.answering(Answer::Nothing);
        let close = client.closed().await;
        assert_eq!(close, Some(Frame::close(4001, "own")));
    }
}

#[tokio::test(start_paused = true)]
async fn the_idle_timeout_can_be_turned_off_and_on_while_the_connection_is_open() {
    let layered = |router: Router| router.layer(IdleTimeoutLayer::new(ms(1_000)));
    let (client, live) = connect(layered).await;
    live.set_idle_timeout(None).unwrap();
    sleep(HOUR).await;
    assert_eq!(live.health(), Health::Live);
    live.set_idle_timeout(HOUR + ms(500)).unwrap();
    let (after, reason) = end(client, &live).await;
    assert_eq!(reason, Reason::IdleTimeout);
    assert!((ms(400)..=ms(800)).contains(&after), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn overrides_for_an_absent_layer_are_ignored() {
    let own = PolicyOverride::builder()
        .interval(ms(10))
        .missed_pings(9)
        .idle_timeout(ms(500));
    let idle_only = |router: Router| overriding(router.layer(IdleTimeoutLayer::new(HOUR)), own);
    let (client, live) = connect(idle_only).await;
    assert_eq!(end(client, &live).await.1, Reason::IdleTimeout);
    assert_eq!(live.stats().pings_sent(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_handlers_override_wins_over_the_request_extension() {
    let (route, mut handles) = watched_route(echo);
    let router = Router::new()
        .route("/ws", route)
        .layer(IdleTimeoutLayer::new(HOUR));
    let app = overriding(router, PolicyOverride::builder().idle_timeout(ms(500)));
    let mut client = RawClient::handshake(in_memory(app, 64 * 1024), "/ws").await;
    let live = handles.recv().await.unwrap();
    live.set_idle_timeout(ms(2_000)).unwrap();
    sleep(ms(1_500)).await;
    client.send(&Frame::text("still here")).await.unwrap();
    let (after, reason) = end(client, &live).await;
    assert_eq!(reason, Reason::IdleTimeout);
    assert!((ms(2_000)..ms(2_100)).contains(&after), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn an_override_set_by_middleware_wins_over_layers_further_in() {
    let set = from_fn(|request: Request, next: Next| {
        let live: &Liveness = request.extensions().get().unwrap();
        live.set_interval(ms(300)).unwrap();
        next.run(request)
    });
    let (client, live) = connect(|router| router.layer(beat()).layer(set).layer(beat())).await;
    let (after, _) = end(client.answering(Answer::Nothing), &live).await;
    assert!((ms(350)..ms(370)).contains(&after), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn without_the_extension_the_settings_of_the_layer_apply() {
    let (mut client, live) = connect(|router| router.layer(beat())).await;
    let idle = timeout(ms(1_000), client.next()).await;
    assert!(idle.is_err(), "{idle:?}");
    assert_eq!(client.pings, 9, "about every 100 ms");
    drop(client);
    drop(live);
}

#[tokio::test(start_paused = true)]
async fn a_refused_setting_is_not_kept_for_a_layer_further_in() {
    let set = from_fn(|request: Request, next: Next| {
        let live: &Liveness = request.extensions().get().unwrap();
        assert!(live.set_idle_timeout(ms(500)).is_err());
        next.run(request)
    });
    let layered = |router: Router| {
        let inner = router.layer(IdleTimeoutLayer::new(HOUR));
        inner.layer(set).layer(beat())
    };
    let (mut client, live) = connect(layered).await;
    let quiet = timeout(ms(2_000), client.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    assert_ne!(live.health(), Health::Ended);
}

#[tokio::test(start_paused = true)]
async fn a_request_extension_does_not_undo_an_override_set_after_it() {
    let set = from_fn(|request: Request, next: Next| {
        let live: &Liveness = request.extensions().get().unwrap();
        live.set_interval(ms(300)).unwrap();
        next.run(request)
    });
    let layered = |router: Router| {
        let inner = router.layer(IdleTimeoutLayer::new(HOUR));
        let own = PolicyOverride::builder().interval(HOUR);
        overriding(inner.layer(set).layer(beat()), own)
    };
    let (client, live) = connect(layered).await;
    let (after, _) = end(client.answering(Answer::Nothing), &live).await;
    assert!((ms(350)..ms(370)).contains(&after), "{after:?}");
}

/// The deadline is in the past because of the override, not because the runtime was stalled, so the
/// heartbeat grants no second ping.
#[tokio::test(start_paused = true)]
async fn a_timeout_that_has_already_expired_evicts_without_a_second_ping() {
    let (_stream, live, peer) = wrap_with(heartbeat().timeout(ms(15_000)));
    sleep(ms(10_200)).await;
    let begun = Instant::now();
    live.set_timeout(ms(1_000)).unwrap();
    let eviction = live.evicted().await;
    assert_eq!(eviction.reason(), Reason::HeartbeatTimeout { missed: 1 });
    assert!(begun.elapsed() <= ms(2), "{:?}", begun.elapsed());
    assert_eq!(peer.pings().len(), 1);
}

// A client whose library passes pings to the application, which fails on the first one: the
// settings that the guide recommends for it.

/// The interval at which the client sends a message.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Sends a message every `KEEPALIVE` for `span`. After the first ping it sends nothing more, and
/// leaves the connection open.
async fn fails_on_pings(client: &mut RawClient<DuplexStream>, span: Duration) {
    let end = Instant::now() + span;
    while Instant::now() < end {
        let next = Instant::now() + KEEPALIVE;
        while let Ok(frame) = timeout_at(next, client.read_frame()).await {
            if frame.unwrap().expect("an open connection").opcode == raw::PING {
                return;
            }
        }
        client.send(&Frame::text("presence")).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_fails_on_pings_stays_connected_with_settings_that_send_none() {
    fn heartbeat_every(seconds: u64) -> HeartbeatLayer {
        let builder = HeartbeatLayer::builder().interval(Duration::from_secs(seconds));
        builder.build().unwrap()
    }
    fn idle() -> IdleTimeoutLayer {
        let builder = IdleTimeoutLayer::builder().timeout(Duration::from_secs(60));
        builder.watch(Traffic::Inbound).build().unwrap()
    }
    let no_pings = PolicyOverride::builder().interval(HOUR * 24 * 365);
    let overridden = |router: Router| {
        let layered = router.layer(idle()).layer(heartbeat_every(10));
        overriding(layered, no_pings.clone())
    };
    let dead = Reason::HeartbeatTimeout { missed: 1 };
    type Layered<'a> = &'a dyn Fn(Router) -> Router;
    let table: [(&str, Layered<'_>, bool, Reason, u64); 4] = [
        ("pinged", &|r| r.layer(heartbeat_every(10)), false, dead, 25),
        (
            "an interval of more than two keepalives",
            &|r| r.layer(heartbeat_every(45)),
            true,
            dead,
            60,
        ),
        (
            "the idle layer alone",
            &|r| r.layer(idle()),
            true,
            Reason::IdleTimeout,
            60,
        ),
        (
            "no pings for this request",
            &overridden,
            true,
            Reason::IdleTimeout,
            60,
        ),
    ];
    // Jitter makes the time of the first ping random.
    for (name, layered, kept, expected, found_within) in table.repeat(10) {
        let (client, live) = connect(layered).await;
        let mut client = client.answering(Answer::Nothing);
        let begun = Instant::now();
        fails_on_pings(&mut client, HOUR).await;
        assert_eq!(begun.elapsed() >= HOUR, kept, "{name}");
        let (after, reason) = end(client, &live).await;
        assert_eq!(reason, expected, "{name}");
        let found_within = Duration::from_secs(found_within) + ms(500);
        assert!(after <= found_within, "{name}: {after:?}");
        let stats = live.stats();
        let pings = u64::from(reason == dead);
        assert_eq!((stats.pings_sent(), stats.pongs_received()), (pings, 0));
    }
}
