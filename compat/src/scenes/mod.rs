//! The scenes that every library must pass, one for each column of the table.

mod deflate;
mod echo;
mod ends;
mod pings;
mod refused;

use crate::protocol::Protocol;
use crate::stack::{Feature, Of, Stack};

/// The result in a cell of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    Works,
    /// Unsupported for this reason, which was confirmed without the layers too.
    Not(&'static str),
}

/// Runs the scene of a feature.
///
/// # Panics
///
/// If the scene fails.
pub(crate) async fn run(stack: Stack, protocol: Protocol, feature: Feature) -> Cell {
    if let Some(why) = stack.limit(Of::Http(protocol.http)) {
        refused::run(stack, protocol).await;
        return Cell::Not(why);
    }
    match feature {
        Feature::Echo => echo::run(stack, protocol).await,
        Feature::Pings => pings::run(stack, protocol).await,
        Feature::DeadPeer => ends::dead_peer(stack, protocol).await,
        Feature::Idle => return ends::idle(stack, protocol).await,
        Feature::Kick => ends::kick(stack, protocol).await,
        Feature::Deflate => return deflate::run(stack, protocol).await,
    }
    Cell::Works
}
