//! What a WebSocket is opened over.

use std::fmt;

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
    pub(crate) tls: bool,
}

impl Http {
    pub(crate) const ALL: [Self; 2] = [Self::One, Self::Two];
}

impl Protocol {
    pub(crate) const ALL: [Self; 4] = [
        Self::new(Http::One, false),
        Self::new(Http::One, true),
        Self::new(Http::Two, false),
        Self::new(Http::Two, true),
    ];

    const fn new(http: Http, tls: bool) -> Self {
        Self { http, tls }
    }

    /// The scheme of a request's URI.
    pub(crate) fn scheme(self) -> &'static str {
        if self.tls { "https" } else { "http" }
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
        let tls = if self.tls { " + TLS" } else { "" };
        write!(f, "{}{tls}", self.http)
    }
}
