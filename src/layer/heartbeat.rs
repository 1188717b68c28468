//! [`HeartbeatLayer`]: pings silent peers and evicts dead ones.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tower_layer::Layer;

use super::service::Heartbeat;
use super::shared_settings::SharedSettings;
use crate::connection::{LayerConfig, Liveness, LivenessStream};
use crate::handshake::HandshakeStream;
use crate::monitor::{HeartbeatPolicy, Policy};
use crate::registry::Registry;
#[cfg(feature = "tcp")]
use crate::tcp::TcpOptions;
use crate::wire::Role;

/// Evicts WebSocket connections whose peer is dead.
///
/// After an `interval` without a byte from the peer, the layer sends a ping (RFC 6455 section
/// 5.5.2). If no byte arrives from the peer within `timeout` after the ping, `missed_pings` times
/// in a row, the layer evicts the connection. This works whether the handler reads, writes, or is
/// stuck.
///
/// With axum, add the layer after the routes: `Router::layer` applies to the routes added before it.
///
/// The default is an interval of 30 s, a timeout of 15 s, and one missed ping; see
/// [`HeartbeatLayerBuilder`](crate::HeartbeatLayerBuilder) for all settings.
///
/// Cloning is cheap. All clones of a layer, and all its services, share the hooks and the registry.
///
/// ```
/// use std::time::Duration;
///
/// use tower_ws_liveness::HeartbeatLayer;
///
/// let layer = HeartbeatLayer::new(Duration::from_secs(20), Duration::from_secs(10));
/// # let _: axum::Router = axum::Router::new().layer(layer);
/// ```
#[derive(Clone, Debug)]
pub struct HeartbeatLayer {
    config: Arc<LayerConfig>,
    registry: Registry,
}

impl HeartbeatLayer {
    /// Returns the registry of this layer's open connections.
    #[must_use]
    pub fn registry(&self) -> Registry {
        self.registry.clone()
    }

    /// Returns the socket options that follow from this layer's times.
    ///
    /// The layer sets them itself on a tokio `TcpStream`, unless
    /// [`tune_tcp`](crate::HeartbeatLayerBuilder::tune_tcp) is off. On a transport that wraps a
    /// `TcpStream`, such as TLS, apply them yourself: see [`TcpOptions`].
    #[cfg(feature = "tcp")]
    #[must_use]
    pub fn tcp_options(&self) -> TcpOptions {
        let policy = self.config.policy.heartbeat.as_deref();
        policy.map_or_else(TcpOptions::default, TcpOptions::of)
    }

