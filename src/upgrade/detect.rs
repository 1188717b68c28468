//! Is this request an opening handshake, and did this response complete it?
//!
//! Both questions are asked of headers alone, before and after the application's service ran. Everything that is not
//! clearly a WebSocket stays untouched: other upgrades, plain `CONNECT` tunnels, and requests that hyper cannot upgrade.
//! Whether the handshake is *valid* (`Sec-WebSocket-Key`, the version, the `Connection` header) is for the application's
//! WebSocket library to judge; an answer that refuses it makes [`accepted`] say no.

use http::header::{HeaderMap, UPGRADE};
use http::{Extensions, Method, Request, Response, StatusCode, Version};
use hyper::upgrade::OnUpgrade;

/// How a client asks for a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handshake {
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

impl Handshake {
    /// Whether it asks for a stream among others, and not for the whole connection.
    pub(crate) fn is_stream(self) -> bool {
        self != Self::Http1
    }
}

/// Why a request is not an opening handshake, by its head alone, so that the client is at fault.
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
    /// A version of HTTP over which WebSockets do not exist, or are not supported by this build.
    Version,
}

/// Marks an opening handshake that passed a layer but had no [`OnUpgrade`], so that it cannot be upgraded.
/// The extractor needs the mark to distinguish it from a request on a route without layers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NotUpgradable;

/// Returns the kind of handshake that a request with this head is, whether or not hyper can upgrade it.
#[cfg_attr(
    not(feature = "http2"),
    expect(unused_variables, reason = "`:protocol` is among the extensions")
)]
pub(crate) fn handshake(
    method: &Method,
    version: Version,
    headers: &HeaderMap,
    extensions: &Extensions,
) -> Result<Handshake, NotHandshake> {
    match version {
        #[cfg(feature = "http2")]
        Version::HTTP_2 if *method != Method::CONNECT => Err(NotHandshake::MethodNotConnect),
        #[cfg(feature = "http2")]
        Version::HTTP_2 if !is_websocket_protocol(extensions) => Err(NotHandshake::OtherProtocol),
        #[cfg(feature = "http2")]
        Version::HTTP_2 => Ok(Handshake::ExtendedConnect),
        Version::HTTP_10 | Version::HTTP_11 if *method != Method::GET => {
            Err(NotHandshake::MethodNotGet)
        }
        Version::HTTP_11 if names_websocket(headers) => Ok(Handshake::Http1),
        Version::HTTP_11 => Err(NotHandshake::NoUpgrade),
        // An `Upgrade` in a request of HTTP/1.0 has to be ignored (RFC 9110 section 7.8).
        _ => Err(NotHandshake::Version),
    }
}

/// Returns the kind of handshake that `req` is. `None` if it does not ask for a WebSocket, or if it has no
/// [`OnUpgrade`] in its extensions and so cannot be upgraded; it is then marked [`NotUpgradable`].
pub(crate) fn detect<B>(req: &mut Request<B>) -> Option<Handshake> {
    let (method, headers) = (req.method(), req.headers());
    let handshake = handshake(method, req.version(), headers, req.extensions()).ok()?;
    if req.extensions().get::<OnUpgrade>().is_none() {
        req.extensions_mut().insert(NotUpgradable);
        return None;
    }
    Some(handshake)
}

/// Whether `res` completes the handshake, so that hyper is about to hand out the upgraded stream.
///
/// Over HTTP/1.1 the answer is a 101. It should name the protocol, but a 101 that names none can only mean what was
/// asked for. A 101 that names *another* protocol (the client may have offered several) is not a WebSocket. Over HTTP/2
/// any 2xx answer opens the tunnel.
pub(crate) fn accepted<B>(handshake: Handshake, res: &Response<B>) -> bool {
    match handshake {
        Handshake::Http1 => {
            res.status() == StatusCode::SWITCHING_PROTOCOLS
                && (!res.headers().contains_key(UPGRADE) || names_websocket(res.headers()))
        }
        #[cfg(feature = "http2")]
        Handshake::ExtendedConnect => res.status().is_success(),
    }
}

/// Whether `websocket` is among the tokens of the `Upgrade` header, which is a list and may be spread over several lines
/// (RFC 9110 section 7.8).
fn names_websocket(headers: &HeaderMap) -> bool {
    headers
        .get_all(UPGRADE)
        .iter()
        .flat_map(|line| line.as_bytes().split(|&byte| byte == b','))
        .any(|token| token.trim_ascii().eq_ignore_ascii_case(b"websocket"))
}

