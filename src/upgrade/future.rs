//! The response future: completes the upgrade when the handshake is accepted, and otherwise leaves
//! no trace.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::header::{HeaderValue, RETRY_AFTER};
use http::{Request, Response, StatusCode};
use hyper::ext::ReasonPhrase;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use pin_project_lite::pin_project;
use tokio::runtime::Handle;
use tower_service::Service;

use super::bridge::Bridge;
use super::detect::{Handshake, NotUpgradable, accepted, detect};
use super::either::Either;
use super::policy_override::PolicyOverride;
use super::transport::Transport;
use crate::connection::{
    Attachment, AttachmentId, Connection, ErasedConnection, LayerConfig, Liveness, LivenessStream,
    Refused,
};
use crate::driver::{Driver, NoDriver};
use crate::monitor::Overrides;
use crate::panic_guard;
use crate::wire::Role;

/// Calls `inner` with `req`. If it is upgraded, its connection is under the layer of `share`. An opening
/// handshake is refused without calling `inner` if the layer's registry is full, or if the current thread
/// has no driver.
pub(crate) fn call<S, B>(
    share: &Arc<LayerConfig>,
    inner: &mut S,
    mut req: Request<B>,
) -> ResponseFuture<S::Future>
where
    S: Service<Request<B>>,
{
    let answer = match Part::take(share, &mut req) {
        Ok(part) => Answer::Inner {
            inner: inner.call(req),
            part,
        },
        Err(refusal) => {
            if let Refusal::ByRegistry(Refused { cause, retry_after }) = refusal {
                panic_guard::log(|| tracing::debug!(cause, retry_after, "upgrade refused"));
            }
            Answer::Refused { refusal }
        }
    };
    ResponseFuture { answer }
}

/// Why an opening handshake is refused before the handler is called.
#[derive(Clone, Copy)]
enum Refusal {
    ByRegistry(Refused),
    NoDriver(NoDriver),
}

/// What a layer does with an opening handshake that its service has not answered yet.
///
/// Dropping it detaches the layer.
enum Part {
    /// The outermost layer creates the connection.
    Outermost(Opening),
    /// An inner layer has joined the connection.
    Inner(Handshake, Attachment),
}

/// The innermost layer that has joined so far, in the request's extensions for the layers further in.
#[derive(Clone, Copy)]
struct Within(AttachmentId);

impl Part {
    /// `None` if there is nothing to be done for this request by this layer.
    fn take<B>(share: &Arc<LayerConfig>, req: &mut Request<B>) -> Result<Option<Self>, Refusal> {
        let Some(handshake) = detect(req) else {
            return Ok(None);
        };
        // Taken out, so that a layer further in does not put it above what was set since.
        let overrides = req.extensions_mut().remove::<PolicyOverride>();
        let overrides = overrides.as_ref().map(PolicyOverride::values);
        let extensions = req.extensions();
        let Some(live) = extensions.get::<Liveness>() else {
            let opening = Opening::intercept(share, handshake, overrides, req)?;
            return Ok(opening.map(Self::Outermost));
        };
        // A layer further out has done all of it: one wrapper, one deadline.
        let within = extensions.get::<Within>().map(|within| within.0);
        let attachment = live
            .join(share, within, overrides)
            .map_err(Refusal::ByRegistry)?;
        req.extensions_mut().insert(Within(attachment.id()));
        Ok(Some(Self::Inner(handshake, attachment)))
    }

    /// Handles the response of the layer's service.
    fn answered<B>(self, response: &Response<B>) {
        // hyper fulfils its own end of any upgrade request some day, with a stream that is long
        // dead. So whatever is not an accepted handshake ends here.
        match self {
            Self::Outermost(opening) if accepted(opening.handshake, response) => opening.arm(),
            Self::Outermost(opening) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                opening.pass();
            }
            Self::Inner(handshake, attachment) if accepted(handshake, response) => {
                attachment.accept();
            }
            Self::Outermost(_) | Self::Inner(..) => {}
        }
    }
}

/// An opening handshake that the handler has not answered yet.
struct Opening {
    /// Kept because the response may be polled outside of the runtime.
    runtime: Handle,
    handshake: Handshake,
    real: OnUpgrade,
    bridge: Bridge<Either>,
    unanswered: Unanswered,
}

impl Opening {
    /// `None` if the request cannot be upgraded after all.
    fn intercept<B>(
        share: &LayerConfig,
        handshake: Handshake,
        overrides: Option<&Overrides>,
        req: &mut Request<B>,
    ) -> Result<Option<Self>, Refusal> {
        // A request that cannot be upgraded needs no driver.
        if req.extensions().get::<OnUpgrade>().is_some() {
            Driver::current().map_err(Refusal::NoDriver)?;
        }
        let place = share.admit().map_err(Refusal::ByRegistry)?;
        // In this order: without a bridge the request stays as it was.
        let Some((bridge, on_upgrade)) = Bridge::new() else {
            req.extensions_mut().insert(NotUpgradable);
            return Ok(None);
        };
        let Some(real) = req.extensions_mut().remove::<OnUpgrade>() else {
            return Ok(None);
        };
        let connection = Connection::new(Role::Server, Transport::CAPABILITIES);
        if handshake.is_stream() {
            connection.over_http2();
        }
        let live = Liveness::new(Arc::clone(&connection) as Arc<dyn ErasedConnection>);
        live.attach(share, place);
        if let Some(overrides) = overrides {
            live.override_policy(overrides);
        }
        req.extensions_mut().insert(on_upgrade);
        req.extensions_mut().insert(live);
        Ok(Some(Self {
            runtime: Handle::current(),
            handshake,
            real,
            bridge,
            unanswered: Unanswered(Some(connection)),
        }))
    }

