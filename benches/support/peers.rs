//! Many peers of one server.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::timeout;

use super::peer::Peer;

/// Where a peer binds that does not mind where.
pub(crate) const ANYWHERE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Connects `count` peers to `server`, a few at a time.
pub(crate) async fn connect(server: SocketAddr, count: usize) -> io::Result<Vec<Peer>> {
    /// Well below the backlog of a listener, where connections would wait for a retransmission.
    const AT_ONCE: usize = 64;
    const PATIENCE: Duration = Duration::from_secs(60);
    let peers = stream::iter(0..count)
        .map(|number| Peer::connect(address(server, number), ANYWHERE))
        .buffer_unordered(AT_ONCE)
        .try_collect();
    timeout(PATIENCE, peers).await?
}

/// One of the addresses of loopback at which `server` can be reached: each of them has ports of its
/// own for those who connect to it.
pub(crate) fn address(server: SocketAddr, number: usize) -> SocketAddr {
    const ADDRESSES: usize = 64;
    let last = 1 + (number % ADDRESSES) as u8;
    SocketAddr::from(([127, 0, 0, last], server.port()))
}
