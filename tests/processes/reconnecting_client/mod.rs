//! The reconnecting_client example as a process, against servers that fail or refuse.
//!
//! The server is the echo example, which is killed, stopped or cut off, or an in-process server
//! that closes, refuses or misbehaves ([`processes`]).

mod processes;

pub(crate) use processes::CLIENT;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use processes::{PATIENCE, Process, Relay, answer, client, close, echo_all, serve, serve_on};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::derive_accept_key;
use tungstenite::{Error, HandshakeError, Message, WebSocket};

use crate::examples::reconnecting_client;
use crate::harness::Trial;
use crate::roles;

/// Short backoff, with the default heartbeat: no server is declared dead.
const QUICK: [&str; 4] = ["--min-backoff-ms", "25", "--max-backoff-ms", "100"];
/// A heartbeat that finds a silent server in 2.5 s.
const HEARTBEAT: [&str; 4] = ["--interval-ms", "500", "--timeout-ms", "2000"];
/// Tolerance on wall-clock bounds for a loaded machine.
const SLACK: Duration = Duration::from_secs(8);

pub(crate) fn role(args: Vec<String>) -> ExitCode {
    let run = reconnecting_client::run(args);
    roles::runtime().block_on(run).unwrap()
}

pub(crate) fn trials() -> Vec<Trial> {
    let tests: [(&str, fn()); 15] = [
        ("lines_are_sent_and_their_echoes_printed", echoes),
        ("ctrl_c_closes_with_1000", interrupted),
        ("ctrl_c_ends_the_wait_for_a_server", interrupted_alone),
        ("waiting_lines_are_sent_before_it_closes", piped),
        (
            "does_not_wait_long_for_the_close_frame_of_a_silent_server",
            mute,
        ),
        ("reconnects_when_a_killed_server_is_restarted", restarted),
        ("finds_a_stopped_server_by_its_own_heartbeat", stopped),
        ("takes_the_seat_of_its_own_half_open_connection", cut_off),
        ("an_unanswered_attempt_times_out", unanswered),
        ("a_frame_in_the_segment_of_the_101_is_not_lost", early_frame),
        ("close_codes_decide_what_follows", close_codes),
        ("http_statuses_decide_what_follows", http_statuses),
        ("delays_grow_for_a_server_that_closes_at_once", hung_up),
        ("the_backoff_restarts_after_a_stable_connection", held),
        ("many_clients_reconnect_at_different_times", herd),
    ];
    crate::trials("reconnecting_client", tests)
}

// Opening and closing.

fn echoes() {
    let (mut server, addr) = processes::echo("127.0.0.1:0", &[]);
    let mut client = client(&addr, &[]);
    assert_eq!(client.expect("connecting")["attempt"], 1);
    let open = client.expect("open");
    assert_eq!(open["resumed"], false);
    assert_eq!(server.wait("open")["session"], open["session"]);

    client.write("one");
    client.write("two");
    assert_eq!(client.expect("message")["text"], "one");
    assert_eq!(client.expect("message")["text"], "two");

    client.end_stdin();
    expect_normal_close(&mut client, &mut server);
}

fn interrupted() {
    let (mut server, addr) = processes::echo("127.0.0.1:0", &[]);
    let mut client = client(&addr, &[]);
    client.wait("open");
    client.signal(Signal::SIGINT);
    expect_normal_close(&mut client, &mut server);
}

fn piped() {
    let listener = bound();
    let addr = address(&listener).to_string();
    let mut client = client(&addr, &QUICK);
    let lines = ["one", "two", "three"];
    lines.iter().for_each(|line| client.write(line));
    client.end_stdin();
    // No server listens, and the client has had time to see the end of stdin.
    for _ in 0..5 {
        client.wait("failed");
    }
    listener.listen(8).unwrap();
    serve_on(listener.into(), |_, io| echo_all(io));
    for line in lines {
        assert_eq!(client.wait("message")["text"], line);
    }
    assert_eq!(client.wait("stopped")["code"], 1000);
    assert_eq!(client.exit_status(), 0);
}

fn mute() {
    let (server, addr) = processes::echo("127.0.0.1:0", &[]);
    let mut client = client(&addr, &[]);
    client.wait("open");
    server.stop();
    client.end_stdin();
    // Bounded by the layer's `close_timeout`. The heartbeat would take most of a minute.
    let begun = Instant::now();
    assert_eq!(client.exit_status(), 0);
    assert!(begun.elapsed() < Duration::from_secs(5) + SLACK);
}

