//! Rule (h): a ping waits for the end of a half-sent message, for at most one `timeout`.
//!
//! RFC 6455 section 5.4 allows control frames between fragments, but some peers corrupt a
//! compressed message that a ping interrupts.

use super::facts::{Check, Facts, LayerPing};
use super::log::Event;

/// (h) A ping between two fragments was due for at least one `timeout`.
pub(crate) fn check(facts: &Facts<'_>) -> Check {
    let timeout = facts.fast.timeout;
    for (n, ping) in facts
        .pings
        .iter()
        .enumerate()
        .filter(|(_, ping)| ping.in_message)
    {
        let at = facts.world.log[ping.first_accepted].at;
        let due = due(facts, &facts.pings[..n], ping);
        if at < due + timeout {
            return Err(format!(
                "(h) a ping at {at} ms between two fragments, though it was due since {due} ms"
            ));
        }
    }
    Ok(())
}

/// The earliest time at which the ping can have been due.
fn due(facts: &Facts<'_>, earlier: &[LayerPing], ping: &LayerPing) -> u64 {
    let (config, log) = (&facts.fast, &facts.world.log);
    let signs: Vec<u64> = match config.matching {
        true => facts
            .pings
            .iter()
            .filter_map(|ping| ping.pong_arrived)
            .collect(),
        false => {
            let arrived = log[..ping.first_accepted].iter();
            arrived
                .filter(|entry| matches!(entry.event, Event::Arrived(_)))
                .map(|entry| entry.at)
                .collect()
        }
    };
    let mut signs = signs;
    signs.sort_unstable();
    let last = earlier.last();
    let from = last.map_or(0, |last| last.at);
    let mut since = signs
        .iter()
        .copied()
        .filter(|at| *at <= from)
        .max()
        .unwrap_or(0);
    let interval = match earlier.is_empty() {
        true => (config.interval as f64 * (1.0 - config.jitter)) as u64,
        false => config.interval,
    };
    for at in signs {
        if at > since && at < since + interval {
            since = at;
        }
    }
    let again = last.map(|last| last.at + config.timeout);
    // `Liveness::ping` was called, or a write was refused: the layer probes a full transport with a
    // ping.
    let since_last = last.map_or(0, |last| last.first_accepted);
    let mut extra = log[since_last..ping.first_accepted].iter();
    let extra = extra.find(|entry| matches!(entry.event, Event::PingCalled(_) | Event::Refused(_)));
    let extra = extra.map(|entry| entry.at);
    let due = [Some(since + interval), again, extra];
    due.into_iter().flatten().min().unwrap_or(0)
}
