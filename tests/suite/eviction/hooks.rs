//! Eviction hooks and the handler's blocked reads and writes: order, reasons and contexts.

use std::cell::Cell;
use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{Message, WebSocket};
use tokio::io::{AsyncRead, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::runtime::{Builder, Handle, Id};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tower_ws_liveness::{
    Evicted, Eviction, HealthChange, HeartbeatLayer, HeartbeatLayerBuilder,
    IdleTimeoutLayerBuilder, Liveness, LivenessStream, OnEvict, OnHealth, OnOpen, Reason, Registry,
};

use crate::support::raw::{Answer, Frame, RawClient};
use crate::support::recorder::Recorder;
use crate::support::scene::{Scene, patient, quiet};
use crate::support::wire::{Wire, over_each_wire};
use crate::support::{
    self, Server, echo, echo_route, ms, never_reads, until, watched_route, within,
};

over_each_wire! {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    a_blocked_read_wakes_with_the_reason_after_the_hook_has_run;
    #[tokio::test]
    a_blocked_write_wakes_with_the_reason,
    the_hooks_have_run_when_the_peer_sees_the_close_frame,
    every_hook_of_every_layer_is_called_once_and_a_panicking_one_affects_no_other,
    a_hook_may_use_the_registry_and_the_handle,
    a_hook_added_after_the_end_is_called_at_once,
    the_session_is_available_to_the_handler_the_registry_and_the_hook,
    a_kicked_handler_gets_the_reason_in_the_error,
    without_an_eviction_no_hook_is_called;
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    of_many_simultaneous_ends_one_is_reported;
}

/// The IO error in the source chain of a WebSocket library's error.
fn io_error<'a>(mut error: &'a (dyn Error + 'static)) -> &'a io::Error {
    loop {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io;
        }
        error = error.source().expect("an IO error in the chain");
    }
}

async fn a_blocked_read_wakes_with_the_reason_after_the_hook_has_run(wire: Wire) {
    let timed_out = io::ErrorKind::TimedOut;
    let dead = || quiet().interval(ms(50)).timeout(ms(50));
    let cases: [(HeartbeatLayerBuilder, IdleTimeoutLayerBuilder, _, _); 4] = [
        (dead(), patient(), timed_out, "heartbeat_timeout"),
        (
            quiet(),
            patient().timeout(ms(100)),
            timed_out,
            "idle_timeout",
        ),
        (
            quiet(),
            patient().first_message(ms(100)),
            timed_out,
            "first_message_timeout",
        ),
        (
            quiet(),
            patient().max_lifetime(ms(100)),
            timed_out,
            "max_lifetime",
        ),
    ];
    for (heartbeat, idle, kind, label) in cases {
        let log = Arc::new(Mutex::new(Vec::new()));
        let hook_log = log.clone();
        let heartbeat = heartbeat
            .close_timeout(ms(100))
            .on_evict(move |_: &Eviction| hook_log.lock().unwrap().push("hook"));
        let handler_log = log.clone();
        let (tx, mut rx) = mpsc::unbounded_channel();
        let handler = move |mut socket: WebSocket| {
            let (log, tx) = (handler_log.clone(), tx.clone());
            async move {
                let woken = socket.recv().await;
                log.lock().unwrap().push("woken");
                tx.send(woken).unwrap();
            }
        };
        let idle = idle.close_timeout(ms(100));
        let mut scene = Scene::start(wire, heartbeat, idle, handler).await;
        let (client, _live) = scene.connect().await;
        // The client keeps its socket, and neither reads nor answers.
        let error = within("the handler's read", rx.recv()).await.unwrap();
        let error = error.expect("an error, not the end").unwrap_err();
        let evicted = Evicted::from_error(&error).expect("the reason in the error");
        assert_eq!(evicted.reason().as_str(), label);
        assert_eq!(io_error(&error).kind(), kind, "{label}");
        assert_eq!(*log.lock().unwrap(), ["hook", "woken"], "{label}");
        scene.handlers_done(1).await;
        scene.assert_evicted_once().await;
        drop(client);
    }
}

async fn a_blocked_write_wakes_with_the_reason(wire: Wire) {
    let (tx, mut rx) = mpsc::unbounded_channel();
    let handler = move |mut socket: WebSocket| {
        let tx = tx.clone();
        async move {
            let error = loop {
                let message = Message::binary(vec![0; 1 << 18]);
                if let Err(error) = socket.send(message).await {
                    break error;
                }
            };
            tx.send(error).unwrap();
        }
    };
    let heartbeat = quiet().write_timeout(ms(300)).close_timeout(ms(100));
    let mut scene = Scene::start(wire, heartbeat, patient(), handler).await;
    let (client, live) = scene.connect().await;
    let error = within("the handler's write", rx.recv()).await.unwrap();
    let evicted = Evicted::from_error(&error).expect("the reason in the error");
    assert_eq!(evicted.reason(), Reason::WriteStalled);
    assert_eq!(io_error(&error).kind(), io::ErrorKind::TimedOut);
    scene.ended(&live, Reason::WriteStalled).await;
    drop(client);
}

async fn the_hooks_have_run_when_the_peer_sees_the_close_frame(wire: Wire) {
    for _ in 0..20 {
        let mut scene = Scene::start(wire, quiet(), patient(), never_reads).await;
        let (mut client, live) = scene.connect().await;
        live.evict(4000, "go");
        let close = client.expect_frame().await;
        assert_eq!(close, Frame::close(4000, "go"));
        assert_eq!(scene.recorder.total(), 1);
        assert_eq!(scene.local.total(), 1);
    }
}

async fn every_hook_of_every_layer_is_called_once_and_a_panicking_one_affects_no_other(wire: Wire) {
    let (second, third, fourth) = (Recorder::new(), Recorder::new(), Recorder::new());
    let heartbeat = quiet()
        .on_evict(|_: &Eviction| panic!("a hook that panics"))
        .on_evict(second.hook())
        .on_evict(third.hook());
    let idle = patient()
        .on_evict(|_: &Eviction| panic!("another hook that panics"))
        .on_evict(fourth.hook());
    let mut scene = Scene::start(wire, heartbeat, idle, echo).await;

    let (mut witness, _) = scene.connect().await;
    let (client, live) = scene.connect().await;
    let own = Recorder::new();
    live.on_evict(|_| panic!("the connection's own hook panics too"));
    let own_hook = own.hook();
    live.on_evict(move |ev| own_hook(ev));
    drop(client);

    for recorder in [
        &second,
        &third,
        &fourth,
        &scene.recorder,
        &scene.local,
        &own,
    ] {
        let event = recorder.nth(1).await;
        assert_eq!((event.id, event.reason), (live.id(), Reason::PeerVanished));
    }
    scene.handlers_done(1).await;
    until("one connection is left", || scene.registry.len() == 1).await;
    // The neighbour, the layers and later connections work as before.
    witness.send(&Frame::text("fine")).await.unwrap();
    assert_eq!(witness.expect_frame().await, Frame::text("fine"));
    let (third_client, _) = scene.connect().await;
    drop(third_client);
    second.nth(2).await;
    for recorder in [&second, &third, &fourth, &scene.recorder, &scene.local] {
        recorder.nth(2).await;
        recorder.stays_at(2).await;
        assert_eq!(recorder.count(live.id()), 1);
    }
    own.stays_at(1).await;
}

async fn a_hook_may_use_the_registry_and_the_handle(wire: Wire) {
    // Each of these calls would deadlock if the hook ran under a lock.
    let registry = Registry::new();
    let reached = registry.clone();
    let recorder = Recorder::new();
    let record = recorder.hook();
    let slot = Arc::new(Mutex::new(None::<Liveness>));
    let handle = slot.clone();
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(1000))
        .timeout(ms(50))
        .registry(registry.clone())
        .on_evict(move |ev: &Eviction| {
            // The connection has left the registry: one that is found there is still usable.
            assert!(reached.get(ev.id()).is_none());
            let _ = reached.len();
            let live = handle.lock().unwrap().clone().expect("the handle");
            assert!(!live.evict(4000, "once more"));
            let _ = (live.rtt(), live.stats(), live.last_seen(), live.idle_for());
            let _ = (live.id(), live.health(), live.session::<String>());
            live.set_session("late".to_owned());
            live.on_evict(|_| {});
            record(ev);
        })
        .build()
        .unwrap();
    let (route, mut lives) = watched_route(never_reads);
    let app = Router::new().route("/ws", route).layer(heartbeat);
    let server = Server::start(app).await;
    // Evicted by the driver, and by a task of the application.
    for (n, reason) in [
        Reason::HeartbeatTimeout { missed: 1 },
        Reason::Kicked { code: 4000 },
    ]
    .into_iter()
    .enumerate()
    {
        let client = server.client(wire, "/ws").await;
        let live = within("the handler", lives.recv()).await.unwrap();
        *slot.lock().unwrap() = Some(live.clone());
        if n == 1 {
            assert!(live.evict(4000, "go"));
        }
        // The hook records in its last line, so none of its assertions has failed.
        let event = recorder.nth(n + 1).await;
        assert_eq!((event.id, event.reason), (live.id(), reason));
        until("the registry is empty", || registry.is_empty()).await;
        recorder.stays_at(n + 1).await;
        drop(client);
    }
}

