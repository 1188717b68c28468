//! Seats of connections in the application's own session maps.
//!
//! - [`session_map`]: the trait of such a map; [`maps`]: its implementations, one file each
//! - [`map_location`]: tells maps of equal types apart
//! - [`seat`]: the entry that a map holds for a connection
//! - [`register`]: how a connection takes a seat, in races with its own end and newer connections
//! - [`register_error`]: what an application does with the error of a registration
//! - [`groups`]: several connections per key; [`register_in`]: how a connection enters one
//! - [`replace_policy`]: which of two connections gets the same seat
//!
//! The connection keeps a list of its [registrations](crate::connection::Registration). When it
//! ends, it removes its seats from the maps before any hook is called.

mod groups;
#[cfg(all(test, liveness_loom))]
mod loom_models;
mod map_location;
mod maps;
mod register;
mod register_error;
mod register_in;
mod replace_policy;
mod seat;
mod session_map;

pub use groups::{GroupEvent, Groups, GroupsBuilder};
use map_location::MapLocation;
pub use maps::{MapIn, SeatTable, map_in};
pub use register::RegisterError;
pub use replace_policy::ReplacePolicy;
pub use seat::Seat;
pub use session_map::SessionMap;
