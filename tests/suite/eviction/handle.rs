//! The handle before, during and after a connection: its age, its reason, its label, its release.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use tokio::io::{AsyncReadExt, duplex};
use tokio::time::{Instant, sleep};
use tower_ws_liveness::{Drain, HeartbeatLayer, Reason};

use crate::script::*;
use crate::support::recorder::Recorder;
use crate::support::within;

#[tokio::test(start_paused = true)]
async fn age_counts_from_the_upgrade_to_the_end() {
    let (near, _far) = duplex(64);
    let (stream, live) = HeartbeatLayer::default().wrap_server_handshake(near);
    sleep(ms(7_000)).await;
    assert_eq!((live.age(), live.reason()), (Duration::ZERO, None));
    drop(stream);
    assert_eq!(live.reason(), Some(Reason::UpgradeFailed));
    sleep(ms(7_000)).await;
    assert_eq!(live.age(), Duration::ZERO);

    let (stream, live, _peer) = wrapped();
    sleep(ms(70)).await;
    assert_eq!((live.age(), live.reason()), (ms(70), None));
    drop(stream);
    assert_eq!(live.reason(), Some(Reason::HandlerDropped));
    sleep(ms(7_000)).await;
    assert_eq!(live.age(), ms(70));
    assert_eq!(live.evicted().await.lifetime(), ms(70));
}

#[tokio::test(start_paused = true)]
async fn closed_waits_for_the_transport_and_may_be_cancelled() {
    let (stream, live, peer) = wrap_with(heartbeat().close_timeout(ms(5_000)));
    assert!(live.closed().now_or_never().is_none());
    let evicted = Instant::now();
    let waiting = tokio::spawn({
        let live = live.clone();
        async move { live.closed().await }
    });
    tokio::task::yield_now().await;
    assert!(live.evict(4000, ""));
    // The hooks have returned, and the peer has not answered.
    assert!(live.evicted().now_or_never().is_some());
    assert!(live.closed().now_or_never().is_none());
    assert!(!peer.is_dropped());
    within("the release", waiting).await.unwrap();
    assert!(peer.is_dropped());
    let elapsed = evicted.elapsed();
    assert!(elapsed >= ms(5_000) && elapsed < ms(5_500), "{elapsed:?}");
    assert!(live.closed().now_or_never().is_some());
    drop(stream);

    // Without a transport it is the failure of the upgrade.
    let (stream, live) = HeartbeatLayer::default().wrap_server_handshake(duplex(64).0);
    assert!(live.closed().now_or_never().is_none());
    drop(stream);
    assert!(live.closed().now_or_never().is_some());
}

#[tokio::test]
async fn the_label_of_an_eviction_reaches_everything_but_the_peer() {
    let recorder = Recorder::new();
    let layer = HeartbeatLayer::builder()
        .on_evict(recorder.hook())
        .build()
        .unwrap();
    let mut evictions = layer.registry().evictions();
    let kicked = Reason::Kicked { code: 4008 };
    let (near, mut far) = duplex(64);
    let (_stream, live) = layer.wrap_server(near);
    assert!(live.evict_as("slow_consumer", 4008, "slow"));
    assert!(!live.evict_as("other", 4009, "again"));
    let mut frame = [0; 8];
    far.read_exact(&mut frame).await.unwrap();
    assert_eq!(frame, [0x88, 6, 0x0f, 0xa8, b's', b'l', b'o', b'w']);
    let streamed = within("the stream", evictions.next())
        .await
        .unwrap()
        .unwrap();
    let awaited = live.evicted().await;
    for eviction in [&recorder.all()[0].eviction, &streamed, &awaited] {
        assert_eq!(
            (eviction.reason(), eviction.label()),
            (kicked, "slow_consumer")
        );
    }

    // The label is the reason's word where the application gave none.
    let (stream, live) = layer.wrap_server(duplex(64).0);
    assert!(live.evict(4008, ""));
    assert_eq!(live.evicted().await.label(), "kicked");
    drop(stream);
    let (stream, live) = layer.wrap_server(duplex(64).0);
    drop(stream);
    assert_eq!(live.evicted().await.label(), "handler_dropped");
}

#[tokio::test(start_paused = true)]
async fn the_label_is_kept_before_the_upgrade_and_over_a_deferred_drain() {
    let (_stream, live) = HeartbeatLayer::default().wrap_server_handshake(duplex(64).0);
    assert!(live.evict_as("banned", 4000, ""));
    assert_eq!(live.evicted().await.label(), "banned");

    let layer = HeartbeatLayer::default();
    let registry = layer.registry();
    let (io, peer) = script();
    let (mut stream, live) = layer.wrap_server(io);
    // Half a frame, at whose end the drain would evict the connection.
    let hello = frame(0x80 | TEXT, None, b"hello");
    tokio::io::AsyncWriteExt::write_all(&mut stream, &hello[..3])
        .await
        .unwrap();
    let drain = tokio::spawn(async move { registry.drain(Drain::default()).await });
    tokio::task::yield_now().await;
    assert_eq!(live.reason(), None);
    assert!(live.evict_as("operator", 4000, ""));
    assert_eq!(live.evicted().await.label(), "operator");
    let report = within("the drain", drain).await.unwrap();
    assert_eq!((report.already_gone(), report.total()), (1, 1));
    drop((stream, peer));
}