async fn a_hook_added_after_the_end_is_called_at_once(wire: Wire) {
    let mut scene = Scene::start(wire, quiet(), patient(), echo).await;
    let (client, live) = scene.connect().await;
    drop(client);
    scene.ended(&live, Reason::PeerVanished).await;
    let late = Recorder::new();
    let hook = late.hook();
    live.on_evict(move |ev| hook(ev));
    let event = late.nth(1).await;
    assert_eq!((event.id, event.reason), (live.id(), Reason::PeerVanished));
    late.stays_at(1).await;
}

/// `evicted` completes when the hooks have returned, even if the peer never answers the Close
/// frame.
#[tokio::test(start_paused = true)]
async fn evicted_does_not_wait_for_the_closing_handshake() {
    let (ours, _theirs) = duplex(1024);
    let (_stream, live) = HeartbeatLayer::default().wrap_server(ours);
    let waiting = tokio::spawn({
        let live = live.clone();
        async move { live.evicted().await }
    });
    tokio::task::yield_now().await;
    assert!(live.evict(4000, ""));
    let evicted = Instant::now();
    assert_eq!(
        waiting.await.unwrap().reason(),
        Reason::Kicked { code: 4000 }
    );
    assert_eq!(evicted.elapsed(), Duration::ZERO);
}

