//! The outbound half: passes the handler's bytes and inserts our control frames between its frames.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use super::control_frame::ControlFrame;
use super::observer::{Observer, data_of};
use super::report::Direction;
use super::transport_traits::TransportTraits;
use crate::driver::Clock;
use crate::monitor::{Data, Monitor, Policy};
use crate::wire::{OpCode, PingFrame, Role, Scanner, encode_close};

/// What the handler writes.
pub(crate) enum Outgoing<'a> {
    Slice(&'a [u8]),
    Slices(&'a [IoSlice<'a>]),
}

/// The outbound half of a connection.
#[derive(Debug)]
pub(crate) struct WriteHalf {
    scanner: Scanner,
    masked: bool,
    /// The last fragment of the handler's message is still to come.
    mid_message: bool,
    /// A Close frame was sent, or the direction was shut down: no frame may follow (RFC 6455
    /// section 5.5.1).
    closed: bool,
    /// The transport is shut down, or must not be.
    shut: bool,
    /// Frame boundaries are lost, and that was reported.
    passive: bool,
    /// The handler's bytes are accepted up to the end of its present frame only.
    stops_at_boundary: bool,
    /// See [`set_repeats_writes`](Self::set_repeats_writes).
    repeats_writes: bool,
    flushing: Flushing,
    claim: Claim,
    control: ControlFrame,
}

/// What a flush of the transport does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flushing {
    /// Nothing: accepted bytes are with the kernel.
    Nothing,
    /// It passes accepted bytes on, and is pending until then.
    Passes,
    /// The same, but it may be reported while bytes wait: see
    /// [`split_pings`](WriteHalf::split_pings).
    Early,
}

