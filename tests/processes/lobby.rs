//! The lobby example as a process: scores survive a killed or stopped player who comes back in time.
//!
//! A process with the role `role-lobby-server` is the example, one with `role-lobby-by-hand` the same
//! program without the crate, and one with `role-player` a client of them.

use std::io::{Read, Write, stdin};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tungstenite::{Message, client};

use crate::child::{PATIENCE, Process};
use crate::examples::lobby;
use crate::harness::Trial;
use crate::{lobby_by_hand, roles};

pub(crate) const SERVER: &str = "role-lobby-server";
pub(crate) const BY_HAND: &str = "role-lobby-by-hand";
pub(crate) const PLAYER: &str = "role-player";

pub(crate) fn server(args: Vec<String>) -> ExitCode {
    roles::serve(lobby::run(args))
}

pub(crate) fn by_hand(args: Vec<String>) -> ExitCode {
    roles::serve(lobby_by_hand::run(args))
}

pub(crate) fn trials() -> Vec<Trial> {
    let example: [(&str, fn()); 3] = [
        (
            "a_killed_player_keeps_the_score_for_the_grace_period",
            || killed(SERVER),
        ),
        ("a_player_comes_back_before_the_old_connection_ends", || {
            stopped(SERVER)
        }),
        ("a_request_without_a_user_is_refused", no_user),
    ];
    // What the guide compares must do the same.
    let by_hand: [(&str, fn()); 2] = [
        (
            "a_killed_player_keeps_the_score_for_the_grace_period",
            || killed(BY_HAND),
        ),
        ("a_player_comes_back_before_the_old_connection_ends", || {
            stopped(BY_HAND)
        }),
    ];
    let mut trials = crate::trials("lobby", example);
    trials.extend(crate::trials("lobby_by_hand", by_hand));
    trials
}

/// Connects to `addr` as `user`, sends each line of its stdin, and prints each message.
pub(crate) fn player(addr: &str, user: &str) -> ExitCode {
    let stream = TcpStream::connect(addr).unwrap();
    let (mut socket, _) = client(format!("ws://{addr}/ws?user={user}"), stream).unwrap();
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => println!("{text}"),
            Ok(_) => continue,
            Err(_) => return ExitCode::FAILURE,
        }
        let mut line = String::new();
        stdin().read_line(&mut line).unwrap();
        socket.send(Message::text(line.trim())).unwrap();
    }
}

fn killed(server: &str) {
    let lobby = Lobby::open(server, "1500");
    let mut player = lobby.enter("alice%20b");
    assert_eq!(player.line(), "score 0");
    player.write("+5");
    assert_eq!(player.line(), "score 5");
    assert_eq!(lobby.state("alice b"), json!(["connected", 5]));
    player.signal(Signal::SIGKILL);
    lobby.until(|lobby| lobby.state("alice b") == json!(["lingering", 5]));

    let mut player = lobby.enter("alice%20b");
    assert_eq!(player.line(), "score 5");
    player.write("+2");
    assert_eq!(player.line(), "score 7");
    assert_eq!(lobby.players()["left"], json!({}));
    player.signal(Signal::SIGKILL);
    let begun = Instant::now();
    lobby.until(|lobby| lobby.players()["left"] == json!({ "alice b": 1 }));
    assert!(begun.elapsed() >= Duration::from_millis(1400), "{begun:?}");
    assert_eq!(lobby.players()["players"], json!([]));

    let mut player = lobby.enter("alice%20b");
    assert_eq!(player.line(), "score 0");
    assert_eq!(lobby.players()["left"], json!({ "alice b": 1 }));
}

fn stopped(server: &str) {
    let lobby = Lobby::open(server, "600000");
    let mut old = lobby.enter("bob");
    assert_eq!(old.line(), "score 0");
    old.write("+1");
    assert_eq!(old.line(), "score 1");
    old.stop();
    let mut new = lobby.enter("bob");
    assert_eq!(new.line(), "score 1");
    new.write("+1");
    assert_eq!(new.line(), "score 2");
    let expected = json!([{ "user": "bob", "state": "connected", "score": 2 }]);
    assert_eq!(lobby.players(), json!({ "players": expected, "left": {} }));
}

fn no_user() {
    let lobby = Lobby::open(SERVER, "1000");
    for query in ["", "?user=", "?name=x", "?user=%ff"] {
        let stream = TcpStream::connect(&lobby.addr).unwrap();
        let refused = client(format!("ws://{}/ws{query}", lobby.addr), stream);
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("400"), "{query}: {error}");
    }
}

struct Lobby {
    addr: String,
    _server: Process,
}

impl Lobby {
    fn open(server: &str, grace_ms: &str) -> Self {
        let flags = ["--addr", "127.0.0.1:0", "--grace-ms", grace_ms];
        let mut server = Process::start(&[&[server], &flags[..]].concat());
        let line = server.line();
        let addr = line.strip_prefix("listening on ").expect("the address");
        Self {
            addr: addr.to_owned(),
            _server: server,
        }
    }

    fn enter(&self, user: &str) -> Process {
        Process::start(&[PLAYER, &self.addr, user])
    }

    fn players(&self) -> Value {
        let mut http = TcpStream::connect(&self.addr).unwrap();
        http.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = "GET /players HTTP/1.1\r\nhost: lobby\r\nconnection: close\r\n\r\n";
        http.write_all(request.as_bytes()).unwrap();
        let mut response = String::new();
        http.read_to_string(&mut response).unwrap();
        let (_, body) = response.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap()
    }

    /// State and score of a player who has a seat.
    fn state(&self, user: &str) -> Value {
        let players = self.players();
        let mut players = players["players"].as_array().unwrap().iter();
        let player = players.find(|player| player["user"] == user);
        player.map_or(Value::Null, |player| {
            json!([player["state"], player["score"]])
        })
    }

    fn until(&self, condition: impl Fn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < end, "{}", self.players());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
