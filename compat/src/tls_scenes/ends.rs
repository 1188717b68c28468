//! Ends that the layers decide upon: the peer is told on every floor, if it listens.

use std::time::Duration;

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::routing::any;
use axum::{Router, body::Bytes};
use futures_util::FutureExt;
use tokio::time::{Instant, sleep};
use tower_ws_liveness::{Drain, Liveness, Reason};

use super::client::{End, TcpEnd, TlsEnd, end, open};
use super::{Scene, Server};
use crate::rig::{patient, quiet};
use crate::site::Site;
use crate::stack::{Dialect, Stack};
use crate::support::raw::{Answer, Frame};
use crate::support::{ms, within};
use crate::tls::Tls;

pub(super) const SCENES: &[Scene] = &[
    Scene::everywhere("a dead peer is told, and TLS closed, at once", |server| {
        dead(server).boxed()
    }),
    Scene::everywhere("an idle peer is told, and TLS closed", |server| {
        idle(server).boxed()
    }),
    Scene::everywhere("a kicked peer is told, and TLS closed", |server| {
        kicked(server).boxed()
    }),
    Scene::everywhere("a drained peer is told, and TLS closed", |server| {
        drained(server).boxed()
    }),
    Scene::on_axum("a peer that takes nothing is not waited for", |server| {
        deaf(server).boxed()
    }),
    Scene::on_axum("a peer that takes nothing is kicked in time", |server| {
        deaf_and_kicked(server).boxed()
    }),
];

/// A handler that writes without end.
const POUR: Stack = Stack {
    name: "a handler that pours",
    library: "axum",
    serve: |site| pour(site).boxed(),
    dialect: Dialect::Plain,
    shows_pongs: true,
    limits: &[],
};

/// What a closing handshake may take there.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(300);

/// Its TCP lives, and so does its TLS, but it answers no pings.
async fn dead(server: Server) {
    let heartbeat = quiet().interval(ms(50)).timeout(ms(200));
    let rig = server.start(heartbeat, patient()).await;
    let mut client = open(rig.addr).await.answering(Answer::Nothing);
    let close = Frame::close(3008, "heartbeat timeout");
    let mut end = end(&mut client).await;
    if server.tls == Tls::Native {
        // Its shutdown leaves the socket open. This client answers the Close frame, though it is taken
        // for dead: if that comes before the socket is dropped, the kernel resets the connection.
        end.tcp = TcpEnd::Fin;
    }
    assert_eq!(end, End::clean(Some(close)));
    assert_eq!(rig.ended().await, Reason::HeartbeatTimeout { missed: 1 });
}

async fn idle(server: Server) {
    let (heartbeat, idle) = (quiet().interval(ms(20)), patient().timeout(ms(1_000)));
    let rig = server.start(heartbeat, idle).await;
    let mut client = open(rig.addr).await;
    let close = Frame::close(1001, "idle timeout");
    assert_eq!(end(&mut client).await, End::clean(Some(close)));
    assert!(client.pings > 0, "it was not idle for the heartbeat");
    assert_eq!(rig.ended().await, Reason::IdleTimeout);
}

async fn kicked(server: Server) {
    let rig = server.start(quiet(), patient()).await;
    let mut client = open(rig.addr).await;
    assert!(rig.live().await.evict(4321, "signed in elsewhere"));
    let close = Frame::close(4321, "signed in elsewhere");
    assert_eq!(end(&mut client).await, End::clean(Some(close)));
    assert_eq!(rig.ended().await, Reason::Kicked { code: 4321 });
}

async fn drained(server: Server) {
    let rig = server.start(quiet(), patient()).await;
    let mut client = open(rig.addr).await;
    rig.live().await;
    let drain = rig.registry.drain(Drain {
        code: 1012,
        ..Drain::default()
    });
    let (report, end) = tokio::join!(within("the drain", drain), end(&mut client));
    assert_eq!((report.clean(), report.total()), (1, 1));
    assert_eq!(end.close.as_ref().and_then(Frame::close_code), Some(1012));
    assert_eq!(end, End::clean(end.close.clone()));
    assert_eq!(rig.ended().await, Reason::Drained);
}

/// Neither a Close frame nor a close_notify gets through: the peer has left its window closed.
async fn deaf(server: Server) {
    let heartbeat = quiet()
        .interval(ms(50))
        .write_timeout(ms(500))
        .close_timeout(CLOSE_TIMEOUT);
    let rig = server.serving(POUR).start(heartbeat, patient()).await;
    let mut client = open(rig.addr).await;
    // Told, and the transport gone, while the peer is still there.
    assert_eq!(rig.ended().await, Reason::WriteStalled);
    let end = end(&mut client).await;
    assert_eq!((end.close, end.tls), (None, TlsEnd::Truncated));
}

async fn deaf_and_kicked(server: Server) {
    let heartbeat = quiet().close_timeout(CLOSE_TIMEOUT).write_timeout(None);
    let rig = server.serving(POUR).start(heartbeat, patient()).await;
    let mut client = open(rig.addr).await;
    let live = rig.live().await;
    stuck(&live).await;
    let begun = Instant::now();
    assert!(live.evict(4321, "too slow"));
    assert_eq!(rig.recorder.total(), 1, "told before anything is tried");
    assert_eq!(rig.ended().await, Reason::Kicked { code: 4321 });
    // Another five seconds, and it would have been the default's doing.
    assert!(begun.elapsed() < CLOSE_TIMEOUT + ms(4_000));
    let end = end(&mut client).await;
    assert_eq!((end.close, end.tls), (None, TlsEnd::Truncated));
}

async fn pour(site: Site) {
    let route = any(async |ws: WebSocketUpgrade| {
        ws.on_upgrade(async |mut socket: WebSocket| {
            let message = Message::Binary(Bytes::from_static(&[7; 100_000]));
            while socket.send(message.clone()).await.is_ok() {}
        })
    });
    site.serve_router(Router::new().route("/ws", route)).await;
}

/// Waits until no more bytes are taken. Nobody says so: a while without any has to do.
async fn stuck(live: &Liveness) {
    loop {
        let before = live.stats().bytes_sent();
        sleep(ms(300)).await;
        if before > 0 && live.stats().bytes_sent() == before {
            return;
        }
    }
}
