//! The layers in stacks of tower's own layers and utilities.

use std::time::Duration;

use axum::error_handling::HandleErrorLayer;
use axum::http::StatusCode;
use axum::routing::any;
use axum::{BoxError, Router};
use tower::buffer::BufferLayer;
use tower::limit::{ConcurrencyLimitLayer, GlobalConcurrencyLimitLayer, RateLimitLayer};
use tower::load_shed::LoadShedLayer;
use tower::timeout::TimeoutLayer;
use tower::util::{BoxCloneSyncService, BoxCloneSyncServiceLayer, option_layer};
use tower::{Layer, ServiceBuilder};
use tower_ws_liveness::{HeartbeatLayer, IdleTimeoutLayer};

use super::stack::{Position, Stack, echoes, http1, refused, works_in_every_position};
use crate::support::{Server, echo_route, ms, never};

/// The response to an error of a layer.
async fn unavailable(_: BoxError) -> StatusCode {
    StatusCode::SERVICE_UNAVAILABLE
}

/// The first layer of a `ServiceBuilder` is the outermost, the first of a `Router` the innermost.
#[tokio::test]
async fn a_service_builder_in_either_order() {
    let stack = Stack::new();
    let layers = ServiceBuilder::new()
        .layer(stack.heartbeat.clone())
        .layer(stack.idle.clone());
    stack
        .full_lifecycle(stack.routes().layer(layers), "/ws")
        .await;
    let stack = Stack::new();
    let layers = ServiceBuilder::new()
        .layer(stack.idle.clone())
        .layer(stack.heartbeat.clone());
    stack
        .full_lifecycle(stack.routes().layer(layers), "/ws")
        .await;
    // Tuples of layers are layers.
    let stack = Stack::new();
    let layers = (stack.idle.clone(), stack.heartbeat.clone());
    stack
        .full_lifecycle(stack.routes().layer(layers), "/ws")
        .await;
}

/// `option_layer` compiles because the layers do not change the response type.
#[tokio::test]
async fn optional_layers() {
    let stack = Stack::new();
    let app = stack
        .routes()
        .layer(option_layer(None::<IdleTimeoutLayer>))
        .layer(option_layer(Some(stack.heartbeat.clone())));
    stack.full_lifecycle(app, "/ws").await;
    let stack = Stack::new();
    let layers = ServiceBuilder::new()
        .option_layer(Some(stack.heartbeat.clone()))
        .option_layer(None::<HeartbeatLayer>)
        .option_layer(Some(stack.idle.clone()));
    stack
        .full_lifecycle(stack.routes().layer(layers), "/ws")
        .await;

    let app = Router::new()
        .route("/ws", echo_route())
        .layer(option_layer(None::<IdleTimeoutLayer>))
        .layer(option_layer(None::<HeartbeatLayer>));
    let server = Server::start(app).await;
    let mut client = http1(server.addr, "/ws").await;
    echoes(&mut client).await;
    never("a ping", ms(300), client.read_frame()).await;
}

#[tokio::test]
async fn boxed_services() {
    works_in_every_position(|app| {
        app.layer(BoxCloneSyncServiceLayer::new(
            tower::layer::util::Identity::new(),
        ))
    })
    .await;
    let stack = Stack::new();
    let service = stack.heartbeat.layer(stack.idle.layer(stack.routes()));
    let app = Router::new().route_service("/ws", BoxCloneSyncService::new(service));
    stack.full_lifecycle(app, "/ws").await;
}

#[tokio::test]
async fn buffers_and_rates() {
    works_in_every_position(|app| {
        app.layer(
            ServiceBuilder::new()
                .layer(HandleErrorLayer::new(unavailable))
                .layer(BufferLayer::new(16))
                .layer(RateLimitLayer::new(1_000, Duration::from_secs(1))),
        )
    })
    .await;
}

/// The concurrency limit counts handshakes, which end with their response, so a limit of 1 allows
/// any number of connections. `Registry::limit` limits connections.
#[tokio::test]
async fn a_concurrency_limit_does_not_count_open_connections() {
    works_in_every_position(|app| {
        app.layer(
            ServiceBuilder::new()
                .layer(HandleErrorLayer::new(unavailable))
                .layer(LoadShedLayer::new())
                .layer(GlobalConcurrencyLimitLayer::new(1)),
        )
    })
    .await;
}

/// The layers pass on the readiness of the service behind them.
#[tokio::test]
async fn load_is_shed_through_the_layers() {
    let stack = Stack::new();
    let layers = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(unavailable))
        .layer(LoadShedLayer::new())
        .layer(stack.heartbeat.clone())
        .layer(stack.idle.clone())
        .layer(ConcurrencyLimitLayer::new(0));
    refused(
        &stack.routes().layer(layers),
        "/ws",
        StatusCode::SERVICE_UNAVAILABLE,
    )
    .await;
    stack.assert_no_connection().await;
    let stack = Stack::new();
    let layers = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(unavailable))
        .layer(LoadShedLayer::new())
        .layer(stack.heartbeat.clone())
        .layer(stack.idle.clone())
        .layer(ConcurrencyLimitLayer::new(1));
    stack
        .full_lifecycle(stack.routes().layer(layers), "/ws")
        .await;
}

/// tower's timeout layer fails with an error instead of a response.
#[tokio::test]
async fn a_handshake_that_fails_leaves_no_connection() {
    for position in Position::ALL {
        let stack = Stack::new();
        stack.registry.limit(1);
        let never = any(std::future::pending::<StatusCode>);
        let app = stack.with(position, Router::new().route("/never", never), |app| {
            app.layer(
                ServiceBuilder::new()
                    .layer(HandleErrorLayer::new(unavailable))
                    .layer(TimeoutLayer::new(ms(50))),
            )
        });
        refused(&app, "/never", StatusCode::SERVICE_UNAVAILABLE).await;
        stack.assert_no_connection().await;
    }
    // In one stack with our layers, these see the error itself.
    let stack = Stack::new();
    let layers = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(unavailable))
        .layer(stack.heartbeat.clone())
        .layer(stack.idle.clone())
        .layer(TimeoutLayer::new(ms(50)));
    let never = any(std::future::pending::<StatusCode>);
    let app = Router::new().route("/never", never).layer(layers);
    refused(&app, "/never", StatusCode::SERVICE_UNAVAILABLE).await;
    stack.assert_no_connection().await;
}
