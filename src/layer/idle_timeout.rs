//! [`IdleTimeoutLayer`]: evicts connections that carry no data.

use std::sync::Arc;

use tower_layer::Layer;

use super::service::IdleTimeout;
use super::shared_settings::SharedSettings;
use crate::connection::LayerConfig;
use crate::monitor::{IdlePolicy, Policy};

/// Evicts WebSocket connections that carry no data.
///
/// An idle peer may be alive: it answers every ping and sends no message. Every byte of a data
/// message counts as use (RFC 6455 section 5.6), also before the message is complete. Pings and
/// pongs do not count.
///
/// With axum, add the layer after the routes: `Router::layer` applies to the routes added before it.
///
/// The default is a timeout of 5 min, with all other checks off; see
/// [`IdleTimeoutLayerBuilder`](crate::IdleTimeoutLayerBuilder) for all settings.
///
/// The layer works on upgrades over HTTP. Below HTTP, under
/// [`HeartbeatLayer::wrap_server`](crate::HeartbeatLayer::wrap_server), idle connections are not
/// evicted automatically: [`Liveness::idle_for`](crate::Liveness::idle_for) returns how long a
/// connection has been idle, and [`Liveness::evict`](crate::Liveness::evict) ends it.
///
/// Cloning is cheap. All clones of a layer, and all its services, share the hooks and the registry.
///
/// ```
/// use std::time::Duration;
///
/// use tower_ws_liveness::IdleTimeoutLayer;
///
/// let layer = IdleTimeoutLayer::new(Duration::from_secs(600));
/// # let _: axum::Router = axum::Router::new().layer(layer);
/// ```
#[derive(Clone, Debug)]
pub struct IdleTimeoutLayer {
    config: Arc<LayerConfig>,
}

impl IdleTimeoutLayer {
    pub(super) fn from_parts(policy: IdlePolicy, settings: SharedSettings) -> Self {
        let policy = Policy {
            heartbeat: None,
            idle: Some(Arc::new(policy)),
        };
        Self {
            config: settings.into_config(policy),
        }
    }
}

impl<S> Layer<S> for IdleTimeoutLayer {
    type Service = IdleTimeout<S>;

    fn layer(&self, inner: S) -> Self::Service {
        IdleTimeout::new(inner, &self.config)
    }
}
