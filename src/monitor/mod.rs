//! The verdicts: a sans-IO state machine that is told what passed and when, and says what to do.
//!
//! Nothing here reads a clock, touches a socket or allocates. [`machine`] is told, [`view`] tells,
//! [`lasting`] tells only what has lasted, [`verdict`] decides; the other files hold what they are made
//! of.

mod data;
mod flood;
mod health;
mod history;
mod lasting;
mod machine;
mod moment;
mod overrides;
mod pings;
mod policy;
mod reason;
mod rtt;
mod stats;
#[cfg(test)]
mod tests;
mod verdict;
mod view;

pub(crate) use data::Data;
pub use health::Health;
pub(crate) use machine::Monitor;
pub(crate) use moment::Moment;
pub(crate) use overrides::Overrides;
pub(crate) use pings::Answer;
pub(crate) use policy::{CloseFrame, HeartbeatPolicy, IdlePolicy, Policy};
pub use policy::{ProofOfLife, Traffic};
pub use reason::{Reason, Tier};
pub use rtt::Rtt;
pub use stats::Stats;
pub(crate) use verdict::{Action, Outlook};
