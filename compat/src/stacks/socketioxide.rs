//! socketioxide, a layer that responds by itself, on axum, with its own Engine.IO pings.

use std::time::Duration;

use axum::Router;
use axum::routing::get;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rmpv::Value;
use socketioxide::SocketIo;
use socketioxide::extract::{Data, SocketRef};
use socketioxide::layer::SocketIoLayer;

use crate::site::Site;
use crate::stack::{Dialect, Feature, Limit, Of, Stack};

pub(crate) const STACK: Stack = Stack {
    name: "socketioxide",
    library: "socketioxide",
    serve,
    dialect: Dialect::SocketIo,
    shows_pongs: false,
    limits: &[
        Limit::HTTP1_ONLY,
        Limit::TUNGSTENITE,
        Limit {
            of: Of::Feature(Feature::Idle),
            why: "Engine.IO's own pings and pongs are text messages, so its connections never idle \
                  for longer than its `ping_interval`, whatever `watch` counts",
        },
    ],
};

/// Far below the default, so that the library sends pings in every scene.
const PING_INTERVAL: Duration = Duration::from_millis(100);

fn serve(site: Site) -> BoxFuture<'static, ()> {
    let app = Router::new()
        .route("/", get(|| async { "Hello, World!" }))
        .layer(layer(PING_INTERVAL));
    site.serve_router(app).boxed()
}

/// Echoes every event `echo`.
pub(crate) fn layer(ping_interval: Duration) -> SocketIoLayer {
    let (layer, io) = SocketIo::builder()
        .ping_interval(ping_interval)
        .build_layer();
    io.ns("/", on_connect);
    layer
}

async fn on_connect(socket: SocketRef) {
    socket.on("echo", async |socket: SocketRef, Data::<Value>(data)| {
        socket.emit("echo", &data).ok();
    });
    // The client receives the packet "connect" before this function has registered its handlers.
    socket.emit("ready", &()).ok();
}
