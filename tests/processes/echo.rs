//! The echo example: servers that must notice killed and stopped clients, and clients that must be
//! spared.

use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::Trial;
use crate::process::{Client, Server};
use crate::roles;

/// Tolerance on wall-clock bounds for a loaded machine.
const SLACK: Duration = Duration::from_secs(4);

pub(crate) fn trials() -> Vec<Trial> {
    let tests: [(&str, fn()); 8] = [
        ("a_killed_client_is_evicted_immediately", killed),
        (
            "a_killed_client_of_an_http2_server_is_evicted_immediately",
            killed_http2,
        ),
        ("a_stopped_client_is_evicted_by_the_heartbeat", stopped),
        ("a_bare_server_does_not_notice_a_stopped_client", bare),
        (
            "a_client_that_resumes_before_the_deadline_is_not_evicted",
            resumed,
        ),
        ("a_stopped_server_evicts_no_client", stopped_server),
        (
            "of_many_clients_killed_at_once_each_is_reported_once",
            many_killed,
        ),
        ("a_client_that_only_answers_pings_is_idle", idle),
    ];
    crate::trials("echo", tests)
}

fn killed() {
    one_of_three_is_killed(&[], &[]);
}

fn killed_http2() {
    one_of_three_is_killed(&["--http2-only"], &[roles::HTTP2]);
}

fn one_of_three_is_killed(server_flags: &[&str], client_flags: &[&str]) {
    let heartbeat = ["--interval-ms", "500", "--timeout-ms", "60000"];
    let mut server = Server::start(&[&heartbeat[..], &["--log-evictions"], server_flags].concat());
    let mut before = Client::start(&server, client_flags);
    let spared = server.next_open();
    let mut victim = Client::start(&server, client_flags);
    let id = server.next_open();
    let mut after = Client::start(&server, client_flags);
    assert_ne!(server.next_open(), id);
    assert_ne!(spared, id);

    victim.signal(Signal::SIGKILL);
    let killed = Instant::now();
    let eviction = server.eviction_of(id);
    // The client's kernel closes the connection immediately, long before a ping could time out.
    assert!(eviction.at - killed <= SLACK, "{:?}", eviction.at - killed);
    let is_end = matches!(eviction.reason.as_str(), "peer_vanished" | "transport");
    assert!(is_end, "{eviction:?}");

    // The other clients are not affected, over several intervals.
    server.listen_for(Duration::from_millis(1500));
    before.echo("before");
    after.echo("after");
    assert_eq!(server.evictions().len(), 1, "{:?}", server.evictions());
}

fn stopped() {
    let timeout = Duration::from_millis(1500);
    let due = Duration::from_millis(300) + timeout * 2;
    let flags = [
        "--interval-ms",
        "300",
        "--timeout-ms",
        "1500",
        "--missed",
        "2",
    ];
    let mut server = Server::start(&[&flags[..], &["--log-evictions"]].concat());
    let mut neighbour = Client::start(&server, &[]);
    server.next_open();
    let mut victim = Client::start(&server, &[]);
    let id = server.next_open();

    victim.stop();
    let stopped = Instant::now();
    let eviction = server.eviction_of(id);
    assert_eq!(eviction.reason, "heartbeat_timeout", "{eviction:?}");
    let took = eviction.at - stopped;
    assert!(took <= due + SLACK, "{took:?}, {due:?} was due");
    // At most one ping was unanswered when the client stopped.
    assert!(took >= timeout, "{took:?} is early");

    neighbour.echo("alive");
    victim.signal(Signal::SIGCONT);
    victim.expect_closed();
    server.listen_for(due);
    neighbour.echo("alive still");
    assert_eq!(server.evictions().len(), 1, "{:?}", server.evictions());
}

/// The control: a server without the layers notices nothing in three times the bound.
fn bare() {
    let mut server = Server::start(&["--bare", "--log-evictions"]);
    let mut victim = Client::start(&server, &[]);
    victim.stop();
    sleep(Duration::from_secs(10));
    victim.signal(Signal::SIGCONT);
    victim.echo("the server has kept me");
    server.listen_for(Duration::from_millis(1));
    assert!(server.evictions().is_empty(), "{:?}", server.evictions());
}

