//! A connection, as those see it who do not know its transport.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::admission::Admission;
use super::core::Core;
use super::share::Share;
use crate::monitor::{CloseFrame, Health, Overrides, Reason, Rtt, Stats};

/// What can be asked of any connection.
pub(crate) trait Managed: Send + Sync {
    fn core(&self) -> &Core;
    fn view(&self) -> View;
    /// Ends the connection with this Close frame. False if it has ended before.
    fn evict(self: Arc<Self>, reason: Reason, frame: CloseFrame) -> bool;
    /// The same, but after the frame that the handler is in the middle of: a message is not torn.
    /// False if it has ended before, or is to end this way already.
    fn part(self: Arc<Self>, reason: Reason, frame: CloseFrame) -> bool;
    /// Waits no longer for an end that has come or was asked for: what can be said to the peer at
    /// once is said, and the transport is gone. A connection that lives on is left alone.
    fn cut(self: Arc<Self>);
    /// Replaces values of the layers' settings, also of layers that are yet to come.
    fn override_policy(self: Arc<Self>, overrides: &Overrides);
    /// The same, unless a value is for a layer that is not there: then nothing is done, and false.
    fn change_policy(self: Arc<Self>, overrides: &Overrides) -> bool;
    /// Asks for a ping, and for the round trip that its pong will give.
    fn ping(self: Arc<Self>) -> oneshot::Receiver<Duration>;
    /// Adds a layer, with what its registry gave it. Of two of a kind the later one's
    /// settings hold, and both are told of the end.
    fn attach(&self, layer: &Share, admission: Option<Admission>);
}

/// What can be said of a connection at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) health: Health,
    pub(crate) lifetime: Duration,
    pub(crate) last_seen: Instant,
    pub(crate) idle_for: Duration,
    pub(crate) rtt: Option<Rtt>,
    pub(crate) stats: Stats,
}