/// Asserts that the client sent Close 1000, and that nothing else ended the connection.
fn expect_normal_close(client: &mut Process, server: &mut Process) {
    assert_eq!(client.wait("stopped")["code"], 1000);
    assert_eq!(client.exit_status(), 0);
    let eviction = server.wait_for("an eviction", |event| event["reason"].is_string());
    assert_eq!(eviction["reason"], "peer_closed");
}

fn interrupted_alone() {
    // The port is bound, so that no other process gets it, and not listening.
    let closed_port = bound();
    let flags = ["--min-backoff-ms", "3600000", "--max-backoff-ms", "3600000"];
    let mut client = client(&address(&closed_port).to_string(), &flags);
    assert!(client.wait("failed")["error"].is_string());
    client.wait("retry_in");
    client.signal(Signal::SIGINT);
    assert_eq!(client.exit_status(), 0);
}

fn bound() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any_port.into()).unwrap();
    socket
}

fn address(socket: &Socket) -> SocketAddr {
    socket.local_addr().unwrap().as_socket().unwrap()
}

// Servers that fail.

fn restarted() {
    let (server, addr) = processes::echo("127.0.0.1:0", &[]);
    let mut client = client(&addr, &QUICK);
    let first = client.wait("open");
    server.signal(Signal::SIGKILL);
    let lost = client.wait("lost");
    let reasons = ["peer_vanished", "transport"];
    assert!(
        reasons.contains(&lost["reason"].as_str().unwrap()),
        "{lost}"
    );
    // No server listens, so this line waits.
    client.wait("failed");
    client.write("meanwhile");

    drop(server);
    let (mut server, _) = processes::echo(&addr, &[]);
    let second = client.wait("open");
    assert_eq!(second["session"], first["session"]);
    assert_eq!(second["resumed"], true);
    assert_eq!(server.wait("open")["session"], first["session"]);
    assert_eq!(client.expect("message")["text"], "meanwhile");
    // The client exits at the end of stdin only after its lines are sent.
    client.write("last");
    client.end_stdin();
    assert_eq!(client.expect("message")["text"], "last");
    assert_eq!(client.exit_status(), 0);
}

fn stopped() {
    let (mut server, addr) = processes::echo("127.0.0.1:0", &[]);
    let flags = [&QUICK[..], &HEARTBEAT, &["--connect-timeout-ms", "700"]].concat();
    let mut client = client(&addr, &flags);
    let first = client.wait("open");
    server.wait("open");
    client.write("alive");
    client.wait("message");

    let stopped = Instant::now();
    server.stop();
    assert_eq!(client.expect("lost")["reason"], "heartbeat_timeout");
    let took = stopped.elapsed();
    assert!(took < Duration::from_millis(2500) + SLACK, "{took:?}");
    // The server's kernel still accepts connections, but no handshake is answered.
    assert_eq!(client.wait("failed")["error"], "connect_timeout");

    server.signal(Signal::SIGCONT);
    let again = client.wait("open");
    assert_eq!(again["session"], first["session"]);
    client.write("back");
    client.wait_for("the echo", |event| event["text"] == "back");
}

fn cut_off() {
    // The server's own heartbeat is too slow to find the dead connection.
    let (mut server, addr) = processes::echo("127.0.0.1:0", &["--interval-ms", "600000"]);
    let relay = Relay::to(&addr);
    let mut client = client(&relay.addr, &[&QUICK[..], &HEARTBEAT].concat());
    let session = client.wait("open")["session"].clone();
    let older = server.wait("open");

    relay.swallow();
    assert_eq!(client.expect("lost")["reason"], "heartbeat_timeout");
    assert_eq!(client.wait("open")["session"], session);
    let evicted = server.wait_for("an eviction", |event| event["reason"].is_string());
    assert_eq!(evicted["reason"], "replaced");
    assert_eq!(evicted["id"], older["id"]);
    assert_eq!(evicted["session"], session);

    // Another client with the same id. The replaced client does not take the seat back.
    let mut rival = attempt(&relay.addr, &session, 1000).unwrap();
    assert_eq!(client.wait("stopped")["code"], 4000);
    assert_eq!(client.exit_status(), 3);

    // An earlier attempt that the server answers only now.
    assert_eq!(attempt(&relay.addr, &session, 999).unwrap_err(), 409);
    rival.send(Message::text("unharmed")).unwrap();
    assert_eq!(rival.read().unwrap(), Message::text("unharmed"));
}

