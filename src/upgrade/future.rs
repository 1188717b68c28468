//! [`ResponseFuture`]: completes or abandons the upgrade once the handshake is answered.

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
use super::detect::{HandshakeKind, NotUpgradable, detect, is_accepted};
use super::handler_stream::HandlerStream;
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

/// Why an opening handshake is refused before the handler is called.
#[derive(Clone, Copy)]
enum Refusal {
    ByRegistry(Refused),
    NoDriver(NoDriver),
}

/// A layer whose service has not answered the opening handshake yet.
///
/// Dropping it detaches the layer from the connection.
enum PendingLayer {
    /// The outermost layer, which creates the connection.
    Outermost(PendingUpgrade),
    /// A layer further in, which has joined the connection.
    Inner(HandshakeKind, Attachment),
}

/// The innermost layer that has joined so far, stored in the request for the layers further in.
#[derive(Clone, Copy)]
struct InnermostAttachment(AttachmentId);

impl PendingLayer {
    /// Creates the request's connection, or joins it. `None` if the request cannot be upgraded.
    fn intercept<B>(
        config: &Arc<LayerConfig>,
        req: &mut Request<B>,
    ) -> Result<Option<Self>, Refusal> {
        let Some(kind) = detect(req) else {
            return Ok(None);
        };
        // Removed from the request, so that a layer further in does not apply the override again
        // over values that were set after this layer.
        let overrides = req.extensions_mut().remove::<PolicyOverride>();
        let overrides = overrides.as_ref().map(PolicyOverride::values);
        let extensions = req.extensions();
        let Some(live) = extensions.get::<Liveness>() else {
            let upgrade = PendingUpgrade::intercept(config, kind, overrides, req)?;
            return Ok(upgrade.map(Self::Outermost));
        };
        // The outermost layer has replaced the upgrade: all layers share its stream and deadlines.
        let within = extensions
            .get::<InnermostAttachment>()
            .map(|attachment| attachment.0);
        let attachment = live
            .join(config, within, overrides)
            .map_err(Refusal::ByRegistry)?;
        req.extensions_mut()
            .insert(InnermostAttachment(attachment.id()));
        Ok(Some(Self::Inner(kind, attachment)))
    }

    /// Handles the response of the layer's service.
    fn on_response<B>(self, response: &Response<B>) {
        // hyper eventually resolves the `OnUpgrade` of every upgrade request, also of a refused
        // one, with a stream that ended long before. So a handshake that is not accepted is
        // abandoned here, by the drop of `self`.
        match self {
            Self::Outermost(upgrade) if is_accepted(upgrade.kind, response) => {
                upgrade.spawn_opening();
            }
            Self::Outermost(upgrade) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                upgrade.spawn_passthrough();
            }
            Self::Inner(kind, attachment) if is_accepted(kind, response) => {
                attachment.accept();
            }
            Self::Outermost(_) | Self::Inner(..) => {}
        }
    }
}

/// The connection and the replaced upgrade of a handshake that has not been answered yet.
struct PendingUpgrade {
    /// Stored because the response may be polled outside of the runtime.
    runtime: Handle,
    kind: HandshakeKind,
    /// hyper's own, removed from the request.
    on_upgrade: OnUpgrade,
    /// Resolves the `OnUpgrade` that the request has instead.
    bridge: Bridge<HandlerStream>,
    connection: NotUpgradedGuard,
}

