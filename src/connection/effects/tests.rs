use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Builder;
use tokio::time::sleep;

use crate::logs::Logs;
use crate::monitor::{CloseFrame, Reason};
use crate::{Health, HeartbeatLayer, HeartbeatLayerBuilder, Registry};

/// A transport that panics at one of its polls.
#[derive(Clone, Default)]
struct Panicking(Arc<Mutex<Script>>);

#[derive(Default)]
struct Script {
    /// Returns malformed bytes once, and panics at the next read.
    reads: Option<u32>,
    panics_at_ping: bool,
}

impl Panicking {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncRead for Panicking {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut script = self.script();
        let Some(reads) = &mut script.reads else {
            return Poll::Pending;
        };
        *reads += 1;
        assert!(*reads < 2, "a scripted panic in a read");
        buf.put_slice(&[0xff; 4]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Panicking {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut script = self.script();
        let panics = script.panics_at_ping && bytes[0] == 0x89;
        script.panics_at_ping &= !panics;
        drop(script);
        assert!(!panics, "a scripted panic in the write of a ping");
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn heartbeat() -> HeartbeatLayerBuilder {
    HeartbeatLayer::builder()
        .interval(Duration::from_secs(1))
        .timeout(Duration::from_secs(1))
        .jitter(0.0)
}

#[tokio::test(start_paused = true)]
async fn a_panic_later_in_the_same_visit_loses_no_log_line() {
    let logs = Logs::keep();
    let io = Panicking::default();
    let (_stream, live) = heartbeat().build().unwrap().wrap_server(io.clone());
    sleep(Duration::from_millis(500)).await;
    io.script().reads = Some(0);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(live.health(), Health::Ended);
    let lines = logs.lines();
    assert!(lines.iter().any(|line| line.contains("malformed frame")));
}

#[tokio::test(start_paused = true)]
async fn a_caught_panic_at_the_boundary_leaves_the_eviction_deferred() {
    let frame = || CloseFrame {
        code: 1001,
        reason: "".into(),
    };
    let io = Panicking::default();
    let layer = heartbeat().handler_stall_timeout(None).build().unwrap();
    let (mut stream, live) = layer.wrap_server(io.clone());
    let mut write = |bytes| {
        let cx = &mut Context::from_waker(Waker::noop());
        Pin::new(&mut stream).poll_write(cx, bytes)
    };
    assert!(write(b"\x82\x05he").is_ready());
    // A ping is due and waits for the end of the frame.
    sleep(Duration::from_millis(1_500)).await;
    assert!(live.evict_at_boundary(Reason::Drained, frame()));
    io.script().panics_at_ping = true;
    assert!(catch_unwind(AssertUnwindSafe(|| write(b"llo"))).is_err());
    assert!(!live.evict_at_boundary(Reason::Drained, frame()), "twice");
    assert_ne!(live.health(), Health::Ended);
}

#[test]
fn a_runtime_that_shuts_down_during_the_opening_leaves_no_lifetime() {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let handle = runtime.handle().clone();
    let _entered = handle.enter();
    // Starts the driver's task, which the shutdown below drops.
    let first = HeartbeatLayer::default().wrap_server(Panicking::default());
    let registry = Registry::new();
    let layer = heartbeat().registry(registry.clone()).build().unwrap();
    let runtime = Mutex::new(Some(runtime));
    // This hook runs while the connection opens.
    registry.on_high_water(0, move |_: &Registry, _: &_| {
        let runtime = runtime.lock().unwrap().take().unwrap();
        runtime.shutdown_timeout(Duration::from_secs(20));
    });
    let (_stream, live) = layer.wrap_server(Panicking::default());
    assert_eq!(
        live.metadata().reason(),
        Some(Reason::HandlerDropped),
        "there is no driver"
    );
    assert_eq!(live.idle_for(), Duration::ZERO);
    drop(first);
}
