//! Backpressure over real sockets: unread bytes, stalled writers and short reads.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::ws::Message as Served;
use axum::routing::MethodRouter;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tower_ws_liveness::{Health, HeartbeatLayer, HeartbeatLayerBuilder, Liveness, Reason};

use crate::support::raw::{BINARY, Frame, PONG, RawClient};
use crate::support::recorder::Recorder;
use crate::support::wire::{Wire, over_each_wire};
use crate::support::{SLACK, Server, ms, until, watched_route, within};

over_each_wire! {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    a_writer_under_backpressure_resumes_though_pings_are_due;
}

/// Both ends of a TCP connection: the server's and the peer's.
async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (peer, accepted) = tokio::join!(TcpStream::connect(addr), listener.accept());
    let (server, peer) = (accepted.unwrap().0, peer.unwrap());
    peer.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    (server, peer)
}

fn pinging(interval: Duration, timeout: Duration) -> HeartbeatLayerBuilder {
    HeartbeatLayer::builder()
        .interval(interval)
        .timeout(timeout)
        .jitter(0.0)
}

// Bytes beyond the read-ahead.

/// A frame larger than the driver's read-ahead.
fn unread_frame() -> Vec<u8> {
    Frame::new(BINARY, vec![7; 20_000]).masked()
}

#[tokio::test]
async fn a_dead_peer_behind_full_buffers_is_detected_by_a_failed_ping() {
    let recorder = Recorder::new();
    let (interval, timeout) = (ms(100), ms(100));
    let layer = pinging(interval, timeout).on_evict(recorder.hook());
    let (server, mut peer) = tcp().await;
    let (_stream, live) = layer.build().unwrap().wrap_server(server);
    peer.write_all(&unread_frame()).await.unwrap();
    until("the handler stall is detected", || {
        live.health() == Health::HandlerStalled
    })
    .await;
    // As the kernel closes the socket of a killed process.
    drop(peer);
    let closed = Instant::now();
    let event = recorder.nth(1).await;
    assert!(matches!(event.reason, Reason::Transport(_)), "{event:?}");
    // The first ping is answered by a reset, and the write of the second reports it.
    let took = event.at - closed;
    assert!(took <= interval + 2 * timeout + SLACK, "{took:?}");
    recorder.stays_at(1).await;
}

#[tokio::test]
async fn a_live_peer_behind_full_buffers_is_not_evicted() {
    let recorder = Recorder::new();
    let layer = pinging(ms(50), ms(50)).on_evict(recorder.hook());
    let (server, peer) = tcp().await;
    let (mut stream, live) = layer.build().unwrap().wrap_server(server);
    let mut client = RawClient::over(peer);
    client.send_bytes(&unread_frame()).await.unwrap();
    let (tx, mut pings) = mpsc::unbounded_channel();
    let peer_task = tokio::spawn(async move {
        loop {
            client.live_until_ping(client.pings + 1).await;
            tx.send(client.pings).unwrap();
        }
    });
    let mut pings_reach = async |count| {
        while within("a ping", pings.recv()).await.unwrap() < count {}
    };
    // The handler has not read anything so far.
    pings_reach(20).await;
    assert_eq!(live.health(), Health::HandlerStalled);
    assert_eq!(recorder.total(), 0, "{:?}", recorder.all());
    let mut read = vec![0; unread_frame().len()];
    within("the unread bytes", stream.read_exact(&mut read))
        .await
        .unwrap();
    assert!(read == unread_frame());
    // The pongs follow the frame, and after them pings go on as usual.
    let reading = tokio::spawn(async move { stream.read(&mut [0; 64]).await });
    pings_reach(30).await;
    until("a pong is found", || live.stats().pongs_received() > 0).await;
    assert_eq!(recorder.total(), 0, "{:?}", recorder.all());
    assert!(
        !reading.is_finished(),
        "pongs are not delivered to the handler"
    );
    reading.abort();
    peer_task.abort();
}

// Writers under backpressure while pings are due.