impl PendingUpgrade {
    /// Replaces the request's `OnUpgrade`. `None` if the request cannot be upgraded.
    fn intercept<B>(
        config: &LayerConfig,
        kind: HandshakeKind,
        overrides: Option<&Overrides>,
        req: &mut Request<B>,
    ) -> Result<Option<Self>, Refusal> {
        // A request that cannot be upgraded needs no driver.
        if req.extensions().get::<OnUpgrade>().is_some() {
            Driver::current().map_err(Refusal::NoDriver)?;
        }
        let admission = config.admit().map_err(Refusal::ByRegistry)?;
        // The bridge first: if there is none, the request keeps its own `OnUpgrade`.
        let Some((bridge, bridged)) = Bridge::new() else {
            req.extensions_mut().insert(NotUpgradable);
            return Ok(None);
        };
        let Some(on_upgrade) = req.extensions_mut().remove::<OnUpgrade>() else {
            return Ok(None);
        };
        let connection = Connection::new(Role::Server, Transport::CAPABILITIES);
        if kind.is_multiplexed() {
            connection.over_http2();
        }
        let live = Liveness::new(Arc::clone(&connection) as Arc<dyn ErasedConnection>);
        live.attach(config, admission);
        if let Some(overrides) = overrides {
            live.override_policy(overrides);
        }
        req.extensions_mut().insert(bridged);
        req.extensions_mut().insert(live);
        Ok(Some(Self {
            runtime: Handle::current(),
            kind,
            on_upgrade,
            bridge,
            connection: NotUpgradedGuard(Some(connection)),
        }))
    }

    /// The handshake was accepted: spawns a task that opens the connection.
    ///
    /// The task ends when hyper resolves the upgrade, which it does as soon as it has written the
    /// response head, or when the upgrade fails.
    fn spawn_opening(self) {
        let Self {
            runtime,
            kind,
            on_upgrade,
            bridge,
            connection,
        } = self;
        let connection = connection.into_accepted();
        runtime.spawn(async move {
            match on_upgrade.await {
                Ok(upgraded) => {
                    if let Some(stream) = connection.open(Transport::new(kind, upgraded)) {
                        bridge.complete(HandlerStream::WebSocket(TokioIo::new(stream)));
                    }
                }
                // The drop of `bridge` fails the handler's upgrade. The drop of `connection` ends
                // the connection.
                Err(error) => panic_guard::log(
                    || tracing::debug!(%error, "upgrade failed after the handshake"),
                ),
            }
        });
    }

    /// The handler switched to another protocol that the client offered: spawns a task that gives
    /// it hyper's stream unchanged.
    fn spawn_passthrough(self) {
        let Self {
            runtime,
            on_upgrade,
            bridge,
            ..
        } = self;
        runtime.spawn(async move {
            if let Ok(upgraded) = on_upgrade.await {
                bridge.complete(HandlerStream::Other(Box::new(upgraded)));
            }
        });
    }
}

/// A connection whose handshake is not answered yet. Dropping it reports that no upgrade happened.
struct NotUpgradedGuard(Option<Arc<Connection<Transport>>>);

impl NotUpgradedGuard {
    fn into_accepted(mut self) -> UpgradeFailedGuard {
        UpgradeFailedGuard(self.0.take())
    }
}

impl Drop for NotUpgradedGuard {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            connection.not_upgraded();
        }
    }
}

/// A connection whose handshake was accepted. Dropping it reports that its upgrade failed.
struct UpgradeFailedGuard(Option<Arc<Connection<Transport>>>);

impl UpgradeFailedGuard {
    fn open(mut self, io: Transport) -> Option<LivenessStream<Transport>> {
        LivenessStream::open(self.0.take()?, io)
    }
}

impl Drop for UpgradeFailedGuard {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            connection.upgrade_failed();
        }
    }
}

pin_project! {
    /// Response future of [`LivenessService`](crate::LivenessService).
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

impl Refusal {
    fn to_response<B: Default>(self) -> Response<B> {
        let mut response = Response::new(B::default());
        match self {
            // RFC 9110 sections 15.6.4 and 10.2.3.
            Self::ByRegistry(refused) => {
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                let retry_after = HeaderValue::from(refused.retry_after);
                response.headers_mut().insert(RETRY_AFTER, retry_after);
            }
            // The layer cannot build a body of the application's type from a text, so the status
            // line carries the message.
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

    use http::header::UPGRADE;
    use tower::ServiceExt;
    use tower_layer::Layer;
    use tracing_test::traced_test;

    use super::*;
    use crate::{IdleTimeoutLayer, Registry};

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

    #[traced_test]
    #[tokio::test]
    async fn a_refused_handshake_gets_503_and_a_debug_log_line() {
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
