//! Seats of failed upgrades, and of connections that end with their handler, task or runtime.

use std::future::{Future, pending};
use std::panic::resume_unwind;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc as blocking};
use std::task::{Context, Poll, Waker};
use std::thread;

use axum::Router;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tower_ws_liveness::{
    Evicted, Eviction, Liveness, LivenessStream, Reason, RegisterError, Registry,
};

use super::maps::{Census, Map, MutexMap, Session};
use super::seeded::{PATIENCE, run_on_thread, until};
use crate::support::raw::{Frame, RawClient, opening};
use crate::support::recorder::Recorder;
use crate::support::scene::{patient, quiet};
use crate::support::{serve_io, within};

// Handlers that register before they respond.

/// What the handler does after it has registered.
#[derive(Clone, Copy)]
enum AfterRegistering {
    Refuses,
    Panics,
    NeverAnswers,
    Upgrades(fn(WebSocket) -> Handler),
}

type Handler = Pin<Box<dyn Future<Output = ()> + Send>>;

struct HandshakeScene {
    app: Router,
    map: Arc<MutexMap>,
    census: Census,
    /// Records the hook of the layer.
    layer: Recorder,
    /// Records the hooks that are registered on the handles.
    own: Recorder,
    registry: Registry,
    handles: mpsc::UnboundedReceiver<Liveness>,
}

impl HandshakeScene {
    fn new(action: AfterRegistering) -> Self {
        let (map, census) = (Arc::new(MutexMap::default()), Census::default());
        let (layer, own) = (Recorder::new(), Recorder::new());
        let heartbeat = quiet().on_evict(layer.hook()).build().unwrap();
        let registry = heartbeat.registry();
        let (handles_tx, handles) = mpsc::unbounded_channel();
        let route = any({
            let (map, census, own) = (Arc::clone(&map), census.clone(), own.clone());
            move |ws: WebSocketUpgrade, live: Liveness| async move {
                live.on_evict(move |ev| own.record(ev));
                live.register(&map, "alice".to_owned(), census.session("alice"))
                    .unwrap();
                handles_tx.send(live).unwrap();
                answer(action, ws).await
            }
        });
        let app = Router::new()
            .route("/ws", route)
            .layer(patient().build().unwrap())
            .layer(heartbeat);
        Self {
            app,
            map,
            census,
            layer,
            own,
            registry,
            handles,
        }
    }

    /// Sends an opening handshake, and waits until the handler has registered.
    async fn open(&mut self) -> (TcpStream, Liveness) {
        let (client, server) = sockets().await;
        serve_io(self.app.clone(), server);
        self.open_over(client).await
    }

    async fn open_over(&mut self, mut client: TcpStream) -> (TcpStream, Liveness) {
        client.write_all(opening("/ws").as_bytes()).await.unwrap();
        let live = within("the handler", self.handles.recv()).await.unwrap();
        (client, live)
    }

    /// Asserts that the seat is removed, that the hook on the handle was called once, and the hook
    /// of the layer only if a connection was opened.
    async fn assert_undone(&self, live: &Liveness, reason: Reason, for_the_layer: bool) {
        let event = self.own.nth(1).await;
        assert_eq!((event.id, event.reason), (live.id(), reason));
        assert_eq!(seats(&event.eviction), ["alice"]);
        drop(event);
        assert_eq!(within("the end", live.evicted()).await.reason(), reason);
        assert!(self.map.holders().is_empty());
        assert!(self.registry.is_empty());
        let late = self.census.session("late");
        let late = live.register(&self.map, "alice".to_owned(), late);
        assert!(matches!(late, Err(RegisterError::Ended { .. })));
        self.own.stays_at(1).await;
        assert_eq!(self.layer.total(), usize::from(for_the_layer));
    }
}

async fn answer(action: AfterRegistering, ws: WebSocketUpgrade) -> Response {
    match action {
        AfterRegistering::Refuses => StatusCode::BAD_REQUEST.into_response(),
        AfterRegistering::Panics => panics(),
        AfterRegistering::NeverAnswers => pending().await,
        AfterRegistering::Upgrades(handler) => ws.on_upgrade(handler),
    }
}

