//! Turns one [`OnUpgrade`] into another that yields an IO of our own.
//!
//! hyper has no public constructor for [`OnUpgrade`] or [`Upgraded`]; only its connections make them. So a [`Bridge`] is
//! a hyper server connection in memory, without a socket, a task or a timer:
//!
//! 1. [`Bridge::new`] lets the connection read a canned `CONNECT` request. hyper attaches an `OnUpgrade` to it, which the
//!    connection's service takes out. The service then leaves the request unanswered: the connection is parked.
//! 2. [`Bridge::complete`] hands over the stream and lets the service answer. [`BridgeIo`] swallows the response head and
//!    becomes the stream, and hyper fulfils the `OnUpgrade` with it.
//!
//! A `Bridge` that is dropped instead makes its `OnUpgrade` fail, exactly as when a real connection goes away.
//!
//! The canned request is a `CONNECT` rather than a `GET` with `Upgrade`, because hyper makes both upgradable and the
//! former needs no headers.
//!
//! # What lives on
//! After completion only [`Upgraded`] with a box of `T` and one word. The connection's 8 KiB read buffer (hyper knows no
//! smaller one) is what hyper keeps as the bytes that it read too much; there are none, so the first read of the
//! `Upgraded` frees it.
//!
//! [`Upgraded`]: hyper::upgrade::Upgraded

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::upgrade::OnUpgrade;

use self::io::BridgeIo;
use crate::panic_guard;

mod io;

/// A parked connection, waiting for the stream that its [`OnUpgrade`] shall yield.
pub(crate) struct Bridge<T>
where
    T: Read + Write + Unpin + Send + 'static,
{
    /// Boxed, since a service's future carries a bridge with every request, upgrade or not.
    conn: Box<http1::UpgradeableConnection<BridgeIo<T>, Attendant<T>>>,
    slot: Slot<T>,
}

impl<T> Bridge<T>
where
    T: Read + Write + Unpin + Send + 'static,
{
    /// Returns a parked bridge and the [`OnUpgrade`] at its other end.
    ///
    /// `None` if hyper did not attach an `OnUpgrade` to the canned request. No known release does that; the caller then
    /// leaves the request alone, so that the application works, only without us.
    pub(crate) fn new() -> Option<(Self, OnUpgrade)> {
        let slot = Slot::default();
        let conn = http1::Builder::new()
            // Without it hyper reads on while the service is busy, to notice a peer that leaves.
            .half_close(true)
            .auto_date_header(false)
            .serve_connection(BridgeIo::new(slot.clone()), Attendant(slot.clone()))
            .with_upgrades();
        let mut bridge = Bridge {
            conn: Box::new(conn),
            slot,
        };
        let parked = bridge.poll_conn();
        let on_upgrade = bridge.slot.lock().on_upgrade.take();
        match (parked, on_upgrade) {
            (Poll::Pending, Some(on_upgrade)) => Some((bridge, on_upgrade)),
            (result, _) => {
                let message = "hyper did not offer an upgrade to the bridge";
                panic_guard::log(|| tracing::warn!(?result, "{message}"));
                None
            }
        }
    }

    /// Makes the [`OnUpgrade`] yield `io`, before this function returns.
    ///
    /// `io` itself is not polled meanwhile. If hyper should not complete the upgrade, `io` is dropped and the `OnUpgrade`
    /// fails.
    pub(crate) fn complete(mut self, io: T) {
        self.slot.lock().io = Some(io);
        let result = self.poll_conn();
        // hyper gives up its connection when it has fulfilled the upgrade, and only then.
        if self.conn.into_parts().is_some() {
            let message = "hyper did not complete the bridge's upgrade";
            panic_guard::log(|| tracing::warn!(?result, "{message}"));
        }
    }

    /// Polls the connection, which runs as far as it can go: its IO never makes it wait for a wake-up. The one thing that
    /// it ever waits for is the slot, and whoever fills the slot polls next.
    fn poll_conn(&mut self) -> Poll<hyper::Result<()>> {
        Pin::new(&mut *self.conn).poll(&mut Context::from_waker(Waker::noop()))
    }
}

impl<T> fmt::Debug for Bridge<T>
where
    T: Read + Write + Unpin + Send + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bridge").finish_non_exhaustive()
    }
}

