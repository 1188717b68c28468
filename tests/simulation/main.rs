//! Thousands of connections under random faults, on paused time, and an oracle that judges each by
//! what the README promises.
//!
//! `cargo test --test simulation` plays 2,000 schedules in seconds; `cargo test --release --test
//! simulation a_hundred -- --ignored` plays 100,000 in half a minute, and without `--release` in
//! minutes.
//!
//! The numbers are the same in every run, unless `SIMULATION_BASE` says otherwise.
//!
//! A schedule follows from one number. A failure prints it, and `SIMULATION_SEED=0x… cargo test
//! --test simulation replay -- --nocapture` plays it again. `SIMULATION_BASE` picks the number from
//! which the numbers of a run are drawn, `SIMULATION_COUNT` how many there are in the long one.
//!
//! In a binary of its own, since it is built and run alone, in other ways than the rest, and keeps a
//! processor busy.

mod asks;
mod bounds;
mod calls;
mod draw;
mod facts;
mod figures;
mod fragments;
mod handler;
mod idleness;
mod leavings;
mod log;
mod network;
mod opening;
mod peer;
mod plan;
mod rng;
mod run;
#[path = "../support/script.rs"]
mod script;
mod times;
mod transport;
mod verdicts;
mod world;

use std::env;

use rng::Rng;
use run::{Outcome, all, play};

/// The numbers of a run of the tests, unless the environment says otherwise.
const BASE: u64 = 0x0057_1BEA_7000;

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    let digits = text.strip_prefix("0x");
    let number = match digits {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    Some(number.unwrap_or_else(|error| panic!("{name}: {error}")))
}

fn base() -> u64 {
    number("SIMULATION_BASE").unwrap_or(BASE)
}

#[test]
fn two_thousand_schedules() {
    all(base(), 2_000);
}

#[test]
#[ignore = "takes minutes: 100,000 schedules"]
fn a_hundred_thousand_schedules() {
    all(base(), number("SIMULATION_COUNT").unwrap_or(100_000));
}

#[test]
fn a_seed_is_a_whole_schedule() {
    let mut rng = Rng::new(base());
    for _ in 0..20 {
        let seed = rng.next();
        let (once, again) = (play(seed), play(seed));
        assert_eq!(once.trace, again.trace, "{seed:#x}");
        assert_ne!(once.trace, play(seed ^ 1).trace, "{seed:#x}");
    }
}

#[test]
fn the_schedules_reach_every_reason() {
    let mut seen = std::collections::BTreeMap::new();
    for Outcome { reason, .. } in run::outcomes(base(), 600) {
        *seen.entry(reason).or_insert(0) += 1;
    }
    for reason in [
        "control_flood",
        "first_message_timeout",
        "handler_dropped",
        "handler_stalled",
        "heartbeat_timeout",
        "idle_timeout",
        "kicked",
        "max_lifetime",
        "message_timeout",
        "peer_closed",
        "peer_vanished",
        "server_closed",
        "transport",
        "write_stalled",
    ] {
        assert!(
            seen.get(reason).is_some_and(|times| *times >= 5),
            "{reason}: {seen:?}"
        );
    }
}

/// Plays one schedule again, and tells it in full.
#[test]
fn replay() {
    let seed = number("SIMULATION_SEED").unwrap_or(BASE);
    let outcome = play(seed);
    println!("{}", outcome.trace);
    if let Some(complaint) = outcome.complaint {
        panic!("{complaint}");
    }
}
