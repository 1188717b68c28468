//! Drains of servers over HTTP/1.1 and HTTP/2, with ordinary handlers and clients that connect.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::routing::any;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tower_ws_liveness::{Drain, DrainReport, Reason};

use crate::support::raw::{BINARY, Frame, RawClient, opening};
use crate::support::recorder::Recorder;
use crate::support::scene::{Scene, patient, quiet};
use crate::support::wire::{Client, Wire, over_each_wire};
use crate::support::{self, Server, echo, echo_route, ms, never_reads, noise, until, within};

over_each_wire! {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    clients_receive_a_close_frame_regardless_of_their_handlers,
    a_big_message_to_a_slow_reader_arrives_whole,
    a_client_that_never_reads_is_cut_at_the_deadline,
    a_handshake_that_completes_during_a_drain_is_evicted_immediately;
}

fn counts(report: DrainReport) -> (usize, usize, usize) {
    (report.clean(), report.cut(), report.already_gone())
}

/// Counts the handlers that have their socket. Before that a connection may already be registered,
/// and a drain evicts it as it opens.
#[derive(Clone, Default)]
struct Started(Arc<AtomicUsize>);

impl Started {
    fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    async fn wait_for(&self, count: usize) {
        until("the handlers have their sockets", || {
            self.0.load(Ordering::Relaxed) == count
        })
        .await;
    }
}

/// Reads until the server's Close frame, answers it, and waits for the end of the stream.
async fn complete_closing_handshake(client: &mut Client) -> Option<u16> {
    loop {
        let frame = within("a frame", client.next()).await.unwrap()?;
        let Some(code) = frame.close_code() else {
            continue;
        };
        client.send(&frame).await.unwrap();
        let end = within("the end of the stream", client.read_frame()).await;
        assert!(matches!(end, Ok(None)), "{end:?}");
        return Some(code);
    }
}

async fn clients_receive_a_close_frame_regardless_of_their_handlers(wire: Wire) {
    let started = Started::default();
    let handler = {
        let started = started.clone();
        move |socket: WebSocket| {
            started.increment();
            async move {
                if fastrand::bool() {
                    echo(socket).await;
                } else {
                    never_reads(socket).await;
                }
            }
        }
    };
    let mut scene = Scene::start(wire, quiet(), patient(), handler).await;
    let mut clients = Vec::new();
    for _ in 0..40 {
        let (mut client, _) = scene.connect().await;
        clients.push(tokio::spawn(async move {
            complete_closing_handshake(&mut client).await
        }));
    }
    started.wait_for(40).await;
    let drain = Drain::default().batch(7).pause(ms(5));
    let report = within("the drain", scene.registry.drain(drain)).await;
    assert_eq!(counts(report), (40, 0, 0));
    for client in clients {
        assert_eq!(within("the client", client).await.unwrap(), Some(1001));
    }
    for recorder in [&scene.recorder, &scene.local] {
        recorder.nth(40).await;
        recorder.stays_at(40).await;
        assert!(
            recorder
                .all()
                .iter()
                .all(|one| one.reason == Reason::Drained)
        );
    }
}

/// The handler has begun to send 8 MiB to a client that does not read yet.
async fn a_big_message_to_a_slow_reader_arrives_whole(wire: Wire) {
    const LEN: usize = 8 << 20;
    let mut scene = Scene::start(
        wire,
        quiet(),
        patient(),
        |mut socket: WebSocket| async move {
            for seed in 7.. {
                let message = Message::Binary(noise(seed, LEN).into());
                if socket.send(message).await.is_err() {
                    return;
                }
            }
        },
    )
    .await;
    let (mut client, live) = scene.connect().await;
    until("the handler is stuck in its write", || {
        live.health().to_string() == "write stalled"
    })
    .await;
    let registry = scene.registry.clone();
    let draining = tokio::spawn(async move { registry.drain(Drain::default()).await });
    until("the drain", || scene.registry.is_draining()).await;
    tokio::time::sleep(ms(50)).await;
    assert_eq!(scene.recorder.total(), 0, "it has not ended yet");

    let frame = client.expect_frame().await;
    assert_eq!(frame.opcode, BINARY);
    assert!(frame.payload == noise(7, LEN), "the payload differs");
    assert_eq!(complete_closing_handshake(&mut client).await, Some(1001));
    let report = within("the drain", draining).await.unwrap();
    assert_eq!(counts(report), (1, 0, 0));
    scene.ended(&live, Reason::Drained).await;
    scene.handlers_done(1).await;
}

async fn a_client_that_never_reads_is_cut_at_the_deadline(wire: Wire) {
    let mut scene = Scene::start(
        wire,
        quiet(),
        patient(),
        |mut socket: WebSocket| async move {
            while socket
                .send(Message::Binary(vec![0; 1 << 20].into()))
                .await
                .is_ok()
            {}
        },
    )
    .await;
    let (client, live) = scene.connect().await;
    until("the handler is stuck in its write", || {
        live.health().to_string() == "write stalled"
    })
    .await;
    let begun = tokio::time::Instant::now();
    let drain = Drain::default().deadline(ms(300));
    let report = within("the drain", scene.registry.drain(drain)).await;
    assert_eq!(counts(report), (0, 1, 0));
    assert!(begun.elapsed() >= ms(300));
    assert!(begun.elapsed() <= ms(300) + support::SLACK);
    scene.ended(&live, Reason::Drained).await;
    scene.handlers_done(1).await;
    drop(client);
}