/// Panics without output on the standard error.
fn panics() -> ! {
    resume_unwind(Box::new("a scripted panic"))
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, accepted) = tokio::join!(client, listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

/// The names of the seats in an eviction.
fn seats(ev: &Eviction) -> Vec<String> {
    let seats = ev.seats::<String, Session>();
    seats.map(|(_, seat)| seat.name.clone()).collect()
}

#[tokio::test]
async fn the_handler_refuses_after_it_has_registered() {
    let mut scene = HandshakeScene::new(AfterRegistering::Refuses);
    let (mut client, live) = scene.open().await;
    let mut head = [0; 12];
    let read = client.read_exact(&mut head);
    within("the response", read).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 400");
    scene
        .assert_undone(&live, Reason::UpgradeFailed, false)
        .await;
}

#[tokio::test]
async fn the_handler_panics_after_it_has_registered() {
    let mut scene = HandshakeScene::new(AfterRegistering::Panics);
    let (_client, live) = scene.open().await;
    scene
        .assert_undone(&live, Reason::UpgradeFailed, false)
        .await;
}

#[tokio::test]
async fn the_client_disconnects_before_the_handler_has_answered() {
    let mut scene = HandshakeScene::new(AfterRegistering::NeverAnswers);
    let (client, live) = scene.open().await;
    assert_eq!(scene.map.holders().len(), 1);
    assert_eq!(live.health().to_string(), "opening");
    // hyper drops the future of the response.
    drop(client);
    scene
        .assert_undone(&live, Reason::UpgradeFailed, false)
        .await;
}

#[tokio::test]
async fn the_upgrade_fails_after_the_101() {
    let mut scene = HandshakeScene::new(AfterRegistering::Upgrades(|_| panic!("upgraded")));
    let (client, server) = sockets().await;
    // Without `with_upgrades()` hyper writes the 101 but never provides the upgraded stream.
    let service = TowerToHyperService::new(scene.app.clone());
    let served = http1::Builder::new().serve_connection(TokioIo::new(server), service);
    let served = tokio::spawn(served);
    let (mut client, live) = scene.open_over(client).await;
    let mut head = [0; 12];
    let read = client.read_exact(&mut head);
    within("the response", read).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 101");
    scene
        .assert_undone(&live, Reason::UpgradeFailed, true)
        .await;
    within("the server", served).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_handler_panics_with_the_upgraded_socket() {
    let mut scene = HandshakeScene::new(AfterRegistering::Upgrades(|mut socket| {
        Box::pin(async move {
            socket.recv().await;
            panics();
        })
    }));
    let (client, server) = sockets().await;
    serve_io(scene.app.clone(), server);
    let mut client = RawClient::handshake(client, "/ws").await;
    let live = within("the handler", scene.handles.recv()).await.unwrap();
    assert_eq!(scene.map.holders().len(), 1);
    // The hook also panics, during the unwinding of the handler's panic.
    live.on_evict(|_| panics());
    client.send(&Frame::text("now")).await.unwrap();
    scene
        .assert_undone(&live, Reason::HandlerDropped, true)
        .await;
    client.closed().await;
}

// Shutdown of a runtime.

/// Connections on a separate runtime, each with a seat.
struct RuntimeScene {
    runtime: Runtime,
    map: Arc<MutexMap>,
    recorder: Recorder,
}

impl RuntimeScene {
    fn new() -> Self {
        Self::on(Builder::new_multi_thread().worker_threads(2))
    }

    fn on(builder: &mut Builder) -> Self {
        Self {
            runtime: builder.enable_all().build().unwrap(),
            map: Arc::default(),
            recorder: Recorder::new(),
        }
    }

    fn connect(&self, name: &str) -> (LivenessStream<DuplexStream>, Liveness, DuplexStream) {
        let _entered = self.runtime.enter();
        let (ours, theirs) = duplex(64);
        let layer = quiet().on_evict(self.recorder.hook()).build().unwrap();
        let (stream, live) = layer.wrap_server(ours);
        let session = Census::default().session(name);
        live.register(&self.map, name.to_owned(), session).unwrap();
        (stream, live, theirs)
    }

    /// Opens 50 connections whose handlers read until the end.
    fn connect_many(&self) -> Vec<(Liveness, DuplexStream)> {
        let connect = |number: usize| {
            let (mut stream, live, theirs) = self.connect(&number.to_string());
            self.runtime.spawn(async move {
                let _ = stream.read(&mut [0; 16]).await;
            });
            (live, theirs)
        };
        (0..50).map(connect).collect()
    }
}

/// The thread that shuts the runtime down calls each hook, with the seat that was removed.
#[test]
fn the_shutdown_of_a_runtime_evicts_each_connection_once() {
    let scene = RuntimeScene::new();
    let connections = scene.connect_many();
    assert_eq!(scene.map.holders().len(), 50);
    let RuntimeScene {
        runtime,
        map,
        recorder,
    } = scene;
    run_on_thread(move || drop(runtime));
    assert!(map.holders().is_empty());
    let events = recorder.all();
    assert_eq!(events.len(), 50);
    for (live, _) in &connections {
        assert_eq!(recorder.count(live.id()), 1);
        assert_eq!(live.health().to_string(), "ended");
    }
    for event in &events {
        assert_eq!(event.reason, Reason::HandlerDropped);
        assert_eq!(seats(&event.eviction).len(), 1);
    }
    assert_eq!(Arc::strong_count(&map), 1);
}

/// A task that blocks its thread is dropped only after it returns. Its connection ends before that.
#[test]
fn a_background_shutdown_ends_a_connection_whose_handler_blocks() {
    let scene = RuntimeScene::new();
    let (mut stream, live, theirs) = scene.connect("alice");
    let (started_tx, started) = blocking::channel();
    let (proceed_tx, proceed) = blocking::channel::<()>();
    let (done_tx, done) = blocking::channel();
    scene.runtime.spawn(async move {
        let _done = SendsOnDrop(done_tx);
        started_tx.send(()).unwrap();
        proceed.recv_timeout(PATIENCE).unwrap();
        assert_eq!(poll_read(&mut stream), Some(Reason::HandlerDropped));
        pending::<()>().await;
        drop(stream);
    });
    started.recv_timeout(PATIENCE).unwrap();
    scene.runtime.shutdown_background();
    until("the event", || scene.recorder.total() == 1);
    assert_eq!(seats(&scene.recorder.all()[0].eviction), ["alice"]);
    assert!(scene.map.holders().is_empty());
    until_dropped(theirs);
    proceed_tx.send(()).unwrap();
    done.recv_timeout(PATIENCE).unwrap();
    assert_eq!(scene.recorder.count(live.id()), 1);
    assert_eq!(scene.recorder.all()[0].reason, Reason::HandlerDropped);
}

/// Polls a read once, outside any runtime. Returns the eviction reason if the read fails.
fn poll_read<T>(stream: &mut LivenessStream<T>) -> Option<Reason>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut byte = [0];
    let read = pin!(stream.read(&mut byte));
    match read.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Err(error)) => Evicted::from_error(&error).map(|evicted| evicted.reason()),
        Poll::Ready(Ok(_)) | Poll::Pending => None,
    }
}

