//! Was everybody answered who asked for a ping, in time and truly?

use std::collections::BTreeMap;
use std::time::Duration;

use super::bounds::READ_AHEAD;
use super::facts::{Facts, OwnPing, Verdict};
use super::log::Event;
use super::times::Times;

/// The layer keeps the times of so many of its newest pings.
const REMEMBERED: usize = 4;

/// A call that waits: the entry with which it began, and when that was.
struct Call {
    begun: usize,
    at: u64,
}

/// A ping's pong: the entry with which its last byte was taken from the transport, and when.
struct Taken<'a> {
    ping: &'a OwnPing,
    index: usize,
    at: u64,
    /// When that byte could be read.
    came: u64,
}

pub(crate) fn check(facts: &Facts<'_>) -> Verdict {
    let took = Times::of(facts.world, |event| match event {
        Event::Took(count, _) => Some(count),
        _ => None,
    });
    let taken = facts.pings.iter().filter_map(|ping| {
        let (index, at) = took.reached(ping.answer?)?;
        let came = ping.answered?;
        Some(Taken {
            ping,
            index,
            at,
            came,
        })
    });
    let taken: Vec<_> = taken.collect();
    let mut calls = BTreeMap::new();
    let mut jumped = 0;
    for (index, entry) in facts.world.log.iter().enumerate() {
        for (number, call) in &calls {
            if let Some((by, what)) = due(facts, &taken, call, index) {
                if entry.at > by.max(jumped) + 1 {
                    return Err(format!(
                        "(g) call {number} was to be told of {what} at {by} ms"
                    ));
                }
            }
        }
        let ended = match entry.event {
            Event::Asks(number) => {
                let (begun, at) = (index, entry.at);
                calls.insert(number, Call { begun, at });
                continue;
            }
            Event::Jumped(span) => {
                jumped = entry.at + span;
                continue;
            }
            Event::Answered(number, _)
            | Event::AnsweredByEnd(number, _)
            | Event::AskGivenUp(number) => number,
            _ => continue,
        };
        let Some(call) = calls.remove(&ended) else {
            return Err(format!("(g) {entry}, who did not ask"));
        };
        match entry.event {
            Event::Answered(_, rtt) => answered(facts, &taken, &call, index, rtt)?,
            Event::AnsweredByEnd(_, reason) => {
                let told = facts.evicted.filter(|(evicted, ..)| *evicted < index);
                if told.map(|(_, _, told)| told.reason) != Some(reason) {
                    return Err(format!("(g) {entry}, but the event: {:?}", facts.evicted));
                }
            }
            _ => {}
        }
    }
    match calls.keys().next() {
        Some(number) => Err(format!("(g) call {number} was never answered")),
        None => Ok(()),
    }
}

/// What a call should have been told of before the entry at `index`, and when that was.
fn due(
    facts: &Facts<'_>,
    taken: &[Taken<'_>],
    call: &Call,
    index: usize,
) -> Option<(u64, &'static str)> {
    let ended = facts.evicted.filter(|(evicted, ..)| *evicted < index);
    let ended = ended.map(|(_, at, _)| (at.max(call.at), "the end"));
    let pong = taken
        .iter()
        .find(|taken| taken.ping.begun > call.begun)
        .filter(|taken| taken.index < index)
        // What comes with the end may be told as the end.
        .filter(|taken| ended.is_none_or(|(at, _)| taken.at < at));
    pong.map(|taken| (taken.at, "a pong"))
        .into_iter()
        .chain(ended)
        .min()
}

/// The pong to a ping that was not yet with the transport when it was asked for, and nothing else.
fn answered(
    facts: &Facts<'_>,
    taken: &[Taken<'_>],
    call: &Call,
    index: usize,
    rtt: Duration,
) -> Verdict {
    let wrong = |why: String| Err(format!("(g) {rtt:?} to the call at {} ms, {why}", call.at));
    let at = facts.world.log[index].at;
    let later = |ping: &OwnPing| ping.told.is_none_or(|told| told > call.begun);
    let answers = taken
        .iter()
        .filter(|taken| taken.index < index && later(taken.ping));
    let answers: Vec<_> = answers.collect();
    let Some(least) = answers.iter().map(|taken| shortest(facts, taken)).min() else {
        return wrong("but no pong to a later ping has come".into());
    };
    let most = answers.iter().map(|taken| {
        let sent = match knows(facts, taken) {
            true => taken.ping.at,
            false => call.at,
        };
        // Behind all that is read ahead of the handler nobody sees it before the handler reads.
        let seen = match facts.unread(taken.ping.answer.unwrap_or(0)) + 256 > READ_AHEAD {
            true => taken.at,
            false => taken.came,
        };
        // A pong may be there before the flush of its ping is confirmed, and so before the call.
        facts.awake(seen + 1).saturating_sub(sent)
    });
    let most = most.max().unwrap_or(0).min(at - call.at) + 2;
    let trip = rtt.as_micros() as u64 / 1_000;
    match (least..=most).contains(&trip) {
        true => Ok(()),
        false => wrong(format!("but it took {least} to {most} ms")),
    }
}

/// Whether the layer knew, when the pong came, since when the ping was with the transport. If not,
/// it was after the call, and the round trip is counted from there.
fn knows(facts: &Facts<'_>, taken: &Taken<'_>) -> bool {
    let Some(told) = taken.ping.told.filter(|told| *told < taken.index) else {
        return false;
    };
    // It remembers so many of the newest.
    let newer = facts.pings.iter().filter_map(|ping| ping.told);
    newer
        .filter(|newer| *newer > told && *newer < taken.index)
        .count()
        < REMEMBERED
}

fn shortest(facts: &Facts<'_>, taken: &Taken<'_>) -> u64 {
    // See the round trips: a flush that goes on with other bytes may have sent the ping before.
    match (
        facts.world.plan.net.buffered.unwrap_or(0),
        taken.ping.handed,
    ) {
        (0, Some((_, handed))) => taken.came.saturating_sub(handed),
        _ => 0,
    }
}
