//! Which Close frames stock reconnecting clients come back after.
//!
//! Each client runs as it is by default, with a server of its own protocol behind `HeartbeatLayer`, and
//! opens one connection for each [`Ending`]. Then its process is stopped, as a laptop that sleeps is,
//! the heartbeat evicts the connections, and the process goes on.

mod client;
mod scene;
mod server;
mod table;

use libtest_mimic::Trial;
use tokio::runtime::Runtime;

use self::client::Client;
pub(super) use self::table::table;
use super::Shared;

/// How the server ends the connection of a stopped client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// By the heartbeat, with the layer's default Close frame.
    Default,
    /// By the heartbeat, with this Close frame.
    Close(u16, &'static str),
    /// Without a Close frame: the server drops the connection.
    NoFrame,
}

/// What the client did after the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    ComesBack,
    StaysAway,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    client: &'static Client,
    ending: Ending,
    cell: Cell,
}

impl Ending {
    /// At least one code of each range that one of the clients treats alike, save for those that the
    /// layers never send.
    const ALL: [Self; 10] = [
        Self::Default,
        Self::Close(1001, "idle timeout"),
        Self::Close(1008, "too many control frames"),
        Self::Close(1011, "heartbeat timeout"),
        Self::Close(1012, "maximum lifetime reached"),
        Self::Close(1013, "handler stalled"),
        Self::Close(3008, "heartbeat timeout"),
        Self::Close(4000, "replaced by a newer connection"),
        Self::Close(4500, "not wanted here"),
        Self::NoFrame,
    ];

    /// As the client and the server's paths name it: one word.
    fn word(self) -> String {
        match self {
            Self::Default => "default".to_owned(),
            Self::Close(code, _) => code.to_string(),
            Self::NoFrame => "none".to_owned(),
        }
    }

    /// What the client's WebSocket library reports. RFC 6455 section 7.1.5: 1006 without a frame.
    fn reported(self) -> (u16, &'static str) {
        match self {
            Self::Default => (3008, "heartbeat timeout"),
            Self::Close(code, reason) => (code, reason),
            Self::NoFrame => (1006, ""),
        }
    }
}

pub(super) fn count() -> usize {
    client::ALL.len() * Ending::ALL.len()
}

/// One for each client.
pub(super) fn trials(outcomes: &Shared<Outcome>) -> Vec<Trial> {
    let trial = |client: &'static Client| {
        let outcomes = outcomes.clone();
        let trial = Trial::test(format!("{} reconnects", client.name), move || {
            let seen = Runtime::new()?.block_on(scene::play(client));
            outcomes.extend(seen);
            Ok(())
        });
        let needs = format!("needs {}", client.needs);
        trial.with_kind(needs).with_ignored_flag(true)
    };
    client::ALL.iter().map(trial).collect()
}
