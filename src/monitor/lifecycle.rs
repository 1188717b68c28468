//! Where a connection stands, from its request to the release of its transport.

use super::moment::Moment;
use super::reason::Reason;

/// How far a connection has come. It only moves forward.
///
/// This is the one record of it: the driver, the handler's stream and the handles all read it under
/// the connection's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifecycle {
    /// The upgrade is not complete, so there is no transport.
    Opening,
    /// Frames pass in both directions.
    Open,
    /// The handler's Close frame, or the end of its direction, is with the transport. The answer of
    /// the peer is awaited (RFC 6455 section 7.1.2).
    Closing { since: Moment, code: Option<u16> },
    /// The connection has ended for this reason. Its transport may still be in use.
    Ended {
        since: Moment,
        reason: Reason,
        transport: TransportUse,
        /// Whether [`take_unannounced_end`](Lifecycle::take_unannounced_end) has returned the
        /// reason.
        taken: bool,
    },
}

/// What the transport of an ended connection is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransportUse {
    /// The upgrade is not complete. If it completes, the closing handshake follows.
    Awaited,
    /// The peer ended the connection, or the transport failed. The handler may read and write until
    /// `close_timeout`.
    Handler,
    /// The driver closes it.
    CloseHandshake,
    /// It must be dropped now. `clean` if the closing handshake of an eviction was completed.
    Released { clean: bool },
    /// It is closed, or the upgrade failed.
    Closed,
}

impl Lifecycle {
    /// Whether the handler may use the transport.
    #[inline]
    pub(crate) fn is_usable(&self) -> bool {
        matches!(self, Self::Open | Self::Closing { .. })
            || self.transport() == Some(TransportUse::Handler)
    }

    /// Whether the handler may use the transport, and no end waits to be announced.
    #[inline]
    pub(crate) fn is_settled(&self) -> bool {
        matches!(self, Self::Open | Self::Closing { .. }) || self.is_announced_to_handler()
    }

    #[cold]
    fn is_announced_to_handler(&self) -> bool {
        matches!(
            self,
            Self::Ended {
                transport: TransportUse::Handler,
                taken: true,
                ..
            }
        )
    }

    /// Whether the upgrade may still provide a transport.
    pub(crate) fn awaits_transport(&self) -> bool {
        *self == Self::Opening || self.transport() == Some(TransportUse::Awaited)
    }

    pub(crate) fn is_ended(&self) -> bool {
        matches!(self, Self::Ended { .. })
    }

    /// Why the connection has ended; `None` if it has not.
    pub(crate) fn reason(&self) -> Option<Reason> {
        match self {
            Self::Ended { reason, .. } => Some(*reason),
            Self::Opening | Self::Open | Self::Closing { .. } => None,
        }
    }

    /// What the transport is used for; `None` before the end.
    pub(crate) fn transport(&self) -> Option<TransportUse> {
        match self {
            Self::Ended { transport, .. } => Some(*transport),
            Self::Opening | Self::Open | Self::Closing { .. } => None,
        }
    }

    /// Ends the connection, unless it has ended.
    pub(super) fn end(&mut self, now: Moment, reason: Reason) {
        let transport = match self {
            Self::Ended { .. } => return,
            Self::Opening => TransportUse::Awaited,
            Self::Open | Self::Closing { .. } => TransportUse::Handler,
        };
        *self = Self::Ended {
            since: now,
            reason,
            transport,
            taken: false,
        };
    }

    /// The reason of the end, once: the caller announces it.
    pub(crate) fn take_unannounced_end(&mut self) -> Option<Reason> {
        match self {
            Self::Ended { reason, taken, .. } if !*taken => {
                *taken = true;
                Some(*reason)
            }
            Self::Ended { .. } | Self::Opening | Self::Open | Self::Closing { .. } => None,
        }
    }

    /// The driver takes the transport of an ended connection, and the time of the closing handshake
    /// starts now: the connection may have ended earlier, such as before its upgrade was complete.
    pub(crate) fn close_from(&mut self, now: Moment) {
        if let Self::Ended { since, .. } = self {
            *since = now;
        }
        self.begin_close_handshake();
    }

    /// The driver takes the transport of an ended connection.
    pub(crate) fn begin_close_handshake(&mut self) {
        self.set_transport(TransportUse::CloseHandshake);
    }

    /// The transport of an ended connection must be dropped.
    pub(crate) fn release(&mut self, clean: bool) {
        if self.transport() != Some(TransportUse::Closed) {
            self.set_transport(TransportUse::Released { clean });
        }
    }

    /// Takes the order to drop the transport: `Some` once, with whether the closing handshake was
    /// completed.
    pub(crate) fn take_released(&mut self) -> Option<bool> {
        let Some(TransportUse::Released { clean }) = self.transport() else {
            return None;
        };
        self.set_transport(TransportUse::Closed);
        Some(clean)
    }

    fn set_transport(&mut self, next: TransportUse) {
        if let Self::Ended { transport, .. } = self {
            *transport = next;
        }
    }
}

/// How far the end of a connection has been announced. It only moves forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Announced {
    #[default]
    No,
    /// Seats are removed, then hooks are called. A hook that is added now is called immediately; a
    /// seat is refused.
    InProgress,
    /// All hooks have returned.
    Done,
}

impl Announced {
    /// Moves forward to `to`, never back.
    pub(crate) fn advance(&mut self, to: Self) {
        *self = (*self).max(to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_stays() {
        let mut lifecycle = Lifecycle::Open;
        lifecycle.end(Moment::START, Reason::IdleTimeout);
        lifecycle.end(Moment::after_millis(1), Reason::Drained);
        assert_eq!(lifecycle.reason(), Some(Reason::IdleTimeout));
        assert_eq!(lifecycle.take_unannounced_end(), Some(Reason::IdleTimeout));
        assert_eq!(lifecycle.take_unannounced_end(), None, "once");
        assert!(lifecycle.is_usable(), "the handler has the transport");
    }

    #[test]
    fn a_transport_is_released_once() {
        let mut lifecycle = Lifecycle::Opening;
        assert!(lifecycle.awaits_transport());
        lifecycle.release(true);
        assert_eq!(lifecycle, Lifecycle::Opening, "it has not ended");
        lifecycle.end(Moment::START, Reason::UpgradeFailed);
        assert!(lifecycle.awaits_transport() && !lifecycle.is_usable());
        lifecycle.release(false);
        assert_eq!(lifecycle.take_released(), Some(false));
        lifecycle.release(true);
        assert_eq!(lifecycle.take_released(), None);
        assert_eq!(lifecycle.transport(), Some(TransportUse::Closed));
    }
}
