//! What the application asks of the connection's handle, beside what its handler does.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};
use tower_ws_liveness::Liveness;

use super::log::Event;
use super::plan::Config;
use super::rng::Rng;
use super::world::{Shared, lock};

/// Times are in ms.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask {
    /// Wants a ping, and gives up after a while, or never.
    Ping {
        patience: Option<u64>,
    },
    /// Wants one again and again.
    Often {
        every: u64,
        times: u64,
    },
    Interval(u64),
    Timeout(u64),
}

/// What is asked, and when. Most applications ask nothing.
pub(crate) fn draw(rng: &mut Rng, config: &Config, until: u64) -> Vec<(u64, Ask)> {
    let pings = rng.pick(&[0, 0, 0, 0, 1, 2, 6]);
    let mut asks: Vec<_> = (0..pings)
        .map(|_| {
            let ask = match rng.percent(25) {
                true => Ask::Often {
                    every: 1 + rng.below(config.timeout),
                    times: rng.range(3, 40),
                },
                false => Ask::Ping {
                    patience: rng.percent(30).then(|| rng.below(config.timeout)),
                },
            };
            (rng.below(until), ask)
        })
        .collect();
    if rng.percent(10) {
        for _ in 0..rng.range(1, 4) {
            let ask = match rng.percent(50) {
                true => Ask::Interval(Config::interval(rng)),
                false => Ask::Timeout(Config::timeout(rng)),
            };
            asks.push((rng.below(until), ask));
        }
    }
    asks.sort_by_key(|(at, _)| *at);
    asks
}

/// Asks it all. Whoever waits for an answer waits in a task of its own.
pub(crate) async fn run(world: Shared, live: Liveness, asks: Vec<(u64, Ask)>) {
    let mut calls = JoinSet::new();
    let mut count = 0;
    let mut call = |calls: &mut JoinSet<()>, patience| {
        calls.spawn(ping(world.clone(), live.clone(), count, patience));
        count += 1;
    };
    for (at, ask) in asks {
        let at = lock(&world).instant(at);
        sleep_until(at).await;
        match ask {
            Ask::Ping { patience } => call(&mut calls, patience),
            Ask::Often { every, times } => {
                for n in 0..times {
                    sleep_until(at + ms(n * every)).await;
                    call(&mut calls, None);
                }
            }
            Ask::Interval(interval) => {
                lock(&world).note(Event::SetsInterval(interval));
                live.set_interval(ms(interval))
                    .expect("a heartbeat, and a time that is allowed");
            }
            Ask::Timeout(timeout) => {
                lock(&world).note(Event::SetsTimeout(timeout));
                live.set_timeout(ms(timeout))
                    .expect("a heartbeat, and a time that is allowed");
            }
        }
    }
    while calls.join_next().await.is_some() {}
}

async fn ping(world: Shared, live: Liveness, call: usize, patience: Option<u64>) {
    lock(&world).note(Event::Asks(call));
    let pinged = match patience {
        Some(patience) => timeout(ms(patience), live.ping()).await,
        None => Ok(live.ping().await),
    };
    lock(&world).note(match pinged {
        Ok(Ok(rtt)) => Event::Answered(call, rtt),
        Ok(Err(evicted)) => Event::AnsweredByEnd(call, evicted.reason()),
        Err(_) => Event::AskGivenUp(call),
    });
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
