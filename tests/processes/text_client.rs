//! A WebSocket client whose reads are bounded, although pings arrive meanwhile.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::Instant;

use tungstenite::handshake::HandshakeError;
use tungstenite::{Error, Message, WebSocket, client};

use crate::child::PATIENCE;

#[derive(Debug)]
pub(crate) struct Socket(WebSocket<TcpStream>);

impl Socket {
    /// Fails with the status of the response if the server refuses the upgrade.
    pub(crate) fn connect(addr: &str, path: &str) -> Result<Self, u16> {
        let io = TcpStream::connect(addr).unwrap();
        io.set_read_timeout(Some(PATIENCE)).unwrap();
        match client(format!("ws://{addr}{path}"), io) {
            Ok((socket, _)) => Ok(Self(socket)),
            Err(HandshakeError::Failure(Error::Http(response))) => Err(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    /// The next text, or `None` at the end of the connection.
    pub(crate) fn text(&mut self) -> Option<String> {
        loop {
            match self.message()? {
                Message::Text(text) => return Some(text.to_string()),
                _ => continue,
            }
        }
    }

    /// Reads until the end. Returns the code of the Close frame if there was one.
    pub(crate) fn close_code(&mut self) -> Option<u16> {
        let mut code = None;
        while let Some(message) = self.message() {
            if let Message::Close(frame) = message {
                code = frame.map(|frame| frame.code.into());
            }
        }
        code
    }

    /// The next message that is not a ping, or `None` at the end of the connection.
    fn message(&mut self) -> Option<Message> {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "only pings within {PATIENCE:?}");
            self.0.get_ref().set_read_timeout(Some(left)).unwrap();
            match self.0.read() {
                Ok(Message::Ping(_)) => {}
                Ok(message) => return Some(message),
                Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
        }
    }
}
