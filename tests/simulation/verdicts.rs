//! Was the verdict true? One rule per reason, each from what the README promises of it.

use tower_ws_liveness::Reason;

use super::facts::{Facts, Verdict};
use super::log::{By, Event};
use super::plan::Spends;
use super::script::{CLOSE, PING, PONG};
use super::times::Times;

/// A standstill that makes a verdict less late than this passes for the scheduler's noise.
const NOTICEABLE: u64 = 100;

/// A peer that is behind takes a while to make room. A scheduler does not.
const LONG_REFUSAL: u64 = 20;

/// (a) and (c): the reason is one that the run made possible.
pub(crate) fn check(facts: &Facts<'_>) -> Verdict {
    let Some((index, at, told)) = facts.evicted else {
        return Ok(());
    };
    let config = &facts.fast;
    let before = &facts.world.log[..index];
    let wrong = |why: &str| Err(format!("(a) {:?} at {at} ms, but {why}", told.reason));
    let possible = match told.reason {
        Reason::HeartbeatTimeout { .. } if !config.heartbeat => return wrong("that is off"),
        Reason::HeartbeatTimeout { missed } => {
            if u64::from(missed) != config.missed {
                return wrong("the budget of missed pings is another");
            }
            return heartbeat(facts, index, at);
        }
        Reason::WriteStalled => return write_stall(facts, index, at),
        Reason::HandlerStalled => return handler_stall(facts, index, at),
        Reason::PeerClosed { code } => closed_by_peer(facts, index, code),
        Reason::ServerClosed { code: None } if shut_down(facts) => true,
        Reason::ServerClosed { code } => closed_by_handler(facts, Some(code)).is_some(),
        Reason::CloseTimeout => {
            let closed = closed_by_handler(facts, None);
            closed.is_some_and(|closed| at >= closed + config.close_timeout)
        }
        Reason::HandlerDropped => {
            before
                .iter()
                .any(|entry| entry.event == Event::HandlerDrops)
                || before.iter().any(|entry| entry.event == Event::Shutdown)
        }
        Reason::PeerVanished => before.iter().any(|entry| entry.event == Event::EndArrived),
        Reason::Transport(kind) => before
            .iter()
            .any(|entry| entry.event == Event::ResetArrived(kind)),
        Reason::Kicked { code } => before
            .last()
            .is_some_and(|entry| entry.event == Event::Kicks(code)),
        Reason::ControlFlood => flooded(facts, index, at),
        // Another rule's business.
        Reason::IdleTimeout
        | Reason::FirstMessageTimeout
        | Reason::MessageTimeout
        | Reason::MaxLifetime => config.idle.is_some(),
        // Nothing else is configured, and each close has a reason of its own.
        _ => false,
    };
    if possible {
        Ok(())
    } else {
        wrong("nothing happened that would end it so")
    }
}

