//! A write or flush that the transport refused.

use super::moment::Moment;

/// What is known of a refused write. The verdict comes only after a second try: the handler may
/// have abandoned the write, and the transport may have room again.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockedWrite {
    /// Since when the transport has accepted nothing.
    pub(super) refused: Moment,
    /// The start of `write_timeout`: `refused`, or later if the time was restarted.
    pub(super) since: Moment,
    /// When `write_timeout` expired and the writer was asked to try again.
    pub(super) retried_at: Option<Moment>,
    /// The transport refused again after that.
    pub(super) refused_again: bool,
    /// The second try was refused, by the transport or by tokio's cooperative budget.
    pub(super) maybe_refused_again: bool,
    /// The transport accepted the bytes and does not flush them: it has a buffer of its own (TLS,
    /// HTTP/2).
    pub(super) in_flush: bool,
    /// The refusal may come from tokio's cooperative budget and not from the transport.
    pub(super) uncertain: bool,
    /// The verdict was postponed since the runtime was paused.
    pub(super) pause_postponed: bool,
}

impl BlockedWrite {
    pub(super) fn new(since: Moment) -> Self {
        Self {
            refused: since,
            since,
            retried_at: None,
            refused_again: false,
            maybe_refused_again: false,
            in_flush: false,
            uncertain: false,
            pause_postponed: false,
        }
    }

    /// Restarts `write_timeout`. The moment of the refusal stays, and that a pause was postponed.
    pub(super) fn restarted(self, now: Moment) -> Self {
        Self {
            refused: self.refused,
            pause_postponed: self.pause_postponed,
            ..Self::new(now)
        }
    }
}
