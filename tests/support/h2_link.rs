//! One HTTP/2 connection in memory, served by hyper itself, and what the server puts on it.
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

/// Windows that no test here uses up unless it wants to. A small one is also what makes h2 take a
/// hundred unread pings for an attack.
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

    /// `settings` are the client's.
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

    /// Has the server begin a graceful shutdown.
    pub(crate) fn shut_down(&self) {
        self.shutdown.notify_one();
    }

    /// Opens a WebSocket on a stream of its own.
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

/// A frame of the server's that ends something (RFC 9113 section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Last {
    /// END_STREAM, on DATA or HEADERS.
    EndStream(u32),
    Reset(u32, h2::Reason),
    GoAway(h2::Reason),
}

/// The ends that the server has sent, in their order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    ends: Arc<Mutex<Vec<Last>>>,
    /// Bytes to be put between two frames of the client's.
    inject: Arc<Mutex<Vec<u8>>>,
}

impl Seen {
    /// The ends of one stream.
    pub(crate) fn of(&self, stream: u32) -> Vec<Last> {
        let mut ends = self.all();
        ends.retain(|end| matches!(end, Last::EndStream(id) | Last::Reset(id, _) if *id == stream));
        ends
    }

    pub(crate) fn all(&self) -> Vec<Last> {
        self.ends.lock().unwrap().clone()
    }

    /// Has the client say GOAWAY with NO_ERROR in front of what it says next.
    pub(crate) fn send_goaway(&self) {
        self.inject(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    /// The same, with a WINDOW_UPDATE by nothing: a connection error (RFC 9113 section 6.9).
    pub(crate) fn send_invalid_window_update(&self) {
        self.inject(&[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    fn inject(&self, frame: &[u8]) {
        self.inject.lock().unwrap().extend_from_slice(frame);
    }
}

/// The client's end of the connection.
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

/// Where one direction is in its frames (RFC 9113 section 4.1).
#[derive(Default)]
struct Frames {
    /// The header, and the payload of the few frames that are looked into.
    frame: Vec<u8>,
    /// Bytes to go that nobody looks at.
    skip: usize,
}

impl Frames {
    const HEAD: usize = 9;

    fn at_boundary(&self) -> bool {
        self.frame.is_empty() && self.skip == 0
    }

    fn pass(&mut self, mut bytes: &[u8], mut tell: impl FnMut(Last)) {
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
                self.look(&mut tell);
            }
        }
    }

    /// Looks at a frame whose header is complete.
    fn look(&mut self, tell: &mut impl FnMut(Last)) {
        let frame = &self.frame;
        let number = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
        let length = (number(0) >> 8) as usize;
        let (kind, flags, stream) = (frame[3], frame[4], number(5));
        let complete = frame.len() == Self::HEAD + length;
        match kind {
            // RST_STREAM and GOAWAY, whose codes are in the payload.
            3 | 7 if !complete => return,
            3 => tell(Last::Reset(stream, number(9).into())),
            7 => tell(Last::GoAway(number(13).into())),
            // DATA and HEADERS.
            0 | 1 if flags & 1 == 1 => tell(Last::EndStream(stream)),
            _ => {}
        }
        self.skip = Self::HEAD + length - frame.len();
        self.frame.clear();
    }
}
