//! WebSocket over HTTP/2 (RFC 8441): the same promises for each stream of a connection.

#[path = "support/h2_client.rs"]
mod h2_client;
mod support;

use std::net::SocketAddr;

use axum::Router;
use axum::extract::ws::{CloseFrame, Message as Served, WebSocket};
use axum::routing::any;
use futures_util::{SinkExt, StreamExt};
use h2::ext::Protocol;
use h2_client::{H2Client, H2Stream};
use hyper::{Method, Request, StatusCode, Version};
use hyper_util::rt::TokioIo;
use support::raw::{Answer, BINARY, Frame, RawClient};
use support::recorder::Recorder;
use support::scene::{Scene, patient, quiet};
use support::{Server, alive_tasks, echo, echo_route, ms, never_reads, until, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tower_ws_liveness::{HeartbeatLayer, Liveness, ProofOfLife, Reason};
use tungstenite::Message;
use tungstenite::protocol::Role;

const URI: &str = "http://localhost/ws";

async fn h2(addr: SocketAddr) -> H2Client {
    within("the connection", H2Client::connect(addr))
        .await
        .unwrap()
}

/// Opens a WebSocket on a stream of its own.
async fn open(h2: &H2Client) -> RawClient<H2Stream> {
    let opened = within("the response", h2.websocket(URI)).await;
    let (response, stream) = opened.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    RawClient::over(stream)
}

async fn open_on(scene: &mut Scene, h2: &H2Client) -> (RawClient<H2Stream>, Liveness) {
    let client = open(h2).await;
    (client, scene.next_live().await)
}

async fn echoes(client: &mut RawClient<H2Stream>, text: &str) {
    client.send(&Frame::text(text)).await.unwrap();
    assert_eq!(client.expect_frame().await, Frame::text(text));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_client_echoes_while_pings_come_and_go() {
    let heartbeat = quiet().interval(ms(10));
    let mut scene = Scene::start(heartbeat, patient(), echo).await;
    let h2 = h2(scene.addr()).await;
    let (response, stream) = h2.websocket(URI).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut client = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    let live = scene.next_live().await;

    let mut pings = 0;
    for round in 0..30 {
        let sent = Message::text(format!("round {round}"));
        client.send(sent.clone()).await.unwrap();
        loop {
            match within("the echo", client.next()).await.unwrap().unwrap() {
                Message::Ping(_) => pings += 1,
                message => break assert_eq!(message, sent),
            }
        }
        if round % 10 == 0 {
            let ping = within("a ping", client.next()).await.unwrap().unwrap();
            assert!(ping.is_ping(), "{ping:?}");
            pings += 1;
        }
    }
    assert!(pings >= 3, "{pings} pings");
    assert_eq!(scene.registry.len(), 1);

    client.close(None).await.unwrap();
    while let Some(Ok(_)) = within("the closing handshake", client.next()).await {}
    scene.ended(&live, Reason::PeerClosed { code: None }).await;
    scene.handlers_done(1).await;
    scene.told_once().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_stream_is_evicted_while_its_neighbour_lives() {
    for missed in [1, 3] {
        let heartbeat = quiet()
            .interval(ms(50))
            .timeout(ms(1_000))
            .missed_pings(missed);
        let mut scene = Scene::start(heartbeat, patient(), echo).await;
        let h2 = h2(scene.addr()).await;
        let (mut live_client, _) = open_on(&mut scene, &h2).await;
        let (dead_client, dead) = open_on(&mut scene, &h2).await;
        let mut dead_client = dead_client.answering(Answer::Nothing);

        let reason = Reason::HeartbeatTimeout { missed };
        tokio::select! {
            event = scene.recorder.nth(1) => {
                assert_eq!((event.id, event.reason), (dead.id(), reason));
            }
            frame = live_client.next() => panic!("the live client got {frame:?}"),
        }
        assert_eq!(scene.local.nth(1).await.reason, reason);
        // The stream ends, and the connection does not.
        dead_client.closed().await;
        scene.handlers_done(1).await;
        echoes(&mut live_client, "still here").await;
        let pings = live_client.pings + 3;
        live_client.live_until_ping(pings).await;
        assert_eq!(scene.registry.len(), 1);
        scene.recorder.stays_at(1).await;
        echoes(&mut open(&h2).await, "and so is a new one").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_stream_is_evicted_though_its_handler_never_reads() {
    let heartbeat = quiet().interval(ms(500)).timeout(ms(100));
    let mut scene = Scene::start(heartbeat, patient(), never_reads).await;
    let h2 = h2(scene.addr()).await;
    let (client, live) = open_on(&mut scene, &h2).await;
    let mut client = client.answering(Answer::Nothing);
    client.send(&Frame::text("last words")).await.unwrap();
    let reason = Reason::HeartbeatTimeout { missed: 1 };
    scene.ended(&live, reason).await;
    client.closed().await;
    scene.told_once().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_stream_lives_though_its_handler_never_reads() {
    let heartbeat = quiet()
        .interval(ms(30))
        .timeout(ms(2_000))
        .proof_of_life(ProofOfLife::MatchingPong);
    let mut scene = Scene::start(heartbeat, patient(), never_reads).await;
    let h2 = h2(scene.addr()).await;
    let (mut client, live) = open_on(&mut scene, &h2).await;
    client
        .send(&Frame::text("nobody reads this"))
        .await
        .unwrap();
    client.live_until_ping(20).await;
    until("19 pongs were seen", || live.stats().pongs_received() >= 19).await;
    assert_eq!(scene.recorder.total(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_its_peer_does_not_drain_is_stalled_and_its_neighbour_is_not() {
    // Floods whoever says so, echoes to all others.
    let handler = |mut socket: WebSocket| async move {
        while let Some(Ok(Served::Text(text))) = socket.recv().await {
            let is_flood = text.as_str() == "flood";
            let message = Served::binary(vec![0; 1 << 16]);
            while is_flood && socket.send(message.clone()).await.is_ok() {}
            if is_flood || socket.send(Served::Text(text)).await.is_err() {
                return;
            }
        }
    };
    let heartbeat = quiet().write_timeout(ms(500)).close_timeout(ms(300));
    let mut scene = Scene::start(heartbeat, patient(), handler).await;
    // What one stream leaves unread must not use up the whole connection's window.
    let mut settings = h2::client::Builder::new();
    settings.initial_connection_window_size(1 << 20);
    let io = TcpStream::connect(scene.addr()).await.unwrap();
    let h2 = H2Client::handshake(io, &settings).await.unwrap();
    let (mut neighbour, _) = open_on(&mut scene, &h2).await;
    let (mut client, live) = open_on(&mut scene, &h2).await;

    client.send(&Frame::text("flood")).await.unwrap();
    let event = scene.recorder.nth(1).await;
    assert_eq!((event.id, event.reason), (live.id(), Reason::WriteStalled));
    scene.handlers_done(1).await;
    echoes(&mut neighbour, "I do read").await;
    assert_eq!(scene.registry.len(), 1);
    scene.recorder.stays_at(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_megabytes_both_ways_arrive_unchanged() {
    let heartbeat = quiet().interval(ms(3));
    let mut scene = Scene::start(heartbeat, patient(), echo).await;
    let h2 = h2(scene.addr()).await;
    let (mut client, _) = open_on(&mut scene, &h2).await;
    for round in 0..3_u32 {
        let payload: Vec<u8> = (0..3_000_000_u32)
            .map(|n| (n.wrapping_add(round) % 251) as u8)
            .collect();
        let sent = Frame::new(BINARY, payload);
        client.send(&sent).await.unwrap();
        assert!(client.expect_frame().await == sent, "the message changed");
        let pings = client.pings + 1;
        client.live_until_ping(pings).await;
    }
    assert_eq!(scene.recorder.total(), 0);
}

#[tokio::test]
async fn the_peer_closes_one_stream() {
    let mut scene = Scene::start(quiet(), patient(), echo).await;
    let h2 = h2(scene.addr()).await;
    let (mut client, live) = open_on(&mut scene, &h2).await;
    client.send(&Frame::close(4001, "bye")).await.unwrap();
    let answer = client.closed().await.expect("the answering Close");
    assert_eq!(answer.close_code(), Some(4001));
    let reason = Reason::PeerClosed { code: Some(4001) };
    scene.ended(&live, reason).await;
    scene.handlers_done(1).await;
    scene.told_once().await;
}

#[tokio::test]
async fn the_server_closes_one_stream() {
    let handler = |mut socket: WebSocket| async move {
        let frame = CloseFrame {
            code: 4002,
            reason: "enough".into(),
        };
        socket.send(Served::Close(Some(frame))).await.unwrap();
        while let Some(Ok(_)) = socket.recv().await {}
    };
    let mut scene = Scene::start(quiet(), patient(), handler).await;
    let h2 = h2(scene.addr()).await;
    let (mut client, live) = open_on(&mut scene, &h2).await;
    let close = client.expect_frame().await;
    assert_eq!(close, Frame::close(4002, "enough"));
    client.send(&close).await.unwrap();
    client.closed().await;
    let reason = Reason::ServerClosed { code: Some(4002) };
    scene.ended(&live, reason).await;
    scene.handlers_done(1).await;
    scene.told_once().await;
}

#[tokio::test]
async fn the_application_kicks_one_stream_of_two() {
    let mut scene = Scene::start(quiet(), patient(), echo).await;
    let h2 = h2(scene.addr()).await;
    let (mut staying, _) = open_on(&mut scene, &h2).await;
    let (mut kicked, live) = open_on(&mut scene, &h2).await;
    live.evict(4003, "kicked out");
    let close = kicked.expect_frame().await;
    assert_eq!(close, Frame::close(4003, "kicked out"));
    kicked.send(&close).await.unwrap();
    kicked.closed().await;
    let event = scene.recorder.nth(1).await;
    assert_eq!(event.id, live.id());
    assert_eq!(event.reason, Reason::Kicked { code: 4003 });
    scene.handlers_done(1).await;
    echoes(&mut staying, "not me").await;
    scene.recorder.stays_at(1).await;
    assert_eq!(scene.registry.len(), 1);
}

#[tokio::test]
async fn the_handler_drops_one_stream() {
    let mut scene = Scene::start(quiet(), patient(), |socket| async { drop(socket) }).await;
    let h2 = h2(scene.addr()).await;
    let (mut client, live) = open_on(&mut scene, &h2).await;
    client.closed().await;
    scene.ended(&live, Reason::HandlerDropped).await;
    scene.told_once().await;
}

#[tokio::test]
async fn the_peer_ends_or_resets_one_stream() {
    for how in ["END_STREAM", "RST_STREAM", "drop"] {
        let mut scene = Scene::start(quiet(), patient(), echo).await;
        let h2 = h2(scene.addr()).await;
        let (mut client, live) = open_on(&mut scene, &h2).await;
        echoes(&mut client, "hello").await;
        match how {
            "END_STREAM" => client.shutdown().await.unwrap(),
            "RST_STREAM" => client.io().reset(h2::Reason::INTERNAL_ERROR),
            _ => drop(client),
        }
        let reason = scene.recorder.nth(1).await.reason;
        if how == "END_STREAM" {
            assert_eq!(reason, Reason::PeerVanished);
        }
        assert!(
            matches!(reason, Reason::PeerVanished | Reason::Transport(_)),
            "{how}: {reason:?}"
        );
        scene.ended(&live, reason).await;
        scene.handlers_done(1).await;
        scene.told_once().await;
    }
}

#[tokio::test]
async fn the_whole_connection_ends_and_each_stream_is_told_of_once() {
    let mut scene = Scene::start(quiet(), patient(), echo).await;
    let idle_tasks = alive_tasks();
    let h2 = h2(scene.addr()).await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(open_on(&mut scene, &h2).await);
    }
    for (client, _) in &mut clients {
        echoes(client, "hello").await;
    }
    assert_eq!(scene.registry.len(), 10);
    drop(h2); // as a killed process ends
    scene.recorder.nth(10).await;
    scene.handlers_done(10).await;
    for (_, live) in &clients {
        assert_eq!(scene.recorder.count(live.id()), 1);
        assert_eq!(scene.local.count(live.id()), 1);
    }
    drop(clients);
    until("no task is left", || alive_tasks() <= idle_tasks).await;
    assert!(scene.registry.is_empty());
    scene.recorder.stays_at(10).await;
}

#[tokio::test]
async fn what_is_no_websocket_passes_untouched() {
    let recorder = Recorder::new();
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(5))
        .timeout(ms(5))
        .on_evict(recorder.hook())
        .build()
        .unwrap();
    let registry = heartbeat.registry();
    let refused = any(|| async { (StatusCode::FORBIDDEN, "not here") });
    // Another protocol over extended CONNECT: echoes bytes.
    let other = any(|mut request: Request<axum::body::Body>| async move {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            let mut heard = Vec::new();
            io.read_to_end(&mut heard).await.unwrap();
            io.write_all(&heard).await.unwrap();
            io.shutdown().await.unwrap();
        });
        StatusCode::OK
    });
    let app = Router::new()
        .route("/403", refused)
        .route("/other", other)
        .route("/ws", echo_route())
        .layer(heartbeat);
    let server = Server::start(app).await;
    let idle_tasks = alive_tasks();
    let h2 = h2(server.addr).await;

    let refused = h2.websocket("http://localhost/403").await.unwrap();
    assert_eq!(refused.0.status(), StatusCode::FORBIDDEN);
    let mut bytes = Vec::new();
    let mut stream = refused.1;
    stream.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes, b"not here");

    let connect = Request::builder()
        .method(Method::CONNECT)
        .version(Version::HTTP_2)
        .uri("http://localhost/other")
        .extension(Protocol::from_static("other"))
        .body(())
        .unwrap();
    let opened = within("the response", h2.send(connect)).await;
    let (response, mut other) = opened.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let said = [&Frame::text("as if").masked()[..], &[0x8a, 0]].concat();
    other.write_all(&said).await.unwrap();
    other.shutdown().await.unwrap();
    let mut heard = Vec::new();
    let read = other.read_to_end(&mut heard);
    within("the echo", read).await.unwrap();
    assert_eq!(heard, said);
    drop((stream, other, h2));
    until("no task is left", || alive_tasks() <= idle_tasks).await;
    assert!(registry.is_empty());
    recorder.stays_at(0).await;
}
