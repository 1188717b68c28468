//! Tests after which Close frames stock reconnecting clients reconnect.
//!
//! Each client runs with its default settings against a server of its protocol behind
//! `HeartbeatLayer`, and opens one connection for each [`Ending`]. Then its process is stopped,
//! like a sleeping laptop. The heartbeat evicts the connections, and the process continues.

mod client;
mod scene;
mod server;
mod table;

use libtest_mimic::Trial;
use tokio::runtime::Runtime;

use self::client::ReconnectingClient;
pub(super) use self::table::table;
use super::SharedResults;

/// How the server ends a connection of the stopped client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// By the heartbeat, with the layer's default Close frame.
    Default,
    /// By the heartbeat, with this Close frame.
    Close(u16, &'static str),
    /// Without a Close frame: the server drops the connection.
    NoFrame,
}

/// The client's reaction to the end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    Reconnects,
    StaysDisconnected,
}

/// The reaction of one client to one ending.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReconnectOutcome {
    client: &'static ReconnectingClient,
    ending: Ending,
    reaction: Reaction,
}

impl Ending {
    /// At least one code from each range that a client treats alike, except ranges that the layers
    /// never send.
    const ALL: [Self; 10] = [
        Self::Default,
        Self::Close(1001, "idle timeout"),
        Self::Close(1008, "too many control frames"),
        Self::Close(1011, "heartbeat timeout"),
        Self::Close(1012, "maximum lifetime reached"),
        Self::Close(1013, "handler stalled"),
        Self::Close(3008, "heartbeat timeout"),
        Self::Close(4000, "replaced by a newer connection"),
        Self::Close(4500, "not allowed"),
        Self::NoFrame,
    ];

    /// Name of the ending, as one word, in the client's output and in the server's paths.
    fn name(self) -> String {
        match self {
            Self::Default => "default".to_owned(),
            Self::Close(code, _) => code.to_string(),
            Self::NoFrame => "none".to_owned(),
        }
    }

    /// Code and reason that the client's WebSocket library reports: 1006 without a frame (RFC 6455
    /// section 7.1.5).
    fn reported(self) -> (u16, &'static str) {
        match self {
            Self::Default => (3008, "heartbeat timeout"),
            Self::Close(code, reason) => (code, reason),
            Self::NoFrame => (1006, ""),
        }
    }
}

/// Returns the number of outcomes.
pub(super) fn count() -> usize {
    client::ALL.len() * Ending::ALL.len()
}

/// Returns one trial for each client.
pub(super) fn trials(outcomes: &SharedResults<ReconnectOutcome>) -> Vec<Trial> {
    let trial = |client: &'static ReconnectingClient| {
        let outcomes = outcomes.clone();
        let trial = Trial::test(format!("{} reconnects", client.name), move || {
            let reactions = Runtime::new()?.block_on(scene::run(client));
            outcomes.extend(reactions);
            Ok(())
        });
        let needs = format!("needs {}", client.needs);
        trial.with_kind(needs).with_ignored_flag(true)
    };
    client::ALL.iter().map(trial).collect()
}