/// Waits until the other end of this stream is dropped.
fn until_dropped(mut theirs: DuplexStream) {
    let mut rest = Vec::new();
    let end = async { within("the end of the transport", theirs.read_to_end(&mut rest)).await };
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(end).unwrap();
}

/// Sends a message when it is dropped. Declared first in a task, so it is dropped last.
struct SendsOnDrop(blocking::Sender<()>);

impl Drop for SendsOnDrop {
    fn drop(&mut self) {
        self.0.send(()).unwrap();
    }
}

/// A stream ends with the runtime in which it was opened, wherever it is held: without the driver
/// on that runtime no ping is sent and no deadline expires.
#[test]
fn a_stream_held_outside_its_runtime_ends_with_the_runtime() {
    for mut flavor in [Builder::new_current_thread(), Builder::new_multi_thread()] {
        let scene = RuntimeScene::on(&mut flavor);
        let (mut stream, live, theirs) = scene.connect("alice");
        let (mut kicked_stream, kicked, kicked_peer) = scene.connect("bob");
        assert!(kicked.evict(4000, ""));
        let (mut closed_stream, closed, mut closing_peer) = scene.connect("carol");
        scene.runtime.block_on(async {
            let close = Frame::close(1000, "").masked();
            closing_peer.write_all(&close).await.unwrap();
            let close = closed_stream.read_exact(&mut [0; 8]).await;
            assert_eq!(close.unwrap(), 8);
        });
        let reasons = |recorder: &Recorder| -> Vec<Reason> {
            recorder.all().iter().map(|event| event.reason).collect()
        };
        let mut expected = vec![
            Reason::Kicked { code: 4000 },
            Reason::PeerClosed { code: Some(1000) },
        ];
        assert_eq!(reasons(&scene.recorder), expected);
        let RuntimeScene {
            runtime,
            map,
            recorder,
        } = scene;
        run_on_thread(move || drop(runtime));
        expected.push(Reason::HandlerDropped);
        assert_eq!(reasons(&recorder), expected);
        assert_eq!(seats(&recorder.all()[2].eviction), ["alice"]);
        assert!(map.holders().is_empty());
        for live in [&live, &kicked, &closed] {
            assert_eq!(live.health().to_string(), "ended");
            assert!(!live.evict(4000, ""));
        }
        assert_eq!(poll_read(&mut stream), Some(expected[2]));
        assert_eq!(poll_read(&mut kicked_stream), Some(expected[0]));
        assert_eq!(poll_read(&mut closed_stream), Some(expected[1]));
        for peer in [theirs, kicked_peer, closing_peer] {
            until_dropped(peer);
        }
        drop((stream, kicked_stream, closed_stream));
        assert_eq!(reasons(&recorder), expected);
        drop(recorder);
        assert_eq!(Arc::strong_count(&map), 1);
    }
}

