//! Whether load balancers should send new connections, as a bool and as a service.

use std::convert::Infallible;
use std::fmt;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Request, Response, StatusCode};
use tower_service::Service;

use super::Registry;

/// Whether load balancers should send new connections to this server. Created by
/// [`Registry::readiness`].
///
/// It is ready until [`Registry::shutdown`] gets its signal or a drain begins, and never again
/// after that. A full registry (see [`Registry::limit`]) is ready.
///
/// As a [`Service`] it answers every request immediately, without its body being read: 200 and
/// `ready` while it is ready, and then 503 and `shutting down`. axum takes it with `route_service`:
///
/// ```
/// use axum::{Router, body::Body, http::Request};
/// use tower::ServiceExt;
/// use tower_ws_liveness::HeartbeatLayer;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let heartbeat = HeartbeatLayer::default();
/// let registry = heartbeat.registry();
/// let app: Router = Router::new()
///     .route_service("/ready", registry.readiness())
///     .layer(heartbeat);
///
/// let probe = || Request::get("/ready").body(Body::empty()).unwrap();
/// assert_eq!(app.clone().oneshot(probe()).await.unwrap().status(), 200);
/// registry.begin_drain();
/// assert_eq!(app.oneshot(probe()).await.unwrap().status(), 503);
/// assert!(!registry.readiness().is_ready());
/// # }
/// ```
#[derive(Clone)]
pub struct Readiness {
    registry: Registry,
}

impl Readiness {
    /// Whether no shutdown and no drain has begun.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.registry.state.admission.is_ready()
    }
}

impl Registry {
    /// Returns the readiness of this server, as a bool and as a service for the health checks of
    /// load balancers.
    ///
    /// All handles of a registry share its state, and keep the registry alive.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        Readiness {
            registry: self.clone(),
        }
    }
}

impl<B> Service<Request<B>> for Readiness {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        let (status, body) = if self.is_ready() {
            (StatusCode::OK, "ready\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n")
        };
        let mut response = Response::new(body.to_owned());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        // A proxy may cache a 200 that does not forbid it (RFC 9111 section 4.2.2).
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        ready(Ok(response))
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readiness")
            .field("is_ready", &self.is_ready())
            .finish_non_exhaustive()
    }
}
