//! [`Client`]: the client of a WebSocket in memory.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;

use super::pipe::{ClientMode, Pipe};
use super::program::ServerMessage;
use crate::wire::{MAX_CONTROL_PAYLOAD_BYTES, OpCode};

/// The client of a WebSocket in memory. Made by [`pair`](super::pair) and by
/// [`OpeningHandshake::connect`](super::OpeningHandshake::connect).
///
/// It reads whatever the server sends, answers each ping with a pong, and the server's Close frame
/// with its own, inside the server's writes: it needs no task, and need not be polled. When the
/// server ends the stream, it closes the connection. The methods below make it misbehave:
///
/// | method | the client | a heartbeat ends the connection with |
/// |---|---|---|
/// | [`answer_pings(false)`](Self::answer_pings) | reads, and answers no ping | `HeartbeatTimeout` |
/// | [`freeze`](Self::freeze) | reads nothing | `HeartbeatTimeout`, or `WriteStalled` if the window is full |
/// | [`vanish`](Self::vanish) | disappears without a FIN | the same |
/// | [`disconnect`](Self::disconnect) | closes the connection without a Close frame | `PeerVanished` |
/// | [`reset`](Self::reset) | resets the connection | `Transport(ConnectionReset)` |
/// | [`close`](Self::close) | begins the closing handshake | `PeerClosed` |
///
/// Dropping it disconnects it.
///
/// Sends do not wait and never fail: bytes that the server does not read are kept in memory, and
/// nothing is sent after a Close frame, or when the server has ended the stream. Frames are masked
/// (RFC 6455 section 5.3). The client negotiates no extension.
///
/// ```
/// use std::time::Duration;
///
/// use tokio::time::sleep;
/// use tower_ws_liveness::{HeartbeatLayer, Reason, test_util};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let (io, mut client) = test_util::pair();
/// let (_io, live) = HeartbeatLayer::default().wrap_server(io);
/// sleep(Duration::from_secs(3600)).await;
/// assert!(client.pings_received() >= 100);
/// assert_eq!(live.reason(), None);
///
/// client.answer_pings(false);
/// let ev = live.evicted().await;
/// assert_eq!(ev.reason(), Reason::HeartbeatTimeout { missed: 1 });
/// # }
/// ```
pub struct Client {
    pipe: Arc<Pipe>,
}

impl Client {
    pub(super) fn new(pipe: Arc<Pipe>) -> Self {
        Self { pipe }
    }

    /// Sends a text message.
    pub fn send_text(&mut self, text: impl AsRef<str>) {
        self.send(OpCode::Text, text.as_ref().as_bytes());
    }

    /// Sends a binary message.
    pub fn send_binary(&mut self, bytes: impl AsRef<[u8]>) {
        self.send(OpCode::Binary, bytes.as_ref());
    }

    /// Sends a ping. The server's pong is among the [received messages](Self::recv).
    ///
    /// # Panics
    ///
    /// Panics if the payload is longer than 125 bytes.
    #[track_caller]
    pub fn send_ping(&mut self, payload: impl AsRef<[u8]>) {
        self.send_control(OpCode::Ping, payload.as_ref());
    }

    /// Sends a pong that no ping has asked for (RFC 6455 section 5.5.3).
    ///
    /// # Panics
    ///
    /// Panics if the payload is longer than 125 bytes.
    #[track_caller]
    pub fn send_pong(&mut self, payload: impl AsRef<[u8]>) {
        self.send_control(OpCode::Pong, payload.as_ref());
    }

    /// Sends bytes as they are, also after a Close frame: a part of a frame, or something malformed.
    ///
    /// While a frame is incomplete, the client's answers to pings and to the server's Close frame wait
    /// for its end. What the other methods send does not wait, and becomes a part of that frame. A
    /// Close frame among the bytes is the client's Close frame, as if by [`close`](Self::close). After
    /// malformed bytes nothing waits.
    pub fn send_bytes(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref().to_vec();
        self.pipe.with(|transit| transit.send(|_| bytes));
    }

