//! A WebSocket client that reads texts; its reads are bounded, although pings arrive meanwhile.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::Instant;

use tungstenite::handshake::HandshakeError;
use tungstenite::{Error, Message, WebSocket, client};

use crate::child::PATIENCE;

#[derive(Debug)]
pub(crate) struct TextClient {
    socket: WebSocket<TcpStream>,
    close_code: Option<u16>,
}

impl TextClient {
    /// Fails with the status of the response if the server refuses the upgrade.
    pub(crate) fn connect(addr: &str, path: &str) -> Result<Self, u16> {
        let io = TcpStream::connect(addr).unwrap();
        io.set_read_timeout(Some(PATIENCE)).unwrap();
        match client(format!("ws://{addr}{path}"), io) {
            Ok((socket, _)) => Ok(Self {
                socket,
                close_code: None,
            }),
            Err(HandshakeError::Failure(Error::Http(response))) => Err(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    /// Reads until the end. Returns the code of the Close frame if there was one.
    pub(crate) fn close_code(&mut self) -> Option<u16> {
        while self.text().is_some() {}
        self.close_code
    }

    /// The next text, or `None` at the end of the connection.
    pub(crate) fn text(&mut self) -> Option<String> {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "only pings within {PATIENCE:?}");
            self.socket.get_ref().set_read_timeout(Some(left)).unwrap();
            match self.socket.read() {
                Ok(Message::Text(text)) => return Some(text.to_string()),
                Ok(Message::Close(frame)) => self.close_code = frame.map(|frame| frame.code.into()),
                Ok(_) => {}
                // SIGCONT interrupts a read that has a timeout.
                Err(Error::Io(error)) if is_temporary(error.kind()) => {}
                Err(_) => return None,
            }
        }
    }
}

fn is_temporary(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
