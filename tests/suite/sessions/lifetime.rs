//! The lifetime of the session: until its last user is done, even if it holds its own handle.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::task::Context;
use std::time::Duration;

use axum::extract::ws::WebSocketUpgrade;
use axum::routing::any;
use axum::{Extension, Router};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::{spawn_blocking, yield_now};
use tokio::time::{Instant, sleep, timeout};
use tower_ws_liveness::{
    Evicted, Eviction, HeartbeatLayer, HeartbeatLayerBuilder, Liveness, Reason, Seat,
};

use crate::panicking_waker::PanickingWaker;
use crate::script::*;
use crate::support::raw::RawClient;
use crate::support::{Server, alive_tasks, until, within};

type Pushes = UnboundedSender<Vec<u8>>;

/// A session that holds the handle of its own connection, as in applications.
struct Session {
    _live: Liveness,
    _alive: Arc<()>,
}

fn with_session(builder: HeartbeatLayerBuilder) -> (Stream, Liveness, Peer, Weak<()>) {
    let (stream, live, peer) = wrap_with(builder);
    let alive = Arc::new(());
    let weak = Arc::downgrade(&alive);
    let session = Session {
        _live: live.clone(),
        _alive: alive,
    };
    assert!(live.set_session(session).is_none());
    (stream, live, peer, weak)
}

fn is_alive(session: &Weak<()>) -> bool {
    session.strong_count() > 0
}

#[tokio::test(start_paused = true)]
async fn a_session_that_holds_its_own_handle_is_freed_when_the_handler_drops_its_stream() {
    let (stream, live, _peer, session) = with_session(heartbeat());
    drop((stream, live));
    sleep(ms(1)).await;
    assert!(!is_alive(&session));
}

#[tokio::test(start_paused = true)]
async fn the_session_is_kept_until_the_handler_drops_its_stream() {
    type End = fn(&Liveness, &Peer);
    let ends: [(&str, End); 4] = [
        ("evicted", |live, _| assert!(live.evict(1000, "bye"))),
        ("end of file", |_, peer| peer.end(Ok(()))),
        ("reset", |_, peer| {
            peer.end(Err(std::io::ErrorKind::ConnectionReset));
        }),
        ("dead", |_, _| {}),
    ];
    for (name, end) in ends {
        let (stream, live, peer, session) = with_session(heartbeat());
        end(&live, &peer);
        sleep(ms(20_000)).await;
        assert!(peer.is_dropped(), "{name}");
        assert!(live.session::<Session>().is_some(), "{name}");
        drop(stream);
        assert!(live.session::<Session>().is_none(), "{name}");
        assert!(!is_alive(&session), "{name}");
        // A session that is set after the end is dropped.
        let late = Arc::new(());
        live.set_session(Arc::clone(&late));
        assert_eq!(Arc::strong_count(&late), 1, "{name}");
    }
}

