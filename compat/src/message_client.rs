//! A client that exchanges messages in the dialect of a stack.

use tower_ws_liveness::Liveness;

use crate::client::Client;
use crate::stack::Dialect;
use crate::support::raw::{Answer, BINARY, Frame, TEXT};
use crate::support::{until, within};

impl Dialect {
    /// The path of the WebSocket.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Plain => "/ws",
            Self::JsonRpc => "/",
            Self::SocketIo => "/socket.io/?EIO=4&transport=websocket",
        }
    }
}

/// A client that exchanges messages.
#[derive(Debug)]
pub(crate) struct MessageClient {
    pub(crate) socket: Client,
    dialect: Dialect,
    answers_pings: bool,
    /// Engine.IO pings received so far.
    pub(crate) engine_io_pings: usize,
}

impl MessageClient {
    /// Completes the handshake of the dialect, which precedes the first message.
    pub(crate) async fn connect(dialect: Dialect, client: Client) -> Self {
        let mut client = Self::after_handshake(dialect, client);
        if dialect == Dialect::SocketIo {
            // Engine.IO's packet "open".
            client.expect_text(|text| text.starts_with("0{")).await;
            // Socket.IO's packet "connect", to the namespace "/".
            client.send(&Frame::text("40")).await;
            client.expect_text(|text| text.starts_with("40{")).await;
            // The server sends this packet before it registers its handlers. An event signals them.
            client
                .expect_text(|text| text.starts_with(r#"42["ready""#))
                .await;
        }
        client
    }

    /// Wraps a client whose dialect needs no handshake any more.
    pub(crate) fn after_handshake(dialect: Dialect, client: Client) -> Self {
        Self {
            socket: client,
            dialect,
            answers_pings: true,
            engine_io_pings: 0,
        }
    }

    /// Answers no more pings.
    pub(crate) fn without_pongs(mut self) -> Self {
        self.socket.frames = self.socket.frames.answering(Answer::Nothing);
        self.answers_pings = false;
        self
    }

    pub(crate) async fn send(&mut self, frame: &Frame) {
        let sent = self.socket.frames.send(frame).await;
        sent.unwrap_or_else(|error| panic!("{frame:?} was not sent: {error}"));
    }

    /// Sends a text and waits for its echo.
    pub(crate) async fn echo_text(&mut self, text: &str) {
        match self.dialect {
            Dialect::Plain => {
                self.send(&Frame::text(text)).await;
                self.expect_text(|echoed| echoed == text).await;
            }
            Dialect::SocketIo => {
                let event = format!("42[\"echo\",\"{text}\"]");
                self.send(&Frame::text(&event)).await;
                self.expect_text(|echoed| echoed == event).await;
            }
            Dialect::JsonRpc => {
                let called = call(&format!("\"{text}\""));
                self.send(&Frame::text(&called)).await;
                self.expect_text(|echoed| echoed == result(&format!("\"{text}\"")))
                    .await;
            }
        }
    }

    /// Sends bytes and waits for their echo.
    pub(crate) async fn echo_binary(&mut self, bytes: &[u8]) {
        let message = Frame::new(BINARY, bytes);
        match self.dialect {
            Dialect::Plain => self.send(&message).await,
            Dialect::SocketIo => {
                // This event announces one attachment.
                let event = r#"451-["echo",{"_placeholder":true,"num":0}]"#;
                self.send(&Frame::text(event)).await;
                self.send(&message).await;
                self.expect_text(|echoed| echoed == event).await;
            }
            Dialect::JsonRpc => {
                // JSON has no byte strings, so an array of numbers is sent in a binary message.
                // Responses are always text messages.
                let array = format!("{bytes:?}").replace(' ', "");
                self.send(&Frame::new(BINARY, call(&array))).await;
                return self.expect_text(|echoed| echoed == result(&array)).await;
            }
        }
        let echoed = self.receive_in_time().await;
        assert!(echoed == message, "{echoed:?}");
    }

    /// Answers pings until the layer has received `count` more pongs, and sends nothing else.
    pub(crate) async fn answer_pings(&mut self, live: &Liveness, count: u64) {
        let pongs = live.stats().pongs_received() + count;
        tokio::select! {
            frame = self.receive() => panic!("unexpected {frame:?}"),
            () = until("the layer's pongs", || live.stats().pongs_received() >= pongs) => {}
        }
    }

    /// Answers pings, Engine.IO's included, and returns the next other frame.
    pub(crate) async fn receive(&mut self) -> Frame {
        loop {
            let frame = self.socket.frames.next().await;
            let frame = frame.expect("no error").expect("no end of the stream");
            if self.dialect == Dialect::SocketIo && frame == Frame::text("2") {
                // Engine.IO's own ping.
                self.engine_io_pings += 1;
                if self.answers_pings {
                    self.send(&Frame::text("3")).await;
                }
            } else {
                return frame;
            }
        }
    }

    /// Returns the next frame that is not a ping, within the time limit.
    async fn receive_in_time(&mut self) -> Frame {
        within("a frame from the server", self.receive()).await
    }

    pub(crate) async fn expect_text(&mut self, expected: impl Fn(&str) -> bool) {
        let frame = self.receive_in_time().await;
        let text = String::from_utf8_lossy(&frame.payload);
        assert!(frame.opcode == TEXT && expected(&text), "{frame:?}");
    }
}

/// A request (JSON-RPC 2.0 section 4).
fn call(value: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":1,"method":"echo","params":[{value}]}}"#)
}

/// A response (JSON-RPC 2.0 section 5).
fn result(value: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":1,"result":{value}}}"#)
}
