//! Calls that the application makes on the connection's handle, outside the handler.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};
use tower_ws_liveness::{Expiry, Liveness};

use super::lifetime::WARNING_MS;
use super::log::Event;
use super::plan::Config;
use super::rng::Rng;
use super::world::{Shared, lock};

/// All times are in ms.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HandleCall {
    /// One `Liveness::ping`, cancelled after this time if it is pending (`None`: never).
    Ping {
        cancel_after: Option<u64>,
    },
    /// `times` pings at an interval.
    Often {
        every: u64,
        times: u64,
    },
    Interval(u64),
    Timeout(u64),
    MaxLifetime(Option<u64>),
    /// A time of the log, which may have passed.
    Expiry(Option<u64>),
}

/// Draws the calls and their times. Most schedules have none.
pub(crate) fn draw(rng: &mut Rng, config: &Config, until: u64) -> Vec<(u64, HandleCall)> {
    let pings = rng.pick(&[0, 0, 0, 0, 1, 2, 6]);
    let mut planned: Vec<_> = (0..pings)
        .map(|_| {
            let call = match rng.percent(25) {
                true => HandleCall::Often {
                    every: 1 + rng.below(config.timeout),
                    times: rng.range(3, 40),
                },
                false => HandleCall::Ping {
                    cancel_after: rng.percent(30).then(|| rng.below(config.timeout)),
                },
            };
            (rng.below(until), call)
        })
        .collect();
    if rng.percent(10) {
        for _ in 0..rng.range(1, 4) {
            let call = match rng.percent(50) {
                true => HandleCall::Interval(Config::interval(rng)),
                false => HandleCall::Timeout(Config::timeout(rng)),
            };
            planned.push((rng.below(until), call));
        }
    }
    planned.sort_by_key(|(at, _)| *at);
    planned
}

/// Draws changes of the lifetime and of the expiry. Most schedules have none.
pub(crate) fn draw_lifetimes(rng: &mut Rng, until: u64) -> Vec<(u64, HandleCall)> {
    if !rng.percent(15) {
        return Vec::new();
    }
    let calls = (0..rng.range(1, 6)).map(|_| {
        let end = rng.percent(80).then(|| 1 + rng.below(until));
        let call = match rng.percent(50) {
            true => HandleCall::MaxLifetime(end),
            false => HandleCall::Expiry(end),
        };
        (rng.below(until), call)
    });
    calls.collect()
}

/// Makes the calls. Each pending ping waits in a task of its own.
pub(crate) async fn run(world: Shared, live: Liveness, planned: Vec<(u64, HandleCall)>) {
    if (planned.iter()).any(|(_, call)| matches!(call, HandleCall::Expiry(_))) {
        let world = world.clone();
        live.on_expiring(ms(WARNING_MS), move |_| lock(&world).note(Event::Warned))
            .expect("a valid duration");
    }
    let mut calls = JoinSet::new();
    let mut count = 0;
    let mut ping_in_task = |calls: &mut JoinSet<()>, cancel_after| {
        calls.spawn(ping(world.clone(), live.clone(), count, cancel_after));
        count += 1;
    };
    for (at, call) in planned {
        let at = lock(&world).instant(at);
        sleep_until(at).await;
        match call {
            HandleCall::Ping { cancel_after } => ping_in_task(&mut calls, cancel_after),
            HandleCall::Often { every, times } => {
                for n in 0..times {
                    sleep_until(at + ms(n * every)).await;
                    ping_in_task(&mut calls, None);
                }
            }
            HandleCall::Interval(interval) => {
                lock(&world).note(Event::SetsInterval(interval));
                live.set_interval(ms(interval))
                    .expect("a heartbeat and a valid duration");
            }
            HandleCall::Timeout(timeout) => {
                lock(&world).note(Event::SetsTimeout(timeout));
                live.set_timeout(ms(timeout))
                    .expect("a heartbeat and a valid duration");
            }
            HandleCall::MaxLifetime(lifetime) => {
                lock(&world).note(Event::SetsMaxLifetime(lifetime));
                live.set_max_lifetime(lifetime.map(ms))
                    .expect("a valid duration");
            }
            HandleCall::Expiry(expiry) => {
                let at = expiry.map(|at| lock(&world).instant(at));
                lock(&world).note(Event::SetsExpiry(expiry));
                live.expires_at(at.map(Expiry::from));
            }
        }
    }
    while calls.join_next().await.is_some() {}
}

async fn ping(world: Shared, live: Liveness, call: usize, cancel_after: Option<u64>) {
    lock(&world).note(Event::PingCalled(call));
    let result = match cancel_after {
        Some(cancel_after) => timeout(ms(cancel_after), live.ping()).await,
        None => Ok(live.ping().await),
    };
    lock(&world).note(match result {
        Ok(Ok(rtt)) => Event::PingReturned(call, rtt),
        Ok(Err(evicted)) => Event::PingFailed(call, evicted.reason()),
        Err(_) => Event::PingCancelled(call),
    });
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
