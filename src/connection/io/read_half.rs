//! The way in: bytes are scanned where they land, our own pongs are cut out of them, and what the
//! driver read while the handler was away is kept for it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};

use super::observer::{Direction, Observer, data_of};
use super::pong_buffer::PongBuffer;
use crate::monitor::Moment;
use crate::wire::{OpCode, Probe, Scanner, probe_pong};

/// How much the driver reads on behalf of a handler that does not.
pub(crate) const MAX_READ_AHEAD_BYTES: usize = 16 * 1024;

/// Reads that follow one another faster than this are one look.
const SAME_BURST: Duration = Duration::from_millis(1);

/// Reads in a row, so that nobody can be kept busy by bytes that are nobody's.
pub(crate) const MAX_READS_PER_VISIT: usize = 16;

/// The inbound half of a connection.
#[derive(Debug)]
pub(crate) struct ReadHalf {
    scanner: Scanner,
    held: PongBuffer,
    ahead: Option<Box<Ahead>>,
    /// The transport has nothing more to give.
    ended: bool,
    /// Why not, if the driver has seen it fail: kept for the handler's next read.
    failure: Option<io::Error>,
    /// The peer's Close frame has come.
    closed: bool,
    /// The scanner has given up, and that was reported.
    passive: bool,
    /// The last look at the transport found nothing, so nothing has been waiting since.
    drained: bool,
    /// What is being read may have come at any time since then, and how much that is.
    since: Moment,
    run: u32,
    /// The first read after the transport was last seen empty: what is read now may have lain there
    /// since then, whatever was read before it.
    filled: Moment,
}

/// What one step of reading brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    /// Bytes for the handler.
    Bytes,
    /// Nothing but bytes that were cut out or held back: ask again. To hand zero bytes on would
    /// mean the end of the stream.
    Nothing,
    /// The peer ended its direction.
    Eof,
}

impl ReadHalf {
    pub(crate) fn new() -> Self {
        Self {
            scanner: Scanner::new(),
            held: PongBuffer::default(),
            ahead: None,
            ended: false,
            failure: None,
            closed: false,
            passive: false,
            drained: false,
            since: Moment::START,
            run: 0,
            filled: Moment::START,
        }
    }

    /// DeadlineMove what was read ahead into `out`, as far as it fits.
    pub(crate) fn take_ahead(&mut self, out: &mut ReadBuf<'_>) {
        let Some(ahead) = &mut self.ahead else {
            return;
        };
        let waiting = &ahead.bytes[ahead.taken..];
        let count = waiting.len().min(out.remaining());
        out.put_slice(&waiting[..count]);
        ahead.taken += count;
        if ahead.taken == ahead.bytes.len() {
            self.ahead = None;
        }
    }

    /// DeadlineMove whatever waits for the handler into `out`, as far as it fits. Returns whether anything
    /// did. The transport may be gone by now; these bytes are the handler's all the same.
    pub(crate) fn take_left(&mut self, out: &mut ReadBuf<'_>) -> bool {
        let before = out.filled().len();
        self.take_ahead(out);
        if self.ahead.is_none() {
            self.held.give(out);
        }
        out.filled().len() > before
    }

    /// The last look at the transport found nothing.
    pub(crate) fn is_drained(&self) -> bool {
        self.drained
    }

    /// What comes next may have been there before, though the last look found nothing.
    pub(crate) fn distrust(&mut self) {
        self.drained = false;
    }

    /// Nobody will read what was read ahead.
    pub(crate) fn forget_ahead(&mut self) {
        self.ahead = None;
    }

    /// Keeps `bytes` for the handler.
    pub(crate) fn put_ahead(&mut self, bytes: &[u8]) {
        let ahead = self.ahead.get_or_insert_default();
        ahead.bytes.drain(..ahead.taken);
        ahead.taken = 0;
        ahead.bytes.extend_from_slice(bytes);
    }

    /// How many bytes wait for the handler.
    pub(crate) fn ahead(&self) -> usize {
        self.ahead
            .as_ref()
            .map_or(0, |ahead| ahead.bytes.len() - ahead.taken)
    }

    /// No more may be read ahead, so whatever else the peer sent cannot be seen.
    pub(crate) fn is_blind(&self) -> bool {
        self.ahead() >= MAX_READ_AHEAD_BYTES
    }

    /// Keeps an error that the driver met for the handler's next read.
    pub(crate) fn fail(&mut self, error: io::Error) {
        self.ended = true;
        self.failure = Some(error);
    }

    /// The transport is in no state to be polled.
    pub(crate) fn give_up(&mut self) {
        self.ended = true;
    }

    /// The driver is to observer for bytes: those that somebody waits for, or the rest of what may be a
    /// pong of ours.
    pub(crate) fn is_watched(&self, observer: &Observer<'_>) -> bool {
        observer.is_awaited() || !self.held.is_empty()
    }