#[tokio::test]
async fn a_read_in_another_runtime_fails_when_the_runtime_of_its_stream_shuts_down() {
    let scene = RuntimeScene::new();
    let (mut stream, live, _theirs) = scene.connect("alice");
    let mut write = [0; 1024];
    let mut reads = pin!(async {
        let (mut read, mut written) = tokio::io::split(&mut stream);
        let mut byte = [0];
        let write = async {
            // More than the transport accepts.
            write[0] = 0x82;
            written.write_all(&write).await
        };
        tokio::join!(read.read(&mut byte), write)
    });
    let polled = reads.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_pending());
    let RuntimeScene {
        runtime, recorder, ..
    } = scene;
    let shutdown = thread::spawn(move || drop(runtime));
    let (read, write) = within("the end", reads).await;
    for error in [read.unwrap_err(), write.unwrap_err()] {
        let evicted = Evicted::from_error(&error).expect("an eviction");
        assert_eq!(evicted.reason(), Reason::HandlerDropped);
    }
    shutdown.join().unwrap();
    assert_eq!(recorder.count(live.id()), 1);
}

/// Half of the sockets are in tasks of the server's runtime, half are held in another runtime.
#[test]
fn the_sockets_of_a_server_end_with_its_runtime() {
    const CLIENTS: usize = 20;

    let scene = RuntimeScene::new();
    let heartbeat = quiet().on_evict(scene.recorder.hook()).build().unwrap();
    let registry = heartbeat.registry();
    let (sockets_tx, mut sockets_rx) = mpsc::unbounded_channel();
    let opened = Arc::new(AtomicUsize::new(0));
    let route = any(move |ws: WebSocketUpgrade| async move {
        ws.on_upgrade(move |mut socket| async move {
            if opened.fetch_add(1, Ordering::Relaxed) % 2 == 0 {
                sockets_tx.send(socket).unwrap();
            } else {
                socket.recv().await;
            }
        })
    });
    let app = Router::new()
        .route("/ws", route)
        .layer(patient().build().unwrap())
        .layer(heartbeat);
    let addr = scene.runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async { axum::serve(listener, app).await });
        addr
    });
    let other = Builder::new_current_thread().enable_all().build().unwrap();
    let mut sockets = Vec::new();
    let clients = other.block_on(async {
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            let client = TcpStream::connect(addr).await.unwrap();
            clients.push(RawClient::handshake(client, "/ws").await);
        }
        while sockets.len() < CLIENTS / 2 {
            sockets.push(within("a socket", sockets_rx.recv()).await.unwrap());
        }
        clients
    });
    until("all are open", || registry.len() == CLIENTS);
    let RuntimeScene {
        runtime, recorder, ..
    } = scene;
    run_on_thread(move || drop(runtime));
    let events = recorder.all();
    assert_eq!(events.len(), CLIENTS);
    for event in events {
        assert_eq!(event.reason, Reason::HandlerDropped);
        assert_eq!(recorder.count(event.id), 1);
    }
    assert!(registry.is_empty());
    other.block_on(async {
        within("the registry", registry.wait_idle()).await;
        for mut client in clients {
            client.closed().await;
        }
        for mut socket in sockets {
            let end = within("the end", socket.recv()).await;
            assert!(matches!(end, Some(Err(_))), "{end:?}");
        }
    });
    assert_eq!(recorder.total(), CLIENTS);
}

