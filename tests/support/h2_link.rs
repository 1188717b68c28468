//! An in-memory HTTP/2 connection to hyper that records the frames by which streams end.
#![allow(dead_code)] // every test binary uses its own part of this

use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use axum::Router;
use h2::client;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::h2_client::{H2Client, H2Stream};
use super::raw::RawClient;
use super::within;

pub(crate) const URI: &str = "http://localhost/ws";

/// A connection window of 16 MiB, which no test exhausts by accident. With a small window h2 also
/// treats a hundred unread pings as an attack.
pub(crate) fn wide() -> client::Builder {
    let mut settings = client::Builder::new();
    settings.initial_connection_window_size(1 << 24);
    settings
}

pub(crate) struct Link {
    pub(crate) client: H2Client,
    pub(crate) seen: Seen,
    shutdown: Arc<Notify>,
    pub(crate) served: JoinHandle<hyper::Result<()>>,
}

impl Link {
    pub(crate) async fn open(app: Router) -> Self {
        Self::with(app, &wide()).await
    }

    /// As [`open`](Self::open), with these settings of the client.
    pub(crate) async fn with(app: Router, settings: &client::Builder) -> Self {
        let (ours, theirs) = duplex(64 * 1024);
        let shutdown = Arc::new(Notify::new());
        let served = tokio::spawn(serve(app, theirs, Arc::clone(&shutdown)));
        let seen = Seen::default();
        let tap = Tap::new(ours, seen.clone());
        let client = within("HTTP/2", H2Client::handshake(tap, settings)).await;
        Self {
            client: client.unwrap(),
            seen,
            shutdown,
            served,
        }
    }

    /// Starts hyper's graceful shutdown.
    pub(crate) fn shut_down(&self) {
        self.shutdown.notify_one();
    }

    /// Opens a WebSocket on a new stream.
    pub(crate) async fn websocket(&self) -> RawClient<H2Stream> {
        let opened = within("the response", self.client.websocket(URI)).await;
        let (response, stream) = opened.unwrap();
        assert!(response.status().is_success(), "{response:?}");
        RawClient::over(stream)
    }
}

async fn serve(app: Router, io: DuplexStream, shutdown: Arc<Notify>) -> hyper::Result<()> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .enable_connect_protocol()
        .max_concurrent_streams(1_000);
    let service = TowerToHyperService::new(app);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    tokio::select! {
        ended = &mut connection => return ended,
        () = shutdown.notified() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// A server frame that ends a stream or the connection (RFC 9113 section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Last {
    /// END_STREAM, on DATA or HEADERS.
    EndStream(u32),
    Reset(u32, h2::Reason),
    GoAway(h2::Reason),
}

/// Records the server's [`Last`] frames, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    ends: Arc<Mutex<Vec<Last>>>,
    /// Bytes to insert between two frames of the client.
    inject: Arc<Mutex<Vec<u8>>>,
}

impl Seen {
    /// The frames that ended one stream.
    pub(crate) fn of(&self, stream: u32) -> Vec<Last> {
        let mut ends = self.all();
        ends.retain(|end| matches!(end, Last::EndStream(id) | Last::Reset(id, _) if *id == stream));
        ends
    }

    pub(crate) fn all(&self) -> Vec<Last> {
        self.ends.lock().unwrap().clone()
    }

    /// Sends GOAWAY with NO_ERROR before the client's next frame.
    pub(crate) fn send_goaway(&self) {
        self.inject(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    /// Sends a WINDOW_UPDATE with an increment of 0 before the client's next frame: a connection
    /// error (RFC 9113 section 6.9).
    pub(crate) fn send_invalid_window_update(&self) {
        self.inject(&[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    fn inject(&self, frame: &[u8]) {
        self.inject.lock().unwrap().extend_from_slice(frame);
    }
}

/// The client's end of the connection. Parses the frames of both directions.
struct Tap {
    io: DuplexStream,
    seen: Seen,
    inbound: Frames,
    outbound: Frames,
}

impl Tap {
    fn new(io: DuplexStream, seen: Seen) -> Self {
        Self {
            io,
            seen,
            inbound: Frames::default(),
            // The connection preface (RFC 9113 section 3.4).
            outbound: Frames {
                skip: 24,
                ..Frames::default()
            },
        }
    }
}

impl AsyncRead for Tap {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let mut ends = this.seen.ends.lock().unwrap();
        let bytes = &buf.filled()[before..];
        this.inbound.pass(bytes, |end| ends.push(end));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tap {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.outbound.at_boundary() {
            let mut inject = this.seen.inject.lock().unwrap();
            while !inject.is_empty() {
                let count = ready!(Pin::new(&mut this.io).poll_write(cx, &inject))?;
                inject.drain(..count);
            }
        }
        let count = ready!(Pin::new(&mut this.io).poll_write(cx, bytes))?;
        this.outbound.pass(&bytes[..count], drop);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Frame parser of one direction (RFC 9113 section 4.1).
#[derive(Default)]
struct Frames {
    /// The frame header, and the payload of RST_STREAM and GOAWAY frames.
    frame: Vec<u8>,
    /// Remaining payload bytes that are not parsed.
    skip: usize,
}

impl Frames {
    const HEAD: usize = 9;

    fn at_boundary(&self) -> bool {
        self.frame.is_empty() && self.skip == 0
    }

    fn pass(&mut self, mut bytes: &[u8], mut on_end: impl FnMut(Last)) {
        while let Some((&byte, rest)) = bytes.split_first() {
            if self.skip > 0 {
                let count = self.skip.min(bytes.len());
                self.skip -= count;
                bytes = &bytes[count..];
                continue;
            }
            self.frame.push(byte);
            bytes = rest;
            if self.frame.len() >= Self::HEAD {
                self.parse(&mut on_end);
            }
        }
    }

    /// Reports the frame if it ends something. Its header must be complete.
    fn parse(&mut self, on_end: &mut impl FnMut(Last)) {
        let frame = &self.frame;
        let number = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
        let length = (number(0) >> 8) as usize;
        let (kind, flags, stream) = (frame[3], frame[4], number(5));
        let complete = frame.len() == Self::HEAD + length;
        match kind {
            // RST_STREAM and GOAWAY, whose codes are in the payload.
            3 | 7 if !complete => return,
            3 => on_end(Last::Reset(stream, number(9).into())),
            7 => on_end(Last::GoAway(number(13).into())),
            // DATA and HEADERS.
            0 | 1 if flags & 1 == 1 => on_end(Last::EndStream(stream)),
            _ => {}
        }
        self.skip = Self::HEAD + length - frame.len();
        self.frame.clear();
    }
}
