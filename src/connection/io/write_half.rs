//! The way out: the handler's bytes pass as they are, and our control frames are put between its
//! frames.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use super::control_frame::ControlFrame;
use super::observer::{Direction, Observer, data_of};
use super::transport_traits::TransportTraits;
use crate::wire::{OpCode, Role, Scanner, encode_close, encode_ping};

/// The outbound half of a connection.
#[derive(Debug)]
pub(crate) struct WriteHalf {
    scanner: Scanner,
    masked: bool,
    /// The handler has sent a fragment of a message that is not its last.
    mid_message: bool,
    /// A Close frame went out (RFC 6455 section 5.5.1), or the direction was shut down: nothing may
    /// follow.
    closed: bool,
    /// The transport is shut down, or cannot be.
    shut: bool,
    /// The scanner has given up, and that was reported.
    passive: bool,
    /// The handler's bytes are taken up to the end of its frame, and no further.
    last: bool,
    /// See [`in_strokes`](Self::in_strokes).
    strokes: bool,
    /// See [`repeats_writes`](Self::repeats_writes).
    repeats_writes: bool,
    claim: Claim,
    control: ControlFrame,
}

/// The write that must be repeated before any other, because it returned `Pending`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    None,
    /// A control frame of ours.
    ControlFrame,
    /// A write of the handler's, of this many bytes.
    Handler(u32),
}

impl WriteHalf {
    pub(crate) fn new(role: Role) -> Self {
        Self {
            scanner: Scanner::new(),
            masked: role.outbound_masked(),
            mid_message: false,
            closed: false,
            shut: false,
            passive: false,
            last: false,
            strokes: false,
            repeats_writes: false,
            claim: Claim::None,
            control: ControlFrame::None,
        }
    }

    /// From now on a ping goes out in four strokes, the last three of a byte each.
    ///
    /// A stream of hyper's HTTP/2 is flushed when fewer than two writes are left behind the one that
    /// waits for the peer's window. So a ping in one piece would be as good as sent to a peer that
    /// grants no window, and its silence would be taken for death. In strokes that is left only to a
    /// window that ends one or two bytes before the ping does.
    pub(crate) fn in_strokes(&mut self) {
        self.strokes = true;
    }

    /// Sets whether a write that returned `Pending` must be repeated with the same bytes.
    ///
    /// OpenSSL has encrypted them by then, and sends them in place of the next write's bytes. So such a
    /// write claims the transport: until it is repeated nothing else is written, not even an empty write.
    pub(crate) fn repeats_writes(&mut self, repeats_writes: bool) {
        self.repeats_writes = repeats_writes;
    }

    /// Whether a ping would go out now: the handler is between two messages, no Close has gone out, and
    /// no control frame of ours is under way.
    pub(crate) fn can_inject(&self) -> bool {
        !self.is_mid_frame() && !self.mid_message && !self.closed && !self.is_busy()
    }

    /// Whether the handler has begun a frame and not finished it. A write of the handler's that claims the
    /// transport counts as begun.
    pub(crate) fn is_mid_frame(&self) -> bool {
        !self.scanner.at_boundary() || self.is_claimed()
    }

    /// Whether a write of the handler's claims the transport.
    pub(crate) fn is_claimed(&self) -> bool {
        matches!(self.claim, Claim::Handler(_))
    }

    /// The same, and the frame's end will be seen when it comes.
    pub(crate) fn has_end_ahead(&self) -> bool {
        self.is_mid_frame() && self.scanner.malformed().is_none()
    }

    /// Takes nothing of the handler's any more after the frame that it is in the middle of.
    pub(crate) fn stop_at_boundary(&mut self) {
        self.last = true;
    }

    /// Whether a control frame of ours is not completely with the transport yet.
    pub(crate) fn is_busy(&self) -> bool {
        !matches!(self.control, ControlFrame::None)
    }

    /// All of a control frame of ours is written, and the transport has yet to flush it.
    pub(crate) fn is_flushing(&self) -> bool {
        matches!(
            self.control,
            ControlFrame::FlushPing | ControlFrame::FlushClose
        )
    }

