//! Our layers in stacks of tower's, on a router and on hyper alone.

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

use super::stack::{Place, Stack, echoes, http1, refused, works_everywhere};
use crate::support::{Server, echo_route, ms, never};

/// Answers for layers that fail instead of answering themselves.
async fn unavailable(_: BoxError) -> StatusCode {
    StatusCode::SERVICE_UNAVAILABLE
}

/// The first of a `ServiceBuilder` is the outermost, the first of a `Router` the innermost.
#[tokio::test]
async fn a_service_builder_in_either_order() {
    let stack = Stack::new();
    let layers = ServiceBuilder::new()
        .layer(stack.heartbeat.clone())
        .layer(stack.idle.clone());
    stack
        .lives_and_dies(stack.routes().layer(layers), "/ws")
        .await;
    let stack = Stack::new();
    let layers = ServiceBuilder::new()
        .layer(stack.idle.clone())
        .layer(stack.heartbeat.clone());
    stack
        .lives_and_dies(stack.routes().layer(layers), "/ws")
        .await;
    // Tuples of layers are layers.
    let stack = Stack::new();
    let layers = (stack.idle.clone(), stack.heartbeat.clone());
    stack
        .lives_and_dies(stack.routes().layer(layers), "/ws")
        .await;
}

/// Possible because the layers leave the type of the response as it is.
#[tokio::test]
async fn layers_that_are_there_or_not() {
    let stack = Stack::new();
    let app = stack
        .routes()
        .layer(option_layer(None::<IdleTimeoutLayer>))
        .layer(option_layer(Some(stack.heartbeat.clone())));
    stack.lives_and_dies(app, "/ws").await;
    let stack = Stack::new();
    let layers = ServiceBuilder::new()
        .option_layer(Some(stack.heartbeat.clone()))
        .option_layer(None::<HeartbeatLayer>)
        .option_layer(Some(stack.idle.clone()));
    stack
        .lives_and_dies(stack.routes().layer(layers), "/ws")
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
    works_everywhere(|app| {
        app.layer(BoxCloneSyncServiceLayer::new(
            tower::layer::util::Identity::new(),
        ))
    })
    .await;
    let stack = Stack::new();
    let service = stack.heartbeat.layer(stack.idle.layer(stack.routes()));
    let app = Router::new().route_service("/ws", BoxCloneSyncService::new(service));
    stack.lives_and_dies(app, "/ws").await;
}

#[tokio::test]
async fn buffers_and_rates() {
    works_everywhere(|app| {
        app.layer(
            ServiceBuilder::new()
                .layer(HandleErrorLayer::new(unavailable))
                .layer(BufferLayer::new(16))
                .layer(RateLimitLayer::new(1_000, Duration::from_secs(1))),
        )
    })
    .await;
}

/// It counts handshakes, which are over with their answer: one at a time makes for any number of
/// sockets. `Registry::limit` counts those.
#[tokio::test]
async fn a_concurrency_limit_does_not_count_sockets() {
    works_everywhere(|app| {
        app.layer(
            ServiceBuilder::new()
                .layer(HandleErrorLayer::new(unavailable))
                .layer(LoadShedLayer::new())
                .layer(GlobalConcurrencyLimitLayer::new(1)),
        )
    })
    .await;
}

/// In one stack with ours, which pass on whether the service behind them is ready.
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
    stack.untouched().await;
    let stack = Stack::new();
    let layers = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(unavailable))
        .layer(LoadShedLayer::new())
        .layer(stack.heartbeat.clone())
        .layer(stack.idle.clone())
        .layer(ConcurrencyLimitLayer::new(1));
    stack
        .lives_and_dies(stack.routes().layer(layers), "/ws")
        .await;
}

/// tower's own timeout is an error of the service.
#[tokio::test]
async fn a_handshake_that_fails_leaves_no_connection() {
    for place in Place::ALL {
        let stack = Stack::new();
        stack.registry.limit(1);
        let never = any(std::future::pending::<StatusCode>);
        let app = stack.with(place, Router::new().route("/never", never), |app| {
            app.layer(
                ServiceBuilder::new()
                    .layer(HandleErrorLayer::new(unavailable))
                    .layer(TimeoutLayer::new(ms(50))),
            )
        });
        refused(&app, "/never", StatusCode::SERVICE_UNAVAILABLE).await;
        stack.untouched().await;
    }
    // In one stack with ours: these get the error itself.
    let stack = Stack::new();
    let layers = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(unavailable))
        .layer(stack.heartbeat.clone())
        .layer(stack.idle.clone())
        .layer(TimeoutLayer::new(ms(50)));
    let never = any(std::future::pending::<StatusCode>);
    let app = Router::new().route("/never", never).layer(layers);
    refused(&app, "/never", StatusCode::SERVICE_UNAVAILABLE).await;
    stack.untouched().await;
}
