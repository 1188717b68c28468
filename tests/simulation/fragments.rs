//! Do the layer's pings keep out of messages that are half sent?
//!
//! RFC 6455 section 5.4 lets control frames in between fragments, but some peers corrupt a compressed
//! message there. So a ping waits for the message's end, for as long as a pong is waited for at most.

use super::facts::{Facts, OwnPing, Verdict};
use super::log::Event;
use super::times::Times;

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

/// The earliest time since when a ping can have been due.
fn due(facts: &Facts<'_>, earlier: &[OwnPing], ping: &OwnPing) -> u64 {
    let (config, log) = (&facts.fast, &facts.world.log);
    let arrivals = Times::arrivals(facts.world);
    let took = log[..ping.begun].iter().map(|entry| match entry.event {
        Event::Took(count, _) => count,
        _ => 0,
    });
    let took: usize = took.sum();
    let heard = match config.matching {
        true => {
            let answers = facts.pings.iter().filter_map(|ping| ping.answer);
            answers.filter(|answer| *answer <= took).max().unwrap_or(0)
        }
        false => took,
    };
    let heard = match heard {
        0 => 0,
        count => arrivals.reached(count).map_or(0, |(_, at)| at),
    };
    let interval = match earlier.is_empty() {
        true => (config.interval as f64 * (1.0 - config.jitter)) as u64,
        false => config.interval,
    };
    let last = earlier.last();
    let again = last.map(|last| last.at + config.timeout);
    // What the application asked for since, and what was refused: whether there is room again is asked
    // with a ping.
    let since = last.map_or(0, |last| last.begun);
    let mut besides = log[since..ping.begun].iter();
    let besides = besides.find(|entry| matches!(entry.event, Event::Asks(_) | Event::Refused(_)));
    let besides = besides.map(|entry| entry.at);
    let due = [Some(heard + interval), again, besides];
    due.into_iter().flatten().min().unwrap_or(0)
}
