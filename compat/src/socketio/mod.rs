//! Scenes for Socket.IO: polling before the upgrade, its own pings, its own layer.
//!
//! `tests/socketio.rs` runs these scenes.

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
use crate::message_client::MessageClient;
use crate::protocol::Protocol;
use crate::rig::{Rig, long_heartbeat, long_idle};
use crate::site::Site;
use crate::stack::{Dialect, Stack};
use crate::stacks::socketioxide::{STACK, layer};
use crate::support::raw::Frame;
use crate::support::recorder::Recorder;
use crate::support::{ms, never, within};

const CLEAR_TEXT_HTTP1: Protocol = Protocol::ALL[0];

/// A session that starts with polling is registered once it upgrades to a WebSocket. From then on
/// the layer pings it beside Engine.IO's pings, and evicts it when its peer is dead.
pub async fn a_dead_peer_is_evicted_after_polling() {
    let (rig, polling, client, live) = upgraded().await;
    live.set_timeout(ms(200)).expect("a time");
    let mut client = client.without_pongs();
    let close = within("a Close frame", client.receive()).await;
    assert_eq!(close.close_code(), Some(3008));
    assert_eq!(
        rig.end_reason().await,
        Reason::HeartbeatTimeout { missed: 1 }
    );
    polling.expect_end().await;
}

/// The application evicts a session that started with polling.
pub async fn a_session_is_kicked_after_polling() {
    let (rig, polling, mut client, live) = upgraded().await;
    assert!(live.evict(4321, "signed in elsewhere"));
    let close = within("a Close frame", client.receive()).await;
    assert_eq!(close, Frame::close(4321, "signed in elsewhere"));
    client.send(&close).await;
    client.socket.frames.closed().await;
    assert_eq!(rig.end_reason().await, Reason::Kicked { code: 4321 });
    polling.expect_end().await;
}

