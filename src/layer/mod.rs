//! The two layers, their builders and the service that both use.

mod heartbeat;
mod heartbeat_builder;
mod idle_timeout;
mod idle_timeout_builder;

pub use heartbeat::{Heartbeat, HeartbeatLayer};
pub use heartbeat_builder::HeartbeatLayerBuilder;
pub use idle_timeout::{IdleTimeout, IdleTimeoutLayer};
pub use idle_timeout_builder::IdleTimeoutLayerBuilder;
