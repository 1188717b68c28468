//! Recognises opening handshakes, and the responses that accept them.
//!
//! Both checks read the heads alone, before and after the application's service runs. All other
//! requests stay untouched: other upgrades, plain `CONNECT` tunnels, and requests that hyper cannot
//! upgrade. Whether a handshake is *valid* (`Sec-WebSocket-Key`, the version, the `Connection`
//! header) is checked by the application's WebSocket library; [`is_accepted`] returns false for its
//! refusal.

use http::header::{HeaderMap, HeaderName, UPGRADE};
use http::{Extensions, Method, Request, Response, StatusCode, Version};
use hyper::upgrade::OnUpgrade;

/// How a client requests a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HandshakeKind {
    /// `GET` with `Upgrade: websocket` over HTTP/1.1 ([RFC 6455 section 4.2.1]).
    ///
    /// [RFC 6455 section 4.2.1]: https://www.rfc-editor.org/rfc/rfc6455#section-4.2.1
    Http1,
    /// `CONNECT` with `:protocol = websocket` over HTTP/2 ([RFC 8441 section 5]).
    ///
    /// [RFC 8441 section 5]: https://www.rfc-editor.org/rfc/rfc8441#section-5
    #[cfg(feature = "http2")]
    ExtendedConnect,
}

impl HandshakeKind {
    /// Whether the WebSocket shares its HTTP connection with other streams.
    pub(crate) fn is_multiplexed(self) -> bool {
        self != Self::Http1
    }
}

/// Why the head of a request is not that of an opening handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotHandshake {
    /// HTTP/1.x with a method other than `GET`.
    MethodNotGet,
    /// HTTP/2 with a method other than `CONNECT`.
    #[cfg(feature = "http2")]
    MethodNotConnect,
    /// HTTP/2, and `:protocol` is missing or names another protocol.
    #[cfg(feature = "http2")]
    OtherProtocol,
    /// HTTP/1.1, and `websocket` is not among the tokens of `Upgrade`.
    NoUpgrade,
    /// A version of HTTP over which WebSockets are not defined, or not supported by this build.
    Version,
}

/// Request extension: an opening handshake passed a layer, but cannot be upgraded because it has no
/// [`OnUpgrade`].
///
/// By this mark the extractor distinguishes it from a request on a route without layers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NotUpgradable;

/// Returns the kind of handshake of a request with this head, whether or not hyper can upgrade it.
#[cfg_attr(
    not(feature = "http2"),
    expect(unused_variables, reason = "`:protocol` is among the extensions")
)]
pub(crate) fn classify(
    method: &Method,
    version: Version,
    headers: &HeaderMap,
    extensions: &Extensions,
) -> Result<HandshakeKind, NotHandshake> {
    match version {
        #[cfg(feature = "http2")]
        Version::HTTP_2 if *method != Method::CONNECT => Err(NotHandshake::MethodNotConnect),
        #[cfg(feature = "http2")]
        Version::HTTP_2 if !is_websocket_protocol(extensions) => Err(NotHandshake::OtherProtocol),
        #[cfg(feature = "http2")]
        Version::HTTP_2 => Ok(HandshakeKind::ExtendedConnect),
        Version::HTTP_10 | Version::HTTP_11 if *method != Method::GET => {
            Err(NotHandshake::MethodNotGet)
        }
        Version::HTTP_11 if names_websocket(headers) => Ok(HandshakeKind::Http1),
        Version::HTTP_11 => Err(NotHandshake::NoUpgrade),
        // A server must ignore an `Upgrade` in an HTTP/1.0 request (RFC 9110 section 7.8).
        _ => Err(NotHandshake::Version),
    }
}

/// Returns the kind of handshake of `req`, if hyper can upgrade it.
///
/// `None` if it does not request a WebSocket, or if it has no [`OnUpgrade`] in its extensions. In
/// the latter case it is marked [`NotUpgradable`].
pub(crate) fn detect<B>(req: &mut Request<B>) -> Option<HandshakeKind> {
    let (method, headers) = (req.method(), req.headers());
    let kind = classify(method, req.version(), headers, req.extensions()).ok()?;
    if req.extensions().get::<OnUpgrade>().is_none() {
        req.extensions_mut().insert(NotUpgradable);
        return None;
    }
    Some(kind)
}

