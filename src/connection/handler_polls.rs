//! The handler's reads, writes, flushes and shutdowns, under the lock.
//!
//! Most operations are routine: `poll_routine_*` polls the transport with the handler's waker and
//! records what passed. The others may have to do more.
//!
//! A transport keeps one waker per direction. This file decides whether it is the handler's or the
//! driver's. Each operation gets the handler's context and `driver_waker`, which makes a waker that
//! schedules the driver for this connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop::has_budget_remaining;

use super::io::{Filled, MAX_READS_PER_VISIT, Observer, Outgoing, Report, WriteHalf};
use super::state::{Parts, State, no_transport};

/// The result of a [routine](State::routine) operation.
pub(crate) enum Routine<R, P = R> {
    /// There is nothing more to do.
    Done(R),
    /// There is: what the transport returned, if it was polled.
    Unusual(Option<P>),
}

/// A read of the transport, and how many bytes the buffer held before.
type PolledRead = (Poll<io::Result<()>>, usize);

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> State<T> {
    /// Reads, if that is routine: one message, or nothing.
    #[inline]
    pub(crate) fn poll_routine_read(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Routine<Poll<io::Result<()>>, PolledRead> {
        let (Some(io), Some(timer), true) = (&mut self.io, &self.timer, self.routine) else {
            return Routine::Unusual(None);
        };
        let before = out.filled().len();
        let read = Pin::new(io).poll_read(cx, out);
        let done = match &read {
            Poll::Ready(Ok(())) => {
                self.reader.pending = false;
                let bytes = &out.filled()[before..];
                let (monitor, clock) = (&mut self.monitor, timer.clock());
                self.read_half
                    .record_message(bytes, clock, monitor, &self.policy)
            }
            Poll::Ready(Err(_)) => false,
            Poll::Pending => {
                let empty = has_budget_remaining()
                    && self.reader.keep(self.reader_waker.as_ref(), cx.waker());
                if empty {
                    self.read_half.record_empty();
                }
                empty
            }
        };
        match done {
            true => Routine::Done(read),
            false => Routine::Unusual(Some((read, before))),
        }
    }

    /// Writes, if that is routine: one message.
    #[inline]
    pub(crate) fn poll_routine_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Routine<Poll<io::Result<usize>>> {
        let (Some(io), Some(timer), true) = (&mut self.io, &self.timer, self.routine) else {
            return Routine::Unusual(None);
        };
        let written = Pin::new(io).poll_write(cx, bytes);
        let (monitor, clock) = (&mut self.monitor, timer.clock());
        let all = matches!(written, Poll::Ready(Ok(written)) if written == bytes.len());
        if all
            && self
                .write_half
                .record_message(bytes, clock, monitor, &self.policy)
        {
            self.writer.pending = false;
            return Routine::Done(written);
        }
        Routine::Unusual(Some(written))
    }

    /// Flushes, if that is routine.
    #[inline]
    pub(crate) fn poll_routine_flush(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Routine<Poll<io::Result<()>>> {
        let (Some(io), true) = (&mut self.io, self.routine) else {
            return Routine::Unusual(None);
        };
        let flushed = Pin::new(io).poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.writer.pending = false;
            return Routine::Done(flushed);
        }
        Routine::Unusual(Some(flushed))
    }

    /// `polled` if the transport was polled already.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
        mut polled: Option<PolledRead>,
        driver_waker: impl Fn() -> Waker,
        report: &mut Report,
    ) -> Poll<io::Result<()>> {
        if !self.monitor.lifecycle.is_usable() {
            return Poll::Ready(self.read_without_transport(out));
        }
        let Parts {
            io,
            read_half,
            mut observer,
            ..
        } = self.parts(report)?;
        if read_half.ahead() > 0 {
            let now = observer.now();
            read_half.take_ahead(out);
            observer.monitor.handler_read(now, read_half.ahead() > 0);
            self.reader.pending = false;
            return Poll::Ready(Ok(()));
        }
        for _ in 0..MAX_READS_PER_VISIT {
            // While a ping is unanswered the driver watches the transport: the handler must not be
            // woken for the pong, and the round trip must not include the handler's delay.
            let by_driver = polled.is_none() && read_half.is_watched(&observer);
            let filled = if let Some((read, before)) = polled.take() {
                read_half.digest(read, before, out, &mut observer)
            } else if by_driver {
                let waker = driver_waker();
                read_half.poll_fill(io, &mut Context::from_waker(&waker), out, &mut observer)
            } else {
                read_half.poll_fill(io, cx, out, &mut observer)
            };
            match filled {
                Poll::Ready(Ok(Filled::Nothing)) => continue,
                Poll::Ready(Ok(Filled::Bytes | Filled::Eof)) => {}
                Poll::Ready(Err(error)) => {
                    self.reader.pending = false;
                    return Poll::Ready(Err(error));
                }
                Poll::Pending => {
                    report.replaced_waker =
                        self.reader
                            .store(&mut self.reader_waker, cx.waker(), by_driver);
                    return Poll::Pending;
                }
            }
            self.reader.pending = false;
            return Poll::Ready(Ok(()));
        }
        // The peer sends nothing but our pongs. Yield, so that the lock is released.
        report.replaced_waker = self.reader.store(&mut self.reader_waker, cx.waker(), false);
        self.reader.due = true;
        Poll::Pending
    }

    /// After an end by the peer, bytes that were read ahead remain the handler's. Every other end
    /// discards them.
    #[cold]
    fn read_without_transport(&mut self, out: &mut ReadBuf<'_>) -> io::Result<()> {
        if self.read_half.take_unread(out) {
            return Ok(());
        }
        Err(no_transport(&self.monitor))
    }

    /// `polled` if `bytes` were offered to the transport already.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: Outgoing<'_>,
        polled: Option<Poll<io::Result<usize>>>,
        driver_waker: impl Fn() -> Waker,
        report: &mut Report,
    ) -> Poll<io::Result<usize>> {
        self.poll_out(cx, driver_waker, report, |io, half, cx, observer| {
            match (bytes, polled) {
                (Outgoing::Slice(bytes), Some(written)) => {
                    half.digest_write(io, cx, written, bytes, observer)
                }
                (Outgoing::Slice(bytes), None) => half.poll_write(io, cx, bytes, observer),
                (Outgoing::Slices(slices), _) => half.poll_write_vectored(io, cx, slices, observer),
            }
        })
    }

    /// `polled` if the transport was flushed already.
    pub(crate) fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        polled: Option<Poll<io::Result<()>>>,
        driver_waker: impl Fn() -> Waker,
        report: &mut Report,
    ) -> Poll<io::Result<()>> {
        self.poll_out(
            cx,
            driver_waker,
            report,
            |io, half, cx, observer| match polled {
                Some(flushed) => half.digest_flush(flushed, observer),
                None => half.poll_flush(io, cx, observer),
            },
        )
    }

    pub(crate) fn poll_shutdown(
        &mut self,
        cx: &mut Context<'_>,
        driver_waker: impl Fn() -> Waker,
        report: &mut Report,
    ) -> Poll<io::Result<()>> {
        if !self.monitor.lifecycle.is_usable() {
            // The driver shuts the transport down, so this cannot fail.
            return Poll::Ready(Ok(()));
        }
        self.poll_out(cx, driver_waker, report, |io, half, cx, observer| {
            observer.monitor.handler_closed(observer.now(), None);
            half.poll_shutdown(io, cx, observer)
        })
    }

    /// One outbound operation of the handler.
    fn poll_out<R>(
        &mut self,
        cx: &mut Context<'_>,
        driver_waker: impl Fn() -> Waker,
        report: &mut Report,
        operation: impl FnOnce(
            &mut T,
            &mut WriteHalf,
            &mut Context<'_>,
            &mut Observer<'_>,
        ) -> Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        let Parts {
            io,
            write_half,
            mut observer,
            ..
        } = self.parts(report)?;
        // The driver continues a control frame of ours, since the handler may stop writing at any
        // time.
        let by_driver = write_half.is_busy();
        let result = if by_driver {
            let waker = driver_waker();
            let cx = &mut Context::from_waker(&waker);
            operation(io, write_half, cx, &mut observer)
        } else {
            operation(io, write_half, cx, &mut observer)
        };
        match &result {
            Poll::Pending => {
                let stored = &mut self.rare.get_or_insert_default().writer_waker;
                report.replaced_waker = self.writer.store(stored, cx.waker(), by_driver);
            }
            Poll::Ready(done) => {
                self.writer.pending = false;
                if let Err(error) = done {
                    self.fail(error.kind());
                }
                self.evict_deferred();
            }
        }
        result
    }
}