/// During the shutdown hooks panic, spawn tasks, start a runtime, evict another connection and open
/// a new one. All the other hooks are called.
#[test]
fn no_hook_prevents_the_other_hooks_when_the_runtime_shuts_down() {
    for mut flavor in [Builder::new_current_thread(), Builder::new_multi_thread()] {
        let scene = RuntimeScene::on(&mut flavor);
        let connections: Vec<_> = (0..8)
            .map(|number| scene.connect(&number.to_string()))
            .collect();
        let handles: Vec<_> = connections.iter().map(|(_, live, _)| live).collect();
        let (handle, recorder) = (scene.runtime.handle().clone(), scene.recorder.clone());
        handles[0].on_evict(|_| panics());
        handles[1].on_evict(|_| drop(tokio::spawn(async {})));
        handles[2].on_evict(|_| {
            Builder::new_current_thread()
                .build()
                .unwrap()
                .block_on(async {})
        });
        let neighbour = handles[4].clone();
        handles[3].on_evict(move |_| {
            neighbour.evict(4000, "");
        });
        handles[5].on_evict(move |_| {
            let _entered = handle.enter();
            let layer = quiet().on_evict(recorder.hook()).build().unwrap();
            let (ours, _theirs) = duplex(64);
            let (mut stream, _) = layer.wrap_server(ours);
            assert_eq!(poll_read(&mut stream), Some(Reason::HandlerDropped));
        });
        let RuntimeScene {
            runtime,
            map,
            recorder,
        } = scene;
        run_on_thread(move || drop(runtime));
        for (stream, live, theirs) in connections {
            assert_eq!(recorder.count(live.id()), 1);
            until_dropped(theirs);
            drop(stream);
        }
        assert_eq!(recorder.total(), 9);
        assert!(map.holders().is_empty());
    }
}

/// The shutdown of the runtime, the drop of the stream and an eviction race. Hooks are called once.
#[test]
fn a_runtime_shutdown_and_a_concurrent_end_are_one_eviction() {
    for round in 0..300 {
        let scene = RuntimeScene::on(&mut Builder::new_current_thread());
        let (stream, live, theirs) = scene.connect("alice");
        let start = Arc::new(Barrier::new(3));
        let (evict_start, drop_start) = (Arc::clone(&start), Arc::clone(&start));
        let target = live.clone();
        let evicting = thread::spawn(move || {
            evict_start.wait();
            round % 2 == 0 && target.evict(4000, "")
        });
        let dropping = thread::spawn(move || {
            drop_start.wait();
            drop(stream);
        });
        let RuntimeScene {
            runtime,
            map,
            recorder,
        } = scene;
        start.wait();
        drop(runtime);
        dropping.join().unwrap();
        let kicked = evicting.join().unwrap();
        let reason = recorder.all()[0].reason;
        assert_eq!(kicked, reason != Reason::HandlerDropped);
        assert_eq!(recorder.total(), 1);
        assert!(map.holders().is_empty());
        until_dropped(theirs);
    }
}

/// A request whose response is pending ends with the runtime.
#[test]
fn a_pending_upgrade_ends_with_its_runtime() {
    let runtime = RuntimeScene::new().runtime;
    let (scene, live, client) = runtime.block_on(async {
        let mut scene = HandshakeScene::new(AfterRegistering::NeverAnswers);
        let (client, live) = scene.open().await;
        (scene, live, client)
    });
    assert_eq!(scene.map.holders().len(), 1);
    run_on_thread(move || drop((client, runtime)));
    assert!(scene.map.holders().is_empty());
    assert_eq!(scene.own.count(live.id()), 1);
    assert_eq!(scene.own.all()[0].reason, Reason::UpgradeFailed);
    assert_eq!(scene.layer.total(), 0);
}
