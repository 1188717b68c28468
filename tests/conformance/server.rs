//! The server of one case: an echo handler that records its input, over a metered transport.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::routing::any;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tower_ws_liveness::{HeartbeatLayer, IdleTimeoutLayer};

use super::support::ms;
use super::support::recorder::Recorder;

/// What the handler received and sent, as text, and the payloads of its own pings.
#[derive(Clone)]
pub(crate) struct Notes {
    lines: mpsc::UnboundedSender<String>,
    own_pings: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Notes {
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<String>) {
        let (lines, handler_lines) = mpsc::unbounded_channel();
        let own_pings = Arc::default();
        (Self { lines, own_pings }, handler_lines)
    }

    pub(crate) fn own_pings(&self) -> Arc<Mutex<Vec<Vec<u8>>>> {
        Arc::clone(&self.own_pings)
    }

    fn line(&self, line: String) {
        self.lines.send(line).unwrap();
    }
}

/// A router without the layers.
pub(crate) fn bare(notes: Notes) -> Router {
    let route = any(move |ws: WebSocketUpgrade| async move {
        ws.on_upgrade(move |socket| echo(socket, notes))
    });
    Router::new().route("/ws", route)
}

/// The same router under both layers, with the shortest interval.
pub(crate) fn layered(notes: Notes, recorder: &Recorder) -> Router {
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(1))
        .timeout(ms(60_000))
        .jitter(0.0)
        .on_evict(recorder.hook());
    let idle = IdleTimeoutLayer::new(ms(600_000));
    bare(notes).layer(idle).layer(heartbeat.build().unwrap())
}

/// Echoes messages. A text `ping me: …` is answered with a ping of the rest.
async fn echo(mut socket: WebSocket, notes: Notes) {
    loop {
        let message = match socket.recv().await {
            Some(Ok(message)) => message,
            Some(Err(error)) => return notes.line(format!("error: {error}")),
            None => return notes.line("end".to_owned()),
        };
        notes.line(describe(&message));
        let answer = match message {
            Message::Text(text) => match text.strip_prefix("ping me: ") {
                Some(ping) => {
                    let ping = ping.as_bytes().to_vec();
                    notes.own_pings.lock().unwrap().push(ping.clone());
                    Message::Ping(ping.into())
                }
                None => Message::Text(text),
            },
            Message::Binary(bytes) => Message::Binary(bytes),
            _ => continue,
        };
        if let Err(error) = socket.send(answer).await {
            return notes.line(format!("not sent: {error}"));
        }
    }
}

fn describe(message: &Message) -> String {
    let text = format!("{message:?}");
    if text.len() < 1_000 {
        return text;
    }
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("{}... {:016x}", &text[..20], hasher.finish())
}

/// Counts what happens at the server's transport.
#[derive(Clone, Default)]
pub(crate) struct Meter(Arc<Mutex<Readings>>);

#[derive(Default)]
pub(crate) struct Readings {
    pub(crate) read: usize,
    /// Bytes read when a read last returned `Pending`.
    pub(crate) waits_at: usize,
    pub(crate) shut_down: bool,
    pub(crate) dropped: bool,
}

impl Readings {
    /// Whether the client will see the end of the connection.
    pub(crate) fn has_ended(&self) -> bool {
        self.shut_down || self.dropped
    }
}

impl Meter {
    pub(crate) fn readings(&self) -> MutexGuard<'_, Readings> {
        self.0.lock().unwrap()
    }

    pub(crate) fn over<T>(&self, io: T) -> Metered<T> {
        Metered {
            io: Some(io),
            meter: self.clone(),
        }
    }
}

/// A transport with a [`Meter`].
pub(crate) struct Metered<T> {
    /// `None` only while it is dropped.
    io: Option<T>,
    meter: Meter,
}

impl<T: Unpin> Metered<T> {
    fn io(&mut self) -> Pin<&mut T> {
        Pin::new(self.io.as_mut().unwrap())
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Metered<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = self.io().poll_read(cx, buf);
        let mut readings = self.meter.readings();
        if read.is_pending() {
            readings.waits_at = readings.read;
        }
        ready!(read)?;
        readings.read += buf.filled().len() - before;
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Metered<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.io().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.io().poll_shutdown(cx))?;
        self.meter.readings().shut_down = true;
        Poll::Ready(Ok(()))
    }
}

impl<T> Drop for Metered<T> {
    fn drop(&mut self) {
        // The transport is dropped before `dropped` is set, so that the end is sent when the test
        // sees it.
        drop(self.io.take());
        self.meter.readings().dropped = true;
    }
}
