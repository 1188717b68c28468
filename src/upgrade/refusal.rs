//! Refused handshakes: 503 from a full registry, 500 without a driver.

use http::header::{HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use hyper::ext::ReasonPhrase;

use crate::connection::Refused;
use crate::driver::NoDriver;

/// Why an opening handshake is refused before the handler is called.
#[derive(Clone, Copy)]
pub(super) enum Refusal {
    ByRegistry(Refused),
    NoDriver(NoDriver),
}

impl Refusal {
    pub(super) fn to_response<B: Default>(self) -> Response<B> {
        let mut response = Response::new(B::default());
        match self {
            // RFC 9110 sections 15.6.4 and 10.2.3.
            Self::ByRegistry(refused) => {
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                let retry_after = HeaderValue::from(refused.retry_after);
                response.headers_mut().insert(RETRY_AFTER, retry_after);
            }
            // The layer cannot build a body of the application's type from a text, so the status
            // line carries the message.
            Self::NoDriver(missing) => {
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                let phrase = ReasonPhrase::from_static(missing.as_str().as_bytes());
                response.extensions_mut().insert(phrase);
            }
        }
        response
    }
}
