//! [`DrainReport`]: how the connections of a drain have ended.

/// The result of [`Registry::drain`](crate::Registry::drain). Each connection that the drain found
/// is counted once.
///
/// ```
/// use futures_util::StreamExt;
/// use tokio::io::duplex;
/// use tokio_tungstenite::{WebSocketStream, tungstenite::protocol::Role};
/// use tower_ws_liveness::{Drain, HeartbeatLayer};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let layer = HeartbeatLayer::default();
/// let (io, peer) = duplex(1024);
/// let (_io, _live) = layer.wrap_server(io);
/// tokio::spawn(async move {
///     let mut client = WebSocketStream::from_raw_socket(peer, Role::Client, None).await;
///     while client.next().await.is_some() {} // answers the Close frame
/// });
///
/// let report = layer.registry().drain(Drain::default()).await;
/// println!("{} of {} connections were cut", report.cut(), report.total());
/// assert_eq!((report.clean(), report.total()), (1, 1));
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    pub(super) clean: usize,
    pub(super) cut: usize,
    pub(super) already_gone: usize,
}

impl DrainReport {
    /// Connections whose closing handshake was completed (RFC 6455 section 7.1.4): both sides sent
    /// their Close frame, and the transport was shut down.
    #[must_use]
    pub const fn clean(&self) -> usize {
        self.clean
    }

    /// Connections whose transport was dropped without a completed closing handshake: the deadline
    /// or their `close_timeout` expired, the peer was dead, the transport failed, or no Close frame
    /// could be sent because the handler was in the middle of a frame or the framing was malformed.
    #[must_use]
    pub const fn cut(&self) -> usize {
        self.cut
    }

    /// Connections that the drain found but did not end: they ended for another reason, through
    /// another drain, or, because a drain was in progress, as they opened.
    #[must_use]
    pub const fn already_gone(&self) -> usize {
        self.already_gone
    }

    /// The number of connections that the drain found: the sum of the other three.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.clean + self.cut + self.already_gone
    }
}
