//! Rule (g): `Liveness::ping` returns in time, with a true round-trip time.

use std::collections::BTreeMap;
use std::time::Duration;

use super::bounds::READ_AHEAD_BYTES;
use super::facts::{Check, Facts, LayerPing};
use super::log::Event;
use super::times::Times;

/// Number of newest pings whose send times the layer remembers.
const REMEMBERED_PINGS: usize = 4;

/// A pending call: index and time of the entry in which it began.
struct Call {
    index: usize,
    at: u64,
}

/// The pong to a ping: index and time of the entry that read its last byte from the transport.
struct Taken<'a> {
    ping: &'a LayerPing,
    index: usize,
    at: u64,
    /// When that byte became readable.
    arrived: u64,
}

pub(crate) fn check(facts: &Facts<'_>) -> Check {
    let took = Times::of(facts.world, |event| match event {
        Event::Took(count, _) => Some(count),
        _ => None,
    });
    let taken = facts.pings.iter().filter_map(|ping| {
        let (index, at) = took.reached(ping.pong_end?)?;
        let arrived = ping.pong_arrived?;
        Some(Taken {
            ping,
            index,
            at,
            arrived,
        })
    });
    let taken: Vec<_> = taken.collect();
    let mut calls = BTreeMap::new();
    let mut standstill_end = 0;
    for (index, entry) in facts.world.log.iter().enumerate() {
        for (number, call) in &calls {
            if let Some((by, what)) = due(facts, &taken, call, index) {
                if entry.at > by.max(standstill_end) + 1 {
                    return Err(format!(
                        "(g) call {number} had to return with {what} at {by} ms"
                    ));
                }
            }
        }
        let ended = match entry.event {
            Event::PingCalled(number) => {
                let (index, at) = (index, entry.at);
                calls.insert(number, Call { index, at });
                continue;
            }
            Event::Standstill(span) => {
                standstill_end = entry.at + span;
                continue;
            }
            Event::PingReturned(number, _)
            | Event::PingFailed(number, _)
            | Event::PingCancelled(number) => number,
            _ => continue,
        };
        let Some(call) = calls.remove(&ended) else {
            return Err(format!("(g) {entry}, which is not pending"));
        };
        match entry.event {
            Event::PingReturned(_, rtt) => answered(facts, &taken, &call, index, rtt)?,
            Event::PingFailed(_, reason) => {
                let event = facts.evicted.filter(|(evicted, ..)| *evicted < index);
                if event.map(|(_, _, report)| report.reason) != Some(reason) {
                    return Err(format!(
                        "(g) {entry}, but the eviction event is {:?}",
                        facts.evicted
                    ));
                }
            }
            _ => {}
        }
    }
    match calls.keys().next() {
        Some(number) => Err(format!("(g) call {number} never returned")),
        None => Ok(()),
    }
}

/// What the call must have returned with before the entry at `index`, and since when.
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
        .find(|taken| taken.ping.first_accepted > call.index)
        .filter(|taken| taken.index < index)
        // A call that can return a pong and the end at once may return the end.
        .filter(|taken| ended.is_none_or(|(at, _)| taken.at < at));
    pong.map(|taken| (taken.at, "a pong"))
        .into_iter()
        .chain(ended)
        .min()
}

/// (g) A call returns with the pong to a ping that was flushed after the call began.
fn answered(
    facts: &Facts<'_>,
    taken: &[Taken<'_>],
    call: &Call,
    index: usize,
    rtt: Duration,
) -> Check {
    let wrong = |why: String| {
        Err(format!(
            "(g) the call at {} ms returned {rtt:?}, {why}",
            call.at
        ))
    };
    let at = facts.world.log[index].at;
    let later = |ping: &LayerPing| {
        ping.flush_returned
            .is_none_or(|returned| returned > call.index)
    };
    let answers = taken
        .iter()
        .filter(|taken| taken.index < index && later(taken.ping));
    let answers: Vec<_> = answers.collect();
    let Some(least) = answers.iter().map(|taken| shortest(facts, taken)).min() else {
        return wrong("but no pong to a later ping was read".into());
    };
    let most = answers.iter().map(|taken| {
        let sent = match flush_known(facts, taken) {
            true => taken.ping.at,
            false => call.at,
        };
        // Behind a full read-ahead the pong is not read before the handler reads.
        let seen = match facts.unread(taken.ping.pong_end.unwrap_or(0)) + 256 > READ_AHEAD_BYTES {
            true => taken.at,
            false => taken.arrived,
        };
        // A pong may arrive before the flush of its ping returns, and so before the call.
        facts.observed_at(seen + 1).saturating_sub(sent)
    });
    let most = most.max().unwrap_or(0).min(at - call.at) + 2;
    let trip = rtt.as_micros() as u64 / 1_000;
    match (least..=most).contains(&trip) {
        true => Ok(()),
        false => wrong(format!("but it took {least} to {most} ms")),
    }
}

/// Whether the layer knew, when it read the pong, when the ping was flushed. Otherwise the round
/// trip counts from the call.
fn flush_known(facts: &Facts<'_>, taken: &Taken<'_>) -> bool {
    let Some(returned) = taken
        .ping
        .flush_returned
        .filter(|returned| *returned < taken.index)
    else {
        return false;
    };
    // It remembers only the newest.
    let newer = facts.pings.iter().filter_map(|ping| ping.flush_returned);
    newer
        .filter(|newer| *newer > returned && *newer < taken.index)
        .count()
        < REMEMBERED_PINGS
}

fn shortest(facts: &Facts<'_>, taken: &Taken<'_>) -> u64 {
    // As for the round trips: a flush may end later than the ping is sent.
    match (
        facts.world.plan.net.buffered.unwrap_or(0),
        taken.ping.flushed,
    ) {
        (0, Some((_, flushed))) => taken.arrived.saturating_sub(flushed),
        _ => 0,
    }
}
