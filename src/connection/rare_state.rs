//! The state that few connections have.

use std::task::Waker;

use super::expiry::ExpiryWarning;
use super::io::CloseHandshake;
use super::metadata::{HealthEvents, PingWaiters};

/// The part of a connection's state that few connections have. It is boxed, so that the others have
/// one pointer in place of it.
#[derive(Default)]
pub(crate) struct RareState {
    /// The closing handshake of an eviction: deferred, awaiting the transport, or under way.
    pub(crate) close: Option<Box<CloseHandshake>>,
    pub(crate) ping_waiters: Option<Box<PingWaiters>>,
    /// `None` without health hooks.
    pub(crate) health_events: Option<Box<HealthEvents>>,
    /// `None` without a hook that warns before the expiry.
    pub(crate) expiry_warning: Option<Box<ExpiryWarning>>,
    /// The handler's waker for its writes. Present once the transport has refused one.
    pub(crate) writer_waker: Option<Waker>,
}

impl RareState {
    /// Whether nothing here follows from the last operation.
    pub(crate) fn is_settled(&self) -> bool {
        self.health_events.is_none() && !self.has_pongs_to_deliver() && !self.has_due_warning()
    }

    /// Whether nothing here waits for the handler's next operation.
    pub(crate) fn is_routine(&self) -> bool {
        self.ping_waiters.is_none() && self.close.is_none()
    }

    /// Whether hooks of an open connection may be called after the last operation.
    pub(crate) fn may_call_hooks(&self) -> bool {
        self.health_events.is_some() || self.has_due_warning()
    }

    fn has_due_warning(&self) -> bool {
        let warning = self.expiry_warning.as_ref();
        warning.is_some_and(|warning| warning.is_due())
    }

    fn has_pongs_to_deliver(&self) -> bool {
        let waiters = self.ping_waiters.as_ref();
        waiters.is_some_and(|waiters| waiters.has_answers())
    }
}
