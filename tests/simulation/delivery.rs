//! Rule (j): bytes that the transport accepted before the eviction reach the peer.
//!
//! A kernel resets a connection whose socket is closed or dropped while bytes of the peer are
//! unread, and discards the bytes that it has not sent.

use tower_ws_liveness::Reason;

use super::facts::{Check, Facts};
use super::log::Event;

/// (j) The drop of the transport discards no handler bytes that would arrive without the layer.
pub(crate) fn check(facts: &Facts<'_>) -> Check {
    let Some((_, at, report)) = facts.evicted else {
        return Ok(());
    };
    let log = &facts.world.log;
    let (mut took, mut arrived, mut delivered, mut dropped) = (0, 0, 0, None);
    let mut discarded = false;
    for entry in log {
        match entry.event {
            Event::Took(count, _) => took += count,
            Event::Arrived(count) => arrived += count,
            Event::Delivered(count) => delivered += count,
            Event::Dropped => dropped = Some(entry.at),
            Event::Discarded(_) => {
                discarded = true;
                break;
            }
            _ => {}
        }
    }
    let lost = facts
        .outbound_frames
        .iter()
        .any(|frame| frame.to > delivered);
    let Some(dropped) = dropped.filter(|_| discarded && lost) else {
        return Ok(());
    };
    let accountable = match report.reason {
        // The layer ends the connection, and has `close_timeout` to close it without loss.
        Reason::Kicked { .. }
        | Reason::IdleTimeout
        | Reason::FirstMessageTimeout
        | Reason::MaxLifetime
        | Reason::MessageTimeout
        | Reason::ControlFlood
        | Reason::HandlerStalled => true,
        // The handler ends the connection. Unread bytes of the peer other than pongs to the layer
        // reset it without the layer, too.
        Reason::HandlerDropped | Reason::ServerClosed { .. } => {
            let unread = facts.peer_frames.iter();
            let mut unread = unread.filter(|frame| frame.to > took && frame.from < arrived);
            unread.all(|frame| frame.answers_ping)
        }
        _ => false,
    };
    if accountable && dropped < at + facts.fast.close_timeout {
        return Err(format!(
            "(j) {:?} at {at} ms, and the drop of the transport at {dropped} ms lost bytes that it \
             had accepted",
            report.reason
        ));
    }
    Ok(())
}
