//! Tests with real processes: clients and servers that are killed, stopped or cut off.
//!
//! The servers are the examples. A binary of its own with its own harness, since the binary plays
//! every role: with a role as its first argument it is an example or a client, otherwise it is the
//! test harness, which starts itself in these roles.

mod chat;
#[cfg_attr(not(feature = "tcp"), allow(dead_code))] // `reconnecting_client` needs all of it
mod child;
mod devices;
mod echo;
mod examples;
mod feed;
mod graceful_drain;
#[path = "../support/h2_client.rs"]
#[allow(dead_code)] // the client uses a part of it
mod h2_client;
#[path = "../support/harness.rs"]
mod harness;
mod http;
mod lobby;
mod lobby_by_hand;
#[cfg(feature = "tcp")]
mod network_faults;
mod presence;
#[path = "../support/process.rs"]
#[allow(dead_code)] // shared with `tests/push_gateway`, and `network_faults` needs more of it
mod process;
#[cfg(feature = "tcp")]
mod raw_streams;
#[cfg(feature = "tcp")]
mod reconnecting_client;
mod resume;
mod roles;
mod text_client;

use std::process::ExitCode;

use harness::{Arguments, Trial};

/// Number of tests at a time. Each starts processes, and some measure wall-clock time.
const AT_ONCE: usize = 2;

/// The network faults hardly ever wait for a processor.
const AT_ONCE_WHEN_IGNORED: usize = 6;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some(roles::SERVER) => roles::server(args.collect()),
        Some(roles::CLIENT) => roles::client(args.collect()),
        #[cfg(feature = "tcp")]
        Some(network_faults::SERVER) => network_faults::server(args.collect()),
        Some(chat::SERVER) => chat::server(args.collect()),
        Some(chat::GUEST) => chat::guest(&args.next().unwrap(), &args.next().unwrap()),
        Some(lobby::SERVER) => lobby::server(args.collect()),
        Some(lobby::BY_HAND) => lobby::by_hand(args.collect()),
        Some(lobby::PLAYER) => lobby::player(&args.next().unwrap(), &args.next().unwrap()),
        Some(devices::SERVER) => devices::server(args.collect()),
        Some(devices::DEVICE) => devices::device(&args.next().unwrap(), &args.next().unwrap()),
        Some(feed::SERVER) => feed::server(args.collect()),
        Some(feed::TRADER) => feed::trader(&args.next().unwrap(), &args.next().unwrap()),
        Some(resume::ROLE) => resume::role(args.collect()),
        Some(graceful_drain::SERVER) => graceful_drain::server(args.collect()),
        Some(graceful_drain::CLIENT) => graceful_drain::client(&args.next().unwrap()),
        Some(presence::SERVER) => presence::server(args.collect()),
        Some(presence::USER) => presence::user(&args.next().unwrap(), &args.next().unwrap()),
        #[cfg(feature = "tcp")]
        Some(raw_streams::RAW) => roles::serve(examples::raw_tungstenite::run(args.collect())),
        #[cfg(feature = "tcp")]
        Some(raw_streams::HYPER) => roles::serve(examples::hyper_server::run(args.collect())),
        #[cfg(feature = "tcp")]
        Some(raw_streams::CLIENT) => raw_streams::talk(&args.next().unwrap()),
        #[cfg(feature = "tcp")]
        Some(reconnecting_client::CLIENT) => reconnecting_client::role(args.collect()),
        _ => test(),
    }
}

fn test() -> ExitCode {
    let mut arguments = Arguments::from_env();
    let at_once = if arguments.ignored {
        AT_ONCE_WHEN_IGNORED
    } else {
        AT_ONCE
    };
    arguments.test_threads.get_or_insert(at_once);
    let mut trials = echo::trials();
    trials.extend(chat::trials());
    trials.extend(devices::trials());
    trials.extend(feed::trials());
    trials.extend(graceful_drain::trials());
    trials.extend(lobby::trials());
    trials.extend(presence::trials());
    trials.extend(resume::trials());
    #[cfg(feature = "tcp")]
    trials.extend(raw_streams::trials());
    #[cfg(feature = "tcp")]
    trials.extend(reconnecting_client::trials());
    #[cfg(feature = "tcp")]
    trials.extend(network_faults::trials());
    harness::run(&arguments, trials)
}

/// The trials of a module, with its name as their prefix.
fn trials<const N: usize>(module: &str, tests: [(&str, fn()); N]) -> Vec<Trial> {
    let trial = |(name, test): (&str, fn())| Trial {
        name: format!("{module}::{name}"),
        test,
        ignored: None,
    };
    tests.map(trial).into()
}
