//! How long the session is there: for everybody who may ask for it, and not longer, though it may
//! hold the very handle that it is found by.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak, mpsc};
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

use crate::script::*;
use crate::support::raw::RawClient;
use crate::support::{Server, alive_tasks, until, within};

type Pushes = UnboundedSender<Vec<u8>>;

/// A session as applications have it: with the handle that ends its connection.
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
async fn the_session_is_there_as_long_as_the_handler_has_its_stream() {
    type End = fn(&Liveness, &Peer);
    let ends: [(&str, End); 4] = [
        ("kicked", |live, _| assert!(live.evict(1000, "bye"))),
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
        // Who comes too late leaves nothing behind.
        let late = Arc::new(());
        live.set_session(Arc::clone(&late));
        assert_eq!(Arc::strong_count(&late), 1, "{name}");
    }
}

/// As handlers do that only push: the channel is to be closed when the seat has gone, and nothing else
/// wakes them.
#[tokio::test(start_paused = true)]
async fn a_handler_that_waits_for_its_seat_to_go_is_not_what_keeps_it() {
    type End = fn(&Liveness, &Peer);
    let ends: [(&str, End); 4] = [
        ("kicked", |live, _| assert!(live.evict(1000, "bye"))),
        ("end of file", |_, peer| peer.end(Ok(()))),
        ("dead", |_, _| {}),
        ("awaited", |live, _| {
            let live = live.clone();
            tokio::spawn(async move { live.evicted().await });
        }),
    ];
    for (name, end) in ends {
        let map: Arc<Mutex<HashMap<&str, Seat<Pushes>>>> = Arc::default();
        let (tell, told) = mpsc::channel();
        let (mut stream, live, peer) = wrap_with(heartbeat().on_evict(move |ev: &Eviction| {
            tell.send(ev.seats::<&str, Pushes>().count()).unwrap();
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
        assert!(returned.is_ok(), "{name}: it waits for ever");
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [1], "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn hooks_find_the_session_though_the_handler_is_gone() {
    let (tell, told) = mpsc::channel();
    let by_layer = tell.clone();
    let builder = heartbeat().on_evict(move |ev: &Eviction| {
        by_layer.send(ev.session::<Session>().is_some()).unwrap();
    });
    let (stream, live, _peer, session) = with_session(builder);
    live.on_evict(move |ev| tell.send(ev.session::<Session>().is_some()).unwrap());
    drop(stream);
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [true, true]);
    drop(live);
    assert!(!is_alive(&session));
}

#[tokio::test(start_paused = true)]
async fn whoever_awaits_the_end_finds_the_session_though_the_handler_is_gone() {
    let (stream, live, _peer, session) = with_session(heartbeat());
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let live = live.clone();
            tokio::spawn(async move { live.evicted().await })
        })
        .collect();
    // One that loses its interest is no reason to keep it.
    let gone = tokio::spawn({
        let live = live.clone();
        async move { live.evicted().await }
    });
    yield_now().await;
    gone.abort();
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
async fn an_eviction_that_is_kept_keeps_the_session() {
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
async fn whoever_is_early_waits_for_the_session() {
    let (stream, live, _peer) = wrapped();
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let live = live.clone();
            tokio::spawn(async move { live.wait_for_session::<String>().await })
        })
        .collect();
    yield_now().await;
    // A value of another type is none.
    live.set_session(7_u32);
    yield_now().await;
    assert!(waiters.iter().all(|waiter| !waiter.is_finished()));
    live.set_session("alice".to_owned());
    let set = Instant::now();
    for waiter in waiters {
        let session = within("the session", waiter).await.unwrap().unwrap();
        assert_eq!(*session, "alice");
    }
    // By that, and not by the connection's end, which comes if nobody answers the pings.
    assert_eq!(set.elapsed(), Duration::ZERO);
    // And who comes later does not wait.
    assert_eq!(*live.wait_for_session::<String>().await.unwrap(), "alice");
    drop(stream);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_session_beyond_the_end() {
    let (stream, live, _peer) = wrapped();
    live.set_session(7_u32);
    let waiting = tokio::spawn({
        let live = live.clone();
        async move { live.wait_for_session::<String>().await }
    });
    let given_up = tokio::spawn({
        let live = live.clone();
        async move { live.wait_for_session::<String>().await }
    });
    yield_now().await;
    given_up.abort();
    // A hook is not too late to set it.
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

/// A middleware's value in the request is one thing, the WebSocket's session another, though they are
/// of one type.
#[tokio::test]
async fn the_slots_of_the_request_and_of_the_websocket_are_two() {
    #[derive(Clone, Debug, PartialEq)]
    struct User(&'static str);

    let (tell, told) = mpsc::channel();
    let seen = tell.clone();
    let layer = HeartbeatLayer::builder()
        .on_evict(move |ev: &Eviction| {
            let session = ev.session::<User>();
            tell.send(("hook", session.as_deref().cloned())).unwrap();
        })
        .build()
        .unwrap();
    let handler = move |ws: WebSocketUpgrade, live: Liveness, http: Extension<User>| {
        let slot = live.session::<User>();
        seen.send(("slot", slot.as_deref().cloned())).unwrap();
        live.set_session(User("of the websocket"));
        seen.send(("request", Some(http.0))).unwrap();
        async { ws.on_upgrade(async |_| {}) }
    };
    let app = Router::new()
        .route("/ws", any(handler))
        .layer(Extension(User("of the request")))
        .layer(layer);
    let server = Server::start(app).await;
    let mut client = RawClient::connect(server.addr, "/ws").await;
    within("the end", client.closed()).await;
    let told: Vec<_> = told.iter().take(3).collect();
    assert_eq!(
        told,
        [
            ("slot", None),
            ("request", Some(User("of the request"))),
            ("hook", Some(User("of the websocket"))),
        ]
    );
}

// In real time: tokio's clock does not move by itself while a blocking task runs.
#[tokio::test]
async fn a_hook_that_outlives_the_closing_handshake_leaves_nothing_behind() {
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let builder = heartbeat().interval(ms(60_000)).timeout(ms(60_000));
    let (mut stream, live, peer, session) = with_session(builder.on_evict(move |_: &Eviction| {
        let _ = released.lock().unwrap().recv();
    }));
    assert_eq!(alive_tasks(), 1, "the driver");
    let evicting = std::thread::spawn({
        let live = live.clone();
        move || live.evict(1000, "bye")
    });
    // The transport is closed, and the driver gone home, before the hook returns.
    until("the transport is closed", || peer.is_dropped()).await;
    until("the driver is gone", || alive_tasks() == 0).await;
    release.send(()).unwrap();
    let evicted = spawn_blocking(move || evicting.join().unwrap());
    assert!(within("evict()", evicted).await.unwrap());

    let error = stream.read_u8().await.unwrap_err();
    assert!(Evicted::from_error(&error).is_some());
    assert!(is_alive(&session), "the handler's");
    drop((stream, live));
    assert!(!is_alive(&session));
    until("no task is left", || alive_tasks() == 0).await;

    // And the next connection finds a driver.
    let (_stream, live, peer) = wrapped();
    until("a ping", || !peer.pings().is_empty()).await;
    assert!(live.evict(1000, "bye"));
}
