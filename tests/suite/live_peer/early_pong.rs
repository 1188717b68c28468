//! A pong that arrives before the driver has polled for it.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tower_ws_liveness::HeartbeatLayer;

/// A transport whose peer answers a ping within the write of that ping.
#[derive(Default)]
struct InstantPong {
    inbound: VecDeque<u8>,
    reader: Option<Waker>,
}

impl AsyncRead for InstantPong {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.inbound.is_empty() {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        while let Some(byte) = self.inbound.front().filter(|_| buf.remaining() > 0) {
            buf.put_slice(&[*byte]);
            self.inbound.pop_front();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for InstantPong {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        frame: &[u8],
    ) -> Poll<io::Result<usize>> {
        assert_eq!(frame[..2], [0x89, 8], "whole pings only");
        // A pong masked with a zero key.
        self.inbound.extend([0x8A, 0x88, 0, 0, 0, 0]);
        self.inbound.extend(&frame[2..]);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(frame.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn an_immediate_pong_starts_a_new_interval_and_gives_a_round_trip() {
    let second = Duration::from_secs(1);
    let layer = HeartbeatLayer::builder().interval(second).timeout(second);
    let layer = layer.jitter(0.0).build().unwrap();
    let (mut stream, live) = layer.wrap_server(InstantPong::default());
    let reading = tokio::spawn(async move { stream.read(&mut [0; 64]).await });
    tokio::time::sleep(second * 10 + second / 2).await;
    assert_eq!(live.stats().pings_sent(), 10);
    assert!(live.rtt().is_some(), "no round trip was measured");
    reading.abort();
}
