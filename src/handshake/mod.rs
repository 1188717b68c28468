//! [`HandshakeStream`]: liveness for a stream over which the opening handshake is still to come.
//!
//! What is read and written passes as it is, up to the end of a 101 response. The byte after that is
//! the first of a frame, and the connection opens there.

mod exchange;
mod head;
mod rewind;

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::exchange::{Answer, Exchange};
use self::rewind::Rewind;
use crate::connection::{LayerConfig, Liveness, LivenessStream};
use crate::wire::Role;

/// A stream that is under liveness once its opening handshake is complete.
///
/// Give it to a WebSocket library that does the handshake itself, in place of the transport. Until
/// the end of the response head (RFC 6455 section 4.2.2) it passes bytes on, and nothing is sent or
/// timed by the layer. From there on it is what a [`LivenessStream`] is. Frames that came in one piece
/// with the handshake are not lost, nor unseen.
///
/// An answer that is final and not 101 means that there is no connection. Then, or if the stream is
/// dropped before the answer is complete, the layer's hooks and the registry's streams are told
/// nothing, and who waits for the end on the [`Liveness`] is told of
/// [`UpgradeFailed`](crate::Reason::UpgradeFailed). What follows such an answer passes through.
///
/// **Nothing here bounds the handshake**: a peer may never finish it. Put a timeout around what does
/// the handshake; dropping that drops this stream and gives everything back. After an eviction during
/// the handshake, the Close frame is sent when the handshake completes. A handshake under way takes a place
/// in the registry, as behind the layers, and is waited for by
/// [`Registry::wait_idle`](crate::Registry::wait_idle).
///
/// A client has to wait for the answer before it sends frames (RFC 6455 section 4.1). A server that
/// reads on before it has answered gets nothing, except the end of the stream if nothing came before
/// that, and a client's frames are not accepted for writing. So the head of the request is the first thing
/// that passes, and it has no body: what a proxy is told, or TLS, has to be over by then.
///
/// Memory: of the two heads nothing is kept, and of what comes behind them what one read has brought,
/// which the caller's buffer bounds.
///
/// Cancel safety is that of the transport: a read or a write that was dropped before it was ready has
/// taken and written nothing of the caller's.
///
/// Made by [`HeartbeatLayer::wrap_server_handshake`](crate::HeartbeatLayer::wrap_server_handshake) and
/// [`wrap_client_handshake`](crate::HeartbeatLayer::wrap_client_handshake).
pub struct HandshakeStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// `None` once it is complete. Boxed, since the stream outlives it by far. Dropped before that,
    /// so that a transport which nothing came of is gone when this is told.
    handshake: Option<Box<Handshake<T>>>,
    stream: LivenessStream<Rewind<T>>,
}

impl<T> HandshakeStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    pub(crate) fn wrap(io: T, role: Role, layer: &LayerConfig) -> (Self, Liveness) {
        let (stream, live) = LivenessStream::promise(role, io.is_write_vectored(), layer);
        let handshake = Some(Box::new(Handshake::new(role, io)));
        (Self { handshake, stream }, live)
    }

    /// Does what follows from an answer.
    fn answered(&mut self, answer: Option<Answer>) {
        let Some(answer) = answer else { return };
        let Some(mut handshake) = self.handshake.take() else {
            return;
        };
        let wakers = handshake.take_wakers();
        match answer {
            Answer::Switching => self.stream.keep(handshake.io),
            Answer::Other => {
                self.handshake = Some(handshake);
                self.stream.not_upgraded();
            }
        }
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

impl<T> AsyncRead for HandshakeStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(handshake) = &mut self.handshake else {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        };
        let answer = ready!(handshake.poll_read(cx, buf))?;
        self.answered(answer);
        Poll::Ready(Ok(()))
    }
}

impl<T> AsyncWrite for HandshakeStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Some(handshake) = &mut self.handshake else {
            return Pin::new(&mut self.stream).poll_write(cx, buf);
        };
        let (written, answer) = ready!(handshake.poll_write(cx, buf))?;
        self.answered(answer);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.handshake.is_none() {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        }
        let first = bufs.iter().find(|buf| !buf.is_empty());
        self.poll_write(cx, first.map_or(&[], |buf| buf))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.handshake {
            Some(handshake) => handshake.poll_out(cx, |io, cx| io.poll_flush(cx)),
            None => Pin::new(&mut self.stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.handshake {
            Some(handshake) => handshake.poll_out(cx, |io, cx| io.poll_shutdown(cx)),
            None => Pin::new(&mut self.stream).poll_shutdown(cx),
        }
    }
}

impl<T> fmt::Debug for HandshakeStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandshakeStream")
            .field("is_complete", &self.handshake.is_none())
            .finish_non_exhaustive()
    }
}

/// A handshake, of which no 101 has come yet, and perhaps never will.
struct Handshake<T> {
    exchange: Exchange,
    io: Rewind<T>,
    /// Who waits at the transport itself. Once the driver polls that too, they have to wait at the
    /// stream, which knows how to share it.
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Handshake<T> {
    fn new(role: Role, io: T) -> Self {
        Self {
            exchange: Exchange::new(role),
            io: Rewind::new(io),
            reader: None,
            writer: None,
        }
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<Option<Answer>>> {
        let awaits_answer = self.exchange.awaits_answer(Role::Server);
        if awaits_answer && self.io.has_early() {
            return park(&mut self.reader, cx);
        }
        let before = out.filled().len();
        if Pin::new(&mut self.io).poll_read(cx, out)?.is_pending() {
            return park(&mut self.reader, cx);
        }
        let read = &out.filled()[before..];
        if awaits_answer && !read.is_empty() {
            self.io.take_back(out, before);
            return park(&mut self.reader, cx);
        }
        let Some((end, answer)) = self.exchange.inbound(read) else {
            return Poll::Ready(Ok(None));
        };
        if answer != Some(Answer::Other) {
            self.io.take_back(out, before + end);
        }
        Poll::Ready(Ok(answer))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<(usize, Option<Answer>)>> {
        if self.exchange.awaits_answer(Role::Client) {
            return park(&mut self.writer, cx);
        }
        // What is behind the head goes another way, or waits.
        let mut preview = self.exchange;
        let head = match preview.outbound(bytes) {
            Some((end, _)) => &bytes[..end],
            None => bytes,
        };
        let written = ready!(self.poll_out(cx, |io, cx| io.poll_write(cx, head)))?;
        let answer = self.exchange.outbound(&head[..written]);
        Poll::Ready(Ok((written, answer.and_then(|(_, answer)| answer))))
    }

    fn poll_out<R>(
        &mut self,
        cx: &mut Context<'_>,
        operation: impl FnOnce(Pin<&mut Rewind<T>>, &mut Context<'_>) -> Poll<R>,
    ) -> Poll<R> {
        let result = operation(Pin::new(&mut self.io), cx);
        if result.is_pending() {
            return park(&mut self.writer, cx);
        }
        result
    }

    fn take_wakers(&mut self) -> [Option<Waker>; 2] {
        [self.reader.take(), self.writer.take()]
    }
}

fn park<R>(place: &mut Option<Waker>, cx: &Context<'_>) -> Poll<R> {
    *place = Some(cx.waker().clone());
    Poll::Pending
}
