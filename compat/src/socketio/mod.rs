//! What Socket.IO does beyond one WebSocket: it polls first, pings by itself, and answers as a layer.
//! `tests/socketio.rs` plays these scenes.

mod polling;

use std::time::Duration;

use axum::Router;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use socketioxide::SocketIo;
use socketioxide::extract::SocketRef;
use socketioxide::socket::DisconnectReason;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tower_ws_liveness::{Liveness, Reason};

use self::polling::Polling;
use crate::client::Client;
use crate::protocol::Protocol;
use crate::rig::{Rig, patient, quiet};
use crate::site::Site;
use crate::stack::{Dialect, Stack};
use crate::stacks::socketioxide::{STACK, layer};
use crate::support::raw::Frame;
use crate::support::recorder::Recorder;
use crate::support::{ms, never, within};
use crate::talk::Talk;

const PLAIN: Protocol = Protocol::ALL[0];

/// A session that begins with polling is none of ours before it has a WebSocket. Then it is one as
/// any other: pinged besides Engine.IO's pings, and evicted when its peer is dead.
pub async fn dies_after_polling() {
    let (rig, polling, talk, live) = upgraded().await;
    live.set_timeout(ms(200)).expect("a time");
    let mut talk = talk.silent();
    let close = within("a Close frame", talk.listen()).await;
    assert_eq!(close.close_code(), Some(3008));
    assert_eq!(rig.ended().await, Reason::HeartbeatTimeout { missed: 1 });
    polling.ended().await;
}

/// The same, sent away by the application.
pub async fn kicked_after_polling() {
    let (rig, polling, mut talk, live) = upgraded().await;
    assert!(live.evict(4321, "signed in elsewhere"));
    let close = within("a Close frame", talk.listen()).await;
    assert_eq!(close, Frame::close(4321, "signed in elsewhere"));
    talk.send(&close).await;
    talk.client.frames.closed().await;
    assert_eq!(rig.ended().await, Reason::Kicked { code: 4321 });
    polling.ended().await;
}

/// Opens a session by polling, says something there, and upgrades it while our pings go out.
async fn upgraded() -> (Rig, Polling, Talk, Liveness) {
    let heartbeat = quiet().interval(ms(20));
    let rig = Rig::start(STACK, PLAIN, heartbeat, patient()).await;
    let mut polling = Polling::open(rig.addr).await;
    polling.say("40").await;
    polling.expect(|packet| packet.starts_with("40{")).await;
    polling
        .expect(|packet| packet.starts_with(r#"42["ready""#))
        .await;
    let event = r#"42["echo","by polling"]"#;
    polling.say(event).await;
    polling.expect(|packet| packet == event).await;
    assert!(
        rig.registry.is_empty(),
        "polling requests are not connections"
    );

    let path = polling.websocket();
    let client = Client::open(rig.addr, PLAIN, &path, None).await;
    let mut talk = Talk::resume(Dialect::SocketIo, client.expect("an upgrade"));
    let live = rig.live().await;
    talk.send(&Frame::text("2probe")).await;
    talk.expect_text(|packet| packet == "3probe").await;
    polling.paused().await;
    // In the middle of its handshake Engine.IO would take a pong for a mistake.
    talk.answer_pings(&live, 3).await;
    talk.send(&Frame::text("5")).await;

    talk.echo_text("by WebSocket").await;
    talk.echo_binary(b"\x00by WebSocket").await;
    // Long enough for pings of both kinds.
    talk.heartbeats = 0;
    talk.answer_pings(&live, 20).await;
    assert!(talk.heartbeats > 0, "Engine.IO's own pings go on");
    assert_eq!(rig.registry.len(), 1);
    assert_eq!(rig.recorder.total(), 0);
    (rig, polling, talk, live)
}

/// With a `ping_interval` beyond the idle timeout, nothing but the application counts.
pub async fn idles_between_rare_pings() {
    fn serve(site: Site) -> BoxFuture<'static, ()> {
        site.serve_router(Router::new().layer(layer(ms(600_000))))
            .boxed()
    }
    let (heartbeat, idle) = (quiet().interval(ms(20)), patient().timeout(ms(1_000)));
    let rig = Rig::start(Stack { serve, ..STACK }, PLAIN, heartbeat, idle).await;
    let (mut talk, _) = rig.open().await;
    talk.echo_text("hello").await;
    let close = within("a Close frame", talk.listen()).await;
    assert_eq!(close, Frame::close(1001, "idle timeout"));
    assert!(talk.client.frames.pings > 0);
    talk.send(&close).await;
    assert_eq!(rig.ended().await, Reason::IdleTimeout);
}

/// A peer that answers our pings and none of Engine.IO's is sent away by Engine.IO, and we tell of
/// it once.
pub async fn may_lose_patience_first() {
    fn serve(site: Site) -> BoxFuture<'static, ()> {
        let (layer, io) = SocketIo::builder()
            .ping_interval(ms(100))
            .ping_timeout(ms(1_500))
            .build_layer();
        io.ns("/", async |socket: SocketRef| {
            socket.emit("ready", &()).ok();
        });
        site.serve_router(Router::new().layer(layer)).boxed()
    }
    let heartbeat = quiet().interval(ms(20)).timeout(ms(10_000));
    let rig = Rig::start(Stack { serve, ..STACK }, PLAIN, heartbeat, patient()).await;
    let (mut talk, live) = rig.open().await;
    talk.client.frames.closed().await;
    assert!(live.stats().pongs_received() > 0);
    assert_eq!(rig.ended().await, Reason::ServerClosed { code: None });
}

