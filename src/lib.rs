//! WebSocket liveness for axum and hyper, as [tower] layers: dead peers are found and evicted, idle
//! ones too, and the application's session map is told, once per connection. Handlers do not change.
//!
//! [tower]: https://docs.rs/tower
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use axum::{Router, extract::ws::WebSocketUpgrade, response::Response, routing::any};
//! use tower_ws_liveness::{Eviction, HeartbeatLayer, IdleTimeoutLayer};
//!
//! async fn handler(ws: WebSocketUpgrade) -> Response {
//!     ws.on_upgrade(async |mut socket| {
//!         while let Some(Ok(message)) = socket.recv().await {
//!             if socket.send(message).await.is_err() {
//!                 return;
//!             }
//!         }
//!     })
//! }
//!
//! # fn app() -> Result<Router, tower_ws_liveness::ConfigError> {
//! let app: Router = Router::new()
//!     .route("/ws", any(handler))
//!     .layer(IdleTimeoutLayer::new(Duration::from_secs(300)))
//!     .layer(
//!         HeartbeatLayer::builder()
//!             .interval(Duration::from_secs(30))
//!             .timeout(Duration::from_secs(15))
//!             .on_evict(|ev: &Eviction| println!("{} is gone: {}", ev.id(), ev.reason()))
//!             .build()?,
//!     );
//! # Ok(app)
//! # }
//! ```
//!
//! # What the layers do
//!
//! They wrap the upgraded byte stream *under* the WebSocket library. Bytes are scanned for frame
//! boundaries as they pass ([RFC 6455 section 5.2]); pings are put in between frames, the pongs to
//! them are cut out, and everything else is left as it is, extensions included. One task per runtime
//! holds the deadlines of all connections, and looks at a socket itself when its handler does not.
//!
//! [RFC 6455 section 5.2]: https://www.rfc-editor.org/rfc/rfc6455#section-5.2
//!
//! - [`HeartbeatLayer`] evicts peers that are dead: nothing came, although they were pinged. It also
//!   bounds writes that the peer does not drain, and, if asked to, handlers that do not read.
//! - [`IdleTimeoutLayer`] evicts connections that carry no data, however alive the peer is.
//! - [`Liveness`] is the handle of one connection: an extractor, and in the request's extensions. It
//!   pings on demand, and changes the times of its connection; [`PolicyOverride`] does that for one
//!   request from the beginning.
//! - [`Eviction`] is what hooks ([`OnEvict`]) are told, with the [`Reason`], exactly once for each
//!   connection on every path by which it can end.
//! - [`Liveness::register`] seats a connection in the application's own map ([`SessionMap`]), which
//!   the seat leaves when the connection ends, and only then, and only if it is still its.
//! - [`OnHealth`] hooks are told how a live connection is doing, with the [`Health`] it was in before.
//! - [`Registry`] is the set of live connections: it counts them, limits them, looks at them all,
//!   passes their ends on as a stream, and [drains](Registry::drain) them when the server shuts down.
//! - Below HTTP, and for clients, [`HeartbeatLayer::wrap_server_handshake`] and its like put a
//!   heartbeat under any stream.
//!
//! # With other layers
//!
//! Stacked with layers that pass requests and responses on, these work in any place: tower-http's for
//! tracing, compression, CORS, timeouts, headers, authorization, limits and panics, tower's buffers,
//! limits and load shedding, axum's `middleware::from_fn`, nested and merged routers. What makes a
//! difference:
//!
//! - *What refuses handshakes*, authorization say, is best further out: it then comes before the 503
//!   of a full registry. Further in it works as well. A handshake that is refused, times out, fails or
//!   panics before its 101 leaves no connection and holds no place.
//! - *What may take back an accepted upgrade* has to be further in. These layers take a 101 that they
//!   have passed on for a promise: if something further out turns it into another answer, that is an
//!   end, `UpgradeFailed` or `PeerVanished`, and over HTTP/1.1 it may hold its place until the client
//!   asks for another upgrade or closes the connection. `CompressionLayer` does so, with a 406, to
//!   clients that accept no encoding at all, not even none.
//! - *What builds requests anew* has to take their extensions along: hyper's upgrade is in them, and
//!   [`Liveness`]. Without the former nothing can be upgraded, with these layers or without them.
//!   Without the latter a layer further in takes the connection for another one.
//! - *What puts a [`PolicyOverride`] into requests* has to be further out than one of these layers;
//!   further in, [`Liveness`] sets times.
//! - *Timeouts and limits of requests* end with the answer to the handshake. They do not cut sockets,
//!   nor count them: [`IdleTimeoutLayer`] and [`Registry::limit`] do.
//! - `Router::layer` also sees unknown paths, so that a full registry answers them 503;
//!   `Router::route_layer` does not. A router that is merged keeps its own layers, and gets none.
//! - Bodies of responses have to be `Default`, which matters within one `ServiceBuilder`: see
//!   [`Heartbeat`].
//!
//! # What to know
//!
//! - After an eviction the handler's reads and writes fail; [`Evicted::from_error`] finds the reason.
//! - hyper's `Upgraded::downcast` to the transport's own type no longer works behind the layers.
//! - The layers need a tokio runtime with its timer enabled (`enable_time` or `enable_all`). Without it,
//!   and outside of a runtime, a handshake is answered 500 before the handler is called; the status line
//!   over HTTP/1.1 and one ERROR line in the log say why. (In a program built with `panic = "abort"`, tokio's
//!   own panic ends it.) Time is tokio's, so `tokio::time::pause` drives the layers in tests.
//! - axum's WebSockets have a read buffer of 128 KiB each. For many idle connections,
//!   `ws.read_buffer_size(4096)` saves most of that.
//! - The README says what is promised, and where each promise ends.
//!
//! # Features
//!
//! - `axum` (default): [`Liveness`] as an extractor. Depends on `axum-core` only.
//! - `http2` (default): recognises WebSockets over HTTP/2 ([RFC 8441]).
//! - `tcp` (default): finds the tokio `TcpStream` under hyper's upgraded stream, calls it without
//!   dynamic dispatch, and sets its options as the heartbeat's times demand. `TcpOptions` does the
//!   last for servers whose TCP is out of the layers' sight, under TLS say.
//! - `dashmap`, `papaya`, `scc`: [`SessionMap`] for the concurrent maps of these crates.
//!
//! [RFC 8441]: https://www.rfc-editor.org/rfc/rfc8441

