//! Evictions over TLS: a reading peer receives a Close frame, close_notify and FIN.

use std::time::Duration;

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::routing::any;
use axum::{Router, body::Bytes};
use futures_util::FutureExt;
use tokio::time::{Instant, sleep};
use tower_ws_liveness::{Drain, Liveness, Reason};

use super::client::{ConnectionEnd, TcpEnd, TlsEnd, open, read_to_end};
use super::{Scene, TlsServer};
use crate::rig::{long_heartbeat, long_idle};
use crate::site::Site;
use crate::stack::{Dialect, Stack};
use crate::support::raw::{Answer, Frame};
use crate::support::{ms, within};
use crate::tls::Tls;

pub(super) const SCENES: &[Scene] = &[
    Scene::everywhere(
        "a dead peer receives a Close frame and a close_notify",
        |server| dead(server).boxed(),
    ),
    Scene::everywhere(
        "an idle peer receives a Close frame and a close_notify",
        |server| idle(server).boxed(),
    ),
    Scene::everywhere(
        "a kicked peer receives a Close frame and a close_notify",
        |server| kicked(server).boxed(),
    ),
    Scene::everywhere(
        "a drained peer receives a Close frame and a close_notify",
        |server| drained(server).boxed(),
    ),
    Scene::on_axum(
        "a peer that stops reading is evicted by the write timeout",
        |server| write_stall(server).boxed(),
    ),
    Scene::on_axum(
        "a kick of a peer that stops reading ends by the close timeout",
        |server| kick_during_write_stall(server).boxed(),
    ),
];

/// A stack whose handler writes forever.
const WRITES_FOREVER: Stack = Stack {
    name: "a handler that writes forever",
    library: "axum",
    serve: |site| write_forever(site).boxed(),
    dialect: Dialect::Plain,
    shows_pongs: true,
    limits: &[],
};

/// Close timeout for a peer that stops reading.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(300);

/// TCP and TLS of the peer work, but it answers no pings.
async fn dead(server: TlsServer) {
    let heartbeat = long_heartbeat().interval(ms(50)).timeout(ms(200));
    let rig = server.start(heartbeat, long_idle()).await;
    let mut client = open(rig.addr).await.answering(Answer::Nothing);
    let close = Frame::close(3008, "heartbeat timeout");
    let mut end = read_to_end(&mut client).await;
    if server.tls == Tls::Native {
        // Its shutdown leaves the socket open. The client replies to the Close frame although it is
        // considered dead. If the reply arrives before the server drops the socket, the
        // kernel resets the connection.
        end.tcp = TcpEnd::Fin;
    }
    assert_eq!(end, ConnectionEnd::clean(Some(close)));
    assert_eq!(
        rig.end_reason().await,
        Reason::HeartbeatTimeout { missed: 1 }
    );
}

async fn idle(server: TlsServer) {
    let (heartbeat, idle) = (
        long_heartbeat().interval(ms(20)),
        long_idle().timeout(ms(1_000)),
    );
    let rig = server.start(heartbeat, idle).await;
    let mut client = open(rig.addr).await;
    let close = Frame::close(1001, "idle timeout");
    assert_eq!(
        read_to_end(&mut client).await,
        ConnectionEnd::clean(Some(close))
    );
    assert!(client.pings > 0, "the heartbeat sent pings");
    assert_eq!(rig.end_reason().await, Reason::IdleTimeout);
}

async fn kicked(server: TlsServer) {
    let rig = server.start(long_heartbeat(), long_idle()).await;
    let mut client = open(rig.addr).await;
    assert!(rig.handle().await.evict(4321, "signed in elsewhere"));
    let close = Frame::close(4321, "signed in elsewhere");
    assert_eq!(
        read_to_end(&mut client).await,
        ConnectionEnd::clean(Some(close))
    );
    assert_eq!(rig.end_reason().await, Reason::Kicked { code: 4321 });
}

async fn drained(server: TlsServer) {
    let rig = server.start(long_heartbeat(), long_idle()).await;
    let mut client = open(rig.addr).await;
    rig.handle().await;
    let drain = rig.registry.drain(Drain::default().code(1012));
    let (report, end) = tokio::join!(within("the drain", drain), read_to_end(&mut client));
    assert_eq!((report.clean(), report.total()), (1, 1));
    assert_eq!(end.close.as_ref().and_then(Frame::close_code), Some(1012));
    assert_eq!(end, ConnectionEnd::clean(end.close.clone()));
    assert_eq!(rig.end_reason().await, Reason::Drained);
}

/// Neither a Close frame nor a close_notify is delivered, since the peer's receive window is
/// closed.
async fn write_stall(server: TlsServer) {
    let heartbeat = long_heartbeat()
        .interval(ms(50))
        .write_timeout(ms(500))
        .close_timeout(CLOSE_TIMEOUT);
    let rig = server
        .serving(WRITES_FOREVER)
        .start(heartbeat, long_idle())
        .await;
    let mut client = open(rig.addr).await;
    // The hook is called and the transport dropped while the peer is still connected.
    assert_eq!(rig.end_reason().await, Reason::WriteStalled);
    let end = read_to_end(&mut client).await;
    assert_eq!((end.close, end.tls), (None, TlsEnd::Truncated));
}

async fn kick_during_write_stall(server: TlsServer) {
    let heartbeat = long_heartbeat()
        .close_timeout(CLOSE_TIMEOUT)
        .write_timeout(None);
    let rig = server
        .serving(WRITES_FOREVER)
        .start(heartbeat, long_idle())
        .await;
    let mut client = open(rig.addr).await;
    let live = rig.handle().await;
    wait_until_stalled(&live).await;
    let begun = Instant::now();
    assert!(live.evict(4321, "too slow"));
    assert_eq!(
        rig.recorder.total(),
        1,
        "the hook is called before the closing handshake"
    );
    assert_eq!(rig.end_reason().await, Reason::Kicked { code: 4321 });
    // The default close timeout of 5 s would exceed this.
    assert!(begun.elapsed() < CLOSE_TIMEOUT + ms(4_000));
    let end = read_to_end(&mut client).await;
    assert_eq!((end.close, end.tls), (None, TlsEnd::Truncated));
}

async fn write_forever(site: Site) {
    let route = any(async |ws: WebSocketUpgrade| {
        ws.on_upgrade(async |mut socket: WebSocket| {
            let message = Message::Binary(Bytes::from_static(&[7; 100_000]));
            while socket.send(message.clone()).await.is_ok() {}
        })
    });
    site.serve_router(Router::new().route("/ws", route)).await;
}

/// Waits until the transport accepts no more bytes: no progress within 300 ms.
async fn wait_until_stalled(live: &Liveness) {
    loop {
        let before = live.stats().bytes_sent();
        sleep(ms(300)).await;
        if before > 0 && live.stats().bytes_sent() == before {
            return;
        }
    }
}
