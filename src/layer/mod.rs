//! The heartbeat and idle timeout layers, their builders, and their service.

#[cfg(test)]
mod builder_checks;
mod heartbeat;
mod heartbeat_builder;
mod idle_timeout;
mod idle_timeout_builder;
mod service;
mod shared_settings;

pub use heartbeat::HeartbeatLayer;
pub use heartbeat_builder::HeartbeatLayerBuilder;
pub use idle_timeout::IdleTimeoutLayer;
pub use idle_timeout_builder::IdleTimeoutLayerBuilder;
pub use service::{Heartbeat, IdleTimeout, LivenessService};
