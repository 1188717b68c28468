//! WebSocket liveness as [tower] middleware.
//!
//! [tower]: https://docs.rs/tower

mod config;
mod connection;
mod driver;
mod evict;
#[cfg(feature = "axum")]
mod extract;
mod heartbeat;
mod idle_timeout;
mod monitor;
mod registry;
mod upgrade;
mod wire;

pub use config::ConfigError;
pub use connection::{Liveness, LivenessStream};
pub use evict::{ConnectionId, Evicted, Eviction, OnEvict};
#[cfg(feature = "axum")]
pub use extract::LivenessRejection;
pub use heartbeat::{Heartbeat, HeartbeatLayer, HeartbeatLayerBuilder};
pub use idle_timeout::{IdleTimeout, IdleTimeoutLayer, IdleTimeoutLayerBuilder};
pub use monitor::{Health, ProofOfLife, Reason, Rtt, Stats, Traffic};
pub use registry::Registry;
pub use upgrade::ResponseFuture;

#[cfg(all(doctest, feature = "axum"))]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
