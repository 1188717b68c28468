//! Pings and evictions while a write to a TLS stream is pending.
//!
//! OpenSSL has encrypted and buffered a write that returns `Pending`, and requires a retry with the same
//! bytes (`SSL_write` in its manual, "bad write retry"). A frame of ours in between fails, or the peer gets
//! a part of it among the handler's bytes. rustls accepts any bytes next, and must pass all of this too.

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

use super::{Scene, Server};
use crate::http_version::HttpVersion;
use crate::support::ms;
use crate::support::raw::{BINARY, CLOSE, Frame, PING};
use crate::support::recorder::Recorder;
use crate::tls::{self, TlsStream};

pub(super) const SCENES: &[Scene] = &[
    Scene::in_memory("a slow reader, and no pings", |server| {
        slow_reader(server, ms(60_000)).boxed()
    }),
    Scene::in_memory("a slow reader while pings become due", |server| {
        slow_reader(server, ms(100)).boxed()
    }),
    Scene::in_memory("a slow reader is kicked", |server| {
        ended_while_pending(server, End::Kick).boxed()
    }),
    Scene::in_memory("a slow reader is drained", |server| {
        ended_while_pending(server, End::Drain).boxed()
    }),
    Scene::in_memory("a slow reader is cut off as it is drained", |server| {
        ended_while_pending(server, End::Cut).boxed()
    }),
];

/// What the pipe below TLS holds.
const PIPE: usize = 4_096;

/// How long the reader does not read.
const BUSY: Duration = Duration::from_millis(130);

type Stream = LivenessStream<TlsStream<DuplexStream>>;
type Peer = client::TlsStream<DuplexStream>;

/// How a handler writes its frames.
#[derive(Clone, Copy, Debug)]
enum Writes {
    /// One after the other.
    Frames,
    /// All in one write, which goes on until the last byte is accepted.
    AtOnce,
    /// Each in two slices.
    Vectored,
    /// Out of a buffer that grows while a write is pending, as tungstenite does: the handler abandons the
    /// write after a while, does something else, and writes again with more bytes.
    GivesUp,
}

/// How a connection ends whose handler waits to write.
#[derive(Clone, Copy, Debug)]
enum End {
    Kick,
    Drain,
    /// By a drain whose deadline leaves no time for it.
    Cut,
}

const WRITES: [Writes; 4] = [
    Writes::Frames,
    Writes::AtOnce,
    Writes::Vectored,
    Writes::GivesUp,
];

/// Payloads of frames: shorter than a ping's, of its size, longer, and longer than a TLS record.
const SIZES: [usize; 4] = [5, 8, 1_000, 20_000];

/// A slow but live peer gets all frames, with pings between them.
async fn slow_reader(server: Server, interval: Duration) {
    for writes in WRITES {
        for size in SIZES {
            let what = format!("{writes:?} of {size} bytes");
            let frames = frames(size);
            let (mut line, handler) = Line::open(server, interval, writes, &frames).await;
            let pinged = interval < BUSY;
            let all = |wire: &Wire| {
                wire.data.len() >= frames.concat().len() && (wire.pings > 0 || !pinged)
            };
            let wire = line.read_until(&what, all).await;
            assert_eq!(line.reasons(), [], "{what}");
            assert!(wire.data == frames.concat(), "{what}: not what was written");
            assert_eq!(wire.pings > 0, pinged, "{what}");
            drop(line);
            handler.abort();
        }
    }
}

/// The peer gets a part of what the handler has written, and whole control frames between the frames.
async fn ended_while_pending(server: Server, end: End) {
    for writes in WRITES {
        for size in SIZES {
            let what = format!("{writes:?} of {size} bytes");
            let frames = frames(size);
            let (mut line, handler) = Line::open(server, ms(60_000), writes, &frames).await;
            let drain = match end {
                End::Kick => {
                    assert!(line.live.evict(4_000, "enough"));
                    None
                }
                End::Drain => Some(Drain::default()),
                End::Cut => Some(Drain {
                    deadline: ms(20),
                    ..Drain::default()
                }),
            };
            let registry = line.registry.clone();
            let drained = tokio::spawn(async move {
                if let Some(drain) = drain {
                    registry.drain(drain).await;
                }
            });
            // The time of the drain that cuts goes by first.
            sleep(ms(50)).await;
            let wire = line.read_until(&what, |_| false).await;
            assert!(
                frames.concat().starts_with(&wire.data),
                "{what}: bytes that the handler has not written"
            );
            let reason = match end {
                End::Kick => Reason::Kicked { code: 4_000 },
                End::Drain | End::Cut => Reason::Drained,
            };
            assert_eq!(line.reasons(), [reason], "{what}");
            drained.await.expect("no panic");
            let written = handler.await.expect("no panic");
            assert!(written.is_err(), "{what}: {written:?}");
        }
    }
}