async fn the_session_is_available_to_the_handler_the_registry_and_the_hook(wire: Wire) {
    #[derive(Debug, PartialEq)]
    struct User(&'static str);

    let mut scene = Scene::start(wire, quiet(), patient(), echo).await;
    let (client, live) = scene.connect().await;
    assert_eq!(live.session::<User>(), None);
    live.set_session(User("ann"));
    assert_eq!(live.session::<User>().as_deref(), Some(&User("ann")));
    assert_eq!(live.session::<String>(), None);
    let from_registry = scene.registry.get(live.id()).expect("it is open");
    assert_eq!(
        from_registry.session::<User>().as_deref(),
        Some(&User("ann"))
    );
    drop(client);
    let event = scene.ended(&live, Reason::PeerVanished).await;
    let user = event.eviction.session::<User>();
    assert_eq!(user.as_deref(), Some(&User("ann")));
}

async fn of_many_simultaneous_ends_one_is_reported(wire: Wire) {
    let recorder = Recorder::new();
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(5))
        .timeout(ms(5))
        .close_timeout(ms(50))
        .on_evict(recorder.hook())
        .build()
        .unwrap();
    let registry = heartbeat.registry();
    let (route, mut lives) = watched_route(echo);
    let app = Router::new().route("/ws", route).layer(heartbeat);
    let server = Server::start(app).await;

    const CONNECTIONS: usize = 60;
    let mut ends = JoinSet::new();
    let mut handles: Vec<Liveness> = Vec::new();
    for n in 0..CONNECTIONS {
        let client = server.client(wire, "/ws").await;
        let mut client = client.answering(Answer::Nothing);
        let live = within("the handler", lives.recv()).await.unwrap();
        for code in 4000..4003 {
            let live = live.clone();
            ends.spawn(async move { live.evict(code, "now").then(|| (live.id(), code)) });
        }
        ends.spawn(async move {
            match n % 4 {
                0 => drop(client),
                1 => client.reset(),
                2 => {
                    let _ = client.send(&Frame::close(1000, "")).await;
                    client.closed().await;
                }
                // Left to the heartbeat.
                _ => drop(client.closed().await),
            }
            None
        });
        handles.push(live);
    }
    // The connections that the kicks report to have evicted, with their codes.
    let mut claims = HashMap::new();
    while let Some(claim) = within("all ends", ends.join_next()).await {
        if let Some((id, code)) = claim.unwrap() {
            assert_eq!(claims.insert(id, code), None, "two kicks ended {id}");
        }
    }
    recorder.nth(CONNECTIONS).await;
    until("the registry is empty", || registry.is_empty()).await;
    for live in handles {
        let eviction = within("evicted()", live.evicted()).await;
        let events: Vec<_> = recorder.all();
        let events: Vec<_> = events
            .iter()
            .filter(|event| event.id == live.id())
            .collect();
        assert_eq!(events.len(), 1, "{events:?}");
        assert_eq!(events[0].reason, eviction.reason());
        let kicked = match eviction.reason() {
            Reason::Kicked { code } => Some(code),
            _ => None,
        };
        assert_eq!(claims.get(&live.id()).copied(), kicked);
    }
    recorder.stays_at(CONNECTIONS).await;
}