/// Whether the `:protocol` pseudo-header is `websocket`. Compared as axum does it, byte for byte.
#[cfg(feature = "http2")]
fn is_websocket_protocol(extensions: &Extensions) -> bool {
    extensions
        .get::<hyper::ext::Protocol>()
        .is_some_and(|protocol| protocol.as_str() == "websocket")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An `OnUpgrade` that never upgrades: enough to be found in the extensions.
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

    fn answer(status: u16, upgrade: &[&'static str]) -> Response<()> {
        let mut res = Response::builder().status(status);
        for line in upgrade {
            res = res.header(UPGRADE, *line);
        }
        res.body(()).unwrap()
    }

    fn why<B>(req: &mut Request<B>) -> Result<Handshake, NotHandshake> {
        let (method, headers) = (req.method(), req.headers());
        let found = handshake(method, req.version(), headers, req.extensions());
        assert_eq!(detect(req), found.ok());
        assert!(req.extensions().get::<NotUpgradable>().is_none());
        found
    }

    #[test]
    fn upgrade_header_is_a_case_insensitive_list() {
        let yes: [&[&[u8]]; 6] = [
            &[b"websocket"],
            &[b"WebSocket"],
            &[b"h2c, websocket"],
            &[b"websocket,h2c"],
            &[b" \tWEBSOCKET\t "],
            &[b"h2c", b"websocket"],
        ];
        for lines in yes {
            assert_eq!(why(&mut http1(lines)), Ok(Handshake::Http1), "{lines:?}");
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
            let why = why(&mut http1(lines));
            assert_eq!(why, Err(NotHandshake::NoUpgrade), "{lines:?}");
        }
    }

    #[test]
    fn only_an_upgradable_http1_get_counts() {
        for method in [Method::POST, Method::CONNECT] {
            let mut other = http1(&[b"websocket"]);
            *other.method_mut() = method;
            assert_eq!(why(&mut other), Err(NotHandshake::MethodNotGet));
        }

        for version in [Version::HTTP_09, Version::HTTP_10, Version::HTTP_3] {
            let mut other = http1(&[b"websocket"]);
            *other.version_mut() = version;
            let why = why(&mut other);
            assert_eq!(why, Err(NotHandshake::Version), "{version:?}");
        }

        let mut taken = http1(&[b"websocket"]);
        taken.extensions_mut().remove::<OnUpgrade>();
        assert_eq!(detect(&mut taken), None);
        assert!(taken.extensions().get::<NotUpgradable>().is_some());
    }

    #[test]
    #[cfg(not(feature = "http2"))]
    fn http2_is_none_of_our_versions() {
        for method in [Method::GET, Method::CONNECT] {
            let mut other = http1(&[b"websocket"]);
            *other.method_mut() = method;
            *other.version_mut() = Version::HTTP_2;
            assert_eq!(why(&mut other), Err(NotHandshake::Version));
        }
    }

    #[test]
    fn a_101_completes_the_http1_handshake() {
        assert!(accepted(Handshake::Http1, &answer(101, &["websocket"])));
        assert!(accepted(Handshake::Http1, &answer(101, &["WebSocket"])));
        assert!(accepted(Handshake::Http1, &answer(101, &[])));
        assert!(!accepted(Handshake::Http1, &answer(101, &["h2c"])));
        for status in [100, 200, 204, 400, 426, 500] {
            assert!(!accepted(Handshake::Http1, &answer(status, &["websocket"])));
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
        fn extended_connect_asks_for_its_protocol() {
            let mut websocket = connect(Some("websocket"));
            assert_eq!(why(&mut websocket), Ok(Handshake::ExtendedConnect));

            let other = Err(NotHandshake::OtherProtocol);
            assert_eq!(why(&mut connect(Some("connect-udp"))), other);
            assert_eq!(why(&mut connect(None)), other, "a plain tunnel");

            let mut get = connect(Some("websocket"));
            *get.method_mut() = Method::GET;
            assert_eq!(why(&mut get), Err(NotHandshake::MethodNotConnect));

            let mut taken = connect(Some("websocket"));
            taken.extensions_mut().remove::<OnUpgrade>();
            assert_eq!(detect(&mut taken), None);
            assert!(taken.extensions().get::<NotUpgradable>().is_some());
        }

        #[test]
        fn any_success_completes_extended_connect() {
            for (status, completes) in [(200, true), (204, true), (101, false), (404, false)] {
                let res = answer(status, &[]);
                assert_eq!(
                    accepted(Handshake::ExtendedConnect, &res),
                    completes,
                    "{status}"
                );
            }
        }
    }
}
