//! The readiness as a service: what load balancers are answered, and when.

use std::future::ready;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, Response};
use http_body_util::BodyExt;
use tokio::time::sleep;
use tower::ServiceExt;
use tower_ws_liveness::{HeartbeatLayer, Readiness, Registry, ShutdownPlan};

use crate::support::{echo_route, ms};

async fn ask(app: &Router, method: Method, path: &str) -> (u16, String) {
    let request = Request::builder().method(method).uri(path);
    let request = request.body(Body::empty()).unwrap();
    let response: Response<Body> = app.clone().oneshot(request).await.unwrap();
    assert_eq!(response.headers()["cache-control"], "no-store");
    assert_eq!(response.headers()["content-type"], "text/plain");
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// A router with the readiness as a route and as a nested service, under a layer.
fn app() -> (Router, Registry) {
    let layer = HeartbeatLayer::default();
    let registry = layer.registry();
    let app = Router::new()
        .route("/ws", echo_route())
        .route_service("/ready", registry.readiness())
        .nest_service("/health", registry.readiness())
        .layer(layer);
    (app, registry)
}

#[tokio::test]
async fn every_method_and_path_is_answered() {
    let (app, registry) = app();
    let requests = || {
        let get = [(Method::GET, "/ready"), (Method::GET, "/health")];
        let others = [(Method::GET, "/health/deep?x=1"), (Method::POST, "/ready")];
        get.into_iter().chain(others)
    };
    for (method, path) in requests() {
        let answer = ask(&app, method, path).await;
        assert_eq!(answer, (200, "ready\n".to_owned()), "{path}");
    }
    registry.begin_drain();
    for (method, path) in requests() {
        let answer = ask(&app, method, path).await;
        assert_eq!(answer, (503, "shutting down\n".to_owned()), "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_readiness_ends_before_upgrades_are_refused() {
    let (app, registry) = app();
    let readiness: Readiness = registry.readiness();
    assert_eq!(format!("{readiness:?}"), "Readiness { is_ready: true, .. }");
    let plan = ShutdownPlan::new().delay(ms(1_000));
    let observed = async {
        sleep(ms(500)).await;
        assert!(!readiness.is_ready());
        assert!(!registry.is_draining());
        assert_eq!(ask(&app, Method::GET, "/ready").await.0, 503);
        sleep(ms(1_000)).await;
        assert!(registry.is_draining());
    };
    tokio::join!(registry.shutdown(ready(()), plan), observed);
    assert!(!registry.readiness().is_ready());
}

#[test]
fn a_full_registry_is_ready() {
    let registry = Registry::new();
    registry.limit(0);
    assert!(registry.readiness().is_ready());
}
