//! The verdicts: a sans-IO state machine that is told what passed and when, and says what to do.
//!
//! Nothing here reads a clock, touches a socket or allocates. [`inputs`] is told, [`queries`] tells,
//! [`sustained_health`] tells only what has lasted, [`verdict`] decides; the other files hold what they are made
//! of.

mod control_rate;
mod data_activity;
mod health;
mod history;
mod inputs;
mod moment;
mod overrides;
mod pings;
mod policy;
mod queries;
mod reason;
mod rtt;
mod stats;
mod sustained_health;
#[cfg(test)]
mod tests;
mod verdict;

pub(crate) use data_activity::Data;
pub use health::Health;
pub(crate) use inputs::Monitor;
pub(crate) use moment::Moment;
pub(crate) use overrides::Overrides;
pub(crate) use pings::Answer;
pub(crate) use policy::{CloseFrame, HeartbeatPolicy, IdlePolicy, Policy};
pub use policy::{ProofOfLife, Traffic};
pub use reason::{Reason, Tier};
pub use rtt::Rtt;
pub use stats::Stats;
pub(crate) use verdict::{Action, Outlook};