/// Whether `res` accepts the handshake, so that hyper will resolve the upgrade.
///
/// Over HTTP/1.1 the response is a 101. It should name the protocol, but a 101 that names none can
/// only mean the requested one. A 101 that names *another* protocol (the client may have offered
/// several) is not a WebSocket. Over HTTP/2 any 2xx response opens the tunnel.
pub(crate) fn is_accepted<B>(kind: HandshakeKind, res: &Response<B>) -> bool {
    match kind {
        HandshakeKind::Http1 => {
            res.status() == StatusCode::SWITCHING_PROTOCOLS
                && (names_websocket(res.headers()) || !res.headers().contains_key(UPGRADE))
        }
        #[cfg(feature = "http2")]
        HandshakeKind::ExtendedConnect => res.status().is_success(),
    }
}

/// Whether `websocket` is among the protocols of `Upgrade` (RFC 9110 section 7.8).
fn names_websocket(headers: &HeaderMap) -> bool {
    has_token(headers, &UPGRADE, b"websocket")
}

/// Whether `token`, in any case, is in the list of a header, which may span several lines.
#[inline]
pub(crate) fn has_token(headers: &HeaderMap, name: &HeaderName, token: &[u8]) -> bool {
    headers
        .get_all(name)
        .iter()
        .flat_map(|line| line.as_bytes().split(|&byte| byte == b','))
        .any(|listed| listed.trim_ascii().eq_ignore_ascii_case(token))
}

