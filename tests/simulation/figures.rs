//! Are the figures true that the hook is told?

use super::facts::{Facts, OwnPing, Verdict};
use super::log::Event;
use super::times::Times;

/// (f) Round trips are neither shorter than the network allows nor longer than they were.
pub(crate) fn round_trips(facts: &Facts<'_>) -> Verdict {
    let Some((_, at, told)) = facts.evicted else {
        return Ok(());
    };
    let trips = facts.pings.iter().filter_map(|ping| {
        let answered = ping.answered.filter(|answered| *answered <= at)?;
        let (_, handed) = ping.handed?;
        let shortest = answered.saturating_sub(handed);
        Some((shortest, facts.awake(answered + 1) - ping.at))
    });
    let trips: Vec<_> = trips.collect();
    let Some(rtt) = told.rtt else {
        return Ok(());
    };
    let Some(shortest) = trips.iter().map(|(shortest, _)| *shortest).min() else {
        return Err(format!("(f) {rtt:?} without an answer"));
    };
    let longest = trips.iter().map(|(_, longest)| *longest).max().unwrap_or(0) + 2;
    let ms = |time: std::time::Duration| time.as_micros() as u64 / 1_000;
    let links = &facts.world.plan.net;
    let network = links.inbound.latency + links.outbound.latency;
    // A flush may go on, with other bytes, after it has sent the ping: when that was nobody knows.
    let least = match links.buffered.unwrap_or(0) {
        0 => shortest.max(network),
        _ => 0,
    };
    if ms(rtt.min()) < least {
        return Err(format!(
            "(f) {rtt:?}, but the fastest answer took {least} ms"
        ));
    }
    for time in [rtt.min(), rtt.last(), rtt.smoothed()] {
        if ms(time) > longest {
            return Err(format!(
                "(f) {rtt:?}, but the slowest answer took {longest} ms"
            ));
        }
    }
    Ok(())
}

/// What is counted is what happened.
pub(crate) fn counters(facts: &Facts<'_>) -> Verdict {
    let Some((index, _, told)) = facts.evicted else {
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
    // A ping counts when its flush was confirmed, to the process and not only in the network, or
    // when its pong has come; and with it all before it.
    let took = Times::of(facts.world, |event| match event {
        Event::Took(count, _) => Some(count),
        _ => None,
    });
    let counts = |ping: &&OwnPing| {
        let came = ping.answer.and_then(|to| took.reached(to));
        let came = came.is_some_and(|(taken, _)| taken < index);
        came || ping.told.is_some_and(|told| told < index)
    };
    let pings = facts.pings.iter().rposition(|ping| counts(&ping));
    let pings = pings.map_or(0, |last| last + 1);
    let counted = told.stats.pings_sent() as usize;
    if pings != counted {
        return Err(format!("(stats) {counted} pings, but it was {pings}"));
    }
    let counted = (told.stats.bytes_received(), told.stats.bytes_sent());
    if counted != (received, sent) {
        return Err(format!(
            "(stats) {counted:?} bytes, but it was {:?}",
            (received, sent)
        ));
    }
    Ok(())
}