/// The handshake reaches the handler before the drain, and is answered during it.
async fn a_handshake_that_completes_during_a_drain_is_evicted_immediately(wire: Wire) {
    let recorder = Recorder::new();
    let layer = quiet().on_evict(recorder.hook()).build().unwrap();
    let registry = layer.registry();
    let (handler_called, answer) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let slow = any({
        let (handler_called, answer) = (Arc::clone(&handler_called), Arc::clone(&answer));
        move |ws: WebSocketUpgrade| async move {
            handler_called.add_permits(1);
            let _answered = answer.acquire().await.unwrap();
            ws.on_upgrade(echo)
        }
    });
    let app = Router::new()
        .route("/ws", echo_route())
        .route("/slow", slow)
        .layer(layer);
    let server = Server::start(app).await;
    // This client keeps the drain in progress until it answers the Close frame.
    let mut silent = server.client(wire, "/ws").await;
    let late = tokio::spawn(wire.connect(server.addr, "/slow"));
    drop(
        within("the request", handler_called.acquire())
            .await
            .unwrap(),
    );
    silent.send(&Frame::text("hello")).await.unwrap();
    assert_eq!(silent.expect_frame().await, Frame::text("hello"));

    let draining = tokio::spawn({
        let registry = registry.clone();
        async move { registry.drain(Drain::default()).await }
    });
    recorder.nth(1).await;
    answer.add_permits(1);
    let mut late = within("the late handshake", late).await.unwrap();
    assert_eq!(complete_closing_handshake(&mut late).await, Some(1001));
    assert_eq!(recorder.nth(2).await.reason, Reason::Drained);
    assert_eq!(complete_closing_handshake(&mut silent).await, Some(1001));
    let report = within("the drain", draining).await.unwrap();
    assert!(report.clean() >= 1, "{report:?}");
    assert_eq!(report.cut(), 0);
    assert!(registry.is_empty());
    recorder.stays_at(2).await;
}

/// A drain begins while clients connect and disconnect as fast as they can.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_connection_escapes_a_drain() {
    let recorder = Recorder::new();
    let layer = quiet()
        .close_timeout(ms(500))
        .on_evict(recorder.hook())
        .build()
        .unwrap();
    let registry = layer.registry();
    let app = Router::new().route("/ws", echo_route()).layer(layer);
    let server = Server::start(app).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for number in 0..16 {
        let (stop, addr) = (Arc::clone(&stop), server.addr);
        clients.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let mut io = TcpStream::connect(addr).await.unwrap();
                io.write_all(opening("/ws").as_bytes()).await.unwrap();
                // The client does not parse the response. Frames may follow it immediately.
                let mut client = RawClient::over(io);
                if number % 2 == 0 {
                    let _ = client.send(&Frame::text("hello")).await;
                    let _ = client.fill(200).await;
                } else {
                    tokio::time::sleep(ms(2)).await;
                }
            }
        }));
    }
    recorder.nth(200).await;
    let drain = Drain::default()
        .batch(3)
        .pause(ms(1))
        .deadline(Duration::from_secs(2));
    let report = within("the drain", registry.drain(drain)).await;
    assert!(report.total() > 0, "{report:?}");
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        within("a client", client).await.unwrap();
    }
    until("the registry is empty", || registry.is_empty()).await;
    let events = recorder.all();
    let ids: HashSet<_> = events.iter().map(|event| event.id).collect();
    assert_eq!(ids.len(), events.len(), "evicted twice");
}

/// The drain waits up to the deadline for the pending handshake. A new handshake is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_waits_for_an_unanswered_handshake_until_the_deadline() {
    let layer = quiet().build().unwrap();
    let registry = layer.registry();
    let handler_called = Arc::new(Semaphore::new(0));
    let never = any({
        let handler_called = Arc::clone(&handler_called);
        move |_: WebSocketUpgrade| async move {
            handler_called.add_permits(1);
            std::future::pending::<axum::response::Response>().await
        }
    });
    let server = Server::start(Router::new().route("/ws", never).layer(layer)).await;
    let client = tokio::spawn(RawClient::connect(server.addr, "/ws"));
    drop(
        within("the request", handler_called.acquire())
            .await
            .unwrap(),
    );
    let begun = tokio::time::Instant::now();
    let drain = Drain::default().deadline(ms(500));
    let (report, refused) = tokio::join!(registry.drain(drain), async {
        until("the drain", || registry.is_draining()).await;
        tokio_tungstenite::connect_async(server.url("/ws")).await
    });
    assert_eq!(counts(report), (0, 0, 0));
    assert!(begun.elapsed() >= ms(500));
    match refused {
        Err(tungstenite::Error::Http(response)) => assert_eq!(response.status(), 503),
        other => panic!("{other:?}"),
    }
    client.abort();
}