fn heartbeat(facts: &Facts<'_>, index: usize, at: u64) -> Verdict {
    let config = &facts.fast;
    let wrong = |why: String| Err(format!("(a) declared dead at {at} ms, but {why}"));
    let (mut arrived, mut took, mut last, mut partial, mut came) = (0, 0, 0, 0, 0);
    let mut moment = (u64::MAX, 0, 0);
    for entry in &facts.world.log[..index] {
        match entry.event {
            Event::Arrived(count) => {
                // A byte inside of a frame that arrives in pieces, or whatever it is. What comes
                // within one millisecond comes at once, and so does what comes in a standstill.
                let seen = facts.awake(entry.at);
                if moment.0 != seen {
                    moment = (seen, arrived, partial);
                }
                came = entry.at;
                arrived += count;
                // What may be a pong of the layer's is one piece, however it comes: with its last
                // byte the peer is free to send others.
                let begun = facts.fates.partition_point(|fate| fate.to <= moment.1);
                let begun = facts.fates.get(begun);
                let whole = begun.is_some_and(|fate| fate.from == moment.1 || fate.held)
                    && (facts.fates)
                        .binary_search_by_key(&arrived, |fate| fate.to)
                        .is_ok();
                match config.matching {
                    true if whole => partial = moment.2,
                    true => partial = entry.at,
                    false => last = entry.at,
                }
            }
            Event::Took(count, _) => took += count,
            Event::EndArrived | Event::ResetArrived(_) => {
                return wrong(format!("its end was there since {} ms", entry.at));
            }
            _ => {}
        }
    }
    if facts.shows_malformed(took) {
        return wrong("nothing can be said of a peer whose frames are malformed".into());
    }
    if let Some(drained) = drained(facts, index, LONG_REFUSAL) {
        if at < drained + config.timeout {
            return wrong(format!(
                "at {drained} ms it drained what was held back before"
            ));
        }
    }
    if arrived > took {
        return wrong(format!(
            "{} of its bytes waited in the transport",
            arrived - took
        ));
    }
    if partial > 0 && at < partial + config.timeout {
        return wrong(format!("at {partial} ms it was in the middle of a frame"));
    }
    if config.matching {
        // A pong answers all earlier pings, so the pong to one of them says nothing new.
        let pings = facts.pings.iter().enumerate();
        let fresh = pings.filter(|(n, ping)| {
            let newer = facts.pings[n + 1..].iter().filter_map(|newer| newer.answer);
            ping.answer
                .is_some_and(|answer| newer.min().is_none_or(|newer| newer > answer))
        });
        let answers = fresh.filter_map(|(_, ping)| ping.answered);
        last = answers
            .filter(|answer| *answer <= at)
            .chain([last])
            .max()
            .unwrap_or(last);
    }
    let handed = facts.pings.iter().filter_map(|ping| ping.handed);
    let unanswered = handed.filter(|(place, handed)| *handed >= last && *place < index);
    let unanswered: Vec<_> = unanswered.map(|(_, handed)| handed).collect();
    if unanswered.len() < config.missed as usize {
        let count = unanswered.len();
        return wrong(format!(
            "only {count} pings were sent since the sign of life at {last} ms"
        ));
    }
    // What the application asks for goes out besides, and so does what asks a full transport whether
    // it would take more: then the timeouts of others may overlap.
    let full = facts.world.log[..index].iter();
    let full = full.filter(|entry| entry.event == Event::Full).count() > 0;
    let besides = !facts.world.plan.asks.is_empty() || full;
    let (mut until, mut missed, mut fresh) = (at, 0, at);
    for ping in unanswered.iter().rev() {
        let waited = until >= ping + config.timeout;
        if waited {
            (until, missed) = (*ping, missed + 1);
            if missed == 1 {
                fresh = *ping;
            }
        } else if !besides && missed < config.missed {
            return wrong(format!(
                "the ping at {ping} ms was waited for until {until} ms"
            ));
        }
    }
    if missed < config.missed {
        return wrong(format!("only {missed} timeouts went by, of {unanswered:?}"));
    }
    // One long standstill in a silence: the last ping has to be a fresh one, waited for awake.
    let stills = facts
        .world
        .log
        .iter()
        .filter_map(|entry| match entry.event {
            Event::Jumped(span) if entry.at + span > last && entry.at < at => Some(span),
            _ => None,
        });
    let stills: Vec<_> = stills.collect();
    let awake = at - fresh - facts.jumped(fresh, at);
    // The time may have begun anew with bytes that it drained, or with half a frame; and it begins
    // when the process is told that the ping is flushed.
    let told = facts.pings.iter().filter_map(|ping| ping.told);
    let told = told.filter(|told| *told < index).max();
    let told = told.map_or(0, |told| facts.world.log[told].at);
    let anew = drained(facts, index, 1)
        .unwrap_or(0)
        .max(flushed(facts, index));
    let begun = fresh.max(told).max(anew).max(came);
    let late = at.saturating_sub(begun + facts.slow.timeout);
    let long = stills.len() == 1 && stills[0] >= config.interval + config.timeout;
    if long && late > NOTICEABLE.max(facts.slow.timeout / 2) && awake + 1 < config.timeout {
        return wrong(format!(
            "the process stood still, and gave it {awake} ms since"
        ));
    }
    Ok(())
}