    /// Whether the peer's Close frame has come.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether the transport has nothing more to give.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Reads once from `io` into `out`, and scans what came.
    ///
    /// `out` must have room. What the read brings is in `out` when this returns, minus our pongs.
    pub(crate) fn poll_fill<T: AsyncRead + Unpin>(
        &mut self,
        io: &mut T,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
        observer: &mut Observer<'_>,
    ) -> Poll<io::Result<Filled>> {
        let before = out.filled().len();
        if self.held.give(out) {
            return Poll::Ready(Ok(Filled::Bytes));
        }
        if self.ended {
            return Poll::Ready(match self.failure.take() {
                Some(error) => Err(error),
                None => Ok(Filled::Eof),
            });
        }
        let read = if self.held.is_empty() {
            self.poll_fill_in_place(io, cx, out, observer)
        } else {
            self.poll_fill_held(io, cx, observer)
        };
        self.drained = read.is_pending() && observer.found_nothing();
        match ready!(read) {
            Ok(0) => {
                self.ended = true;
                observer.monitor.eof(observer.now());
                Poll::Ready(Ok(if self.give_up_candidate(out) {
                    Filled::Bytes
                } else {
                    Filled::Eof
                }))
            }
            Ok(_) => {
                self.held.give(out);
                let got = out.filled().len() > before;
                Poll::Ready(Ok(if got { Filled::Bytes } else { Filled::Nothing }))
            }
            Err(error) => {
                self.ended = true;
                match error.kind() {
                    // How TLS calls an end of the transport that the peer's TLS did not announce: it
                    // was killed, or is one of the many that never do.
                    io::ErrorKind::UnexpectedEof => observer.monitor.eof(observer.now()),
                    kind => observer.monitor.failed(observer.now(), kind),
                }
                if self.give_up_candidate(out) {
                    self.failure = Some(error);
                    return Poll::Ready(Ok(Filled::Bytes));
                }
                Poll::Ready(Err(error))
            }
        }
    }

    /// The beginning of what might have become a pong never will be one: it is the handler's.
    fn give_up_candidate(&mut self, out: &mut ReadBuf<'_>) -> bool {
        self.held.release();
        self.held.give(out)
    }

    /// The usual way: straight into the caller's buffer, which is scanned there.
    fn poll_fill_in_place<T: AsyncRead + Unpin>(
        &mut self,
        io: &mut T,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
        observer: &mut Observer<'_>,
    ) -> Poll<io::Result<usize>> {
        let before = out.filled().len();
        ready!(Pin::new(io).poll_read(cx, out))?;
        let fresh = &mut out.filled_mut()[before..];
        let read = fresh.len();
        if read == 0 {
            return Poll::Ready(Ok(0));
        }
        let (kept, candidate) = self.digest(fresh, observer);
        self.held.hold(&fresh[kept..kept + candidate]);
        out.set_filled(before + kept);
        Poll::Ready(Ok(read))
    }

    /// After a read that ended inside a possible pong: completes it in the small buffer, whatever
    /// the size of the caller's. An unmasked pong is shorter than the buffer, so the first bytes behind it
    /// pass through the buffer as well.
    fn poll_fill_held<T: AsyncRead + Unpin>(
        &mut self,
        io: &mut T,
        cx: &mut Context<'_>,
        observer: &mut Observer<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut bytes = self.held.bytes;
        let already = usize::from(self.held.len);
        let mut buf = ReadBuf::new(&mut bytes[already..]);
        ready!(Pin::new(io).poll_read(cx, &mut buf))?;
        let read = buf.filled().len();
        if read == 0 {
            return Poll::Ready(Ok(0));
        }
        let (kept, candidate) = self.digest_counted(&mut bytes[..already + read], read, observer);
        self.held = PongBuffer {
            bytes,
            cleared: kept as u8,
            len: (kept + candidate) as u8,
        };
        Poll::Ready(Ok(read))
    }

    /// How long the `read` bytes that are seen now may have lain unread; `last` were those before.
    ///
    /// Transports give out a record or a buffer at a time: what they give out in a row came at once,
    /// as far as anybody knows. But a peer that is never done is alive.
    fn unseen(&mut self, now: Moment, last: Moment, read: usize) -> Duration {
        if self.drained {
            (self.since, self.run, self.filled) = (now, 0, now);
        } else if now.since(last) >= SAME_BURST || self.run > MAX_READ_AHEAD_BYTES as u32 {
            (self.since, self.run) = (last, 0);
        }
        self.run = self
            .run
            .saturating_add(u32::try_from(read).unwrap_or(u32::MAX));
        now.since(self.since)
    }

    fn digest(&mut self, bytes: &mut [u8], observer: &mut Observer<'_>) -> (usize, usize) {
        let read = bytes.len();
        self.digest_counted(bytes, read, observer)
    }

    /// Scans `bytes`, the last `read` of which are new, and cuts our pongs out.
    ///
    /// Afterwards `bytes` starts with what is for the handler, followed by what may be the
    /// beginning of a pong of ours. Returns the lengths of both.
    fn digest_counted(
        &mut self,
        bytes: &mut [u8],
        read: usize,
        observer: &mut Observer<'_>,
    ) -> (usize, usize) {
        let now = observer.now();
        let last = observer.monitor.last_inbound();
        let unseen = self.unseen(now, last, read);
        let earliest = self.drained.then_some(last);
        // A handler that was woken for a pong may have come late, and a round trip is at stake: only
        // the driver is known to have been there at once.
        let unread = match observer.is_awaited() {
            true => now.since(self.filled),
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
        bytes.copy_within(from..from + candidate, kept);
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

#[derive(Debug, Default)]
struct Ahead {
    bytes: Vec<u8>,
    taken: usize,
}
