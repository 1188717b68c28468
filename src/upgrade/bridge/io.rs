//! The IO under a [`Bridge`](super::Bridge)'s connection: first a canned client, then the stream.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};

use super::Slot;

/// What the connection in memory gets to read. Only its form matters, the target is never looked at.
const REQUEST: &[u8] = b"CONNECT a:1 HTTP/1.1\r\n\r\n";

/// The connection's IO: plays the client's part of the canned exchange, then is the stream.
///
/// It stays allocated as long as the stream, so what only the exchange needs must not make it larger.
pub(super) enum BridgeIo<T> {
    /// hyper's connection reads and writes.
    Handshake {
        slot: Slot<T>,
        /// How much of the canned request was read.
        read: u8,
        head_end: HeadEnd,
    },
    /// The application reads and writes.
    Open {
        io: T,
        /// Not used by the application yet. hyper's connection flushes once more after it wrote the response head, and
        /// its waker leads nowhere: that flush must not reach `io`. An application that flushes first loses nothing.
        fresh: bool,
    },
}

// The stream and one word.
#[cfg(test)]
const _: () = assert!(size_of::<BridgeIo<[usize; 2]>>() == size_of::<[usize; 3]>());

impl<T> BridgeIo<T> {
    pub(super) fn new(slot: Slot<T>) -> Self {
        BridgeIo::Handshake {
            slot,
            read: 0,
            head_end: HeadEnd::default(),
        }
    }
}

impl<T> Read for BridgeIo<T>
where
    T: Read + Unpin,
{
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            BridgeIo::Handshake { read, .. } => {
                let rest = &REQUEST[usize::from(*read)..];
                if rest.is_empty() {
                    // Never `Ready` with nothing, which hyper would take for the end of the connection.
                    return Poll::Pending;
                }
                let now = rest.len().min(buf.remaining());
                buf.put_slice(&rest[..now]);
                *read += now as u8;
                Poll::Ready(Ok(()))
            }
            BridgeIo::Open { io, fresh } => {
                *fresh = false;
                Pin::new(io).poll_read(cx, buf)
            }
        }
    }
}

impl<T> Write for BridgeIo<T>
where
    T: Write + Unpin,
{
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match this {
            BridgeIo::Handshake { slot, head_end, .. } => {
                let Some(swallowed) = head_end.find(buf) else {
                    return Poll::Ready(Ok(buf.len()));
                };
                let io = slot.lock().io.take();
                if let Some(io) = io {
                    *this = BridgeIo::Open { io, fresh: true };
                }
                Poll::Ready(Ok(swallowed))
            }
            BridgeIo::Open { io, fresh } => {
                *fresh = false;
                Pin::new(io).poll_write(cx, buf)
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            BridgeIo::Open { io, fresh } => {
                *fresh = false;
                Pin::new(io).poll_write_vectored(cx, bufs)
            }
            handshake => {
                let first = bufs.iter().find(|buf| !buf.is_empty());
                Pin::new(handshake).poll_write(cx, first.map_or(&[], |buf| buf))
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            BridgeIo::Handshake { .. } => false,
            BridgeIo::Open { io, .. } => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            BridgeIo::Handshake { .. } | BridgeIo::Open { fresh: true, .. } => Poll::Ready(Ok(())),
            BridgeIo::Open { io, .. } => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            BridgeIo::Handshake { .. } => Poll::Ready(Ok(())),
            BridgeIo::Open { io, fresh } => {
                *fresh = false;
                Pin::new(io).poll_shutdown(cx)
            }
        }
    }
}

/// Looks for the empty line at the end of a response head, in whatever pieces it comes.
#[derive(Default)]
pub(super) struct HeadEnd {
    /// How much of the end the last bytes were, at most three.
    matched: u8,
}

impl HeadEnd {
    const END: &[u8; 4] = b"\r\n\r\n";

    /// Returns how many bytes of `piece` belong to the head if it ends there.
    fn find(&mut self, piece: &[u8]) -> Option<usize> {
        for (index, &byte) in piece.iter().enumerate() {
            self.matched = match byte {
                _ if byte == Self::END[usize::from(self.matched)] => self.matched + 1,
                b'\r' => 1,
                _ => 0,
            };
            if usize::from(self.matched) == Self::END.len() {
                self.matched = 0;
                return Some(index + 1);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// A stream that records what is written, and counts the flushes.
    #[derive(Default)]
    struct Recorder {
        written: Vec<u8>,
        flushes: usize,
    }

    impl Write for Recorder {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.written.extend_from_slice(buf);
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.to_vec()).collect();
            self.as_mut().poll_write(cx, &all)
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushes += 1;
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            panic!("shut down")
        }
    }

    fn handshake() -> BridgeIo<Recorder> {
        let slot = Slot::default();
        slot.lock().io = Some(Recorder::default());
        BridgeIo::new(slot)
    }

    fn opened(io: BridgeIo<Recorder>) -> Recorder {
        match io {
            BridgeIo::Open { io, .. } => io,
            BridgeIo::Handshake { .. } => panic!("still in the handshake"),
        }
    }

    /// Returns what a write that must not wait accepted.
    fn write(io: &mut BridgeIo<Recorder>, bufs: &[&[u8]]) -> usize {
        let bufs: Vec<_> = bufs.iter().map(|buf| IoSlice::new(buf)).collect();
        let mut cx = Context::from_waker(Waker::noop());
        let accepted = match &bufs[..] {
            [only] => Pin::new(io).poll_write(&mut cx, only),
            many => Pin::new(io).poll_write_vectored(&mut cx, many),
        };
        let Poll::Ready(Ok(accepted)) = accepted else {
            panic!("{accepted:?}")
        };
        accepted
    }

    fn flush(io: &mut BridgeIo<Recorder>) {
        let flushed = Pin::new(io).poll_flush(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(flushed, Poll::Ready(Ok(()))));
    }

    #[test]
    fn swallows_the_response_head_however_it_is_cut() {
        let head = b"HTTP/1.1 200 OK\r\nx: \r\r\n\r\r\n\n\r\n\r\n";
        let frames = b"\r\n\r\nframes";
        let wire = [&head[..], frames].concat();
        for piece in 1..=wire.len() {
            for vectored in [false, true] {
                let mut io = handshake();
                let mut rest = &wire[..];
                while !rest.is_empty() {
                    let now = &rest[..piece.min(rest.len())];
                    let accepted = match vectored {
                        false => write(&mut io, &[now]),
                        true => write(&mut io, &[b"", now]),
                    };
                    assert_ne!(accepted, 0);
                    rest = &rest[accepted..];
                }
                assert_eq!(opened(io).written, frames, "{piece} {vectored}");
            }
        }
    }

    #[test]
    fn flushes_reach_a_used_stream_only() {
        let mut io = handshake();
        flush(&mut io);
        assert!(!io.is_write_vectored());
        write(&mut io, &[b"HTTP/1.1 200 OK\r\n\r\n"]);
        flush(&mut io);
        assert!(io.is_write_vectored());
        write(&mut io, &[b"fra", b"me"]);
        flush(&mut io);
        let io = opened(io);
        assert_eq!((&io.written[..], io.flushes), (&b"frame"[..], 1));
    }

    #[test]
    fn head_without_a_stream_is_swallowed_too() {
        let mut io = BridgeIo::<Recorder>::new(Slot::default());
        for _ in 0..2 {
            assert_eq!(write(&mut io, &[b"HTTP/1.1 400 Bad Request\r\n\r\n"]), 28);
        }
        assert!(matches!(io, BridgeIo::Handshake { .. }));
    }
}
