//! A peer that never stops sending, and is being shown out: the others of its runtime have their
//! turns meanwhile.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::yield_now;
use tokio::time::timeout;
use tower_ws_liveness::HeartbeatLayer;

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