    /// Whether the transport has accepted a part of a ping, or all of it without flushing it yet.
    pub(crate) fn has_ping_out(&self) -> bool {
        self.has_begun() || matches!(self.control, ControlFrame::FlushPing)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether there is still a way to tell the peer that nothing will follow.
    pub(crate) fn can_shut_down(&self) -> bool {
        !self.shut
    }

    /// The transport is in no state to be polled.
    pub(crate) fn give_up(&mut self) {
        self.shut = true;
    }

    /// Takes a ping to be written at the next frame boundary.
    pub(crate) fn ping(&mut self, payload: [u8; 8]) {
        let (frame, len) = encode_ping(payload, self.mask());
        self.control = ControlFrame::Ping {
            frame,
            len: len as u8,
            written: 0,
        };
    }

    /// Takes the last frame of the connection. A ping that was not begun makes way for it.
    ///
    /// Returns false, and does nothing, if no Close frame can follow what already went out: in the
    /// middle of the handler's frame, or after a Close frame.
    pub(crate) fn close(&mut self, code: u16, reason: &str) -> bool {
        if self.is_mid_frame() || self.closed || self.has_begun() {
            return false;
        }
        let frame = encode_close(code, reason, self.mask());
        self.control = ControlFrame::close(frame);
        true
    }

    /// Takes back a ping that was not begun.
    pub(crate) fn cancel_ping(&mut self) {
        if matches!(self.control, ControlFrame::Ping { .. }) && !self.has_begun() {
            self.control = ControlFrame::None;
        }
    }

    /// Asks the transport whether it would take more of the handler's bytes, without giving it any.
    /// A refusal is reported to `observer`. A transport that cannot tell counts as having room.
    pub(crate) fn poll_room<T: AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        capabilities: &TransportTraits<T>,
        cx: &mut Context<'_>,
        observer: &mut Observer<'_>,
    ) -> Poll<()> {
        if Pin::new(&mut *io).poll_flush(cx).is_pending() {
            observer.unflushed();
            return Poll::Pending;
        }
        if (capabilities.poll_writable)(io, cx).is_pending() {
            observer.refused();
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// Whether a control frame of ours is half-written or claims the transport, so that its rest must be
    /// written before anything else.
    pub(crate) fn has_begun(&self) -> bool {
        self.control.has_begun() || self.claim == Claim::ControlFrame
    }

    fn mask(&self) -> Option<[u8; 4]> {
        self.masked.then(|| fastrand::u32(..).to_ne_bytes())
    }

    /// Whether the handler is between two fragments of a message. RFC 6455 section 5.4 allows control
    /// frames there, but some peers then lose a compressed message (wsproto 1.3, aiohttp before 3.14.5), so
    /// a ping waits for the end of the message, for at most the heartbeat's `timeout`.
    pub(crate) fn is_mid_message(&self) -> bool {
        self.mid_message && !self.is_mid_frame()
    }

    /// Bytes of ours that may go out now.
    fn writable(&self, observer: &Observer<'_>) -> Option<&[u8]> {
        if self.has_begun() {
            return self.control.next_write(self.strokes);
        }
        let is_ping = matches!(self.control, ControlFrame::Ping { .. });
        let held = is_ping && self.mid_message && observer.monitor.holds_ping();
        if self.is_mid_frame() || self.closed || held {
            return None;
        }
        self.control.next_write(self.strokes)
    }

    /// Writes what may be written of our control frame, without flushing it.
    fn poll_control_bytes<T: AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        cx: &mut Context<'_>,
        observer: &mut Observer<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.is_busy() {
            return Poll::Ready(Ok(()));
        }
        while let Some(bytes) = self.writable(observer) {
            let written = Pin::new(&mut *io).poll_write(cx, bytes);
            self.claim = match written {
                Poll::Pending if self.repeats_writes => Claim::ControlFrame,
                _ => Claim::None,
            };
            let Poll::Ready(written) = written? else {
                observer.refused();
                return Poll::Pending;
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.control.advance(written);
            self.closed |= matches!(self.control, ControlFrame::FlushClose);
            observer.accepted(written, !self.is_flushing());
        }
        Poll::Ready(Ok(()))
    }

    /// Brings our control frame as far out as the handler's place in its own frame allows.
    ///
    /// `Ready` means that nothing of ours can move now: it is flushed, or it waits for a boundary.
    pub(crate) fn poll_control<T: AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        cx: &mut Context<'_>,
        observer: &mut Observer<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_control_bytes(io, cx, observer))?;
        if matches!(
            self.control,
            ControlFrame::FlushPing | ControlFrame::FlushClose
        ) {
            if Pin::new(io).poll_flush(cx)?.is_pending() {
                observer.unflushed();
                return Poll::Pending;
            }
            self.flushed(observer);
        }
        Poll::Ready(Ok(()))
    }

    /// The transport was flushed: what of ours was written is now with it.
    fn flushed(&mut self, observer: &mut Observer<'_>) {
        let now = match self.control {
            ControlFrame::FlushPing | ControlFrame::FlushClose => observer.now(),
            ControlFrame::None | ControlFrame::Ping { .. } | ControlFrame::Close(_) => return,
        };
        // That says nothing of a write of the handler's that was refused meanwhile.
        observer.monitor.flushed(now, observer.policy);
        if matches!(self.control, ControlFrame::FlushPing) {
            observer.pinged(now);
        }
        self.control = ControlFrame::None;
    }

