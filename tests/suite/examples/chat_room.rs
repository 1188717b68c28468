//! The chat example over the network: seats are taken, replaced and freed.

#[allow(dead_code, unreachable_pub)] // The example's `main` and its flags are unused here.
#[path = "../../../examples/chat.rs"]
mod chat;

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async, connect_async};
use tungstenite::Message;

use crate::support::raw::{Answer, RawClient};
use crate::support::{Server, in_memory, ms, within};

type Client = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn start_room() -> Server {
    let idle = Duration::from_secs(300);
    Server::start(chat::app(ms(100), ms(400), idle).unwrap()).await
}

async fn join(server: &Server, user: &str) -> Client {
    let (client, _) = connect_async(server.url(&format!("/ws/{user}")))
        .await
        .unwrap();
    client
}

/// Reads until a message of the room satisfies `wanted`.
async fn expect_line(client: &mut Client, what: &str, wanted: impl Fn(&Value) -> bool) {
    let line = async {
        while let Some(message) = client.next().await {
            if let Message::Text(text) = message.unwrap() {
                let line: Value = serde_json::from_str(&text).unwrap();
                if wanted(&line) {
                    return;
                }
            }
        }
        panic!("the room closed before: {what}");
    };
    within(what, line).await;
}

fn notice(text: &str) -> impl Fn(&Value) -> bool {
    move |line| {
        line["notice"]
            .as_str()
            .is_some_and(|notice| notice.contains(text))
    }
}

async fn get(server: &Server, path: &str) -> (String, Vec<u8>) {
    let io = TokioIo::new(TcpStream::connect(server.addr).await.unwrap());
    let (mut requests, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::get(path)
        .header("host", "chat")
        .body(Empty::<bytes::Bytes>::new())
        .unwrap();
    let response = within(path, requests.send_request(request)).await.unwrap();
    let content = response.headers()["content-type"]
        .to_str()
        .unwrap()
        .to_owned();
    let body = response.into_body().collect().await.unwrap();
    (content, body.to_bytes().to_vec())
}

async fn dashboard(server: &Server) -> Value {
    serde_json::from_slice(&get(server, "/sessions").await.1).unwrap()
}

fn users(dashboard: &Value) -> Vec<&str> {
    let sessions = dashboard["sessions"].as_array().unwrap();
    sessions
        .iter()
        .map(|session| session["user"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn users_talk_and_the_page_is_served() {
    let server = start_room().await;
    let (content, page) = get(&server, "/").await;
    assert!(content.starts_with("text/html"), "{content}");
    assert!(page.starts_with(b"<!doctype html>"));

    let mut alice = join(&server, "alice").await;
    expect_line(&mut alice, "alice's own notice", notice("alice is here")).await;
    let mut bob = join(&server, "bob").await;
    expect_line(&mut alice, "the notice of bob", notice("bob is here")).await;
    bob.send(Message::text("hello, <b>room</b>")).await.unwrap();
    expect_line(&mut alice, "bob's hello", |line| {
        line["from"] == "bob" && line["text"] == "hello, <b>room</b>"
    })
    .await;
    assert_eq!(users(&dashboard(&server).await), ["alice", "bob"]);
}

#[tokio::test]
async fn a_seat_is_freed_when_its_connection_ends_and_when_its_peer_falls_silent() {
    let server = start_room().await;
    let mut alice = join(&server, "alice").await;
    let bob = join(&server, "bob").await;
    expect_line(&mut alice, "the notice of bob", notice("bob is here")).await;
    drop(bob);
    expect_line(&mut alice, "the end of bob", notice("bob is gone")).await;

    // The client keeps its socket open and answers no pings.
    let silent = RawClient::connect(server.addr, "/ws/carol")
        .await
        .answering(Answer::Nothing);
    expect_line(
        &mut alice,
        "the end of carol",
        notice("carol is gone: heartbeat timeout"),
    )
    .await;

    let dashboard = dashboard(&server).await;
    assert_eq!(users(&dashboard), ["alice"]);
    let reasons: Vec<&Value> = dashboard["evictions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|gone| &gone["reason"])
        .collect();
    assert_eq!(reasons[0], "heartbeat_timeout");
    assert_eq!(reasons.len(), 2);
    drop(silent);
}

#[tokio::test]
async fn a_reconnected_user_keeps_the_seat_when_the_old_connection_ends() {
    let server = start_room().await;
    let mut old = join(&server, "alice").await;
    expect_line(&mut old, "alice's own notice", notice("alice is here")).await;
    let mut new = join(&server, "alice").await;
    expect_line(&mut new, "the second notice", notice("alice is here again")).await;

    let close = within("the end of the old seat", async {
        loop {
            if let Message::Close(frame) = old.next().await.unwrap().unwrap() {
                return frame.unwrap();
            }
        }
    })
    .await;
    assert_eq!(u16::from(close.code), 4000);
    drop(old);

    let gone = within("the eviction of the old connection", async {
        loop {
            let dashboard = dashboard(&server).await;
            if let Some(gone) = dashboard["evictions"].get(0) {
                return gone.clone();
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(gone["reason"], "replaced");
    let mut bob = join(&server, "bob").await;
    expect_line(&mut new, "the notice of bob", notice("bob is here")).await;
    bob.send(Message::text("still there?")).await.unwrap();
    expect_line(&mut new, "bob's question", |line| line["from"] == "bob").await;
    assert_eq!(users(&dashboard(&server).await), ["alice", "bob"]);
}

/// All clients stop reading at once, so one line finds every inbox full. Each eviction sends a
/// notice to the room, which must not evict the next client recursively: the stack is not deep
/// enough.
#[tokio::test]
async fn a_room_of_slow_readers_is_emptied_one_by_one() {
    const SLOW: usize = 500;
    let never = Duration::from_secs(3600);
    let app = chat::app(never, never, never).unwrap();
    let all_here = Arc::new(Barrier::new(SLOW + 1));
    let last = notice("last is here");
    let last = Arc::new(last);
    for user in 0..SLOW {
        let io = in_memory(app.clone(), 256);
        let url = format!("ws://chat/ws/user-{user}");
        let (mut client, _) = client_async(url, io).await.unwrap();
        let (all_here, last) = (Arc::clone(&all_here), Arc::clone(&last));
        tokio::spawn(async move {
            let is_last = |message: Message| {
                let text = message.into_text().unwrap();
                last(&serde_json::from_str(&text).unwrap())
            };
            while !is_last(client.next().await.unwrap().unwrap()) {}
            all_here.wait().await;
            // The client keeps its socket open and reads nothing.
            std::future::pending::<()>().await;
        });
    }
    let io = in_memory(app.clone(), 256);
    let (mut speaker, _) = client_async("ws://chat/ws/last", io).await.unwrap();
    within("all clients have joined", all_here.wait()).await;
    // The room sends each line back to its sender.
    for number in 0..200 {
        let line = format!("line {number}");
        speaker.send(Message::text(line.clone())).await.unwrap();
        let echoed = async {
            loop {
                let message = speaker.next().await.unwrap().unwrap();
                if message.into_text().unwrap().contains(&line) {
                    return;
                }
            }
        };
        within("the line", echoed).await;
    }
}
