//! Exactly one eviction on every path by which a connection can end.
//!
//! Every hook and stream gets the same eviction, and no second one after the transport is closed.

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use tokio::time::sleep;
use tower_ws_liveness::Reason;

use crate::support::raw::{Answer, CLOSE, Frame};
use crate::support::scene::{Scene, patient, quiet};
use crate::support::wire::{Wire, over_each_wire};
use crate::support::{echo, ms, never_reads, within};

over_each_wire! {
    #[tokio::test]
    the_peer_closes_with_a_code,
    the_peer_closes_without_a_code,
    the_peer_closes_and_the_handler_is_stuck,
    the_peer_ends_the_stream_without_a_close_frame,
    the_peer_ends_the_stream_in_the_middle_of_a_frame,
    the_peer_ends_the_stream_and_the_handler_is_stuck,
    the_peer_resets_the_connection,
    the_server_closes_with_a_code,
    the_server_closes_and_drops_the_socket_at_once,
    the_servers_close_is_never_answered,
    the_handler_drops_the_socket,
    the_handler_panics,
    the_heartbeat_times_out,
    the_connection_is_idle,
    the_first_message_does_not_arrive,
    the_connection_reaches_its_maximum_lifetime,
    the_peer_does_not_drain_what_the_server_writes,
    the_handler_does_not_read_what_the_peer_sends,
    the_application_kicks_the_peer,
    the_application_kicks_a_dead_peer_with_a_stuck_handler;
}

/// Sends a Close frame with code 4002, then reads to the end (RFC 6455 section 7.1.1).
async fn close_then_read(mut socket: WebSocket) {
    let frame = CloseFrame {
        code: 4002,
        reason: "enough".into(),
    };
    socket.send(Message::Close(Some(frame))).await.unwrap();
    while let Some(Ok(_)) = socket.recv().await {}
}

// The peer ends the connection.

async fn the_peer_closes_with_a_code(wire: Wire) {
    let mut scene = Scene::start(wire, quiet(), patient(), echo).await;
    let (mut client, live) = scene.connect().await;
    client.send(&Frame::close(4001, "bye")).await.unwrap();
    let answer = client.closed().await.expect("the answering Close");
    assert_eq!(answer.close_code(), Some(4001));
    let reason = Reason::PeerClosed { code: Some(4001) };
    scene.ended(&live, reason).await;
    drop(client);
    scene.handlers_done(1).await;
    scene.assert_evicted_once().await;
}

async fn the_peer_closes_without_a_code(wire: Wire) {
    let mut scene = Scene::start(wire, quiet(), patient(), echo).await;
    let (mut client, live) = scene.connect().await;
    client.send(&Frame::new(CLOSE, "")).await.unwrap();
    client.closed().await.expect("the answering Close");
    scene.ended(&live, Reason::PeerClosed { code: None }).await;
    drop(client);
    scene.handlers_done(1).await;
    scene.assert_evicted_once().await;
}

async fn the_peer_closes_and_the_handler_is_stuck(wire: Wire) {
    let heartbeat = quiet().interval(ms(50)).close_timeout(ms(100));
    let mut scene = Scene::start(wire, heartbeat, patient(), never_reads).await;
    let (mut client, live) = scene.connect().await;
    client.send(&Frame::close(4001, "bye")).await.unwrap();
    let reason = Reason::PeerClosed { code: Some(4001) };
    scene.ended(&live, reason).await;
    // Within the close timeout, though the handler does not read.
    client.closed().await;
    scene.assert_evicted_once().await;
}

async fn the_peer_ends_the_stream_without_a_close_frame(wire: Wire) {
    let mut scene = Scene::start(wire, quiet(), patient(), echo).await;
    let (mut client, live) = scene.connect().await;
    client
        .send(&Frame::text("half a word").unfinished())
        .await
        .unwrap();
    client.shutdown().await.unwrap();
    scene.ended(&live, Reason::PeerVanished).await;
    client.closed().await;
    drop(client);
    scene.handlers_done(1).await;
    scene.assert_evicted_once().await;
}

async fn the_peer_ends_the_stream_in_the_middle_of_a_frame(wire: Wire) {
    let mut scene = Scene::start(wire, quiet(), patient(), echo).await;
    let (mut client, live) = scene.connect().await;
    let frame = Frame::text("the second half is missing").masked();
    client.send_bytes(&frame[..10]).await.unwrap();
    drop(client);
    scene.ended(&live, Reason::PeerVanished).await;
    scene.handlers_done(1).await;
    scene.assert_evicted_once().await;
}

