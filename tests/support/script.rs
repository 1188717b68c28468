//! A scripted transport, and the peer at its other end.
//!
//! Each poll moves a scripted number of bytes. As real sockets do, the transport keeps one waker
//! per direction, the last one.
#![allow(dead_code)] // every test binary uses its own part of this

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tower_ws_liveness::{HeartbeatLayer, HeartbeatLayerBuilder, Liveness, LivenessStream};

pub(crate) const CONTINUATION: u8 = 0x0;
pub(crate) const TEXT: u8 = 0x1;
pub(crate) const BINARY: u8 = 0x2;
pub(crate) const CLOSE: u8 = 0x8;
pub(crate) const PING: u8 = 0x9;
pub(crate) const PONG: u8 = 0xA;

/// A step without a bound.
pub(crate) const ALL: usize = usize::MAX;
/// A step that returns `Pending` until [`Peer::kick`].
pub(crate) const WAIT: usize = 0;

/// The transport, for the wrapper.
pub(crate) struct Script(Arc<Mutex<Wire>>);

/// The peer's end of a [`Script`]. Also controls the script.
#[derive(Clone)]
pub(crate) struct Peer(Arc<Mutex<Wire>>);

#[derive(Default)]
pub(crate) struct Wire {
    /// Bytes that the peer sent and the wrapper has not read.
    pub(crate) incoming: VecDeque<u8>,
    /// How the stream ends after `incoming`.
    pub(crate) end: Option<Result<(), io::ErrorKind>>,
    /// Bytes that the peer received.
    pub(crate) written: Vec<u8>,
    /// Error of every write.
    pub(crate) write_error: Option<io::ErrorKind>,
    pub(crate) flush_waits: bool,
    pub(crate) shutdown: bool,
    pub(crate) vectored_writes: usize,
    pub(crate) flushes: usize,
    pub(crate) panics: bool,
    /// When the wrapper dropped the transport.
    pub(crate) dropped: Option<Instant>,
    /// Whether the transport takes part in tokio's cooperative scheduling, as tokio's own do.
    pub(crate) cooperative: bool,
    /// Whether a write that returns `Pending` keeps its bytes and must be repeated, as with
    /// OpenSSL.
    pub(crate) repeats_writes: bool,
    claimed: Option<Vec<u8>>,
    /// Number of writes that did not repeat the kept bytes.
    pub(crate) bad_retries: usize,
    vectored: bool,
    reads: Steps,
    writes: Steps,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// Bound on the bytes of each poll, repeated cyclically.
#[derive(Default)]
struct Steps {
    sizes: Vec<usize>,
    next: usize,
    waiting: bool,
}

impl Steps {
    /// The bound on this poll. `None` means `Pending`.
    fn step(&mut self) -> Option<usize> {
        if self.waiting {
            return None;
        }
        if self.sizes.is_empty() {
            return Some(ALL);
        }
        let size = self.sizes[self.next % self.sizes.len()];
        self.next += 1;
        self.waiting = size == WAIT;
        (!self.waiting).then_some(size)
    }
}

pub(crate) fn script() -> (Script, Peer) {
    let wire = Arc::new(Mutex::new(Wire::default()));
    (Script(Arc::clone(&wire)), Peer(wire))
}

fn lock(wire: &Mutex<Wire>) -> MutexGuard<'_, Wire> {
    wire.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peer {
    pub(crate) fn wire(&self) -> MutexGuard<'_, Wire> {
        lock(&self.0)
    }

    pub(crate) fn read_steps(&self, sizes: &[usize]) {
        self.wire().reads.sizes = sizes.to_vec();
    }

    pub(crate) fn write_steps(&self, sizes: &[usize]) {
        let mut wire = self.wire();
        wire.writes = Steps::default();
        wire.writes.sizes = sizes.to_vec();
    }

    /// Enables vectored writes. Must be called before the transport is wrapped.
    pub(crate) fn vectored(&self) {
        self.wire().vectored = true;
    }

    pub(crate) fn send(&self, bytes: &[u8]) {
        self.wire().incoming.extend(bytes);
        self.wake_reader();
    }

    pub(crate) fn end(&self, end: Result<(), io::ErrorKind>) {
        self.wire().end = Some(end);
        self.wake_reader();
    }

    /// Ends a [`WAIT`] in either direction, and wakes the waker registered last.
    pub(crate) fn kick(&self) {
        let mut wire = self.wire();
        let reader = std::mem::take(&mut wire.reads.waiting).then(|| wire.reader.take());
        let writer = std::mem::take(&mut wire.writes.waiting).then(|| wire.writer.take());
        drop(wire);
        for waker in reader.into_iter().chain(writer).flatten() {
            waker.wake();
        }
    }

    /// Makes the transport writable from now on.
    pub(crate) fn drain(&self) {
        self.write_steps(&[]);
        let mut wire = self.wire();
        wire.flush_waits = false;
        let writer = wire.writer.take();
        drop(wire);
        if let Some(writer) = writer {
            writer.wake();
        }
    }

    /// Wakes the reader although nothing is readable.
    pub(crate) fn wake(&self) {
        self.wake_reader();
    }

