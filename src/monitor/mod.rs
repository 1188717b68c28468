//! The verdicts: a state machine without I/O that is given what passed and when.
//!
//! Nothing here reads a clock, touches a socket or allocates per frame. What our kernel knows of the
//! peer is asked for through [`Kernel`].
//!
//! | file | what |
//! |---|---|
//! | this file | [`Monitor`]: the state |
//! | [`inputs`] | what changes it: bytes, frames, pongs, refusals, ends |
//! | [`verdict`] | what must be done now, and when to ask again |
//! | [`kernel_view`] | what our kernel knows of the peer at a verdict |
//! | [`postponements`] | verdicts that are postponed for that |
//! | [`queries`] | what it knows, without a change |
//! | [`lasting_health`] | the health that has lasted, for health hooks |
//! | [`lifecycle`] | how far the connection has come |
//!
//! The other files hold its parts and the settings it follows.

mod blocked_write;
mod control_rate;
mod data_activity;
mod earlier_views;
mod faults;
mod health;
mod history;
mod inputs;
mod kernel_view;
mod lasting_health;
mod lifecycle;
mod moment;
mod overrides;
mod peer_kernel;
mod pings;
mod policy;
mod postponements;
mod queries;
mod reason;
mod rtt;
mod stats;
#[cfg(test)]
mod tests;
mod verdict;

use blocked_write::BlockedWrite;
pub(crate) use data_activity::Data;
use data_activity::DataClock;
use faults::Faults;
pub use health::Health;
pub(crate) use kernel_view::{JudgedView, Kernel, KernelView};
pub(crate) use lifecycle::{Announced, Lifecycle, TransportUse};
pub(crate) use moment::Moment;
pub(crate) use overrides::Overrides;
#[cfg(test)]
pub(crate) use overrides::{HeartbeatOverrides, IdleOverrides};
pub use peer_kernel::PeerKernel;
pub(crate) use pings::Answer;
use pings::Pings;
pub(crate) use policy::{CloseFrame, HeartbeatPolicy, IdlePolicy, Policy, granularity_millis};
pub use policy::{ProofOfLife, Traffic};
pub use reason::{Reason, Tier};
pub use rtt::Rtt;
pub(crate) use rtt::RttEstimate;
use stats::Counters;
pub use stats::Stats;
pub(crate) use verdict::{Action, IoState};

/// Everything that is known of one connection's liveness.
#[derive(Clone, Debug)]
pub(crate) struct Monitor {
    pub(crate) lifecycle: Lifecycle,
    /// When the upgrade was completed; [`Moment::NEVER`] before.
    opened: Moment,
    last_inbound: Moment,
    /// The latest moment at which the peer is known to have been alive. Not later than the arrival
    /// of the byte or pong that proves it, however late that was read.
    last_proof: Moment,
    inbound: DataClock,
    outbound: DataClock,
    /// Uniform in 0..1: where the first interval and the lifetime end within their jitter.
    random: f32,
    pings: Pings,
    /// Since when bytes of the peer wait for the handler to read them.
    backlog: Option<Moment>,
    /// `None` until the first fault.
    faults: Option<Box<Faults>>,
    rtt: RttEstimate,
    counters: Counters,
    first_message: FirstMessage,
    /// The read-ahead buffer was full at the last poll, and the handler has not read since.
    /// Deadlines that depend on unread bytes are suspended meanwhile.
    read_ahead_full: bool,
    /// Frame boundaries are lost in one direction: no ping can be sent, and silence proves nothing.
    passive: bool,
    /// The deadline may have moved forward since this was last taken.
    moved: bool,
}

/// Whether the peer has sent its first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FirstMessage {
    Awaited,
    /// The same. The read-ahead buffer was full once, and the handler has read since.
    AwaitedAfterFullReadAhead,
    /// It is complete, or its end cannot be found since frame boundaries are lost.
    Complete,
}

impl Monitor {
    /// The monitor of a connection whose opening handshake was completed at `now`. `random` is
    /// uniform in 0..1 and places the first ping and the end of the lifetime; `tag` marks our pings.
    pub(crate) fn new(now: Moment, random: f32, tag: u32) -> Self {
        Self {
            lifecycle: Lifecycle::Open,
            opened: now,
            last_inbound: now,
            last_proof: now,
            inbound: DataClock::new(now),
            outbound: DataClock::new(now),
            random,
            pings: Pings::new(tag),
            backlog: None,
            faults: None,
            rtt: RttEstimate::default(),
            counters: Counters::default(),
            first_message: FirstMessage::Awaited,
            read_ahead_full: false,
            passive: false,
            moved: false,
        }
    }

    /// The monitor of a connection whose upgrade is not complete. It records an early end and a
    /// requested ping; [`new`](Self::new) replaces it when the upgrade completes.
    pub(crate) fn opening() -> Self {
        Self {
            lifecycle: Lifecycle::Opening,
            opened: Moment::NEVER,
            ..Self::new(Moment::START, 0.0, 0)
        }
    }

    /// The faults, with those of a connection that had none if this is the first.
    fn faults(&mut self) -> &mut Faults {
        let opened = self.opened;
        self.faults
            .get_or_insert_with(|| Box::new(Faults::new(opened)))
    }

    /// The write or flush that the transport refuses.
    fn blocked(&self) -> Option<&BlockedWrite> {
        self.faults.as_ref()?.blocked.as_ref()
    }
}
