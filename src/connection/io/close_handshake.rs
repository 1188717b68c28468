//! The closing handshake after an eviction, and the lingering close of a transport.

use std::io;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::observer::Observer;
use super::read_half::{MAX_READS_PER_VISIT, ReadHalf};
use super::write_half::WriteHalf;
use crate::monitor::{CloseFrame, Reason};

/// The steps in which the driver closes a transport before it drops it. The caller bounds their
/// time.
///
/// In every step inbound bytes are read and discarded, for two reasons. A peer that waits for room
/// to send may not read what we send. And if bytes arrive at a closed socket, or are unread when it
/// is closed, the kernel resets the connection and discards the bytes that were still to be sent.
#[derive(Debug)]
pub(crate) struct CloseHandshake {
    /// The frame to send, until it is queued in the write half.
    frame: Option<CloseFrame>,
    /// Do not wait: the peer is dead, or the time is over. Bytes that the transport does not accept
    /// immediately are dropped.
    no_wait: bool,
    /// The driver has not been scheduled for it yet.
    unscheduled: bool,
    /// The application's label of the eviction, if it gave one.
    pub(crate) label: Option<&'static str>,
    step: Step,
}

/// `answered` if both sides have sent a Close frame (RFC 6455 section 7.1.4).
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The handler is in the middle of a frame. The eviction follows at its end.
    Deferred(Reason),
    /// Our Close frame is sent, after the rest of a half-written ping.
    Send,
    /// The peer's Close frame, or its end of the transport, is awaited.
    Await,
    /// The outbound direction is shut down.
    Shutdown { answered: bool },
    /// The peer's end of the transport is awaited, if bytes may still come from it.
    Linger { answered: bool },
}

impl CloseHandshake {
    pub(crate) fn new(reason: Reason, frame: CloseFrame) -> Self {
        let peer_is_dead = matches!(
            reason,
            Reason::HeartbeatTimeout { .. } | Reason::WriteStalled | Reason::CloseTimeout
        );
        Self {
            frame: Some(frame),
            no_wait: peer_is_dead,
            unscheduled: true,
            label: None,
            step: Step::Send,
        }
    }

    /// An eviction for `reason` that waits for the end of the handler's frame.
    pub(crate) fn deferred(reason: Reason, frame: CloseFrame) -> Self {
        Self {
            step: Step::Deferred(reason),
            ..Self::new(reason, frame)
        }
    }

    /// For a transport that the handler has dropped: no Close frame of ours.
    pub(crate) fn lingering() -> Self {
        Self {
            frame: None,
            no_wait: false,
            unscheduled: true,
            label: None,
            step: Step::Shutdown { answered: false },
        }
    }

    /// Reason and frame of the eviction, if it is deferred.
    pub(crate) fn into_deferred(self) -> Option<(Reason, CloseFrame)> {
        match self.step {
            Step::Deferred(reason) => Some((reason, self.frame?)),
            Step::Send | Step::Await | Step::Shutdown { .. } | Step::Linger { .. } => None,
        }
    }

    /// Whether the driver must be scheduled for it: true once.
    pub(crate) fn take_unscheduled(&mut self) -> bool {
        std::mem::take(&mut self.unscheduled)
    }

    /// From now on, bytes that the transport does not accept immediately are dropped.
    pub(crate) fn stop_waiting(&mut self) {
        self.no_wait = true;
    }

    /// Whether the closing handshake is complete and the transport is shut down.
    pub(crate) fn is_answered(&self) -> bool {
        matches!(self.step, Step::Linger { answered: true })
    }

    /// Takes as many steps as the transport allows. `Ready` when the transport can be dropped, with
    /// whether the closing handshake was completed.
    pub(crate) fn poll<T: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        (read_half, write_half): (&mut ReadHalf, &mut WriteHalf),
        cx: &mut Context<'_>,
        scratch: &mut [u8],
        observer: &mut Observer<'_>,
    ) -> Poll<bool> {
        let more = !self.no_wait && discard(io, read_half, cx, scratch, observer);
        match self.poll_steps(io, read_half, write_half, cx, observer) {
            Poll::Pending if !self.no_wait => {
                if more {
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
            Poll::Ready(Ok(answered)) => Poll::Ready(answered),
            // After an error the transport is closed.
            Poll::Pending | Poll::Ready(Err(_)) => Poll::Ready(false),
        }
    }

    fn poll_steps<T: AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        read_half: &ReadHalf,
        write_half: &mut WriteHalf,
        cx: &mut Context<'_>,
        observer: &mut Observer<'_>,
    ) -> Poll<io::Result<bool>> {
        loop {
            match self.step {
                // The handler still has the transport.
                Step::Deferred(_) => return Poll::Pending,
                Step::Send => {
                    if write_half.has_begun() {
                        ready!(write_half.poll_control(io, cx, observer))?;
                    }
                    if let Some(frame) = self.frame.take() {
                        let queued = write_half.queue_close(frame.code, &frame.reason);
                        if !queued && !write_half.is_closed() {
                            // Inside a frame of the handler the peer would not recognise a Close
                            // frame, so the transport is shut down without one.
                            self.step = Step::Shutdown { answered: false };
                            continue;
                        }
                    }
                    ready!(write_half.poll_control(io, cx, observer))?;
                    self.step = Step::Await;
                }
                Step::Await if read_half.is_closed() || read_half.has_ended() => {
                    self.step = Step::Shutdown {
                        answered: read_half.is_closed(),
                    };
                }
                Step::Await if self.no_wait => return Poll::Ready(Ok(false)),
                Step::Await => return Poll::Pending,
                Step::Shutdown { answered } => {
                    if write_half.can_shut_down() {
                        ready!(write_half.poll_shutdown(io, cx, observer))?;
                    }
                    self.step = Step::Linger { answered };
                }
                Step::Linger { answered } => {
                    // After its Close frame a peer sends only the pongs to our pings (RFC 6455
                    // sections 5.5.1 and 5.5.2).
                    let silent = answered && !observer.monitor.has_unanswered_ping();
                    return if silent || self.no_wait || read_half.has_ended() {
                        Poll::Ready(Ok(answered))
                    } else {
                        Poll::Pending
                    };
                }
            }
        }
    }
}

/// Reads and discards inbound bytes. Returns whether there may be more.
fn discard<T: AsyncRead + Unpin>(
    io: &mut T,
    read_half: &mut ReadHalf,
    cx: &mut Context<'_>,
    scratch: &mut [u8],
    observer: &mut Observer<'_>,
) -> bool {
    for _ in 0..MAX_READS_PER_VISIT {
        if read_half.has_ended() {
            return false;
        }
        // The result does not matter: the read half records an end of any kind.
        let filled = read_half.poll_fill(io, cx, &mut ReadBuf::new(scratch), observer);
        if filled.is_pending() {
            return false;
        }
    }
    true
}