    fn wake_reader(&self) {
        let reader = self.wire().reader.take();
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// The complete frames that the peer received. Panics on malformed ones.
    pub(crate) fn frames(&self) -> Vec<Parsed> {
        parse(&self.wire().written).0
    }

    /// Payloads of the wrapper's pings.
    pub(crate) fn pings(&self) -> Vec<[u8; 8]> {
        let pings = self.frames().into_iter().filter(Parsed::may_be_ours);
        pings
            .map(|frame| frame.payload.try_into().unwrap())
            .collect()
    }

    /// Payload of the wrapper's last ping. Panics if there is none.
    pub(crate) fn last_ping(&self) -> [u8; 8] {
        *self.pings().last().expect("a ping was sent")
    }

    pub(crate) fn is_dropped(&self) -> bool {
        self.wire().dropped.is_some()
    }
}

impl Wire {
    /// The waker of the last pending read, for the test to wake.
    pub(crate) fn take_reader(&mut self) -> Option<Waker> {
        self.reader.take()
    }
}

impl AsyncRead for Script {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut wire = lock(&self.0);
        assert!(!wire.panics, "the transport panics, as the test requested");
        assert!(buf.remaining() > 0, "a read without room is an EOF");
        if wire.cooperative && !wire.incoming.is_empty() {
            ready!(pin!(tokio::task::consume_budget()).poll(cx));
        }
        let step = match wire.incoming.is_empty() {
            true if wire.end.is_none() => None,
            true => Some(0),
            false => wire.reads.step(),
        };
        let Some(step) = step else {
            wire.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        if let (true, Some(Err(kind))) = (wire.incoming.is_empty(), wire.end) {
            return Poll::Ready(Err(kind.into()));
        }
        let count = step.min(buf.remaining()).min(wire.incoming.len());
        for byte in wire.incoming.drain(..count) {
            buf.put_slice(&[byte]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut wire = lock(&self.0);
        assert!(!wire.panics, "the transport panics, as the test requested");
        assert!(!wire.shutdown, "written after the shutdown");
        if let Some(kind) = wire.write_error {
            return Poll::Ready(Err(kind.into()));
        }
        // Without vectored writes only the first slice is written, as in tokio's default.
        let taken = if wire.vectored { slices.len() } else { 1 };
        let offered = slices.iter().filter(|slice| !slice.is_empty()).take(taken);
        if let Some(claimed) = &wire.claimed {
            let bytes: Vec<u8> = offered
                .clone()
                .flat_map(|slice| slice.iter().copied())
                .collect();
            if !bytes.starts_with(claimed) {
                wire.bad_retries += 1;
                return Poll::Ready(Err(io::Error::other("bad write retry")));
            }
        }
        let Some(mut room) = wire.writes.step() else {
            if wire.repeats_writes && wire.claimed.is_none() {
                wire.claimed = Some(offered.flat_map(|slice| slice.iter().copied()).collect());
            }
            wire.writer = Some(cx.waker().clone());
            return Poll::Pending;
        };
        if let Some(claimed) = wire.claimed.take() {
            wire.written.extend_from_slice(&claimed);
            return Poll::Ready(Ok(claimed.len()));
        }
        wire.vectored_writes += usize::from(slices.len() > 1);
        let before = wire.written.len();
        for slice in offered {
            let count = room.min(slice.len());
            wire.written.extend_from_slice(&slice[..count]);
            room -= count;
        }
        Poll::Ready(Ok(wire.written.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        lock(&self.0).vectored
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wire = lock(&self.0);
        if wire.flush_waits {
            wire.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        wire.flushes += 1;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.0).shutdown = true;
        Poll::Ready(Ok(()))
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // `Instant::now` also works outside a runtime, with the system's clock.
        let mut wire = lock(&self.0);
        wire.dropped = Some(Instant::now());
        // A socket's reactor drops its wakers with the socket.
        let wakers = (wire.reader.take(), wire.writer.take());
        drop(wire);
        drop(wakers);
    }
}

// A parser and an encoder of frames that share no code with the crate's.

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parsed {
    pub(crate) first: u8,
    pub(crate) masked: bool,
    pub(crate) payload: Vec<u8>,
    pub(crate) raw: Vec<u8>,
}

impl Parsed {
    pub(crate) fn opcode(&self) -> u8 {
        self.first & 0xF
    }

    /// Whether it has the form of the wrapper's pings.
    pub(crate) fn may_be_ours(&self) -> bool {
        self.first == 0x80 | PING && self.payload.len() == 8
    }
}

/// The complete frames at the beginning of `bytes`, and the bytes after them.
pub(crate) fn parse(mut bytes: &[u8]) -> (Vec<Parsed>, &[u8]) {
    let mut frames = Vec::new();
    while let Some((frame, rest)) = parse_one(bytes) {
        frames.push(frame);
        bytes = rest;
    }
    (frames, bytes)
}

fn parse_one(bytes: &[u8]) -> Option<(Parsed, &[u8])> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    assert!(
        matches!(first & 0xF, 0..=2 | 8..=10),
        "reserved opcode in {first:#x}"
    );
    let mut at = 2;
    let mut number = |count: usize| {
        let digits = bytes.get(at..at + count)?;
        at += count;
        Some(
            digits
                .iter()
                .fold(0_usize, |n, byte| n << 8 | usize::from(*byte)),
        )
    };
    let len = match second & 0x7F {
        126 => number(2)?,
        127 => number(8)?,
        short => usize::from(short),
    };
    let masked = second & 0x80 != 0;
    let key = match masked {
        true => number(4)? as u32,
        false => 0,
    };
    let body = bytes.get(at..at + len)?;
    let key = key.to_be_bytes();
    let payload = body
        .iter()
        .enumerate()
        .map(|(at, byte)| byte ^ key[at % 4])
        .collect();
    let raw = bytes[..at + len].to_vec();
    let frame = Parsed {
        first,
        masked,
        payload,
        raw,
    };
    Some((frame, &bytes[at + len..]))
}

/// Encodes a frame. `first` holds FIN, RSV and opcode.
pub(crate) fn frame(first: u8, key: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mask = if key.is_some() { 0x80 } else { 0 };
    match payload.len() {
        len @ 0..126 => bytes.push(mask | len as u8),
        len @ 126..65_536 => {
            bytes.push(mask | 126);
            bytes.extend((len as u16).to_be_bytes());
        }
        len => {
            bytes.push(mask | 127);
            bytes.extend((len as u64).to_be_bytes());
        }
    }
    let pad = key.unwrap_or_default();
    bytes.extend(key.iter().flatten());
    bytes.extend(payload.iter().zip(pad.iter().cycle()).map(|(a, b)| a ^ b));
    bytes
}

// The wrapped end.

/// The role of the wrapped end, which decides the direction that is masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Server,
    Client,
}

pub(crate) type Stream = LivenessStream<Script>;

impl Role {
    pub(crate) fn wrap(self, layer: &HeartbeatLayer, io: Script) -> (Stream, Liveness) {
        match self {
            Self::Server => layer.wrap_server(io),
            Self::Client => layer.wrap_client(io),
        }
    }

    /// Masking key of the peer's frames.
    pub(crate) fn inbound(self, key: [u8; 4]) -> Option<[u8; 4]> {
        (self == Self::Server).then_some(key)
    }

    /// Masking key of the handler's frames.
    pub(crate) fn outbound(self, key: [u8; 4]) -> Option<[u8; 4]> {
        (self == Self::Client).then_some(key)
    }

    pub(crate) fn pong(self, payload: &[u8]) -> Vec<u8> {
        frame(0x80 | PONG, self.inbound([9, 8, 7, 6]), payload)
    }
}

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A heartbeat that pings after exactly 100 ms of silence.
pub(crate) fn heartbeat() -> HeartbeatLayerBuilder {
    HeartbeatLayer::builder()
        .interval(ms(100))
        .timeout(ms(50))
        .close_timeout(ms(200))
        .takes_any_bytes(true)
        .jitter(0.0)
}

/// A wrapped server end with the settings of [`heartbeat`].
pub(crate) fn wrapped() -> (Stream, Liveness, Peer) {
    wrap_with(heartbeat())
}

pub(crate) fn wrap_with(builder: HeartbeatLayerBuilder) -> (Stream, Liveness, Peer) {
    let (io, peer) = script();
    let (stream, live) = builder.build().unwrap().wrap_server(io);
    (stream, live, peer)
}

// A handler that is polled by hand.

/// A waker that counts its wakes.
#[derive(Default)]
pub(crate) struct Wakes(AtomicUsize);

impl Wakes {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Polls a read once, into a buffer of `size`.
pub(crate) fn poll_read<S: AsyncRead + Unpin>(
    stream: &mut S,
    wakes: &Arc<Wakes>,
    size: usize,
) -> Poll<io::Result<Vec<u8>>> {
    let waker = Waker::from(Arc::clone(wakes));
    let mut bytes = vec![0; size];
    let mut buf = ReadBuf::new(&mut bytes);
    ready!(Pin::new(stream).poll_read(&mut Context::from_waker(&waker), &mut buf))?;
    Poll::Ready(Ok(buf.filled().to_vec()))
}

pub(crate) fn poll_write<S: AsyncWrite + Unpin>(
    stream: &mut S,
    wakes: &Arc<Wakes>,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    let waker = Waker::from(Arc::clone(wakes));
    Pin::new(stream).poll_write(&mut Context::from_waker(&waker), bytes)
}

pub(crate) fn poll_flush<S: AsyncWrite + Unpin>(
    stream: &mut S,
    wakes: &Arc<Wakes>,
) -> Poll<io::Result<()>> {
    let waker = Waker::from(Arc::clone(wakes));
    Pin::new(stream).poll_flush(&mut Context::from_waker(&waker))
}

/// The bytes of a ready read. Panics on anything else.
#[track_caller]
pub(crate) fn got(read: Poll<io::Result<Vec<u8>>>) -> Vec<u8> {
    match read {
        Poll::Ready(Ok(bytes)) => bytes,
        other => panic!("not ready with bytes: {other:?}"),
    }
}
