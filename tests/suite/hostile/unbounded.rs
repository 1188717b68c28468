//! What a hostile peer can do for ever unless a bound that is off by default is set.

use axum::Router;
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep};
use tower_ws_liveness::{HeartbeatLayer, IdleTimeoutLayer, ProofOfLife, Reason};

use crate::recorded::{only_eviction, recorded};
use crate::script::*;
use crate::support::raw::RawClient;
use crate::support::recorder::Recorder;
use crate::support::{echo_route, in_memory};

const MASKING_KEY: Option<[u8; 4]> = Some([1, 2, 3, 4]);

/// Inside a frame a peer cannot answer, so every byte of it extends the timeout.
#[tokio::test(start_paused = true)]
async fn an_endless_frame_needs_no_pong_even_where_pongs_are_required() {
    let required = heartbeat().proof_of_life(ProofOfLife::MatchingPong);
    let (mut stream, live, peer, recorder) = recorded(required);
    let _handler = tokio::spawn(async move { while stream.read_u8().await.is_ok() {} });
    peer.send(&[0x82, 0xFF, 0, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3, 4]);
    for _ in 0..1_000 {
        peer.send(b"x");
        sleep(ms(40)).await;
    }
    assert_eq!(recorder.total(), 0, "{:?}", recorder.all());
    assert!(live.stats().pings_sent() > 0);
    assert_eq!(live.stats().pongs_received(), 0);
}

/// The payloads of one connection's pings differ by their sequence number alone.
#[tokio::test(start_paused = true)]
async fn a_peer_that_has_read_one_ping_can_answer_the_others_unread() {
    let required = heartbeat().proof_of_life(ProofOfLife::MatchingPong);
    let (mut stream, live, peer, recorder) = recorded(required);
    let _handler = tokio::spawn(async move { while stream.read_u8().await.is_ok() {} });
    sleep(ms(110)).await;
    let tag = u64::from_be_bytes(peer.last_ping()) ^ 1;
    let answers = (1..=100).map(|number: u64| Role::Server.pong(&(tag ^ number).to_be_bytes()));
    let answers = answers.collect::<Vec<_>>().concat();
    for _ in 0..200 {
        peer.send(&answers);
        sleep(ms(20)).await;
    }
    assert_eq!(recorder.total(), 0, "{:?}", recorder.all());
    assert!(live.stats().pongs_received() > 10);
}

/// A client of an echo handler that sends pings a byte at a time for 10 s, and the evictions.
async fn evictions_of_slow_pings(idle: Option<IdleTimeoutLayer>) -> Recorder {
    let recorder = Recorder::new();
    let pings = HeartbeatLayer::builder().interval(ms(100)).timeout(ms(400));
    let app = Router::new().route("/ws", echo_route());
    let app = match idle {
        Some(idle) => app.layer(idle),
        None => app,
    };
    let app = app.layer(pings.on_evict(recorder.hook()).build().unwrap());
    let mut client = RawClient::handshake(in_memory(app, 4_096), "/ws").await;
    let ping = frame(0x80 | PING, MASKING_KEY, &[7; 125]);
    for byte in ping.iter().cycle().take(250) {
        // Fails after the eviction.
        let _ = client.send_bytes(&[*byte]).await;
        sleep(ms(40)).await;
    }
    recorder
}

#[tokio::test(start_paused = true)]
async fn pings_sent_a_byte_at_a_time_are_alive_and_idle() {
    let recorder = evictions_of_slow_pings(None).await;
    assert_eq!(recorder.total(), 0, "{:?}", recorder.all());

    let begun = Instant::now();
    let recorder = evictions_of_slow_pings(Some(IdleTimeoutLayer::new(ms(2_000)))).await;
    let (after, reason) = only_eviction(&recorder, begun);
    assert_eq!(reason, Reason::IdleTimeout);
    assert!(after >= ms(2_000) && after <= ms(2_003), "{after:?}");
}