/// A peer takes nothing any more. Engine.IO gives it up soon, but the application is not told as
/// long as the task that writes is stuck. Ours ends that write, and so it is told.
pub async fn cannot_end_a_stuck_write() {
    let recorder = Recorder::new();
    let heartbeat = quiet().write_timeout(ms(2_000)).on_evict(recorder.hook());
    let heartbeat = heartbeat.build().expect("settings of a scene");
    for layered in [false, true] {
        let (told, mut ends) = mpsc::unbounded_channel();
        let (layer, io) = SocketIo::builder()
            .ping_interval(ms(100))
            .ping_timeout(ms(1_500))
            .build_layer();
        io.ns("/", async move |socket: SocketRef| {
            socket.on_disconnect(async move |reason: DisconnectReason| {
                let _ = told.send(reason);
            });
            socket.emit("ready", &()).ok();
            // More than all buffers on the way take.
            for _ in 0..64 {
                socket.emit("flood", &"x".repeat(1 << 20)).ok();
            }
        });
        let mut app = Router::new().layer(layer);
        if layered {
            app = app.layer(heartbeat.clone());
        }
        let bound = TcpListener::bind(("127.0.0.1", 0)).await;
        let listener = bound.expect("a free port");
        let addr = listener.local_addr().expect("a bound listener");
        let server = tokio::spawn(axum::serve(listener, app).into_future());
        let path = Dialect::SocketIo.path();
        let client = Client::open(addr, PLAIN, path, None).await;
        let _stuck = Talk::begin(Dialect::SocketIo, client.expect("an upgrade")).await;
        if layered {
            within("the end of the session", ends.recv()).await;
            assert_eq!(recorder.nth(1).await.reason, Reason::WriteStalled);
            recorder.stays_at(1).await;
        } else {
            never("an end", ms(4_000), ends.recv()).await;
        }
        server.abort();
    }
}

/// Inside of socketioxide's layer there is nothing for ours: it has answered already.
pub async fn works_without_layers_inside() {
    fn serve(mut site: Site) -> BoxFuture<'static, ()> {
        let layers = site.layers.take().expect("the layers");
        let app = Router::new()
            .layer(layers.idle)
            .layer(layers.heartbeat)
            .layer(layer(Duration::from_secs(25)));
        site.serve_router(app).boxed()
    }
    let heartbeat = quiet().interval(ms(1));
    let rig = Rig::start(Stack { serve, ..STACK }, PLAIN, heartbeat, patient()).await;
    let client = rig.try_open(None).await.expect("an upgrade");
    let mut talk = Talk::begin(Dialect::SocketIo, client).await;
    for _ in 0..20 {
        talk.echo_text("nobody listens").await;
    }
    assert!(rig.registry.is_empty());
    assert_eq!(talk.client.frames.pings, 0);
    drop(talk);
    rig.recorder.stays_at(0).await;
}

/// Where a WebSocket comes first, handlers find its handle in the request; after polling, there was
/// none in the request that the session began with.
pub async fn hands_the_request_to_handlers() {
    fn serve(site: Site) -> BoxFuture<'static, ()> {
        let (layer, io) = SocketIo::new_layer();
        io.ns("/", async |socket: SocketRef| {
            let live = socket.req_parts().extensions.get::<Liveness>();
            let id = live.map(|live| live.id().to_string());
            socket.emit("ready", &id).ok();
        });
        site.serve_router(Router::new().layer(layer)).boxed()
    }
    let rig = Rig::start(Stack { serve, ..STACK }, PLAIN, quiet(), patient()).await;
    let client = rig.try_open(None).await.expect("an upgrade");
    let mut talk = Talk::resume(Dialect::SocketIo, client);
    talk.expect_text(|packet| packet.starts_with("0{")).await;
    talk.send(&Frame::text("40")).await;
    talk.expect_text(|packet| packet.starts_with("40{")).await;
    let id = rig.registry.snapshot()[0].id();
    let event = format!(r#"42["ready","{id}"]"#);
    talk.expect_text(|packet| packet == event).await;

    let mut polling = Polling::open(rig.addr).await;
    polling.say("40").await;
    polling.expect(|packet| packet.starts_with("40{")).await;
    polling
        .expect(|packet| packet == r#"42["ready",null]"#)
        .await;
}