async fn a_kicked_handler_gets_the_reason_in_the_error(wire: Wire) {
    let (tx, mut rx) = mpsc::unbounded_channel();
    let handler = move |mut socket: WebSocket| {
        let tx = tx.clone();
        async move {
            // A stock handler, which keeps reading after the peer's Close frame.
            while let Some(message) = socket.recv().await {
                if let Err(error) = message {
                    tx.send(Evicted::from_error(&error)).unwrap();
                    return;
                }
            }
            tx.send(None).unwrap();
        }
    };
    let heartbeat = quiet().close_timeout(ms(100));
    let mut scene = Scene::start(wire, heartbeat, patient(), handler).await;
    let (client, live) = scene.connect().await;
    live.evict(4003, "go");
    let evicted = within("the handler's end", rx.recv()).await.unwrap();
    let reason = Reason::Kicked { code: 4003 };
    assert_eq!(evicted.map(|evicted| evicted.reason()), Some(reason));
    scene.ended(&live, reason).await;
    drop(client);
    scene.assert_evicted_once().await;
}

async fn without_an_eviction_no_hook_is_called(wire: Wire) {
    let recorder = Recorder::new();
    let heartbeat = quiet().on_evict(recorder.hook()).build().unwrap();
    let registry = heartbeat.registry();
    let app = Router::new().route("/ws", echo_route()).layer(heartbeat);
    let server = Server::start(app).await;
    let client = server.client(wire, "/ws").await;
    until("the connection is counted", || registry.len() == 1).await;
    recorder.stays_at(0).await;
    drop(client);
    recorder.nth(1).await;
    until("the registry is empty", || registry.is_empty()).await;
}

// In which context hooks run.

type Socket = LivenessStream<DuplexStream>;

/// How a test ends a connection.
type End = fn(Socket, Liveness);

/// Runs `act` on a thread outside of every runtime.
fn on_a_plain_thread<R: Send + 'static>(act: impl FnOnce() -> R + Send + 'static) -> R {
    std::thread::spawn(act).join().unwrap()
}

/// A layer whose hooks each spawn a task that reports the id of its runtime.
fn layer_with_spawning_hooks() -> (HeartbeatLayer, mpsc::UnboundedReceiver<(&'static str, Id)>) {
    let (tx, rx) = mpsc::unbounded_channel();
    let spawn = move |what: &'static str| {
        let tx = tx.clone();
        tokio::spawn(async move { tx.send((what, Handle::current().id())) });
    };
    let on_health = spawn.clone();
    let layer = quiet()
        .on_evict(move |_: &Eviction| spawn("end"))
        .on_health(move |_: &HealthChange| on_health("health"))
        .build();
    (layer.unwrap(), rx)
}