/// Whether the `:protocol` pseudo-header is `websocket`, compared byte for byte, as axum does.
#[cfg(feature = "http2")]
fn is_websocket_protocol(extensions: &Extensions) -> bool {
    extensions
        .get::<hyper::ext::Protocol>()
        .is_some_and(|protocol| protocol.as_str() == "websocket")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An `OnUpgrade` that fails, for the extensions of a request.
    fn on_upgrade() -> OnUpgrade {
        hyper::upgrade::on(Request::new(()))
    }

    fn http1(upgrade: &[&[u8]]) -> Request<()> {
        let mut req = Request::get("/ws").body(()).unwrap();
        for line in upgrade {
            let line = http::HeaderValue::from_bytes(line).unwrap();
            req.headers_mut().append(UPGRADE, line);
        }
        req.extensions_mut().insert(on_upgrade());
        req
    }

    fn response(status: u16, upgrade: &[&'static str]) -> Response<()> {
        let mut res = Response::builder().status(status);
        for line in upgrade {
            res = res.header(UPGRADE, *line);
        }
        res.body(()).unwrap()
    }

    /// Classifies `req`, and checks that `detect` agrees.
    fn kind_of<B>(req: &mut Request<B>) -> Result<HandshakeKind, NotHandshake> {
        let (method, headers) = (req.method(), req.headers());
        let kind = classify(method, req.version(), headers, req.extensions());
        assert_eq!(detect(req), kind.ok());
        assert!(req.extensions().get::<NotUpgradable>().is_none());
        kind
    }

    #[test]
    fn the_upgrade_header_is_read_as_a_case_insensitive_list() {
        let yes: [&[&[u8]]; 6] = [
            &[b"websocket"],
            &[b"WebSocket"],
            &[b"h2c, websocket"],
            &[b"websocket,h2c"],
            &[b" \tWEBSOCKET\t "],
            &[b"h2c", b"websocket"],
        ];
        for lines in yes {
            assert_eq!(
                kind_of(&mut http1(lines)),
                Ok(HandshakeKind::Http1),
                "{lines:?}"
            );
        }
        let no: [&[&[u8]]; 7] = [
            &[],
            &[b""],
            &[b",,"],
            &[b"h2c"],
            &[b"websockets"],
            &[b"web socket"],
            &[b"\xffwebsocket\xfe, \x80"],
        ];
        for lines in no {
            let kind = kind_of(&mut http1(lines));
            assert_eq!(kind, Err(NotHandshake::NoUpgrade), "{lines:?}");
        }
    }

    #[test]
    fn over_http1_only_an_upgradable_get_is_a_handshake() {
        for method in [Method::POST, Method::CONNECT] {
            let mut other = http1(&[b"websocket"]);
            *other.method_mut() = method;
            assert_eq!(kind_of(&mut other), Err(NotHandshake::MethodNotGet));
        }

        for version in [Version::HTTP_09, Version::HTTP_10, Version::HTTP_3] {
            let mut other = http1(&[b"websocket"]);
            *other.version_mut() = version;
            let kind = kind_of(&mut other);
            assert_eq!(kind, Err(NotHandshake::Version), "{version:?}");
        }

        let mut taken = http1(&[b"websocket"]);
        taken.extensions_mut().remove::<OnUpgrade>();
        assert_eq!(detect(&mut taken), None);
        assert!(taken.extensions().get::<NotUpgradable>().is_some());
    }

    #[test]
    #[cfg(not(feature = "http2"))]
    fn without_the_http2_feature_http2_is_an_unsupported_version() {
        for method in [Method::GET, Method::CONNECT] {
            let mut other = http1(&[b"websocket"]);
            *other.method_mut() = method;
            *other.version_mut() = Version::HTTP_2;
            assert_eq!(kind_of(&mut other), Err(NotHandshake::Version));
        }
    }

    #[test]
    fn a_101_for_websocket_accepts_an_http1_handshake() {
        assert!(is_accepted(
            HandshakeKind::Http1,
            &response(101, &["websocket"])
        ));
        assert!(is_accepted(
            HandshakeKind::Http1,
            &response(101, &["WebSocket"])
        ));
        assert!(is_accepted(HandshakeKind::Http1, &response(101, &[])));
        assert!(!is_accepted(HandshakeKind::Http1, &response(101, &["h2c"])));
        for status in [100, 200, 204, 400, 426, 500] {
            assert!(!is_accepted(
                HandshakeKind::Http1,
                &response(status, &["websocket"])
            ));
        }
    }

    #[cfg(feature = "http2")]
    mod http2 {
        use hyper::ext::Protocol;

        use super::*;

        fn connect(protocol: Option<&'static str>) -> Request<()> {
            let mut req = Request::connect("example.com:443").body(()).unwrap();
            *req.version_mut() = Version::HTTP_2;
            req.extensions_mut().insert(on_upgrade());
            if let Some(protocol) = protocol {
                req.extensions_mut().insert(Protocol::from_static(protocol));
            }
            req
        }

        #[test]
        fn over_http2_only_an_extended_connect_for_websocket_is_a_handshake() {
            let mut websocket = connect(Some("websocket"));
            assert_eq!(kind_of(&mut websocket), Ok(HandshakeKind::ExtendedConnect));

            let other = Err(NotHandshake::OtherProtocol);
            assert_eq!(kind_of(&mut connect(Some("connect-udp"))), other);
            assert_eq!(kind_of(&mut connect(None)), other, "a plain tunnel");

            let mut get = connect(Some("websocket"));
            *get.method_mut() = Method::GET;
            assert_eq!(kind_of(&mut get), Err(NotHandshake::MethodNotConnect));

            let mut taken = connect(Some("websocket"));
            taken.extensions_mut().remove::<OnUpgrade>();
            assert_eq!(detect(&mut taken), None);
            assert!(taken.extensions().get::<NotUpgradable>().is_some());
        }

        #[test]
        fn any_2xx_accepts_an_extended_connect() {
            for (status, expected) in [(200, true), (204, true), (101, false), (404, false)] {
                let res = response(status, &[]);
                assert_eq!(
                    is_accepted(HandshakeKind::ExtendedConnect, &res),
                    expected,
                    "{status}"
                );
            }
        }
    }
}
