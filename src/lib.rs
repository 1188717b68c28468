//! WebSocket liveness for axum and hyper, as [tower] layers.
//!
//! [`HeartbeatLayer`] pings silent connections and evicts dead peers. [`IdleTimeoutLayer`] evicts
//! connections that carry no data. When a connection ends, its session is removed from the
//! application's session map, and hooks are called once with the reason. Handlers do not change.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use axum::{Router, routing::any};
//! use tower_ws_liveness::{HeartbeatLayer, IdleTimeoutLayer};
//!
//! # async fn handler(ws: axum::extract::ws::WebSocketUpgrade) -> axum::response::Response {
//! #     ws.on_upgrade(async |_| {})
//! # }
//! # fn app() -> Result<Router, tower_ws_liveness::ConfigError> {
//! let app: Router = Router::new()
//!     .route("/ws", any(handler)) // an ordinary WebSocket handler
//!     .layer(IdleTimeoutLayer::new(Duration::from_secs(300)))
//!     .layer(
//!         HeartbeatLayer::builder()
//!             .interval(Duration::from_secs(30))
//!             .timeout(Duration::from_secs(15))
//!             .on_evict(|ev| println!("{} ended: {}", ev.id(), ev.reason()))
//!             .build()?,
//!     );
//! # Ok(app)
//! # }
//! ```
//!
//! # How it works
//!
//! The layers wrap the upgraded byte stream *under* the WebSocket library. They scan the bytes for
//! frame boundaries ([RFC 6455 section 5.2]), insert pings between frames, and remove the pongs to
//! them; all other bytes pass unchanged, including extensions. One task per runtime holds the
//! deadlines of all connections, and reads from a transport itself while its handler does not.
//!
//! # Main types
//!
//! - Layers: [`HeartbeatLayer`] and [`IdleTimeoutLayer`]; [`PolicyOverride`] sets other times for
//!   one request. Below HTTP, [`HeartbeatLayer::wrap_server_handshake`] and similar methods wrap
//!   any stream.
//! - Handle: [`Liveness`], an axum extractor, also in the request's extensions. It returns the
//!   [`Health`] of a connection, pings on demand, changes times, and ends the connection.
//! - Sessions: [`Liveness::register`] inserts a [`Seat`] into the application's [`SessionMap`]; the
//!   end of the connection removes it. With [`Liveness::register_lingering`] it stays for a grace
//!   period, in which a newer connection resumes the session; an [`Outbox`] in its value keeps the
//!   messages that the client has not acknowledged.
//! - Groups: [`Liveness::register_in`] bounds the connections of a key, such as the devices of a
//!   user, in [`Groups`]; a hook is called when the first one of a key registers and when
//!   the last one leaves.
//! - Registry: [`Registry`] counts, limits and lists the open connections, and
//!   [shuts them down](Registry::shutdown).
//! - Eviction: [`OnEvict`] hooks get each [`Eviction`] with its [`Reason`], exactly once per
//!   connection; [`OnOpen`] hooks get the handle of each connection that has opened, [`OnHealth`]
//!   hooks each [`HealthChange`] that has lasted.
//!
//! # Features
//!
//! - `axum` (default): [`Liveness`] as an extractor. Depends on `axum-core` only.
//! - `http2` (default): WebSockets over HTTP/2 ([RFC 8441]).
//! - `tcp` (default): calls a tokio `TcpStream` under the upgrade without dynamic dispatch, and
//!   sets socket options that follow from the heartbeat's times; `TcpOptions` for other servers.
//! - `dashmap`, `papaya`, `scc`: [`SessionMap`] for the concurrent maps of these crates.
//! - `parking_lot`: [`SessionMap`] for maps behind the locks of that crate.
//! - `serde`: a [`ConnectionId`] is serialised as its number.
//! - `test-util`: clients in memory and made-up evictions, for an application's own tests.
//!
//! # Versions of other crates
//!
//! Types of these crates are in the public API: tokio 1, http 1, tower-layer 0.3, tower-service 0.3,
//! futures-core 0.3, and with `axum` axum-core 0.5 (axum 0.8). The upgrades in the extensions of
//! requests are those of hyper 1. A new major version of one of them is a new major version of this
//! crate.
//!
//! The maps are dashmap 6, papaya 0.2 and scc 3, and are re-exported under their names, so an
//! application that writes `tower_ws_liveness::dashmap::DashMap` has the right version. A later major
//! version of a map will get a feature of its own, with the number in its name (`dashmap7`).
//!
//! # Guide
//!
//! The [`guide`] has pages on [installation](guide::getting_started), [choosing the
//! times](guide::times), the [session map](guide::session_map), [shutdown](guide::shutdown),
//! [testing](guide::testing), [other layers](guide::other_layers), and on [what each reason
//! means](guide::troubleshooting). [Promises and limits](guide::promises) says what is guaranteed.
//!
//! [tower]: https://docs.rs/tower
//! [RFC 6455 section 5.2]: https://www.rfc-editor.org/rfc/rfc6455#section-5.2
//! [RFC 8441]: https://www.rfc-editor.org/rfc/rfc8441

