//! A client whose process is stopped until all of its connections have ended.

use std::time::{Duration, Instant};

use super::client::Client;
use super::server::Server;
use super::{Cell, Ending, Outcome};
use crate::programs::process::Process;
use crate::support::{ms, never};

/// How much longer than it says a client may take on a busy machine.
const SLACK: Duration = Duration::from_secs(10);

/// For how long a client that stays away is watched after the others have come back.
const WATCHED: Duration = Duration::from_secs(1);

/// What a client reports of a connection.
#[derive(Debug, PartialEq, Eq)]
enum Report {
    /// The library calls it connected.
    Connected,
    /// The WebSocket has closed, with this code and reason.
    Closed(u16, String),
    /// The library calls it ended for good.
    Over,
}

pub(super) async fn play(client: &'static Client) -> Vec<Outcome> {
    let server = Server::start(client.dialect).await;
    let words = Ending::ALL.map(Ending::word);
    let arguments = [server.addr.to_string()].into_iter().chain(words);
    let mut process = Process::spawn(client.runs_on, client.script, arguments);

    let mut connected = Vec::new();
    while connected.len() < Ending::ALL.len() {
        let (ending, report) = report(&mut process, client).await;
        assert_eq!(report, Report::Connected, "{ending:?}");
        assert!(!connected.contains(&ending), "{ending:?} connected twice");
        connected.push(ending);
    }

    process.stop();
    server.ended().await;
    process.go_on();
    let since = Instant::now();

    let mut closed = Vec::new();
    let mut outcomes = Vec::new();
    while outcomes.len() < Ending::ALL.len() {
        let (ending, report) = report(&mut process, client).await;
        let cell = match report {
            Report::Closed(code, reason) => {
                assert_eq!((code, reason.as_str()), ending.reported(), "{ending:?}");
                closed.push(ending);
                continue;
            }
            Report::Connected => {
                came_back(client, ending, since.elapsed());
                Cell::ComesBack
            }
            Report::Over => {
                eprintln!("{}: {ending:?}: gives up", client.name);
                let why = client.stays_away_after(ending);
                assert!(why.is_some(), "{} after {ending:?}", client.name);
                Cell::StaysAway
            }
        };
        assert!(
            closed.contains(&ending),
            "{ending:?}: {cell:?} before its end"
        );
        outcomes.push(Outcome {
            client,
            ending,
            cell,
        });
    }
    never("another word", WATCHED, process.next_line()).await;
    server.assert_ended_once();
    outcomes
}

fn came_back(client: &Client, ending: Ending, after: Duration) {
    eprintln!("{}: {ending:?}: back after {after:.1?}", client.name);
    let why = client.stays_away_after(ending);
    assert!(why.is_none(), "{} came back after {ending:?}", client.name);
    let (least, most) = client.waits;
    // Node.js' timers count whole milliseconds, and may count the one that has begun.
    let least = least.saturating_sub(ms(2));
    assert!((least..most + SLACK).contains(&after), "{after:?}");
}

async fn report(process: &mut Process, client: &Client) -> (Ending, Report) {
    let line = process.next_line().await;
    let line = line.unwrap_or_else(|| panic!("{} has ended: is it installed?", client.needs));
    let mut words = line.splitn(4, ' ');
    let (what, which) = (words.next(), words.next().unwrap_or_default());
    let ending = Ending::ALL
        .into_iter()
        .find(|ending| ending.word() == which);
    let ending = ending.unwrap_or_else(|| panic!("{line}"));
    let report = match what {
        Some("connected") => Report::Connected,
        Some("over") => Report::Over,
        Some("closed") => {
            let code = words.next().and_then(|code| code.parse().ok());
            let reason = words.next().unwrap_or_default();
            Report::Closed(code.expect(&line), reason.to_owned())
        }
        _ => panic!("{line}"),
    };
    (ending, report)
}
