//! The inbound half: scans bytes where they land, and cuts out the pongs to our pings.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};

use super::observer::{Observer, data_of};
use super::pong_buffer::PongBuffer;
use super::report::Direction;
use crate::driver::Clock;
use crate::monitor::{Moment, Monitor, Policy};
use crate::wire::{OpCode, Probe, Scanner, probe_pong};

/// The most bytes that the driver reads ahead for a handler that does not read.
pub(crate) const MAX_READ_AHEAD_BYTES: usize = 16 * 1024;

/// Reads that follow one another faster than this belong to one burst.
const SAME_BURST: Duration = Duration::from_millis(1);

/// Bounds the reads under one lock: a peer that sends only our pongs must not hold it forever.
pub(crate) const MAX_READS_PER_VISIT: usize = 16;

/// The inbound half of a connection.
#[derive(Debug)]
pub(crate) struct ReadHalf {
    scanner: Scanner,
    /// Made on demand, and then kept.
    unread: Option<Box<Unread>>,
    /// The transport will return no more bytes.
    ended: bool,
    /// The peer's Close frame was received.
    closed: bool,
    /// Frame boundaries are lost, and that was reported.
    passive: bool,
    /// The last read found the transport empty.
    found_empty: bool,
    /// The earliest arrival of the bytes of the present burst, and how many were read in it.
    burst_since: Moment,
    burst_bytes: u16,
    /// When the first read took place after the transport was found empty: bytes that are read now
    /// may have arrived since then.
    filled_since: Moment,
    /// Visits of the driver in a row that left bytes unread.
    pub(crate) unfinished_visits: u8,
}

/// The result of one read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    /// Bytes for the handler.
    Bytes,
    /// Only bytes that were cut out or held back: read again. Zero bytes would mean the end of the
    /// stream.
    Nothing,
    /// The peer ended its direction.
    Eof,
}

impl ReadHalf {
    pub(crate) fn new() -> Self {
        Self {
            scanner: Scanner::new(),
            unread: None,
            ended: false,
            closed: false,
            passive: false,
            found_empty: false,
            burst_since: Moment::START,
            burst_bytes: 0,
            filled_since: Moment::START,
            unfinished_visits: 0,
        }
    }

    /// Moves bytes that were read ahead into `out`, as many as fit.
    pub(crate) fn take_ahead(&mut self, out: &mut ReadBuf<'_>) {
        if let Some(unread) = &mut self.unread {
            unread.ahead.take(out);
        }
    }

    /// Moves all bytes that wait for the handler into `out`, as many as fit. Returns whether there
    /// were any. Needs no transport.
    pub(crate) fn take_unread(&mut self, out: &mut ReadBuf<'_>) -> bool {
        let before = out.filled().len();
        self.take_ahead(out);
        if self.ahead() == 0 {
            self.give_from_pong_buffer(out);
        }
        out.filled().len() > before
    }

    /// Whether the last read found the transport empty.
    pub(crate) fn found_empty(&self) -> bool {
        self.found_empty
    }

    /// The next bytes may have arrived long ago, although the last read found the transport empty.
    pub(crate) fn clear_found_empty(&mut self) {
        self.found_empty = false;
    }

    /// Discards the bytes that wait for the handler.
    pub(crate) fn discard_unread(&mut self) {
        if let Some(unread) = &mut self.unread {
            unread.ahead = ReadAhead::default();
            unread.pong_buffer.discard_cleared();
        }
    }

    /// Keeps `bytes` for the handler.
    pub(crate) fn put_ahead(&mut self, bytes: &[u8]) {
        self.unread().ahead.put(bytes);
    }

    /// How many bytes wait for the handler.
    pub(crate) fn ahead(&self) -> usize {
        self.unread.as_ref().map_or(0, |unread| unread.ahead.len())
    }

    /// Whether the read-ahead buffer is full, so that further bytes of the peer cannot be read.
    pub(crate) fn is_read_ahead_full(&self) -> bool {
        self.ahead() >= MAX_READ_AHEAD_BYTES
    }

