//! The end of a connection: why it came, what is told about it, and to whom.
//!
//! Each upgraded connection ends once, for one [`Reason`], on whatever path. Two kinds of listener
//! learn of it:
//!
//! - [`OnEvict`] hooks get an [`Eviction`]: the reason together with what the connection looked
//!   like in the end. They run outside every lock and before any slow network act.
//! - The handler finds an [`Evicted`] inside the `io::Error` that wakes its pending read or write.
//!
//! "Evicted" is meant broadly: a connection that the peer closed in good order leaves the
//! set of live connections just as a dead one does.

mod evicted;
mod eviction;
mod hook;
mod id;

pub(crate) use crate::monitor::Reason;
pub use evicted::Evicted;
pub use eviction::Eviction;
pub use hook::{IntoHook, OnEvict};
pub use id::ConnectionId;

pub(crate) use eviction::Seats;
pub(crate) use hook::{
    LocalHook, call, call_local, discard, guard_map, guard_waker, sealed, survive,
};
