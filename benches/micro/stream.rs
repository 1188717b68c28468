//! A whole connection in memory: what a poll costs more when it goes through the wrapper.
//!
//! The transport always has the next frame and always takes one, and copies as a kernel would.
//! The baseline of each group, `bare`, polls this transport itself. `wrapped` polls it through
//! `HeartbeatLayer::wrap_server`: the connection's lock, the scanner, and looks at the clock, of which
//! `stream/clock` is one. With a `ping outstanding` every frame that comes is also looked at in case it
//! is the pong.
//!
//! One iteration is one poll, which moves one frame. No system call is made, so the ratios are far
//! worse than those of real sockets: the difference counts, in nanoseconds for each poll.

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
        let mut bare = Endless::new(payload, Gate::default());
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

/// A transport behind the wrapper, and a ping on its way if that is asked for.
///
/// The runtime does not run any more after this, and so neither does the driver.
fn wrapped(runtime: &Runtime, payload: usize, ping: bool) -> (LivenessStream<Endless>, Liveness) {
    // With the default any frame would be the sign of life that is waited for.
    let proof = match ping {
        true => ProofOfLife::MatchingPong,
        false => ProofOfLife::AnyBytes,
    };
    let layer = HeartbeatLayer::builder()
        .interval(Duration::from_secs(3_600))
        .timeout(Duration::from_secs(3_600))
        .proof_of_life(proof)
        .build()
        .expect("a configuration that is allowed");
    runtime.block_on(async {
        let gate = Gate::default();
        gate.shut(ping);
        let (stream, live) = layer.wrap_server(Endless::new(payload, gate.clone()));
        if ping {
            let asked = timeout(Duration::from_millis(50), live.ping()).await;
            assert!(asked.is_err(), "nobody answers");
        }
        gate.shut(false);
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
            let read = Pin::new(&mut *io).poll_read(&mut nobody(), &mut buf);
            assert!(matches!(read, Poll::Ready(Ok(()))), "it always has more");
            assert_eq!(buf.remaining(), 0, "a read is a frame");
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
            let written = Pin::new(&mut *io).poll_write(&mut nobody(), black_box(&frame));
            assert!(matches!(written, Poll::Ready(Ok(len)) if len == frame.len()));
        });
    });
}

fn nobody() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// A transport whose peer sends the same frame for ever, and takes everything.
struct Endless {
    frame: Box<[u8]>,
    at: usize,
    sink: Box<[u8]>,
    gate: Gate,
}

/// Keeps a transport from giving anything, so that the driver has nothing to read ahead.
#[derive(Clone, Default)]
struct Gate(Arc<AtomicBool>);

impl Gate {
    fn shut(&self, shut: bool) {
        self.0.store(shut, Ordering::Relaxed);
    }

    fn is_shut(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Endless {
    fn new(payload: usize, gate: Gate) -> Self {
        let frame = frame(payload, true).into_boxed_slice();
        Self {
            sink: frame.clone(),
            frame,
            at: 0,
            gate,
        }
    }
}

impl AsyncRead for Endless {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Whoever opens the gate reads by itself, so nobody has to be woken.
        if this.gate.is_shut() {
            return Poll::Pending;
        }
        let left = &this.frame[this.at..];
        let count = left.len().min(buf.remaining());
        buf.put_slice(&left[..count]);
        this.at += count;
        if this.at == this.frame.len() {
            this.at = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Endless {
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