/// A handler that only pushes is woken only by the end of its channel, which closes when the seat
/// is dropped.
#[tokio::test(start_paused = true)]
async fn a_handler_that_waits_for_its_channel_to_close_does_not_keep_its_seat() {
    type End = fn(&Liveness, &Peer);
    let ends: [(&str, End); 4] = [
        ("evicted", |live, _| assert!(live.evict(1000, "bye"))),
        ("end of file", |_, peer| peer.end(Ok(()))),
        ("dead", |_, _| {}),
        ("awaited", |live, _| {
            let live = live.clone();
            tokio::spawn(async move { live.evicted().await });
        }),
    ];
    for (name, end) in ends {
        let map: Arc<Mutex<HashMap<&str, Seat<Pushes>>>> = Arc::default();
        let (counts_tx, counts) = mpsc::channel();
        let (mut stream, live, peer) = wrap_with(heartbeat().on_evict(move |ev: &Eviction| {
            counts_tx.send(ev.seats::<&str, Pushes>().count()).unwrap();
        }));
        let (pushes, mut pushed) = unbounded_channel::<Vec<u8>>();
        live.register(&map, "alice", pushes).unwrap();
        let handler = tokio::spawn(async move {
            while let Some(bytes) = pushed.recv().await {
                stream.write_all(&bytes).await.unwrap();
            }
        });
        end(&live, &peer);
        let returned = timeout(ms(60_000), handler).await;
        assert!(returned.is_ok(), "{name}: the handler is still pending");
        assert_eq!(counts.try_iter().collect::<Vec<_>>(), [1], "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn hooks_find_the_session_after_the_handler_has_returned() {
    let (found_tx, found) = mpsc::channel();
    let by_layer = found_tx.clone();
    let builder = heartbeat().on_evict(move |ev: &Eviction| {
        by_layer.send(ev.session::<Session>().is_some()).unwrap();
    });
    let (stream, live, _peer, session) = with_session(builder);
    live.on_evict(move |ev| found_tx.send(ev.session::<Session>().is_some()).unwrap());
    drop(stream);
    assert_eq!(found.try_iter().collect::<Vec<_>>(), [true, true]);
    drop(live);
    assert!(!is_alive(&session));
}

#[tokio::test(start_paused = true)]
async fn evicted_returns_the_session_after_the_handler_has_returned() {
    let (stream, live, _peer, session) = with_session(heartbeat());
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let live = live.clone();
            tokio::spawn(async move { live.evicted().await })
        })
        .collect();
    // A cancelled waiter does not keep the session.
    let cancelled = tokio::spawn({
        let live = live.clone();
        async move { live.evicted().await }
    });
    yield_now().await;
    cancelled.abort();
    drop(stream);
    for waiter in waiters {
        assert!(is_alive(&session));
        let eviction = within("the end", waiter).await.unwrap();
        assert!(eviction.session::<Session>().is_some());
    }
    assert!(!is_alive(&session));
    let late = live.evicted().await;
    assert!(late.session::<Session>().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_cloned_eviction_keeps_the_session() {
    let (stream, live, _peer, session) = with_session(heartbeat());
    let kept = Arc::new(Mutex::new(None));
    live.on_evict({
        let kept = Arc::clone(&kept);
        move |ev| *kept.lock().unwrap() = Some(ev.clone())
    });
    drop((stream, live));
    sleep(ms(1_000)).await;
    assert!(is_alive(&session));
    kept.lock().unwrap().take();
    assert!(!is_alive(&session));
}

#[tokio::test(start_paused = true)]
async fn wait_for_session_completes_when_the_session_is_set() {
    let (stream, live, _peer) = wrapped();
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let live = live.clone();
            tokio::spawn(async move { live.wait_for_session::<String>().await })
        })
        .collect();
    yield_now().await;
    // A value of another type does not complete the wait.
    live.set_session(7_u32);
    yield_now().await;
    assert!(waiters.iter().all(|waiter| !waiter.is_finished()));
    live.set_session("alice".to_owned());
    let set = Instant::now();
    for waiter in waiters {
        let session = within("the session", waiter).await.unwrap().unwrap();
        assert_eq!(*session, "alice");
    }
    // The waiters were woken by the session, not by the later heartbeat timeout.
    assert_eq!(set.elapsed(), Duration::ZERO);
    // A later call completes immediately.
    assert_eq!(*live.wait_for_session::<String>().await.unwrap(), "alice");
    drop(stream);
}

#[tokio::test(start_paused = true)]
async fn set_session_returns_the_previous_value_if_the_waker_of_a_waiting_task_panics() {
    let (_stream, live, _peer) = wrapped();
    live.set_session("alice".to_owned());
    let mut waiting = pin!(live.wait_for_session::<u32>());
    let panics = PanickingWaker::armed();
    let poll = waiting.as_mut().poll(&mut Context::from_waker(&panics));
    assert!(poll.is_pending());
    let previous = live.set_session("bob".to_owned());
    assert_eq!(*previous.expect("the previous value"), "alice");
}