    /// Begins the closing handshake: sends a Close frame with `code` and `reason`. The code is not
    /// checked, and a reason of more than 123 bytes is cut at the last character that fits.
    ///
    /// The client still reads: it gets the server's Close frame.
    pub fn close(&mut self, code: u16, reason: &str) {
        self.pipe
            .with(|transit| transit.send(|program| program.close_frame(code, reason)));
    }

    /// Waits for the next message of the server. `None` when the connection is closed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no message.
    ///
    /// # Panics
    ///
    /// Panics, after the messages from before, if the server has violated RFC 6455:
    ///
    /// - a reserved opcode or a reserved bit (the client negotiates no extension), or a masked frame
    /// - a control frame that is fragmented or has more than 125 bytes
    /// - fragments in a wrong order
    /// - a text, or the reason of a Close frame, that is not UTF-8
    /// - a Close frame with a body of one byte, or a data or Close frame after a Close frame
    ///
    /// Not checked are the status codes of Close frames, and whether lengths are encoded in the fewest
    /// bytes. Panics also, since it would wait forever, if the client is [frozen](Self::freeze) and has
    /// received all messages from before.
    pub async fn recv(&mut self) -> Option<ServerMessage> {
        poll_fn(|cx| self.pipe.with(|transit| transit.poll_recv(cx))).await
    }

    /// Takes the next message of the server, if there is one already.
    ///
    /// # Panics
    ///
    /// Panics if the server has violated RFC 6455, as [`recv`](Self::recv) does.
    pub fn try_recv(&mut self) -> Option<ServerMessage> {
        self.pipe.with(|transit| transit.program.take_message())
    }

    /// How many pings the client's program has read, whether it has answered them or not.
    #[must_use]
    pub fn pings_received(&self) -> u64 {
        self.pipe.with(|transit| transit.program.pings_received)
    }

    /// Sets whether the client answers the pings that it reads from now on. The default is true.
    pub fn answer_pings(&mut self, answers: bool) {
        self.pipe
            .with(|transit| transit.program.answers_pings = answers);
    }

    /// Stops reading: the program hangs, or is stopped. Bytes of the server fill the window, and
    /// then its writes wait. The client can still send.
    pub fn freeze(&mut self) {
        self.pipe
            .with(|transit| transit.set_mode(ClientMode::Frozen));
    }

    /// Reads again, first all that has arrived meanwhile. Pings are answered in one burst, as after
    /// a SIGCONT.
    pub fn thaw(&mut self) {
        self.pipe
            .with(|transit| transit.set_mode(ClientMode::Reading));
    }

    /// Makes the client's host disappear, as a pulled cable does: the server gets no further byte and
    /// no FIN, and what it sends fills the window. Bytes that the client has sent before arrive.
    pub fn vanish(self) {
        self.pipe
            .with(|transit| transit.set_mode(ClientMode::Vanished));
    }

    /// Ends the client's process: the server reads the end of the stream, without a Close frame. The
    /// same as dropping the client.
    pub fn disconnect(self) {
        drop(self);
    }

    /// Resets the connection: the server's reads and writes fail with `ConnectionReset`, and bytes
    /// that it has not read are lost.
    pub fn reset(self) {
        self.pipe
            .with(|transit| transit.set_mode(ClientMode::Reset));
    }

    fn send(&mut self, opcode: OpCode, payload: &[u8]) {
        self.pipe
            .with(|transit| transit.send(|program| program.frame(opcode, payload)));
    }

    #[track_caller]
    fn send_control(&mut self, opcode: OpCode, payload: &[u8]) {
        let (len, max) = (payload.len(), MAX_CONTROL_PAYLOAD_BYTES);
        assert!(
            len <= max,
            "the payload of a control frame has {len} bytes, more than {max}"
        );
        self.send(opcode, payload);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.pipe
            .with(|transit| transit.set_mode(ClientMode::Closed));
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}
