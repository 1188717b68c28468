//! One stack that is served for a scene, and everybody who is told of an end.

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tower_ws_liveness::{
    HeartbeatLayer, HeartbeatLayerBuilder, IdleTimeoutLayer, IdleTimeoutLayerBuilder, Liveness,
    Reason, Registry,
};

use crate::client::{Client, Refused};
use crate::protocol::Protocol;
use crate::site::{Layers, Pongs, Site};
use crate::stack::Stack;
use crate::support::recorder::Recorder;
use crate::support::{ms, until, within};
use crate::talk::Talk;
use crate::tls::Tls;

#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) stack: Stack,
    pub(crate) protocol: Protocol,
    pub(crate) addr: SocketAddr,
    pub(crate) registry: Registry,
    pub(crate) recorder: Recorder,
    pub(crate) pongs: Pongs,
    server: JoinHandle<()>,
}

/// A heartbeat that never has anything to say during a scene.
pub(crate) fn quiet() -> HeartbeatLayerBuilder {
    HeartbeatLayer::builder()
        .interval(ms(600_000))
        .timeout(ms(600_000))
}

/// An idle timeout that never comes during a scene.
pub(crate) fn patient() -> IdleTimeoutLayerBuilder {
    IdleTimeoutLayer::builder().timeout(ms(600_000))
}

impl Rig {
    /// Behind both layers.
    pub(crate) async fn start(
        stack: Stack,
        protocol: Protocol,
        heartbeat: HeartbeatLayerBuilder,
        idle: IdleTimeoutLayerBuilder,
    ) -> Self {
        let recorder = Recorder::new();
        let heartbeat = heartbeat.on_evict(recorder.hook()).build();
        let layers = Layers {
            heartbeat: heartbeat.expect("settings of a scene"),
            idle: idle.build().expect("settings of a scene"),
        };
        let registry = layers.heartbeat.registry();
        Self::serve(stack, protocol, Some(layers), registry, recorder).await
    }

    /// The library alone.
    pub(crate) async fn bare(stack: Stack, protocol: Protocol) -> Self {
        Self::serve(stack, protocol, None, Registry::new(), Recorder::new()).await
    }

    async fn serve(
        stack: Stack,
        protocol: Protocol,
        layers: Option<Layers>,
        registry: Registry,
        recorder: Recorder,
    ) -> Self {
        let bound = TcpListener::bind(("127.0.0.1", 0)).await;
        let listener = bound.expect("a free port");
        let addr = listener.local_addr().expect("a bound listener");
        let pongs = Pongs::default();
        let site = Site {
            listener,
            tls: protocol.tls.map(Tls::acceptor),
            http: protocol.http,
            layers,
            pongs: pongs.clone(),
        };
        Self {
            stack,
            protocol,
            addr,
            registry,
            recorder,
            pongs,
            server: tokio::spawn((stack.serve)(site)),
        }
    }

    /// Opens a WebSocket, and says nothing on it.
    pub(crate) async fn try_open(
        &self,
        extensions: Option<&'static str>,
    ) -> Result<Client, Refused> {
        let path = self.stack.dialect.path();
        Client::open(self.addr, self.protocol, path, extensions).await
    }

    /// Opens a WebSocket for messages. Its handle is here, as the application's code is not asked
    /// for one.
    pub(crate) async fn open(&self) -> (Talk, Liveness) {
        let opened = self.try_open(None).await;
        let client = opened.unwrap_or_else(|refused| panic!("{refused:?}"));
        let talk = Talk::begin(self.stack.dialect, client).await;
        (talk, self.live().await)
    }

    /// The only connection, which has been opened or is about to be.
    pub(crate) async fn live(&self) -> Liveness {
        // The response may be here before the server takes the connection for open.
        until("the connection", || !self.registry.is_empty()).await;
        let connections = self.registry.snapshot();
        assert_eq!(connections.len(), 1, "{connections:?}");
        let live = self.registry.get(connections[0].id());
        live.expect("it has not ended")
    }

    /// The end of the only connection: told of once, and nothing is left.
    pub(crate) async fn ended(&self) -> Reason {
        let reason = self.recorder.nth(1).await.reason;
        within("the last of the connection", self.registry.wait_idle()).await;
        self.recorder.stays_at(1).await;
        reason
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.server.abort();
    }
}
