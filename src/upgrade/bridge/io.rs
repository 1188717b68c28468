//! [`BridgeIo`]: the IO of a bridge's connection, which becomes the handler's stream.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};

use super::Slot;

/// The request that the in-memory connection reads. Its target is not used.
const CONNECT_REQUEST: &[u8] = b"CONNECT a:1 HTTP/1.1\r\n\r\n";

/// Acts as the client of the fixed request, then as the stream.
///
/// Stays allocated as long as the stream, so the fields of the handshake must not make it larger.
pub(super) enum BridgeIo<T> {
    /// hyper's connection reads the request and writes the response head.
    Handshake {
        slot: Slot<T>,
        /// How many bytes of the request have been read.
        read: u8,
        head_end: HeadEnd,
    },
    /// The application reads and writes.
    Open {
        io: T,
        /// The application has neither read nor written yet, so a flush does not reach `io`.
        ///
        /// hyper's connection flushes once more after it has written the response head, with a
        /// no-op waker that must not be registered with `io`. If the application flushes first,
        /// there is nothing to flush.
        unused: bool,
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
                let rest = &CONNECT_REQUEST[usize::from(*read)..];
                if rest.is_empty() {
                    // hyper would take an empty `Ready` for the end of the connection.
                    return Poll::Pending;
                }
                let now = rest.len().min(buf.remaining());
                buf.put_slice(&rest[..now]);
                *read += now as u8;
                Poll::Ready(Ok(()))
            }
            BridgeIo::Open { io, unused } => {
                *unused = false;
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
                let Some(head_bytes) = head_end.find(buf) else {
                    return Poll::Ready(Ok(buf.len()));
                };
                let io = slot.lock().io.take();
                if let Some(io) = io {
                    *this = BridgeIo::Open { io, unused: true };
                }
                Poll::Ready(Ok(head_bytes))
            }
            BridgeIo::Open { io, unused } => {
                *unused = false;
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
            BridgeIo::Open { io, unused } => {
                *unused = false;
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
            BridgeIo::Handshake { .. } | BridgeIo::Open { unused: true, .. } => Poll::Ready(Ok(())),
            BridgeIo::Open { io, .. } => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            BridgeIo::Handshake { .. } => Poll::Ready(Ok(())),
            BridgeIo::Open { io, unused } => {
                *unused = false;
                Pin::new(io).poll_shutdown(cx)
            }
        }
    }
}

/// Finds the empty line at the end of a response head that is written in pieces.
#[derive(Default)]
pub(super) struct HeadEnd {
    /// How many bytes of [`END`](Self::END) the last bytes match, at most three.
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

    /// A stream that records the written bytes and counts the flushes.
    #[derive(Default)]
    struct RecordingIo {
        written: Vec<u8>,
        flushes: usize,
    }

    impl Write for RecordingIo {
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

    fn handshake() -> BridgeIo<RecordingIo> {
        let slot = Slot::default();
        slot.lock().io = Some(RecordingIo::default());
        BridgeIo::new(slot)
    }

    fn into_stream(io: BridgeIo<RecordingIo>) -> RecordingIo {
        match io {
            BridgeIo::Open { io, .. } => io,
            BridgeIo::Handshake { .. } => panic!("still in the handshake"),
        }
    }

    /// Returns how many bytes a write accepts, and panics if it is pending.
    fn write(io: &mut BridgeIo<RecordingIo>, bufs: &[&[u8]]) -> usize {
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

    fn flush(io: &mut BridgeIo<RecordingIo>) {
        let flushed = Pin::new(io).poll_flush(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(flushed, Poll::Ready(Ok(()))));
    }

    #[test]
    fn the_response_head_is_discarded_for_every_split_into_writes() {
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
                assert_eq!(into_stream(io).written, frames, "{piece} {vectored}");
            }
        }
    }

    #[test]
    fn a_flush_reaches_the_stream_only_after_its_first_use() {
        let mut io = handshake();
        flush(&mut io);
        assert!(!io.is_write_vectored());
        write(&mut io, &[b"HTTP/1.1 200 OK\r\n\r\n"]);
        flush(&mut io);
        assert!(io.is_write_vectored());
        write(&mut io, &[b"fra", b"me"]);
        flush(&mut io);
        let io = into_stream(io);
        assert_eq!((&io.written[..], io.flushes), (&b"frame"[..], 1));
    }

    #[test]
    fn a_response_head_is_discarded_also_without_a_stream() {
        let mut io = BridgeIo::<RecordingIo>::new(Slot::default());
        for _ in 0..2 {
            assert_eq!(write(&mut io, &[b"HTTP/1.1 400 Bad Request\r\n\r\n"]), 28);
        }
        assert!(matches!(io, BridgeIo::Handshake { .. }));
    }
}
