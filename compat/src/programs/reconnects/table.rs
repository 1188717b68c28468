//! The table of the codes after which clients come back.

use std::fmt::Write;
use std::time::Duration;

use super::client::{self, Client};
use super::{Cell, Ending, Outcome};
use crate::programs::table::asked_version;
use crate::table::number;

/// The table in Markdown: a row for each client, a column for each ending, and the reasons below.
pub(crate) fn table(outcomes: &[Outcome]) -> String {
    let heads = Ending::ALL.map(head).join(" | ");
    let mut table = format!("| client | waits for | {heads} |\n|---|---|");
    table.push_str(&"---|".repeat(Ending::ALL.len()));
    let mut whys: Vec<&'static str> = Vec::new();
    for client in client::ALL {
        let version = asked_version(client.runs_on, client.package);
        let (name, waits) = (client.name, waits(client));
        write!(table, "\n| {name} {version} | {waits} |").expect("memory");
        for ending in Ending::ALL {
            let seen = outcomes
                .iter()
                .find(|outcome| outcome.client.name == name && outcome.ending == ending)
                .expect("every ending was played");
            match (seen.cell, client.stays_away_after(ending)) {
                (Cell::StaysAway, Some(why)) => {
                    write!(table, " no [{}] |", number(&mut whys, why)).expect("memory");
                }
                _ => table.push_str(" yes |"),
            }
        }
    }
    table.push('\n');
    for (at, why) in whys.iter().enumerate() {
        write!(table, "\n{}. {why}", at + 1).expect("memory");
    }
    table.push('\n');
    table
}

fn head(ending: Ending) -> String {
    match ending {
        Ending::Default => "default".to_owned(),
        Ending::Close(code, _) => code.to_string(),
        Ending::NoFrame => "no frame".to_owned(),
    }
}

fn waits(client: &Client) -> String {
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
