//! Fairness between the connections of one runtime.
//!
//! Neither a peer that never stops sending nor a handler that blocks its worker thread delays the
//! evictions of other connections.

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

/// A transport whose every read returns one more frame.
struct Flood(Arc<Counts>);

impl Drop for Flood {
    fn drop(&mut self) {
        self.0.dropped.store(true, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Counts {
    /// Reads since another task last ran.
    reads: AtomicUsize,
    /// The maximum of `reads`.
    most: AtomicUsize,
    dropped: AtomicBool,
}

/// After so many reads without another task's turn the stream ends, so that a failing test ends.
const MAX_READS: usize = 100_000;

impl Counts {
    /// Called when another task runs.
    fn on_turn(&self) {
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
        if self.0.reads.fetch_add(1, Ordering::Relaxed) < MAX_READS {
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
async fn an_evicted_peer_that_floods_starves_no_task_and_is_dropped_in_time() {
    let layer = HeartbeatLayer::builder()
        .close_timeout(Duration::from_millis(100))
        .build()
        .unwrap();
    let counts = Arc::new(Counts::default());
    let (_stream, live) = layer.wrap_server(Flood(Arc::clone(&counts)));
    assert!(live.evict(4000, "enough"));

    // The peer does not answer the Close frame, so its bytes are drained until the close timeout.
    let dropped = async {
        while !counts.dropped.load(Ordering::Relaxed) {
            yield_now().await;
            counts.on_turn();
        }
    };
    timeout(Duration::from_secs(20), dropped).await.unwrap();
    let most = counts.most.load(Ordering::Relaxed);
    assert!(most > 0, "the flood was read");
    assert!(most < 1_000, "{most} reads before another task ran");
}

// Handlers that block their worker thread.

/// What a handler does with a connection before it blocks its thread.
type Act = fn(Stream, Liveness, &Peer);

/// How long the tests wait for an eviction: many times its deadline.
const PATIENCE: Duration = Duration::from_secs(5);

fn workers(count: usize) -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(count)
        .enable_all()
        .build()
        .unwrap()
}

/// Waits until the driver's task sleeps, so that the handler's act wakes it. With the task awake,
/// the test would prove nothing.
async fn driver_sleeps() {
    sleep(ms(20)).await;
}

/// Makes one handler after the other do its act and block its thread, on a runtime with one worker
/// more than handlers. Asserts that the dead peer of another connection is evicted meanwhile.
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
    let eviction = evicted.expect("an eviction while other workers are free");
    assert_eq!(eviction.reason().as_str(), "heartbeat_timeout");
}

fn evict(stream: Stream, live: Liveness, _: &Peer) {
    assert!(live.evict(4_000, "bye"));
    // Dropping the stream would be another event.
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

/// As when the peer is a task of the same runtime: over HTTP/2, or in memory.
fn receive_pong(stream: Stream, _: Liveness, peer: &Peer) {
    peer.send(&frame(0x80 | PONG, Some([0; 4]), &peer.last_ping()));
    std::mem::forget(stream);
}

#[test]
fn a_handler_that_wakes_the_driver_and_blocks_delays_no_eviction() {
    for act in [evict, ping, open, shorten, receive_pong] as [Act; 5] {
        assert_neighbour_is_evicted(&[act]);
    }
}

#[test]
fn handlers_that_block_one_after_the_other_delay_no_eviction() {
    assert_neighbour_is_evicted(&[evict, evict, evict]);
    assert_neighbour_is_evicted(&[evict, ping, open]);
}

#[test]
fn a_task_that_opens_the_first_connection_and_blocks_delays_no_eviction() {
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
    evicted.expect("an eviction while another worker is free");
}

/// The driver yields between batches of connections, and its worker then polls the handlers whose
/// reads the driver has just failed.
#[test]
fn a_handler_that_blocks_the_worker_of_the_driver_delays_no_eviction() {
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
    evicted.expect("all evictions while a worker is free");
    assert!(
        blocked.load(Ordering::Relaxed),
        "a handler blocked the driver's worker"
    );
}
