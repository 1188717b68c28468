//! The application's own map of sessions, kept right.
//!
//! - [`map`]: what a map has to be able to do, and [`maps`], those that can: one file each
//! - [`seat`]: what stands in the map
//! - [`register`]: how a connection takes a seat, against its own end and against newer connections
//! - [`policy`]: who wins if two want the same seat
//!
//! That the seat goes with the connection is the connection's part: it remembers its places (see
//! [`Registration`](crate::connection::Registration)) and leaves them at its end, before any hook is called.

#[cfg(all(test, liveness_loom))]
mod loom_models;
mod maps;
mod register;
mod replace_policy;
mod seat;
mod session_map;

pub use register::RegisterError;
pub use replace_policy::ReplacePolicy;
pub use seat::Seat;
pub use session_map::SessionMap;
