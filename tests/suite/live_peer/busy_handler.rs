//! Busy handlers and a blocked runtime neither evict a live peer nor keep a dead one.

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::thread;

use axum::Router;
use axum::extract::ws::{Message as Served, WebSocket};
use futures_util::future::poll_immediate;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;
use tower_ws_liveness::{HeartbeatLayer, IdleTimeoutLayer, ProofOfLife, Reason, Traffic};
use tungstenite::Message;

use crate::support::raw::{Answer, Frame, RawClient};
use crate::support::recorder::Recorder;
use crate::support::wire::{Wire, over_each_wire};
use crate::support::{
    Server, bytes_route, echo, in_memory, ms, never, never_reads, until, watched_route, within,
};

over_each_wire! {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    a_live_client_of_a_handler_that_never_reads_is_not_evicted,
    a_live_client_behind_full_buffers_is_not_evicted_and_its_bytes_arrive,
    a_dead_client_of_a_handler_that_never_reads_is_evicted_and_its_socket_closed;
    #[tokio::test]
    a_pause_of_the_runtime_evicts_no_live_client,
    a_pause_of_both_sides_evicts_no_live_client;
}

async fn a_live_client_of_a_handler_that_never_reads_is_not_evicted(wire: Wire) {
    for unread in [None, Some(Frame::text("an unread message"))] {
        let recorder = Recorder::new();
        let heartbeat = HeartbeatLayer::builder()
            .interval(ms(30))
            .timeout(ms(2_000))
            .proof_of_life(ProofOfLife::MatchingPong)
            .on_evict(recorder.hook())
            .build()
            .unwrap();
        let (route, mut live) = watched_route(never_reads);
        let server = Server::start(Router::new().route("/ws", route).layer(heartbeat)).await;
        let mut client = server.client(wire, "/ws").await;
        let live = within("the handler", live.recv()).await.unwrap();
        if let Some(unread) = &unread {
            client.send(unread).await.unwrap();
        }

        // Every further ping proves that the previous pong was seen, since a missed pong evicts.
        client.live_until_ping(20).await;
        until("19 pongs were seen", || live.stats().pongs_received() >= 19).await;
        assert_eq!(recorder.total(), 0, "{:?}", recorder.all());
    }
}

async fn a_live_client_behind_full_buffers_is_not_evicted_and_its_bytes_arrive(wire: Wire) {
    // Far more than fits into all buffers on the way.
    let sent: Vec<Message> = (0..64_u8)
        .map(|n| Message::binary(vec![n; 1 << 20]))
        .collect();
    let expected = sent.clone();

    let recorder = Recorder::new();
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(30))
        .timeout(ms(1000))
        .on_evict(recorder.hook())
        .build()
        .unwrap();
    let (resume, resumed) = oneshot::channel::<()>();
    let resumed = Arc::new(Mutex::new(Some(resumed)));
    let (tx, mut rx) = mpsc::unbounded_channel();
    let (route, _live) = watched_route(move |mut socket: WebSocket| {
        let (resumed, tx) = (resumed.clone(), tx.clone());
        async move {
            let resumed = resumed.lock().unwrap().take().unwrap();
            resumed.await.unwrap();
            while let Some(Ok(message)) = socket.recv().await {
                if let Served::Binary(bytes) = message {
                    tx.send(bytes).unwrap();
                }
            }
        }
    });
    let server = Server::start(Router::new().route("/ws", route).layer(heartbeat)).await;
    let client = server.stock_client(wire, "/ws").await;
    let (mut sink, mut stream) = client.split();

    let upload = tokio::spawn(async move {
        for message in sent {
            sink.send(message).await.unwrap();
        }
        sink // kept: the connection stays open
    });
    let answering = tokio::spawn(async move { while let Some(Ok(_)) = stream.next().await {} });

    // Three times the time after which a dead peer is evicted.
    recorder.stays_at_for(0, ms(3100)).await;
    assert!(!upload.is_finished(), "the upload is still blocked");
    resume.send(()).unwrap();
    for message in expected {
        let read = within("a delayed message", rx.recv()).await.unwrap();
        assert_eq!(Message::Binary(read), message);
    }
    let _sink = within("the upload", upload).await.unwrap();
    assert_eq!(recorder.total(), 0, "{:?}", recorder.all());
    answering.abort();
}

async fn a_dead_client_of_a_handler_that_never_reads_is_evicted_and_its_socket_closed(wire: Wire) {
    for unread in [None, Some(Frame::text("last words"))] {
        let recorder = Recorder::new();
        let heartbeat = HeartbeatLayer::builder()
            .interval(ms(500))
            .timeout(ms(100))
            .missed_pings(2)
            .on_evict(recorder.hook())
            .build()
            .unwrap();
        let (route, mut live) = watched_route(never_reads);
        let server =
            Server::start(Router::new().route("/ws", route).layer(heartbeat.clone())).await;
        let mut client = server.client(wire, "/ws").await.answering(Answer::Nothing);
        let live = within("the handler", live.recv()).await.unwrap();
        if let Some(unread) = &unread {
            client.send(unread).await.unwrap();
        }

        let event = recorder.nth(1).await;
        assert_eq!(event.reason, Reason::HeartbeatTimeout { missed: 2 });
        assert_eq!(event.id, live.id());
        // The peer sees the connection closed although the handler still holds its socket.
        client.closed().await;
        assert!(client.pings <= 2, "{} pings", client.pings);
        assert!(heartbeat.registry().is_empty());
        recorder.stays_at(1).await;
    }
}

