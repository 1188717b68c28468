//! Stops a client's process until all its connections have ended, and records its reactions.

use std::time::{Duration, Instant};

use super::client::ReconnectingClient;
use super::server::EndingServer;
use super::{Ending, Reaction, ReconnectOutcome};
use crate::programs::process::Process;
use crate::support::{ms, never};

/// Extra time for the reconnect on a busy machine.
const SLACK: Duration = Duration::from_secs(10);

/// How long a client is watched after all expected reconnects.
const WATCHED_AFTER: Duration = Duration::from_secs(1);

/// A client's report about a connection.
#[derive(Debug, PartialEq, Eq)]
enum Report {
    /// The library reports it as connected.
    Connected,
    /// The WebSocket has closed, with this code and reason.
    Closed(u16, String),
    /// The library has given up reconnecting.
    GaveUp,
}

pub(super) async fn run(client: &'static ReconnectingClient) -> Vec<ReconnectOutcome> {
    let server = EndingServer::start(client.protocol).await;
    let names = Ending::ALL.map(Ending::name);
    let arguments = [server.addr.to_string()].into_iter().chain(names);
    let mut process = Process::spawn(client.runs_on, client.script, arguments);

    let mut connected = Vec::new();
    while connected.len() < Ending::ALL.len() {
        let (ending, report) = report(&mut process, client).await;
        assert_eq!(report, Report::Connected, "{ending:?}");
        assert!(!connected.contains(&ending), "{ending:?} connected twice");
        connected.push(ending);
    }

    process.stop();
    server.expect_ends().await;
    process.resume();
    let since = Instant::now();

    let mut closed = Vec::new();
    let mut outcomes = Vec::new();
    while outcomes.len() < Ending::ALL.len() {
        let (ending, report) = report(&mut process, client).await;
        let reaction = match report {
            Report::Closed(code, reason) => {
                assert_eq!((code, reason.as_str()), ending.reported(), "{ending:?}");
                closed.push(ending);
                continue;
            }
            Report::Connected => {
                assert_reconnect_expected(client, ending, since.elapsed());
                Reaction::Reconnects
            }
            Report::GaveUp => {
                eprintln!("{}: {ending:?}: gives up", client.name);
                let reason = client.no_reconnect_after(ending);
                assert!(reason.is_some(), "{} after {ending:?}", client.name);
                Reaction::StaysDisconnected
            }
        };
        assert!(
            closed.contains(&ending),
            "{ending:?}: {reaction:?} before its end"
        );
        outcomes.push(ReconnectOutcome {
            client,
            ending,
            reaction,
        });
    }
    never("another report", WATCHED_AFTER, process.next_line()).await;
    server.assert_ended_once();
    outcomes
}

fn assert_reconnect_expected(client: &ReconnectingClient, ending: Ending, after: Duration) {
    eprintln!("{}: {ending:?}: reconnected after {after:.1?}", client.name);
    let reason = client.no_reconnect_after(ending);
    assert!(
        reason.is_none(),
        "{} reconnected after {ending:?}",
        client.name
    );
    let (least, most) = client.waits;
    // Node.js timers count whole milliseconds, and may count a started one as whole.
    let least = least.saturating_sub(ms(2));
    assert!((least..most + SLACK).contains(&after), "{after:?}");
}

async fn report(process: &mut Process, client: &ReconnectingClient) -> (Ending, Report) {
    let line = process.next_line().await;
    let line = line.unwrap_or_else(|| panic!("{} has ended: is it installed?", client.needs));
    let mut words = line.splitn(4, ' ');
    let (what, which) = (words.next(), words.next().unwrap_or_default());
    let ending = Ending::ALL
        .into_iter()
        .find(|ending| ending.name() == which);
    let ending = ending.unwrap_or_else(|| panic!("{line}"));
    let report = match what {
        Some("connected") => Report::Connected,
        Some("gave_up") => Report::GaveUp,
        Some("closed") => {
            let code = words.next().and_then(|code| code.parse().ok());
            let reason = words.next().unwrap_or_default();
            Report::Closed(code.expect(&line), reason.to_owned())
        }
        _ => panic!("{line}"),
    };
    (ending, report)
}
