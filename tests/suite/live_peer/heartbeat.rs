//! Over real sockets, unusual live peers stay connected and dead peers are evicted.

use std::future::pending;
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{Message as Served, WebSocket};
use axum::routing::MethodRouter;
use futures_util::{SinkExt, StreamExt};
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, interval};
use tower_ws_liveness::{HeartbeatLayer, IdleTimeoutLayer, ProofOfLife, Reason};
use tungstenite::Message;

use crate::support::raw::{Answer, BINARY, Frame, PONG, TEXT};
use crate::support::recorder::Recorder;
use crate::support::wire::{Wire, over_each_wire};
use crate::support::{SLACK, Server, bytes_route, echo_route, ms, until, watched_route, within};

over_each_wire! {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    a_stock_client_echoes_through_both_layers_and_an_unmodified_handler,
    a_client_that_answers_only_the_latest_ping_is_not_evicted,
    a_client_that_answers_only_the_oldest_ping_is_not_evicted,
    any_byte_proves_life_by_default,
    an_unsolicited_pong_does_not_prove_life_where_matching_pongs_are_required,
    a_client_that_sends_byte_by_byte_is_not_evicted_and_gets_its_echo,
    a_half_open_peer_is_evicted_once_and_in_time,
    outbound_traffic_does_not_hide_a_half_open_peer,
    an_upload_that_stops_in_the_middle_of_a_frame_is_evicted,
    a_live_client_is_not_evicted_with_its_dead_neighbours;
}

/// Both layers, with an idle timeout that does not expire.
fn behind_both(route: MethodRouter, heartbeat: HeartbeatLayer) -> Router {
    Router::new()
        .route("/ws", route)
        .layer(IdleTimeoutLayer::new(Duration::from_secs(300)))
        .layer(heartbeat)
}

async fn a_stock_client_echoes_through_both_layers_and_an_unmodified_handler(wire: Wire) {
    let recorder = Recorder::new();
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(20))
        .timeout(Duration::from_secs(10))
        .on_evict(recorder.hook())
        .build()
        .unwrap();
    let server = Server::start(behind_both(echo_route(), heartbeat.clone())).await;

    let mut client = server.stock_client(wire, "/ws").await;
    let mut pings = 0;
    // Repeats until pings were received between the messages.
    for round in 0_u32.. {
        let sent = if round % 2 == 0 {
            Message::text(format!("message {round}"))
        } else {
            Message::binary(round.to_be_bytes().repeat(round as usize % 1000))
        };
        client.send(sent.clone()).await.unwrap();
        loop {
            match within("the echo", client.next()).await.unwrap().unwrap() {
                Message::Ping(_) => pings += 1,
                echoed => break assert_eq!(echoed, sent),
            }
        }
        if round >= 100 && pings >= 3 {
            break;
        }
        if round >= 100 {
            let ping = within("a ping", client.next()).await.unwrap().unwrap();
            assert!(ping.is_ping(), "{ping:?}");
            pings += 1;
        }
    }
    assert_eq!(heartbeat.registry().len(), 1);
    assert_eq!(recorder.total(), 0);

    client.close(None).await.unwrap();
    while let Some(Ok(_)) = within("the closing handshake", client.next()).await {}
    let event = recorder.nth(1).await;
    assert!(
        matches!(event.reason, Reason::PeerClosed { .. }),
        "{event:?}"
    );
    recorder.stays_at(1).await;
}

async fn a_client_that_answers_only_the_latest_ping_is_not_evicted(wire: Wire) {
    assert_not_evicted_answering(wire, Answer::LatestOf(3), ProofOfLife::MatchingPong).await;
}

async fn a_client_that_answers_only_the_oldest_ping_is_not_evicted(wire: Wire) {
    assert_not_evicted_answering(wire, Answer::OldestOf(3), ProofOfLife::MatchingPong).await;
}

async fn any_byte_proves_life_by_default(wire: Wire) {
    assert_not_evicted_answering(wire, Answer::LatestOf(3), ProofOfLife::AnyBytes).await;
}

/// A client that collects several pings and answers one of them, for several rounds.
async fn assert_not_evicted_answering(wire: Wire, answer: Answer, proof: ProofOfLife) {
    let recorder = Recorder::new();
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(50))
        // The third ping is sent after two timeouts, which leaves one timeout for the answer.
        .timeout(ms(800))
        .missed_pings(3)
        .proof_of_life(proof)
        .on_evict(recorder.hook())
        .build()
        .unwrap();
    let server = Server::start(behind_both(echo_route(), heartbeat)).await;
    let mut client = server.client(wire, "/ws").await.answering(answer);

    client.live_until_ping(10).await;
    client.send(&Frame::text("still here")).await.unwrap();
    assert_eq!(client.expect_frame().await, Frame::text("still here"));
    recorder.stays_at(0).await;
}

async fn an_unsolicited_pong_does_not_prove_life_where_matching_pongs_are_required(wire: Wire) {
    let recorder = Recorder::new();
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(50))
        .timeout(ms(100))
        .missed_pings(2)
        .proof_of_life(ProofOfLife::MatchingPong)
        .on_evict(recorder.hook())
        .build()
        .unwrap();
    let server = Server::start(behind_both(echo_route(), heartbeat)).await;
    let mut client = server.client(wire, "/ws").await.answering(Answer::Nothing);
    let sending_pongs = tokio::spawn(async move {
        let mut tick = interval(ms(10));
        while client.send(&Frame::new(PONG, "not yours")).await.is_ok() {
            tick.tick().await;
        }
    });

    let event = recorder.nth(1).await;
    assert_eq!(event.reason, Reason::HeartbeatTimeout { missed: 2 });
    within("the client's end", sending_pongs).await.unwrap();
    recorder.stays_at(1).await;
}