mod config_error;
mod connection;
mod driver;
mod eviction;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod handshake;
mod hooks;
mod layer;
mod monitor;
mod panic_guard;
mod registry;
mod session;
mod sync;
#[cfg(feature = "tcp")]
mod tcp;
mod upgrade;
mod wire;

// The layers, and what configures them.
pub use config_error::ConfigError;
pub use layer::{
    Heartbeat, HeartbeatLayer, HeartbeatLayerBuilder, IdleTimeout, IdleTimeoutLayer,
    IdleTimeoutLayerBuilder, LivenessService,
};
pub use monitor::{ProofOfLife, Traffic};
#[cfg(feature = "tcp")]
pub use tcp::{TcpKeepalive, TcpOptions};
pub use upgrade::{PolicyOverride, PolicyOverrideBuilder, ResponseFuture};

// One connection: its handle, its streams, its figures.
pub use connection::{Liveness, LivenessStream};
pub use handshake::HandshakeStream;
pub use monitor::{Health, Rtt, Stats};
#[cfg(feature = "axum")]
pub use upgrade::LivenessRejection;

// The end of a connection, and the hooks.
pub use eviction::{ConnectionId, Evicted, Eviction};
pub use hooks::{HealthChange, IntoHook, OnEvict, OnHealth};
pub use monitor::{Reason, Tier};

// The application's session map.
pub use session::{RegisterError, ReplacePolicy, Seat, SessionMap};

// All connections of a layer.
pub use registry::{
    ConnectionSnapshot, Drain, DrainReport, Evictions, Growth, HighWater, Overrun, Registry,
};

#[cfg(all(doctest, feature = "axum", feature = "tcp"))]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
