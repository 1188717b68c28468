//! Bytes accepted before the end reach a peer that is still sending.
//!
//! If bytes arrive at a closed socket, or are unread when it is closed, the kernel resets the
//! connection and discards what was still to be sent.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::routing::any;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::sleep;
use tower_ws_liveness::{Drain, HeartbeatLayer, IdleTimeoutLayer, Liveness, Traffic};

use crate::support::raw::{BINARY, CLOSE, Frame, PING, PONG, RawClient};
use crate::support::{Server, bytes_route, ms, report_liveness, within};

/// A client with a small receive buffer, like a slow link or a busy program.
async fn slow(addr: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(2_048).unwrap();
    socket.connect(&addr.into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let socket = TcpStream::from_std(socket.into()).unwrap();
    socket.set_nodelay(true).unwrap();
    socket
}

/// What a client received: whole messages, the code of the last frame if that was a Close, and how
/// the transport ended.
#[derive(Debug, Default)]
struct Received {
    messages: usize,
    code: Option<u16>,
    failed: Option<io::ErrorKind>,
}

// The handler ends the connection while a ping is unanswered.

const LAST_MESSAGES: usize = 28;
const LAST_MESSAGE_BYTES: usize = 512;

/// Sends the last messages and a Close frame, and drops the socket.
async fn send_last_messages(mut socket: WebSocket) {
    for n in 0..LAST_MESSAGES {
        let message = Message::binary(vec![n as u8; LAST_MESSAGE_BYTES]);
        socket.send(message).await.unwrap();
    }
    let close = CloseFrame {
        code: 1000,
        reason: "bye".into(),
    };
    socket.send(Message::Close(Some(close))).await.unwrap();
}

/// Reads to the end. Answers each ping when it is read, then pauses as on a network with latency.
async fn read_all(mut client: RawClient) -> Received {
    let mut received = Received::default();
    loop {
        let frame = match within("a frame", client.read_frame()).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return received,
            Err(error) => {
                received.failed = Some(error.kind());
                return received;
            }
        };
        received.code = frame.close_code();
        match frame.opcode {
            BINARY => received.messages += 1,
            PING => {
                // The server may have closed the socket.
                let _ = client.send(&Frame::new(PONG, frame.payload)).await;
                sleep(ms(20)).await;
            }
            CLOSE => {}
            other => panic!("{other}"),
        }
    }
}

fn pings_soon() -> HeartbeatLayer {
    let layer = HeartbeatLayer::builder().interval(ms(100)).jitter(0.0);
    layer.timeout(ms(10_000)).build().unwrap()
}

#[tokio::test]
async fn the_last_messages_of_a_handler_arrive_as_without_the_layer() {
    for layered in [false, true] {
        let (begin, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (handler_begin, handler_done) = (Arc::clone(&begin), Arc::clone(&done));
        let route = any(move |ws: WebSocketUpgrade| async move {
            ws.on_upgrade(move |socket: WebSocket| async move {
                handler_begin.notified().await;
                send_last_messages(socket).await;
                handler_done.notify_one();
            })
        });
        let mut app = Router::new().route("/ws", route);
        if layered {
            app = app.layer(pings_soon());
        }
        let server = Server::start(app).await;
        let client = RawClient::handshake(slow(server.addr).await, "/ws").await;
        // The client does not read for 150 ms. A ping arrives, and then the last messages.
        sleep(ms(150)).await;
        begin.notify_one();
        within("the handler", done.notified()).await;
        sleep(ms(50)).await;
        let received = read_all(client).await;
        let case = format!("layered: {layered}, {received:?}");
        assert_eq!(received.messages, LAST_MESSAGES, "{case}");
        assert_eq!(received.code, Some(1000), "{case}");
        assert_eq!(received.failed, None, "{case}");
    }
}

/// The same over a wrapped stream, without HTTP.
#[tokio::test]
async fn the_last_messages_over_a_wrapped_stream_arrive() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(slow(addr), listener.accept());
    let (mut stream, live) = pings_soon().wrap_server(accepted.unwrap().0);
    while live.stats().pings_sent() == 0 {
        sleep(ms(10)).await;
    }
    for n in 0..LAST_MESSAGES {
        let message = Frame::new(BINARY, vec![n as u8; LAST_MESSAGE_BYTES]).unmasked();
        stream.write_all(&message).await.unwrap();
    }
    let close = Frame::close(1000, "bye").unmasked();
    stream.write_all(&close).await.unwrap();
    drop(stream);
    let received = read_all(RawClient::over(client)).await;
    assert_eq!(received.messages, LAST_MESSAGES, "{received:?}");
    assert_eq!(received.code, Some(1000), "{received:?}");
    assert_eq!(received.failed, None, "{received:?}");
}

// An eviction, while the peer reads slowly and sends as fast as it can.

/// More than the client's receive buffer holds, and less than the server's send buffer.
const BACKLOG_MESSAGES: usize = 24;
const BACKLOG_MESSAGE_BYTES: usize = 4_096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Evict,
    Idle,
    Drain,
}

/// Writes a backlog of messages, and then waits in the middle of a frame or between two.
struct Handler {
    mid_frame: bool,
    /// Notified when the backlog is written.
    ready: Arc<Notify>,
    /// Lets the handler write the rest of the frame.
    finish: Arc<Notify>,
    accepted: Arc<AtomicUsize>,
}

