//! The driver's visit to a connection, under the lock: go on with what of ours is half done, look
//! for bytes if the handler does not, and do what the monitor says.

use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::end::Departure;
use crate::connection::io::Observer;
use crate::connection::io::{Filled, MAX_READ_AHEAD_BYTES, MAX_READS_PER_VISIT};
use crate::connection::state::{Phase, State};
use crate::connection::timing::DeadlineMove;
use crate::monitor::{Action, Moment, Outlook};

/// Visits in a row that may end without a verdict, because there is more to look at.
const MAX_UNFINISHED_LOOKS: u8 = 64;

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> State<T> {
    /// Does what is due at `now`. `waker` has the driver come by again.
    pub(crate) fn drive(&mut self, now: Moment, waker: &Waker, scratch: &mut [u8]) {
        let Some(timer) = &mut self.timer else {
            return;
        };
        // Its time has come: the wheel has forgotten it, or is about to find it. Either way it is told
        // anew. (The wheel was never further than `now`, or a deadline in between would be lost.)
        let expired = now >= Moment::after_millis(timer.armed);
        if expired {
            timer.armed = u64::MAX;
        }
        match self.phase {
            Phase::Open { .. } => self.drive_open(now, waker, scratch, expired),
            Phase::Evicting { .. } => self.drive_closing(now, waker, scratch),
            Phase::Opening { .. } | Phase::Closed { .. } => {}
        }
        self.rearm(DeadlineMove::BothWays);
        // That was the deadline as it is now.
        self.monitor.take_moved();
    }

    fn drive_open(&mut self, now: Moment, waker: &Waker, scratch: &mut [u8], expired: bool) {
        self.monitor.mid_message(self.write_half.is_mid_message());
        self.monitor.release_ping(now);
        self.push(waker);
        if self.monitor.is_uncertain() {
            self.retry(waker);
        }
        // A control frame of ours that can go on brings the driver here before its time, and perhaps
        // past a deadline that was rounded up: no verdict without a look.
        let look = expired
            || self.reader.by_driver
            || self.reader.pending && !self.read_half.is_drained()
            || self.monitor.is_waiting()
            || now >= self.deadline();
        if look && !self.looked(waker, scratch, false) {
            return;
        }
        if let Some(health_events) = self.health_events.as_mut().filter(|_| look) {
            health_events.look(now);
        }
        loop {
            let Ok((_, read_half, write_half, observer)) = self.parts() else {
                return;
            };
            let outlook = Outlook {
                can_inject: write_half.can_inject(),
                mid_message: write_half.is_mid_message(),
                claimed: write_half.is_claimed(),
                blind: read_half.is_blind(),
            };
            match observer.monitor.poll(now, observer.policy, outlook) {
                Action::Wait => return,
                Action::Ping(payload) => {
                    write_half.ping(payload);
                    self.push(waker);
                    if self.monitor.is_waiting() && !self.looked(waker, scratch, true) {
                        return;
                    }
                }
                Action::Retry => self.retry(waker),
                Action::Evict(reason) => {
                    let frame = self.policy.close_frame(reason);
                    self.begin_closing(reason, frame);
                    return;
                }
                Action::Cut => {
                    self.phase = Phase::Closed {
                        reason: self.monitor.reason(),
                        readable: true,
                    };
                    return;
                }
            }
        }
    }

    /// Goes on with a control frame of ours.
    fn push(&mut self, waker: &Waker) {
        let Ok((io, _, write_half, mut observer)) = self.parts() else {
            return;
        };
        if write_half.is_busy() {
            match write_half.poll_control(io, &mut Context::from_waker(waker), &mut observer) {
                Poll::Pending => {
                    // If the handler waits too, its waker is no longer the transport's. A flush
                    // that waits need not keep it from writing, so it is to try.
                    let flushing = write_half.is_flushing();
                    self.writer.by_driver = true;
                    self.writer.due |= flushing && self.writer.pending;
                    return;
                }
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => self.fail(error.kind()),
            }
        }
        // The transport's waker was ours; the handler has to register its own again.
        if self.writer.by_driver {
            self.writer.by_driver = false;
            self.writer.due = self.writer.pending;
        }
    }

    /// Has everybody who wants to write try again.
    fn retry(&mut self, waker: &Waker) {
        self.push(waker);
        let capabilities = self.capabilities;
        let Ok((io, _, write_half, mut observer)) = self.parts() else {
            return;
        };
        if !write_half.is_busy() || write_half.is_mid_frame() {
            let cx = &mut Context::from_waker(waker);
            let room = write_half.poll_room(io, capabilities, cx, &mut observer);
            self.writer.by_driver = room.is_pending();
            if room.is_ready() && !self.writer.pending && !self.write_half.is_claimed() {
                self.monitor.not_held_up();
            }
        }
        self.writer.due = self.writer.pending;
    }

    /// Whether everything that could be looked at was, so that a verdict may be given.
    ///
    /// A peer that always has more, none of which is the handler's, is not waited for endlessly, or
    /// it would escape all verdicts.
    fn looked(&mut self, waker: &Waker, scratch: &mut [u8], again: bool) -> bool {
        if self.look(waker, scratch, again) || self.looks == MAX_UNFINISHED_LOOKS {
            self.looks = 0;
            return true;
        }
        self.looks += 1;
        false
    }

    /// Looks whether anything has come from the peer, on behalf of a handler that does not.
    ///
    /// Returns false if there may be more that can be looked at: what it is decides the verdict, so
    /// none is to be given before the driver has come by again.
    ///
    /// `again` if this visit has looked before: what is here now has come since.
    fn look(&mut self, waker: &Waker, scratch: &mut [u8], again: bool) -> bool {
        for _ in 0..MAX_READS_PER_VISIT {
            let pending = self.reader.pending && !self.reader.due;
            let handler = self.reader.waker.clone().filter(|_| pending);
            let parked_by_driver = self.reader.by_driver;
            let Ok((io, read_half, _, mut observer)) = self.parts() else {
                return true;
            };
            let room = MAX_READ_AHEAD_BYTES
                .saturating_sub(read_half.ahead())
                .min(scratch.len());
            if room == 0 || read_half.has_ended() {
                return true;
            }
            // A handler that waits is to be woken by the transport itself, unless there is a pong
            // to be kept from it.
            if pending && !parked_by_driver && !again {
                // It was the handler who was to be woken, so whatever is here may have been for
                // long. (A wake-up that finds the handler gone leaves no trace.)
                read_half.distrust();
            }
            let by_driver = handler.is_none() || read_half.is_watched(&observer);
            let waker = handler.as_ref().filter(|_| !by_driver).unwrap_or(waker);
            let mut buf = ReadBuf::new(&mut scratch[..room]);
            let filled =
                read_half.poll_fill(io, &mut Context::from_waker(waker), &mut buf, &mut observer);
            match filled {
                Poll::Pending => {
                    self.reader.by_driver = by_driver;
                    return true;
                }
                Poll::Ready(Ok(Filled::Nothing)) => {}
                Poll::Ready(Ok(Filled::Bytes)) => {
                    let now = observer.now();
                    read_half.put_ahead(buf.filled());
                    observer.monitor.bytes_wait(now);
                    self.reader.due = self.reader.pending;
                }
                Poll::Ready(Ok(Filled::Eof)) => self.reader.due = self.reader.pending,
                Poll::Ready(Err(error)) => {
                    read_half.fail(error);
                    self.reader.due = self.reader.pending;
                }
            }
        }
        // Others wait too: come by again after them.
        self.reader.by_driver = true;
        waker.wake_by_ref();
        false
    }

    fn drive_closing(&mut self, now: Moment, waker: &Waker, scratch: &mut [u8]) {
        let Phase::Evicting { closing } = &mut self.phase else {
            return;
        };
        let (Some(io), Some(timer)) = (&mut self.io, &self.timer) else {
            return;
        };
        let mut observer = Observer {
            monitor: &mut self.monitor,
            policy: &self.policy,
            notes: &mut self.notes,
            ping_waiters: &mut self.ping_waiters,
            clock: timer.driver.clock(),
        };
        let outlook = Outlook {
            can_inject: false,
            mid_message: false,
            claimed: false,
            blind: false,
        };
        let late = observer.monitor.poll(now, observer.policy, outlook) == Action::Cut;
        let cx = &mut Context::from_waker(waker);
        let halves = (&mut self.read_half, &mut self.write_half);
        let closed = closing.poll(io, halves, cx, scratch, &mut observer);
        let clean = match closed {
            Poll::Ready(clean) => clean,
            Poll::Pending if late => closing.is_answered(),
            Poll::Pending => return,
        };
        self.departure = Departure::Untold { clean };
        self.phase = Phase::Closed {
            reason: Some(closing.reason()),
            readable: false,
        };
    }
}
