//! Helpers for an application's own tests: clients in memory, and evictions to call hooks with.
//!
//! Behind the feature `test-util`, which belongs under `[dev-dependencies]`:
//!
//! ```toml
//! [dev-dependencies]
//! tower-ws-liveness = { version = "0.1", features = ["test-util"] }
//! ```
//!
//! - [`pair`]: the server's stream of frames, to be wrapped by a layer, and its [`Client`]
//! - [`opening_handshake`](opening_handshake()): upgrades a request that is passed to a `Router` or
//!   another service
//! - [`detached`]: a [`Liveness`](crate::Liveness) that no socket follows
//! - [`eviction`], [`health_change`], [`stats`]: what hooks get, to call them directly
//!
//! Nothing here uses a socket, a task or a timer. With `tokio::time::pause`, the times of the layers
//! pass immediately. The [guide](crate::guide::testing) has examples of whole tests.

mod client;
mod detached_handle;
mod eviction_builder;
mod health_change_builder;
mod opening_handshake;
mod pipe;
mod program;
mod server_stream;
mod stats_builder;

use std::sync::Arc;

pub use client::Client;
pub use detached_handle::{detached, detached_with_id};
pub use eviction_builder::{EvictionBuilder, eviction};
pub use health_change_builder::{HealthChangeBuilder, health_change};
pub use opening_handshake::{OpeningHandshake, opening_handshake};
use pipe::Pipe;
pub use program::ServerMessage;
pub use server_stream::ServerStream;
pub use stats_builder::{StatsBuilder, stats};

/// How many bytes of the server a client accepts that does not read.
const DEFAULT_WINDOW_BYTES: usize = 64 * 1024;

/// Returns both ends of a WebSocket in memory, after its opening handshake.
///
/// The stream is for [`HeartbeatLayer::wrap_server`](crate::HeartbeatLayer::wrap_server), or for a
/// WebSocket library directly. To pass through a `Router`, or to test an
/// [`IdleTimeoutLayer`](crate::IdleTimeoutLayer), use [`opening_handshake`](opening_handshake())
/// instead.
///
/// The window of a client that does not read is 64 KiB: see [`pair_with_window`].
///
/// ```
/// use futures_util::StreamExt;
/// use tokio_tungstenite::{WebSocketStream, tungstenite::protocol::Role};
/// use tower_ws_liveness::{HeartbeatLayer, Reason, test_util};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let (io, mut client) = test_util::pair();
/// let (io, live) = HeartbeatLayer::default().wrap_server(io);
/// let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
///
/// client.send_text("hello");
/// let message = socket.next().await.expect("a message").expect("a valid frame");
/// assert_eq!(message.into_text().expect("a text").as_str(), "hello");
///
/// client.disconnect();
/// assert!(socket.next().await.expect("an error").is_err());
/// assert_eq!(live.reason(), Some(Reason::PeerVanished));
/// # }
/// ```
#[must_use]
pub fn pair() -> (ServerStream, Client) {
    pair_with_window(DEFAULT_WINDOW_BYTES)
}

/// Like [`pair`], with a window of `bytes`: how many bytes of the server are accepted while the
/// client does not read, as by the buffers of both kernels. The server's writes wait when the window
/// is full; with a window of 0 a client that does not read accepts nothing.
#[must_use]
pub fn pair_with_window(bytes: usize) -> (ServerStream, Client) {
    let pipe = Arc::new(Pipe::new(bytes));
    (ServerStream::new(Arc::clone(&pipe)), Client::new(pipe))
}
