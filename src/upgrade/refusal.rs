//! Refused handshakes: 503 from a full registry, 500 without a driver.

use std::time::Duration;

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
                response.extensions_mut().insert(UpgradeRefused(refused));
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

/// Response extension: a [`Registry`](crate::Registry) refused the opening handshake.
///
/// A layer that answers for a registry cannot build a body of the application's type, so its 503
/// has none. A layer further out finds this in the response's extensions, and may replace the
/// response or add headers to it:
///
/// ```
/// use axum::http::header::RETRY_AFTER;
/// use axum::middleware::map_response;
/// use axum::response::{IntoResponse, Response};
/// use axum::{Json, Router};
/// use tower_ws_liveness::{HeartbeatLayer, UpgradeRefused};
///
/// async fn explain_refusal(response: Response) -> Response {
///     let Some(refused) = response.extensions().get::<UpgradeRefused>() else {
///         return response;
///     };
///     let body = serde_json::json!({ "error": "try again later", "cause": refused.cause() });
///     let retry_after = refused.retry_after().as_secs().to_string();
///     (response.status(), [(RETRY_AFTER, retry_after)], Json(body)).into_response()
/// }
///
/// # fn app(routes: Router) -> Router {
/// routes.layer(HeartbeatLayer::default()).layer(map_response(explain_refusal))
/// # }
/// # app(Router::new());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct UpgradeRefused(Refused);

impl UpgradeRefused {
    /// The cause as a stable word, suitable as the label of a metric: `"limit"` if the registry is
    /// full, `"draining"` if it is being drained.
    #[must_use]
    pub fn cause(&self) -> &'static str {
        self.0.cause
    }

    /// The time that the response's `Retry-After` header has: see
    /// [`Registry::retry_after`](crate::Registry::retry_after). Whole seconds.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        Duration::from_secs(self.0.retry_after)
    }
}