    /// Keeps an error for the handler's next read.
    pub(crate) fn fail(&mut self, error: io::Error) {
        self.ended = true;
        self.unread().failure = Some(error);
    }

    /// A poll panicked: no more bytes are read.
    pub(crate) fn mark_ended(&mut self) {
        self.ended = true;
    }

    /// Whether the driver must watch for inbound bytes: a pong is awaited, or the rest of one.
    pub(crate) fn is_watched(&self, observer: &Observer<'_>) -> bool {
        observer.awaits_pong() || self.holds_pong_bytes()
    }

    /// Whether the peer's Close frame has come.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether the transport will return no more bytes.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether a read needs only the transport: no bytes were read before that the handler lacks.
    pub(crate) fn is_routine(&self) -> bool {
        self.ahead() == 0 && !self.holds_pong_bytes() && !self.ended
    }

    /// Records a read of exactly one message. Returns false and does nothing if `bytes` are
    /// anything else.
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
        let now = clock.now();
        self.update_burst(now, monitor.last_inbound(), bytes.len());
        self.found_empty = false;
        monitor.message_in(now, self.burst_since, bytes.len(), policy);
        true
    }

    /// Records that a read found the transport empty.
    pub(crate) fn record_empty(&mut self) {
        self.found_empty = true;
    }

    /// Reads once from `io` into `out`, scans the bytes and cuts out our pongs.
    ///
    /// `out` must have room.
    pub(crate) fn poll_fill<T: AsyncRead + Unpin>(
        &mut self,
        io: &mut T,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
        observer: &mut Observer<'_>,
    ) -> Poll<io::Result<Filled>> {
        let before = out.filled().len();
        if self.give_from_pong_buffer(out) {
            return Poll::Ready(Ok(Filled::Bytes));
        }
        if self.ended {
            let unread = self.unread.as_mut();
            return Poll::Ready(match unread.and_then(|unread| unread.failure.take()) {
                Some(error) => Err(error),
                None => Ok(Filled::Eof),
            });
        }
        if !self.holds_pong_bytes() {
            let read = Pin::new(io).poll_read(cx, out);
            return self.digest(read, before, out, observer);
        }
        let read = self.poll_fill_pong_buffer(io, cx, observer);
        self.after_read(read, before, out, observer)
    }

    /// Scans the bytes of a read, those behind the first `before` of `out`, and cuts out our pongs.
    pub(crate) fn digest(
        &mut self,
        read: Poll<io::Result<()>>,
        before: usize,
        out: &mut ReadBuf<'_>,
        observer: &mut Observer<'_>,
    ) -> Poll<io::Result<Filled>> {
        let read = match read {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(self.scan_in_place(before, out, observer))),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        };
        self.after_read(read, before, out, observer)
    }

    /// What follows from a read of this many bytes, which are scanned.
    fn after_read(
        &mut self,
        read: Poll<io::Result<usize>>,
        before: usize,
        out: &mut ReadBuf<'_>,
        observer: &mut Observer<'_>,
    ) -> Poll<io::Result<Filled>> {
        self.found_empty = read.is_pending() && observer.found_nothing();
        match ready!(read) {
            Ok(0) => {
                self.ended = true;
                observer.eof();
                Poll::Ready(Ok(if self.release_candidate(out) {
                    Filled::Bytes
                } else {
                    Filled::Eof
                }))
            }
            Ok(_) => {
                self.give_from_pong_buffer(out);
                let got = out.filled().len() > before;
                Poll::Ready(Ok(if got { Filled::Bytes } else { Filled::Nothing }))
            }
            Err(error) => {
                self.ended = true;
                observer.read_failed(error.kind());
                if self.release_candidate(out) {
                    self.unread().failure = Some(error);
                    return Poll::Ready(Ok(Filled::Bytes));
                }
                Poll::Ready(Err(error))
            }
        }
    }

    /// Gives an incomplete pong to the handler: its rest will not come. Returns whether there was
    /// one.
    fn release_candidate(&mut self, out: &mut ReadBuf<'_>) -> bool {
        let Some(unread) = &mut self.unread else {
            return false;
        };
        unread.pong_buffer.release();
        unread.pong_buffer.give(out)
    }

    /// Moves bytes that turned out not to be a pong into `out`. Returns whether there were any.
    fn give_from_pong_buffer(&mut self, out: &mut ReadBuf<'_>) -> bool {
        let unread = self.unread.as_mut();
        unread.is_some_and(|unread| unread.pong_buffer.give(out))
    }

    fn holds_pong_bytes(&self) -> bool {
        let unread = self.unread.as_ref();
        unread.is_some_and(|unread| !unread.pong_buffer.is_empty())
    }

    fn unread(&mut self) -> &mut Unread {
        self.unread.get_or_insert_default()
    }

    /// Scans bytes in the caller's buffer. Returns how many were read.
    fn scan_in_place(
        &mut self,
        before: usize,
        out: &mut ReadBuf<'_>,
        observer: &mut Observer<'_>,
    ) -> usize {
        let fresh = &mut out.filled_mut()[before..];
        let read = fresh.len();
        if read == 0 {
            return 0;
        }
        let (kept, candidate) = self.scan_and_cut(fresh, read, observer);
        if candidate > 0 {
            let candidate = &fresh[kept..kept + candidate];
            self.unread().pong_buffer.store(candidate);
        }
        out.set_filled(before + kept);
        read
    }

    /// After a read that ended inside a possible pong: reads its rest into the pong buffer,
    /// whatever the size of the caller's buffer. An unmasked pong is shorter than the pong buffer,
    /// so the bytes behind it may pass through it too.
    fn poll_fill_pong_buffer<T: AsyncRead + Unpin>(
        &mut self,
        io: &mut T,
        cx: &mut Context<'_>,
        observer: &mut Observer<'_>,
    ) -> Poll<io::Result<usize>> {
        let PongBuffer { mut bytes, len, .. } = self.unread().pong_buffer;
        let already = usize::from(len);
        let mut buf = ReadBuf::new(&mut bytes[already..]);
        ready!(Pin::new(io).poll_read(cx, &mut buf))?;
        let read = buf.filled().len();
        if read == 0 {
            return Poll::Ready(Ok(0));
        }
        let (kept, candidate) = self.scan_and_cut(&mut bytes[..already + read], read, observer);
        self.unread().pong_buffer = PongBuffer {
            bytes,
            cleared: kept as u8,
            len: (kept + candidate) as u8,
        };
        Poll::Ready(Ok(read))
    }

    /// Updates the earliest time at which the `read` bytes can have arrived. `last` is the moment of
    /// the previous read.
    ///
    /// Transports return a record or a buffer at a time, so the bytes of one burst may all have
    /// arrived at its start. A burst is bounded, since a peer that never stops sending is alive.
    #[inline]
    fn update_burst(&mut self, now: Moment, last: Moment, read: usize) {
        if self.found_empty {
            (self.burst_since, self.burst_bytes, self.filled_since) = (now, 0, now);
        } else if now.since(last) >= SAME_BURST
            || usize::from(self.burst_bytes) > MAX_READ_AHEAD_BYTES
        {
            (self.burst_since, self.burst_bytes) = (last, 0);
        }
        self.burst_bytes = self
            .burst_bytes
            .saturating_add(u16::try_from(read).unwrap_or(u16::MAX));
    }

    /// Scans `bytes`, the last `read` of which are new, and cuts out our pongs.
    ///
    /// Afterwards `bytes` starts with the handler's bytes, followed by what may be the beginning of
    /// a pong of ours. Returns the lengths of both.
    fn scan_and_cut(
        &mut self,
        bytes: &mut [u8],
        read: usize,
        observer: &mut Observer<'_>,
    ) -> (usize, usize) {
        let now = observer.now();
        let last = observer.monitor.last_inbound();
        self.update_burst(now, last, read);
        let unseen = now.since(self.burst_since);
        let earliest = self.found_empty.then_some(last);
        // A round trip must not include the handler's delay: only while the driver watches is the
        // time of arrival known.
        let unread = match observer.awaits_pong() {
            true => now.since(self.filled_since),
            false => Duration::MAX,
        };
        let mut mid_frame = !self.scanner.at_boundary();
        let (mut from, mut kept, mut candidate) = (0, 0, 0);
        while from < bytes.len() {
            if self.scanner.at_boundary() && observer.monitor.expects_pongs() {
                match probe_pong(&bytes[from..]) {
                    Probe::Pong { payload, frame_len }
                        if observer.pong(now, (unseen, unread), earliest, payload) =>
                    {
                        from += frame_len;
                        continue;
                    }
                    Probe::NeedMore => {
                        candidate = bytes.len() - from;
                        break;
                    }
                    Probe::Pong { .. } | Probe::No => {}
                }
            }
            let (passed, frame) = self.scanner.advance(&bytes[from..]);
            if kept != from {
                bytes.copy_within(from..from + passed, kept);
            }
            from += passed;
            kept += passed;
            match frame {
                Some(frame) if frame.opcode == OpCode::Close => {
                    self.closed = true;
                    observer.monitor.peer_closed(now, frame.close_code);
                }
                Some(frame) if frame.opcode.is_control() => {
                    observer.monitor.control_in(now, earliest, observer.policy);
                }
                end => {
                    if let Some(data) = data_of(&self.scanner, end) {
                        observer.monitor.data_in(now, data, observer.policy);
                    }
                }
            }
        }
        if candidate > 0 {
            bytes.copy_within(from..from + candidate, kept);
        }
        if let (Some(rule), false) = (self.scanner.malformed(), self.passive) {
            self.passive = true;
            observer.malformed(Direction::Inbound, rule);
        }
        mid_frame |= candidate > 0 || !self.scanner.at_boundary();
        observer
            .monitor
            .received(now, unseen, read, mid_frame, observer.policy);
        (kept, candidate)
    }
}