    /// The handler's write.
    pub(crate) fn poll_write<T: AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        cx: &mut Context<'_>,
        bytes: &[u8],
        observer: &mut Observer<'_>,
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_control_bytes(io, cx, observer))?;
        let end = self.end_of_write(bytes);
        let written = Pin::new(&mut *io).poll_write(cx, &bytes[..end]);
        self.note_claim(&written, end);
        let Poll::Ready(written) = written? else {
            observer.refused();
            return Poll::Pending;
        };
        self.passed(&bytes[..written], observer);
        self.after_write(io, cx, written, written < end, observer)
    }

    /// How many of `bytes` to offer to the transport. If a frame of ours or an eviction waits for a frame
    /// boundary, the bytes up to the next one, but never fewer than were offered before.
    fn end_of_write(&self, bytes: &[u8]) -> usize {
        if !self.is_busy() && !self.last {
            return bytes.len();
        }
        let boundary = self.scanner.boundary_within(bytes);
        let claimed = match self.claim {
            Claim::Handler(len) => len as usize,
            Claim::None | Claim::ControlFrame => 0,
        };
        let end = boundary.unwrap_or(bytes.len()).max(claimed);
        end.min(bytes.len())
    }

    /// Records the result of offering `len` bytes of the handler's to the transport.
    fn note_claim(&mut self, written: &Poll<io::Result<usize>>, len: usize) {
        self.claim = match written {
            Poll::Pending if self.repeats_writes => {
                Claim::Handler(u32::try_from(len).unwrap_or(u32::MAX))
            }
            _ => Claim::None,
        };
    }

    /// The handler's vectored write.
    pub(crate) fn poll_write_vectored<T: AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
        observer: &mut Observer<'_>,
    ) -> Poll<io::Result<usize>> {
        if (self.is_busy() || self.last) && !self.is_claimed() {
            // A boundary inside the slices has to be hit exactly, so they go one at a time.
            let first = slices.iter().find(|slice| !slice.is_empty());
            return self.poll_write(io, cx, first.map_or(&[], |slice| &**slice), observer);
        }
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        let written = Pin::new(&mut *io).poll_write_vectored(cx, slices);
        self.note_claim(&written, total);
        let Poll::Ready(written) = written? else {
            observer.refused();
            return Poll::Pending;
        };
        let mut left = written;
        for slice in slices {
            let count = left.min(slice.len());
            self.passed(&slice[..count], observer);
            left -= count;
        }
        self.after_write(io, cx, written, written < total, observer)
    }

    /// Scans bytes of the handler that the transport accepted.
    fn passed(&mut self, mut bytes: &[u8], observer: &mut Observer<'_>) {
        let mut now = None;
        while !bytes.is_empty() {
            let (passed, frame) = self.scanner.advance(bytes);
            bytes = &bytes[passed..];
            match frame {
                Some(frame) if frame.opcode == OpCode::Close => {
                    self.closed = true;
                    observer
                        .monitor
                        .server_closed(observer.now(), frame.close_code);
                }
                Some(frame) if frame.opcode.is_control() => {}
                end => {
                    if let Some(frame) = end {
                        self.mid_message = !frame.fin;
                    }
                    if let Some(data) = data_of(&self.scanner, end) {
                        // The clock is read once, and for data alone.
                        let now = *now.get_or_insert_with(|| observer.now());
                        observer.monitor.data_out(now, data, observer.policy);
                    }
                }
            }
        }
        if let (Some(rule), false) = (self.scanner.malformed(), self.passive) {
            self.passive = true;
            observer.malformed(Direction::Outbound, rule);
        }
    }

    /// The handler's write came to a boundary, perhaps, where a frame of ours was waiting.
    fn after_write<T: AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        cx: &mut Context<'_>,
        written: usize,
        rest: bool,
        observer: &mut Observer<'_>,
    ) -> Poll<io::Result<usize>> {
        if written > 0 {
            observer.accepted(written, rest);
        }
        if self.is_busy() {
            observer.monitor.mid_message(self.is_mid_message());
        }
        // The handler's bytes are accepted whatever happens to ours: an error shows up again at
        // the next operation, and a refusal is the driver's to follow up.
        let _ = self.poll_control(io, cx, observer);
        Poll::Ready(Ok(written))
    }

    /// The handler's flush.
    pub(crate) fn poll_flush<T: AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        cx: &mut Context<'_>,
        observer: &mut Observer<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_control_bytes(io, cx, observer))?;
        if Pin::new(io).poll_flush(cx)?.is_pending() {
            observer.unflushed();
            return Poll::Pending;
        }
        observer.flushed();
        self.flushed(observer);
        Poll::Ready(Ok(()))
    }

    /// Ends the outbound direction, after what is half-written of ours.
    pub(crate) fn poll_shutdown<T: AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        cx: &mut Context<'_>,
        observer: &mut Observer<'_>,
    ) -> Poll<io::Result<()>> {
        if self.has_begun() {
            ready!(self.poll_control_bytes(io, cx, observer))?;
        }
        self.closed = true;
        let shutdown = Pin::new(io).poll_shutdown(cx);
        self.shut |= shutdown.is_ready();
        shutdown
    }
}
