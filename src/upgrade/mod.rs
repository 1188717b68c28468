//! The upgrade: from an opening handshake over HTTP to an open connection.
//!
//! - [`detect`]: recognises opening handshakes and their accepting responses
//! - [`pending_upgrade`]: a handshake between request and response, which opens the connection
//! - [`future`]: the response future
//! - [`refusal`]: handshakes answered with 503 or 500
//! - [`bridge`]: creates the `OnUpgrade` through which the handler gets this crate's stream
//! - [`handler_stream`]: the stream that the handler gets
//! - [`transport`]: the stream that hyper provides, as a socket where possible
//! - [`policy_override`]: other times for the connection of one request
//! - `extract`: `Liveness` as an axum extractor

mod bridge;
mod detect;
#[cfg(feature = "axum")]
mod extract;
mod future;
mod handler_stream;
mod pending_upgrade;
mod policy_override;
mod refusal;
mod transport;

#[cfg(feature = "axum")]
pub use extract::LivenessRejection;
pub use future::ResponseFuture;
pub(crate) use future::call;
pub use policy_override::{PolicyOverride, PolicyOverrideBuilder};
pub use refusal::UpgradeRefused;
#[cfg(feature = "test-util")]
pub(crate) use {
    bridge::Bridge,
    detect::{HandshakeKind, has_token, is_accepted},
};
