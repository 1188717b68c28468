//! Pings and evictions while a write to a TLS stream is pending.
//!
//! OpenSSL has encrypted and buffered a write that returns `Pending`, and requires a retry with the
//! same bytes (`SSL_write` in its manual, "bad write retry"). A frame of the layer in between would
//! fail, or the peer would receive a part of it among the handler's bytes. rustls accepts any bytes
//! next, and must pass these scenes too.

use std::io::{self, IoSlice};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::client;
use tower_ws_liveness::{
    Drain, HeartbeatLayer, HeartbeatLayerBuilder, Liveness, LivenessStream, Reason, Registry,
};

use super::{Scene, TlsServer};
use crate::http_version::HttpVersion;
use crate::support::ms;
use crate::support::raw::{BINARY, CLOSE, Frame, PING};
use crate::support::recorder::Recorder;
use crate::tls::{self, TlsStream};

pub(super) const SCENES: &[Scene] = &[
    Scene::in_memory("a slow reader without pings", |server| {
        slow_reader(server, ms(60_000)).boxed()
    }),
    Scene::in_memory("a slow reader while pings are due", |server| {
        slow_reader(server, ms(100)).boxed()
    }),
    Scene::in_memory("a slow reader is kicked", |server| {
        ended_while_pending(server, EndedBy::Kick).boxed()
    }),
    Scene::in_memory("a slow reader is drained", |server| {
        ended_while_pending(server, EndedBy::Drain).boxed()
    }),
    Scene::in_memory(
        "a slow reader is cut off at the drain's deadline",
        |server| ended_while_pending(server, EndedBy::DrainDeadline).boxed(),
    ),
];

/// Capacity in bytes of the pipe below TLS.
const PIPE_BYTES: usize = 4_096;

/// How long the reader pauses.
const READER_PAUSE: Duration = Duration::from_millis(130);

type Stream = LivenessStream<TlsStream<DuplexStream>>;
type Peer = client::TlsStream<DuplexStream>;

/// How a handler writes its frames.
#[derive(Clone, Copy, Debug)]
enum Writes {
    /// One write per frame.
    Frames,
    /// One `write_all` with all frames.
    AtOnce,
    /// One vectored write of two slices per frame.
    Vectored,
    /// Writes from a buffer that grows while a write is pending, as tungstenite does: the handler
    /// abandons the write after a while, reads, and writes again with more bytes.
    Abandoned,
}

/// How a connection ends while its handler's write is pending.
#[derive(Clone, Copy, Debug)]
enum EndedBy {
    Kick,
    Drain,
    /// The deadline of a drain, which is too short for the closing handshake.
    DrainDeadline,
}

const WRITES: [Writes; 4] = [
    Writes::Frames,
    Writes::AtOnce,
    Writes::Vectored,
    Writes::Abandoned,
];

/// Payload sizes: below that of the layer's ping, equal to it, above it, and above a TLS record.
const SIZES: [usize; 4] = [5, 8, 1_000, 20_000];

/// A slow but live peer receives all frames, with pings between them.
async fn slow_reader(server: TlsServer, interval: Duration) {
    for writes in WRITES {
        for size in SIZES {
            let what = format!("{writes:?} of {size} bytes");
            let frames = frames(size);
            let (mut connection, handler) =
                Connection::open(server, interval, writes, &frames).await;
            let pinged = interval < READER_PAUSE;
            let all = |received: &Received| {
                received.data.len() >= frames.concat().len() && (received.pings > 0 || !pinged)
            };
            let received = connection.read_until(&what, all).await;
            assert_eq!(connection.reasons(), [], "{what}");
            assert!(
                received.data == frames.concat(),
                "{what}: the data differs from what was written"
            );
            assert_eq!(received.pings > 0, pinged, "{what}");
            drop(connection);
            handler.abort();
        }
    }
}

/// The peer receives a prefix of what the handler has written, with whole control frames in
/// between.
async fn ended_while_pending(server: TlsServer, end: EndedBy) {
    for writes in WRITES {
        for size in SIZES {
            let what = format!("{writes:?} of {size} bytes");
            let frames = frames(size);
            let (mut connection, handler) =
                Connection::open(server, ms(60_000), writes, &frames).await;
            let drain = match end {
                EndedBy::Kick => {
                    assert!(connection.live.evict(4_000, "done"));
                    None
                }
                EndedBy::Drain => Some(Drain::default()),
                EndedBy::DrainDeadline => Some(Drain::default().deadline(ms(20))),
            };
            let registry = connection.registry.clone();
            let drained = tokio::spawn(async move {
                if let Some(drain) = drain {
                    registry.drain(drain).await;
                }
            });
            // Lets the deadline of the short drain expire first.
            sleep(ms(50)).await;
            let received = connection.read_until(&what, |_| false).await;
            assert!(
                frames.concat().starts_with(&received.data),
                "{what}: received bytes that the handler did not write"
            );
            let reason = match end {
                EndedBy::Kick => Reason::Kicked { code: 4_000 },
                EndedBy::Drain | EndedBy::DrainDeadline => Reason::Drained,
            };
            assert_eq!(connection.reasons(), [reason], "{what}");
            drained.await.expect("no panic");
            let written = handler.await.expect("no panic");
            assert!(written.is_err(), "{what}: {written:?}");
        }
    }
}

/// Encodes frames of at least about 20 kB in total, which exceeds the pipe's capacity.
fn frames(size: usize) -> Vec<Vec<u8>> {
    let count = (20_000 / size).max(4);
    let frames = (0..count).map(|number| Frame::new(BINARY, vec![number as u8; size]).unmasked());
    frames.collect()
}

