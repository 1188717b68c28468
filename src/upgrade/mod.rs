//! From a request that asks for a WebSocket to a connection under liveness.
//!
//! - [`detect`]: is this an opening handshake, and was it accepted?
//! - [`bridge`]: how the handler comes to get our stream from hyper's own types
//! - [`either`]: what the handler then has in its hands
//! - [`transport`]: what hyper hands out, as concrete as it can be had
//! - [`future`]: the response future, which makes the connection once the handshake was accepted

mod bridge;
mod detect;
mod either;
#[cfg(feature = "axum")]
mod extract;
mod future;
mod policy_override;
mod transport;

#[cfg(feature = "axum")]
pub use extract::LivenessRejection;
pub use future::ResponseFuture;
pub(crate) use future::call;
pub use policy_override::{PolicyOverride, PolicyOverrideBuilder};
