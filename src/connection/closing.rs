//! Saying goodbye to a peer: bounded, and only as long as there is somebody to say it to.

use std::io;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::inbound::{Filled, Inbound, READS};
use super::inject::Outbound;
use super::watch::Watch;
use crate::monitor::{CloseFrame, Reason};

/// The closing handshake of an eviction (RFC 6455 section 7.1.2), step by step. Whoever drives it
/// bounds it in time.
#[derive(Debug)]
pub(super) struct Closing {
    reason: Reason,
    /// The frame to send, until it was handed to the outbound half.
    frame: Option<CloseFrame>,
    /// Nobody is there to answer: try to send the frame, and do not wait for anything.
    dead: bool,
    /// The driver does not know of it yet.
    begun: bool,
    step: Step,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Our Close frame goes out, after what is half-written of a ping.
    Send,
    /// The peer's Close frame, or its end of the transport, is awaited.
    Await,
    /// All is said that can be: the transport is shut down. `answered` if the peer's Close frame
    /// has come.
    Shutdown { answered: bool },
}

impl Closing {
    pub(super) fn new(reason: Reason, frame: CloseFrame) -> Self {
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

    /// Why the connection was evicted.
    pub(super) fn reason(&self) -> Reason {
        self.reason
    }

    /// Whether it has begun since this was last asked, so that the driver has to be scheduled.
    pub(super) fn take_begun(&mut self) -> bool {
        std::mem::take(&mut self.begun)
    }

    /// Nobody waits any longer: what cannot be said at once is left unsaid.
    pub(super) fn hurry(&mut self) {
        self.dead = true;
    }

    /// Goes as far as the transport allows. `Ready` when the transport can be dropped, with whether
    /// both sides have said goodbye.
    pub(super) fn poll<T: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        (inbound, outbound): (&mut Inbound, &mut Outbound),
        cx: &mut Context<'_>,
        scratch: &mut [u8],
        watch: &mut Watch<'_>,
    ) -> Poll<bool> {
        let closed = self.poll_steps(io, inbound, outbound, cx, scratch, watch);
        match closed {
            Poll::Pending if !self.dead => Poll::Pending,
            Poll::Ready(Ok(answered)) => Poll::Ready(answered),
            // An error says that the transport is closed already.
            Poll::Pending | Poll::Ready(Err(_)) => Poll::Ready(false),
        }
    }

    fn poll_steps<T: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        inbound: &mut Inbound,
        outbound: &mut Outbound,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
        watch: &mut Watch<'_>,
    ) -> Poll<io::Result<bool>> {
        loop {
            match self.step {
                Step::Send => {
                    if outbound.has_begun() {
                        ready!(outbound.poll_control(io, cx, watch))?;
                    }
                    if let Some(frame) = self.frame.take() {
                        let taken = outbound.close(frame.code, &frame.reason);
                        if !taken && !outbound.is_closed() {
                            // In the middle of the handler's frame nothing can be said that the
                            // peer would take for a Close frame: the transport's end has to do.
                            self.step = Step::Shutdown { answered: false };
                            continue;
                        }
                    }
                    ready!(outbound.poll_control(io, cx, watch))?;
                    self.step = Step::Await;
                }
                Step::Await if self.dead => return Poll::Ready(Ok(false)),
                Step::Await => {
                    ready!(poll_goodbye(io, inbound, cx, scratch, watch))?;
                    self.step = Step::Shutdown {
                        answered: inbound.is_closed(),
                    };
                }
                Step::Shutdown { answered } => {
                    ready!(outbound.poll_shutdown(io, cx, watch))?;
                    return Poll::Ready(Ok(answered));
                }
            }
        }
    }
}

/// Reads, and throws away, until the peer has closed its direction one way or the other.
///
/// A socket that is closed with bytes unread resets the connection, and the reset may overtake our
/// Close frame.
fn poll_goodbye<T: AsyncRead + Unpin>(
    io: &mut T,
    inbound: &mut Inbound,
    cx: &mut Context<'_>,
    scratch: &mut [u8],
    watch: &mut Watch<'_>,
) -> Poll<io::Result<()>> {
    for _ in 0..READS {
        if inbound.is_closed() {
            return Poll::Ready(Ok(()));
        }
        let mut buf = ReadBuf::new(scratch);
        if ready!(inbound.poll_fill(io, cx, &mut buf, watch))? == Filled::Eof {
            return Poll::Ready(Ok(()));
        }
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}