/// When somebody was last told that all is flushed who had to wait for it.
fn flushed(facts: &Facts<'_>, index: usize) -> u64 {
    let (mut waits, mut last) = (false, 0);
    for entry in &facts.world.log[..index] {
        match entry.event {
            Event::FlushWaits => waits = true,
            Event::FlushTold if std::mem::take(&mut waits) => last = entry.at,
            _ => {}
        }
    }
    last
}

/// When bytes were last accepted after a refusal of at least so long.
fn drained(facts: &Facts<'_>, index: usize, least: u64) -> Option<u64> {
    let (mut refused, mut drained) = (None, None);
    for entry in &facts.world.log[..index] {
        match entry.event {
            Event::Refused(_) => refused = refused.or(Some(entry.at)),
            Event::Accepted(..) => {
                let since = refused.take().filter(|since| entry.at >= since + least);
                drained = since.map(|_| entry.at).or(drained);
            }
            _ => {}
        }
    }
    drained
}

fn write_stall(facts: &Facts<'_>, index: usize, at: u64) -> Verdict {
    let wrong = |why: String| Err(format!("(a) a write stall at {at} ms, but {why}"));
    let Some(write_timeout) = facts.fast.write_timeout else {
        return wrong("that is off".into());
    };
    let (mut full, mut refused, mut flushing, mut claimed) = (None, None, None, None);
    let mut given_up = None;
    for entry in &facts.world.log[..index] {
        match entry.event {
            Event::WriteGivenUp => given_up = Some(entry.at),
            Event::Full => full = Some(entry.at),
            Event::Room => (full, refused) = (None, None),
            Event::Refused(_) => refused = refused.or(Some(entry.at)),
            Event::Claimed(_) => claimed = Some(entry.at),
            Event::Accepted(..) => claimed = None,
            Event::FlushWaits => flushing = flushing.or(Some(entry.at)),
            Event::Flushed => flushing = None,
            _ => {}
        }
    }
    if claimed.is_some_and(|since| at - since >= write_timeout) {
        return Ok(());
    }
    let since = match (full, refused, flushing) {
        (Some(_), Some(refused), _) => refused,
        (_, _, Some(flushing)) => flushing,
        _ => return wrong("nothing was refused".into()),
    };
    // A write that the transport accepted in part, and that was given up when the scheduler refused the
    // rest, is asked about with a flush. If that takes time, it is taken for the second refusal.
    let plan = &facts.world.plan;
    let by_scheduler = plan.handler.spends != Spends::Never && plan.net.buffered.is_some();
    let given_up = given_up.filter(|_| by_scheduler && flushing == Some(at));
    match given_up.unwrap_or(since) + write_timeout <= at {
        true => Ok(()),
        false => wrong(format!("the first refusal was at {since} ms")),
    }
}

