//! The protocol below a WebSocket: an HTTP version, in clear text or over TLS.

use std::fmt;

use crate::http_version::HttpVersion;
use crate::tls::Tls;

/// An HTTP version, in clear text or over TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Protocol {
    pub(crate) http: HttpVersion,
    /// The server's TLS; `None` for clear text.
    pub(crate) tls: Option<Tls>,
}

impl Protocol {
    pub(crate) const ALL: [Self; 4] = [
        Self::new(HttpVersion::One, None),
        Self::new(HttpVersion::One, Some(Tls::Rustls)),
        Self::new(HttpVersion::Two, None),
        Self::new(HttpVersion::Two, Some(Tls::Rustls)),
    ];

    const fn new(http: HttpVersion, tls: Option<Tls>) -> Self {
        Self { http, tls }
    }

    /// The scheme of a request's URI.
    pub(crate) fn scheme(self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tls = if self.tls.is_some() { " + TLS" } else { "" };
        write!(f, "{}{tls}", self.http)
    }
}
