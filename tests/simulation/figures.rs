//! Rules (f) and (stats): the round-trip times and counters of the eviction event are true.

use super::facts::{Check, Facts, LayerPing};
use super::log::Event;
use super::times::Times;

/// (f) A round trip is no shorter than the network allows, and no longer than it was.
pub(crate) fn round_trips(facts: &Facts<'_>) -> Check {
    let Some((_, at, report)) = facts.evicted else {
        return Ok(());
    };
    let trips = facts.pings.iter().filter_map(|ping| {
        let answered = ping.pong_arrived.filter(|answered| *answered <= at)?;
        let (_, flushed) = ping.flushed?;
        let shortest = answered.saturating_sub(flushed);
        Some((shortest, facts.observed_at(answered + 1) - ping.at))
    });
    let trips: Vec<_> = trips.collect();
    let Some(rtt) = report.rtt else {
        return Ok(());
    };
    let Some(shortest) = trips.iter().map(|(shortest, _)| *shortest).min() else {
        return Err(format!("(f) {rtt:?} without a pong"));
    };
    let longest = trips.iter().map(|(_, longest)| *longest).max().unwrap_or(0) + 2;
    let ms = |time: std::time::Duration| time.as_micros() as u64 / 1_000;
    let links = &facts.world.plan.net;
    let network = links.inbound.latency + links.outbound.latency;
    // A flush may end later than the ping is sent, because it also sends other bytes.
    let least = match links.buffered.unwrap_or(0) {
        0 => shortest.max(network),
        _ => 0,
    };
    if ms(rtt.min()) < least {
        return Err(format!("(f) {rtt:?}, but the fastest pong took {least} ms"));
    }
    for time in [rtt.min(), rtt.last(), rtt.smoothed()] {
        if ms(time) > longest {
            return Err(format!(
                "(f) {rtt:?}, but the slowest pong took {longest} ms"
            ));
        }
    }
    Ok(())
}

/// (stats) The counters are equal to what happened.
pub(crate) fn counters(facts: &Facts<'_>) -> Check {
    let Some((index, _, report)) = facts.evicted else {
        return Ok(());
    };
    let (mut received, mut sent) = (0, 0);
    for entry in &facts.world.log[..index] {
        match entry.event {
            Event::Took(count, _) => received += count as u64,
            Event::Accepted(count, _) => sent += count as u64,
            _ => {}
        }
    }
    // A ping counts once its flush returned, or its pong was read. All pings before it count then,
    // too.
    let took = Times::of(facts.world, |event| match event {
        Event::Took(count, _) => Some(count),
        _ => None,
    });
    let counts = |ping: &&LayerPing| {
        let pong_taken = ping.pong_end.and_then(|to| took.reached(to));
        let pong_taken = pong_taken.is_some_and(|(taken, _)| taken < index);
        pong_taken || ping.flush_returned.is_some_and(|returned| returned < index)
    };
    let pings = facts.pings.iter().rposition(|ping| counts(&ping));
    let pings = pings.map_or(0, |last| last + 1);
    let counted = report.stats.pings_sent() as usize;
    if pings != counted {
        return Err(format!(
            "(stats) {counted} pings were counted, but {pings} were sent"
        ));
    }
    let counted = (report.stats.bytes_received(), report.stats.bytes_sent());
    if counted != (received, sent) {
        return Err(format!(
            "(stats) {counted:?} bytes were counted, but {:?} were received and sent",
            (received, sent)
        ));
    }
    Ok(())
}
