//! [`HeartbeatLayer`]: pings silent peers, and evicts those who do not answer.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tower_layer::Layer;
use tower_service::Service;

use super::heartbeat_builder::HeartbeatLayerBuilder;
use crate::connection::{LayerConfig, Liveness, LivenessStream};
use crate::handshake::HandshakeStream;
use crate::hooks::OnEvict;
use crate::hooks::OnHealth;
use crate::monitor::{HeartbeatPolicy, Policy};
use crate::registry::Registry;
#[cfg(feature = "tcp")]
use crate::tcp::TcpOptions;
use crate::upgrade::{self, ResponseFuture};
use crate::wire::Role;

/// Evicts WebSocket peers that are dead.
///
/// After an `interval` without a byte from the peer a ping is sent (RFC 6455 section 5.5.2). If
/// nothing comes from the peer within the `timeout` after that, `missed_pings` times in a row, the
/// connection is evicted. It does not matter whether the handler reads, writes, or is stuck.
///
/// The default is an interval of 30 s, a timeout of 15 s, and one missed ping; see
/// [`HeartbeatLayerBuilder`] for all settings.
///
/// Cloning is cheap. All clones, and all services made of them, share the hooks and the registry.
#[derive(Clone, Debug)]
pub struct HeartbeatLayer {
    share: Arc<LayerConfig>,
    registry: Registry,
}

impl HeartbeatLayer {
    /// A layer with these times, and defaults for everything else.
    ///
    /// # Panics
    ///
    /// If [`build`](HeartbeatLayerBuilder::build) would refuse a time: zero, less than 1 ms, or more
    /// than 365 days.
    #[must_use]
    pub fn new(interval: Duration, timeout: Duration) -> Self {
        match Self::builder().interval(interval).timeout(timeout).build() {
            Ok(layer) => layer,
            Err(error) => panic!("{error}"),
        }
    }

    /// A builder with the defaults.
    pub fn builder() -> HeartbeatLayerBuilder {
        HeartbeatLayerBuilder::default()
    }

    /// The live connections of this layer.
    #[must_use]
    pub fn registry(&self) -> Registry {
        self.registry.clone()
    }

    /// The socket options that follow from this layer's times.
    ///
    /// The layer sets them by itself where it finds a tokio `TcpStream`, unless
    /// [`tune_tcp`](HeartbeatLayerBuilder::tune_tcp) is off. For a transport that wraps one, TLS say,
    /// apply them yourself: see [`TcpOptions`].
    #[cfg(feature = "tcp")]
    #[must_use]
    pub fn tcp_options(&self) -> TcpOptions {
        let policy = self.share.policy.heartbeat.as_deref();
        policy.map_or_else(TcpOptions::default, TcpOptions::of)
    }

