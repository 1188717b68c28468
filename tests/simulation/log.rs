//! What happened in a schedule, in order. The oracle judges nothing else, and people read it.

use std::fmt;
use std::io;
use std::time::Duration;

use tower_ws_liveness::{Reason, Rtt, Stats};

/// Something that happened at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// In ms since the connection was opened.
    pub(crate) at: u64,
    pub(crate) event: Event,
}

/// Who polled the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Handler,
    Driver,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    // The network.
    /// So many of the peer's bytes can be read from the transport from now on.
    Arrived(usize),
    /// The peer's FIN can be read, once all bytes are.
    EndArrived,
    ResetArrived(io::ErrorKind),
    /// Nothing passes for a while in one direction, or for ever.
    InboundStalls(Option<u64>),
    OutboundStalls(Option<u64>),
    /// The peer's program took so many of our bytes.
    Delivered(usize),

    // The transport, as it is polled.
    Took(usize, By),
    TookEnd(By),
    Accepted(usize, By),
    Refused(By),
    /// Was refused, and has taken so many bytes for the next write all the same.
    Claimed(usize),
    /// Accepts nothing from now on.
    Full,
    /// Accepts something again.
    Room,
    FlushWaits,
    Flushed,
    /// Whoever flushed was told that all is out.
    FlushTold,
    Shutdown,
    Dropped,
    /// The transport is gone, and bytes of the peer's have found it so: what was accepted and not yet
    /// delivered, so much, is thrown away.
    ThrownAway(usize),

    // The peer.
    PeerSends(&'static str, usize),
    PeerHears(u8, usize),
    PeerStops,
    PeerGoesOn,

    // The handler.
    ReadWaits,
    ReadGivenUp,
    Read(usize),
    ReadEnds,
    ReadFails(Option<Reason>),
    WriteWaits,
    WriteGivenUp,
    Wrote(usize),
    WriteFails(Option<Reason>),
    /// It wants no more to be sent. The transport hears of it after what is half-written.
    AsksShutdown,
    Busy(u64),
    Stops,
    Kicks(u16),
    HandlerDrops,

    // The application, with its handle. Each call has a number.
    Asks(usize),
    Answered(usize, Duration),
    AnsweredByEnd(usize, Reason),
    AskGivenUp(usize),
    SetsInterval(u64),
    SetsTimeout(u64),

    // The rest.
    /// The process stood still for so long, up to now.
    Jumped(u64),
    Evicted(Told),
    /// The schedule is over, and whatever is left of the handler is dropped.
    Over,
    End,
}

/// What the hook was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) reason: Reason,
    pub(crate) rtt: Option<Rtt>,
    pub(crate) stats: Stats,
}

/// Whether it was the layer that ended the connection, and not one of the two ends.
pub(crate) fn ours(told: Told) -> bool {
    matches!(
        told.reason,
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
            Event::Evicted(told) => write!(f, "EVICTED: {} ({:?})", told.reason, told.stats),
            event => write!(f, "{event:?}"),
        }
    }
}