/// On any thread that ends a connection, a hook can spawn a task on the connection's runtime.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_run_in_the_context_of_the_connections_runtime() {
    let ends: [(&str, End); 5] = [
        ("a kick", |_kept, live| {
            on_a_plain_thread(move || assert!(live.evict(4000, "by an operator's thread")));
        }),
        ("a kick from another runtime", |_kept, live| {
            on_a_plain_thread(move || {
                let other = Builder::new_current_thread().build().unwrap();
                other.block_on(async { assert!(live.evict(4000, "")) });
            });
        }),
        ("a newcomer", |_kept, live| {
            let layer = HeartbeatLayer::default();
            let (_stream, newcomer) = layer.wrap_server(duplex(64).0);
            on_a_plain_thread(move || {
                let map = Arc::new(Mutex::new(HashMap::new()));
                live.register(&map, "alice", ()).unwrap();
                assert!(newcomer.register(&map, "alice", ()).unwrap().is_some());
            });
        }),
        ("a stream that is dropped", |stream, _| {
            on_a_plain_thread(|| drop(stream))
        }),
        ("the end of a thread", |stream, _| {
            thread_local! {
                static KEPT: Cell<Option<Socket>> = const { Cell::new(None) };
            }
            on_a_plain_thread(move || KEPT.set(Some(stream)));
        }),
    ];
    let runtime = Handle::current().id();
    for (what, end) in ends {
        let (layer, mut rx) = layer_with_spawning_hooks();
        let (ours, mut theirs) = duplex(64);
        let (mut stream, live) = layer.wrap_server(ours);
        // A malformed frame, so that the health changes and the health hooks are called.
        theirs.write_all(&[0xff, 0xff, 0xff]).await.unwrap();
        stream = on_a_plain_thread(move || {
            let mut bytes = [0; 16];
            let mut buf = ReadBuf::new(&mut bytes);
            let cx = &mut Context::from_waker(Waker::noop());
            assert!(Pin::new(&mut stream).poll_read(cx, &mut buf).is_ready());
            stream
        });
        assert_eq!(
            within(what, rx.recv()).await,
            Some(("health", runtime)),
            "{what}"
        );
        end(stream, live.clone());
        assert_eq!(
            within(what, rx.recv()).await,
            Some(("end", runtime)),
            "{what}"
        );
        // Also for a hook that is added after the end.
        let (tx, late) = tokio::sync::oneshot::channel();
        on_a_plain_thread(move || {
            live.on_evict(move |_| {
                tokio::spawn(async move { tx.send(Handle::current().id()) });
            });
        });
        assert_eq!(within(what, late).await, Ok(runtime), "{what}");
    }
}

/// Without the runtime a hook is still called, and a task that it spawns is dropped.
#[test]
fn hooks_are_called_after_the_runtime_is_dropped() {
    let (tx, rx) = std::sync::mpsc::channel();
    let layer = quiet()
        .on_evict(move |_: &Eviction| {
            tokio::spawn(async { unreachable!("the runtime is gone") });
            tx.send(()).unwrap();
        })
        .build()
        .unwrap();
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .unwrap();
    let (ours, _theirs) = duplex(64);
    let (stream, live) = runtime.block_on(async { layer.wrap_server(ours) });
    drop(runtime);
    live.evict(4000, "bye");
    drop(stream);
    assert_eq!(rx.try_iter().count(), 1);
}

// One hook of several layers.

/// Counts its calls as an eviction hook and as a health hook.
#[derive(Default)]
struct Counter {
    ends: AtomicUsize,
    changes: AtomicUsize,
}

impl OnEvict for Counter {
    fn on_evict(&self, _: &Eviction) {
        self.ends.fetch_add(1, Ordering::SeqCst);
    }
}

impl OnHealth for Counter {
    fn on_health(&self, _: &HealthChange) {
        self.changes.fetch_add(1, Ordering::SeqCst);
    }
}