    /// Puts the server's end of a WebSocket under this layer, below HTTP: `io` is a stream whose
    /// opening handshake is complete and of which no frame was read yet.
    ///
    /// For a library that does the handshake itself, over the stream that it is given, there is
    /// [`wrap_server_handshake`](Self::wrap_server_handshake). Given to this method, a stream with the
    /// handshake still to come is one of malformed frames: bytes pass, and nobody is ever pinged.
    ///
    /// `io` is a transport, or what decrypts it, but nothing beneath TLS. Its socket options are left
    /// alone; see `TcpOptions`. If it buffers what is written, its `poll_flush` has
    /// to write that out, which pings make use of.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with time enabled.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio::io::{AsyncRead, AsyncWrite};
    /// use tokio_tungstenite::{WebSocketStream, tungstenite::protocol::Role};
    /// use tower_ws_liveness::{HeartbeatLayer, Liveness, LivenessStream};
    ///
    /// /// `io` comes from whatever has answered the opening handshake.
    /// async fn serve<T>(heartbeat: &HeartbeatLayer, io: T) -> (WebSocketStream<LivenessStream<T>>, Liveness)
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
        LivenessStream::wrap(io, Role::Server, &self.share)
    }

    /// Puts the client's end of a WebSocket under this layer: pings are masked, as a client's
    /// frames have to be (RFC 6455 section 5.1). Otherwise like
    /// [`wrap_server`](Self::wrap_server).
    ///
    /// Beware of what a library has read beyond the handshake's answer: the server's first frames may
    /// have come in one piece with it. [`wrap_client_handshake`](Self::wrap_client_handshake) sees to
    /// that.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with time enabled.
    pub fn wrap_client<T>(&self, io: T) -> (LivenessStream<T>, Liveness)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        LivenessStream::wrap(io, Role::Client, &self.share)
    }

    /// Puts the server's end of a WebSocket under this layer before its opening handshake, of which
    /// nothing was read yet. The handshake passes; see [`HandshakeStream`] for what that means.
    ///
    /// # Panics
    ///
    /// The stream panics if the handshake is completed outside of a tokio runtime with time enabled.
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
    ///     // Nothing else bounds the handshake.
    ///     let accepted = tokio::time::timeout(Duration::from_secs(10), accept_async(io)).await;
    ///     let Ok(socket) = accepted else { return Ok(()) };
    ///     let mut socket = socket?;
    ///     println!("{} is here", live.id());
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
        HandshakeStream::wrap(io, Role::Server, &self.share)
    }

    /// Puts the client's end of a WebSocket under this layer before its opening handshake, of which
    /// nothing was written yet. Otherwise like
    /// [`wrap_server_handshake`](Self::wrap_server_handshake).
    ///
    /// Under TLS it is the stream that TLS gives which is to be wrapped, so a library's function that
    /// also sets TLS up cannot be used: connect first, then have it do the handshake.
    ///
    /// # Panics
    ///
    /// The stream panics if the handshake is completed outside of a tokio runtime with time enabled.
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
        HandshakeStream::wrap(io, Role::Client, &self.share)
    }

    pub(crate) fn from_parts(
        policy: HeartbeatPolicy,
        registry: Registry,
        hooks: Vec<Arc<dyn OnEvict>>,
        health_hooks: Vec<Arc<dyn OnHealth>>,
    ) -> Self {
        let policy = Policy {
            heartbeat: Some(Arc::new(policy)),
            idle: None,
        };
        Self {
            share: Arc::new(LayerConfig::new(
                policy,
                Some(registry.tracker()),
                hooks,
                health_hooks,
            )),
            registry,
        }
    }
}

impl Default for HeartbeatLayer {
    fn default() -> Self {
        Self::from_parts(
            HeartbeatPolicy::default(),
            Registry::default(),
            Vec::new(),
            Vec::new(),
        )
    }
}

impl<S> Layer<S> for HeartbeatLayer {
    type Service = Heartbeat<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Heartbeat {
            inner,
            share: Arc::clone(&self.share),
        }
    }
}

/// Service of [`HeartbeatLayer`].
///
/// The type of the response stays as it is, so that `option_layer` and its like work. Its body has to
/// be `Default`: it is that of the answer to an upgrade that the layer's [`Registry`] has no room for.
///
/// The bodies of axum, of http-body-util, and of most layers are. Those of layers that watch a body,
/// tower-http's `TraceLayer` for one, are not, nor is hyper's `Incoming`. With `Router::layer` that
/// does not matter, since between two layers all bodies are axum's. In one `ServiceBuilder`, put such
/// layers further out, or box their bodies in between:
///
/// ```
/// use axum::response::IntoResponse;
/// use tower::ServiceBuilder;
/// use tower_http::trace::TraceLayer;
/// use tower_ws_liveness::HeartbeatLayer;
///
/// let layers = ServiceBuilder::new()
///     .layer(HeartbeatLayer::default())
///     .map_response(IntoResponse::into_response)
///     .layer(TraceLayer::new_for_http());
/// # let _: axum::Router = axum::Router::new().layer(layers);
/// ```
///
/// Without axum, tower-http's `MapResponseBodyLayer::new(BodyExt::boxed)` does the same.
#[derive(Clone, Debug)]
pub struct Heartbeat<S> {
    inner: S,
    share: Arc<LayerConfig>,
}

impl<S, B, R> Service<Request<B>> for Heartbeat<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, req: Request<B>) -> Self::Future {
        upgrade::call(&self.share, &mut self.inner, req)
    }
}
