//! A served stack for one scene, with its registry and an eviction recorder.

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tower_ws_liveness::{
    HeartbeatLayer, HeartbeatLayerBuilder, IdleTimeoutLayer, IdleTimeoutLayerBuilder, Liveness,
    Reason, Registry,
};

use crate::client::{Client, Refusal};
use crate::message_client::MessageClient;
use crate::protocol::Protocol;
use crate::site::{Layers, Pongs, Site};
use crate::stack::Stack;
use crate::support::recorder::Recorder;
use crate::support::{ms, until, within};
use crate::tls::Tls;

/// A running server, with access to its registry and its evictions.
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

/// A heartbeat whose interval and timeout of 10 minutes exceed any scene.
pub(crate) fn long_heartbeat() -> HeartbeatLayerBuilder {
    HeartbeatLayer::builder()
        .interval(ms(600_000))
        .timeout(ms(600_000))
}

/// An idle timeout of 10 minutes, which exceeds any scene.
pub(crate) fn long_idle() -> IdleTimeoutLayerBuilder {
    IdleTimeoutLayer::builder().timeout(ms(600_000))
}

impl Rig {
    /// Serves the stack behind both layers.
    pub(crate) async fn start(
        stack: Stack,
        protocol: Protocol,
        heartbeat: HeartbeatLayerBuilder,
        idle: IdleTimeoutLayerBuilder,
    ) -> Self {
        let recorder = Recorder::new();
        let heartbeat = heartbeat.on_evict(recorder.hook()).build();
        let layers = Layers {
            heartbeat: heartbeat.expect("valid settings"),
            idle: idle.build().expect("valid settings"),
        };
        let registry = layers.heartbeat.registry();
        Self::serve(stack, protocol, Some(layers), registry, recorder).await
    }

    /// Serves the stack without the layers.
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

    /// Opens a WebSocket and sends nothing on it.
    pub(crate) async fn try_open(
        &self,
        extensions: Option<&'static str>,
    ) -> Result<Client, Refusal> {
        let path = self.stack.dialect.path();
        Client::open(self.addr, self.protocol, path, extensions).await
    }

    /// Opens a WebSocket for messages. Takes its handle from the registry, not from the
    /// application.
    pub(crate) async fn open(&self) -> (MessageClient, Liveness) {
        let opened = self.try_open(None).await;
        let client = opened.unwrap_or_else(|refusal| panic!("{refusal:?}"));
        let client = MessageClient::connect(self.stack.dialect, client).await;
        (client, self.handle().await)
    }

    /// Waits for the only connection and returns its handle.
    pub(crate) async fn handle(&self) -> Liveness {
        // The client may receive the response before the server registers the connection.
        until("the connection", || !self.registry.is_empty()).await;
        let connections = self.registry.snapshot();
        assert_eq!(connections.len(), 1, "{connections:?}");
        let handle = self.registry.get(connections[0].id());
        handle.expect("it has not ended")
    }

    /// Waits for the end of the only connection and returns its reason. Asserts that the hook is
    /// called once and that the registry becomes empty.
    pub(crate) async fn end_reason(&self) -> Reason {
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
