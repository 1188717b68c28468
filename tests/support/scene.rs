//! A server behind both layers, with recorders of all its hooks.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::routing::any;
use tokio::sync::{mpsc, watch};
use tower_ws_liveness::{
    HeartbeatLayer, HeartbeatLayerBuilder, IdleTimeoutLayer, IdleTimeoutLayerBuilder, Liveness,
    Reason, Registry,
};

use super::recorder::{Event, Recorder};
use super::wire::{Client, Wire};
use super::{Server, ms, until, within};

/// A heartbeat that sends no ping during a test.
pub(crate) fn quiet() -> HeartbeatLayerBuilder {
    HeartbeatLayer::builder()
        .interval(ms(600_000))
        .timeout(ms(600_000))
}

/// An idle timeout that does not expire during a test.
pub(crate) fn patient() -> IdleTimeoutLayerBuilder {
    IdleTimeoutLayer::builder().timeout(ms(600_000))
}

pub(crate) struct Scene {
    pub(crate) app: Router,
    pub(crate) registry: Registry,
    /// Records the hook of the heartbeat layer.
    pub(crate) recorder: Recorder,
    /// Records the hooks that are added to each `Liveness`.
    pub(crate) local: Recorder,
    lives: mpsc::UnboundedReceiver<Liveness>,
    /// Number of handlers that have returned or panicked.
    done: Arc<watch::Sender<usize>>,
    server: Server,
    wire: Wire,
}

impl Scene {
    pub(crate) async fn start<H, F>(
        wire: Wire,
        heartbeat: HeartbeatLayerBuilder,
        idle: IdleTimeoutLayerBuilder,
        handler: H,
    ) -> Self
    where
        H: Fn(WebSocket) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let (recorder, local) = (Recorder::new(), Recorder::new());
        let heartbeat = heartbeat.on_evict(recorder.hook()).build().unwrap();
        let registry = heartbeat.registry();
        let done = Arc::new(watch::Sender::new(0));
        let (sender, lives) = mpsc::unbounded_channel();
        let (own, returned) = (local.clone(), done.clone());
        let route = any(move |ws: WebSocketUpgrade, live: Liveness| async move {
            live.on_evict(move |ev| own.record(ev));
            sender.send(live).unwrap();
            let guard = Done(returned);
            ws.on_upgrade(move |socket| async move {
                let _guard = guard;
                handler(socket).await;
            })
        });
        let app = Router::new()
            .route("/ws", route)
            .layer(idle.build().unwrap())
            .layer(heartbeat);
        let server = Server::start(app.clone()).await;
        Self {
            app,
            registry,
            recorder,
            local,
            lives,
            done,
            server,
            wire,
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.server.addr
    }

    /// A new client, and the `Liveness` of its connection.
    pub(crate) async fn connect(&mut self) -> (Client, Liveness) {
        let client = self.server.client(self.wire, "/ws").await;
        let live = self.next_live().await;
        until("the connection is counted", || {
            self.registry.get(live.id()).is_some() || self.recorder.count(live.id()) > 0
        })
        .await;
        (client, live)
    }

    /// The `Liveness` of the next connection whose handler is called.
    pub(crate) async fn next_live(&mut self) -> Liveness {
        within("the handler", self.lives.recv()).await.unwrap()
    }

    /// Waits for the end of the only connection so far. Asserts that both hooks and `evicted()`
    /// agree on its id and reason, and that the registry is empty.
    pub(crate) async fn ended(&self, live: &Liveness, reason: Reason) -> Event {
        let event = self.recorder.nth(1).await;
        assert_eq!(event.reason, reason);
        assert_eq!(event.id, live.id());
        let local = self.local.nth(1).await;
        assert_eq!((local.id, local.reason), (live.id(), reason));
        let eviction = within("evicted()", live.evicted()).await;
        assert_eq!((eviction.id(), eviction.reason()), (live.id(), reason));
        until("the registry is empty", || self.registry.is_empty()).await;
        assert_eq!(self.registry.len(), 0);
        event
    }

    /// Waits until `count` handlers have returned or panicked.
    pub(crate) async fn handlers_done(&self, count: usize) {
        let mut done = self.done.subscribe();
        let all = done.wait_for(|done| *done >= count);
        within("the handler's end", all).await.unwrap();
    }

    /// Asserts that each hook has been called once and is not called again.
    pub(crate) async fn assert_evicted_once(&self) {
        self.recorder.stays_at(1).await;
        self.local.stays_at_for(1, ms(1)).await;
        assert!(self.registry.is_empty());
    }
}

struct Done(Arc<watch::Sender<usize>>);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.send_modify(|done| *done += 1);
    }
}
