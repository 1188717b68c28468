//! The driver's visit: continues our frames, reads for a handler that does not, acts on the
//! verdict.

use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::io::{Filled, MAX_READ_AHEAD_BYTES, MAX_READS_PER_VISIT, Observer, Report};
use crate::connection::state::{Parts, State};
use crate::driver::DeadlineMove;
use crate::monitor::{Action, IoState, Kernel, Moment, TransportUse};

/// The number of consecutive visits with bytes left unread after which the verdict is given anyway,
/// so that a peer that sends without end does not escape it.
const MAX_UNFINISHED_VISITS: u8 = 64;

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> State<T> {
    /// Does what is due at `now`. `waker` schedules the driver for this connection.
    pub(crate) fn drive(
        &mut self,
        now: Moment,
        waker: &Waker,
        scratch: &mut [u8],
        report: &mut Report,
    ) {
        let Some(timer) = &mut self.timer else {
            return;
        };
        let expired = timer.take_expired(now);
        if self.monitor.lifecycle.is_usable() {
            self.drive_open(now, waker, scratch, expired, report);
            self.check_expiry_warning(now);
        } else if self.monitor.lifecycle.transport() == Some(TransportUse::CloseHandshake) {
            self.drive_close_handshake(now, waker, scratch, report);
        }
        self.rearm(DeadlineMove::Any);
        // The timer entry has the present deadline.
        self.monitor.take_moved();
    }

    fn drive_open(
        &mut self,
        now: Moment,
        waker: &Waker,
        scratch: &mut [u8],
        expired: bool,
        report: &mut Report,
    ) {
        self.monitor
            .set_mid_message(self.write_half.is_mid_message());
        self.monitor.release_ping(now, &self.policy);
        self.continue_control_frame(waker, report);
        if self.monitor.is_uncertain() {
            self.retry_write(waker, report);
        }
        // The driver may be here for a control frame, shortly before the timer entry expires and
        // after the deadline, which is rounded up: no verdict without a read.
        let reads = expired
            || self.reader.by_driver
            || self.reader.pending && !self.read_half.found_empty()
            || self.monitor.awaits_answer()
            || now >= self.deadline();
        if reads && !self.read_before_verdict(waker, scratch, false, report) {
            return;
        }
        if let Some(events) = self.health_events().filter(|_| reads) {
            events.record_read(now);
        }
        let transport = self.transport;
        loop {
            let Ok(Parts {
                io,
                read_half,
                write_half,
                observer,
            }) = self.parts(report)
            else {
                return;
            };
            let io_state = IoState {
                can_inject: write_half.can_inject(),
                mid_message: write_half.is_mid_message(),
                claimed: write_half.is_claimed(),
                read_ahead_full: read_half.is_read_ahead_full(),
            };
            let clock = observer.clock;
            let ask = || (transport.kernel_view)(io, &|| clock.now());
            let heartbeat = observer.policy.heartbeat.as_ref();
            let widen_receive_window = || {
                if let Some(heartbeat) = heartbeat {
                    (transport.widen_receive_window)(io, heartbeat);
                }
            };
            let kernel = &mut Kernel::new(&ask, &widen_receive_window);
            let action = observer
                .monitor
                .poll(now, observer.policy, io_state, kernel);
            match action {
                Action::Wait => return,
                Action::Ping(payload) => {
                    write_half.queue_ping(payload);
                    self.continue_control_frame(waker, report);
                    if self.monitor.awaits_answer()
                        && !self.read_before_verdict(waker, scratch, true, report)
                    {
                        return;
                    }
                }
                Action::Retry => self.retry_write(waker, report),
                Action::Evict(reason) => {
                    report.kernel = kernel.judged().map(Box::new);
                    let frame = self.policy.close_frame(reason);
                    self.begin_close_handshake(reason, frame);
                    return;
                }
                Action::Cut => {
                    self.monitor.lifecycle.release(false);
                    return;
                }
            }
        }
    }

    /// Writes the rest of a control frame of ours.
    fn continue_control_frame(&mut self, waker: &Waker, report: &mut Report) {
        let Ok(Parts {
            io,
            write_half,
            mut observer,
            ..
        }) = self.parts(report)
        else {
            return;
        };
        if write_half.is_busy() {
            let cx = &mut Context::from_waker(waker);
            match write_half.poll_control(io, cx, &mut observer) {
                Poll::Pending => {
                    // The transport has the driver's waker now, and the handler's is lost. A
                    // pending flush need not keep the handler from writing, so the handler must
                    // poll again.
                    let flushing = write_half.is_flushing();
                    self.writer.by_driver = true;
                    self.writer.due |= flushing && self.writer.pending;
                    return;
                }
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => self.fail(error.kind()),
            }
        }
        // The transport had the driver's waker; the handler must poll again to register its own.
        if self.writer.by_driver {
            self.writer.by_driver = false;
            self.writer.due = self.writer.pending;
        }
    }

    /// Retries a refused write: our control frame, and the handler's write by waking it.
    fn retry_write(&mut self, waker: &Waker, report: &mut Report) {
        self.continue_control_frame(waker, report);
        let transport = self.transport;
        let Ok(Parts {
            io,
            write_half,
            mut observer,
            ..
        }) = self.parts(report)
        else {
            return;
        };
        if !write_half.is_busy() || write_half.is_mid_frame() {
            let cx = &mut Context::from_waker(waker);
            let room = write_half.poll_room(io, transport, cx, &mut observer);
            self.writer.by_driver = room.is_pending();
            if room.is_ready() && !self.writer.pending && !self.write_half.is_claimed() {
                self.monitor.not_refused();
            }
        }
        self.writer.due = self.writer.pending;
    }

    /// Reads, and returns whether a verdict may be given: all bytes were read, or too many visits
    /// in a row left some.
    fn read_before_verdict(
        &mut self,
        waker: &Waker,
        scratch: &mut [u8],
        again: bool,
        report: &mut Report,
    ) -> bool {
        let all = self.read_for_handler(waker, scratch, again, report);
        let unfinished = &mut self.read_half.unfinished_visits;
        if all || *unfinished == MAX_UNFINISHED_VISITS {
            *unfinished = 0;
            return true;
        }
        *unfinished += 1;
        false
    }

    /// Reads on behalf of a handler that does not read.
    ///
    /// Returns false if there may be more to read. The rest decides the verdict, so none may be
    /// given before the next visit. `again` if this visit has read before: the bytes that are here
    /// now have arrived since.
    fn read_for_handler(
        &mut self,
        waker: &Waker,
        scratch: &mut [u8],
        again: bool,
        report: &mut Report,
    ) -> bool {
        for _ in 0..MAX_READS_PER_VISIT {
            let pending = self.reader.pending && !self.reader.due;
            let handler = self.reader_waker.clone().filter(|_| pending);
            let was_by_driver = self.reader.by_driver;
            let Ok(Parts {
                io,
                read_half,
                mut observer,
                ..
            }) = self.parts(report)
            else {
                return true;
            };
            let room = MAX_READ_AHEAD_BYTES
                .saturating_sub(read_half.ahead())
                .min(scratch.len());
            if room == 0 || read_half.has_ended() {
                return true;
            }
            if pending && !was_by_driver && !again {
                // The transport had the handler's waker, so bytes may have been here for long. (The
                // wake-up of a handler that no longer polls is lost.)
                read_half.clear_found_empty();
            }
            // The transport wakes a pending handler directly, unless a pong must be kept from it.
            let by_driver = handler.is_none() || read_half.is_watched(&observer);
            let waker = handler.as_ref().filter(|_| !by_driver).unwrap_or(waker);
            let cx = &mut Context::from_waker(waker);
            let mut buf = ReadBuf::new(&mut scratch[..room]);
            match read_half.poll_fill(io, cx, &mut buf, &mut observer) {
                Poll::Pending => {
                    self.reader.by_driver = by_driver;
                    return true;
                }
                Poll::Ready(Ok(Filled::Nothing)) => {}
                Poll::Ready(Ok(Filled::Bytes)) => {
                    let now = observer.now();
                    read_half.put_ahead(buf.filled());
                    observer.monitor.on_backlog(now);
                    self.reader.due = self.reader.pending;
                }
                Poll::Ready(Ok(Filled::Eof)) => self.reader.due = self.reader.pending,
                Poll::Ready(Err(error)) => {
                    read_half.fail(error);
                    self.reader.due = self.reader.pending;
                }
            }
        }
        // Visit the other connections before this one again.
        self.reader.by_driver = true;
        waker.wake_by_ref();
        false
    }

    fn drive_close_handshake(
        &mut self,
        now: Moment,
        waker: &Waker,
        scratch: &mut [u8],
        report: &mut Report,
    ) {
        let (Some(rare), Some(io), Some(timer)) = (&mut self.rare, &mut self.io, &self.timer)
        else {
            return;
        };
        let Some(close) = &mut rare.close else {
            return;
        };
        let mut observer = Observer {
            monitor: &mut self.monitor,
            policy: &self.policy,
            report,
            ping_waiters: rare.ping_waiters.as_deref_mut(),
            clock: timer.clock(),
        };
        let io_state = IoState {
            can_inject: false,
            mid_message: false,
            claimed: false,
            read_ahead_full: false,
        };
        // No verdict of the closing handshake depends on the kernel.
        let kernel = &mut Kernel::new(&|| None, &|| ());
        let action = observer
            .monitor
            .poll(now, observer.policy, io_state, kernel);
        let late = action == Action::Cut;
        let cx = &mut Context::from_waker(waker);
        let halves = (&mut self.read_half, &mut self.write_half);
        let clean = match close.poll(io, halves, cx, scratch, &mut observer) {
            Poll::Ready(clean) => clean,
            Poll::Pending if late => close.is_answered(),
            Poll::Pending => return,
        };
        self.monitor.lifecycle.release(clean);
    }
}
