//! [`Bridge`]: an [`OnUpgrade`] that yields a stream of this crate.
//!
//! hyper has no public constructor for [`OnUpgrade`] or [`Upgraded`]; only its connections create
//! them. So a [`Bridge`] is a hyper server connection in memory, without a socket, a task or a
//! timer:
//!
//! 1. [`Bridge::new`] lets the connection read a fixed `CONNECT` request. hyper attaches an
//!    `OnUpgrade` to the request, and the connection's service takes it out. The service leaves the
//!    request unanswered, so the connection is parked.
//! 2. [`Bridge::complete`] hands over the stream and lets the service answer. [`BridgeIo`] discards
//!    the response head and becomes the stream, and hyper resolves the `OnUpgrade` with it.
//!
//! If a `Bridge` is dropped instead, its `OnUpgrade` fails, as it does when a real connection ends.
//!
//! The request is a `CONNECT`, not a `GET` with `Upgrade`: hyper can upgrade both, and a `CONNECT`
//! needs no headers.
//!
//! # Memory
//!
//! After completion only [`Upgraded`] stays allocated, with a box of `T` and one word. hyper passes
//! on the connection's read buffer of 8 KiB (its minimum) as bytes read in excess. It is empty, so
//! the first read of the `Upgraded` frees it.
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

/// A parked connection whose [`OnUpgrade`] yields the stream passed to
/// [`complete`](Self::complete).
pub(crate) struct Bridge<T>
where
    T: Read + Write + Unpin + Send + 'static,
{
    /// Boxed because the response future reserves space for a bridge for every request.
    conn: Box<http1::UpgradeableConnection<BridgeIo<T>, BridgeService<T>>>,
    slot: Slot<T>,
}

impl<T> Bridge<T>
where
    T: Read + Write + Unpin + Send + 'static,
{
    /// Returns a parked bridge and its [`OnUpgrade`].
    ///
    /// `None` if hyper attached no `OnUpgrade` to the fixed request. No known release does that.
    /// The caller then leaves the application's request unchanged, so that the application still
    /// works, without liveness.
    pub(crate) fn new() -> Option<(Self, OnUpgrade)> {
        let slot = Slot::default();
        let conn = http1::Builder::new()
            // Otherwise hyper keeps reading while the service is pending, to detect the peer's EOF.
            .half_close(true)
            .auto_date_header(false)
            .serve_connection(BridgeIo::new(slot.clone()), BridgeService(slot.clone()))
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

    /// Resolves the [`OnUpgrade`] with `io` before it returns.
    ///
    /// `io` itself is not polled. If hyper does not complete the upgrade, `io` is dropped and the
    /// `OnUpgrade` fails.
    pub(crate) fn complete(mut self, io: T) {
        self.slot.lock().io = Some(io);
        let result = self.poll_conn();
        // `into_parts` returns `None` only after hyper has completed the upgrade.
        if self.conn.into_parts().is_some() {
            let message = "hyper did not complete the bridge's upgrade";
            panic_guard::log(|| tracing::warn!(?result, "{message}"));
        }
    }

    /// Polls the connection until it waits for the slot.
    ///
    /// No waker is needed: [`BridgeIo`] never blocks the connection, and `complete` polls after it
    /// has filled the slot.
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

/// Shared between a [`Bridge`] and the service and IO of its connection, which hyper owns.
struct Slot<T>(Arc<Mutex<SlotContents<T>>>);

struct SlotContents<T> {
    /// From the service to the bridge: the upgrade that hyper attached to the fixed request.
    on_upgrade: Option<OnUpgrade>,
    /// From the bridge to the IO: the stream. The service answers once it is present.
    io: Option<T>,
}

impl<T> Slot<T> {
    fn lock(&self) -> MutexGuard<'_, SlotContents<T>> {
        // Values are only moved in and out under this lock, so a poisoned slot is still consistent.
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
        Slot(Arc::new(Mutex::new(SlotContents {
            on_upgrade: None,
            io: None,
        })))
    }
}

/// The connection's service: takes the [`OnUpgrade`] out of the fixed request.
struct BridgeService<T>(Slot<T>);

impl<T> Service<Request<Incoming>> for BridgeService<T> {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = PendingResponse<T>;

    fn call(&self, mut req: Request<Incoming>) -> Self::Future {
        self.0.lock().on_upgrade = req.extensions_mut().remove();
        PendingResponse(self.0.clone())
    }
}

/// The response to the fixed request, ready once the slot contains a stream.
struct PendingResponse<T>(Slot<T>);

impl<T> Future for PendingResponse<T> {
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

    /// A stream that panics when it is polled.
    struct PanickingIo;

    impl Read for PanickingIo {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: ReadBufCursor<'_>,
        ) -> Poll<io::Result<()>> {
            panic!("read")
        }
    }

    impl Write for PanickingIo {
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
    fn complete_resolves_the_upgrade_without_polling_the_stream() {
        let (bridge, mut on_upgrade) = Bridge::<PanickingIo>::new().unwrap();
        assert!(poll_once(&mut on_upgrade).is_pending());

        bridge.complete(PanickingIo);
        let Poll::Ready(Ok(upgraded)) = poll_once(&mut on_upgrade) else {
            panic!("not upgraded")
        };
        let parts = upgraded.downcast::<BridgeIo<PanickingIo>>().unwrap();
        assert!(parts.read_buf.is_empty());
    }

    #[test]
    fn the_drop_of_a_bridge_fails_its_upgrade() {
        let (bridge, mut on_upgrade) = Bridge::<PanickingIo>::new().unwrap();
        drop(bridge);
        let Poll::Ready(Err(error)) = poll_once(&mut on_upgrade) else {
            panic!("not failed")
        };
        assert!(error.is_canceled());
    }

    #[tokio::test]
    async fn the_stream_is_dropped_if_the_upgrade_was_dropped() {
        let (bridge, on_upgrade) = Bridge::new().unwrap();
        drop(on_upgrade);
        let (ours, mut theirs) = duplex(16);
        bridge.complete(TokioIo::new(ours));
        let end = theirs.read_u8().await.unwrap_err();
        assert_eq!(end.kind(), ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn the_upgraded_stream_reads_and_writes() {
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
