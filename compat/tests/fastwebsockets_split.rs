//! fastwebsockets split between two tasks: the shared stream keeps both wakers.
//!
//! `tokio::io::split` polls one stream from the reading and from the writing task, so the layer
//! must register a waker for each direction.

#[path = "../src/support.rs"]
mod support;

use std::convert::Infallible;
use std::error::Error;
use std::time::Duration;

use fastwebsockets::upgrade::upgrade;
use fastwebsockets::{
    FragmentCollectorRead, Frame, OpCode, Payload, WebSocketError, WebSocketRead, WebSocketWrite,
};
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use support::raw::{self, BINARY, RawClient};
use support::recorder::Recorder;
use support::{ms, within};
use tokio::io::{DuplexStream, ReadHalf, WriteHalf, duplex};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tower::{ServiceBuilder, service_fn};
use tower_ws_liveness::{Evicted, HeartbeatLayer, IdleTimeoutLayer, Liveness, Reason};

type Io = TokioIo<Upgraded>;
type Read = WebSocketRead<ReadHalf<Io>>;
type Write = WebSocketWrite<WriteHalf<Io>>;

/// Payload that exceeds every buffer of hyper and of the layer.
const LARGE_PAYLOAD_BYTES: usize = 1_000_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_is_woken_while_a_write_is_pending() {
    let mut rig = Rig::start(64, ms(5)).await;
    rig.write(vec![7; LARGE_PAYLOAD_BYTES]);
    rig.client.fill(64).await.expect("an open connection");
    // The writer is inside a frame, where no ping can be sent. After this sleep a ping is due and
    // waits for the same transport.
    let pings = rig.live.stats().pings_sent();
    sleep(ms(50)).await;
    assert_eq!(rig.live.stats().pings_sent(), pings);
    for text in ["first", "second"] {
        rig.send(text.as_bytes()).await;
        assert_eq!(rig.next_read().await, text.as_bytes());
    }
    // The writer is woken too, and the ping is sent after its frame.
    let frame = rig.client.expect_frame().await;
    assert!(frame.opcode == BINARY && frame.payload == vec![7; LARGE_PAYLOAD_BYTES]);
    rig.client.live_until_ping(3).await;
    assert_eq!(rig.recorder.total(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_is_woken_while_a_read_is_pending() {
    let mut rig = Rig::start(64, ms(5)).await;
    for round in 1..=20 {
        // The read is pending. Neither the layer's pings nor their pongs complete it.
        rig.client.live_until_ping(rig.client.pings + 1).await;
        let payload = vec![round; 10_000];
        rig.write(payload.clone());
        assert_eq!(rig.client.expect_frame().await.payload, payload);
        rig.send(&[round]).await;
        assert_eq!(rig.next_read().await, [round]);
    }
    assert!(rig.live.stats().pongs_received() >= 20);
}

/// Both directions transfer at the same time, with pings in between, for several pipe capacities.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_reads_and_writes_lose_no_bytes() {
    for capacity in [16, 100, 5000] {
        let mut rig = Rig::start(capacity, ms(1)).await;
        let mut payloads = Vec::new();
        for round in 0..200_usize {
            let payload = vec![round as u8; round * 37 % 1000];
            rig.write(payload.clone());
            payloads.push(payload);
        }
        let mut answers = payloads.iter();
        for payload in &payloads {
            let mut bytes = &raw::Frame::new(BINARY, payload.clone()).masked()[..];
            while !bytes.is_empty() {
                let sent = within("room to write", rig.client.send_or_receive(bytes)).await;
                bytes = &bytes[sent.expect("an open connection")..];
                while let Some(frame) = rig.client.received_frame() {
                    if frame.opcode == BINARY {
                        assert_eq!(Some(&frame.payload), answers.next());
                    }
                }
            }
        }
        for payload in answers {
            assert_eq!(rig.client.expect_frame().await.payload, *payload);
        }
        for payload in &payloads {
            assert_eq!(rig.next_read().await, *payload);
        }
        assert_eq!(rig.recorder.total(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_eviction_wakes_both_halves() {
    let rig = Rig::start(64, ms(60_000)).await;
    rig.write(vec![7; LARGE_PAYLOAD_BYTES]);
    // Both halves are pending: there is nothing to read, and the pipe is full.
    let full = async {
        while rig.live.stats().bytes_sent() < 64 {
            sleep(ms(1)).await;
        }
    };
    within("the writer's first bytes", full).await;
    assert!(rig.live.evict(4321, "signed in elsewhere"));
    for (half, ended) in [("the reader", rig.reading), ("the writer", rig.writing)] {
        let error = within(half, ended).await.expect("no panic");
        let WebSocketError::IoError(error) = error else {
            panic!("{half}: {error}");
        };
        let evicted = error.get_ref().and_then(|error| error.downcast_ref());
        let reason = evicted.map(Evicted::reason);
        assert_eq!(reason, Some(Reason::Kicked { code: 4321 }), "{half}");
    }
    assert_eq!(
        rig.recorder.nth(1).await.reason,
        Reason::Kicked { code: 4321 }
    );
    rig.recorder.stays_at(1).await;
}

/// A connection whose handler forwards what it reads and writes what is queued.
struct Rig {
    client: RawClient<DuplexStream>,
    live: Liveness,
    recorder: Recorder,
    queue: UnboundedSender<Vec<u8>>,
    messages: UnboundedReceiver<Vec<u8>>,
    reading: JoinHandle<WebSocketError>,
    writing: JoinHandle<WebSocketError>,
}

impl Rig {
    /// Connects client and server by a pipe with `capacity` bytes in each direction.
    async fn start(capacity: usize, interval: Duration) -> Self {
        let recorder = Recorder::new();
        let heartbeat = HeartbeatLayer::builder()
            .interval(interval)
            .timeout(ms(60_000))
            .write_timeout(None)
            .on_evict(recorder.hook())
            .build()
            .expect("valid settings");
        let registry = heartbeat.registry();
        let (halves_sender, mut halves) = unbounded_channel::<(Read, Write)>();
        let service = ServiceBuilder::new()
            .layer(heartbeat)
            .layer(IdleTimeoutLayer::new(ms(60_000)))
            .service(service_fn(move |request: Request<Incoming>| {
                let (response, upgraded) = upgrade(request).expect("an opening handshake");
                let halves_sender = halves_sender.clone();
                tokio::spawn(async move {
                    let socket = upgraded.await.expect("a 101");
                    halves_sender.send(socket.split(tokio::io::split))
                });
                async { Ok::<_, Infallible>(response) }
            }));
        let (client_io, server_io) = duplex(capacity);
        let service = TowerToHyperService::new(service);
        let connection = http1::Builder::new().serve_connection(TokioIo::new(server_io), service);
        tokio::spawn(connection.with_upgrades());

        let client = RawClient::handshake(client_io, "/").await;
        let halves = within("the upgrade", halves.recv()).await;
        let (reader, writer) = halves.expect("the service runs");
        let (messages_sender, messages) = unbounded_channel();
        let (queue, payloads) = unbounded_channel();
        let id = registry.snapshot()[0].id();
        Self {
            client,
            live: registry.get(id).expect("an open connection"),
            recorder,
            queue,
            messages,
            reading: tokio::spawn(read(reader, messages_sender)),
            writing: tokio::spawn(write(writer, payloads)),
        }
    }

    /// Queues a message for the handler to write.
    fn write(&self, payload: Vec<u8>) {
        self.queue.send(payload).expect("the writer runs");
    }

    async fn send(&mut self, payload: &[u8]) {
        let frame = raw::Frame::new(BINARY, payload);
        let sent = within("room to write to the server", self.client.send(&frame)).await;
        sent.expect("an open connection");
    }

    /// Returns the next message that the handler has read.
    async fn next_read(&mut self) -> Vec<u8> {
        let message = within("a message to the handler", self.messages.recv()).await;
        message.expect("the reader runs")
    }
}

async fn read(reader: Read, messages: UnboundedSender<Vec<u8>>) -> WebSocketError {
    let mut reader = FragmentCollectorRead::new(reader);
    let mut answer = async |frame: Frame<'_>| -> Result<(), Box<dyn Error + Send + Sync>> {
        panic!("unexpected {:?} to the handler", frame.opcode)
    };
    loop {
        let frame = match reader.read_frame(&mut answer).await {
            Ok(frame) => frame,
            Err(error) => return error,
        };
        assert!(frame.opcode == OpCode::Binary, "{:?}", frame.opcode);
        // Fails once the test has ended.
        let _ = messages.send(frame.payload.to_vec());
    }
}

async fn write(mut writer: Write, mut payloads: UnboundedReceiver<Vec<u8>>) -> WebSocketError {
    while let Some(payload) = payloads.recv().await {
        let frame = Frame::binary(Payload::Owned(payload));
        if let Err(error) = writer.write_frame(frame).await {
            return error;
        }
    }
    WebSocketError::ConnectionClosed
}
