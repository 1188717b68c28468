//! Upgrades of which no connection came, or none that anybody used: they are told of once as well.

mod support;
#[path = "support/unwritable.rs"]
mod unwritable;

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::routing::any;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use support::raw::{RawClient, opening};
use support::recorder::Recorder;
use support::scene::{patient, quiet};
use support::{echo, in_memory, ms, serve_io, switching_protocols, until, within};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tower_ws_liveness::{Liveness, Reason};
use unwritable::Unwritable;

#[tokio::test]
async fn the_upgrade_fails_while_the_101_is_written() {
    let mut failing = FailingUpgrade::new();
    let (mut client, server) = tokio::io::duplex(4096);
    let served = serve_io(failing.app.clone(), Unwritable(server));
    client.write_all(opening("/ws").as_bytes()).await.unwrap();
    failing.verify().await;
    let served = within("the connection's end", served).await.unwrap();
    assert!(served.is_err(), "{served:?}");
    failing.recorder.stays_at(1).await;
}

#[tokio::test]
async fn the_upgrade_fails_since_the_server_does_not_support_it() {
    let mut failing = FailingUpgrade::new();
    let (mut client, server) = tokio::io::duplex(4096);
    // Without `with_upgrades()`.
    let service = TowerToHyperService::new(failing.app.clone());
    let served =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service);
    let served = tokio::spawn(served);
    client.write_all(opening("/ws").as_bytes()).await.unwrap();
    failing.verify().await;
    within("the connection's end", served)
        .await
        .unwrap()
        .unwrap();
    failing.recorder.stays_at(1).await;
}

/// An application whose upgrade is going to fail.
struct FailingUpgrade {
    app: Router,
    recorder: Recorder,
    registry: tower_ws_liveness::Registry,
    lives: mpsc::UnboundedReceiver<Liveness>,
    failures: mpsc::UnboundedReceiver<axum::Error>,
}

impl FailingUpgrade {
    fn new() -> Self {
        let recorder = Recorder::new();
        let heartbeat = quiet().on_evict(recorder.hook()).build().unwrap();
        let registry = heartbeat.registry();
        let (tell, lives) = mpsc::unbounded_channel();
        let (fail, failures) = mpsc::unbounded_channel();
        let route = any(move |ws: WebSocketUpgrade, live: Liveness| async move {
            tell.send(live).unwrap();
            ws.on_failed_upgrade(move |error| fail.send(error).unwrap())
                .on_upgrade(|_| async { panic!("upgraded") })
        });
        let app = Router::new()
            .route("/ws", route)
            .layer(patient().build().unwrap())
            .layer(heartbeat);
        Self {
            app,
            recorder,
            registry,
            lives,
            failures,
        }
    }

    async fn verify(&mut self) {
        let live = within("the handler", self.lives.recv()).await.unwrap();
        let event = self.recorder.nth(1).await;
        assert_eq!((event.id, event.reason), (live.id(), Reason::UpgradeFailed));
        let eviction = within("evicted()", live.evicted()).await;
        assert_eq!(eviction.reason(), Reason::UpgradeFailed);
        // The application's own callback is told as without the layers.
        within("on_failed_upgrade", self.failures.recv())
            .await
            .unwrap();
        until("the registry is empty", || self.registry.is_empty()).await;
    }
}

#[tokio::test]
async fn nobody_takes_the_upgraded_connection() {
    let recorder = Recorder::new();
    let heartbeat = quiet().on_evict(recorder.hook()).build().unwrap();
    let registry = heartbeat.registry();
    // A handler that says 101 and lets go of the upgrade.
    let route = any(|request: axum::extract::Request| async move { switching_protocols(&request) });
    let app = Router::new().route("/ws", route).layer(heartbeat);
    let mut client = RawClient::handshake(in_memory(app, 4096), "/ws").await;
    client.closed().await;
    let event = recorder.nth(1).await;
    assert!(
        matches!(event.reason, Reason::HandlerDropped | Reason::UpgradeFailed),
        "{event:?}"
    );
    until("the registry is empty", || registry.is_empty()).await;
    recorder.stays_at(1).await;
}

#[tokio::test]
async fn the_application_kicks_the_peer_before_the_upgrade_is_done() {
    let recorder = Recorder::new();
    let heartbeat = quiet()
        .close_timeout(ms(200))
        .on_evict(recorder.hook())
        .build()
        .unwrap();
    let registry = heartbeat.registry();
    let route = any(|ws: WebSocketUpgrade, live: Liveness| async move {
        live.evict(4003, "never mind");
        ws.on_upgrade(echo)
    });
    let app = Router::new().route("/ws", route).layer(heartbeat);
    let mut client = RawClient::handshake(in_memory(app, 4096), "/ws").await;
    client.closed().await;
    let event = recorder.nth(1).await;
    assert_eq!(event.reason, Reason::Kicked { code: 4003 });
    until("the registry is empty", || registry.is_empty()).await;
    recorder.stays_at(1).await;
}