async fn the_peer_ends_the_stream_and_the_handler_is_stuck(wire: Wire) {
    let heartbeat = quiet().interval(ms(50)).close_timeout(ms(100));
    let mut scene = Scene::start(wire, heartbeat, patient(), never_reads).await;
    let (client, live) = scene.connect().await;
    drop(client);
    scene.ended(&live, Reason::PeerVanished).await;
    scene.assert_evicted_once().await;
}

async fn the_peer_resets_the_connection(wire: Wire) {
    let mut scene = Scene::start(wire, quiet(), patient(), echo).await;
    let (client, live) = scene.connect().await;
    client.reset();
    scene.ended(&live, wire.reset()).await;
    scene.handlers_done(1).await;
    scene.assert_evicted_once().await;
}

// The server ends the connection.

async fn the_server_closes_with_a_code(wire: Wire) {
    let mut scene = Scene::start(wire, quiet(), patient(), close_then_read).await;
    let (mut client, live) = scene.connect().await;
    let close = client.expect_frame().await;
    assert_eq!(close, Frame::close(4002, "enough"));
    client.send(&close).await.unwrap();
    client.closed().await;
    let reason = Reason::ServerClosed { code: Some(4002) };
    scene.ended(&live, reason).await;
    drop(client);
    scene.handlers_done(1).await;
    scene.assert_evicted_once().await;
}

async fn the_server_closes_and_drops_the_socket_at_once(wire: Wire) {
    let handler = |mut socket: WebSocket| async move {
        socket.send(Message::Close(None)).await.unwrap();
    };
    let mut scene = Scene::start(wire, quiet(), patient(), handler).await;
    let (mut client, live) = scene.connect().await;
    assert_eq!(client.expect_frame().await, Frame::new(CLOSE, ""));
    client.closed().await;
    scene
        .ended(&live, Reason::ServerClosed { code: None })
        .await;
    drop(client);
    scene.handlers_done(1).await;
    scene.assert_evicted_once().await;
}

async fn the_servers_close_is_never_answered(wire: Wire) {
    let heartbeat = quiet().close_timeout(ms(150));
    let idle = patient().close_timeout(ms(150));
    let mut scene = Scene::start(wire, heartbeat, idle, close_then_read).await;
    let (mut client, live) = scene.connect().await;
    scene.ended(&live, Reason::CloseTimeout).await;
    let close = client.closed().await.expect("the Close frame");
    assert_eq!(close, Frame::close(4002, "enough"));
    drop(client);
    scene.handlers_done(1).await;
    scene.assert_evicted_once().await;
}

async fn the_handler_drops_the_socket(wire: Wire) {
    let mut scene = Scene::start(wire, quiet(), patient(), |socket| async { drop(socket) }).await;
    let (mut client, live) = scene.connect().await;
    client.closed().await;
    scene.ended(&live, Reason::HandlerDropped).await;
    drop(client);
    scene.handlers_done(1).await;
    scene.assert_evicted_once().await;
}

async fn the_handler_panics(wire: Wire) {
    let handler = |mut socket: WebSocket| async move {
        let message = socket.recv().await;
        panic!("a handler that panics on {message:?}");
    };
    let mut scene = Scene::start(wire, quiet(), patient(), handler).await;
    let (mut client, live) = scene.connect().await;
    client.send(&Frame::text("boo")).await.unwrap();
    client.closed().await;
    scene.ended(&live, Reason::HandlerDropped).await;
    drop(client);
    scene.handlers_done(1).await;
    scene.assert_evicted_once().await;
}

// The layers end the connection.

async fn the_heartbeat_times_out(wire: Wire) {
    let heartbeat = quiet().interval(ms(50)).timeout(ms(50)).missed_pings(2);
    let mut scene = Scene::start(wire, heartbeat, patient(), echo).await;
    let (client, live) = scene.connect().await;
    let mut client = client.answering(Answer::Nothing);
    let reason = Reason::HeartbeatTimeout { missed: 2 };
    scene.ended(&live, reason).await;
    let close = client.closed().await;
    assert_eq!(close, Some(Frame::close(3008, "heartbeat timeout")));
    drop(client);
    scene.handlers_done(1).await;
    scene.assert_evicted_once().await;
}

async fn the_connection_is_idle(wire: Wire) {
    let idle = patient().timeout(ms(1500)).close_timeout(ms(300));
    let mut scene = Scene::start(wire, quiet().interval(ms(20)), idle, echo).await;
    let (mut client, live) = scene.connect().await;
    client.send(&Frame::text("one word")).await.unwrap();
    assert_eq!(client.expect_frame().await, Frame::text("one word"));
    let close = client.closed().await.expect("a Close frame");
    assert_eq!(close, Frame::close(1001, "idle timeout"));
    scene.ended(&live, Reason::IdleTimeout).await;
    drop(client);
    scene.handlers_done(1).await;
    scene.assert_evicted_once().await;
}

