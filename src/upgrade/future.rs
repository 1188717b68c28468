//! [`ResponseFuture`]: completes or abandons the upgrade once the handshake is answered.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::pending_upgrade::PendingLayer;
use super::refusal::Refusal;
use crate::connection::{LayerConfig, Refused};
use crate::panic_guard;

/// Calls `inner` with `req`, and puts the connection under `config` if the request is upgraded.
///
/// An opening handshake is refused without a call to `inner` if the layer's registry is full, or if
/// the current thread has no driver.
pub(crate) fn call<S, B>(
    config: &Arc<LayerConfig>,
    inner: &mut S,
    mut req: Request<B>,
) -> ResponseFuture<S::Future>
where
    S: Service<Request<B>>,
{
    let state = match PendingLayer::intercept(config, &mut req) {
        Ok(pending) => ResponseState::Called {
            inner: inner.call(req),
            pending,
        },
        Err(refusal) => {
            if let Refusal::ByRegistry(Refused { cause, retry_after }) = refusal {
                panic_guard::log(|| tracing::debug!(cause, retry_after, "upgrade refused"));
            }
            ResponseState::Refused { refusal }
        }
    };
    ResponseFuture { state }
}

pin_project! {
    /// Response future of [`LivenessService`](crate::LivenessService).
    ///
    /// A service that delegates to a layer's service needs no box for the future:
    ///
    /// ```
    /// use http::{Request, Response};
    /// use tower::Service;
    /// use tower_ws_liveness::{Heartbeat, ResponseFuture};
    ///
    /// fn call<S, B, R>(service: &mut Heartbeat<S>, req: Request<B>) -> ResponseFuture<S::Future>
    /// where
    ///     S: Service<Request<B>, Response = Response<R>>,
    ///     R: Default,
    /// {
    ///     service.call(req)
    /// }
    /// ```
    pub struct ResponseFuture<F> {
        #[pin]
        state: ResponseState<F>,
    }
}

pin_project! {
    #[project = ResponseStateProj]
    enum ResponseState<F> {
        Called {
            #[pin]
            inner: F,
            pending: Option<PendingLayer>,
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
        let (inner, pending) = match self.project().state.project() {
            ResponseStateProj::Called { inner, pending } => (inner, pending),
            ResponseStateProj::Refused { refusal } => {
                return Poll::Ready(Ok(refusal.to_response()));
            }
        };
        let result = ready!(inner.poll(cx));
        if let (Some(pending), Ok(response)) = (pending.take(), &result) {
            pending.on_response(response);
        }
        Poll::Ready(result)
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_handshake = match &self.state {
            ResponseState::Called { pending, .. } => pending.is_some(),
            ResponseState::Refused { .. } => true,
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
    use std::time::Duration;

    use http::StatusCode;
    use http::header::{RETRY_AFTER, UPGRADE};
    use tower::ServiceExt;
    use tower_layer::Layer;

    use super::*;
    use crate::logs::Logs;
    use crate::{IdleTimeoutLayer, Registry, UpgradeRefused};

    #[derive(Clone)]
    struct UncalledHandler;

    impl Service<Request<()>> for UncalledHandler {
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

    #[tokio::test]
    async fn a_refused_handshake_gets_503_and_a_debug_log_line() {
        let logs = Logs::keep();
        let registry = Registry::new();
        registry.limit(0);
        let layer = IdleTimeoutLayer::builder().registry(registry.clone());
        let service = layer.build().unwrap().layer(UncalledHandler);
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
            let refused = response.extensions().get::<UpgradeRefused>().unwrap();
            assert_eq!(refused.cause(), cause);
            assert_eq!(refused.retry_after(), Duration::from_secs(10));
            assert_eq!(response.into_body(), "");
            let lines = logs.lines();
            let line = lines.last().expect("a line");
            for wanted in ["DEBUG", "upgrade refused", cause, "retry_after=10"] {
                assert!(line.contains(wanted), "{wanted:?} is not in {line}");
            }
            registry.begin_drain();
        }
    }
}
