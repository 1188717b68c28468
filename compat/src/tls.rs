//! TLS with a certificate that is made for one run.

use std::sync::{Arc, LazyLock};

use rcgen::CertifiedKey;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::protocol::Http;

/// Both ends of TLS for `localhost`.
struct Pair {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    pem: (String, String),
}

static PAIR: LazyLock<Pair> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]);
    let CertifiedKey { cert, signing_key } = made.expect("a name and nothing else is asked for");
    Pair {
        pem: (cert.pem(), signing_key.serialize_pem()),
        certificate: cert.der().clone(),
        key: PrivateKeyDer::Pkcs8(signing_key.serialize_der().into()),
    }
});

/// The certificate and its key, for servers that read PEM.
pub(crate) fn pem() -> (String, String) {
    (PAIR.pem.0.clone(), PAIR.pem.1.clone())
}

/// The name in the certificate.
pub(crate) fn name() -> ServerName<'static> {
    ServerName::try_from("localhost").expect("a DNS name")
}

/// The server's settings: it speaks either HTTP, as the client asks by ALPN (RFC 7301).
pub(crate) fn server_config() -> ServerConfig {
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![PAIR.certificate.clone()], PAIR.key.clone_key())
        .expect("the key is the certificate's own");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

pub(crate) fn acceptor() -> TlsAcceptor {
    TlsAcceptor::from(Arc::new(server_config()))
}

/// A client that trusts that one certificate, and asks for that one HTTP.
pub(crate) fn connector(http: Http) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots
        .add(PAIR.certificate.clone())
        .expect("a certificate made by rcgen");
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = match http {
        Http::One => vec![b"http/1.1".to_vec()],
        Http::Two => vec![b"h2".to_vec()],
    };
    TlsConnector::from(Arc::new(config))
}
