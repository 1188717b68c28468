//! Generates the table of codes after which clients reconnect.

use std::fmt::Write;
use std::time::Duration;

use super::client::{self, ReconnectingClient};
use super::{Ending, Reaction, ReconnectOutcome};
use crate::programs::table::required_version;
use crate::table::number;

/// Returns the table in Markdown: a row for each client, a column for each ending, and the reasons
/// below.
pub(crate) fn table(outcomes: &[ReconnectOutcome]) -> String {
    let headings = Ending::ALL.map(heading).join(" | ");
    let mut table = format!("| client | waits for | {headings} |\n|---|---|");
    table.push_str(&"---|".repeat(Ending::ALL.len()));
    let mut reasons: Vec<&'static str> = Vec::new();
    for client in client::ALL {
        let version = required_version(client.runs_on, client.package);
        let (name, waits) = (client.name, waits(client));
        write!(table, "\n| {name} {version} | {waits} |").expect("a write to a string");
        for ending in Ending::ALL {
            let outcome = outcomes
                .iter()
                .find(|outcome| outcome.client.name == name && outcome.ending == ending)
                .expect("every ending has an outcome");
            match (outcome.reaction, client.no_reconnect_after(ending)) {
                (Reaction::StaysDisconnected, Some(reason)) => {
                    write!(table, " no ({}) |", number(&mut reasons, reason))
                        .expect("a write to a string");
                }
                _ => table.push_str(" yes |"),
            }
        }
    }
    table.push('\n');
    for (at, reason) in reasons.iter().enumerate() {
        write!(table, "\n{}. {reason}", at + 1).expect("a write to a string");
    }
    table.push('\n');
    table
}

fn heading(ending: Ending) -> String {
    match ending {
        Ending::Default => "default".to_owned(),
        Ending::Close(code, _) => code.to_string(),
        Ending::NoFrame => "no frame".to_owned(),
    }
}

fn waits(client: &ReconnectingClient) -> String {
    let (least, most) = client.waits;
    match least == most {
        true if most.is_zero() => "nothing".to_owned(),
        true => format!("{} ms", most.as_millis()),
        false => format!("{} to {} s", seconds(least), seconds(most)),
    }
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}
