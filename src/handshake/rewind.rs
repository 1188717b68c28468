//! [`Rewind`]: a transport that returns bytes that were read in excess once more.

use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::TransportTraits;

/// A transport, and bytes of it that the next reads return first.
#[derive(Debug)]
pub(super) struct Rewind<T> {
    early: Vec<u8>,
    io: T,
}

impl<T> Rewind<T> {
    pub(super) fn new(io: T) -> Self {
        Self {
            early: Vec::new(),
            io,
        }
    }

    /// Truncates `out` to its first `keep` filled bytes, and stores the rest for the next read.
    pub(super) fn take_back(&mut self, out: &mut ReadBuf<'_>, keep: usize) {
        self.early.extend_from_slice(&out.filled()[keep..]);
        out.set_filled(keep);
    }

    pub(super) fn has_early(&self) -> bool {
        !self.early.is_empty()
    }
}

impl<T: 'static> Rewind<T> {
    /// Those of a foreign transport, and the address of the stream inside.
    pub(super) const TRAITS: &'static TransportTraits<Self> = &TransportTraits {
        peer_addr: |rewind| (TransportTraits::FOREIGN.peer_addr)(&rewind.io),
        ..*TransportTraits::FOREIGN
    };
}

impl<T: AsyncRead + Unpin> AsyncRead for Rewind<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.has_early() {
            return Pin::new(&mut self.io).poll_read(cx, out);
        }
        let count = self.early.len().min(out.remaining());
        out.put_slice(&self.early[..count]);
        // Normally one read takes all bytes, and the replaced buffer is freed.
        let rest = self.early.split_off(count);
        drop(mem::replace(&mut self.early, rest));
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Rewind<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn bytes_that_were_taken_back_are_read_first_for_every_read_size() {
        for piece in 1..=12 {
            let (near, mut far) = duplex(16);
            let mut io = Rewind::new(near);
            let mut bytes = *b"headearly";
            let mut out = ReadBuf::new(&mut bytes);
            out.set_filled(9);
            io.take_back(&mut out, 4);
            assert_eq!(out.filled(), b"head");
            far.write_all(b"late").await.unwrap();
            drop(far);
            let mut got = Vec::new();
            let mut buf = vec![0; piece];
            loop {
                match io.read(&mut buf).await.unwrap() {
                    0 => break,
                    count => got.extend_from_slice(&buf[..count]),
                }
            }
            assert_eq!(got, b"earlylate", "{piece} at a time");
        }
    }
}