    /// The handshake was accepted: waits for hyper to hand the stream out, which it does as soon as
    /// the response head is written, or to give up. The task is gone after that.
    fn arm(self) {
        let Self {
            runtime,
            handshake,
            real,
            bridge,
            unanswered,
        } = self;
        let promised = unanswered.accepted();
        runtime.spawn(async move {
            match real.await {
                Ok(upgraded) => {
                    if let Some(stream) = promised.keep(Transport::of(handshake, upgraded)) {
                        bridge.complete(Either::WebSocket(TokioIo::new(stream)));
                    }
                }
                // Dropping the bridge tells the handler, dropping the promise tells everybody else.
                Err(error) => panic_guard::log(
                    || tracing::debug!(%error, "upgrade failed after the handshake"),
                ),
            }
        });
    }

    /// The handler switched to another protocol that the client offered besides: it gets hyper's
    /// stream as it is.
    fn pass(self) {
        let Self {
            runtime,
            real,
            bridge,
            ..
        } = self;
        runtime.spawn(async move {
            if let Ok(upgraded) = real.await {
                bridge.complete(Either::Other(Box::new(upgraded)));
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

pin_project! {
    /// Response future of [`Heartbeat`](crate::Heartbeat) and [`IdleTimeout`](crate::IdleTimeout).
    pub struct ResponseFuture<F> {
        #[pin]
        answer: Answer<F>,
    }
}

pin_project! {
    #[project = AnswerProj]
    enum Answer<F> {
        Inner {
            #[pin]
            inner: F,
            part: Option<Part>,
        },
        Refused {
            refusal: Refusal,
        },
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Default,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (inner, part) = match self.project().answer.project() {
            AnswerProj::Inner { inner, part } => (inner, part),
            AnswerProj::Refused { refusal } => return Poll::Ready(Ok(refusal.response())),
        };
        let result = ready!(inner.poll(cx));
        if let (Some(part), Ok(response)) = (part.take(), &result) {
            part.answered(response);
        }
        Poll::Ready(result)
    }
}

impl Refusal {
    fn response<B: Default>(self) -> Response<B> {
        let mut response = Response::new(B::default());
        match self {
            // RFC 9110 sections 15.6.4 and 10.2.3.
            Self::ByRegistry(refused) => {
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                let retry_after = HeaderValue::from(refused.retry_after);
                response.headers_mut().insert(RETRY_AFTER, retry_after);
            }
            // The body's type is the application's, so only the status line can carry the message.
            Self::NoDriver(missing) => {
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                let phrase = ReasonPhrase::from_static(missing.as_str().as_bytes());
                response.extensions_mut().insert(phrase);
            }
        }
        response
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_handshake = match &self.answer {
            Answer::Inner { part, .. } => part.is_some(),
            Answer::Refused { .. } => true,
        };
        f.debug_struct("ResponseFuture")
            .field("is_handshake", &is_handshake)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::Ready;

    use http::header::UPGRADE;
    use tower::ServiceExt;
    use tower_layer::Layer;
    use tracing_test::traced_test;

    use super::*;
    use crate::{IdleTimeoutLayer, Registry};

    #[derive(Clone)]
    struct Unreachable;

    impl Service<Request<()>> for Unreachable {
        type Response = Response<String>;
        type Error = Infallible;
        type Future = Ready<Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<()>) -> Self::Future {
            panic!("the handler was called")
        }
    }

    #[traced_test]
    #[tokio::test]
    async fn a_refusal_is_answered_and_logged() {
        let registry = Registry::new();
        registry.limit(0);
        let layer = IdleTimeoutLayer::builder().registry(registry.clone());
        let service = layer.build().unwrap().layer(Unreachable);
        for cause in ["limit", "draining"] {
            let mut request = Request::get("/")
                .header(UPGRADE, "websocket")
                .body(())
                .unwrap();
            let on_upgrade = hyper::upgrade::on(Request::new(()));
            request.extensions_mut().insert(on_upgrade);
            let response = service.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(response.headers()[RETRY_AFTER], "10");
            assert_eq!(response.into_body(), "");
            logs_assert(|lines| {
                let line = lines.last().expect("a line");
                for wanted in ["DEBUG", "upgrade refused", cause, "retry_after=10"] {
                    assert!(line.contains(wanted), "{wanted:?} is not in {line}");
                }
                Ok(())
            });
            registry.begin_drain();
        }
    }
}
