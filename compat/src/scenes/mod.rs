//! What every library has to pass, one file for each column of the table.

mod deflate;
mod echo;
mod ends;
mod pings;
mod refused;

use crate::protocol::Protocol;
use crate::stack::{Feature, Of, Stack};

/// What a cell of the table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    Works,
    /// It does not, for this reason, which was seen to hold without the layers too.
    Not(&'static str),
}

/// Plays the scene of a feature. Panics if it does not end as it should.
pub(crate) async fn play(stack: Stack, protocol: Protocol, feature: Feature) -> Cell {
    if let Some(why) = stack.limit(Of::Http(protocol.http)) {
        refused::play(stack, protocol).await;
        return Cell::Not(why);
    }
    match feature {
        Feature::Echo => echo::play(stack, protocol).await,
        Feature::Pings => pings::play(stack, protocol).await,
        Feature::Death => ends::death(stack, protocol).await,
        Feature::Idle => return ends::idle(stack, protocol).await,
        Feature::Kick => ends::kick(stack, protocol).await,
        Feature::Deflate => return deflate::play(stack, protocol).await,
    }
    Cell::Works
}
