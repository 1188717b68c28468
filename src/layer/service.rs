//! [`LivenessService`]: the tower service of both layers.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tower_service::Service;

use crate::connection::LayerConfig;
use crate::upgrade::{self, ResponseFuture};

/// Service of [`HeartbeatLayer`](crate::HeartbeatLayer).
///
/// ```
/// use tower::Layer;
/// use tower_ws_liveness::{Heartbeat, HeartbeatLayer};
///
/// struct App<S> {
///     service: Heartbeat<S>,
/// }
///
/// impl<S> App<S> {
///     fn new(service: S) -> Self {
///         Self {
///             service: HeartbeatLayer::default().layer(service),
///         }
///     }
/// }
/// # let _ = App::new(()).service;
/// ```
pub type Heartbeat<S> = LivenessService<S>;

/// Service of [`IdleTimeoutLayer`](crate::IdleTimeoutLayer).
///
/// ```
/// use std::time::Duration;
///
/// use tower::ServiceBuilder;
/// use tower_ws_liveness::{Heartbeat, HeartbeatLayer, IdleTimeout, IdleTimeoutLayer};
///
/// /// Puts a service under both layers, the heartbeat outside.
/// fn with_liveness<S>(service: S) -> Heartbeat<IdleTimeout<S>> {
///     ServiceBuilder::new()
///         .layer(HeartbeatLayer::default())
///         .layer(IdleTimeoutLayer::new(Duration::from_secs(600)))
///         .service(service)
/// }
/// # with_liveness(());
/// ```
pub type IdleTimeout<S> = LivenessService<S>;

/// Puts the WebSocket connections that `S` accepts under the settings of a layer.
///
/// The service of [`HeartbeatLayer`](crate::HeartbeatLayer) and of
/// [`IdleTimeoutLayer`](crate::IdleTimeoutLayer).
///
/// The response type is that of `S`, so `option_layer` and similar combinators work. The response
/// body must implement `Default`: the service answers with a default body when the layer's
/// [`Registry`](crate::Registry) is full, and when there is no tokio runtime with a timer.
///
/// The bodies of axum, of http-body-util and of most layers implement `Default`. The bodies of
/// layers that observe a body, such as tower-http's `TraceLayer`, do not, nor does hyper's
/// `Incoming`. With `Router::layer` this does not matter, because axum boxes the body between two
/// layers. In one `ServiceBuilder`, put such layers further out, or box the body between them:
///
/// ```
/// use axum::response::IntoResponse;
/// use tower::ServiceBuilder;
/// use tower_http::trace::TraceLayer;
/// use tower_ws_liveness::HeartbeatLayer;
///
/// let layers = ServiceBuilder::new()
///     .layer(HeartbeatLayer::default())
///     .map_response(IntoResponse::into_response)
///     .layer(TraceLayer::new_for_http());
/// # let _: axum::Router = axum::Router::new().layer(layers);
/// ```
///
/// Without axum, tower-http's `MapResponseBodyLayer::new(BodyExt::boxed)` does the same.
#[derive(Clone, Debug)]
pub struct LivenessService<S> {
    inner: S,
    config: Arc<LayerConfig>,
}

impl<S> LivenessService<S> {
    pub(super) fn new(inner: S, config: &Arc<LayerConfig>) -> Self {
        Self {
            inner,
            config: Arc::clone(config),
        }
    }
}

impl<S, B, R> Service<Request<B>> for LivenessService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, req: Request<B>) -> Self::Future {
        upgrade::call(&self.config, &mut self.inner, req)
    }
}