async fn a_pause_of_the_runtime_evicts_no_live_client(wire: Wire) {
    let recorder = Recorder::new();
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(100))
        .timeout(ms(1000))
        .proof_of_life(ProofOfLife::MatchingPong)
        .on_evict(recorder.hook())
        .build()
        .unwrap();
    let (route, mut live) = watched_route(echo);
    let server = Server::start(Router::new().route("/ws", route).layer(heartbeat)).await;
    let addr = server.addr;
    // The client has a thread and a runtime of its own: it answers during the pauses.
    let (stop, mut stopped) = mpsc::channel::<()>(1);
    let client = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let mut client = wire.connect(addr, "/ws").await;
            tokio::select! {
                frame = client.next() => panic!("the server sent {frame:?}"),
                _ = stopped.recv() => {}
            }
        });
    });
    let live = within("the handler", live.recv()).await.unwrap();

    // Pauses that start before the pong arrives, after it is read, and just before the next ping.
    for offset in [0, 40, 90] {
        let seen = live.stats().pings_sent();
        until("a ping", || live.stats().pings_sent() > seen).await;
        tokio::time::sleep(ms(offset)).await;
        thread::sleep(ms(1300));
    }
    never("an eviction", ms(300), recorder.reached(1)).await;
    drop(stop);
    within("the client's thread", async {
        tokio::task::spawn_blocking(move || client.join().unwrap())
            .await
            .unwrap();
    })
    .await;
}

async fn a_pause_of_both_sides_evicts_no_live_client(wire: Wire) {
    // As when the machine is suspended: no task runs until long after the ping's deadline.
    let recorder = Recorder::new();
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(50))
        .timeout(ms(600))
        .on_evict(recorder.hook())
        .build()
        .unwrap();
    let (route, mut live) = watched_route(echo);
    let app = Router::new().route("/ws", route).layer(heartbeat);
    let server = Server::start(app).await;
    let mut client = server.client(wire, "/ws").await;
    let live = within("the handler", live.recv()).await.unwrap();
    for round in 1..=3 {
        // The ping is sent, but the client, which shares this thread, has not read it yet.
        until("a ping", || live.stats().pings_sent() >= round).await;
        thread::sleep(ms(2_500));
        // The driver may run many times before the client does.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let pings = live.stats().pings_sent();
        client.live_until_ping(pings.try_into().unwrap()).await;
        assert_eq!(recorder.total(), 0, "{:?}", recorder.all());
    }
    let pings = client.pings + 2;
    client.live_until_ping(pings).await;
    recorder.stays_at(0).await;
}

/// The driver may visit a connection early, to finish a half-written ping, when the idle deadline
/// has passed but its rounded-up timer entry has not expired. It must still find a message that the
/// handler has not read.
#[tokio::test(start_paused = true)]
async fn no_connection_is_idle_before_the_driver_has_polled_it() {
    let stuck = bytes_route(async |mut io| {
        // After the client has read the response head. Leaves room for two bytes of a ping.
        sleep(ms(10)).await;
        let mut frame = vec![0x82, 60];
        frame.resize(62, 0);
        io.write_all(&frame).await.unwrap();
        // Polls a read, is woken, and does not poll again.
        let mut read = [0; 64];
        let polled = poll_immediate(pin!(io.read(&mut read))).await;
        assert!(polled.is_none());
        std::future::pending::<()>().await;
    });
    let recorder = Recorder::new();
    let idle = IdleTimeoutLayer::builder()
        .timeout(ms(10_007))
        .close_timeout(ms(10_000))
        .watch(Traffic::Inbound)
        .on_evict(recorder.hook())
        .build()
        .unwrap();
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(8_000))
        .timeout(ms(8_000))
        .close_timeout(ms(10_000))
        .jitter(0.0)
        .build()
        .unwrap();
    let app = Router::new()
        .route("/ws", stuck)
        .layer(idle)
        .layer(heartbeat);
    let mut client = RawClient::handshake(in_memory(app, 64), "/ws").await;
    sleep(ms(10_000)).await;
    client.send(&Frame::text("I am here")).await.unwrap();
    sleep(ms(20)).await;
    assert_eq!(
        recorder.total(),
        0,
        "overdue, but the driver has not visited"
    );
    client.io().read_exact(&mut [0; 3]).await.unwrap();
    sleep(ms(1_000)).await;
    assert_eq!(recorder.total(), 0);
}
