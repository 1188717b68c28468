//! Log of the events of one schedule: input of the oracle, and printed with a failure.

use std::fmt;
use std::io;
use std::time::Duration;

use tower_ws_liveness::{Reason, Rtt, Stats};

/// An event and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Milliseconds since the connection was opened.
    pub(crate) at: u64,
    pub(crate) event: Event,
}

/// The side of the wrapper whose poll reached the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Poller {
    Handler,
    Driver,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    // The network.
    /// This many of the peer's bytes became readable at the transport.
    Arrived(usize),
    /// The peer's FIN becomes readable once all bytes before it are read.
    EndArrived,
    ResetArrived(io::ErrorKind),
    /// One direction carries nothing for this many ms (`None`: from now on).
    InboundStalls(Option<u64>),
    OutboundStalls(Option<u64>),
    /// The peer's program read this many of the server's bytes.
    Delivered(usize),

    // The transport, as the wrapper polls it.
    /// The wrapper read this many bytes from the transport.
    Took(usize, Poller),
    TookEnd(Poller),
    /// The transport took this many bytes in a write.
    Accepted(usize, Poller),
    Refused(Poller),
    /// A refused write kept this many bytes: the next write must begin with them.
    Claimed(usize),
    /// The transport accepts nothing until [`Event::Room`].
    Full,
    /// The transport accepts bytes again.
    Room,
    FlushPending,
    Flushed,
    /// A flush returned `Ready` to its caller.
    FlushReturned,
    Shutdown,
    Dropped,
    /// The transport was dropped with bytes of the peer unread, or such bytes arrived later. The
    /// kernel sends RST and discards this many accepted and undelivered bytes.
    Discarded(usize),

    // The peer.
    PeerSends(&'static str, usize),
    PeerReceives(u8, usize),
    PeerStops,
    PeerResumes,

    // The handler.
    ReadPending,
    ReadCancelled,
    Read(usize),
    ReadEnds,
    ReadFails(Option<Reason>),
    WritePending,
    WriteCancelled,
    Wrote(usize),
    WriteFails(Option<Reason>),
    /// The handler calls `shutdown` for the first time. The transport is shut down later, after a
    /// half-written frame.
    ShutdownCalled,
    Busy(u64),
    Stops,
    EvictCalled(u16),
    HandlerDrops,

    // Calls of the application on its handle. Each `ping` call has a number.
    PingCalled(usize),
    PingReturned(usize, Duration),
    PingFailed(usize, Reason),
    PingCancelled(usize),
    SetsInterval(u64),
    SetsTimeout(u64),
    /// Counted from the upgrade.
    SetsMaxLifetime(Option<u64>),
    /// A time of the log.
    SetsExpiry(Option<u64>),
    /// The hook that is called [`WARNING_MS`](super::lifetime::WARNING_MS) before the expiry.
    Warned,

    // Others.
    /// The process stands still for this many ms, from now on.
    Standstill(u64),
    Evicted(Report),
    /// The schedule is over. The rest of the handler is dropped.
    Over,
    End,
}

/// What the eviction hook receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) reason: Reason,
    pub(crate) rtt: Option<Rtt>,
    pub(crate) stats: Stats,
}

/// Whether a layer decided to end the connection, rather than the peer, the handler or the
/// transport.
pub(crate) fn ended_by_layer(report: Report) -> bool {
    matches!(
        report.reason,
        Reason::HeartbeatTimeout { .. }
            | Reason::WriteStalled
            | Reason::HandlerStalled
            | Reason::CloseTimeout
            | Reason::ControlFlood
            | Reason::Kicked { .. }
            | Reason::IdleTimeout
            | Reason::FirstMessageTimeout
            | Reason::MessageTimeout
            | Reason::MaxLifetime
    )
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>6} ms  ", self.at)?;
        match self.event {
            Event::Evicted(report) => write!(f, "EVICTED: {} ({:?})", report.reason, report.stats),
            event => write!(f, "{event:?}"),
        }
    }
}