/// The write that must be repeated before any other, because it returned `Pending`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    None,
    /// A write of our control frame.
    ControlFrame,
    /// A write of the handler, of this many bytes.
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
            stops_at_boundary: false,
            repeats_writes: false,
            flushing: Flushing::Passes,
            claim: Claim::None,
            control: ControlFrame::None,
        }
    }

    /// Writes each ping in four pieces from now on, the last three of one byte each.
    ///
    /// hyper's HTTP/2 stream reports a flush while up to two writes wait for the peer's window. A
    /// ping in one write would count as flushed although the peer grants no window, and a peer that
    /// is alive would be evicted. With four writes this happens only if the window ends one or two
    /// bytes before the end of the ping.
    pub(crate) fn split_pings(&mut self) {
        self.flushing = Flushing::Early;
    }

    /// Sets whether a write that returned `Pending` must be repeated with the same bytes.
    ///
    /// OpenSSL has encrypted them by then, and sends them in place of the bytes of the next write.
    /// So such a write claims the transport: until it is repeated, nothing else is written, not
    /// even an empty write.
    pub(crate) fn set_repeats_writes(&mut self, repeats_writes: bool) {
        self.repeats_writes = repeats_writes;
    }

    /// Records that a flush of the transport does nothing.
    pub(crate) fn set_flushes_nothing(&mut self) {
        self.flushing = Flushing::Nothing;
    }

    /// Whether a flush right after a routine write would do nothing.
    #[inline]
    pub(crate) fn flushes_nothing(&self) -> bool {
        self.flushing == Flushing::Nothing
    }

    /// Whether a ping can be written now: the handler is between two messages, no Close frame was
    /// sent, and no control frame of ours is being written.
    pub(crate) fn can_inject(&self) -> bool {
        !self.is_mid_frame() && !self.mid_message && !self.closed && !self.is_busy()
    }

    /// Whether the handler has begun a frame and not finished it. A write of the handler that
    /// claims the transport counts as begun.
    pub(crate) fn is_mid_frame(&self) -> bool {
        !self.scanner.at_boundary() || self.is_claimed()
    }

    /// Whether a write of the handler claims the transport.
    pub(crate) fn is_claimed(&self) -> bool {
        matches!(self.claim, Claim::Handler(_))
    }

    /// Whether the handler is in the middle of a frame whose end the scanner will find.
    pub(crate) fn awaits_boundary(&self) -> bool {
        self.is_mid_frame() && self.scanner.malformed().is_none()
    }

    /// Accepts no bytes of the handler after the end of its present frame.
    pub(crate) fn stop_at_boundary(&mut self) {
        self.stops_at_boundary = true;
    }

    /// Whether a control frame of ours is not written and flushed yet.
    pub(crate) fn is_busy(&self) -> bool {
        !matches!(self.control, ControlFrame::None)
    }

    /// Whether a control frame of ours is written and not flushed yet.
    pub(crate) fn is_flushing(&self) -> bool {
        matches!(
            self.control,
            ControlFrame::FlushPing | ControlFrame::FlushClose
        )
    }

    /// Whether the transport has accepted a part of a control frame of ours, or a whole ping
    /// without a flush.
    pub(crate) fn has_unflushed_ping(&self) -> bool {
        self.has_begun() || matches!(self.control, ControlFrame::FlushPing)
    }

    /// Whether a Close frame was sent, or the direction was shut down.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether the transport can still be shut down.
    pub(crate) fn can_shut_down(&self) -> bool {
        !self.shut
    }

    /// The transport is dropped without a shutdown: it panicked, or the handler drops it.
    pub(crate) fn skip_shutdown(&mut self) {
        self.shut = true;
    }

    /// Queues a ping for the next frame boundary.
    pub(crate) fn queue_ping(&mut self, payload: [u8; 8]) {
        let frame = PingFrame::new(payload, self.mask());
        self.control = ControlFrame::Ping { frame, written: 0 };
    }

    /// Queues a Close frame. It replaces a ping of which no byte is written.
    ///
    /// Returns false and does nothing if no Close frame can follow the bytes that are written: in
    /// the middle of a frame, or after a Close frame.
    pub(crate) fn queue_close(&mut self, code: u16, reason: &str) -> bool {
        if self.is_mid_frame() || self.closed || self.has_begun() {
            return false;
        }
        let frame = encode_close(code, reason, self.mask());
        self.control = ControlFrame::close(frame);
        true
    }

    /// Removes a queued ping of which no byte is written.
    pub(crate) fn cancel_ping(&mut self) {
        if matches!(self.control, ControlFrame::Ping { .. }) && !self.has_begun() {
            self.control = ControlFrame::None;
        }
    }

    /// Polls whether the transport would accept more bytes of the handler, without writing any. A
    /// refusal is reported to `observer`. A transport that cannot tell counts as having room.
    pub(crate) fn poll_room<T: AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        traits: &TransportTraits<T>,
        cx: &mut Context<'_>,
        observer: &mut Observer<'_>,
    ) -> Poll<()> {
        if Pin::new(&mut *io).poll_flush(cx).is_pending() {
            observer.unflushed();
            return Poll::Pending;
        }
        if (traits.poll_writable)(io, cx).is_pending() {
            observer.refused();
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// Whether a control frame of ours is half-written or claims the transport: its rest must be
    /// written first.
    pub(crate) fn has_begun(&self) -> bool {
        self.control.has_begun() || self.claim == Claim::ControlFrame
    }

    fn mask(&self) -> Option<[u8; 4]> {
        self.masked.then(|| fastrand::u32(..).to_ne_bytes())
    }

    /// Whether the handler is between two fragments of a message.
    ///
    /// RFC 6455 section 5.4 allows control frames there, but some peers then lose a compressed
    /// message (wsproto 1.3, aiohttp before 3.14.5). So a ping waits for the end of the message,
    /// for at most the heartbeat's `timeout`.
    pub(crate) fn is_mid_message(&self) -> bool {
        self.mid_message && !self.is_mid_frame()
    }

    /// The bytes of our control frame that may be written now.
    fn writable(&self, observer: &Observer<'_>) -> Option<&[u8]> {
        let splits = self.flushing == Flushing::Early;
        if self.has_begun() {
            return self.control.next_write(splits);
        }
        let is_ping = matches!(self.control, ControlFrame::Ping { .. });
        let held = is_ping && self.mid_message && observer.monitor.holds_ping();
        if self.is_mid_frame() || self.closed || held {
            return None;
        }
        self.control.next_write(splits)
    }

    /// Writes as much of our control frame as may be written, without a flush.
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

    /// Writes and flushes our control frame if the handler is at a frame boundary.
    ///
    /// `Ready` means that it is flushed, or waits for a boundary.
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

    /// The transport was flushed, and with it our control frame.
    fn flushed(&mut self, observer: &mut Observer<'_>) {
        let now = match self.control {
            ControlFrame::FlushPing | ControlFrame::FlushClose => observer.now(),
            ControlFrame::None | ControlFrame::Ping { .. } | ControlFrame::Close(_) => return,
        };
        // A write of the handler may still be refused.
        observer.monitor.flushed(now, observer.policy);
        if matches!(self.control, ControlFrame::FlushPing) {
            observer.ping_flushed(now);
        }
        self.control = ControlFrame::None;
    }

    /// Writes the handler's bytes.
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
        self.digest_write(io, cx, written, &bytes[..end], observer)
    }

    /// What follows from a write of `bytes` to the transport.
    pub(crate) fn digest_write<T: AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
        bytes: &[u8],
        observer: &mut Observer<'_>,
    ) -> Poll<io::Result<usize>> {
        self.record_claim(&written, bytes.len());
        let Poll::Ready(written) = written? else {
            observer.refused();
            return Poll::Pending;
        };
        self.scan(&bytes[..written], observer);
        self.after_write(io, cx, written, written < bytes.len(), observer)
    }

    /// Whether a write or flush needs only the transport: no frame of ours waits, and no write must
    /// be repeated or stop at a frame boundary.
    pub(crate) fn is_routine(&self) -> bool {
        !self.is_busy() && !self.stops_at_boundary && self.claim == Claim::None
    }

    /// Records that the transport accepted exactly one message. Returns false and does nothing if
    /// `bytes` are anything else.
    #[inline]
    pub(crate) fn record_message(
        &mut self,
        bytes: &[u8],
        clock: &Clock,
        monitor: &mut Monitor,
        policy: &Policy,
    ) -> bool {
        if !self.scanner.is_message(bytes) {
            return false;
        }
        self.mid_message = false;
        monitor.data_out(clock.now(), Data::End, policy);
        monitor.sent(bytes.len());
        true
    }

    /// How many of `bytes` to offer to the transport. If a control frame or an eviction waits for a
    /// frame boundary, the bytes up to the next one, but never fewer than were offered before.
    fn end_of_write(&self, bytes: &[u8]) -> usize {
        if !self.is_busy() && !self.stops_at_boundary {
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

    /// Records the result of a write of `len` bytes of the handler.
    fn record_claim(&mut self, written: &Poll<io::Result<usize>>, len: usize) {
        self.claim = match written {
            Poll::Pending if self.repeats_writes => {
                Claim::Handler(u32::try_from(len).unwrap_or(u32::MAX))
            }
            _ => Claim::None,
        };
    }

    /// Writes the handler's bytes from several buffers.
    pub(crate) fn poll_write_vectored<T: AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
        observer: &mut Observer<'_>,
    ) -> Poll<io::Result<usize>> {
        if (self.is_busy() || self.stops_at_boundary) && !self.is_claimed() {
            // The write must end at a boundary inside the slices, so they are written one at a
            // time.
            let first = slices.iter().find(|slice| !slice.is_empty());
            return self.poll_write(io, cx, first.map_or(&[], |slice| &**slice), observer);
        }
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        let written = Pin::new(&mut *io).poll_write_vectored(cx, slices);
        self.record_claim(&written, total);
        let Poll::Ready(written) = written? else {
            observer.refused();
            return Poll::Pending;
        };
        let mut left = written;
        for slice in slices {
            let count = left.min(slice.len());
            self.scan(&slice[..count], observer);
            left -= count;
        }
        self.after_write(io, cx, written, written < total, observer)
    }

    /// Scans bytes of the handler that the transport accepted.
    fn scan(&mut self, mut bytes: &[u8], observer: &mut Observer<'_>) {
        let mut now = None;
        while !bytes.is_empty() {
            let (passed, frame) = self.scanner.advance(bytes);
            bytes = &bytes[passed..];
            match frame {
                Some(frame) if frame.opcode == OpCode::Close => {
                    self.closed = true;
                    observer
                        .monitor
                        .handler_closed(observer.now(), frame.close_code);
                }
                Some(frame) if frame.opcode.is_control() => {}
                end => {
                    if let Some(frame) = end {
                        self.mid_message = !frame.fin;
                    }
                    if let Some(data) = data_of(&self.scanner, end) {
                        // The clock is read once, and only for data.
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

    /// Writes our control frame if the handler's write ended at a boundary.
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
            observer.monitor.set_mid_message(self.is_mid_message());
        }
        // The handler's bytes are accepted whatever happens to ours. An error shows up again at the
        // next operation, and after a refusal the driver continues.
        let _ = self.poll_control(io, cx, observer);
        Poll::Ready(Ok(written))
    }

    /// Flushes the transport for the handler.
    pub(crate) fn poll_flush<T: AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        cx: &mut Context<'_>,
        observer: &mut Observer<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_control_bytes(io, cx, observer))?;
        let flushed = Pin::new(io).poll_flush(cx);
        self.digest_flush(flushed, observer)
    }

    /// What follows from a flush of the transport.
    pub(crate) fn digest_flush(
        &mut self,
        flushed: Poll<io::Result<()>>,
        observer: &mut Observer<'_>,
    ) -> Poll<io::Result<()>> {
        if flushed?.is_pending() {
            observer.unflushed();
            return Poll::Pending;
        }
        observer.flushed();
        self.flushed(observer);
        Poll::Ready(Ok(()))
    }

    /// Shuts the transport down, after the rest of a half-written control frame.
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
