//! A client for Engine.IO's polling transport, which carries packets in HTTP bodies.

use std::collections::VecDeque;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use crate::support::within;

/// Separates the packets of one body.
const SEPARATOR: char = '\u{1e}';

/// A session that was opened by polling.
#[derive(Debug)]
pub(super) struct Polling {
    http: Client<HttpConnector, Full<Bytes>>,
    addr: SocketAddr,
    sid: String,
    received: VecDeque<String>,
}

impl Polling {
    pub(super) async fn open(addr: SocketAddr) -> Self {
        let mut polling = Self {
            http: Client::builder(TokioExecutor::new()).build_http(),
            addr,
            sid: String::new(),
            received: VecDeque::new(),
        };
        let open = polling.next().await;
        let open = open.strip_prefix('0').expect("the packet \"open\"");
        let open: Value = serde_json::from_str(open).expect("JSON");
        assert_eq!(open["upgrades"], json!(["websocket"]));
        let sid = open["sid"].as_str().expect("the id of the session");
        sid.clone_into(&mut polling.sid);
        polling
    }

    /// The path at which the session upgrades to a WebSocket.
    pub(super) fn websocket_path(&self) -> String {
        format!("/socket.io/?EIO=4&transport=websocket&sid={}", self.sid)
    }

    /// Sends one packet.
    pub(super) async fn send(&self, packet: &str) {
        let response = self.request(Some(packet)).await;
        assert_eq!(response, (StatusCode::OK, "ok".to_owned()));
    }

    /// Waits for a packet, and answers Engine.IO's pings in the meantime.
    pub(super) async fn expect(&mut self, expected: impl Fn(&str) -> bool) {
        loop {
            let packet = self.next().await;
            if packet == "2" {
                self.send("3").await;
            } else {
                assert!(expected(&packet), "{packet}");
                return;
            }
        }
    }

    /// Waits for the packet with which the server pauses polling because of the upgrade.
    pub(super) async fn expect_pause(&mut self) {
        self.expect(|packet| packet == "6").await;
    }

    /// Waits until the server has dropped the session.
    pub(super) async fn expect_end(&self) {
        let dropped = async {
            // The session ends once its handler observes the end of the WebSocket.
            while !self.request(None).await.1.contains("Session ID unknown") {
                tokio::task::yield_now().await;
            }
        };
        within("the end of the session", dropped).await;
    }

    async fn next(&mut self) -> String {
        loop {
            if let Some(packet) = self.received.pop_front() {
                return packet;
            }
            let (status, body) = self.request(None).await;
            assert_eq!(status, StatusCode::OK, "{body}");
            self.received
                .extend(body.split(SEPARATOR).map(str::to_owned));
        }
    }

    /// Sends a packet, or polls for packets with `None`.
    async fn request(&self, packet: Option<&str>) -> (StatusCode, String) {
        let mut uri = format!("http://{}/socket.io/?EIO=4&transport=polling", self.addr);
        if !self.sid.is_empty() {
            uri = format!("{uri}&sid={}", self.sid);
        }
        let request = match packet {
            Some(packet) => Request::post(uri).body(Full::from(packet.to_owned())),
            None => Request::get(uri).body(Full::default()),
        };
        let request = request.expect("a URI");
        let response = async {
            let response = self.http.request(request).await.expect("a response");
            let status = response.status();
            let body = response.into_body().collect().await.expect("a body");
            let body = String::from_utf8(body.to_bytes().into()).expect("UTF-8");
            (status, body)
        };
        within("a response to a poll", response).await
    }
}
