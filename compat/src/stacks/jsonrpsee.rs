//! jsonrpsee's server as a service, with the layers as its HTTP middleware.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::Request;
use hyper::body::Incoming;
use jsonrpsee::RpcModule;
use jsonrpsee::server::{PingConfig, Server, ServerConfig, stop_channel};
use tower::{Service, ServiceBuilder, service_fn};

use crate::site::Site;
use crate::stack::{Dialect, Feature, Limit, Of, Stack};

pub(crate) const STACK: Stack = Stack {
    name: "jsonrpsee",
    library: "jsonrpsee",
    serve,
    dialect: Dialect::JsonRpc,
    shows_pongs: false,
    limits: &[
        Limit::HTTP1_ONLY,
        Limit {
            of: Of::Feature(Feature::Deflate),
            why: "jsonrpsee asks soketto for no extensions",
        },
    ],
};

/// Far below the default, so that the library sends pings in every scene.
const PING_INTERVAL: Duration = Duration::from_millis(100);

fn serve(site: Site) -> BoxFuture<'static, ()> {
    let mut module = RpcModule::new(());
    module
        .register_method("echo", |params, _, _| params.one::<serde_json::Value>())
        .expect("the only method");
    serve_module(site, module).boxed()
}

pub(crate) async fn serve_module(site: Site, module: RpcModule<()>) {
    let (heartbeat, idle) = match &site.layers {
        Some(layers) => (Some(layers.heartbeat.clone()), Some(layers.idle.clone())),
        None => (None, None),
    };
    let middleware = ServiceBuilder::new()
        .option_layer(heartbeat)
        .option_layer(idle);
    let config =
        ServerConfig::builder().enable_ws_ping(PingConfig::new().ping_interval(PING_INTERVAL));
    let server = Server::builder()
        .set_config(config.build())
        .set_http_middleware(middleware)
        .to_service_builder();
    let (stop, _running) = stop_channel();
    // Builds a service for each request, as jsonrpsee's examples do, so that each has its own id.
    let service = service_fn(move |request: Request<Incoming>| {
        let mut service = server.clone().build(module.clone(), stop.clone());
        service.call(request)
    });
    site.serve_auto(service).await;
}
