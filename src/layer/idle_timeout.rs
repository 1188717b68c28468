//! [`IdleTimeoutLayer`]: evicts connections that nobody uses, however alive the peer is.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use super::idle_timeout_builder::IdleTimeoutLayerBuilder;
use crate::connection::LayerConfig;
use crate::hooks::OnEvict;
use crate::hooks::OnHealth;
use crate::monitor::{IdlePolicy, Policy};
use crate::registry::Registry;
use crate::upgrade::{self, ResponseFuture};

/// Evicts WebSocket connections that carry no data.
///
/// Idleness is not deadness: a peer that answers every ping and never says anything is alive, and
/// idle. Every byte of a data message counts (RFC 6455 section 5.6), before the message is complete
/// too; pings and pongs do not. See [`IdleTimeoutLayerBuilder`] for all settings.
///
/// It works on upgrades over HTTP. Below HTTP, where there is
/// [`HeartbeatLayer::wrap_server`](crate::HeartbeatLayer::wrap_server), nothing evicts the idle by
/// itself: [`Liveness::idle_for`](crate::Liveness::idle_for) says who is, and
/// [`evict`](crate::Liveness::evict) ends them.
///
/// Cloning is cheap. All clones, and all services made of them, share the hooks and the registry.
#[derive(Clone, Debug)]
pub struct IdleTimeoutLayer {
    share: Arc<LayerConfig>,
}

impl IdleTimeoutLayer {
    /// A layer with this timeout, and defaults for everything else.
    ///
    /// # Panics
    ///
    /// If [`build`](IdleTimeoutLayerBuilder::build) would refuse the timeout: zero, less than 1 ms,
    /// or more than 365 days.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        match Self::builder().timeout(timeout).build() {
            Ok(layer) => layer,
            Err(error) => panic!("{error}"),
        }
    }

    /// A builder with the defaults.
    pub fn builder() -> IdleTimeoutLayerBuilder {
        IdleTimeoutLayerBuilder::default()
    }

    pub(crate) fn from_parts(
        policy: IdlePolicy,
        registry: Option<Registry>,
        hooks: Vec<Arc<dyn OnEvict>>,
        health_hooks: Vec<Arc<dyn OnHealth>>,
    ) -> Self {
        let policy = Policy {
            heartbeat: None,
            idle: Some(Arc::new(policy)),
        };
        let tracker = registry.map(|registry| registry.tracker());
        Self {
            share: Arc::new(LayerConfig::new(policy, tracker, hooks, health_hooks)),
        }
    }
}

impl<S> Layer<S> for IdleTimeoutLayer {
    type Service = IdleTimeout<S>;

    fn layer(&self, inner: S) -> Self::Service {
        IdleTimeout {
            inner,
            share: Arc::clone(&self.share),
        }
    }
}

/// Service of [`IdleTimeoutLayer`].
///
/// The response's body has to be `Default`: it is that of the answer to an upgrade that the layer's
/// [`Registry`] has no room for. [`Heartbeat`](crate::Heartbeat) says how any other becomes one.
#[derive(Clone, Debug)]
pub struct IdleTimeout<S> {
    inner: S,
    share: Arc<LayerConfig>,
}

impl<S, B, R> Service<Request<B>> for IdleTimeout<S>
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
        upgrade::call(&self.share, &mut self.inner, req)
    }
}
