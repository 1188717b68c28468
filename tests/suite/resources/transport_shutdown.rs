//! The layer shuts a transport down before it drops it, once and without waiting.
//!
//! Under TLS the shutdown distinguishes a clean end from a truncated one. A handler that drops its
//! stream has the same effect as without the layers.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::sleep;
use tower_ws_liveness::{HeartbeatLayerBuilder, Liveness, LivenessStream, Reason};

use crate::script::*;
use crate::support::within;

const MASKING_KEY: Option<[u8; 4]> = Some([1, 2, 3, 4]);

/// How a transport reacts to a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shutdown {
    Done,
    /// Pending: it has bytes that the peer does not take.
    Pending,
    Panics,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Write,
    Shutdown,
    Drop,
}

/// A transport that records the order of the calls on it.
struct RecordingTransport {
    io: Script,
    shutdown: Shutdown,
    calls: Calls,
}

type Calls = Arc<Mutex<Vec<Call>>>;

impl RecordingTransport {
    fn record(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }
}

impl AsyncRead for RecordingTransport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for RecordingTransport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.record(Call::Write);
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.record(Call::Shutdown);
        match self.shutdown {
            Shutdown::Pending => Poll::Pending,
            Shutdown::Panics => panic!("the transport panics, as the test wants"),
            Shutdown::Done => Pin::new(&mut self.io).poll_shutdown(cx),
        }
    }
}

impl Drop for RecordingTransport {
    fn drop(&mut self) {
        self.record(Call::Drop);
    }
}

/// A connection with its peer and the recorded calls.
struct Connection {
    stream: LivenessStream<RecordingTransport>,
    live: Liveness,
    peer: Peer,
    calls: Calls,
}

impl Connection {
    fn start(builder: HeartbeatLayerBuilder, shutdown: Shutdown) -> Self {
        let (io, peer) = script();
        let calls = Calls::default();
        let observed = RecordingTransport {
            io,
            shutdown,
            calls: Arc::clone(&calls),
        };
        let (stream, live) = builder.build().unwrap().wrap_server(observed);
        Self {
            stream,
            live,
            peer,
            calls,
        }
    }

    /// A connection that is never pinged.
    fn quiet() -> Self {
        Self::start(heartbeat().interval(ms(60_000)), Shutdown::Done)
    }

    /// The reason of the eviction, and the calls after the last write, 1 s after it.
    async fn outcome(live: Liveness, calls: Calls) -> (Reason, Vec<Call>) {
        let reason = within("the end", live.evicted()).await.reason();
        sleep(ms(1_000)).await;
        let mut calls = calls.lock().unwrap().clone();
        let writes = calls.iter().rposition(|call| *call == Call::Write);
        calls.drain(..writes.map_or(0, |last| last + 1));
        (reason, calls)
    }

    /// The outcome while the handler keeps its stream, as a stuck one does.
    async fn end_with_kept_stream(self) -> (Reason, Vec<Call>) {
        let ended = Self::outcome(self.live, self.calls).await;
        drop(self.stream);
        ended
    }

    /// The outcome after the handler drops its stream.
    async fn end_by_drop(self) -> (Reason, Vec<Call>) {
        drop(self.stream);
        Self::outcome(self.live, self.calls).await
    }
}

fn close() -> Vec<u8> {
    frame(0x80 | CLOSE, None, &1_000_u16.to_be_bytes())
}

const SHUTDOWN_THEN_DROP: [Call; 2] = [Call::Shutdown, Call::Drop];