/// Connects, or returns the HTTP status of the refusal.
fn attempt(addr: &str, session: &Value, number: u64) -> Result<WebSocket<TcpStream>, u16> {
    let mut request = format!("ws://{addr}/ws").into_client_request().unwrap();
    let session = session.as_str().unwrap().parse().unwrap();
    let headers = request.headers_mut();
    headers.insert("session-id", session);
    headers.insert("session-attempt", number.into());
    let io = TcpStream::connect(addr).unwrap();
    io.set_read_timeout(Some(PATIENCE)).unwrap();
    match tungstenite::client(request, io) {
        Ok((socket, _)) => Ok(socket),
        Err(HandshakeError::Failure(Error::Http(response))) => Err(response.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

fn unanswered() {
    let listener = bound();
    listener.listen(0).unwrap();
    let addr = address(&listener);
    // The kernel drops SYNs while the listener's accept queue is full.
    let mut queued = Vec::new();
    while let Ok(io) = TcpStream::connect_timeout(&addr, Duration::from_millis(500)) {
        queued.push(io);
    }

    let begun = Instant::now();
    let flags = [&QUICK[..], &["--connect-timeout-ms", "800"]].concat();
    let mut client = client(&addr.to_string(), &flags);
    client.expect("connecting");
    assert_eq!(client.expect("failed")["error"], "connect_timeout");
    assert!(begun.elapsed() >= Duration::from_millis(800));
    client.expect("retry_in");

    drop(queued);
    serve_on(listener.into(), |_, io| echo_all(io));
    client.wait("open");
}

// Responses and frames of the server.

fn early_frame() {
    let printed = Arc::new(Barrier::new(2));
    let go_on = Arc::clone(&printed);
    let addr = serve(move |_, io| {
        let mut io = answer(io, |key| {
            let accept = derive_accept_key(key.as_bytes());
            let head = format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\
                 Upgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
            );
            // A complete message, and half of another.
            [head.as_bytes(), b"\x81\x05early\x81\x04la"].concat()
        });
        go_on.wait();
        io.write_all(b"te").unwrap();
        while let Ok(1..) = io.read(&mut [0; 64]) {}
    });
    let mut client = client(&addr, &[]);
    client.wait("open");
    assert_eq!(client.expect("message")["text"], "early");
    printed.wait();
    assert_eq!(client.expect("message")["text"], "late");
}

fn close_codes() {
    let flags = [&QUICK[..], &["--restart-ms", "300"]].concat();
    for (code, status) in [
        (1000, 0),
        (1002, 3),
        (1008, 3),
        (3000, 3),
        (4000, 3),
        (4999, 3),
    ] {
        let addr = serve(move |_, io| close(tungstenite::accept(io).unwrap(), code));
        let mut client = client(&addr, &flags);
        assert_eq!(client.wait("lost")["code"], code);
        assert_eq!(client.expect("stopped")["code"], code);
        assert_eq!(client.exit_status(), status);
    }
    for (code, floor, ceiling) in [
        (1001, 0, 300),
        (1012, 0, 300),
        (1013, 50, 100),
        (1011, 0, 25),
        (3008, 0, 25),
    ] {
        let addr = serve(move |number, io| match number {
            0 => close(tungstenite::accept(io).unwrap(), code),
            _ => echo_all(io),
        });
        let mut client = client(&addr, &flags);
        let first = client.wait("open");
        assert_eq!(client.expect("lost")["code"], code);
        let delay = client.expect("retry_in");
        assert_eq!(delay["ceiling_ms"], ceiling, "{code}");
        assert!(delay["ms"].as_u64().unwrap() >= floor, "{code}: {delay}");
        let second = client.wait("open");
        assert_eq!(second["session"], first["session"]);
    }
}

fn http_statuses() {
    let respond = |head: &'static str| {
        serve(move |number, io| match number {
            0 => drop(answer(io, |_| {
                format!("HTTP/1.1 {head}\r\ncontent-length: 0\r\n\r\n").into_bytes()
            })),
            _ => echo_all(io),
        })
    };
    for (head, code) in [("401 Unauthorized", 401), ("403 Forbidden", 403)] {
        let mut client = client(&respond(head), &QUICK);
        assert_eq!(client.wait("refused")["http"], code);
        assert_eq!(client.expect("stopped")["code"], code);
        assert_eq!(client.exit_status(), 4);
    }
    for (head, floor, ceiling) in [
        ("503 Service Unavailable\r\nRetry-After: 1", 1000, 1025),
        ("429 Too Many Requests\r\nRetry-After: 1", 1000, 1025),
        (
            "503 Service Unavailable\r\nRetry-After: Fri, 31 Dec 1999 23:59:59 GMT",
            50,
            100,
        ),
        ("502 Bad Gateway", 0, 25),
    ] {
        let begun = Instant::now();
        let mut client = client(&respond(head), &QUICK);
        client.wait("refused");
        let delay = client.expect("retry_in");
        assert_eq!(delay["ceiling_ms"], ceiling, "{head}");
        assert!(delay["ms"].as_u64().unwrap() >= floor, "{head}: {delay}");
        client.wait("open");
        assert!(begun.elapsed() >= Duration::from_millis(floor), "{head}");
    }
}

// Delays.

fn hung_up() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    let addr = serve(move |_, io| {
        counter.fetch_add(1, Ordering::SeqCst);
        drop(tungstenite::accept(io));
    });
    let begun = Instant::now();
    let mut client = client(&addr, &QUICK);
    let delays: Vec<_> = std::iter::repeat_with(|| {
        client.expect("connecting");
        client.expect("open");
        client.expect("lost");
        let delay = client.expect("retry_in");
        let of = |key: &str| delay[key].as_u64().unwrap();
        (of("ms"), of("ceiling_ms"))
    })
    .take(60)
    .collect();
    let took = begun.elapsed();

    let ceilings: Vec<_> = delays.iter().map(|delay| delay.1).collect();
    assert_eq!(ceilings[..3], [25, 50, 100]);
    assert!(
        ceilings[3..].iter().all(|&ceiling| ceiling == 100),
        "{ceilings:?}"
    );
    assert!(
        delays.iter().all(|(drawn, ceiling)| drawn <= ceiling),
        "{delays:?}"
    );
    // Full jitter: any delay below the ceiling. That none is in the first quarter, or none in the
    // last, happens by chance once in millions of runs.
    let at_the_top = &delays[3..];
    assert!(
        at_the_top.iter().any(|(drawn, _)| *drawn < 25),
        "{delays:?}"
    );
    assert!(
        at_the_top.iter().any(|(drawn, _)| *drawn >= 75),
        "{delays:?}"
    );
    // The client also waited for the delays that it drew.
    let drawn: u64 = delays[..59].iter().map(|delay| delay.0).sum();
    assert!(took >= Duration::from_millis(drawn), "{took:?} {drawn}");
    assert!((60..=61).contains(&calls.load(Ordering::SeqCst)));
}