async fn the_first_message_does_not_arrive(wire: Wire) {
    let idle = patient().first_message(ms(300)).close_timeout(ms(300));
    let mut scene = Scene::start(wire, quiet().interval(ms(20)), idle, echo).await;
    let (mut client, live) = scene.connect().await;
    let close = client.closed().await.expect("a Close frame");
    assert_eq!(close, Frame::close(3008, "no first message in time"));
    scene.ended(&live, Reason::FirstMessageTimeout).await;
    drop(client);
    scene.handlers_done(1).await;
    scene.assert_evicted_once().await;
}

async fn the_connection_reaches_its_maximum_lifetime(wire: Wire) {
    let idle = patient().max_lifetime(ms(400)).close_timeout(ms(300));
    let mut scene = Scene::start(wire, quiet(), idle, echo).await;
    let (mut client, live) = scene.connect().await;
    let traffic = async {
        loop {
            // Fails when the server has closed. Only the reason is asserted.
            if client.send(&Frame::text("x")).await.is_err() {
                break;
            }
            match client.next().await {
                Ok(Some(frame)) if frame.opcode != CLOSE => sleep(ms(5)).await,
                _ => break,
            }
        }
    };
    within("the end", traffic).await;
    scene.ended(&live, Reason::MaxLifetime).await;
    drop(client);
    scene.handlers_done(1).await;
    scene.assert_evicted_once().await;
}

async fn the_peer_does_not_drain_what_the_server_writes(wire: Wire) {
    let handler = |mut socket: WebSocket| async move {
        let message = Message::binary(vec![0; 1 << 18]);
        while socket.send(message.clone()).await.is_ok() {}
    };
    let heartbeat = quiet()
        .interval(ms(50))
        .timeout(ms(300))
        .write_timeout(ms(400))
        .close_timeout(ms(300));
    let mut scene = Scene::start(wire, heartbeat, patient(), handler).await;
    let (mut client, live) = scene.connect().await;
    // A peer that is alive: it sends, but does not read.
    let alive = async {
        while client.send(&Frame::text("alive")).await.is_ok() {
            sleep(ms(20)).await;
        }
    };
    tokio::select! {
        _ = scene.ended(&live, Reason::WriteStalled) => {}
        () = alive => { scene.ended(&live, Reason::WriteStalled).await; }
    }
    drop(client);
    scene.handlers_done(1).await;
    scene.assert_evicted_once().await;
}

async fn the_handler_does_not_read_what_the_peer_sends(wire: Wire) {
    let heartbeat = quiet()
        .interval(ms(50))
        .handler_stall_timeout(ms(400))
        .close_timeout(ms(300));
    let mut scene = Scene::start(wire, heartbeat, patient(), never_reads).await;
    let (mut client, live) = scene.connect().await;
    client.send(&Frame::text("anything there")).await.unwrap();
    client.closed().await;
    scene.ended(&live, Reason::HandlerStalled).await;
    drop(client);
    scene.assert_evicted_once().await;
}

// The application ends the connection.

async fn the_application_kicks_the_peer(wire: Wire) {
    let mut scene = Scene::start(wire, quiet(), patient(), echo).await;
    let (mut client, live) = scene.connect().await;
    live.evict(4003, "kicked out");
    let close = client.expect_frame().await;
    assert_eq!(close, Frame::close(4003, "kicked out"));
    client.send(&close).await.unwrap();
    client.closed().await;
    scene.ended(&live, Reason::Kicked { code: 4003 }).await;
    live.evict(4004, "and again");
    drop(client);
    scene.handlers_done(1).await;
    scene.assert_evicted_once().await;
}

async fn the_application_kicks_a_dead_peer_with_a_stuck_handler(wire: Wire) {
    let heartbeat = quiet().close_timeout(ms(200));
    let idle = patient().close_timeout(ms(200));
    let mut scene = Scene::start(wire, heartbeat, idle, never_reads).await;
    let (client, live) = scene.connect().await;
    let mut client = client.answering(Answer::Nothing);
    live.evict(4003, "kicked out");
    scene.ended(&live, Reason::Kicked { code: 4003 }).await;
    // The connection closes though the peer does not answer and the handler keeps its socket.
    let close = client.closed().await.expect("a Close frame");
    assert_eq!(close, Frame::close(4003, "kicked out"));
    drop(client);
    scene.assert_evicted_once().await;
}
