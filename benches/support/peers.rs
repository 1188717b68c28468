//! Connects many peers to one server.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::timeout;

use super::peer::Peer;

/// Local address of a peer that leaves the choice to the kernel.
pub(crate) const ANY_LOCAL: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Connects `count` peers to `server`, at most 64 at a time.
pub(crate) async fn connect_all(server: SocketAddr, count: usize) -> io::Result<Vec<Peer>> {
    /// Well below the listener's backlog: a SYN beyond it waits for its retransmission.
    const MAX_CONNECTING: usize = 64;
    const WAIT_LIMIT: Duration = Duration::from_secs(60);
    let peers = stream::iter(0..count)
        .map(|number| Peer::connect(loopback_address(server, number), ANY_LOCAL))
        .buffer_unordered(MAX_CONNECTING)
        .try_collect();
    timeout(WAIT_LIMIT, peers).await?
}

/// One of 64 loopback addresses of `server`. Each has its own range of ephemeral client ports.
pub(crate) fn loopback_address(server: SocketAddr, number: usize) -> SocketAddr {
    const ADDRESSES: usize = 64;
    let last = 1 + (number % ADDRESSES) as u8;
    SocketAddr::from(([127, 0, 0, last], server.port()))
}
