//! One connection under liveness: the handler's stream, the driver and the handles meet here.
//!
//! | where | what |
//! |---|---|
//! | [`connection`] | [`Connection`]: the lock, and what layers, handles and the driver do with it |
//! | [`state`] | what the lock protects: transport, monitor, both I/O halves |
//! | [`rare_state`] | the part of it that few connections have |
//! | [`handler_polls`] | the handler's reads and writes |
//! | [`effects`] | what follows from an operation once the lock is released |
//! | [`expiry`] | [`Expiry`], and the warning before it |
//! | [`settings`] | settings of layers and overrides, while the connection is open |
//! | [`stream`] | [`LivenessStream`], which the application's WebSocket library reads and writes |
//! | [`handle`] | [`Liveness`], the handle of one connection |
//! | [`own_settings`] | settings that a handle changes: times, lifetime, expiry |
//! | [`on_open`], [`on_health`] | the hooks that get the handle |
//! | [`io`] | bytes: read half, write half, our pings and Close frames, closing handshake, wakers |
//! | [`timing`] | the driver's visits, and their deadlines |
//! | [`end`] | the end: eviction, announcement, release of the transport |
//! | [`layers`] | what layers and registries know of a connection, and it of them |
//! | [`metadata`] | what does not depend on the transport: identity, hooks, seats |
//! | `detached` | handles without a connection, for tests |

#[expect(
    clippy::module_inception,
    reason = "a file is named after the type in it"
)]
mod connection;
#[cfg(any(all(test, not(liveness_loom)), feature = "test-util"))]
mod detached;
mod effects;
mod end;
mod expiry;
mod handle;
mod handler_polls;
mod io;
mod layers;
#[cfg(all(test, liveness_loom))]
mod loom_models;
mod metadata;
mod on_health;
mod on_open;
mod own_settings;
mod rare_state;
mod settings;
mod state;
mod stream;
mod timing;

pub(crate) use connection::Connection;
pub use expiry::Expiry;
pub(crate) use handle::InnerLayerGuard;
pub use handle::Liveness;
pub(crate) use io::TransportTraits;
pub(crate) use layers::{
    AttachmentId, DrainOrder, ErasedConnection, ErasedRegistry, LayerConfig, Refused, View,
};
pub(crate) use metadata::{LayerHooks, Registration, RegistrationId, SessionHooks, Vacated};
pub use on_health::{HealthChange, OnHealth};
pub use on_open::OnOpen;
pub use stream::LivenessStream;
