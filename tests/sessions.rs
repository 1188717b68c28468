//! How long the session is there: for everybody who may ask for it, and not longer, though it may
//! hold the very handle that it is found by.

#[path = "support/script.rs"]
mod script;
mod support;

use std::sync::{Arc, Mutex, Weak, mpsc};

use script::*;
use support::{alive_tasks, until, within};
use tokio::io::AsyncReadExt;
use tokio::task::{spawn_blocking, yield_now};
use tokio::time::sleep;
use tower_ws_liveness::{Evicted, Eviction, HeartbeatLayerBuilder, Liveness};

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
