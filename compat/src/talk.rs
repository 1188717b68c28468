//! What a client says inside of the frames.

use tower_ws_liveness::Liveness;

use crate::client::Client;
use crate::stack::Dialect;
use crate::support::raw::{Answer, BINARY, Frame, TEXT};
use crate::support::{until, within};

impl Dialect {
    /// Where the WebSocket is.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Plain => "/ws",
            Self::JsonRpc => "/",
            Self::SocketIo => "/socket.io/?EIO=4&transport=websocket",
        }
    }
}

/// A client that may say something.
#[derive(Debug)]
pub(crate) struct Talk {
    pub(crate) client: Client,
    dialect: Dialect,
    answering: bool,
    /// Engine.IO's own pings that came so far.
    pub(crate) heartbeats: usize,
}

impl Talk {
    /// Says what comes before the first message.
    pub(crate) async fn begin(dialect: Dialect, client: Client) -> Self {
        let mut talk = Self::resume(dialect, client);
        if dialect == Dialect::SocketIo {
            // Engine.IO's packet "open".
            talk.expect_text(|text| text.starts_with("0{")).await;
            // Socket.IO's packet "connect", to the namespace "/".
            talk.send(&Frame::text("40")).await;
            talk.expect_text(|text| text.starts_with("40{")).await;
            // That was sent before the server's handlers were there. They say so by an event.
            talk.expect_text(|text| text.starts_with(r#"42["ready""#))
                .await;
        }
        talk
    }

    /// Goes on where something else has said what comes first.
    pub(crate) fn resume(dialect: Dialect, client: Client) -> Self {
        Self {
            client,
            dialect,
            answering: true,
            heartbeats: 0,
        }
    }

    /// Answers no ping from now on.
    pub(crate) fn silent(mut self) -> Self {
        self.client.frames = self.client.frames.answering(Answer::Nothing);
        self.answering = false;
        self
    }

    pub(crate) async fn send(&mut self, frame: &Frame) {
        let sent = self.client.frames.send(frame).await;
        sent.unwrap_or_else(|error| panic!("{frame:?} was not sent: {error}"));
    }

    /// Sends a text, and waits for its echo.
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

    /// Sends bytes, and waits for their echo.
    pub(crate) async fn echo_binary(&mut self, bytes: &[u8]) {
        let message = Frame::new(BINARY, bytes);
        match self.dialect {
            Dialect::Plain => self.send(&message).await,
            Dialect::SocketIo => {
                // An event that says that one attachment follows.
                let event = r#"451-["echo",{"_placeholder":true,"num":0}]"#;
                self.send(&Frame::text(event)).await;
                self.send(&message).await;
                self.expect_text(|echoed| echoed == event).await;
            }
            Dialect::JsonRpc => {
                // JSON has no bytes, but may itself travel as such. Answers are always texts.
                let array = format!("{bytes:?}").replace(' ', "");
                self.send(&Frame::new(BINARY, call(&array))).await;
                return self.expect_text(|echoed| echoed == result(&array)).await;
            }
        }
        let echoed = self.next().await;
        assert!(echoed == message, "{echoed:?}");
    }

    /// Lives on, and says nothing, until so many more of our pings are answered.
    pub(crate) async fn answer_pings(&mut self, live: &Liveness, count: u64) {
        let enough = live.stats().pongs_received() + count;
        tokio::select! {
            frame = self.listen() => panic!("{frame:?} to somebody who said nothing"),
            () = until("our pings", || live.stats().pongs_received() >= enough) => {}
        }
    }

    /// Reads on, answers pings, and says nothing.
    pub(crate) async fn listen(&mut self) -> Frame {
        loop {
            let frame = self.client.frames.next().await;
            let frame = frame.expect("no error").expect("no end of the stream");
            if self.dialect == Dialect::SocketIo && frame == Frame::text("2") {
                // Engine.IO's own ping.
                self.heartbeats += 1;
                if self.answering {
                    self.send(&Frame::text("3")).await;
                }
            } else {
                return frame;
            }
        }
    }

    /// The next frame that is not a ping.
    async fn next(&mut self) -> Frame {
        within("a frame from the server", self.listen()).await
    }

    pub(crate) async fn expect_text(&mut self, expected: impl Fn(&str) -> bool) {
        let frame = self.next().await;
        let text = String::from_utf8_lossy(&frame.payload);
        assert!(frame.opcode == TEXT && expected(&text), "{frame:?}");
    }
}

/// JSON-RPC 2.0, section 4.
fn call(value: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":1,"method":"echo","params":[{value}]}}"#)
}

/// JSON-RPC 2.0, section 5.
fn result(value: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":1,"result":{value}}}"#)
}
