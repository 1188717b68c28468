//! A dead, stalled or idle peer is always evicted, at the deadline.

mod changes;
mod closing_handshake;
mod deadlines;
mod health;
mod health_hooks;
mod long_messages;
mod stalls;
#[cfg(all(feature = "tcp", target_os = "linux"))] // where all of its options exist
mod tcp;
