//! The state that few connections have.

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
}

impl RareState {
    /// Whether nothing here follows from the last operation.
    pub(crate) fn is_settled(&self) -> bool {
        self.health_events.is_none() && !self.has_pongs_to_deliver()
    }

    /// Whether nothing here waits for the handler's next operation.
    pub(crate) fn is_routine(&self) -> bool {
        self.ping_waiters.is_none() && self.close.is_none()
    }

    fn has_pongs_to_deliver(&self) -> bool {
        let waiters = self.ping_waiters.as_ref();
        waiters.is_some_and(|waiters| waiters.has_answers())
    }
}
