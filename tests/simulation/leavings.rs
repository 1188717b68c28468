//! Does what the transport accepted before the end reach the peer?
//!
//! A kernel resets a connection whose socket is gone, or is closed, with bytes of the peer's unread,
//! and throws away what was still to be sent.

use tower_ws_liveness::Reason;

use super::facts::{Facts, Verdict};
use super::log::Event;

/// (j) Nothing of the handler's is thrown away, unless it would be without the layer too.
pub(crate) fn check(facts: &Facts<'_>) -> Verdict {
    let Some((_, at, told)) = facts.evicted else {
        return Ok(());
    };
    let log = &facts.world.log;
    let (mut took, mut arrived, mut delivered, mut dropped) = (0, 0, 0, None);
    let mut thrown_away = false;
    for entry in log {
        match entry.event {
            Event::Took(count, _) => took += count,
            Event::Arrived(count) => arrived += count,
            Event::Delivered(count) => delivered += count,
            Event::Dropped => dropped = Some(entry.at),
            Event::ThrownAway(_) => {
                thrown_away = true;
                break;
            }
            _ => {}
        }
    }
    let lost = facts.sent.iter().any(|frame| frame.to > delivered);
    let Some(dropped) = dropped.filter(|_| thrown_away && lost) else {
        return Ok(());
    };
    let ours = match told.reason {
        // The layer ends it, and has `close_timeout` to do so in peace.
        Reason::Kicked { .. }
        | Reason::IdleTimeout
        | Reason::FirstMessageTimeout
        | Reason::MaxLifetime
        | Reason::MessageTimeout
        | Reason::ControlFlood
        | Reason::HandlerStalled => true,
        // The handler ends it. What the peer says by itself resets the connection without us as well.
        Reason::HandlerDropped | Reason::ServerClosed { .. } => {
            let unread = facts.fates.iter();
            let mut unread = unread.filter(|fate| fate.to > took && fate.from < arrived);
            unread.all(|fate| fate.answers)
        }
        _ => false,
    };
    if ours && dropped < at + facts.fast.close_timeout {
        return Err(format!(
            "(j) {:?} at {at} ms, and the drop of the transport at {dropped} ms lost what it had \
             accepted",
            told.reason
        ));
    }
    Ok(())
}