/// What passes between a [`Bridge`] and its connection, which hyper owns.
struct Slot<T>(Arc<Mutex<Exchange<T>>>);

struct Exchange<T> {
    /// Out of the connection: what hyper attached to the canned request.
    on_upgrade: Option<OnUpgrade>,
    /// Into the connection: the stream, which also is the word to go on.
    io: Option<T>,
}

impl<T> Slot<T> {
    fn lock(&self) -> MutexGuard<'_, Exchange<T>> {
        // The lock only covers moves in and out, which leave nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Slot(Arc::clone(&self.0))
    }
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Slot(Arc::new(Mutex::new(Exchange {
            on_upgrade: None,
            io: None,
        })))
    }
}

/// The connection's service: takes the [`OnUpgrade`] out of the canned request and answers when the stream is there.
struct Attendant<T>(Slot<T>);

impl<T> Service<Request<Incoming>> for Attendant<T> {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Attend<T>;

    fn call(&self, mut req: Request<Incoming>) -> Self::Future {
        self.0.lock().on_upgrade = req.extensions_mut().remove();
        Attend(self.0.clone())
    }
}

/// The answer to the canned request, due once there is a stream in the slot.
struct Attend<T>(Slot<T>);

impl<T> Future for Attend<T> {
    type Output = Result<Response<String>, Infallible>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        if self.0.lock().io.is_some() {
            Poll::Ready(Ok(Response::new(String::new())))
        } else {
            Poll::Pending
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, ErrorKind};

    use hyper::rt::ReadBufCursor;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// A stream that must not be polled.
    struct Untouchable;

    impl Read for Untouchable {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: ReadBufCursor<'_>,
        ) -> Poll<io::Result<()>> {
            panic!("read")
        }
    }

    impl Write for Untouchable {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            panic!("written")
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            panic!("flushed")
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            panic!("shut down")
        }
    }

    fn poll_once(on_upgrade: &mut OnUpgrade) -> Poll<hyper::Result<hyper::upgrade::Upgraded>> {
        Pin::new(on_upgrade).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn completes_at_once_and_leaves_the_stream_alone() {
        let (bridge, mut on_upgrade) = Bridge::<Untouchable>::new().unwrap();
        assert!(poll_once(&mut on_upgrade).is_pending());

        bridge.complete(Untouchable);
        let Poll::Ready(Ok(upgraded)) = poll_once(&mut on_upgrade) else {
            panic!("not upgraded")
        };
        let parts = upgraded.downcast::<BridgeIo<Untouchable>>().unwrap();
        assert!(parts.read_buf.is_empty());
    }

    #[test]
    fn dropped_bridge_fails_the_upgrade() {
        let (bridge, mut on_upgrade) = Bridge::<Untouchable>::new().unwrap();
        drop(bridge);
        let Poll::Ready(Err(error)) = poll_once(&mut on_upgrade) else {
            panic!("not failed")
        };
        assert!(error.is_canceled());
    }

    #[tokio::test]
    async fn nobody_left_to_upgrade_drops_the_stream() {
        let (bridge, on_upgrade) = Bridge::new().unwrap();
        drop(on_upgrade);
        let (ours, mut theirs) = duplex(16);
        bridge.complete(TokioIo::new(ours));
        let end = theirs.read_u8().await.unwrap_err();
        assert_eq!(end.kind(), ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn carries_the_stream_afterwards() {
        let (bridge, on_upgrade) = Bridge::<TokioIo<DuplexStream>>::new().unwrap();
        let (ours, mut theirs) = duplex(64);
        theirs.write_all(b"early").await.unwrap();
        bridge.complete(TokioIo::new(ours));
        let mut upgraded = TokioIo::new(on_upgrade.await.unwrap());

        let mut buf = [0; 5];
        upgraded.flush().await.unwrap();
        upgraded.read_exact(&mut buf).await.unwrap();
        assert_eq!(&buf, b"early");

        upgraded.write_all(b"reply").await.unwrap();
        upgraded.flush().await.unwrap();
        theirs.read_exact(&mut buf).await.unwrap();
        assert_eq!(&buf, b"reply");

        upgraded.shutdown().await.unwrap();
        assert_eq!(theirs.read(&mut buf).await.unwrap(), 0);
        drop(theirs);
        assert_eq!(upgraded.read(&mut buf).await.unwrap(), 0);
    }
}