/// Opens a session by polling, sends an event, and upgrades the session while the layer sends
/// pings.
async fn upgraded() -> (Rig, Polling, MessageClient, Liveness) {
    let heartbeat = long_heartbeat().interval(ms(20));
    let rig = Rig::start(STACK, CLEAR_TEXT_HTTP1, heartbeat, long_idle()).await;
    let mut polling = Polling::open(rig.addr).await;
    polling.send("40").await;
    polling.expect(|packet| packet.starts_with("40{")).await;
    polling
        .expect(|packet| packet.starts_with(r#"42["ready""#))
        .await;
    let event = r#"42["echo","by polling"]"#;
    polling.send(event).await;
    polling.expect(|packet| packet == event).await;
    assert!(
        rig.registry.is_empty(),
        "polling requests are not connections"
    );

    let path = polling.websocket_path();
    let client = Client::open(rig.addr, CLEAR_TEXT_HTTP1, &path, None).await;
    let mut client = MessageClient::after_handshake(Dialect::SocketIo, client.expect("an upgrade"));
    let live = rig.handle().await;
    client.send(&Frame::text("2probe")).await;
    client.expect_text(|packet| packet == "3probe").await;
    polling.expect_pause().await;
    // During the upgrade Engine.IO would treat a pong as a protocol error.
    client.answer_pings(&live, 3).await;
    client.send(&Frame::text("5")).await;

    client.echo_text("by WebSocket").await;
    client.echo_binary(b"\x00by WebSocket").await;
    // Lasts long enough for pings of both kinds.
    client.engine_io_pings = 0;
    client.answer_pings(&live, 20).await;
    assert!(client.engine_io_pings > 0, "Engine.IO's own pings go on");
    assert_eq!(rig.registry.len(), 1);
    assert_eq!(rig.recorder.total(), 0);
    (rig, polling, client, live)
}

/// With a `ping_interval` beyond the idle timeout, only the application's messages count as
/// traffic.
pub async fn an_idle_session_is_evicted_between_rare_engine_io_pings() {
    fn serve(site: Site) -> BoxFuture<'static, ()> {
        site.serve_router(Router::new().layer(layer(ms(600_000))))
            .boxed()
    }
    let (heartbeat, idle) = (
        long_heartbeat().interval(ms(20)),
        long_idle().timeout(ms(1_000)),
    );
    let rig = Rig::start(Stack { serve, ..STACK }, CLEAR_TEXT_HTTP1, heartbeat, idle).await;
    let (mut client, _) = rig.open().await;
    client.echo_text("hello").await;
    let close = within("a Close frame", client.receive()).await;
    assert_eq!(close, Frame::close(1001, "idle timeout"));
    assert!(client.socket.frames.pings > 0);
    client.send(&close).await;
    assert_eq!(rig.end_reason().await, Reason::IdleTimeout);
}

/// Engine.IO closes a peer that answers the layer's pings and none of its own. The hook is called
/// once.
pub async fn engine_io_closes_a_peer_that_ignores_its_pings() {
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
    let heartbeat = long_heartbeat().interval(ms(20)).timeout(ms(10_000));
    let rig = Rig::start(
        Stack { serve, ..STACK },
        CLEAR_TEXT_HTTP1,
        heartbeat,
        long_idle(),
    )
    .await;
    let (mut client, live) = rig.open().await;
    client.socket.frames.closed().await;
    assert!(live.stats().pongs_received() > 0);
    assert_eq!(rig.end_reason().await, Reason::ServerClosed { code: None });
}

/// A peer stops reading. Engine.IO's timeout expires soon, but `on_disconnect` does not run while a
/// write is pending. `write_timeout` of the layer fails the write, after which it runs.
pub async fn only_the_layers_write_timeout_ends_a_stuck_write() {
    let recorder = Recorder::new();
    let heartbeat = long_heartbeat()
        .write_timeout(ms(2_000))
        .on_evict(recorder.hook());
    let heartbeat = heartbeat.build().expect("valid settings");
    for layered in [false, true] {
        let (disconnects, mut disconnect_reasons) = mpsc::unbounded_channel();
        let (layer, io) = SocketIo::builder()
            .ping_interval(ms(100))
            .ping_timeout(ms(1_500))
            .build_layer();
        io.ns("/", async move |socket: SocketRef| {
            socket.on_disconnect(async move |reason: DisconnectReason| {
                let _ = disconnects.send(reason);
            });
            socket.emit("ready", &()).ok();
            // Exceeds all buffers between the server and the client.
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
        let client = Client::open(addr, CLEAR_TEXT_HTTP1, path, None).await;
        let _stuck = MessageClient::connect(Dialect::SocketIo, client.expect("an upgrade")).await;
        if layered {
            within("the end of the session", disconnect_reasons.recv()).await;
            assert_eq!(recorder.nth(1).await.reason, Reason::WriteStalled);
            recorder.stays_at(1).await;
        } else {
            never("a disconnect", ms(4_000), disconnect_reasons.recv()).await;
        }
        server.abort();
    }
}

/// Inside socketioxide's layer, ours receive no request, since socketioxide responds by itself.
pub async fn layers_inside_of_socketioxide_have_no_effect() {
    fn serve(mut site: Site) -> BoxFuture<'static, ()> {
        let layers = site.layers.take().expect("the layers");
        let app = Router::new()
            .layer(layers.idle)
            .layer(layers.heartbeat)
            .layer(layer(Duration::from_secs(25)));
        site.serve_router(app).boxed()
    }
    let heartbeat = long_heartbeat().interval(ms(1));
    let rig = Rig::start(
        Stack { serve, ..STACK },
        CLEAR_TEXT_HTTP1,
        heartbeat,
        long_idle(),
    )
    .await;
    let client = rig.try_open(None).await.expect("an upgrade");
    let mut client = MessageClient::connect(Dialect::SocketIo, client).await;
    for _ in 0..20 {
        client.echo_text("not monitored").await;
    }
    assert!(rig.registry.is_empty());
    assert_eq!(client.socket.frames.pings, 0);
    drop(client);
    rig.recorder.stays_at(0).await;
}

/// A session that starts with a WebSocket has the handle in its request's extensions. A session
/// that starts with polling has none.
pub async fn handlers_find_the_handle_unless_polling_came_first() {
    fn serve(site: Site) -> BoxFuture<'static, ()> {
        let (layer, io) = SocketIo::new_layer();
        io.ns("/", async |socket: SocketRef| {
            let live = socket.req_parts().extensions.get::<Liveness>();
            let id = live.map(|live| live.id().to_string());
            socket.emit("ready", &id).ok();
        });
        site.serve_router(Router::new().layer(layer)).boxed()
    }
    let rig = Rig::start(
        Stack { serve, ..STACK },
        CLEAR_TEXT_HTTP1,
        long_heartbeat(),
        long_idle(),
    )
    .await;
    let client = rig.try_open(None).await.expect("an upgrade");
    let mut client = MessageClient::after_handshake(Dialect::SocketIo, client);
    client.expect_text(|packet| packet.starts_with("0{")).await;
    client.send(&Frame::text("40")).await;
    client.expect_text(|packet| packet.starts_with("40{")).await;
    let id = rig.registry.snapshot()[0].id();
    let event = format!(r#"42["ready","{id}"]"#);
    client.expect_text(|packet| packet == event).await;

    let mut polling = Polling::open(rig.addr).await;
    polling.send("40").await;
    polling.expect(|packet| packet.starts_with("40{")).await;
    polling
        .expect(|packet| packet == r#"42["ready",null]"#)
        .await;
}
