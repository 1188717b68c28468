//! Traffic, ping and error counters of one connection.

use std::time::Duration;

use super::kernel_view::KernelView;

/// Counters of one connection since its opening handshake, and figures of the kernel.
///
/// ```
/// use futures_util::SinkExt;
/// use tokio::io::duplex;
/// use tokio_tungstenite::{WebSocketStream, tungstenite::protocol::Role};
/// use tower_ws_liveness::HeartbeatLayer;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tokio_tungstenite::tungstenite::Error> {
/// let (io, _peer) = duplex(1024);
/// let (io, live) = HeartbeatLayer::default().wrap_server(io);
/// let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
/// socket.send("hello".into()).await?;
///
/// let stats = live.stats();
/// assert_eq!((stats.messages_sent(), stats.bytes_sent()), (1, 7)); // the header has 2 bytes
/// assert_eq!(stats.missed_pings(), 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub(crate) counters: Counters,
    pub(crate) pings: PingCounts,
    pub(crate) faults: FaultCounters,
    pub(crate) unacknowledged: Option<u32>,
    pub(crate) kernel_rtt_micros: Option<u32>,
}

/// The traffic that the layers count themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) messages_received: u64,
    pub(crate) messages_sent: u64,
}

/// Our own pings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PingCounts {
    pub(crate) pings_sent: u32,
    pub(crate) pongs_received: u32,
}

/// The faults that the layers count themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FaultCounters {
    pub(crate) missed_pings: u32,
    pub(crate) slow_pongs: u32,
    pub(crate) write_stalls: u32,
}

impl Stats {
    pub(super) fn new(
        counters: Counters,
        pings: PingCounts,
        faults: FaultCounters,
        kernel: Option<&KernelView>,
    ) -> Self {
        Self {
            counters,
            pings,
            faults,
            unacknowledged: kernel.map(|view| view.unacknowledged),
            kernel_rtt_micros: kernel.and_then(|view| view.rtt_micros),
        }
    }

    /// Bytes read from the transport, control frames and headers included.
    #[must_use]
    pub fn bytes_received(&self) -> u64 {
        self.counters.bytes_received
    }

    /// Bytes accepted by the transport, the layer's own control frames included.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        self.counters.bytes_sent
    }

    /// Complete data messages from the peer (a fragmented message counts once).
    #[must_use]
    pub fn messages_received(&self) -> u64 {
        self.counters.messages_received
    }

    /// Complete data messages to the peer (a fragmented message counts once).
    #[must_use]
    pub fn messages_sent(&self) -> u64 {
        self.counters.messages_sent
    }

    /// Pings of the layer that were handed to the transport; the handler's own are not counted.
    #[must_use]
    pub fn pings_sent(&self) -> u64 {
        u64::from(self.pings.pings_sent)
    }

    /// Pongs that answered a ping of the layer.
    #[must_use]
    pub fn pongs_received(&self) -> u64 {
        u64::from(self.pings.pongs_received)
    }

    /// Pings of the layer whose timeout expired without a sign of life from the peer, including
    /// those that ended the connection. A timeout does not count if the server's own process was
    /// paused, or while the verdict is postponed for bytes that are ahead of the ping. If the
    /// handler leaves more bytes unread than are read ahead for it, it counts only where the kernel
    /// shows that nothing arrived (plain TCP on Linux).
    #[must_use]
    pub fn missed_pings(&self) -> u64 {
        u64::from(self.faults.missed_pings)
    }

    /// Pongs to pings of the layer whose round trip was more than half the heartbeat's `timeout`
    /// (of the default, 15 s, where there is no heartbeat). A pong that gives no sample for
    /// [`Rtt`](crate::Rtt) is not counted.
    #[must_use]
    pub fn slow_pongs(&self) -> u64 {
        u64::from(self.faults.slow_pongs)
    }

    /// How many times the transport accepted no bytes for half of the heartbeat's `write_timeout`
    /// or longer and then accepted bytes again. The half is of the default, 30 s, if
    /// `write_timeout` is off or there is no heartbeat. The stall is measured until bytes are
    /// accepted again, also if the handler has abandoned its write meanwhile, which the layer
    /// cannot detect.
    #[must_use]
    pub fn write_stalls(&self) -> u64 {
        u64::from(self.faults.write_stalls)
    }

    /// Bytes that are with the server's kernel and that the peer's kernel has not acknowledged,
    /// sent or not. They include bytes from before the upgrade.
    ///
    /// The kernel is asked when [`Liveness::stats`](crate::Liveness::stats) is called, and at an
    /// eviction for `HeartbeatTimeout` or `WriteStalled`. `None` in other evictions, in health
    /// changes and in snapshots; without the feature `tcp`; and unless the transport is a tokio
    /// `TcpStream`, without TLS, HTTP/2 or Multipath TCP, on Linux.
    #[must_use]
    pub fn unacknowledged_bytes(&self) -> Option<u64> {
        self.unacknowledged.map(u64::from)
    }

    /// The kernel's smoothed round-trip time (RFC 6298), to the peer's kernel and not to its
    /// program. It is also known without pings, unlike [`Rtt`](crate::Rtt). It may be old on a
    /// connection on which the server sends nothing.
    ///
    /// `None` where [`unacknowledged_bytes`](Self::unacknowledged_bytes) is `None`, and before the
    /// first measurement.
    #[must_use]
    pub fn kernel_rtt(&self) -> Option<Duration> {
        let micros = self.kernel_rtt_micros?;
        Some(Duration::from_micros(micros.into()))
    }
}
