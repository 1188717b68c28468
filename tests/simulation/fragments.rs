//! Do the layer's pings keep out of messages that are half sent?
//!
//! RFC 6455 section 5.4 lets control frames in between fragments, but some peers corrupt a compressed
//! message there. So a ping waits for the message's end, for as long as a pong is waited for at most.

use super::facts::{Facts, OwnPing, Verdict};
use super::log::Event;

/// (h) A ping between two fragments was due for at least a `timeout`.
pub(crate) fn check(facts: &Facts<'_>) -> Verdict {
    let timeout = facts.fast.timeout;
    for (n, ping) in facts
        .pings
        .iter()
        .enumerate()
        .filter(|(_, ping)| ping.inside)
    {
        let at = facts.world.log[ping.begun].at;
        let due = due(facts, &facts.pings[..n], ping);
        if at < due + timeout {
            return Err(format!(
                "(h) a ping at {at} ms between two fragments, though it was due since {due} ms"
            ));
        }
    }
    Ok(())
}

/// The earliest time since when a ping can have been due: what comes while it waits changes nothing.
fn due(facts: &Facts<'_>, earlier: &[OwnPing], ping: &OwnPing) -> u64 {
    let (config, log) = (&facts.fast, &facts.world.log);
    let heard: Vec<u64> = match config.matching {
        true => facts
            .pings
            .iter()
            .filter_map(|ping| ping.answered)
            .collect(),
        false => {
            let arrived = log[..ping.begun].iter();
            arrived
                .filter(|entry| matches!(entry.event, Event::Arrived(_)))
                .map(|entry| entry.at)
                .collect()
        }
    };
    let mut heard = heard;
    heard.sort_unstable();
    let last = earlier.last();
    let from = last.map_or(0, |last| last.at);
    let mut since = heard
        .iter()
        .copied()
        .filter(|at| *at <= from)
        .max()
        .unwrap_or(0);
    let interval = match earlier.is_empty() {
        true => (config.interval as f64 * (1.0 - config.jitter)) as u64,
        false => config.interval,
    };
    for at in heard {
        if at > since && at < since + interval {
            since = at;
        }
    }
    let again = last.map(|last| last.at + config.timeout);
    // What the application asked for since, and what was refused: whether there is room again is asked
    // with a ping.
    let since_last = last.map_or(0, |last| last.begun);
    let mut besides = log[since_last..ping.begun].iter();
    let besides = besides.find(|entry| matches!(entry.event, Event::Asks(_) | Event::Refused(_)));
    let besides = besides.map(|entry| entry.at);
    let due = [Some(since + interval), again, besides];
    due.into_iter().flatten().min().unwrap_or(0)
}
