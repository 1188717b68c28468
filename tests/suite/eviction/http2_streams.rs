//! Ends of HTTP/2 streams on the wire, and the reasons that the application gets.
//!
//! The frames are END_STREAM, RST_STREAM and GOAWAY (RFC 9113 section 6). hyper has no way to reset
//! an upgraded stream. A stream that the layers drop ends with END_STREAM. If the peer has not
//! ended its direction by then, RST_STREAM with NO_ERROR follows (RFC 9113 section 8.1). Both are
//! queued behind the bytes that hyper has accepted, so a peer that grants no window gets neither.

use std::io;

use axum::extract::ws::{Message as Served, WebSocket};
use h2::Reason as Code;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower_ws_liveness::{HeartbeatLayerBuilder, Liveness, Reason};

use crate::support::h2_client::H2Stream;
use crate::support::h2_link::{Last, Link, URI};
use crate::support::raw::{Answer, Frame, RawClient};
use crate::support::scene::{Scene, patient, quiet};
use crate::support::wire::Wire;
use crate::support::{echo, ms, never_reads, until, within};

type Client = RawClient<H2Stream>;

/// A scene with one link and one socket on it.
async fn open_one<H, F>(
    heartbeat: HeartbeatLayerBuilder,
    handler: H,
) -> (Scene, Link, Client, Liveness)
where
    H: Fn(WebSocket) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let mut scene = Scene::start(Wire::Http2, heartbeat, patient(), handler).await;
    let link = Link::open(scene.app.clone()).await;
    let client = link.websocket().await;
    let live = scene.next_live().await;
    (scene, link, client, live)
}

async fn assert_ends_with(link: &Link, stream: u32, ends: &[Last]) {
    until("the server's last frames", || {
        link.seen.of(stream).len() >= ends.len()
    })
    .await;
    assert_eq!(link.seen.of(stream), ends);
    assert_eq!(
        link.seen.all(),
        link.seen.of(stream),
        "no other stream has ended"
    );
}

async fn assert_echoes(client: &mut Client) {
    client.send(&Frame::text("hello")).await.unwrap();
    assert_eq!(client.expect_frame().await, Frame::text("hello"));
}

// The server ends the stream.

#[tokio::test(start_paused = true)]
async fn an_orderly_end_is_end_stream() {
    let (scene, link, mut client, live) = open_one(quiet(), echo).await;
    let id = client.io().id();
    // The peer sends END_STREAM after its Close frame, so no reset follows.
    let bye = Frame::close(1000, "bye").masked();
    client.io().write_all(&bye).await.unwrap();
    client.shutdown().await.unwrap();
    let close = client.closed().await.expect("the answering Close");
    assert_eq!(close.close_code(), Some(1000));
    let reason = Reason::PeerClosed { code: Some(1000) };
    scene.ended(&live, reason).await;
    scene.handlers_done(1).await;
    assert_ends_with(&link, id, &[Last::EndStream(id)]).await;
}

#[tokio::test(start_paused = true)]
async fn an_end_without_the_peers_end_stream_is_end_stream_and_a_reset_without_error() {
    let dead = quiet().interval(ms(50)).timeout(ms(50));
    let (scene, link, client, live) = open_one(dead, never_reads).await;
    let mut client = client.answering(Answer::Nothing);
    let id = client.io().id();
    client.closed().await;
    let reason = Reason::HeartbeatTimeout { missed: 1 };
    scene.ended(&live, reason).await;
    let ends = [Last::EndStream(id), Last::Reset(id, Code::NO_ERROR)];
    assert_ends_with(&link, id, &ends).await;

    let dropped = async |socket| drop(socket);
    let (scene, link, mut client, live) = open_one(quiet(), dropped).await;
    let id = client.io().id();
    client.closed().await;
    scene.ended(&live, Reason::HandlerDropped).await;
    let ends = [Last::EndStream(id), Last::Reset(id, Code::NO_ERROR)];
    assert_ends_with(&link, id, &ends).await;
}

/// A limit of hyper: it keeps the bytes that it has accepted while the connection lasts.
#[tokio::test(start_paused = true)]
async fn a_peer_without_window_receives_the_end_when_it_grants_window() {
    let pushes = |mut socket: WebSocket| async move {
        while socket.send(Served::binary(vec![0; 1 << 20])).await.is_ok() {}
    };
    let stalls = quiet().write_timeout(ms(500)).close_timeout(ms(300));
    let (scene, link, mut client, live) = open_one(stalls, pushes).await;
    let id = client.io().id();
    scene.ended(&live, Reason::WriteStalled).await;
    scene.handlers_done(1).await;
    assert_eq!(link.seen.all(), [], "neither an end nor a reset");
    let mut rest = 0;
    while let Ok(count @ 1..) = client.io().read(&mut [0; 4_096]).await {
        rest += count;
    }
    // The stream's window and three writes of one DATA frame each: not the whole message.
    assert!(rest <= 65_535 + 4 * 16_384, "{rest} bytes were kept");
    let ends = [Last::EndStream(id), Last::Reset(id, Code::NO_ERROR)];
    assert_ends_with(&link, id, &ends).await;
}

