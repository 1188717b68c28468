//! What the peer's kernel did before the peer was declared dead.

use std::fmt;

/// Whether the peer's kernel still acknowledged bytes when its program no longer answered.
///
/// A heartbeat timeout has two kinds of causes, which only our kernel can distinguish:
/// [`Eviction::peer_kernel`](crate::Eviction::peer_kernel) returns what it showed at the verdict.
///
/// The peer's kernel is that at the other end of this TCP connection. If there is a proxy, it is
/// the proxy's.
///
/// ```
/// use tower_ws_liveness::{Eviction, PeerKernel, Reason};
///
/// /// Where to look for the cause of an eviction.
/// fn suspect(ev: &Eviction) -> &'static str {
///     match (ev.reason(), ev.peer_kernel()) {
///         (Reason::HeartbeatTimeout { .. }, PeerKernel::Acknowledges) => "the client's program",
///         (Reason::HeartbeatTimeout { .. }, PeerKernel::Silent) => "the network or the host",
///         _ => "unknown",
///     }
/// }
///
/// assert_eq!(PeerKernel::Silent.as_str(), "silent");
/// # let _ = suspect;
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PeerKernel {
    /// The peer's kernel has acknowledged the ping, or has acknowledged something in the last three
    /// quarters of the wait while nothing was being retransmitted. The host was reachable; the
    /// program is stopped or hung, or the device freezes it.
    Acknowledges,
    /// Bytes or several probes were sent, and in the last three quarters of the wait no
    /// acknowledgement came back: the network or the host has failed.
    Silent,
    /// The kernel was not asked, since the end has another reason, or cannot be asked (see
    /// [`Stats::unacknowledged_bytes`](crate::Stats::unacknowledged_bytes)), or shows nothing that
    /// decides: our kernel awaited no acknowledgement, or only old bytes were acknowledged again.
    #[default]
    Unknown,
}

impl PeerKernel {
    /// The value as a stable word, suitable as the label of a metric.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Acknowledges => "acknowledges",
            Self::Silent => "silent",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for PeerKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Users rely on the words: a change here is a breaking change.
    #[test]
    fn every_value_has_its_word() {
        let table = [
            (PeerKernel::Acknowledges, "acknowledges"),
            (PeerKernel::Silent, "silent"),
            (PeerKernel::Unknown, "unknown"),
        ];
        for (value, word) in table {
            assert_eq!((value.as_str(), value.to_string().as_str()), (word, word));
        }
        assert_eq!(PeerKernel::default(), PeerKernel::Unknown);
    }
}