impl Handler {
    async fn run(&self, io: TokioIo<Upgraded>, reads: bool) {
        let (mut read, mut write) = split(io);
        let message = Frame::new(BINARY, vec![7; BACKLOG_MESSAGE_BYTES]).unmasked();
        let reading = async {
            let mut buffer = vec![0; 65_536];
            while reads && read.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
            std::future::pending().await
        };
        let writing = async {
            for _ in 0..BACKLOG_MESSAGES {
                write.write_all(&message).await.unwrap();
                self.accepted.fetch_add(1, Ordering::SeqCst);
            }
            let (part, rest) = message.split_at(if self.mid_frame {
                BACKLOG_MESSAGE_BYTES / 2
            } else {
                0
            });
            write.write_all(part).await.unwrap();
            self.ready.notify_one();
            self.finish.notified().await;
            if self.mid_frame && write.write_all(rest).await.is_ok() {
                self.accepted.fetch_add(1, Ordering::SeqCst);
            }
            std::future::pending().await
        };
        tokio::select! {
            () = reading => {}
            () = writing => {}
        }
    }
}

/// Sends far more than it reads, and does not read while a send is pending. It stops sending at the
/// server's Close frame (RFC 6455 section 5.5.1).
async fn flood_server(mut client: RawClient, flood: Frame) -> Received {
    let mut received = Received::default();
    let flood = flood.masked().repeat(16_384 / flood.masked().len());
    let mut may_send = true;
    loop {
        if may_send {
            // The server may have closed its side.
            may_send = client.send_bytes(&flood).await.is_ok();
            sleep(ms(1)).await;
        }
        match client.read_frame().await {
            Ok(Some(frame)) => match frame.opcode {
                BINARY => received.messages += 1,
                CLOSE => {
                    received.code = frame.close_code();
                    may_send = false;
                    let _ = client.send(&frame).await;
                }
                other => panic!("{other}"),
            },
            Ok(None) => return received,
            Err(error) => {
                received.failed = Some(error.kind());
                return received;
            }
        }
    }
}

async fn end(cause: Cause, live: &Liveness, layer: &HeartbeatLayer, finish: &Notify) {
    match cause {
        Cause::Evict => assert!(live.evict(4000, "evicted")),
        Cause::Idle => {
            within("the idle timeout", live.evicted()).await;
        }
        Cause::Drain => {
            let (registry, drain) = (layer.registry(), Drain::default());
            let draining = tokio::spawn(async move { registry.drain(drain).await });
            within("the drain", live.draining()).await;
            // The eviction waits for the end of the frame.
            finish.notify_one();
            let report = within("the report", draining).await.unwrap();
            assert_eq!((report.clean(), report.total()), (1, 1), "{report:?}");
        }
    }
}

async fn no_byte_is_lost(cause: Cause, mid_frame: bool) {
    let case = format!("{cause:?}, in the middle of a frame: {mid_frame}");
    let handler = Arc::new(Handler {
        mid_frame,
        ready: Arc::new(Notify::new()),
        finish: Arc::new(Notify::new()),
        accepted: Arc::default(),
    });
    let (ready, finish) = (Arc::clone(&handler.ready), Arc::clone(&handler.finish));
    let accepted = Arc::clone(&handler.accepted);
    // The idle timeout starts at the last read, so bytes must be read first.
    let reads = cause == Cause::Idle;
    let (route, mut handles) = report_liveness(bytes_route(move |io| {
        let handler = Arc::clone(&handler);
        async move { handler.run(io, reads).await }
    }));
    // Without tuning, the kernel's send buffer holds all that the handler writes.
    let layer = HeartbeatLayer::builder().tune_tcp(false).build().unwrap();
    let idle = match cause {
        Cause::Idle => ms(300),
        Cause::Evict | Cause::Drain => ms(60_000),
    };
    let idle = IdleTimeoutLayer::builder()
        .timeout(idle)
        .watch(Traffic::Outbound);
    let app = Router::new()
        .route("/ws", route)
        .layer(layer.clone())
        .layer(idle.build().unwrap());
    let server = Server::start(app).await;
    let client = RawClient::handshake(slow(server.addr).await, "/ws").await;
    let live = within("the handler", handles.recv()).await.unwrap();
    within("a backlog", ready.notified()).await;
    let flooding = tokio::spawn(flood_server(client, Frame::new(BINARY, vec![9; 1_000])));
    if cause != Cause::Idle {
        // Now bytes of the peer are unread.
        sleep(ms(50)).await;
    }
    end(cause, &live, &layer, &finish).await;
    let received = within("the client's end", flooding).await.unwrap();
    let case = format!("{case}: {received:?}");
    assert_eq!(received.failed, None, "{case}");
    assert_eq!(received.messages, accepted.load(Ordering::SeqCst), "{case}");
    let code = match cause {
        _ if mid_frame && cause != Cause::Drain => None,
        Cause::Evict => Some(4000),
        Cause::Idle | Cause::Drain => Some(1001),
    };
    assert_eq!(received.code, code, "{case}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_accepted_before_an_eviction_reach_a_flooding_peer() {
    for cause in [Cause::Evict, Cause::Idle, Cause::Drain] {
        for mid_frame in [false, true] {
            no_byte_is_lost(cause, mid_frame).await;
        }
    }
}
