//! The bytes in transit between a server's stream and its client.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::mem;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::ReadBuf;

use super::program::{Program, ServerMessage};
use crate::panic_guard;

/// A WebSocket in memory. The client's program runs inside the server's writes, so that it needs no
/// task: a ping is answered before the write of the ping returns.
pub(super) struct Pipe(Mutex<Transit>);

/// What the client does with the bytes that arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientMode {
    /// Its program reads them immediately.
    Reading,
    /// They stay unread.
    Frozen,
    /// They stay unread forever: the client's host has disappeared, without a FIN.
    Vanished,
    /// The client has closed the connection.
    Closed,
    /// The client has reset the connection.
    Reset,
}

impl ClientMode {
    /// Whether the server's stream has an end.
    fn is_over(self) -> bool {
        matches!(self, Self::Closed | Self::Reset)
    }
}

/// Both ends, and the bytes between them.
pub(super) struct Transit {
    mode: ClientMode,
    pub(super) program: Program,
    /// Bytes of the client that the server has not read. Unbounded: a client's sends do not wait.
    to_server: VecDeque<u8>,
    /// Bytes of the server that the client has not read, at most `window`.
    to_client: Vec<u8>,
    window: usize,
    /// The server has shut its direction down, or dropped its stream.
    server_is_done: bool,
    server_reader: Option<Waker>,
    server_writer: Option<Waker>,
    client_reader: Option<Waker>,
    /// To be woken when the lock is released.
    woken: Vec<Waker>,
    /// To be dropped when the lock is released: a waker may own either end.
    unused: Vec<Waker>,
}

impl Pipe {
    pub(super) fn new(window: usize) -> Self {
        Self(Mutex::new(Transit {
            mode: ClientMode::Reading,
            program: Program::new(),
            to_server: VecDeque::new(),
            to_client: Vec::new(),
            window,
            server_is_done: false,
            server_reader: None,
            server_writer: None,
            client_reader: None,
            woken: Vec::new(),
            unused: Vec::new(),
        }))
    }

    /// Locks the bytes for `act`, and wakes tasks afterwards.
    pub(super) fn with<R>(&self, act: impl FnOnce(&mut Transit) -> R) -> R {
        // A message is not taken after a violation of the server: that panics, and changes nothing.
        let mut transit = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut transit);
        let woken = mem::take(&mut transit.woken);
        let unused = mem::take(&mut transit.unused);
        drop(transit);
        for waker in woken {
            panic_guard::wake_waiting(|| waker.wake());
        }
        panic_guard::wake_waiting(|| drop(unused));
        result
    }
}

impl Transit {
    // ---- the server's end ----------------------------------------------------------------------

    pub(super) fn poll_read(
        &mut self,
        cx: &Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.mode == ClientMode::Reset {
            return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
        }
        if self.to_server.is_empty() && !self.mode.is_over() && out.remaining() > 0 {
            self.unused
                .extend(self.server_reader.replace(cx.waker().clone()));
            return Poll::Pending;
        }
        let (front, _) = self.to_server.as_slices();
        let count = front.len().min(out.remaining());
        out.put_slice(&front[..count]);
        self.to_server.drain(..count);
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_write(&mut self, cx: &Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let accepted = match self.mode {
            _ if self.server_is_done => return Poll::Ready(Err(ErrorKind::BrokenPipe.into())),
            ClientMode::Closed => return Poll::Ready(Err(ErrorKind::BrokenPipe.into())),
            ClientMode::Reset => return Poll::Ready(Err(ErrorKind::ConnectionReset.into())),
            ClientMode::Reading => {
                self.deliver(bytes);
                bytes.len()
            }
            ClientMode::Frozen | ClientMode::Vanished => {
                let room = self.window.saturating_sub(self.to_client.len());
                let count = room.min(bytes.len());
                self.to_client.extend_from_slice(&bytes[..count]);
                count
            }
        };
        if accepted == 0 && !bytes.is_empty() {
            self.unused
                .extend(self.server_writer.replace(cx.waker().clone()));
            return Poll::Pending;
        }
        Poll::Ready(Ok(accepted))
    }

    /// The server sends nothing more. A client that reads closes its direction too.
    pub(super) fn shut_down_server(&mut self) {
        self.server_is_done = true;
        self.close_after_server();
        self.wake_client();
    }

    /// The server's stream is dropped: it reads nothing more.
    pub(super) fn drop_server(&mut self) {
        self.shut_down_server();
        self.to_server.clear();
        let wakers = [self.server_reader.take(), self.server_writer.take()];
        self.unused.extend(wakers.into_iter().flatten());
    }

    // ---- the client's end ----------------------------------------------------------------------

    /// Sends the frame that the client's program encodes.
    pub(super) fn send(&mut self, encode: impl FnOnce(&mut Program) -> Vec<u8>) {
        if self.mode.is_over() || self.server_is_done {
            return;
        }
        let bytes = encode(&mut self.program);
        self.program.send(&bytes, &mut self.to_server);
        self.wake_server_reader();
    }

    pub(super) fn poll_recv(&mut self, cx: &Context<'_>) -> Poll<Option<ServerMessage>> {
        let message = self.program.take_message();
        if message.is_some() || self.mode.is_over() {
            return Poll::Ready(message);
        }
        assert_ne!(
            self.mode,
            ClientMode::Frozen,
            "a frozen client receives nothing"
        );
        self.unused
            .extend(self.client_reader.replace(cx.waker().clone()));
        Poll::Pending
    }

    /// Changes what the client does with the bytes that arrive, unless it is gone.
    pub(super) fn set_mode(&mut self, mode: ClientMode) {
        if self.mode.is_over() || self.mode == ClientMode::Vanished {
            return;
        }
        self.mode = mode;
        match mode {
            ClientMode::Reading => {
                let unread = mem::take(&mut self.to_client);
                self.deliver(&unread);
                self.close_after_server();
            }
            ClientMode::Closed | ClientMode::Reset => self.wake_server_reader(),
            ClientMode::Frozen | ClientMode::Vanished => return,
        }
        self.woken.extend(self.server_writer.take());
    }

    /// Has the client's program read bytes of the server.
    fn deliver(&mut self, bytes: &[u8]) {
        let answer = self.program.receive(bytes);
        if !answer.is_empty() {
            self.to_server.extend(answer);
            self.wake_server_reader();
        }
        self.wake_client();
    }

    /// A client that has read everything up to the end of the stream closes its direction.
    fn close_after_server(&mut self) {
        if self.server_is_done && self.mode == ClientMode::Reading {
            self.mode = ClientMode::Closed;
            self.wake_server_reader();
        }
    }

    fn wake_server_reader(&mut self) {
        self.woken.extend(self.server_reader.take());
    }

    fn wake_client(&mut self) {
        self.woken.extend(self.client_reader.take());
    }
}
