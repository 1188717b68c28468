//! Seats of connections in the application's own session maps.
//!
//! - [`session_map`]: the trait of such a map; [`maps`]: its implementations, one file each
//! - [`map_location`]: tells maps of equal types apart
//! - [`seat`]: the entry that a map holds for a connection
//! - [`register`]: how a connection takes a seat, in races with its own end and newer connections
//! - [`removed_seats`]: the seats that the end of a connection removed, as hooks find them
//! - [`registration`]: one seat that was registered, and how it leaves its map
//! - [`register_error`]: what an application does with the error of a registration
//! - [`groups`]: several connections per key; [`register_in`]: how a connection enters one
//! - [`replace_policy`]: which of two connections gets the same seat
//! - [`linger`]: seats that outlive their connection, and sessions that a newer connection resumes
//! - [`outbox`]: the messages of a session until its client has acknowledged them
//!
//! The connection keeps a list of its [registrations](crate::connection::Registration). When it
//! ends, it removes its seats from the maps before any hook is called.

mod groups;
mod linger;
#[cfg(all(test, liveness_loom))]
mod loom_models;
mod map_location;
mod maps;
mod outbox;
mod register;
mod register_error;
mod register_in;
mod registration;
mod removed_seats;
mod replace_policy;
mod seat;
mod session_map;
#[cfg(test)]
mod unopened;

pub use groups::{GroupEvent, Groups, GroupsBuilder};
pub use linger::{
    Linger, LingerBuilder, Registered, Resumed, SeatState, SessionEnd, SessionEndCause,
};
use map_location::MapLocation;
pub use maps::{MapIn, SeatTable, map_in};
pub use outbox::{Outbox, OutboxError, OutboxLimits, OutboxOverflow, OutboxReader};
pub use register::RegisterError;
#[cfg(feature = "test-util")]
pub(crate) use removed_seats::RemovedSeat;
pub use replace_policy::ReplacePolicy;
pub use seat::Seat;
pub use session_map::SessionMap;
