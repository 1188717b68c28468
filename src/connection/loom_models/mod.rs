//! loom models of a connection and the driver's real task.
//!
//! Every order of the steps of handler, driver, peer and handles, within a bound. A lost wake-up
//! leaves a thread waiting forever, which loom reports as a deadlock.

mod drains;
mod ends;
mod wakers;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use loom::sync::Condvar;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::stream::LivenessStream;
use crate::sync::modelled::block_on;
use crate::sync::{Mutex, MutexGuard};

/// A multiple of every granularity of the driver.
const TIME: Duration = Duration::from_millis(1_024);
const NEVER: Duration = Duration::from_secs(100_000);

/// What the peer sends: a text message, masked with zeros.
const FROM_PEER: [u8; 7] = [0x81, 0x81, 0, 0, 0, 0, b'p'];
/// What the handler sends.
const TO_PEER: [u8; 3] = [0x81, 0x01, b'h'];

/// A transport that keeps one waker per direction, the last one, as sockets do.
struct Wire(Arc<Line>);

/// The other end of a [`Wire`].
#[derive(Clone)]
struct Peer(Arc<Line>);

#[derive(Default)]
struct Line {
    ends: Mutex<Ends>,
    changed: Condvar,
}

#[derive(Default)]
struct Ends {
    incoming: VecDeque<u8>,
    eof: bool,
    /// How many more bytes the transport accepts.
    room: usize,
    /// A flush does not complete.
    holds: bool,
    written: Vec<u8>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    dropped: bool,
}

fn wire(room: usize) -> (Wire, Peer) {
    let line = Arc::new(Line::default());
    line.ends().room = room;
    (Wire(Arc::clone(&line)), Peer(line))
}

impl Line {
    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock().unwrap()
    }
}

impl Peer {
    fn send(&self, bytes: &[u8]) {
        let mut ends = self.0.ends();
        ends.incoming.extend(bytes);
        let reader = ends.reader.take();
        drop(ends);
        reader.into_iter().for_each(Waker::wake);
    }

    fn end(&self) {
        self.0.ends().eof = true;
        self.send(&[]);
    }

    /// Accepts `room` more bytes, and completes flushes.
    fn drain(&self, room: usize) {
        let mut ends = self.0.ends();
        ends.room += room;
        ends.holds = false;
        let writer = ends.writer.take();
        drop(ends);
        writer.into_iter().for_each(Waker::wake);
    }

    /// Waits until `look` finds something in the bytes that were written.
    fn until_written<R>(&self, look: impl Fn(&[u8]) -> Option<R>) -> R {
        let mut ends = self.0.ends();
        loop {
            if let Some(found) = look(&ends.written) {
                return found;
            }
            ends = self.0.changed.wait(ends).unwrap();
        }
    }

    fn written(&self) -> Vec<u8> {
        self.0.ends().written.clone()
    }

    fn is_transport_dropped(&self) -> bool {
        self.0.ends().dropped
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut ends = self.0.ends();
        if ends.incoming.is_empty() && !ends.eof {
            ends.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = ends.incoming.len().min(buf.remaining());
        for byte in ends.incoming.drain(..count) {
            buf.put_slice(&[byte]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut ends = self.0.ends();
        if ends.room == 0 {
            ends.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = ends.room.min(buf.len());
        ends.room -= count;
        ends.written.extend(&buf[..count]);
        drop(ends);
        self.0.changed.notify_all();
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut ends = self.0.ends();
        if ends.holds {
            ends.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    /// The peer ends its direction after ours.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Peer(Arc::clone(&self.0)).end();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let mut ends = self.0.ends();
        assert!(!ends.dropped);
        ends.dropped = true;
    }
}

// ---- the handler -------------------------------------------------------------------------------

/// Reads once.
fn read(stream: &mut LivenessStream<Wire>) -> io::Result<Vec<u8>> {
    let mut bytes = [0; 32];
    block_on(poll_fn(|cx| {
        let mut buf = ReadBuf::new(&mut bytes);
        Pin::new(&mut *stream)
            .poll_read(cx, &mut buf)
            .map_ok(|()| buf.filled().to_vec())
    }))
}

/// Reads until `count` bytes have come.
fn read_exactly(stream: &mut LivenessStream<Wire>, count: usize) -> Vec<u8> {
    let mut got = Vec::new();
    while got.len() < count {
        let bytes = read(stream).unwrap();
        assert!(!bytes.is_empty(), "the end");
        got.extend(bytes);
    }
    got
}

fn write_all(stream: &mut LivenessStream<Wire>, bytes: &[u8]) -> io::Result<()> {
    let mut from = 0;
    while from < bytes.len() {
        let write = poll_fn(|cx| Pin::new(&mut *stream).poll_write(cx, &bytes[from..]));
        from += block_on(write)?;
    }
    Ok(())
}

fn flush(stream: &mut LivenessStream<Wire>) {
    block_on(poll_fn(|cx| Pin::new(&mut *stream).poll_flush(cx))).unwrap();
}
