//! A peer that is so quick that its pong is there before the driver looks for it.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tower_ws_liveness::HeartbeatLayer;

/// A transport whose peer answers a ping within the write that brings it.
#[derive(Default)]
struct Quick {
    inbound: VecDeque<u8>,
    reader: Option<Waker>,
}

impl AsyncRead for Quick {
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

impl AsyncWrite for Quick {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        frame: &[u8],
    ) -> Poll<io::Result<usize>> {
        assert_eq!(frame[..2], [0x89, 8], "whole pings only");
        // Masked with zeroes.
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
async fn a_pong_that_comes_at_once_is_worth_an_interval_and_a_round_trip() {
    let second = Duration::from_secs(1);
    let layer = HeartbeatLayer::builder().interval(second).timeout(second);
    let layer = layer.jitter(0.0).build().unwrap();
    let (mut stream, live) = layer.wrap_server(Quick::default());
    let reading = tokio::spawn(async move { stream.read(&mut [0; 64]).await });
    tokio::time::sleep(second * 10 + second / 2).await;
    assert_eq!(live.stats().pings_sent(), 10);
    assert!(live.rtt().is_some(), "no round trip was measured");
    reading.abort();
}
