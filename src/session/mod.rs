//! Seats of connections in the application's own session maps.
//!
//! - [`session_map`]: the trait of such a map; [`maps`]: its implementations, one file each
//! - [`seat`]: the entry that a map holds for a connection
//! - [`register`]: how a connection takes a seat, in races with its own end and newer connections
//! - [`registration`]: one seat that was registered, and how it leaves its map
//! - [`replace_policy`]: which of two connections gets the same seat
//! - [`linger`]: seats that outlive their connection, and sessions that a newer connection resumes
//!
//! The connection keeps a list of its [registrations](crate::connection::Registration). When it
//! ends, it removes its seats from the maps before any hook is called.

mod linger;
#[cfg(all(test, liveness_loom))]
mod loom_models;
mod maps;
mod register;
mod registration;
mod replace_policy;
mod seat;
mod session_map;

pub use linger::{
    Linger, LingerBuilder, Registered, Resumed, SeatState, SessionEnd, SessionEndCause,
};
pub use register::RegisterError;
pub use replace_policy::ReplacePolicy;
pub use seat::Seat;
pub use session_map::SessionMap;
