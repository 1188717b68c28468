//! Simulation of one connection under random faults, checked against the crate's promises.
//!
//! Each schedule plays one connection on paused time: a scripted peer ([`peer`]), a scripted
//! handler ([`handler`]) and a network with faults ([`network`]), all drawn from one seed
//! ([`draw`]). The run records a log of events ([`log`]) and the bytes at each end. The oracle
//! reads this record after the run, and returns the first rule that does not hold.
//!
//! The rules, by the letter with which a failure message begins, and where they are checked:
//!
//! - (a) The reason of the eviction is true. A live peer is not evicted as dead ([`reasons`]).
//! - (b) A dead peer, a stalled handler and a stalled write are evicted by their deadline
//!   ([`bounds`]).
//! - (c) The eviction hook is called exactly once on every end path ([`facts`]), without delay
//!   ([`bounds`]), for a reason that the run made possible ([`reasons`]).
//! - (d) Handler and peer receive each other's bytes unchanged, except that pongs to the layer's
//!   pings are removed and whole control frames are added between frames ([`facts`]).
//! - (e) A blocked handler is woken in time. Its error has the reason of the eviction. After the
//!   eviction the transport is dropped within `close_timeout` ([`bounds`]) and the registry is
//!   empty ([`run`]).
//! - (f) Nothing panics ([`run`]). The round-trip times of the eviction are true ([`figures`]).
//! - (g) `Liveness::ping` returns in time, with a true round-trip time ([`ping_calls`]).
//! - (h) A ping waits for the end of a fragmented message, for at most one `timeout`
//!   ([`fragments`]).
//! - (i) The idle layer evicts idle connections, by their deadline, and no others ([`idleness`]).
//! - (j) Bytes that the transport accepted before the eviction reach the peer, unless they would be
//!   lost without the layer, too ([`delivery`]).
//! - (k) A connection ends at its maximum lifetime or its expiry, which may move, and the hook is
//!   called once before each expiry ([`lifetime`]).
//! - (stats) The counters of the eviction are equal to what happened ([`figures`]).
//!
//! `cargo test --test simulation` plays 2,000 schedules in seconds. `cargo test --release --test
//! simulation a_hundred -- --ignored` plays 100,000 in half a minute (without `--release`:
//! minutes). The seeds are the same in every run unless `SIMULATION_BASE` is set.
//!
//! A failure prints its seed. `SIMULATION_SEED=0x… cargo test --test simulation replay --
//! --nocapture` plays it again. `SIMULATION_BASE` sets the number from which the seeds of a run are
//! derived, `SIMULATION_COUNT` the number of schedules of the long run.
//!
//! A binary of its own: it is also built and run alone in release mode, and it keeps every
//! processor busy.

mod bounds;
mod delivery;
mod draw;
mod facts;
mod figures;
mod fragments;
mod handle_calls;
mod handler;
mod idleness;
mod lifetime;
mod log;
mod network;
mod opening;
mod peer;
mod ping_calls;
mod plan;
mod reasons;
mod rng;
mod run;
#[path = "../support/script.rs"]
mod script;
mod times;
mod transport;
mod world;

use std::env;

use rng::Rng;
use run::{Outcome, assert_all_hold, play};

/// Default of `SIMULATION_BASE`, from which the seeds of a run are derived.
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
    assert_all_hold(base(), 2_000);
}

#[test]
#[ignore = "takes minutes: 100,000 schedules"]
fn a_hundred_thousand_schedules() {
    assert_all_hold(base(), number("SIMULATION_COUNT").unwrap_or(100_000));
}

#[test]
fn a_seed_determines_the_whole_schedule() {
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

/// The process stands still twice: before the driver reads its clock, and again before it judges. The
/// time of the closing handshake then begins after both. (After a change of what a schedule draws,
/// this is some other schedule.)
#[test]
fn the_time_of_a_closing_handshake_begins_with_it() {
    let outcome = play(0x1f5b_1da4_b5fa_31e0);
    assert_eq!(outcome.violation, None, "{}", outcome.trace);
}

/// Plays one schedule and prints its log.
#[test]
fn replay() {
    let seed = number("SIMULATION_SEED").unwrap_or(BASE);
    let outcome = play(seed);
    println!("{}", outcome.trace);
    if let Some(violation) = outcome.violation {
        panic!("{violation}");
    }
}
