//! Rule (a): the reason of the eviction is true. One check per reason.

use tower_ws_liveness::Reason;

use super::facts::{Check, Facts};
use super::log::{Event, Poller};
use super::plan::Spends;
use super::script::{CLOSE, PING, PONG};
use super::times::Times;

/// A verdict that is less late than this after a standstill may be taken for scheduling noise.
const NOTICEABLE_DELAY_MS: u64 = 100;

/// A refusal that lasts this long comes from the peer's backpressure, not from the scheduler.
const LONG_REFUSAL_MS: u64 = 20;

/// (a) and (c): what happened before the eviction makes its reason possible.
pub(crate) fn check(facts: &Facts<'_>) -> Check {
    let Some((index, at, report)) = facts.evicted else {
        return Ok(());
    };
    let config = &facts.fast;
    let before = &facts.world.log[..index];
    let wrong = |why: &str| Err(format!("(a) {:?} at {at} ms, but {why}", report.reason));
    let possible = match report.reason {
        Reason::HeartbeatTimeout { .. } if !config.heartbeat => {
            return wrong("the heartbeat is off");
        }
        Reason::HeartbeatTimeout { missed } => {
            if u64::from(missed) != config.missed {
                return wrong("`missed` is not the configured number of pings");
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
            .is_some_and(|entry| entry.event == Event::EvictCalled(code)),
        Reason::ControlFlood => flooded(facts, index, at),
        // Rule (i) checks these.
        Reason::IdleTimeout | Reason::FirstMessageTimeout | Reason::MessageTimeout => {
            config.idle.is_some()
        }
        // Rule (k) checks this.
        Reason::MaxLifetime => true,
        // No other reason is configured, and each way to end the connection has a reason of its
        // own.
        _ => false,
    };
    if possible {
        Ok(())
    } else {
        wrong("nothing that happened before has this reason")
    }
}

/// A peer is dead if `missed` pings were flushed after its last sign of life, each waited `timeout`
/// for its pong, and no byte of the peer was left unread.
fn heartbeat(facts: &Facts<'_>, index: usize, at: u64) -> Check {
    let config = &facts.fast;
    let wrong = |why: String| {
        Err(format!(
            "(a) the peer was evicted as dead at {at} ms, but {why}"
        ))
    };
    let (mut arrived, mut took, mut last_sign, mut partial, mut last_arrival) = (0, 0, 0, 0, 0);
    let mut moment = (u64::MAX, 0, 0);
    for entry in &facts.world.log[..index] {
        match entry.event {
            Event::Arrived(count) => {
                // Bytes that arrive inside a frame. All bytes that arrive in one millisecond, or in
                // one standstill, count as one arrival.
                let seen = facts.observed_at(entry.at);
                if moment.0 != seen {
                    moment = (seen, arrived, partial);
                }
                last_arrival = entry.at;
                arrived += count;
                // A possible pong to the layer is a whole, also if it arrives in pieces: after its
                // last byte the peer can send other frames.
                let begun = facts
                    .peer_frames
                    .partition_point(|frame| frame.to <= moment.1);
                let begun = facts.peer_frames.get(begun);
                let whole = begun
                    .is_some_and(|frame| frame.from == moment.1 || frame.maybe_pong_to_layer)
                    && (facts.peer_frames)
                        .binary_search_by_key(&arrived, |frame| frame.to)
                        .is_ok();
                match config.matching {
                    true if whole => partial = moment.2,
                    true => partial = entry.at,
                    false => last_sign = entry.at,
                }
            }
            Event::Took(count, _) => took += count,
            Event::EndArrived | Event::ResetArrived(_) => {
                return wrong(format!("its end was readable since {} ms", entry.at));
            }
            _ => {}
        }
    }
    if facts.shows_malformed(took) {
        return wrong("its frames were malformed, so it cannot be pinged".into());
    }
    if let Some(drained) = last_drain(facts, index, LONG_REFUSAL_MS) {
        if at < drained + config.timeout {
            return wrong(format!(
                "at {drained} ms it drained bytes that had been refused"
            ));
        }
    }
    if arrived > took {
        return wrong(format!(
            "{} of its bytes were unread in the transport",
            arrived - took
        ));
    }
    if partial > 0 && at < partial + config.timeout {
        return wrong(format!("at {partial} ms a part of a frame arrived"));
    }
    if config.matching {
        // A pong answers all earlier pings too, so a later pong to an earlier ping is no new sign
        // of life.
        let pings = facts.pings.iter().enumerate();
        let fresh = pings.filter(|(n, ping)| {
            let newer = facts.pings[n + 1..]
                .iter()
                .filter_map(|newer| newer.pong_end);
            ping.pong_end
                .is_some_and(|answer| newer.min().is_none_or(|newer| newer > answer))
        });
        let answers = fresh.filter_map(|(_, ping)| ping.pong_arrived);
        last_sign = answers
            .filter(|answer| *answer <= at)
            .chain([last_sign])
            .max()
            .unwrap_or(last_sign);
    }
    let flushed_at = facts.pings.iter().filter_map(|ping| ping.flushed);
    let unanswered =
        flushed_at.filter(|(place, flushed_at)| *flushed_at >= last_sign && *place < index);
    let unanswered: Vec<_> = unanswered.map(|(_, flushed_at)| flushed_at).collect();
    if unanswered.len() < config.missed as usize {
        let count = unanswered.len();
        return wrong(format!(
            "only {count} pings were flushed after the sign of life at {last_sign} ms"
        ));
    }
    // `Liveness::ping` sends pings outside the heartbeat's schedule. So does a full transport,
    // which is probed with a ping for room. Then timeouts overlap.
    let full = facts.world.log[..index].iter();
    let full = full.filter(|entry| entry.event == Event::Full).count() > 0;
    let extra_pings = !facts.world.plan.handle_calls.is_empty() || full;
    let (mut until, mut missed, mut fresh) = (at, 0, at);
    for ping in unanswered.iter().rev() {
        let waited = until >= ping + config.timeout;
        if waited {
            (until, missed) = (*ping, missed + 1);
            if missed == 1 {
                fresh = *ping;
            }
        } else if !extra_pings && missed < config.missed {
            return wrong(format!(
                "the ping at {ping} ms had only until {until} ms for its pong"
            ));
        }
    }
    if missed < config.missed {
        return wrong(format!(
            "only {missed} timeouts expired after the pings at {unanswered:?}"
        ));
    }
    // After a long standstill in the silence the verdict needs a ping that was sent, and waited
    // for, while the process ran.
    let standstills = facts
        .world
        .log
        .iter()
        .filter_map(|entry| match entry.event {
            Event::Standstill(span) if entry.at + span > last_sign && entry.at < at => Some(span),
            _ => None,
        });
    let standstills: Vec<_> = standstills.collect();
    let awake = at - fresh - facts.standstill_between(fresh, at);
    // The timeout runs from the return of the ping's flush. It restarts when the peer drains bytes
    // or half a frame arrives.
    let returned = facts.pings.iter().filter_map(|ping| ping.flush_returned);
    let returned = returned.filter(|returned| *returned < index).max();
    let returned = returned.map_or(0, |returned| facts.world.log[returned].at);
    let restarted = last_drain(facts, index, 1)
        .unwrap_or(0)
        .max(last_flush_return(facts, index));
    let since = fresh.max(returned).max(restarted).max(last_arrival);
    let late = at.saturating_sub(since + facts.slow.timeout);
    let long = standstills.len() == 1 && standstills[0] >= config.interval + config.timeout;
    if long && late > NOTICEABLE_DELAY_MS.max(facts.slow.timeout / 2) && awake + 1 < config.timeout
    {
        return wrong(format!(
            "after the standstill the last ping had only {awake} ms for its pong"
        ));
    }
    Ok(())
}

/// Time of the last return of a flush that had been pending.
fn last_flush_return(facts: &Facts<'_>, index: usize) -> u64 {
    let (mut waits, mut last) = (false, 0);
    for entry in &facts.world.log[..index] {
        match entry.event {
            Event::FlushPending => waits = true,
            Event::FlushReturned if std::mem::take(&mut waits) => last = entry.at,
            _ => {}
        }
    }
    last
}

/// Time at which the transport last accepted bytes after it had refused them for `least` ms.
fn last_drain(facts: &Facts<'_>, index: usize, least: u64) -> Option<u64> {
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

/// A write is stalled if the transport accepted no byte of it for `write_timeout`.
fn write_stall(facts: &Facts<'_>, index: usize, at: u64) -> Check {
    let wrong = |why: String| Err(format!("(a) WriteStalled at {at} ms, but {why}"));
    let Some(write_timeout) = facts.fast.write_timeout else {
        return wrong("its timeout is off".into());
    };
    let (mut full, mut refused, mut flushing, mut claimed) = (None, None, None, None);
    let mut cancelled = None;
    for entry in &facts.world.log[..index] {
        match entry.event {
            Event::WriteCancelled => cancelled = Some(entry.at),
            Event::Full => full = Some(entry.at),
            Event::Room => (full, refused) = (None, None),
            Event::Refused(_) => refused = refused.or(Some(entry.at)),
            Event::Claimed(_) => claimed = Some(entry.at),
            Event::Accepted(..) => claimed = None,
            Event::FlushPending => flushing = flushing.or(Some(entry.at)),
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
        _ => return wrong("the transport refused nothing".into()),
    };
    // The transport accepts part of a write, the scheduler refuses the rest, the handler cancels.
    // The layer probes the transport with a flush. A flush that is pending counts as the second
    // refusal.
    let plan = &facts.world.plan;
    let by_scheduler = plan.handler.spends != Spends::Never && plan.net.buffered.is_some();
    let cancelled = cancelled.filter(|_| by_scheduler && flushing == Some(at));
    match cancelled.unwrap_or(since) + write_timeout <= at {
        true => Ok(()),
        false => wrong(format!("the first refusal was at {since} ms")),
    }
}

/// A handler is stalled if, for `handler_stall_timeout`, it left the peer's bytes unread or a frame
/// unfinished.
fn handler_stall(facts: &Facts<'_>, index: usize, at: u64) -> Check {
    let wrong = |why: String| Err(format!("(a) HandlerStalled at {at} ms, but {why}"));
    let Some(stall_timeout) = facts.fast.stall_timeout else {
        return wrong("its timeout is off".into());
    };
    // Times since when bytes wait for the handler (`waits`), or its frame is unfinished (`inside`).
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
            Event::WritePending => blocked = blocked.or(Some(entry.at)),
            Event::WriteCancelled => blocked = None,
            Event::Claimed(_) => claimed = true,
            Event::Accepted(..) => claimed = false,
            _ => {}
        }
        if facts.handler_bytes_at_most(arrived) > read {
            waits = waits.or(Some(entry.at));
        }
    }
    if waits.is_some_and(|since| at - since >= stall_timeout) {
        return Ok(());
    }
    // A driver poll in which a standstill falls uses the time before it for everything it does.
    // Bytes that a refused write kept, and that the handler does not write again, are a write stall
    // if `write_timeout` is set.
    let stalled = blocked.is_some() || claimed && facts.fast.write_timeout.is_some();
    let inside = inside.filter(|_| !stalled);
    let inside = inside.map(|since| facts.standstill_ending_at(since).unwrap_or(since));
    if inside.is_some_and(|since| at - since >= stall_timeout) {
        return Ok(());
    }
    wrong(format!(
        "bytes wait since {waits:?}, a frame is open since {inside:?}"
    ))
}

/// Whether control frames exceeded the limit: one second's worth at once, and the limit's rate over
/// time. First pongs to the layer's pings do not count.
fn flooded(facts: &Facts<'_>, index: usize, at: u64) -> bool {
    let Some(limit) = facts.fast.control_limit else {
        return false;
    };
    let arrivals = Times::arrivals(facts.world);
    let answers: Vec<_> = facts
        .pings
        .iter()
        .filter_map(|ping| ping.pong_end)
        .collect();
    let counted = facts.peer_frames.iter().filter(|frame| {
        matches!(frame.opcode, PING | PONG) && answers.binary_search(&frame.to).is_err()
    });
    let times = counted.filter_map(|frame| arrivals.reached(frame.to));
    let times: Vec<_> = times
        .filter(|(last_arrival, _)| *last_arrival < index)
        .collect();
    let mut windows = times.iter().rev().zip(1..);
    windows.any(|((_, from), count)| count * 1_000 > limit * (1_000 + at - from))
}

fn closed_by_peer(facts: &Facts<'_>, index: usize, code: Option<u16>) -> bool {
    let taken: usize = facts.world.log[..index]
        .iter()
        .map(|entry| match entry.event {
            Event::Took(count, Poller::Handler | Poller::Driver) => count,
            _ => 0,
        })
        .sum();
    let mut frames = facts.peer_frames.iter().zip(&facts.world.peer_sent);
    frames.any(|(frame, sent)| {
        let bytes = sent.payload.get(..2).map(|code| [code[0], code[1]]);
        frame.opcode == CLOSE && frame.to <= taken && bytes.map(u16::from_be_bytes) == code
    })
}

/// When the handler's Close frame was written (with this code, if one is given) or its `shutdown`
/// was called.
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
        .find(|entry| entry.event == Event::ShutdownCalled)
        .map(|entry| entry.at);
    close.map(|(_, at)| at).or(shutdown)
}

fn shut_down(facts: &Facts<'_>) -> bool {
    facts
        .world
        .log
        .iter()
        .any(|entry| entry.event == Event::ShutdownCalled)
}
