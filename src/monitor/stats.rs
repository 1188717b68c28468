//! Counters of one connection.

/// Counters of one connection since its opening handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) messages_received: u64,
    pub(crate) messages_sent: u64,
    pub(crate) pings_sent: u32,
    pub(crate) pongs_received: u32,
    pub(crate) missed_pings: u32,
    pub(crate) slow_pongs: u32,
    pub(crate) write_stalls: u32,
}

impl Stats {
    /// Bytes read from the transport, control frames and headers included.
    #[must_use]
    pub fn bytes_received(&self) -> u64 {
        self.bytes_received
    }

    /// Bytes accepted by the transport, the layer's own control frames included.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    /// Complete data messages from the peer (a fragmented message counts once).
    #[must_use]
    pub fn messages_received(&self) -> u64 {
        self.messages_received
    }

    /// Complete data messages to the peer (a fragmented message counts once).
    #[must_use]
    pub fn messages_sent(&self) -> u64 {
        self.messages_sent
    }

    /// Pings of the layer that were handed to the transport; the handler's own are not counted.
    #[must_use]
    pub fn pings_sent(&self) -> u64 {
        u64::from(self.pings_sent)
    }

    /// Pongs that answered a ping of the layer.
    #[must_use]
    pub fn pongs_received(&self) -> u64 {
        u64::from(self.pongs_received)
    }

    /// Pings of the layer whose timeout ran out with nothing from the peer, also those that ended the
    /// connection. Silences while the server's own process stood still are not the peer's, nor those
    /// while the handler left so much unread that nobody could look behind it.
    #[must_use]
    pub fn missed_pings(&self) -> u64 {
        u64::from(self.missed_pings)
    }

    /// Pongs to pings of the layer whose round trip was more than half the heartbeat's `timeout`
    /// (of 15 s, the default, where there is no heartbeat). For what is measured see
    /// [`Rtt`](crate::Rtt): a pong that gives no sample is not counted here.
    #[must_use]
    pub fn slow_pongs(&self) -> u64 {
        u64::from(self.slow_pongs)
    }

    /// Times that the transport accepted nothing of what was to be sent, for half of the heartbeat's
    /// `write_timeout` or longer, and then went on. Half of 30 s, the default, where that is off or
    /// there is no heartbeat. That the handler has given up its write meanwhile nobody can see: what
    /// counts is when something was accepted again.
    #[must_use]
    pub fn write_stalls(&self) -> u64 {
        u64::from(self.write_stalls)
    }
}
