//! When the layer ends a connection, the transport is shut down before it is dropped, once and without
//! waiting: under TLS that is what tells a clean end from one that was forced. A handler that drops
//! its stream has done what it would do without the layers.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::sleep;
use tower_ws_liveness::{HeartbeatLayerBuilder, Liveness, LivenessStream, Reason};

use crate::script::*;
use crate::support::within;

const KEY: Option<[u8; 4]> = Some([1, 2, 3, 4]);

/// What a transport does when it is told to shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shutdown {
    Done,
    /// It has bytes that the peer does not take.
    Waits,
    Panics,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Write,
    Shutdown,
    Drop,
}

/// A transport that remembers in which order it was called.
struct Observed {
    io: Script,
    shutdown: Shutdown,
    calls: Calls,
}

type Calls = Arc<Mutex<Vec<Call>>>;

impl Observed {
    fn called(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }
}

impl AsyncRead for Observed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Observed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.called(Call::Write);
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.called(Call::Shutdown);
        match self.shutdown {
            Shutdown::Waits => Poll::Pending,
            Shutdown::Panics => panic!("the transport panics, as the test wants"),
            Shutdown::Done => Pin::new(&mut self.io).poll_shutdown(cx),
        }
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        self.called(Call::Drop);
    }
}

/// A connection, and all that is seen of it.
struct Scene {
    stream: LivenessStream<Observed>,
    live: Liveness,
    peer: Peer,
    calls: Calls,
}

impl Scene {
    fn begin(builder: HeartbeatLayerBuilder, shutdown: Shutdown) -> Self {
        let (io, peer) = script();
        let calls = Calls::default();
        let observed = Observed {
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

    /// One that is never pinged.
    fn quiet() -> Self {
        Self::begin(heartbeat().interval(ms(60_000)), Shutdown::Done)
    }

    /// Why it ended, and what was called after the last write, when all is over.
    async fn end(live: Liveness, calls: Calls) -> (Reason, Vec<Call>) {
        let reason = within("the end", live.evicted()).await.reason();
        sleep(ms(1_000)).await;
        let mut calls = calls.lock().unwrap().clone();
        let writes = calls.iter().rposition(|call| *call == Call::Write);
        calls.drain(..writes.map_or(0, |last| last + 1));
        (reason, calls)
    }

    /// The end with the handler's stream kept, as by one that is stuck.
    async fn ends(self) -> (Reason, Vec<Call>) {
        let ended = Self::end(self.live, self.calls).await;
        drop(self.stream);
        ended
    }

    async fn ends_by_drop(self) -> (Reason, Vec<Call>) {
        drop(self.stream);
        Self::end(self.live, self.calls).await
    }
}

fn close() -> Vec<u8> {
    frame(0x80 | CLOSE, None, &1_000_u16.to_be_bytes())
}

const CLEAN: [Call; 2] = [Call::Shutdown, Call::Drop];

#[tokio::test(start_paused = true)]
async fn an_eviction_shuts_the_transport_down() {
    let dead = Reason::HeartbeatTimeout { missed: 1 };
    let scene = Scene::begin(heartbeat(), Shutdown::Done);
    assert_eq!(scene.ends().await, (dead, CLEAN.to_vec()));

    let kicked = Reason::Kicked { code: 4_000 };
    for answer in [None, Some(close())] {
        let scene = Scene::quiet();
        assert!(scene.live.evict(4_000, "out"));
        if let Some(answer) = answer {
            scene.peer.send(&frame(answer[0], KEY, &answer[2..]));
        }
        assert_eq!(scene.ends().await, (kicked, CLEAN.to_vec()));
    }

    // The handler's own Close, which nobody answers.
    let mut scene = Scene::quiet();
    scene.stream.write_all(&close()).await.unwrap();
    assert_eq!(scene.ends().await, (Reason::CloseTimeout, CLEAN.to_vec()));
}

#[tokio::test(start_paused = true)]
async fn a_handler_lets_go_as_it_does_without_the_layers() {
    let scene = Scene::quiet();
    let ended = scene.ends_by_drop().await;
    assert_eq!(ended, (Reason::HandlerDropped, vec![Call::Drop]));

    let mut scene = Scene::quiet();
    scene.stream.write_all(&close()).await.unwrap();
    let code = Some(1_000);
    let ended = scene.ends_by_drop().await;
    assert_eq!(ended, (Reason::ServerClosed { code }, vec![Call::Drop]));

    let mut scene = Scene::quiet();
    scene.stream.shutdown().await.unwrap();
    let ended = scene.ends_by_drop().await;
    let closed = Reason::ServerClosed { code: None };
    assert_eq!(ended, (closed, CLEAN.to_vec()), "its own, and no other");
}

/// The pong to our ping would meet a closed socket, so the end is another one than without the layers.
#[tokio::test(start_paused = true)]
async fn a_handler_that_lets_go_before_the_pong_leaves_a_transport_that_is_shut_down_once() {
    for shuts_down in [false, true] {
        let patient = heartbeat().timeout(ms(60_000));
        let mut scene = Scene::begin(patient, Shutdown::Done);
        sleep(ms(105)).await;
        let reason = match shuts_down {
            true => {
                scene.stream.shutdown().await.unwrap();
                Reason::ServerClosed { code: None }
            }
            false => Reason::HandlerDropped,
        };
        assert_eq!(scene.ends_by_drop().await, (reason, CLEAN.to_vec()));
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_that_tls_did_not_announce_is_one_without_a_close() {
    for end in [Ok(()), Err(ErrorKind::UnexpectedEof)] {
        let mut scene = Scene::quiet();
        scene.peer.end(end);
        let read = scene.stream.read(&mut [0; 8]).await;
        assert_eq!(read.map(|_| ()).map_err(|error| error.kind()), end);
        // The handler keeps its stream, until the layer has waited long enough.
        let ended = scene.ends().await;
        assert_eq!(ended, (Reason::PeerVanished, CLEAN.to_vec()), "{end:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_that_would_wait_is_not_waited_for() {
    let scene = Scene::begin(heartbeat(), Shutdown::Waits);
    scene.peer.write_steps(&[ALL, WAIT]);
    let live = scene.live.clone();
    let calls = Arc::clone(&scene.calls);
    live.evicted().await;
    sleep(ms(1)).await;
    assert!(calls.lock().unwrap().ends_with(&CLEAN), "{calls:?}");
    drop(scene.stream);
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_panics_is_dropped_all_the_same() {
    let dead = Reason::HeartbeatTimeout { missed: 1 };
    let scene = Scene::begin(heartbeat(), Shutdown::Panics);
    assert_eq!(scene.ends().await, (dead, CLEAN.to_vec()));

    // One that has panicked before is not asked again.
    let scene = Scene::begin(heartbeat(), Shutdown::Done);
    scene.peer.wire().panics = true;
    let failed = Reason::Transport(ErrorKind::Other);
    assert_eq!(scene.ends().await, (failed, vec![Call::Drop]));
}