#[tokio::test(start_paused = true)]
async fn wait_for_session_completes_at_the_end_of_the_connection() {
    let (stream, live, _peer) = wrapped();
    live.set_session(7_u32);
    let waiting = tokio::spawn({
        let live = live.clone();
        async move { live.wait_for_session::<String>().await }
    });
    let cancelled = tokio::spawn({
        let live = live.clone();
        async move { live.wait_for_session::<String>().await }
    });
    yield_now().await;
    cancelled.abort();
    // A hook can still set the session.
    live.on_evict({
        let live = live.clone();
        move |_| {
            live.set_session("late".to_owned());
        }
    });
    drop(stream);
    let session = within("the end", waiting).await.unwrap().unwrap();
    assert_eq!(*session, "late");

    let (stream, live, _peer) = wrapped();
    let waiting = tokio::spawn({
        let live = live.clone();
        async move { live.wait_for_session::<String>().await }
    });
    yield_now().await;
    drop(stream);
    let evicted = within("the end", waiting).await.unwrap().unwrap_err();
    assert_eq!(evicted.reason(), Reason::HandlerDropped);
    let evicted = live.wait_for_session::<String>().await.unwrap_err();
    assert_eq!(evicted.reason(), Reason::HandlerDropped);
}

/// The request extension and the session of the WebSocket have the same type.
#[tokio::test]
async fn the_request_extension_and_the_session_are_separate() {
    #[derive(Clone, Debug, PartialEq)]
    struct User(&'static str);

    let (values_tx, values) = mpsc::channel();
    let handler_tx = values_tx.clone();
    let layer = HeartbeatLayer::builder()
        .on_evict(move |ev: &Eviction| {
            let session = ev.session::<User>();
            values_tx
                .send(("hook", session.as_deref().cloned()))
                .unwrap();
        })
        .build()
        .unwrap();
    let handler = move |ws: WebSocketUpgrade, live: Liveness, http: Extension<User>| {
        let slot = live.session::<User>();
        handler_tx.send(("slot", slot.as_deref().cloned())).unwrap();
        live.set_session(User("of the websocket"));
        handler_tx.send(("request", Some(http.0))).unwrap();
        async { ws.on_upgrade(async |_| {}) }
    };
    let app = Router::new()
        .route("/ws", any(handler))
        .layer(Extension(User("of the request")))
        .layer(layer);
    let server = Server::start(app).await;
    let mut client = RawClient::connect(server.addr, "/ws").await;
    within("the end", client.closed()).await;
    let values: Vec<_> = values.iter().take(3).collect();
    assert_eq!(
        values,
        [
            ("slot", None),
            ("request", Some(User("of the request"))),
            ("hook", Some(User("of the websocket"))),
        ]
    );
}

// In real time: tokio's paused clock does not auto-advance while a blocking task runs.
#[tokio::test]
async fn a_hook_that_returns_after_the_closing_handshake_leaks_nothing() {
    let (release_tx, release_rx) = mpsc::channel::<()>();
    let release_rx = Mutex::new(release_rx);
    let builder = heartbeat().interval(ms(60_000)).timeout(ms(60_000));
    let (mut stream, live, peer, session) = with_session(builder.on_evict(move |_: &Eviction| {
        let _ = release_rx.lock().unwrap().recv();
    }));
    assert_eq!(alive_tasks(), 1, "the driver");
    let evicting = std::thread::spawn({
        let live = live.clone();
        move || live.evict(1000, "bye")
    });
    // The transport is closed and the driver task has ended before the hook returns.
    until("the transport is closed", || peer.is_dropped()).await;
    until("the driver has ended", || alive_tasks() == 0).await;
    release_tx.send(()).unwrap();
    let evicted = spawn_blocking(move || evicting.join().unwrap());
    assert!(within("evict()", evicted).await.unwrap());

    let error = stream.read_u8().await.unwrap_err();
    assert!(Evicted::from_error(&error).is_some());
    assert!(is_alive(&session), "the handler still has its stream");
    drop((stream, live));
    assert!(!is_alive(&session));
    until("every task has ended", || alive_tasks() == 0).await;

    // The next connection starts a new driver.
    let (_stream, live, peer) = wrapped();
    until("a ping", || !peer.pings().is_empty()).await;
    assert!(live.evict(1000, "bye"));
}