fn handler_stall(facts: &Facts<'_>, index: usize, at: u64) -> Verdict {
    let wrong = |why: String| Err(format!("(a) a stalled handler at {at} ms, but {why}"));
    let Some(stall_timeout) = facts.fast.stall_timeout else {
        return wrong("that is off".into());
    };
    // Since when there is something for it that it does not take.
    let (mut arrived, mut read, mut wrote) = (0, 0, 0);
    let (mut waits, mut inside, mut blocked) = (None, None, None);
    let mut claimed = false;
    for entry in &facts.world.log[..index] {
        match entry.event {
            Event::Arrived(count) => arrived += count,
            Event::Read(count) => {
                read += count;
                waits = None;
            }
            Event::Wrote(count) => {
                wrote += count;
                blocked = None;
                let boundary = facts.boundaries.binary_search(&wrote).is_ok();
                inside = if boundary {
                    None
                } else {
                    inside.or(Some(entry.at))
                };
            }
            Event::WriteWaits => blocked = blocked.or(Some(entry.at)),
            Event::WriteGivenUp => blocked = None,
            Event::Claimed(_) => claimed = true,
            Event::Accepted(..) => claimed = false,
            _ => {}
        }
        if facts.kept_at_most(arrived) > read {
            waits = waits.or(Some(entry.at));
        }
    }
    if waits.is_some_and(|since| at - since >= stall_timeout) {
        return Ok(());
    }
    // A turn of the driver that began before a standstill dates from there what it does after it.
    // What was claimed and given up is a stalled write, if writes have a bound.
    let stalled = blocked.is_some() || claimed && facts.fast.write_timeout.is_some();
    let inside = inside.filter(|_| !stalled);
    let inside = inside.map(|since| facts.standstill_to(since).unwrap_or(since));
    if inside.is_some_and(|since| at - since >= stall_timeout) {
        return Ok(());
    }
    wrong(format!(
        "bytes wait since {waits:?}, a frame is open since {inside:?}"
    ))
}

/// More control frames than a second's worth and what the time allowed. First answers to the
/// layer's pings are no part of it.
fn flooded(facts: &Facts<'_>, index: usize, at: u64) -> bool {
    let Some(limit) = facts.fast.control_limit else {
        return false;
    };
    let arrivals = Times::arrivals(facts.world);
    let answers: Vec<_> = facts.pings.iter().filter_map(|ping| ping.answer).collect();
    let counted = facts.fates.iter().filter(|fate| {
        matches!(fate.opcode, PING | PONG) && answers.binary_search(&fate.to).is_err()
    });
    let times = counted.filter_map(|fate| arrivals.reached(fate.to));
    let times: Vec<_> = times.filter(|(came, _)| *came < index).collect();
    let mut windows = times.iter().rev().zip(1..);
    windows.any(|((_, from), count)| count * 1_000 > limit * (1_000 + at - from))
}

fn closed_by_peer(facts: &Facts<'_>, index: usize, code: Option<u16>) -> bool {
    let taken: usize = facts.world.log[..index]
        .iter()
        .map(|entry| match entry.event {
            Event::Took(count, By::Handler | By::Driver) => count,
            _ => 0,
        })
        .sum();
    let mut frames = facts.fates.iter().zip(&facts.world.said);
    frames.any(|(fate, said)| {
        let bytes = said.payload.get(..2).map(|code| [code[0], code[1]]);
        fate.opcode == CLOSE && fate.to <= taken && bytes.map(u16::from_be_bytes) == code
    })
}

/// When a Close frame of the handler's was out, with that code if one is given, or its FIN.
pub(crate) fn closed_by_handler(facts: &Facts<'_>, code: Option<Option<u16>>) -> Option<u64> {
    let ends = &facts.boundaries;
    let starts = std::iter::once(&0).chain(ends);
    let close = starts.zip(ends).find(|(from, to)| {
        let frame = &facts.world.wrote[**from..**to];
        let bytes = frame.get(2..4).map(|code| [code[0], code[1]]);
        let same = code.is_none_or(|code| bytes.map(u16::from_be_bytes) == code);
        frame[0] & 0xF == CLOSE && same
    });
    let writes = Times::of(facts.world, |event| match event {
        Event::Wrote(count) => Some(count),
        _ => None,
    });
    let close = close.and_then(|(_, to)| writes.reached(*to));
    let mut log = facts.world.log.iter();
    let shutdown = log
        .find(|entry| entry.event == Event::AsksShutdown)
        .map(|entry| entry.at);
    close.map(|(_, at)| at).or(shutdown)
}

fn shut_down(facts: &Facts<'_>) -> bool {
    facts
        .world
        .log
        .iter()
        .any(|entry| entry.event == Event::AsksShutdown)
}
