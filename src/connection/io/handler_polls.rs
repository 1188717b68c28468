//! The handler's operations on its stream, under the lock.
//!
//! Each is given the handler's context and `driver`, which makes a waker that has the driver look
//! after the connection: the transport keeps one waker per direction, and this is where it is
//! decided whose. A waker that is no longer needed is left in `spent`, to be dropped without the lock:
//! it may be the last one of its task, whose drop may then use the connection.

use std::io::{self, IoSlice};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::end::Departure;
use crate::connection::io::Observer;
use crate::connection::io::WriteHalf;
use crate::connection::io::{Filled, MAX_READS_PER_VISIT};
use crate::connection::state::{Phase, State};
use crate::connection::timing::CloseHandshake;
use crate::monitor::Reason;

/// What the handler writes.
pub(crate) enum Outgoing<'a> {
    Slice(&'a [u8]),
    Slices(&'a [IoSlice<'a>]),
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> State<T> {
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
        driver: impl Fn() -> Waker,
        spent: &mut Option<Waker>,
    ) -> Poll<io::Result<()>> {
        if let Phase::Closed { readable: true, .. } = self.phase {
            if self.read_half.take_left(out) {
                return Poll::Ready(Ok(()));
            }
        }
        let (io, read_half, _, mut observer) = self.parts()?;
        if read_half.ahead() > 0 {
            let now = observer.now();
            read_half.take_ahead(out);
            observer.monitor.handler_read(now, read_half.ahead() > 0);
            self.reader.pending = false;
            return Poll::Ready(Ok(()));
        }
        for _ in 0..MAX_READS_PER_VISIT {
            // While a ping is unanswered the driver watches the transport: the pong is not the
            // handler's business, and its round trip should not include the handler's delay.
            let by_driver = read_half.is_watched(&observer);
            let filled = if by_driver {
                let waker = driver();
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
                    *spent = self.reader.park(cx.waker(), by_driver);
                    return Poll::Pending;
                }
            }
            self.reader.pending = false;
            return Poll::Ready(Ok(()));
        }
        // A peer that repeats our pongs for ever shall not keep the connection's lock for ever.
        *spent = self.reader.park(cx.waker(), false);
        self.reader.due = true;
        Poll::Pending
    }

    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        driver: impl Fn() -> Waker,
        bytes: Outgoing<'_>,
        spent: &mut Option<Waker>,
    ) -> Poll<io::Result<usize>> {
        self.poll_out(
            cx,
            driver,
            spent,
            |io, write_half, cx, observer| match bytes {
                Outgoing::Slice(bytes) => write_half.poll_write(io, cx, bytes, observer),
                Outgoing::Slices(slices) => {
                    write_half.poll_write_vectored(io, cx, slices, observer)
                }
            },
        )
    }

    pub(crate) fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        driver: impl Fn() -> Waker,
        spent: &mut Option<Waker>,
    ) -> Poll<io::Result<()>> {
        self.poll_out(cx, driver, spent, |io, write_half, cx, observer| {
            write_half.poll_flush(io, cx, observer)
        })
    }

    pub(crate) fn poll_shutdown(
        &mut self,
        cx: &mut Context<'_>,
        driver: impl Fn() -> Waker,
        spent: &mut Option<Waker>,
    ) -> Poll<io::Result<()>> {
        if !matches!(self.phase, Phase::Open { .. }) {
            // The driver shuts an evicted connection down; there is nothing left to fail.
            return Poll::Ready(Ok(()));
        }
        self.poll_out(cx, driver, spent, |io, write_half, cx, observer| {
            observer.monitor.server_closed(observer.clock.now(), None);
            write_half.poll_shutdown(io, cx, observer)
        })
    }

    /// One operation of the handler on the way out.
    fn poll_out<R>(
        &mut self,
        cx: &mut Context<'_>,
        driver: impl Fn() -> Waker,
        spent: &mut Option<Waker>,
        operation: impl FnOnce(
            &mut T,
            &mut WriteHalf,
            &mut Context<'_>,
            &mut Observer<'_>,
        ) -> Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        let (io, _, write_half, mut observer) = self.parts()?;
        // While a frame of ours is under way it is the driver's to go on with, since the handler
        // may lose its interest in writing at any time.
        let by_driver = write_half.is_busy();
        let result = if by_driver {
            let waker = driver();
            operation(
                io,
                write_half,
                &mut Context::from_waker(&waker),
                &mut observer,
            )
        } else {
            operation(io, write_half, cx, &mut observer)
        };
        match &result {
            Poll::Pending => *spent = self.writer.park(cx.waker(), by_driver),
            Poll::Ready(done) => {
                self.writer.pending = false;
                if let Err(error) = done {
                    self.fail(error.kind());
                }
                self.part_at_boundary();
            }
        }
        result
    }

    /// The handler dropped its stream. An eviction goes on without it. Returns false if there was no
    /// transport in it, so far.
    ///
    /// The transport is dropped with it, unless a pong may still arrive: at a closed socket the pong makes
    /// the kernel reset the connection, and the peer loses what the handler sent last.
    pub(crate) fn dropped(&mut self) -> bool {
        self.read_half.forget_ahead();
        if let (Phase::Open { .. }, Some(timer)) = (&self.phase, &self.timer) {
            self.monitor.dropped(timer.driver.clock().now());
            self.phase = match self.monitor.reason().filter(|_| self.expects_pong()) {
                Some(reason) => Phase::Evicting {
                    closing: Box::new(CloseHandshake::lingering(reason)),
                },
                None => Phase::Closed {
                    reason: None,
                    readable: false,
                },
            };
        }
        !matches!(self.departure, Departure::Opening)
    }

    /// Whether the transport has at least a part of one of our pings, and the pong may still arrive.
    fn expects_pong(&self) -> bool {
        let pinged = self.monitor.has_unanswered_ping() || self.write_half.has_ping_out();
        pinged && !self.read_half.has_ended()
    }

    /// Whether the transport must be shut down before it is dropped. Not if the handler or the runtime
    /// drops it, since without the layers no shutdown would happen either.
    pub(crate) fn is_to_shut_down(&self) -> bool {
        let by_handler = matches!(
            self.phase,
            Phase::Closed {
                reason: None | Some(Reason::HandlerDropped),
                ..
            }
        );
        !by_handler && self.write_half.can_shut_down()
    }
}
