//! What the kernel below a transport knows of the peer's kernel.

use std::time::Duration;

/// The state of a TCP connection as our kernel sees it, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KernelView {
    /// Bytes that the peer's kernel has not acknowledged, sent or not.
    pub(crate) unacknowledged: u32,
    /// Sent segments are unacknowledged. If bytes wait and none is in flight, the peer's window is
    /// closed.
    pub(crate) in_flight: bool,
    /// Probes of a closed window, or keepalive probes, are unanswered.
    pub(crate) probing: bool,
    /// Time since the last acknowledgement, which may have come with data.
    pub(crate) last_ack: Duration,
    /// Time since the last data arrived, read or not.
    pub(crate) last_data: Duration,
    /// The smoothed round-trip time; `None` before the first.
    pub(crate) rtt_micros: Option<u32>,
    /// The peer may send more bytes; false if that is not known.
    pub(crate) receive_window_open: bool,
}
