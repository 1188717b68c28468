//! A dead, stalled or idle peer is evicted by its deadline.

mod closing_handshake;
mod deadlines;
mod health;
mod health_changes;
mod health_hooks;
#[cfg(all(feature = "tcp", target_os = "linux"))]
mod kernel;
mod long_messages;
mod stalls;
#[cfg(all(feature = "tcp", target_os = "linux"))] // Linux has all of its socket options
mod tcp;
