use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;

use super::*;
use crate::connection::TransportTraits;

/// A transport that accepts everything and counts the flushes.
#[derive(Default)]
struct Counting(Arc<AtomicUsize>);

impl AsyncRead for Counting {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Counting {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

const FLUSHES_NOTHING: &TransportTraits<Counting> = &TransportTraits {
    flushes_nothing: |_| true,
    ..*TransportTraits::FOREIGN
};

#[tokio::test]
async fn only_the_flush_after_a_routine_write_is_left_out() {
    const MESSAGE: &[u8] = b"\x82\x05hello";
    // (transport, flushes that reach it after each write)
    for (transport, left_out) in [(FLUSHES_NOTHING, true), (TransportTraits::FOREIGN, false)] {
        let io = Counting::default();
        let flushes = Arc::clone(&io.0);
        let connection = Connection::new(Role::Server, transport);
        let driver = Driver::expect_current();
        let mut stream = LivenessStream::open(connection, io, &driver).unwrap();
        let cx = &mut Context::from_waker(Waker::noop());
        let mut flushes_after = |bytes: &[u8], polls: usize| {
            let before = flushes.load(Ordering::Relaxed);
            let mut stream = Pin::new(&mut stream);
            assert!(stream.as_mut().poll_write(cx, bytes).is_ready());
            for _ in 0..polls {
                assert!(stream.as_mut().poll_flush(cx).is_ready());
            }
            flushes.load(Ordering::Relaxed) - before
        };
        assert_eq!(
            flushes_after(MESSAGE, 1),
            1,
            "the first write is not routine"
        );
        let routine = usize::from(!left_out);
        assert_eq!(flushes_after(MESSAGE, 1), routine);
        assert_eq!(flushes_after(MESSAGE, 2), 1 + routine, "once only");
        // A write that is not routine, after one that is.
        assert_eq!(flushes_after(MESSAGE, 0), 0);
        assert_eq!(flushes_after(&MESSAGE[..4], 1), 1);
    }
}
