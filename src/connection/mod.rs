//! One connection, where its parties meet: the handler with its stream, the driver, the handles.
//!
//! | file | what happens there |
//! |---|---|
//! | [`stream`] | what the handler's WebSocket library reads and writes |
//! | [`inbound`] | pongs of ours are cut out |
//! | [`inject`] | pings and Close frames are put in |
//! | [`state`] | what each party may do, under the lock |
//! | [`closing`] | the closing handshake of an eviction |
//! | [`share`] | what each layer adds |
//! | [`shared`] | the lock, and the one place where an end becomes an event |
//! | [`watch`] | what both directions report to |
//! | [`handle`] | [`Liveness`] |

mod closing;
mod handle;
mod inbound;
mod inject;
mod share;
mod shared;
mod state;
mod stream;
mod watch;

pub(crate) use crate::evict::ConnectionId;
pub use handle::Liveness;
pub(crate) use share::{Share, Track};
pub(crate) use shared::Connection;
pub use stream::LivenessStream;