fn resumed() {
    let timeout = Duration::from_secs(4);
    let flags = [
        "--interval-ms",
        "500",
        "--timeout-ms",
        "4000",
        "--log-evictions",
    ];
    let mut server = Server::start(&flags);
    for _ in 0..5 {
        let mut client = Client::start(&server, &[]);
        let id = server.next_open();
        client.stop();
        let stopped = Instant::now();
        sleep(timeout - Duration::from_secs(1));
        client.signal(Signal::SIGCONT);
        // A ping may have been unanswered when the client stopped. Its deadline is the earliest.
        if stopped.elapsed() >= timeout {
            continue; // the signal took a second to be delivered: this round proves nothing
        }
        server.listen_for(timeout + Duration::from_secs(1));
        client.echo("good morning");
        let gone = server.evictions().iter().any(|eviction| eviction.id == id);
        assert!(!gone, "{:?}", server.evictions());
        return;
    }
    panic!("no round in which the client resumed before the deadline");
}

/// A server that stands still for longer than its `timeout` sends a new ping before it evicts.
fn stopped_server() {
    let flags = [
        "--interval-ms",
        "500",
        "--timeout-ms",
        "500",
        "--log-evictions",
    ];
    let mut server = Server::start(&flags);
    let mut clients: Vec<_> = (0..3).map(|_| Client::start(&server, &[])).collect();
    // At a different point of the interval each time.
    for offset in [0, 170, 340] {
        sleep(Duration::from_millis(offset));
        server.stop();
        sleep(Duration::from_secs(2));
        clients.iter_mut().for_each(Client::drain_pings);
        server.signal(Signal::SIGCONT);
        for client in &mut clients {
            client.expect_ping();
        }
        server.listen_for(Duration::from_secs(2));
        assert!(server.evictions().is_empty(), "{:?}", server.evictions());
    }
    for client in &mut clients {
        client.echo("I was never away");
    }
}

fn many_killed() {
    let flags = [
        "--interval-ms",
        "500",
        "--timeout-ms",
        "60000",
        "--log-evictions",
    ];
    let mut server = Server::start(&flags);
    let mut spared = Client::start(&server, &[]);
    let spared_id = server.next_open();
    let mut victims = Vec::new();
    let mut ids = Vec::new();
    for _ in 0..20 {
        victims.push(Client::start(&server, &[]));
        ids.push(server.next_open());
    }
    for victim in &mut victims {
        victim.signal(Signal::SIGKILL);
    }
    for id in &ids {
        server.eviction_of(*id);
    }
    server.listen_for(Duration::from_millis(500));
    let mut evicted: Vec<u64> = server
        .evictions()
        .iter()
        .map(|eviction| eviction.id)
        .collect();
    evicted.sort_unstable();
    ids.sort_unstable();
    assert_eq!(evicted, ids);
    assert!(!evicted.contains(&spared_id));
    spared.echo("spared");
}

fn idle() {
    let flags = [
        "--interval-ms",
        "100",
        "--idle-ms",
        "3000",
        "--log-evictions",
    ];
    let mut server = Server::start(&flags);
    let mut talker = Client::start(&server, &[]);
    let talker_id = server.next_open();
    let mut listener = Client::start(&server, &[]);
    let id = server.next_open();
    let start = Instant::now();
    while server.evictions().is_empty() {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "no client is evicted as idle"
        );
        server.listen_for(Duration::from_millis(200));
        talker.echo("I have something to say");
    }
    listener.expect_closed();
    let eviction = server.eviction_of(id);
    assert_eq!(eviction.reason, "idle_timeout");
    assert!(eviction.lifetime_ms >= 3000, "{eviction:?}");
    let talked = server
        .evictions()
        .iter()
        .any(|eviction| eviction.id == talker_id);
    assert!(!talked, "{:?}", server.evictions());
}