// docs.rs sets this cfg. rustdoc then shows which feature an item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod config_error;
mod connection;
mod driver;
mod eviction;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
pub mod guide;
mod handshake;
mod hooks;
mod layer;
#[cfg(test)]
#[path = "../tests/support/logs.rs"]
mod logs;
mod monitor;
mod panic_guard;
mod registry;
mod session;
mod sync;
#[cfg(feature = "tcp")]
mod tcp;
#[cfg(feature = "test-util")]
pub mod test_util;
mod upgrade;
mod wire;

// Layers and their configuration.
pub use config_error::ConfigError;
pub use layer::{
    Heartbeat, HeartbeatLayer, HeartbeatLayerBuilder, IdleTimeout, IdleTimeoutLayer,
    IdleTimeoutLayerBuilder, LivenessService,
};
pub use monitor::{ProofOfLife, Traffic};
#[cfg(feature = "tcp")]
pub use tcp::{TcpKeepalive, TcpOptions};
pub use upgrade::{PolicyOverride, PolicyOverrideBuilder, ResponseFuture, UpgradeRefused};

// The handle and the streams of one connection.
pub use connection::{Expiry, Liveness, LivenessStream};
pub use handshake::HandshakeStream;
pub use monitor::{Health, Rtt, Stats};
#[cfg(feature = "axum")]
pub use upgrade::LivenessRejection;

// Sessions in the application's map.
pub use session::{
    GroupEvent, Groups, GroupsBuilder, Linger, LingerBuilder, MapIn, Outbox, OutboxError,
    OutboxLimits, OutboxOverflow, OutboxReader, RegisterError, Registered, ReplacePolicy, Resumed,
    Seat, SeatState, SeatTable, SessionEnd, SessionEndCause, SessionMap, map_in,
};

// The registry of open connections.
pub use registry::{
    ConnectionSnapshot, Drain, DrainReport, Evictions, Growth, HighWater, Overrun, Readiness,
    Registry, ShutdownPlan, ShutdownReport,
};

// The crates of the maps, in the versions for which `SessionMap` is implemented.
#[cfg(feature = "dashmap")]
pub use dashmap;
#[cfg(feature = "papaya")]
pub use papaya;
#[cfg(feature = "parking_lot")]
pub use parking_lot;
#[cfg(feature = "scc")]
pub use scc;

// Evictions and hooks.
pub use connection::{HealthChange, OnHealth, OnOpen};
pub use eviction::{ConnectionId, Evicted, Eviction, ParseConnectionIdError};
pub use hooks::{IntoHook, OnEvict};
pub use monitor::{PeerKernel, Reason, Tier};

#[cfg(all(doctest, feature = "axum", feature = "tcp"))]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
