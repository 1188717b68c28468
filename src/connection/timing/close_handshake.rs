//! The closing handshake after an eviction, and the lingering close of a transport.

use std::io;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::io::Observer;
use crate::connection::io::WriteHalf;
use crate::connection::io::{MAX_READS_PER_VISIT, ReadHalf};
use crate::monitor::{CloseFrame, Reason};

/// The steps in which the driver closes a transport before it drops it. The caller bounds their time.
///
/// In every step inbound bytes are read and discarded, for two reasons. A peer that waits for room to send
/// may not read what we send. And if bytes arrive at a closed socket, or are unread when it is closed, the
/// kernel resets the connection and discards what was still to be sent.
#[derive(Debug)]
pub(crate) struct CloseHandshake {
    reason: Reason,
    /// The frame to send, until it was handed to the outbound half.
    frame: Option<CloseFrame>,
    /// The peer is dead, or its time is over: bytes that the transport does not accept at once are dropped.
    dead: bool,
    /// The driver has not been scheduled for it yet.
    begun: bool,
    step: Step,
}

/// `answered` if both sides have sent a Close frame (RFC 6455 section 7.1.4).
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Our Close frame goes out, after what is half-written of a ping.
    Send,
    /// The peer's Close frame, or its end of the transport, is awaited.
    Await,
    /// The outbound direction is shut down.
    Shutdown { answered: bool },
    /// The peer's end of the transport is awaited, if something may yet come from it.
    Linger { answered: bool },
}

impl CloseHandshake {
    pub(crate) fn new(reason: Reason, frame: CloseFrame) -> Self {
        Self {
            reason,
            frame: Some(frame),
            dead: matches!(
                reason,
                Reason::HeartbeatTimeout { .. } | Reason::WriteStalled | Reason::CloseTimeout
            ),
            begun: true,
            step: Step::Send,
        }
    }

    /// For a transport that the handler has dropped, which ends without a Close frame of ours.
    pub(crate) fn lingering(reason: Reason) -> Self {
        Self {
            reason,
            frame: None,
            dead: false,
            begun: true,
            step: Step::Shutdown { answered: false },
        }
    }

    /// Why the connection has ended.
    pub(crate) fn reason(&self) -> Reason {
        self.reason
    }

    /// Whether it has begun since this was last asked, so that the driver has to be scheduled.
    pub(crate) fn take_begun(&mut self) -> bool {
        std::mem::take(&mut self.begun)
    }

    /// From now on, bytes that the transport does not accept at once are dropped.
    pub(crate) fn hurry(&mut self) {
        self.dead = true;
    }

    /// Whether the closing handshake is complete, and the transport is shut down.
    pub(crate) fn is_answered(&self) -> bool {
        matches!(self.step, Step::Linger { answered: true })
    }

    /// Goes as far as the transport allows. `Ready` when the transport can be dropped, with whether
    /// the closing handshake was completed.
    pub(crate) fn poll<T: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        (read_half, write_half): (&mut ReadHalf, &mut WriteHalf),
        cx: &mut Context<'_>,
        scratch: &mut [u8],
        observer: &mut Observer<'_>,
    ) -> Poll<bool> {
        let more = !self.dead && discard(io, read_half, cx, scratch, observer);
        match self.poll_steps(io, read_half, write_half, cx, observer) {
            Poll::Pending if !self.dead => {
                if more {
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
            Poll::Ready(Ok(answered)) => Poll::Ready(answered),
            // An error says that the transport is closed already.
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
                Step::Send => {
                    if write_half.has_begun() {
                        ready!(write_half.poll_control(io, cx, observer))?;
                    }
                    if let Some(frame) = self.frame.take() {
                        let taken = write_half.close(frame.code, &frame.reason);
                        if !taken && !write_half.is_closed() {
                            // Inside a frame of the handler's the peer would not recognise a Close
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
                Step::Await if self.dead => return Poll::Ready(Ok(false)),
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
                    return if silent || self.dead || read_half.has_ended() {
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
        // The result does not matter: the inbound half records an end of any kind.
        if read_half
            .poll_fill(io, cx, &mut ReadBuf::new(scratch), observer)
            .is_pending()
        {
            return false;
        }
    }
    true
}