// The peer ends the stream.

#[tokio::test(start_paused = true)]
async fn the_code_of_a_reset_decides_the_reason() {
    let broken = Reason::Transport(io::ErrorKind::BrokenPipe);
    // The kind that hyper uses for all other h2 errors.
    let other = Reason::Transport(io::ErrorKind::Other);
    for (code, reason) in [
        // A browser tab that is closed, or a client that drops its stream.
        (Code::CANCEL, Reason::PeerVanished),
        (Code::NO_ERROR, Reason::PeerVanished),
        (Code::STREAM_CLOSED, broken),
        (Code::INTERNAL_ERROR, other),
        (Code::PROTOCOL_ERROR, other),
        (Code::ENHANCE_YOUR_CALM, other),
    ] {
        let (scene, link, mut client, live) = open_one(quiet(), echo).await;
        assert_echoes(&mut client).await;
        client.io().reset(code);
        scene.ended(&live, reason).await;
        scene.handlers_done(1).await;
        scene.assert_evicted_once().await;
        let mut other = link.websocket().await;
        assert_echoes(&mut other).await;
    }
}

// The connection ends or shuts down.

#[tokio::test(start_paused = true)]
async fn the_clients_goaway_does_not_end_its_sockets() {
    let (mut scene, link, mut client, live) = open_one(quiet().interval(ms(50)), echo).await;
    link.seen.send_goaway();
    assert_echoes(&mut client).await;
    client.live_until_ping(3).await;
    assert_eq!(scene.registry.len(), 1);
    // GOAWAY limits the server's streams only, so the client may open more of its own.
    let mut second = link.websocket().await;
    let second_live = scene.next_live().await;
    assert_echoes(&mut second).await;
    assert_eq!(scene.recorder.total(), 0);
    for (client, _) in [(client, live), (second, second_live)] {
        drop(client);
    }
    scene.recorder.nth(2).await;
    scene.recorder.stays_at(2).await;
}

#[tokio::test(start_paused = true)]
async fn a_graceful_shutdown_ends_no_socket_and_completes_with_the_last() {
    let (scene, link, mut client, live) = open_one(quiet().interval(ms(50)), echo).await;
    link.shut_down();
    until("GOAWAY", || {
        link.seen.all().contains(&Last::GoAway(Code::NO_ERROR))
    })
    .await;
    assert_echoes(&mut client).await;
    client.live_until_ping(3).await;
    let refused = within("an answer", link.client.websocket(URI)).await;
    assert!(refused.is_err(), "no more streams");
    assert!(!link.served.is_finished());
    assert_eq!((scene.registry.len(), scene.recorder.total()), (1, 0));

    live.evict(1001, "going away");
    let close = client.expect_frame().await;
    assert_eq!(close.close_code(), Some(1001));
    client.send(&close).await.unwrap();
    client.closed().await;
    scene.ended(&live, Reason::Kicked { code: 1001 }).await;
    scene.handlers_done(1).await;
    drop(client);
    let served = within("the connection's end", link.served).await;
    served.unwrap().unwrap();
}

/// The server's GOAWAY with an error.
#[tokio::test(start_paused = true)]
async fn a_connection_error_ends_every_socket_once() {
    let mut scene = Scene::start(Wire::Http2, quiet(), patient(), echo).await;
    let link = Link::open(scene.app.clone()).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = link.websocket().await;
        scene.next_live().await;
        assert_echoes(&mut client).await;
        clients.push(client);
    }
    link.seen.send_invalid_window_update();
    let _ = clients[0].send(&Frame::text("x")).await;
    scene.recorder.nth(20).await;
    for event in scene.recorder.all() {
        assert!(matches!(event.reason, Reason::Transport(_)), "{event:?}");
        assert_eq!(scene.recorder.count(event.id), 1);
    }
    scene.handlers_done(20).await;
    assert!(
        link.seen
            .all()
            .contains(&Last::GoAway(Code::PROTOCOL_ERROR))
    );
    assert!(scene.registry.is_empty());
    scene.recorder.stays_at(20).await;
}
