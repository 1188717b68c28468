//! What can be said of a connection at this moment.

use std::fmt;

/// State of a connection as the layers see it now.
///
/// The three ways in which a connection goes bad are kept apart while they develop, as they are in
/// [`Reason`](crate::Reason) when they end. If there are several at once, waiting bytes come first,
/// then a stalled write, then a silent peer. A state says what is so now, and may pass in a moment;
/// a verdict comes of it only with the setting of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Health {
    /// The opening handshake is not complete yet.
    Opening,
    /// The peer was heard within the interval, or nothing speaks against it.
    Live,
    /// A ping is unanswered and nothing else has come from the peer since.
    PeerSilent {
        /// Pings of this silence whose timeout has already run out.
        missed: u32,
    },
    /// Bytes from the peer wait, and the handler does not read them; or a ping waits for the end of a
    /// frame that the handler has begun.
    HandlerStalled,
    /// Bytes to the peer wait, and the transport does not accept them.
    WriteStalled,
    /// The handler has sent its Close frame, and the peer has not answered yet.
    Closing,
    /// The connection has ended: its eviction was reported.
    Ended,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opening => f.write_str("opening"),
            Self::Live => f.write_str("live"),
            Self::PeerSilent { missed: 0 } => f.write_str("ping unanswered"),
            Self::PeerSilent { missed } => write!(f, "ping unanswered, {missed} missed"),
            Self::HandlerStalled => f.write_str("handler stalled"),
            Self::WriteStalled => f.write_str("write stalled"),
            Self::Closing => f.write_str("closing"),
            Self::Ended => f.write_str("ended"),
        }
    }
}
