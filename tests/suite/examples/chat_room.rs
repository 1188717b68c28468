//! The chat example, as its users meet it: seats are taken, taken over, and freed.

#[allow(dead_code, unreachable_pub)] // the example's own `main` and its flags play no part here
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

async fn room() -> Server {
    let idle = Duration::from_secs(300);
    Server::start(chat::app(ms(100), ms(400), idle).unwrap()).await
}

async fn join(server: &Server, user: &str) -> Client {
    let (client, _) = connect_async(server.url(&format!("/ws/{user}")))
        .await
        .unwrap();
    client
}

/// Reads until a line of the room satisfies `wanted`.
async fn hears(client: &mut Client, what: &str, wanted: impl Fn(&Value) -> bool) {
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
    let server = room().await;
    let (content, page) = get(&server, "/").await;
    assert!(content.starts_with("text/html"), "{content}");
    assert!(page.starts_with(b"<!doctype html>"));

    let mut alice = join(&server, "alice").await;
    hears(&mut alice, "herself", notice("alice is here")).await;
    let mut bob = join(&server, "bob").await;
    hears(&mut alice, "bob's coming", notice("bob is here")).await;
    bob.send(Message::text("hello, <b>room</b>")).await.unwrap();
    hears(&mut alice, "bob's hello", |line| {
        line["from"] == "bob" && line["text"] == "hello, <b>room</b>"
    })
    .await;
    assert_eq!(users(&dashboard(&server).await), ["alice", "bob"]);
}

#[tokio::test]
async fn a_seat_is_freed_when_its_connection_dies_and_when_it_falls_silent() {
    let server = room().await;
    let mut alice = join(&server, "alice").await;
    let bob = join(&server, "bob").await;
    hears(&mut alice, "bob's coming", notice("bob is here")).await;
    drop(bob);
    hears(&mut alice, "bob's going", notice("bob is gone")).await;

    // Its socket stays open, and nobody answers the pings.
    let silent = RawClient::connect(server.addr, "/ws/carol")
        .await
        .answering(Answer::Nothing);
    hears(
        &mut alice,
        "carol's going",
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
async fn who_comes_back_keeps_the_seat_when_the_old_connection_ends() {
    let server = room().await;
    let mut old = join(&server, "alice").await;
    hears(&mut old, "herself", notice("alice is here")).await;
    let mut new = join(&server, "alice").await;
    hears(&mut new, "herself again", notice("alice is here again")).await;

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
    hears(&mut new, "bob's coming", notice("bob is here")).await;
    bob.send(Message::text("still there?")).await.unwrap();
    hears(&mut new, "bob's question", |line| line["from"] == "bob").await;
    assert_eq!(users(&dashboard(&server).await), ["alice", "bob"]);
}

/// All of them stop reading at once, so that one line finds all inboxes full. An eviction tells the
/// room, which must not be how the next one comes about: the stack is not that deep.
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
            // Its socket stays open, and nobody reads from it.
            std::future::pending::<()>().await;
        });
    }
    let io = in_memory(app.clone(), 256);
    let (mut speaker, _) = client_async("ws://chat/ws/last", io).await.unwrap();
    within("everybody is here", all_here.wait()).await;
    // Its own line comes back to it, through the same room.
    for number in 0..200 {
        let line = format!("line {number}");
        speaker.send(Message::text(line.clone())).await.unwrap();
        let heard = async {
            loop {
                let message = speaker.next().await.unwrap().unwrap();
                if message.into_text().unwrap().contains(&line) {
                    return;
                }
            }
        };
        within("the line", heard).await;
    }
}