/// What waits for the handler's next read. A connection has some only while the driver reads for its
/// handler, as while a ping is unanswered, or after an error.
#[derive(Debug, Default)]
struct Unread {
    ahead: ReadAhead,
    pong_buffer: PongBuffer,
    /// The error with which the transport ended.
    failure: Option<io::Error>,
}

/// Bytes that the driver read on behalf of the handler.
#[derive(Debug, Default)]
struct ReadAhead {
    bytes: Vec<u8>,
    /// How many of them the handler has read. Less than all, unless there are none.
    taken: usize,
}

impl ReadAhead {
    fn len(&self) -> usize {
        self.bytes.len() - self.taken
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        let len = self.bytes.len() + bytes.len();
        if len > self.bytes.capacity() {
            // `extend_from_slice` would double the capacity beyond the limit.
            let capacity = (2 * self.bytes.capacity()).min(MAX_READ_AHEAD_BYTES);
            let more = capacity.max(len) - self.bytes.len();
            self.bytes.reserve_exact(more);
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Moves bytes into `out`, as many as fit. Frees the buffer with the last of them.
    fn take(&mut self, out: &mut ReadBuf<'_>) {
        let waiting = &self.bytes[self.taken..];
        let count = waiting.len().min(out.remaining());
        out.put_slice(&waiting[..count]);
        self.taken += count;
        if self.len() == 0 {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_read_ahead_buffer_never_holds_more_than_the_limit() {
        for first in [1, 9_000, MAX_READ_AHEAD_BYTES - 1] {
            let mut half = ReadHalf::new();
            half.put_ahead(&vec![0; first]);
            while half.ahead() < MAX_READ_AHEAD_BYTES {
                half.put_ahead(&[0]);
            }
            let capacity = half.unread().ahead.bytes.capacity();
            assert_eq!(capacity, MAX_READ_AHEAD_BYTES, "first {first}");
        }
    }
}
