//! Fairness between the connections of one runtime.
//!
//! Neither a peer that never stops sending nor a handler that blocks its worker thread delays the others.

use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};
use tower_ws_liveness::{Eviction, HeartbeatLayer, Liveness};

use crate::script::{PONG, Peer, Stream, frame, heartbeat, ms, script};

/// A transport on which there is always one more frame.
struct Flood(Arc<Counts>);

impl Drop for Flood {
    fn drop(&mut self) {
        self.0.dropped.store(true, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Counts {
    /// Reads since somebody else had a turn.
    reads: AtomicUsize,
    most: AtomicUsize,
    dropped: AtomicBool,
}

/// So many reads without anybody else's turn are enough to say that there will be none.
const ENDLESS: usize = 100_000;

impl Counts {
    fn turn(&self) {
        let reads = self.reads.swap(0, Ordering::Relaxed);
        self.most.fetch_max(reads, Ordering::Relaxed);
    }
}

impl AsyncRead for Flood {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Otherwise a failing test would not end: the stream does.
        if self.0.reads.fetch_add(1, Ordering::Relaxed) < ENDLESS {
            buf.put_slice(&[0x82, 0x80, 1, 2, 3, 4]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Flood {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_flooding_peer_that_is_kicked_starves_nobody_and_is_out_in_time() {
    let layer = HeartbeatLayer::builder()
        .close_timeout(Duration::from_millis(100))
        .build()
        .unwrap();
    let counts = Arc::new(Counts::default());
    let (_stream, live) = layer.wrap_server(Flood(Arc::clone(&counts)));
    assert!(live.evict(4000, "enough"));

    // The peer does not answer the Close frame: it is read out until the time is up.
    let out = async {
        while !counts.dropped.load(Ordering::Relaxed) {
            yield_now().await;
            counts.turn();
        }
    };
    timeout(Duration::from_secs(20), out).await.unwrap();
    let most = counts.most.load(Ordering::Relaxed);
    assert!(most > 0, "it did come to that");
    assert!(most < 1_000, "{most} reads before anybody else had a turn");
}

// ---- handlers that block their worker thread ---------------------------------------------------

/// What a handler does with a connection before it blocks its thread.
type Act = fn(Stream, Liveness, &Peer);

/// How long the tests wait for an eviction: many times the time that it should take.
const PATIENCE: Duration = Duration::from_secs(5);

fn workers(count: usize) -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(count)
        .enable_all()
        .build()
        .unwrap()
}

/// Waits until the driver's task sleeps, so that the handler's act wakes it. If the task were awake, the
/// test would prove nothing.
async fn driver_sleeps() {
    sleep(ms(20)).await;
}

/// Lets one handler after the other do its act and block its thread, on a runtime with one worker more
/// than handlers, and asserts that the dead peer of another connection is evicted in the meantime.
fn assert_neighbour_is_evicted(acts: &[Act]) {
    let runtime = workers(acts.len() + 1);
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap();
    let evicted = runtime.block_on(async {
        let pinging = heartbeat().interval(ms(10)).timeout(ms(60_000));
        let pinging = pinging.build().unwrap();
        let mut others = Vec::new();
        for _ in acts {
            let (io, peer) = script();
            let (stream, live) = pinging.wrap_server(io);
            others.push((stream, live, peer));
        }
        driver_sleeps().await;
        let (io, _peer) = script();
        let (_stream, live) = heartbeat().build().unwrap().wrap_server(io);
        for (act, (stream, other, peer)) in acts.iter().copied().zip(others) {
            driver_sleeps().await;
            let (acted, blocks) = oneshot::channel();
            let gate = Arc::clone(&gate);
            tokio::spawn(async move {
                act(stream, other, &peer);
                acted.send(()).unwrap();
                drop(gate.lock().unwrap());
            });
            blocks.await.unwrap();
        }
        timeout(PATIENCE, live.evicted()).await
    });
    drop(closed);
    let eviction = evicted.expect("a verdict while other workers are free");
    assert_eq!(eviction.reason().as_str(), "heartbeat_timeout");
}

fn evict(stream: Stream, live: Liveness, _: &Peer) {
    assert!(live.evict(4_000, "bye"));
    // Its drop would be another event.
    std::mem::forget(stream);
}

fn ping(stream: Stream, live: Liveness, _: &Peer) {
    let ping = pin!(live.ping());
    let polled = ping.poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_pending());
    std::mem::forget(stream);
}

fn open(stream: Stream, _: Liveness, _: &Peer) {
    std::mem::forget(stream);
    let (io, _peer) = script();
    let layer = heartbeat().interval(ms(10)).build().unwrap();
    std::mem::forget(layer.wrap_server(io));
}

fn shorten(stream: Stream, live: Liveness, _: &Peer) {
    live.set_timeout(ms(1)).unwrap();
    std::mem::forget(stream);
}

/// As when the peer is a task of the same runtime: a stream of HTTP/2, or one in memory.
fn receive_pong(stream: Stream, _: Liveness, peer: &Peer) {
    peer.send(&frame(0x80 | PONG, Some([0; 4]), &peer.last_ping()));
    std::mem::forget(stream);
}

#[test]
fn a_handler_that_wakes_the_driver_and_blocks_delays_no_verdict() {
    for act in [evict, ping, open, shorten, receive_pong] as [Act; 5] {
        assert_neighbour_is_evicted(&[act]);
    }
}

#[test]
fn handlers_that_block_one_after_the_other_delay_no_verdict() {
    assert_neighbour_is_evicted(&[evict, evict, evict]);
    assert_neighbour_is_evicted(&[evict, ping, open]);
}

#[test]
fn the_task_that_opens_the_first_connection_and_blocks_delays_no_verdict() {
    let runtime = workers(2);
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap();
    let evicted = runtime.block_on(async {
        let (opened, opens) = oneshot::channel();
        let gate = Arc::clone(&gate);
        tokio::spawn(async move {
            let (io, _peer) = script();
            let (stream, live) = heartbeat().build().unwrap().wrap_server(io);
            opened.send(live).unwrap();
            drop(gate.lock().unwrap());
            drop(stream);
        });
        let live = opens.await.unwrap();
        timeout(PATIENCE, live.evicted()).await
    });
    drop(closed);
    evicted.expect("a verdict while another worker is free");
}

/// The driver yields between two batches of connections, and its worker goes on with the handlers
/// whose reads it has just made fail.
#[test]
fn a_handler_that_blocks_the_worker_of_the_driver_delays_no_verdict() {
    let runtime = workers(2);
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap();
    let driver = Arc::new(OnceLock::new());
    let blocked = Arc::new(AtomicBool::new(false));
    let evicted = runtime.block_on(async {
        let thread = Arc::clone(&driver);
        let hook = move |_: &Eviction| {
            thread.get_or_init(|| thread::current().id());
        };
        let layer = heartbeat().on_evict(hook).build().unwrap();
        let mut connections = Vec::new();
        for _ in 0..100 {
            let (io, peer) = script();
            let (mut stream, live) = layer.wrap_server(io);
            let (gate, driver) = (Arc::clone(&gate), Arc::clone(&driver));
            let blocked = Arc::clone(&blocked);
            tokio::spawn(async move {
                assert!(stream.read_u8().await.is_err());
                let is_beside_driver = driver.get() == Some(&thread::current().id());
                if is_beside_driver && !blocked.swap(true, Ordering::Relaxed) {
                    drop(gate.lock().unwrap());
                }
            });
            connections.push((live, peer));
        }
        timeout(PATIENCE, async {
            for (live, _) in &connections {
                live.evicted().await;
            }
        })
        .await
    });
    drop(closed);
    evicted.expect("all verdicts while a worker is free");
    assert!(blocked.load(Ordering::Relaxed), "it did come to that");
}
