//! One connection, where its parties meet: the handler with its stream, the driver, the handles.
//!
//! - [`stream`]: what the handler's WebSocket library reads and writes
//! - [`inbound`]: pongs of ours are cut out here
//! - [`inject`]: pings and Close frames are put in here
//! - [`state`]: what each party may do, under the lock
//! - [`closing`]: the closing handshake of an eviction
//! - [`shared`]: the lock, and the one place where an end becomes an event
//! - [`handle`]: [`Liveness`]

mod closing;
mod handle;
mod inbound;
mod inject;
mod shared;
mod state;
mod stream;

pub use crate::evict::ConnectionId;
pub use handle::Liveness;
pub(crate) use shared::{Connection, Listeners, Track};
pub(crate) use stream::LivenessStream;