async fn a_client_that_sends_byte_by_byte_is_not_evicted_and_gets_its_echo(wire: Wire) {
    let recorder = Recorder::new();
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(5))
        .timeout(Duration::from_secs(10))
        .proof_of_life(ProofOfLife::MatchingPong)
        .on_evict(recorder.hook())
        .build()
        .unwrap();
    let server = Server::start(behind_both(echo_route(), heartbeat)).await;
    let mut client = server.client(wire, "/ws").await.in_chunks_of(1);

    for round in 1..=20 {
        // The limits of the two shorter length encodings (RFC 6455 section 5.2).
        for len in [0, 1, 125, 126, 300 + round] {
            let sent = Frame::new(BINARY, vec![round as u8; len]);
            client.send(&sent).await.unwrap();
            assert_eq!(client.expect_frame().await, sent);
        }
        let pings = client.pings + 1;
        client.live_until_ping(pings).await;
    }
    recorder.stays_at(0).await;
}

async fn a_half_open_peer_is_evicted_once_and_in_time(wire: Wire) {
    assert_half_open_is_evicted(wire, echo_route()).await;
}

async fn outbound_traffic_does_not_hide_a_half_open_peer(wire: Wire) {
    let (route, _live) = watched_route(|mut socket: WebSocket| async move {
        let mut tick = interval(ms(10));
        // Long enough that h2 does not treat a hundred unread ones as an attack.
        let text = Served::text("text ".repeat(60));
        while socket.send(text.clone()).await.is_ok() {
            tick.tick().await;
        }
    });
    assert_half_open_is_evicted(wire, route).await;
}

/// A peer that keeps its socket open, but neither reads nor sends.
async fn assert_half_open_is_evicted(wire: Wire, route: MethodRouter) {
    let (interval, timeout, missed) = (ms(200), ms(150), 3);
    let recorder = Recorder::new();
    let heartbeat = HeartbeatLayer::builder()
        .interval(interval)
        .timeout(timeout)
        .missed_pings(missed)
        .jitter(0.0)
        .on_evict(recorder.hook())
        .build()
        .unwrap();
    let server = Server::start(behind_both(route, heartbeat.clone())).await;

    let before = Instant::now();
    let client = server.client(wire, "/ws").await;
    let after = Instant::now();

    let event = recorder.nth(1).await;
    assert_eq!(event.reason, Reason::HeartbeatTimeout { missed });
    let due = interval + timeout * missed;
    assert!(event.at - before >= due, "early: {:?}", event.at - before);
    assert!(
        event.at - after <= due + SLACK,
        "late: {:?}",
        event.at - after
    );
    until("the registry is empty", || heartbeat.registry().is_empty()).await;
    recorder.stays_at(1).await;
    drop(client);
    recorder.stays_at(1).await;
}

async fn an_upload_that_stops_in_the_middle_of_a_frame_is_evicted(wire: Wire) {
    // The peer stops in the middle of a frame and sends nothing from then on.
    let upload = Frame::new(TEXT, vec![b'x'; 1 << 20]).masked();
    let recorder = Recorder::new();
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(400))
        .timeout(ms(400))
        .on_evict(recorder.hook())
        .build()
        .unwrap();
    let server = Server::start(behind_both(echo_route(), heartbeat)).await;
    let mut client = server.client(wire, "/ws").await;
    client
        .send_bytes(&upload[..upload.len() / 2])
        .await
        .unwrap();

    let event = recorder.nth(1).await;
    assert_eq!(event.reason, Reason::HeartbeatTimeout { missed: 1 });
    recorder.stays_at(1).await;
}

async fn a_live_client_is_not_evicted_with_its_dead_neighbours(wire: Wire) {
    let recorder = Recorder::new();
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(50))
        .timeout(ms(1000))
        .on_evict(recorder.hook())
        .build()
        .unwrap();
    let route = bytes_route(|mut io| async move {
        // Reads and discards: only the layers write.
        while io.read(&mut [0; 64]).await.is_ok_and(|count| count > 0) {}
        pending::<()>().await
    });
    let server = Server::start(behind_both(route, heartbeat.clone())).await;
    let mut live = server.client(wire, "/ws").await;
    let mut dead = Vec::new();
    for _ in 0..20 {
        dead.push(server.client(wire, "/ws").await);
    }
    until("21 connections", || heartbeat.registry().len() == 21).await;

    tokio::select! {
        event = recorder.nth(20) => {
            assert_eq!(event.reason, Reason::HeartbeatTimeout { missed: 1 });
        }
        frame = live.next() => panic!("the live client got {frame:?}"),
    }
    let pings = live.pings + 3;
    live.live_until_ping(pings).await;
    assert_eq!(heartbeat.registry().len(), 1);
    let mut ids: Vec<_> = recorder.all().iter().map(|event| event.id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 20, "an id was evicted twice");
    recorder.stays_at(20).await;
}
