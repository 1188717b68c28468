//! The response future: completes the upgrade when the handshake is accepted, and otherwise leaves
//! no trace.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::bridge::Bridge;
use super::detect::{Handshake, accepted, detect};
use super::either::Either;
use super::transport::Transport;
use crate::connection::{Connection, Liveness, LivenessStream, Managed, Share, Tuner};
use crate::overrides::PolicyOverride;
#[cfg(feature = "tcp")]
use crate::tcp::TcpOptions;
use crate::wire::Role;

/// Calls `inner` with `req`, whose connection, if it becomes one, is under the layer of `share`.
pub(crate) fn call<S, B>(
    share: &Share,
    inner: &mut S,
    mut req: Request<B>,
) -> ResponseFuture<S::Future>
where
    S: Service<Request<B>>,
{
    let opening = Opening::intercept(share, &mut req);
    ResponseFuture {
        inner: inner.call(req),
        opening,
    }
}

/// An opening handshake that the handler has not answered yet.
struct Opening {
    handshake: Handshake,
    real: OnUpgrade,
    bridge: Bridge<Either>,
    unanswered: Unanswered,
}

impl Opening {
    fn intercept<B>(share: &Share, req: &mut Request<B>) -> Option<Self> {
        let handshake = detect(req)?;
        // Taken out, so that a layer further in does not put it above what was set since.
        let overrides = req.extensions_mut().remove::<PolicyOverride>();
        if let Some(live) = req.extensions().get::<Liveness>() {
            // A layer further out has done all of it: one wrapper, one deadline.
            live.attach(share);
            if let Some(overrides) = overrides {
                live.override_policy(overrides.values());
            }
            return None;
        }
        // In this order: without a bridge the request stays as it was.
        let (bridge, on_upgrade) = Bridge::new()?;
        let real = req.extensions_mut().remove::<OnUpgrade>()?;
        let connection = Connection::new(Role::Server, TUNER);
        let live = Liveness::new(Arc::clone(&connection) as Arc<dyn Managed>);
        live.attach(share);
        if let Some(overrides) = overrides {
            live.override_policy(overrides.values());
        }
        req.extensions_mut().insert(on_upgrade);
        req.extensions_mut().insert(live);
        Some(Self {
            handshake,
            real,
            bridge,
            unanswered: Unanswered(Some(connection)),
        })
    }

    /// The handshake was accepted: waits for hyper to hand the stream out, which it does as soon as
    /// the response head is written, or to give up. The task is gone after that.
    fn arm(self) {
        let Self {
            real,
            bridge,
            unanswered,
            ..
        } = self;
        let promised = unanswered.accepted();
        tokio::spawn(async move {
            match real.await {
                Ok(upgraded) => {
                    if let Some(stream) = promised.keep(Transport::from(upgraded)) {
                        bridge.complete(Either::WebSocket(TokioIo::new(stream)));
                    }
                }
                // Dropping the bridge tells the handler, dropping the promise tells everybody else.
                Err(error) => tracing::debug!(%error, "upgrade failed after the handshake"),
            }
        });
    }

    /// The handler switched to another protocol that the client offered besides: it gets hyper's
    /// stream as it is.
    fn pass(self) {
        let Self { real, bridge, .. } = self;
        tokio::spawn(async move {
            if let Ok(upgraded) = real.await {
                bridge.complete(Either::Other(upgraded));
            }
        });
    }
}

/// A connection whose response is open. Dropped, there is none.
struct Unanswered(Option<Arc<Connection<Transport>>>);

impl Unanswered {
    fn accepted(mut self) -> Promised {
        Promised(self.0.take())
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            connection.not_upgraded();
        }
    }
}

/// A connection that was promised to the peer. Dropped, the upgrade has failed.
struct Promised(Option<Arc<Connection<Transport>>>);

impl Promised {
    fn keep(mut self, io: Transport) -> Option<LivenessStream<Transport>> {
        LivenessStream::open(self.0.take()?, io)
    }
}

impl Drop for Promised {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            connection.upgrade_failed();
        }
    }
}

/// Sets the options of a socket as the connection's heartbeat has it. Another transport has none.
#[cfg(feature = "tcp")]
const TUNER: Option<Tuner<Transport>> = Some(|io, heartbeat| match io.tcp() {
    Some(socket) if heartbeat.tune_tcp => TcpOptions::of(heartbeat).replace(socket),
    _ => Ok(()),
});

#[cfg(not(feature = "tcp"))]
const TUNER: Option<Tuner<Transport>> = None;

pin_project! {
    /// Response future of [`Heartbeat`](crate::Heartbeat) and [`IdleTimeout`](crate::IdleTimeout).
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        opening: Option<Opening>,
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        // hyper fulfils its own end of any upgrade request some day, with a stream that is long
        // dead. So whatever is not an accepted handshake ends here.
        if let (Some(opening), Ok(response)) = (this.opening.take(), &result) {
            if accepted(opening.handshake, response) {
                opening.arm();
            } else if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                opening.pass();
            }
        }
        Poll::Ready(result)
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture")
            .field("is_handshake", &self.opening.is_some())
            .finish_non_exhaustive()
    }
}
