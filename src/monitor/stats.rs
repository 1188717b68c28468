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
}