#[tokio::test(start_paused = true)]
async fn an_eviction_shuts_the_transport_down() {
    let dead = Reason::HeartbeatTimeout { missed: 1 };
    let connection = Connection::start(heartbeat(), Shutdown::Done);
    assert_eq!(
        connection.end_with_kept_stream().await,
        (dead, SHUTDOWN_THEN_DROP.to_vec())
    );

    let kicked = Reason::Kicked { code: 4_000 };
    for answer in [None, Some(close())] {
        let connection = Connection::quiet();
        assert!(connection.live.evict(4_000, "out"));
        if let Some(answer) = answer {
            connection
                .peer
                .send(&frame(answer[0], MASKING_KEY, &answer[2..]));
        }
        assert_eq!(
            connection.end_with_kept_stream().await,
            (kicked, SHUTDOWN_THEN_DROP.to_vec())
        );
    }

    // The handler's Close frame, without an answer.
    let mut connection = Connection::quiet();
    connection.stream.write_all(&close()).await.unwrap();
    assert_eq!(
        connection.end_with_kept_stream().await,
        (Reason::CloseTimeout, SHUTDOWN_THEN_DROP.to_vec())
    );
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_drops_its_stream_acts_as_without_the_layers() {
    let connection = Connection::quiet();
    let ended = connection.end_by_drop().await;
    assert_eq!(ended, (Reason::HandlerDropped, vec![Call::Drop]));

    let mut connection = Connection::quiet();
    connection.stream.write_all(&close()).await.unwrap();
    let code = Some(1_000);
    let ended = connection.end_by_drop().await;
    assert_eq!(ended, (Reason::ServerClosed { code }, vec![Call::Drop]));

    let mut connection = Connection::quiet();
    connection.stream.shutdown().await.unwrap();
    let ended = connection.end_by_drop().await;
    let closed = Reason::ServerClosed { code: None };
    assert_eq!(
        ended,
        (closed, SHUTDOWN_THEN_DROP.to_vec()),
        "only the handler's shutdown"
    );
}

/// The pong must not reach a closed socket, so the transport is shut down and lingers. Without the
/// layers it would only be dropped.
#[tokio::test(start_paused = true)]
async fn a_stream_dropped_before_the_pong_is_shut_down_once() {
    for shuts_down in [false, true] {
        let patient = heartbeat().timeout(ms(60_000));
        let mut connection = Connection::start(patient, Shutdown::Done);
        sleep(ms(105)).await;
        let reason = match shuts_down {
            true => {
                connection.stream.shutdown().await.unwrap();
                Reason::ServerClosed { code: None }
            }
            false => Reason::HandlerDropped,
        };
        assert_eq!(
            connection.end_by_drop().await,
            (reason, SHUTDOWN_THEN_DROP.to_vec())
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_without_a_tls_close_is_an_end_without_a_close_frame() {
    for end in [Ok(()), Err(ErrorKind::UnexpectedEof)] {
        let mut connection = Connection::quiet();
        connection.peer.end(end);
        let read = connection.stream.read(&mut [0; 8]).await;
        assert_eq!(read.map(|_| ()).map_err(|error| error.kind()), end);
        // The handler keeps its stream until the close timeout.
        let ended = connection.end_with_kept_stream().await;
        assert_eq!(
            ended,
            (Reason::PeerVanished, SHUTDOWN_THEN_DROP.to_vec()),
            "{end:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_pending_shutdown_is_not_awaited() {
    let connection = Connection::start(heartbeat(), Shutdown::Pending);
    connection.peer.write_steps(&[ALL, WAIT]);
    let live = connection.live.clone();
    let calls = Arc::clone(&connection.calls);
    live.evicted().await;
    sleep(ms(1)).await;
    assert!(
        calls.lock().unwrap().ends_with(&SHUTDOWN_THEN_DROP),
        "{calls:?}"
    );
    drop(connection.stream);
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_panics_is_dropped() {
    let dead = Reason::HeartbeatTimeout { missed: 1 };
    let connection = Connection::start(heartbeat(), Shutdown::Panics);
    assert_eq!(
        connection.end_with_kept_stream().await,
        (dead, SHUTDOWN_THEN_DROP.to_vec())
    );

    // A transport that has panicked before is not polled again.
    let connection = Connection::start(heartbeat(), Shutdown::Done);
    connection.peer.wire().panics = true;
    let failed = Reason::Transport(ErrorKind::Other);
    assert_eq!(
        connection.end_with_kept_stream().await,
        (failed, vec![Call::Drop])
    );
}
