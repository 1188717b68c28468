//! axum's own extractor, on axum-server, with its rustls where there is TLS.

use std::sync::Arc;

use axum_server::tls_rustls::RustlsConfig;
use futures_util::FutureExt;

use super::axum::routes;
use crate::site::Site;
use crate::stack::{Dialect, Limit, Stack};
use crate::tls;

pub(crate) const STACK: Stack = Stack {
    name: "axum on axum-server",
    library: "axum-server",
    serve: |site| serve(site).boxed(),
    dialect: Dialect::Plain,
    shows_pongs: true,
    limits: &[Limit::TUNGSTENITE],
};

async fn serve(site: Site) {
    let router = site.behind_layers(routes(site.pongs.clone()));
    let service = router.into_make_service();
    let listener = site.listener.into_std().expect("a listener of tokio's");
    // RFC 8441 section 3: unlike `axum::serve`, axum-server leaves it to the application whether
    // clients may ask for a WebSocket over HTTP/2.
    let served = if site.tls.is_some() {
        let config = RustlsConfig::from_config(Arc::new(tls::server_config()));
        let server = axum_server::from_tcp_rustls(listener, config);
        let mut server = server.expect("a runtime");
        server.http_builder().http2().enable_connect_protocol();
        server.serve(service).await
    } else {
        let mut server = axum_server::from_tcp(listener).expect("a runtime");
        server.http_builder().http2().enable_connect_protocol();
        server.serve(service).await
    };
    served.expect("axum-server does not return");
}
