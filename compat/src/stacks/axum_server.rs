//! axum's own extractor, on axum-server with its rustls or OpenSSL acceptor.

use axum_server::tls_openssl::{OpenSSLAcceptor, OpenSSLConfig};
use axum_server::tls_rustls::RustlsConfig;
use futures_util::FutureExt;

use super::axum::routes;
use crate::site::Site;
use crate::stack::{Dialect, Limit, Stack};
use crate::tls::Acceptor;

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
    let listener = site.listener.into_std().expect("a bound listener");
    // RFC 8441 section 3: unlike `axum::serve`, axum-server enables extended CONNECT only on
    // request.
    let result = match site.tls {
        None => {
            let mut server = axum_server::from_tcp(listener).expect("a runtime");
            server.http_builder().http2().enable_connect_protocol();
            server.serve(service).await
        }
        Some(Acceptor::Rustls(config)) => {
            let config = RustlsConfig::from_config(config);
            let server = axum_server::from_tcp_rustls(listener, config);
            let mut server = server.expect("a runtime");
            server.http_builder().http2().enable_connect_protocol();
            server.serve(service).await
        }
        Some(Acceptor::OpenSsl(acceptor)) => {
            let config = OpenSSLConfig::from_acceptor(acceptor);
            let server = axum_server::from_tcp(listener).expect("a runtime");
            let mut server = server.acceptor(OpenSSLAcceptor::new(config));
            server.http_builder().http2().enable_connect_protocol();
            server.serve(service).await
        }
        Some(Acceptor::Native(_)) => panic!("axum-server has no native-tls"),
    };
    result.expect("axum-server does not return");
}
