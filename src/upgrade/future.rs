//! The response future: completes the upgrade when the handshake is accepted, and otherwise leaves
//! no trace.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::bridge::Bridge;
use super::detect::{Handshake, accepted, detect};
use crate::connection::{Connection, Listeners, Liveness, LivenessStream, Track};
use crate::evict::OnEvict;
use crate::monitor::Policy;
use crate::wire::Role;

/// hyper's upgraded stream, with tokio's traits.
type Transport = TokioIo<Upgraded>;

/// What a layer gives to each connection that passes it.
#[derive(Clone)]
pub(crate) struct Share {
    policy: Policy,
    listeners: Arc<Listeners>,
}

impl Share {
    pub(crate) fn new(
        policy: Policy,
        tracker: Option<Arc<dyn Track>>,
        hooks: Vec<Arc<dyn OnEvict>>,
    ) -> Self {
        Self {
            policy,
            listeners: Arc::new(Listeners { tracker, hooks }),
        }
    }

    /// Calls the inner service with `req`, whose connection, if it becomes one, is under this layer.
    pub(crate) fn call<S, B>(&self, inner: &mut S, mut req: Request<B>) -> ResponseFuture<S::Future>
    where
        S: Service<Request<B>>,
    {
        let opening = self.intercept(&mut req);
        ResponseFuture {
            inner: inner.call(req),
            opening,
        }
    }

    fn intercept<B>(&self, req: &mut Request<B>) -> Option<Opening> {
        let handshake = detect(req)?;
        if let Some(live) = req.extensions().get::<Liveness>() {
            // A layer further out has done all of it: one wrapper, one deadline.
            live.attach(&self.policy, &self.listeners);
            return None;
        }
        // In this order: without a bridge the request stays as it was.
        let (bridge, on_upgrade) = Bridge::new()?;
        let real = req.extensions_mut().remove::<OnUpgrade>()?;
        let connection = Connection::new(Role::Server);
        let live = connection.live();
        live.attach(&self.policy, &self.listeners);
        req.extensions_mut().insert(on_upgrade);
        req.extensions_mut().insert(live);
        Some(Opening {
            handshake,
            real,
            bridge,
            unanswered: Unanswered(Some(connection)),
        })
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Share")
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

/// An opening handshake that the handler has not answered yet.
struct Opening {
    handshake: Handshake,
    real: OnUpgrade,
    bridge: Bridge<TokioIo<LivenessStream<Transport>>>,
    unanswered: Unanswered,
}

impl Opening {
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
                    if let Some(stream) = promised.keep(TokioIo::new(upgraded)) {
                        bridge.complete(TokioIo::new(stream));
                    }
                }
                // Dropping the bridge tells the handler, dropping the promise tells everybody else.
                Err(error) => tracing::debug!(%error, "upgrade failed after the handshake"),
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
        self.0.take()?.open(io)
    }
}

impl Drop for Promised {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            connection.upgrade_failed();
        }
    }
}

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
        let opening = this.opening.take();
        if let (Some(opening), Ok(response)) = (opening, &result)
            && accepted(opening.handshake, response)
        {
            opening.arm();
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
