//! Seats of connections that never come to be, and of those that go with their handler, their task or
//! their whole runtime.

#[path = "support/maps.rs"]
mod maps;
#[path = "support/seeded.rs"]
mod seeded;
mod support;

use std::future::{Future, pending};
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::{Arc, mpsc as blocking};
use std::thread;

use axum::Router;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use maps::{Census, Map, MutexMap, Session};
use seeded::{PATIENCE, comes_back};
use support::raw::{Frame, RawClient, opening};
use support::recorder::Recorder;
use support::scene::{patient, quiet};
use support::{serve_io, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tower_ws_liveness::{Eviction, Liveness, LivenessStream, Reason, RegisterError, Registry};

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
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        Self {
            runtime,
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

/// A handler that blocks its thread is dropped when it lets go of it, and no sooner: so long it is
/// in the map.
#[test]
fn a_handler_that_blocks_outlives_a_shutdown_in_the_background() {
    let doomed = Doomed::new();
    let (stream, live, _theirs) = doomed.connect("alice");
    let (started, starts) = blocking::channel();
    let (go_on, goes_on) = blocking::channel::<()>();
    let (done, is_done) = blocking::channel();
    doomed.runtime.spawn(async move {
        let _stream = (stream, SaysWhenDropped(done));
        started.send(()).unwrap();
        goes_on.recv_timeout(PATIENCE).unwrap();
        pending::<()>().await;
    });
    starts.recv_timeout(PATIENCE).unwrap();
    doomed.runtime.shutdown_background();
    assert_eq!(doomed.map.holders().len(), 1);
    assert_eq!(doomed.recorder.total(), 0);
    go_on.send(()).unwrap();
    is_done.recv_timeout(PATIENCE).unwrap();
    assert!(doomed.map.holders().is_empty());
    assert_eq!(doomed.recorder.count(live.id()), 1);
}

/// Dropped after what it stands beside.
struct SaysWhenDropped(blocking::Sender<()>);

impl Drop for SaysWhenDropped {
    fn drop(&mut self) {
        self.0.send(()).unwrap();
    }
}

/// Nobody looks after a stream that is kept elsewhere any more: no ping is sent and no timeout comes.
/// Its event is fired, and its seat goes, when it is dropped or evicted.
#[test]
fn a_stream_that_outlives_its_runtime_is_seated_until_it_is_dropped() {
    let doomed = Doomed::new();
    let (stream, live, _theirs) = doomed.connect("alice");
    let (_kicked_stream, kicked, _their) = doomed.connect("bob");
    let Doomed {
        runtime,
        map,
        recorder,
    } = doomed;
    comes_back(move || drop(runtime));
    assert_eq!(recorder.total(), 0);
    assert_eq!(map.seat("alice").unwrap().id(), live.id());
    assert_eq!(map.seat("bob").unwrap().id(), kicked.id());
    // A connection of another runtime may take a seat over.
    assert!(kicked.evict(4000, ""));
    assert!(map.seat("bob").is_none());
    thread::spawn(move || drop(stream)).join().unwrap();
    assert!(map.holders().is_empty());
    let reasons: Vec<Reason> = recorder.all().iter().map(|event| event.reason).collect();
    let kicked = Reason::Kicked { code: 4000 };
    assert_eq!(reasons, [kicked, Reason::HandlerDropped]);
    drop(recorder);
    assert_eq!(Arc::strong_count(&map), 1);
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