/// Clones of an `Arc`, concrete or `dyn`, are one hook.
#[tokio::test(start_paused = true)]
async fn a_hook_that_several_layers_share_is_called_once() {
    let counter = Arc::new(Counter::default());
    let (of_ends, of_health): (Arc<dyn OnEvict>, Arc<dyn OnHealth>) =
        (counter.clone(), counter.clone());
    let other = Arc::new(Counter::default());
    let heartbeat = quiet()
        .interval(ms(100))
        .timeout(ms(100))
        .missed_pings(3)
        .on_evict_hook(counter.clone())
        .on_evict_hook(counter.clone())
        .on_evict_hook(other.clone())
        .on_health_hook(counter.clone())
        .on_health_hook(of_health.clone())
        .build()
        .unwrap();
    let idle = patient()
        .on_evict_hook(of_ends.clone())
        .on_evict_hook(Arc::new(|_: &Eviction| {}))
        .on_health_hook(of_health)
        .build()
        .unwrap();
    let app = Router::new()
        .route("/ws", echo_route())
        .layer(idle)
        .layer(heartbeat)
        .layer(quiet().on_evict_hook(of_ends).build().unwrap());
    for count in 1..=2 {
        let io = support::in_memory(app.clone(), 1024);
        let client = RawClient::handshake(io, "/ws").await;
        let mut client = client.answering(Answer::Nothing);
        client.closed().await;
        let ends = || counter.ends.load(Ordering::SeqCst);
        until("the end", || ends() == count).await;
        // One change after half the timeout, and one at each missed ping but the last.
        assert_eq!(counter.changes.load(Ordering::SeqCst), 3 * count);
        assert_eq!(other.ends.load(Ordering::SeqCst), count);
        assert_eq!(ends(), count);
    }
}

/// A hook that is a value, for `on_evict`, `on_health` and `on_open`.
struct Sender(mpsc::UnboundedSender<&'static str>);

impl OnEvict for Sender {
    fn on_evict(&self, _: &Eviction) {
        self.0.send("evict").unwrap();
    }
}

impl OnHealth for Sender {
    fn on_health(&self, _: &HealthChange) {
        self.0.send("health").unwrap();
    }
}

impl OnOpen for Sender {
    fn on_open(&self, _: &Liveness) {
        self.0.send("open").unwrap();
    }
}

fn ignore<T>(_: &T) {}

/// Whether this compiles is half of the test: a closure needs no type for its argument.
#[tokio::test(start_paused = true)]
async fn closures_values_and_arcs_are_hooks_without_annotations() {
    let (tx, mut rx) = mpsc::unbounded_channel();
    let sender = || Sender(tx.clone());
    let by_closure = || {
        let tx = tx.clone();
        move |call| tx.send(call).unwrap()
    };
    let (open, health, evict) = (by_closure(), by_closure(), by_closure());
    let boxed: Box<dyn Fn(&Eviction) + Send + Sync> = Box::new(ignore);
    let heartbeat = quiet()
        .interval(ms(100))
        .timeout(ms(100))
        .on_open(move |live| {
            live.set_session("alice".to_owned());
            open("open");
        })
        .on_open_hook(sender())
        .on_open_hook(Arc::new(sender()))
        .on_open_hook(Arc::new(sender()) as Arc<dyn OnOpen>)
        .on_open(|_: &Liveness| {})
        .on_open(ignore::<Liveness>)
        .on_health(move |change| {
            assert_eq!(*change.live().session::<String>().unwrap(), "alice");
            health("health");
        })
        .on_health_hook(sender())
        .on_health_hook(Arc::new(sender()))
        .on_health_hook(Arc::new(sender()) as Arc<dyn OnHealth>)
        .on_health(|_: &HealthChange| {})
        .on_health(ignore::<HealthChange>)
        .on_evict(move |ev| {
            assert_eq!(*ev.session::<String>().unwrap(), "alice");
            evict("evict");
        })
        .on_evict_hook(sender())
        .on_evict_hook(Arc::new(sender()))
        .on_evict_hook(Arc::new(sender()) as Arc<dyn OnEvict>)
        .on_evict(|_: &Eviction| {})
        .on_evict(|_| {})
        .on_evict(boxed)
        .on_evict(ignore::<Eviction>);
    let idle = patient()
        .on_open(|live| ignore(&live.id()))
        .on_health(|change| ignore(&change.id()))
        .on_evict(|ev| ignore(&ev.id()))
        .on_evict_hook(sender())
        .on_evict_hook(Arc::new(sender()));
    assert!(idle.build().is_ok());
    let (near, _far) = duplex(64);
    let (_stream, live) = heartbeat.build().unwrap().wrap_server(near);
    live.on_evict(|ev| ignore(&ev.id()));
    live.evicted().await;
    let mut calls = Vec::new();
    while let Ok(call) = rx.try_recv() {
        calls.push(call);
    }
    let expected: Vec<_> = ["open", "health", "evict"]
        .iter()
        .flat_map(|call| [*call; 4])
        .collect();
    assert_eq!(calls, expected);
}