/// A connection with a writing handler, whose peer has not read for [`READER_PAUSE`].
struct Connection {
    peer: Peer,
    live: Liveness,
    registry: Registry,
    recorder: Recorder,
}

impl Connection {
    async fn open(
        server: TlsServer,
        interval: Duration,
        writes: Writes,
        frames: &[Vec<u8>],
    ) -> (Self, JoinHandle<io::Result<Stream>>) {
        let (server_io, client_io) = duplex(PIPE_BYTES);
        let acceptor = server.tls.acceptor();
        let connector = tls::connector(HttpVersion::One);
        let handshakes = (
            acceptor.accept(server_io),
            connector.connect(tls::name(), client_io),
        );
        let (server_stream, peer) = tokio::join!(handshakes.0, handshakes.1);
        let recorder = Recorder::new();
        let layer = heartbeat(interval).on_evict(recorder.hook()).build();
        let layer = layer.expect("valid settings");
        let (mut stream, live) = layer.wrap_server(server_stream.expect("TLS"));
        let frames = frames.to_vec();
        let handler = tokio::spawn(async move {
            writes.write(&mut stream, &frames).await?;
            stream.flush().await?;
            // Then only reads.
            while stream.read(&mut [0; 64]).await? > 0 {}
            Ok(stream)
        });
        sleep(READER_PAUSE).await;
        let connection = Self {
            peer: peer.expect("TLS"),
            live,
            registry: layer.registry(),
            recorder,
        };
        (connection, handler)
    }

    /// Returns the reasons of all evictions so far.
    fn reasons(&self) -> Vec<Reason> {
        let events = self.recorder.all().into_iter();
        events.map(|event| event.reason).collect()
    }

    /// Reads until `enough` holds or the stream ends.
    ///
    /// # Panics
    ///
    /// On a byte that belongs to no frame.
    async fn read_until(&mut self, what: &str, enough: impl Fn(&Received) -> bool) -> Received {
        let mut bytes = Vec::new();
        let read = async {
            loop {
                // With a pending write, OpenSSL reports an error instead of EOF.
                let has_more = self
                    .peer
                    .read_buf(&mut bytes)
                    .await
                    .is_ok_and(|count| count > 0);
                let received = Received::of(&bytes);
                if let Some(at) = received.corrupt {
                    let around = &bytes[at.saturating_sub(14)..bytes.len().min(at + 14)];
                    panic!(
                        "{what}: corrupt at byte {at} of {}: {around:02x?}",
                        bytes.len()
                    );
                }
                if !has_more || enough(&received) {
                    return received;
                }
            }
        };
        let read = timeout(ms(5_000), read).await;
        read.unwrap_or_else(|_| panic!("{what}: no more bytes after {}", bytes.len()))
    }
}

fn heartbeat(interval: Duration) -> HeartbeatLayerBuilder {
    HeartbeatLayer::builder()
        .interval(interval)
        .timeout(ms(10_000))
        .close_timeout(ms(2_000))
        .jitter(0.0)
}

impl Writes {
    async fn write(self, stream: &mut Stream, frames: &[Vec<u8>]) -> io::Result<()> {
        match self {
            Self::Frames => {
                for frame in frames {
                    stream.write_all(frame).await?;
                }
            }
            Self::AtOnce => stream.write_all(&frames.concat()).await?,
            Self::Vectored => {
                for frame in frames {
                    let mut written = 0;
                    while written < frame.len() {
                        let (head, payload) = frame.split_at(2);
                        let slices = [
                            IoSlice::new(&head[written.min(2)..]),
                            IoSlice::new(&payload[written.saturating_sub(2)..]),
                        ];
                        written += stream.write_vectored(&slices).await?;
                    }
                }
            }
            Self::Abandoned => {
                let mut buffer = Vec::new();
                for frame in frames {
                    buffer.extend_from_slice(frame);
                    let write_attempt = timeout(ms(7), write_buffer(stream, &mut buffer));
                    if let Ok(written) = write_attempt.await {
                        written?;
                    }
                    // In between it polls for a message of the peer.
                    let read = stream.read(&mut [0; 64]).now_or_never();
                    assert!(
                        read.is_none_or(|read| read.is_err()),
                        "the peer sends nothing"
                    );
                }
                write_buffer(stream, &mut buffer).await?;
            }
        }
        Ok(())
    }
}

/// Writes the buffer. If dropped halfway, the buffer keeps only the unwritten bytes.
async fn write_buffer(stream: &mut Stream, buffer: &mut Vec<u8>) -> io::Result<()> {
    while !buffer.is_empty() {
        let count = stream.write(buffer).await?;
        buffer.drain(..count);
    }
    Ok(())
}

/// The bytes that the peer received, without control frames.
#[derive(Debug, Default)]
struct Received {
    /// Everything except whole control frames.
    data: Vec<u8>,
    pings: usize,
    /// Offset of the first byte that is not part of a frame.
    corrupt: Option<usize>,
}

impl Received {
    fn of(received: &[u8]) -> Self {
        let mut parts = Self::default();
        let mut rest = received.to_vec();
        while let Some(&first) = rest.first() {
            let at = received.len() - rest.len();
            if ![0x80 | BINARY, 0x80 | CLOSE, 0x80 | PING].contains(&first) {
                parts.corrupt = Some(at);
                break;
            }
            match Frame::parse(&mut rest) {
                Some(frame) if frame.opcode == BINARY => {
                    let end = received.len() - rest.len();
                    parts.data.extend_from_slice(&received[at..end]);
                }
                Some(frame) => parts.pings += usize::from(frame.opcode == PING),
                None => {
                    // An incomplete frame at the end, which must be the handler's.
                    parts.data.extend_from_slice(&rest);
                    break;
                }
            }
        }
        parts
    }
}
