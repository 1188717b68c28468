//! The HTTP version that carries an opening handshake.

use std::fmt;

/// The HTTP version that carries the opening handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HttpVersion {
    /// RFC 6455.
    One,
    /// RFC 8441.
    Two,
}

impl HttpVersion {
    pub(crate) const ALL: [Self; 2] = [Self::One, Self::Two];
}

impl fmt::Display for HttpVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One => "HTTP/1.1",
            Self::Two => "HTTP/2",
        })
    }
}