fn held() {
    let addr = serve(|number, io| {
        let socket = tungstenite::accept(io).unwrap();
        if number == 5 {
            // Longer than the connection takes to count as stable. The others end immediately.
            std::thread::sleep(Duration::from_secs(4));
        }
        drop(socket);
    });
    let mut client = client(&addr, &[&QUICK[..], &["--stable-ms", "3000"]].concat());
    let mut next = || client.wait("retry_in")["ceiling_ms"].as_u64().unwrap();
    let ceilings: Vec<_> = std::iter::repeat_with(&mut next).take(7).collect();
    assert_eq!(ceilings, [25, 50, 100, 100, 100, 25, 50]);
}

fn herd() {
    const MEMBERS: usize = 24;
    let all_there = Arc::new(Barrier::new(MEMBERS));
    let addr = serve(move |number, io| {
        if number >= MEMBERS {
            return echo_all(io);
        }
        let socket = tungstenite::accept(io).unwrap();
        all_there.wait();
        close(socket, 1012);
    });
    let flags = [&QUICK[..], &["--restart-ms", "2000"]].concat();
    let mut clients: Vec<_> = (0..MEMBERS).map(|_| client(&addr, &flags)).collect();
    let mut delays = Vec::new();
    let mut sessions = std::collections::BTreeSet::new();
    for client in &mut clients {
        assert_eq!(client.wait("lost")["code"], 1012);
        delays.push(client.expect("retry_in")["ms"].as_u64().unwrap());
        let open = client.wait("open");
        sessions.insert(open["session"].as_str().unwrap().to_owned());
    }
    assert_eq!(sessions.len(), MEMBERS, "an id for each");
    // That all draw the same half happens by chance once in millions of runs.
    assert!(delays.iter().any(|&drawn| drawn < 1000), "{delays:?}");
    assert!(delays.iter().any(|&drawn| drawn >= 1000), "{delays:?}");
    delays.sort_unstable();
    delays.dedup();
    assert!(delays.len() > MEMBERS / 2, "in step: {delays:?}");
}
