//! tower-http's compression in every position around both layers.
//!
//! Here, because in the crate's own tree no other test needs a compression library.

#[allow(dead_code)] // shared with the crate's own tests
#[path = "../../tests/suite/layers/stack.rs"]
mod stack;
#[path = "../../tests/support/mod.rs"]
mod support;

use http::StatusCode;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderValue};
use stack::{Position, Stack, echoes, handshake, send_http1, send_http2, works_in_every_position};
use support::h2_client::H2Client;
use support::raw::RawClient;
use support::{Server, ms, within};
use tower::ServiceBuilder;
use tower_http::compression::CompressionLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::metrics::InFlightRequestsLayer;
use tower_http::timeout::{ResponseBodyTimeoutLayer, TimeoutLayer};
use tower_http::trace::TraceLayer;
use tower_ws_liveness::Reason;

#[tokio::test]
async fn compression() {
    works_in_every_position(|app| app.layer(CompressionLayer::new())).await;
}

/// Covers HTTP/1.1 and HTTP/2, where the response to the handshake is an ordinary 200.
#[tokio::test]
async fn compression_of_all_responses_does_not_compress_frames() {
    for position in Position::ALL {
        let everything =
            CompressionLayer::new().compress_when(|_: StatusCode, _: _, _: &_, _: &_| true);
        let stack = Stack::new();
        let app = stack.with(position, stack.routes(), |app| {
            app.layer(everything.clone())
        });
        let server = Server::start(app).await;
        let (response, upgraded) = send_http1(server.addr, &handshake("/ws")).await;
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        // The header is wrong but harmless: what follows the head of a 101 is another protocol.
        assert_eq!(response.headers()[CONTENT_ENCODING], "gzip");
        echoes(&mut RawClient::over(Box::new(upgraded.unwrap()))).await;
        let h2 = H2Client::connect(server.addr).await.unwrap();
        let (response, stream) = send_http2(&h2, "/ws").await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[CONTENT_ENCODING], "gzip");
        echoes(&mut RawClient::over(Box::new(stream))).await;
    }
}

/// tower-http turns even a 101 into a 406. Inside our layers this is a refused handshake. Outside
/// them our layers have already seen the 101, and the stream ends when the client disconnects.
#[tokio::test]
async fn compression_that_is_not_acceptable_refuses_the_upgrade() {
    for position in [Position::Inside, Position::Outside] {
        let stack = Stack::new();
        let app = stack.with(position, stack.routes(), |app| {
            app.layer(CompressionLayer::new())
        });
        let server = Server::start(app).await;
        let mut request = handshake("/ws");
        let nothing = HeaderValue::from_static("identity;q=0, br;q=0");
        request.headers_mut().insert(ACCEPT_ENCODING, nothing);
        let (response, _) = send_http1(server.addr, &request).await;
        assert_eq!(response.status(), StatusCode::NOT_ACCEPTABLE);
        match position {
            Position::Inside => stack.assert_no_connection().await,
            _ => {
                let event = stack.recorder.nth(1).await;
                assert_eq!(event.reason, Reason::PeerVanished);
                within("the end", stack.registry.wait_idle()).await;
            }
        }
    }
}

#[tokio::test]
async fn outside_layers_whose_bodies_are_default() {
    let stack = Stack::new();
    let layers = ServiceBuilder::new()
        .layer(stack.heartbeat.clone())
        .layer(stack.idle.clone())
        .layer(TimeoutLayer::with_status_code(
            StatusCode::REQUEST_TIMEOUT,
            ms(1_000),
        ))
        .layer(CompressionLayer::new())
        .layer(RequestBodyLimitLayer::new(16));
    stack
        .full_lifecycle(stack.routes().layer(layers), "/ws")
        .await;
}

#[tokio::test]
async fn inside_any_layer() {
    let stack = Stack::new();
    let layers = ServiceBuilder::new()
        .layer(TraceLayer::new_for_http())
        .layer(InFlightRequestsLayer::pair().0)
        .layer(ResponseBodyTimeoutLayer::new(ms(100)))
        .layer(CompressionLayer::new())
        .layer(stack.heartbeat.clone())
        .layer(stack.idle.clone());
    stack
        .full_lifecycle(stack.routes().layer(layers), "/ws")
        .await;
}