    /// Wraps the server's end of a WebSocket, below HTTP. `io` is a stream whose opening handshake
    /// is complete and from which no frame has been read.
    ///
    /// For a library that performs the handshake itself on the stream that it is given, use
    /// [`wrap_server_handshake`](Self::wrap_server_handshake). This method would parse the
    /// handshake as malformed frames: the bytes pass, but the layer never pings the peer.
    ///
    /// `io` carries frames in plain text: it is the transport itself or the TLS stream on top of
    /// it, not the transport below TLS. The layer does not set its socket options; see
    /// `TcpOptions`. If `io` buffers writes, its `poll_flush` must write the buffer out, because
    /// pings rely on that.
    ///
    /// # Panics
    ///
    /// Panics outside of a tokio runtime with time enabled.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio::io::{AsyncRead, AsyncWrite};
    /// use tokio_tungstenite::{WebSocketStream, tungstenite::protocol::Role};
    /// use tower_ws_liveness::{HeartbeatLayer, Liveness, LivenessStream};
    ///
    /// /// `io` is the stream on which the opening handshake has been answered.
    /// async fn serve<T>(
    ///     heartbeat: &HeartbeatLayer,
    ///     io: T,
    /// ) -> (WebSocketStream<LivenessStream<T>>, Liveness)
    /// where
    ///     T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    /// {
    ///     let (io, live) = heartbeat.wrap_server(io);
    ///     (WebSocketStream::from_raw_socket(io, Role::Server, None).await, live)
    /// }
    /// ```
    pub fn wrap_server<T>(&self, io: T) -> (LivenessStream<T>, Liveness)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        LivenessStream::wrap(io, Role::Server, &self.config)
    }

    /// Wraps the client's end of a WebSocket, below HTTP. The layer masks its pings, as RFC 6455
    /// section 5.1 requires of a client's frames. Otherwise like
    /// [`wrap_server`](Self::wrap_server).
    ///
    /// The server's first frames may arrive in one piece with its response, so the library that
    /// performed the handshake may have read them already. With
    /// [`wrap_client_handshake`](Self::wrap_client_handshake) such frames are not lost.
    ///
    /// # Panics
    ///
    /// Panics outside of a tokio runtime with time enabled.
    pub fn wrap_client<T>(&self, io: T) -> (LivenessStream<T>, Liveness)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        LivenessStream::wrap(io, Role::Client, &self.config)
    }

    /// Wraps the server's end of a WebSocket before its opening handshake. No byte of the handshake
    /// has been read from `io`. The handshake passes through; see [`HandshakeStream`].
    ///
    /// # Panics
    ///
    /// The stream panics if the handshake completes outside of a tokio runtime with time enabled.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use futures_util::{SinkExt, StreamExt};
    /// use tokio::net::TcpStream;
    /// use tokio_tungstenite::{accept_async, tungstenite::Error};
    /// use tower_ws_liveness::HeartbeatLayer;
    ///
    /// async fn serve(heartbeat: HeartbeatLayer, io: TcpStream) -> Result<(), Error> {
    ///     let (io, live) = heartbeat.wrap_server_handshake(io);
    ///     // The layer does not bound the handshake.
    ///     let accepted = tokio::time::timeout(Duration::from_secs(10), accept_async(io)).await;
    ///     let Ok(socket) = accepted else { return Ok(()) };
    ///     let mut socket = socket?;
    ///     println!("connection {} is open", live.id());
    ///     while let Some(message) = socket.next().await {
    ///         let message = message?;
    ///         if message.is_text() || message.is_binary() {
    ///             socket.send(message).await?;
    ///         }
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub fn wrap_server_handshake<T>(&self, io: T) -> (HandshakeStream<T>, Liveness)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        HandshakeStream::wrap(io, Role::Server, &self.config)
    }

    /// Wraps the client's end of a WebSocket before its opening handshake. No byte of the handshake
    /// has been written to `io`. Otherwise like
    /// [`wrap_server_handshake`](Self::wrap_server_handshake).
    ///
    /// With TLS, wrap the TLS stream, not the stream below it. A library function that also sets up
    /// TLS can therefore not be used: connect first, then let the library perform the handshake.
    ///
    /// # Panics
    ///
    /// The stream panics if the handshake completes outside of a tokio runtime with time enabled.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio::net::TcpStream;
    /// use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Error};
    /// use tower_ws_liveness::{HandshakeStream, HeartbeatLayer};
    ///
    /// async fn connect(
    ///     heartbeat: &HeartbeatLayer,
    /// ) -> Result<WebSocketStream<HandshakeStream<TcpStream>>, Error> {
    ///     let io = TcpStream::connect("example.com:80").await?;
    ///     let (io, _live) = heartbeat.wrap_client_handshake(io);
    ///     let (socket, _response) = client_async("ws://example.com/ws", io).await?;
    ///     Ok(socket)
    /// }
    /// ```
    pub fn wrap_client_handshake<T>(&self, io: T) -> (HandshakeStream<T>, Liveness)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        HandshakeStream::wrap(io, Role::Client, &self.config)
    }

    pub(super) fn from_parts(policy: HeartbeatPolicy, mut settings: SharedSettings) -> Self {
        let policy = Policy {
            heartbeat: Some(Arc::new(policy)),
            idle: None,
        };
        let registry = settings.registry_or_new();
        Self {
            config: settings.into_config(policy),
            registry,
        }
    }
}

impl Default for HeartbeatLayer {
    fn default() -> Self {
        Self::from_parts(HeartbeatPolicy::default(), SharedSettings::default())
    }
}

impl<S> Layer<S> for HeartbeatLayer {
    type Service = Heartbeat<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Heartbeat::new(inner, &self.config)
    }
}
