//! What a WebSocket is opened over.

use std::fmt;

use crate::tls::Tls;

/// The HTTP that carries the opening handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Http {
    /// RFC 6455.
    One,
    /// RFC 8441.
    Two,
}

/// An HTTP, in clear text or over TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Protocol {
    pub(crate) http: Http,
    /// The server's; `None` for clear text.
    pub(crate) tls: Option<Tls>,
}

impl Http {
    pub(crate) const ALL: [Self; 2] = [Self::One, Self::Two];
}

impl Protocol {
    pub(crate) const ALL: [Self; 4] = [
        Self::new(Http::One, None),
        Self::new(Http::One, Some(Tls::Rustls)),
        Self::new(Http::Two, None),
        Self::new(Http::Two, Some(Tls::Rustls)),
    ];

    const fn new(http: Http, tls: Option<Tls>) -> Self {
        Self { http, tls }
    }

    /// The scheme of a request's URI.
    pub(crate) fn scheme(self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

impl fmt::Display for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One => "HTTP/1.1",
            Self::Two => "HTTP/2",
        })
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tls = if self.tls.is_some() { " + TLS" } else { "" };
        write!(f, "{}{tls}", self.http)
    }
}