/// Some 20 kB at least: more than the pipe holds.
fn frames(size: usize) -> Vec<Vec<u8>> {
    let count = (20_000 / size).max(4);
    let frames = (0..count).map(|number| Frame::new(BINARY, vec![number as u8; size]).unmasked());
    frames.collect()
}

/// A connection whose handler writes, and whose peer has not read anything for a while.
struct Line {
    peer: Peer,
    live: Liveness,
    registry: Registry,
    recorder: Recorder,
}

impl Line {
    async fn open(
        server: Server,
        interval: Duration,
        writes: Writes,
        frames: &[Vec<u8>],
    ) -> (Self, JoinHandle<io::Result<Stream>>) {
        let (near, far) = duplex(PIPE);
        let acceptor = server.tls.acceptor();
        let connector = tls::connector(HttpVersion::One);
        let handshakes = (acceptor.accept(near), connector.connect(tls::name(), far));
        let (secured, peer) = tokio::join!(handshakes.0, handshakes.1);
        let recorder = Recorder::new();
        let layer = heartbeat(interval).on_evict(recorder.hook()).build();
        let layer = layer.expect("settings of a scene");
        let (mut stream, live) = layer.wrap_server(secured.expect("TLS"));
        let frames = frames.to_vec();
        let handler = tokio::spawn(async move {
            writes.write(&mut stream, &frames).await?;
            stream.flush().await?;
            // Reads, as handlers do.
            while stream.read(&mut [0; 64]).await? > 0 {}
            Ok(stream)
        });
        sleep(BUSY).await;
        let line = Self {
            peer: peer.expect("TLS"),
            live,
            registry: layer.registry(),
            recorder,
        };
        (line, handler)
    }

    /// Why the connection has ended, if it has.
    fn reasons(&self) -> Vec<Reason> {
        let events = self.recorder.all().into_iter();
        events.map(|event| event.reason).collect()
    }

    /// Reads until this is so, or the end comes, or what is no frame.
    async fn read_until(&mut self, what: &str, enough: impl Fn(&Wire) -> bool) -> Wire {
        let mut bytes = Vec::new();
        let read = async {
            loop {
                // Where a write waits, OpenSSL cannot say that this is the end.
                let goes_on = self
                    .peer
                    .read_buf(&mut bytes)
                    .await
                    .is_ok_and(|count| count > 0);
                let wire = Wire::of(&bytes);
                if let Some(at) = wire.corrupt {
                    let around = &bytes[at.saturating_sub(14)..bytes.len().min(at + 14)];
                    panic!(
                        "{what}: corrupt at byte {at} of {}: {around:02x?}",
                        bytes.len()
                    );
                }
                if !goes_on || enough(&wire) {
                    return wire;
                }
            }
        };
        let read = timeout(ms(5_000), read).await;
        read.unwrap_or_else(|_| panic!("{what}: {} bytes, and no more come", bytes.len()))
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
            Self::GivesUp => {
                let mut buffer = Vec::new();
                for frame in frames {
                    buffer.extend_from_slice(frame);
                    let patience = timeout(ms(7), drain_into(stream, &mut buffer));
                    if let Ok(written) = patience.await {
                        written?;
                    }
                    // In between it looks whether the peer has said something.
                    let read = stream.read(&mut [0; 64]).now_or_never();
                    assert!(read.is_none_or(|read| read.is_err()), "it says nothing");
                }
                drain_into(stream, &mut buffer).await?;
            }
        }
        Ok(())
    }
}

/// Writes the buffer. Dropped half-way, what was written is out of the buffer.
async fn drain_into(stream: &mut Stream, buffer: &mut Vec<u8>) -> io::Result<()> {
    while !buffer.is_empty() {
        let count = stream.write(buffer).await?;
        buffer.drain(..count);
    }
    Ok(())
}

/// The parts of what the peer received.
#[derive(Debug, Default)]
struct Wire {
    /// Everything except whole control frames.
    data: Vec<u8>,
    pings: usize,
    /// Offset of the first byte that is not part of a frame.
    corrupt: Option<usize>,
}

impl Wire {
    fn of(wire: &[u8]) -> Self {
        let mut parts = Self::default();
        let mut rest = wire.to_vec();
        while let Some(&first) = rest.first() {
            let at = wire.len() - rest.len();
            if ![0x80 | BINARY, 0x80 | CLOSE, 0x80 | PING].contains(&first) {
                parts.corrupt = Some(at);
                break;
            }
            match Frame::parse(&mut rest) {
                Some(frame) if frame.opcode == BINARY => {
                    let end = wire.len() - rest.len();
                    parts.data.extend_from_slice(&wire[at..end]);
                }
                Some(frame) => parts.pings += usize::from(frame.opcode == PING),
                None => {
                    // The beginning of a frame, which has to be the handler's if it is the end.
                    parts.data.extend_from_slice(&rest);
                    break;
                }
            }
        }
        parts
    }
}