/// A handler that sends as fast as it can, and the number of messages that it has sent.
fn pushing_route() -> (
    MethodRouter,
    mpsc::UnboundedReceiver<Liveness>,
    Arc<AtomicUsize>,
) {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let (route, lives) = watched_route(move |mut socket| {
        let count = Arc::clone(&count);
        async move {
            while socket.send(Served::binary(vec![0_u8; 4_000])).await.is_ok() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    (route, lives, sent)
}

/// The peer stops reading for several intervals, so that the handler's writes stall and pings
/// become due. When the peer reads again, the handler must resume.
async fn a_writer_under_backpressure_resumes_though_pings_are_due(wire: Wire) {
    let recorder = Recorder::new();
    let layer = pinging(ms(100), ms(15_000)).on_evict(recorder.hook());
    let (route, mut lives, sent) = pushing_route();
    let app = Router::new().route("/ws", route);
    let server = Server::start(app.layer(layer.build().unwrap())).await;
    let mut client = server.client(wire, "/ws").await;
    let live = within("the handler", lives.recv()).await.unwrap();
    for round in 0..3 {
        let blocked = async {
            loop {
                let before = sent.load(Ordering::SeqCst);
                sleep(ms(400)).await;
                if sent.load(Ordering::SeqCst) == before && before > 0 {
                    return before;
                }
            }
        };
        let before = within("the handler's writes stall", blocked).await;
        assert_eq!(live.health(), Health::WriteStalled, "round {round}");
        // More than the handler had sent by then, so it must have resumed.
        let pings = client.pings;
        let reading = async {
            let mut messages = 0;
            while messages < before + 100 {
                let frame = client.next().await.unwrap().expect("a message");
                assert_eq!((frame.opcode, frame.payload.len()), (BINARY, 4_000));
                messages += 1;
            }
        };
        let read = timeout(ms(10_000), reading).await;
        assert!(read.is_ok(), "round {round}: the handler was not woken");
        assert!(
            client.pings > pings || round > 0,
            "round {round}: a ping was due"
        );
    }
    assert_eq!(recorder.total(), 0, "{:?}", recorder.all());
}

// Many transports that return a few bytes per read.

/// A transport that returns at most so many bytes per read.
struct ShortReads(TcpStream, usize);

impl AsyncRead for ShortReads {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = vec![0; buf.remaining().min(self.1)];
        let mut few = ReadBuf::new(&mut bytes);
        let read = Pin::new(&mut self.0).poll_read(cx, &mut few);
        buf.put_slice(few.filled());
        read
    }
}

impl AsyncWrite for ShortReads {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn a_hundred_peers_that_answered_in_time_are_not_evicted_after_a_blocked_thread() {
    for step in [16 * 1024, 4, 1] {
        let recorder = Recorder::new();
        let layer = pinging(ms(100), ms(1_000)).on_evict(recorder.hook());
        let layer = layer.build().unwrap();
        let (mut all, mut peers) = (Vec::new(), Vec::new());
        for _ in 0..100 {
            let (server, peer) = tcp().await;
            all.push(layer.wrap_server(ShortReads(server, step)));
            peers.push(RawClient::over(peer));
        }
        let mut pongs = Vec::new();
        for peer in &mut peers {
            let ping = peer.expect_ping().await;
            pongs.push(Frame::new(PONG, ping).masked());
            peer.io().writable().await.unwrap();
        }
        // All pongs in one go: this thread does not yield, so the driver cannot read in between.
        for (peer, pong) in peers.iter_mut().zip(pongs) {
            assert_eq!(peer.io().try_write(&pong).unwrap(), pong.len());
        }
        // Late by less than what counts as a suspended runtime.
        std::thread::sleep(ms(1_050));
        until("all pongs are found", || {
            all.iter()
                .all(|(_, live)| live.stats().pongs_received() > 0)
                || recorder.total() > 0
        })
        .await;
        assert_eq!(recorder.total(), 0, "{step} bytes per read");
    }
}
