//! Cost that the wrapper adds to a poll, over an in-memory transport.
//!
//! The transport always has a frame to read, always accepts one, and copies the bytes as a kernel
//! would. The baseline of each group, `bare`, polls this transport directly. `wrapped` polls it
//! through `HeartbeatLayer::wrap_server`, which adds the connection's lock, the scanner and calls
//! of `Instant::now` (`stream/clock` measures one). With a `ping outstanding`, the scanner also
//! checks whether a received frame is the pong.
//!
//! One iteration is one poll, which transfers one frame. No system call is made, so the ratios are
//! far worse than with real sockets. Compare the difference in nanoseconds per poll.

use std::hint::black_box;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, timeout};
use tower_ws_liveness::{HeartbeatLayer, Liveness, LivenessStream, ProofOfLife};

use crate::{frame, size};

pub(crate) fn run(criterion: &mut Criterion) {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    criterion.bench_function("stream/clock", |bencher| {
        let _entered = runtime.enter();
        bencher.iter(Instant::now);
    });
    for payload in [125, 64 * 1024] {
        let mut bare = EndlessFrames::new(payload, Gate::default());
        let (mut quiet, _) = wrapped(&runtime, payload, false);
        let (mut pinged, live) = wrapped(&runtime, payload, true);
        assert_eq!(live.stats().pings_sent(), 1);

        let mut group = criterion.benchmark_group(format!("stream/read {}", size(payload)));
        reads(&mut group, "bare", &mut bare, payload);
        reads(&mut group, "wrapped", &mut quiet, payload);
        reads(
            &mut group,
            "wrapped, ping outstanding",
            &mut pinged,
            payload,
        );
        group.finish();

        let mut group = criterion.benchmark_group(format!("stream/write {}", size(payload)));
        writes(&mut group, "bare", &mut bare, payload);
        writes(&mut group, "wrapped", &mut quiet, payload);
        writes(
            &mut group,
            "wrapped, ping outstanding",
            &mut pinged,
            payload,
        );
        group.finish();
    }
}

/// Wraps a transport, with an outstanding ping if `ping` is true.
///
/// The runtime does not run after this, so the driver does not run either.
fn wrapped(
    runtime: &Runtime,
    payload: usize,
    ping: bool,
) -> (LivenessStream<EndlessFrames>, Liveness) {
    // With the default, any frame would count as the answer to the ping.
    let proof_of_life = match ping {
        true => ProofOfLife::MatchingPong,
        false => ProofOfLife::AnyBytes,
    };
    let layer = HeartbeatLayer::builder()
        .interval(Duration::from_secs(3_600))
        .timeout(Duration::from_secs(3_600))
        .proof_of_life(proof_of_life)
        .build()
        .expect("a valid configuration");
    runtime.block_on(async {
        let gate = Gate::default();
        gate.set_shut(ping);
        let (stream, live) = layer.wrap_server(EndlessFrames::new(payload, gate.clone()));
        if ping {
            let pong = timeout(Duration::from_millis(50), live.ping()).await;
            assert!(pong.is_err(), "no pong arrives");
        }
        gate.set_shut(false);
        (stream, live)
    })
}

fn reads<T: AsyncRead + Unpin>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    io: &mut T,
    payload: usize,
) {
    let mut room = frame(payload, true);
    group.throughput(Throughput::Bytes(room.len() as u64));
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            let mut buf = ReadBuf::new(black_box(&mut room));
            let read = Pin::new(&mut *io).poll_read(&mut noop_context(), &mut buf);
            assert!(
                matches!(read, Poll::Ready(Ok(()))),
                "a frame is always ready"
            );
            assert_eq!(buf.remaining(), 0, "one read returns one frame");
        });
    });
}

fn writes<T: AsyncWrite + Unpin>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    io: &mut T,
    payload: usize,
) {
    let frame = frame(payload, false);
    group.throughput(Throughput::Bytes(frame.len() as u64));
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            let written = Pin::new(&mut *io).poll_write(&mut noop_context(), black_box(&frame));
            assert!(matches!(written, Poll::Ready(Ok(len)) if len == frame.len()));
        });
    });
}

fn noop_context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// A transport whose peer sends the same frame forever and accepts every write.
struct EndlessFrames {
    frame: Box<[u8]>,
    position: usize,
    sink: Box<[u8]>,
    gate: Gate,
}

/// Blocks reads of a transport while it is shut, so that the driver has nothing to read ahead.
#[derive(Clone, Default)]
struct Gate(Arc<AtomicBool>);

impl Gate {
    fn set_shut(&self, shut: bool) {
        self.0.store(shut, Ordering::Relaxed);
    }

    fn is_shut(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl EndlessFrames {
    fn new(payload: usize, gate: Gate) -> Self {
        let frame = frame(payload, true).into_boxed_slice();
        Self {
            sink: frame.clone(),
            frame,
            position: 0,
            gate,
        }
    }
}

impl AsyncRead for EndlessFrames {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Registers no waker: the bench polls again after it opens the gate.
        if this.gate.is_shut() {
            return Poll::Pending;
        }
        let left = &this.frame[this.position..];
        let count = left.len().min(buf.remaining());
        buf.put_slice(&left[..count]);
        this.position += count;
        if this.position == this.frame.len() {
            this.position = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for EndlessFrames {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sink = &mut self.get_mut().sink;
        let count = buf.len().min(sink.len());
        sink[..count].copy_from_slice(&buf[..count]);
        black_box(sink);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
