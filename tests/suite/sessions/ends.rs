//! Seats of connections that never come to be, and of those that go with their handler, their task or
//! their whole runtime.

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
use super::seeded::{PATIENCE, comes_back, until};
use crate::support::raw::{Frame, RawClient, opening};
use crate::support::recorder::Recorder;
use crate::support::scene::{patient, quiet};
use crate::support::{serve_io, within};

// Handlers that register before they answer.

/// What such a handler does then.
#[derive(Clone, Copy)]
enum Then {
    Refuses,
    Panics,
    NeverAnswers,
    Upgrades(fn(WebSocket) -> Handler),
}

type Handler = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Scene {
    app: Router,
    map: Arc<MutexMap>,
    census: Census,
    /// What the layer's hook was told, and what the connections' own hooks were.
    layer: Recorder,
    own: Recorder,
    registry: Registry,
    lives: mpsc::UnboundedReceiver<Liveness>,
}

impl Scene {
    fn new(then: Then) -> Self {
        let (map, census) = (Arc::new(MutexMap::default()), Census::default());
        let (layer, own) = (Recorder::new(), Recorder::new());
        let heartbeat = quiet().on_evict(layer.hook()).build().unwrap();
        let registry = heartbeat.registry();
        let (tell, lives) = mpsc::unbounded_channel();
        let route = any({
            let (map, census, own) = (Arc::clone(&map), census.clone(), own.clone());
            move |ws: WebSocketUpgrade, live: Liveness| async move {
                live.on_evict(move |ev| own.record(ev));
                live.register(&map, "alice".to_owned(), census.session("alice"))
                    .unwrap();
                tell.send(live).unwrap();
                answer(then, ws).await
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
            lives,
        }
    }

    /// Asks for the upgrade, and lets the handler register.
    async fn ask(&mut self) -> (TcpStream, Liveness) {
        let (client, server) = sockets().await;
        serve_io(self.app.clone(), server);
        self.ask_over(client).await
    }

    async fn ask_over(&mut self, mut client: TcpStream) -> (TcpStream, Liveness) {
        client.write_all(opening("/ws").as_bytes()).await.unwrap();
        let live = within("the handler", self.lives.recv()).await.unwrap();
        (client, live)
    }

    /// The seat is gone, and those who are to be told were told: the connection's own hooks in any
    /// case, the layer's if there was a connection for it.
    async fn is_undone(&self, live: &Liveness, reason: Reason, for_the_layer: bool) {
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

async fn answer(then: Then, ws: WebSocketUpgrade) -> Response {
    match then {
        Then::Refuses => StatusCode::BAD_REQUEST.into_response(),
        Then::Panics => panics(),
        Then::NeverAnswers => pending().await,
        Then::Upgrades(handler) => ws.on_upgrade(handler),
    }
}

/// Panics without a word on the standard error.
fn panics() -> ! {
    resume_unwind(Box::new("as the test wants"))
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, accepted) = tokio::join!(client, listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

/// The names of the seats that a hook was told of.
fn seats(ev: &Eviction) -> Vec<String> {
    let seats = ev.seats::<String, Session>();
    seats.map(|(_, seat)| seat.name.clone()).collect()
}

#[tokio::test]
async fn the_handler_refuses_after_it_has_registered() {
    let mut scene = Scene::new(Then::Refuses);
    let (mut client, live) = scene.ask().await;
    let mut head = [0; 12];
    let read = client.read_exact(&mut head);
    within("the response", read).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 400");
    scene.is_undone(&live, Reason::UpgradeFailed, false).await;
}

#[tokio::test]
async fn the_handler_panics_after_it_has_registered() {
    let mut scene = Scene::new(Then::Panics);
    let (_client, live) = scene.ask().await;
    scene.is_undone(&live, Reason::UpgradeFailed, false).await;
}

#[tokio::test]
async fn the_client_goes_before_the_handler_has_answered() {
    let mut scene = Scene::new(Then::NeverAnswers);
    let (client, live) = scene.ask().await;
    assert_eq!(scene.map.holders().len(), 1);
    assert_eq!(live.health().to_string(), "opening");
    // hyper drops the future of the response.
    drop(client);
    scene.is_undone(&live, Reason::UpgradeFailed, false).await;
}

#[tokio::test]
async fn the_upgrade_fails_after_the_101() {
    let mut scene = Scene::new(Then::Upgrades(|_| panic!("upgraded")));
    let (client, server) = sockets().await;
    // Without `with_upgrades()`: hyper writes the 101, and gives no stream out.
    let service = TowerToHyperService::new(scene.app.clone());
    let served = http1::Builder::new().serve_connection(TokioIo::new(server), service);
    let served = tokio::spawn(served);
    let (mut client, live) = scene.ask_over(client).await;
    let mut head = [0; 12];
    let read = client.read_exact(&mut head);
    within("the response", read).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 101");
    scene.is_undone(&live, Reason::UpgradeFailed, true).await;
    within("the server", served).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_handler_panics_with_the_upgraded_socket() {
    let mut scene = Scene::new(Then::Upgrades(|mut socket| {
        Box::pin(async move {
            socket.recv().await;
            panics();
        })
    }));
    let (client, server) = sockets().await;
    serve_io(scene.app.clone(), server);
    let mut client = RawClient::handshake(client, "/ws").await;
    let live = within("the handler", scene.lives.recv()).await.unwrap();
    assert_eq!(scene.map.holders().len(), 1);
    // A hook that panics as well, while the stack is being unwound, harms nobody.
    live.on_evict(|_| panics());
    client.send(&Frame::text("now")).await.unwrap();
    scene.is_undone(&live, Reason::HandlerDropped, true).await;
    client.closed().await;
}

// Runtimes that go.

/// Connections on a runtime of their own, all of them seated.
struct Doomed {
    runtime: Runtime,
    map: Arc<MutexMap>,
    recorder: Recorder,
}

impl Doomed {
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

    /// Connections whose handlers read for ever.
    fn crowd(&self) -> Vec<(Liveness, DuplexStream)> {
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

/// Each event is fired, by whoever shuts the runtime down, with the seat that was taken out.
#[test]
fn the_handlers_go_with_their_runtime() {
    let doomed = Doomed::new();
    let crowd = doomed.crowd();
    assert_eq!(doomed.map.holders().len(), 50);
    let Doomed {
        runtime,
        map,
        recorder,
    } = doomed;
    comes_back(move || drop(runtime));
    assert!(map.holders().is_empty());
    let events = recorder.all();
    assert_eq!(events.len(), 50);
    for (live, _) in &crowd {
        assert_eq!(recorder.count(live.id()), 1);
        assert_eq!(live.health().to_string(), "ended");
    }
    for event in &events {
        assert_eq!(event.reason, Reason::HandlerDropped);
        assert_eq!(seats(&event.eviction).len(), 1);
    }
    assert_eq!(Arc::strong_count(&map), 1);
}

/// A handler that blocks its thread is dropped only once it no longer does. Its connection has ended by
/// then.
#[test]
fn a_connection_ends_at_a_shutdown_in_the_background_though_its_handler_blocks() {
    let doomed = Doomed::new();
    let (mut stream, live, theirs) = doomed.connect("alice");
    let (started, starts) = blocking::channel();
    let (go_on, goes_on) = blocking::channel::<()>();
    let (done, is_done) = blocking::channel();
    doomed.runtime.spawn(async move {
        let _done = SaysWhenDropped(done);
        started.send(()).unwrap();
        goes_on.recv_timeout(PATIENCE).unwrap();
        assert_eq!(poll_read(&mut stream), Some(Reason::HandlerDropped));
        pending::<()>().await;
        drop(stream);
    });
    starts.recv_timeout(PATIENCE).unwrap();
    doomed.runtime.shutdown_background();
    until("the event", || doomed.recorder.total() == 1);
    assert_eq!(seats(&doomed.recorder.all()[0].eviction), ["alice"]);
    assert!(doomed.map.holders().is_empty());
    until_dropped(theirs);
    go_on.send(()).unwrap();
    is_done.recv_timeout(PATIENCE).unwrap();
    assert_eq!(doomed.recorder.count(live.id()), 1);
    assert_eq!(doomed.recorder.all()[0].reason, Reason::HandlerDropped);
}

/// Polls a read once, outside of any runtime. The reason for which it fails, if it does.
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

/// Dropped after what it stands beside.
struct SaysWhenDropped(blocking::Sender<()>);

impl Drop for SaysWhenDropped {
    fn drop(&mut self) {
        self.0.send(()).unwrap();
    }
}

/// A stream that is kept elsewhere ends with the runtime in which it was opened: without the driver there,
/// no ping would be sent and no timeout would come.
#[test]
fn a_stream_that_is_kept_elsewhere_ends_with_its_runtime() {
    for mut flavor in [Builder::new_current_thread(), Builder::new_multi_thread()] {
        let doomed = Doomed::on(&mut flavor);
        let (mut stream, live, theirs) = doomed.connect("alice");
        let (mut kicked_stream, kicked, kicked_peer) = doomed.connect("bob");
        assert!(kicked.evict(4000, ""));
        let (mut closed_stream, closed, mut closing_peer) = doomed.connect("carol");
        doomed.runtime.block_on(async {
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
        assert_eq!(reasons(&doomed.recorder), expected);
        let Doomed {
            runtime,
            map,
            recorder,
        } = doomed;
        comes_back(move || drop(runtime));
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
async fn a_read_in_another_runtime_fails_when_the_runtime_of_its_stream_goes() {
    let doomed = Doomed::new();
    let (mut stream, live, _theirs) = doomed.connect("alice");
    let mut write = [0; 1024];
    let mut reads = pin!(async {
        let (mut read, mut written) = tokio::io::split(&mut stream);
        let mut byte = [0];
        let write = async {
            // More than the transport takes.
            write[0] = 0x82;
            written.write_all(&write).await
        };
        tokio::join!(read.read(&mut byte), write)
    });
    let polled = reads.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_pending());
    let Doomed {
        runtime, recorder, ..
    } = doomed;
    let gone = thread::spawn(move || drop(runtime));
    let (read, write) = within("the end", reads).await;
    for error in [read.unwrap_err(), write.unwrap_err()] {
        let evicted = Evicted::from_error(&error).expect("an eviction");
        assert_eq!(evicted.reason(), Reason::HandlerDropped);
    }
    gone.join().unwrap();
    assert_eq!(recorder.count(live.id()), 1);
}

/// Some of the sockets are in tasks of the server's runtime, some are kept in another one.
#[test]
fn the_sockets_of_a_server_go_with_its_runtime() {
    const CLIENTS: usize = 20;

    let doomed = Doomed::new();
    let heartbeat = quiet().on_evict(doomed.recorder.hook()).build().unwrap();
    let registry = heartbeat.registry();
    let (keep, mut kept) = mpsc::unbounded_channel();
    let opened = Arc::new(AtomicUsize::new(0));
    let route = any(move |ws: WebSocketUpgrade| async move {
        ws.on_upgrade(move |mut socket| async move {
            if opened.fetch_add(1, Ordering::Relaxed) % 2 == 0 {
                keep.send(socket).unwrap();
            } else {
                socket.recv().await;
            }
        })
    });
    let app = Router::new()
        .route("/ws", route)
        .layer(patient().build().unwrap())
        .layer(heartbeat);
    let addr = doomed.runtime.block_on(async {
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
            sockets.push(within("a socket", kept.recv()).await.unwrap());
        }
        clients
    });
    until("all are open", || registry.len() == CLIENTS);
    let Doomed {
        runtime, recorder, ..
    } = doomed;
    comes_back(move || drop(runtime));
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

/// Whatever one hook does during the shutdown of the runtime, the other hooks are called.
#[test]
fn no_hook_keeps_the_others_from_hearing_that_the_runtime_goes() {
    for mut flavor in [Builder::new_current_thread(), Builder::new_multi_thread()] {
        let doomed = Doomed::on(&mut flavor);
        let connections: Vec<_> = (0..8)
            .map(|number| doomed.connect(&number.to_string()))
            .collect();
        let lives: Vec<_> = connections.iter().map(|(_, live, _)| live).collect();
        let (handle, recorder) = (doomed.runtime.handle().clone(), doomed.recorder.clone());
        lives[0].on_evict(|_| panics());
        lives[1].on_evict(|_| drop(tokio::spawn(async {})));
        lives[2].on_evict(|_| {
            Builder::new_current_thread()
                .build()
                .unwrap()
                .block_on(async {})
        });
        let neighbour = lives[4].clone();
        lives[3].on_evict(move |_| {
            neighbour.evict(4000, "");
        });
        lives[5].on_evict(move |_| {
            let _entered = handle.enter();
            let layer = quiet().on_evict(recorder.hook()).build().unwrap();
            let (ours, _theirs) = duplex(64);
            let (mut stream, _) = layer.wrap_server(ours);
            assert_eq!(poll_read(&mut stream), Some(Reason::HandlerDropped));
        });
        let Doomed {
            runtime,
            map,
            recorder,
        } = doomed;
        comes_back(move || drop(runtime));
        for (stream, live, theirs) in connections {
            assert_eq!(recorder.count(live.id()), 1);
            until_dropped(theirs);
            drop(stream);
        }
        assert_eq!(recorder.total(), 9);
        assert!(map.holders().is_empty());
    }
}

/// The shutdown of the runtime, the handler's drop and a kick race: hooks are called for one of them.
#[test]
fn a_runtime_that_goes_and_another_end_are_one_event() {
    for round in 0..300 {
        let doomed = Doomed::on(&mut Builder::new_current_thread());
        let (stream, live, theirs) = doomed.connect("alice");
        let start = Arc::new(Barrier::new(3));
        let (kicks, drops) = (Arc::clone(&start), Arc::clone(&start));
        let kicked = live.clone();
        let kicker = thread::spawn(move || {
            kicks.wait();
            round % 2 == 0 && kicked.evict(4000, "")
        });
        let dropper = thread::spawn(move || {
            drops.wait();
            drop(stream);
        });
        let Doomed {
            runtime,
            map,
            recorder,
        } = doomed;
        start.wait();
        drop(runtime);
        dropper.join().unwrap();
        let kicked = kicker.join().unwrap();
        let reason = recorder.all()[0].reason;
        assert_eq!(kicked, reason != Reason::HandlerDropped);
        assert_eq!(recorder.total(), 1);
        assert!(map.holders().is_empty());
        until_dropped(theirs);
    }
}

/// A request that waits for its answer goes with the runtime as well.
#[test]
fn an_upgrade_under_way_goes_with_its_runtime() {
    let runtime = Doomed::new().runtime;
    let (scene, live, client) = runtime.block_on(async {
        let mut scene = Scene::new(Then::NeverAnswers);
        let (client, live) = scene.ask().await;
        (scene, live, client)
    });
    assert_eq!(scene.map.holders().len(), 1);
    comes_back(move || drop((client, runtime)));
    assert!(scene.map.holders().is_empty());
    assert_eq!(scene.own.count(live.id()), 1);
    assert_eq!(scene.own.all()[0].reason, Reason::UpgradeFailed);
    assert_eq!(scene.layer.total(), 0);
}
