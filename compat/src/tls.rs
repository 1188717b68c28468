//! TLS on rustls, OpenSSL and native-tls, with a certificate generated per run.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};

use openssl::pkey::PKey;
use openssl::ssl::{AlpnError, Ssl, SslAcceptor, SslMethod, select_next_proto};
use openssl::x509::X509;
use rcgen::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsConnector, server};

use crate::http_version::HttpVersion;

/// The TLS implementation of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tls {
    Rustls,
    OpenSsl,
    /// OpenSSL too on Linux, behind another interface.
    Native,
}

/// Accepts TLS connections on any transport.
#[derive(Clone)]
pub(crate) enum Acceptor {
    Rustls(Arc<ServerConfig>),
    OpenSsl(Arc<SslAcceptor>),
    Native(tokio_native_tls::TlsAcceptor),
}

/// The server's end of a TLS connection over `T`.
#[derive(Debug)]
pub(crate) enum TlsStream<T> {
    Rustls(Box<server::TlsStream<T>>),
    OpenSsl(tokio_openssl::SslStream<T>),
    Native(tokio_native_tls::TlsStream<T>),
}

/// A certificate for `localhost` and its key.
struct CertificateAndKey {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    pem: (String, String),
}

static CERTIFICATE_AND_KEY: LazyLock<CertificateAndKey> = LazyLock::new(|| {
    let generated = rcgen::generate_simple_self_signed(["localhost".to_owned()]);
    let CertifiedKey { cert, signing_key } = generated.expect("a DNS name is a valid subject");
    CertificateAndKey {
        pem: (cert.pem(), signing_key.serialize_pem()),
        certificate: cert.der().clone(),
        key: PrivateKeyDer::Pkcs8(signing_key.serialize_der().into()),
    }
});

/// Returns the certificate and its key in PEM.
pub(crate) fn pem() -> (String, String) {
    (
        CERTIFICATE_AND_KEY.pem.0.clone(),
        CERTIFICATE_AND_KEY.pem.1.clone(),
    )
}

/// Returns the name in the certificate.
pub(crate) fn name() -> ServerName<'static> {
    ServerName::try_from("localhost").expect("a DNS name")
}

impl Tls {
    /// Builds an acceptor. With rustls and OpenSSL the client selects the HTTP version by ALPN (RFC
    /// 7301). With native-tls there is only HTTP/1.1, since its ALPN is behind a feature.
    pub(crate) fn acceptor(self) -> Acceptor {
        match self {
            Self::Rustls => Acceptor::Rustls(Arc::new(rustls())),
            Self::OpenSsl => Acceptor::OpenSsl(Arc::new(openssl())),
            Self::Native => Acceptor::Native(native_tls().into()),
        }
    }
}

impl fmt::Display for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rustls => "tokio-rustls",
            Self::OpenSsl => "tokio-openssl",
            Self::Native => "tokio-native-tls",
        })
    }
}

fn rustls() -> ServerConfig {
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![CERTIFICATE_AND_KEY.certificate.clone()],
            CERTIFICATE_AND_KEY.key.clone_key(),
        )
        .expect("the key matches the certificate");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

fn openssl() -> SslAcceptor {
    let (certificate, key) = pem();
    let build = || {
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls())?;
        let key = PKey::private_key_from_pem(key.as_bytes())?;
        let certificate = X509::from_pem(certificate.as_bytes())?;
        acceptor.set_certificate(&certificate)?;
        acceptor.set_private_key(&key)?;
        acceptor.set_alpn_select_callback(|_, offered| {
            let known = b"\x02h2\x08http/1.1";
            select_next_proto(known, offered).ok_or(AlpnError::NOACK)
        });
        Ok::<_, openssl::error::ErrorStack>(acceptor.build())
    };
    build().expect("the key matches the certificate")
}

fn native_tls() -> native_tls::TlsAcceptor {
    let (certificate, key) = pem();
    native_tls::Identity::from_pkcs8(certificate.as_bytes(), key.as_bytes())
        .and_then(native_tls::TlsAcceptor::new)
        .expect("the key matches the certificate")
}

impl Acceptor {
    pub(crate) async fn accept<T>(&self, io: T) -> io::Result<TlsStream<T>>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        match self {
            Self::Rustls(config) => {
                let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(config));
                let accepted = acceptor.accept(io).await?;
                Ok(TlsStream::Rustls(Box::new(accepted)))
            }
            Self::OpenSsl(acceptor) => {
                let mut stream = tokio_openssl::SslStream::new(Ssl::new(acceptor.context())?, io)?;
                let accepted = Pin::new(&mut stream).accept().await;
                accepted.map_err(io::Error::other)?;
                Ok(TlsStream::OpenSsl(stream))
            }
            Self::Native(acceptor) => {
                let accepted = acceptor.accept(io).await;
                accepted.map(TlsStream::Native).map_err(io::Error::other)
            }
        }
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").finish_non_exhaustive()
    }
}

impl<T> TlsStream<T> {
    /// The transport below TLS.
    pub(crate) fn get_ref(&self) -> &T {
        match self {
            Self::Rustls(stream) => stream.get_ref().0,
            Self::OpenSsl(stream) => stream.get_ref(),
            Self::Native(stream) => stream.get_ref().get_ref().get_ref(),
        }
    }
}

/// Calls a method on the stream of any implementation.
macro_rules! stream {
    ($this:expr, $io:ident => $call:expr) => {
        match $this.get_mut() {
            TlsStream::Rustls(stream) => {
                let $io = Pin::new(stream);
                $call
            }
            TlsStream::OpenSsl(stream) => {
                let $io = Pin::new(stream);
                $call
            }
            TlsStream::Native(stream) => {
                let $io = Pin::new(stream);
                $call
            }
        }
    };
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        stream!(self, io => io.poll_read(cx, buf))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        stream!(self, io => io.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        stream!(self, io => io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Rustls(stream) => stream.is_write_vectored(),
            Self::OpenSsl(stream) => stream.is_write_vectored(),
            Self::Native(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        stream!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        stream!(self, io => io.poll_shutdown(cx))
    }
}

/// Builds a rustls client that trusts only this certificate and offers only this HTTP version.
pub(crate) fn connector(http: HttpVersion) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots
        .add(CERTIFICATE_AND_KEY.certificate.clone())
        .expect("a certificate made by rcgen");
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = match http {
        HttpVersion::One => vec![b"http/1.1".to_vec()],
        HttpVersion::Two => vec![b"h2".to_vec()],
    };
    TlsConnector::from(Arc::new(config))
}
