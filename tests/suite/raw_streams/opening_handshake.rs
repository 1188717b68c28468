//! The opening handshake through a wrapped stream: no byte is lost and no ping precedes its end.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};
use tokio::time::timeout;
use tokio_tungstenite::{WebSocketStream, accept_async, accept_hdr_async, client_async};
use tower_ws_liveness::{Health, Reason, Registry};
use tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tungstenite::protocol::Role;
use tungstenite::{Error, Message, http};

use super::handshakes::{SWITCHING, heartbeat};
use crate::support::raw::{Frame, PING, RawClient, opening};
use crate::support::recorder::Recorder;
use crate::support::scene::quiet;
use crate::support::{ms, never, within};

const URL: &str = "ws://localhost/ws";
const HOUR: Duration = Duration::from_secs(3600);

/// Answers one request with 101, followed by `after` in the same write.
async fn answer(mut io: DuplexStream, after: &[u8]) -> DuplexStream {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(io.read_u8().await.unwrap());
    }
    let head = String::from_utf8(request).unwrap();
    let key = head
        .lines()
        .find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "))
        .unwrap();
    let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
    let answer = SWITCHING.replace("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", &accept);
    let bytes = [answer.as_bytes(), after].concat();
    io.write_all(&bytes).await.unwrap();
    io
}

fn texts(from: u32, to: u32) -> impl Iterator<Item = Frame> {
    (from..to).map(|n| Frame::text(&format!("number {n}")))
}

// Frames next to the handshake.

#[tokio::test]
async fn frames_in_one_piece_with_the_response_are_read_and_counted() {
    let (layer, _) = heartbeat();
    let (near, far) = duplex(4096);
    let (io, live) = layer.wrap_client_handshake(near);
    let mut early: Vec<u8> = texts(0, 3).flat_map(|frame| frame.unmasked()).collect();
    let rest = early.split_off(early.len() - 5);
    let serving = tokio::spawn(async move { answer(far, &early).await });
    let (mut socket, _) = within("the handshake", client_async(URL, io))
        .await
        .unwrap();
    let mut server = serving.await.unwrap();
    server.write_all(&rest).await.unwrap();
    for frame in texts(0, 3) {
        let message = within("a message", socket.next()).await.unwrap().unwrap();
        assert_eq!(message.into_data(), frame.payload);
    }
    assert_eq!(live.stats().messages_received(), 3);
}

#[tokio::test]
async fn interim_responses_do_not_end_the_handshake() {
    let (server, client) = (heartbeat().0, heartbeat().0);
    let (near, far) = duplex(4096);
    let (mut near, server_live) = server.wrap_server_handshake(near);
    let (mut far, client_live) = client.wrap_client_handshake(far);
    let early_hints = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
    let frame = Frame::text("hello").unmasked();
    let heads = [early_hints, early_hints, SWITCHING].concat();
    let all = [heads.as_bytes(), &frame].concat();
    near.write_all(&all).await.unwrap();
    let mut got = vec![0; all.len()];
    within("all of it", far.read_exact(&mut got)).await.unwrap();
    assert_eq!(got, all);
    assert_eq!(server_live.stats().messages_sent(), 1);
    assert_eq!(client_live.stats().messages_received(), 1);
}

/// This is why `HandshakeStream` exists.
#[tokio::test]
async fn a_stream_taken_from_a_client_lacks_the_bytes_after_the_response() {
    let (near, far) = duplex(4096);
    let early = Frame::text("number 0").unmasked();
    let serving = tokio::spawn(async move { answer(far, &early).await });
    let (socket, _) = client_async(URL, near).await.unwrap();
    let (io, live) = quiet().build().unwrap().wrap_client(socket.into_inner());
    let mut socket = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
    let mut server = serving.await.unwrap();
    let next = Frame::text("number 1").unmasked();
    server.write_all(&next).await.unwrap();
    let message = within("a message", socket.next()).await.unwrap().unwrap();
    assert_eq!(message, Message::text("number 1"), "not the first one");
    assert_eq!(live.stats().messages_received(), 1);
}

#[tokio::test]
async fn frames_in_one_piece_with_the_request_are_held_back_until_the_response() {
    let (layer, _) = heartbeat();
    let (near, mut far) = duplex(4096);
    let (io, live) = layer.wrap_server_handshake(near);
    let frames: Vec<u8> = texts(0, 3).flat_map(|frame| frame.masked()).collect();
    let request = [opening("/").as_bytes(), &frames].concat();
    far.write_all(&request).await.unwrap();
    // Without the wrapper tungstenite refuses frames that precede its response.
    let mut socket = within("the handshake", accept_async(io)).await.unwrap();
    for frame in texts(0, 3) {
        let message = within("a message", socket.next()).await.unwrap().unwrap();
        assert_eq!(message.into_data(), frame.payload);
    }
    assert_eq!(live.stats().messages_received(), 3);
}

#[tokio::test]
async fn a_handshake_may_pass_byte_by_byte() {
    for chunk in [1, 2, 3, 7, 4096] {
        let (layer, _) = heartbeat();
        let (near, far) = duplex(chunk);
        let (mut near, server_live) = layer.wrap_server_handshake(near);
        let (mut far, client_live) = layer.wrap_client_handshake(far);
        let request = opening("/");
        let talk = async {
            tokio::join!(
                async {
                    let mut head = vec![0; request.len()];
                    near.read_exact(&mut head).await.unwrap();
                    assert_eq!(head, request.as_bytes());
                    // The frame follows the response in the same write.
                    let frame = Frame::text("hello").unmasked();
                    let bytes = [SWITCHING.as_bytes(), &frame].concat();
                    near.write_all(&bytes).await.unwrap();
                },
                async {
                    far.write_all(request.as_bytes()).await.unwrap();
                    let len = SWITCHING.len() + Frame::text("hello").unmasked().len();
                    let mut all = Vec::new();
                    while all.len() < len {
                        all.push(far.read_u8().await.unwrap());
                    }
                    assert!(all.starts_with(SWITCHING.as_bytes()));
                }
            )
        };
        within("the handshake and a frame", talk).await;
        assert_eq!(server_live.stats().messages_sent(), 1, "{chunk}");
        assert_eq!(client_live.stats().messages_received(), 1, "{chunk}");
    }
}

// Time during the handshake.

#[tokio::test(start_paused = true)]
async fn no_ping_is_sent_before_the_handshake_is_complete() {
    let (layer, recorder) = heartbeat();
    let (near, far) = duplex(4096);
    let (io, live) = layer.wrap_server_handshake(near);
    let accepting = tokio::spawn(accept_async(io));
    let mut client = RawClient::over(far);
    let request = opening("/");
    let (first, rest) = request.as_bytes().split_at(40);
    client.send_bytes(first).await.unwrap();
    never("a byte from the server", HOUR, client.io().read_u8()).await;
    assert_eq!(live.health(), Health::Opening);
    assert_eq!((recorder.total(), layer.registry().len()), (0, 0));

    client.send_bytes(rest).await.unwrap();
    let mut socket = accepting.await.unwrap().unwrap();
    let answer = client.read_exactly(SWITCHING.len()).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 101"));
    // The first interval starts at the end of the handshake, not at the wrap.
    never("a ping", ms(14_000), client.read_frame()).await;
    let _reading = tokio::spawn(async move { while socket.next().await.is_some() {} });
    let ping = client.read_frame().await.unwrap().unwrap();
    assert_eq!(ping.opcode, PING);
    assert_eq!(layer.registry().len(), 1);
    let missed = Reason::HeartbeatTimeout { missed: 1 };
    assert_eq!(live.evicted().await.reason(), missed);
    assert_eq!(recorder.total(), 1);
}

/// `wrap_server` expects frames, so it must not wrap a handshake.
#[tokio::test(start_paused = true)]
async fn a_handshake_through_a_wrapped_frame_stream_passes_without_a_heartbeat() {
    let (layer, recorder) = heartbeat();
    let (near, far) = duplex(4096);
    let (io, live) = layer.wrap_server(near);
    let accepting = tokio::spawn(accept_async(io));
    let mut client = RawClient::handshake(far, "/").await;
    let mut socket = accepting.await.unwrap().unwrap();
    never("a ping", HOUR, client.read_frame()).await;
    socket.send("still here".into()).await.unwrap();
    assert_eq!(client.expect_frame().await, Frame::text("still here"));
    assert_eq!((live.stats().pings_sent(), recorder.total()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_handshake_leaves_no_connection() {
    let (layer, recorder) = heartbeat();
    let registry = layer.registry();
    let (near, mut far) = duplex(4096);
    let (io, live) = layer.wrap_server_handshake(near);
    let local = Recorder::new();
    let own = local.clone();
    live.on_evict(move |ev| own.record(ev));
    never("an idle registry", ms(1), registry.wait_idle()).await;
    let accepted = timeout(HOUR, accept_async(io)).await;
    assert!(accepted.is_err(), "the handshake completed");
    within("an idle registry", registry.wait_idle()).await;
    assert_eq!(live.evicted().await.reason(), Reason::UpgradeFailed);
    assert_eq!((recorder.total(), local.total()), (0, 1));
    assert_eq!(far.read(&mut [0]).await.unwrap(), 0, "end of file");
}

#[tokio::test]
async fn a_client_that_disconnects_during_the_handshake_leaves_no_connection() {
    let (layer, recorder) = heartbeat();
    let (near, mut far) = duplex(4096);
    let (io, _) = layer.wrap_server_handshake(near);
    far.write_all(b"GET / HT").await.unwrap();
    drop(far);
    within("the end", accept_async(io)).await.unwrap_err();
    within("an idle registry", layer.registry().wait_idle()).await;
    assert_eq!(recorder.total(), 0);
}

/// Asserts in its `Drop` that the registry is not idle yet.
struct AssertNotIdleOnDrop<T> {
    io: T,
    registry: Registry,
    panics: bool,
}

impl<T> Drop for AssertNotIdleOnDrop<T> {
    fn drop(&mut self) {
        let idle = pin!(self.registry.wait_idle()).poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(idle, Poll::Pending, "idle before the transport is dropped");
        assert!(!self.panics, "a scripted panic");
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for AssertNotIdleOnDrop<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for AssertNotIdleOnDrop<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn the_transport_of_an_abandoned_handshake_is_dropped_before_wait_idle_completes() {
    for panics in [false, true] {
        let (layer, recorder) = heartbeat();
        let registry = layer.registry();
        let (near, far) = duplex(64);
        let transport = AssertNotIdleOnDrop {
            io: near,
            registry: registry.clone(),
            panics,
        };
        let (io, live) = layer.wrap_server_handshake(transport);
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(io)));
        assert_eq!(dropped.is_err(), panics, "{dropped:?}");
        within("an idle registry", registry.wait_idle()).await;
        let eviction = within("the end", live.evicted()).await;
        assert_eq!(eviction.reason(), Reason::UpgradeFailed);
        assert_eq!(recorder.total(), 0);
        drop(far);
    }
}

/// The wrapped stream panics, as documented. `evicted()` and `wait_idle()` must complete all the
/// same.
#[test]
fn a_handshake_that_completes_outside_a_runtime_leaves_no_connection() {
    let (layer, recorder) = heartbeat();
    let (near, _far) = duplex(4096);
    let (mut io, live) = layer.wrap_server_handshake(near);
    let cx = &mut Context::from_waker(Waker::noop());
    let completed = catch_unwind(AssertUnwindSafe(|| {
        Pin::new(&mut io).poll_write(cx, SWITCHING.as_bytes())
    }));
    assert!(completed.is_err(), "{completed:?}");
    drop(io);
    let Poll::Ready(eviction) = pin!(live.evicted()).poll(cx) else {
        panic!("evicted() is pending");
    };
    assert_eq!(eviction.reason(), Reason::UpgradeFailed);
    assert!(pin!(layer.registry().wait_idle()).poll(cx).is_ready());
    assert_eq!(recorder.total(), 0);
}

// Responses other than 101.

#[tokio::test]
async fn a_refusal_passes_and_is_not_a_connection() {
    let ((server, server_recorder), (client, client_recorder)) = (heartbeat(), heartbeat());
    let (near, far) = duplex(4096);
    let (near, server_live) = server.wrap_server_handshake(near);
    let (far, client_live) = client.wrap_client_handshake(far);
    // The error type of the callback is tungstenite's.
    #[allow(clippy::result_large_err)]
    let refuse = |_: &Request, _: Response| -> Result<Response, ErrorResponse> {
        let mut response = ErrorResponse::new(Some("not you".to_owned()));
        *response.status_mut() = http::StatusCode::FORBIDDEN;
        Err(response)
    };
    let both = async { tokio::join!(accept_hdr_async(near, refuse), client_async(URL, far)) };
    let (accepted, connected) = within("the refusal", both).await;
    accepted.unwrap_err();
    let Err(Error::Http(response)) = connected else {
        panic!("{connected:?}");
    };
    assert_eq!(response.status(), 403);
    assert_eq!(response.body().as_deref(), Some(&b"not you"[..]));
    for live in [server_live, client_live] {
        let eviction = within("the end", live.evicted()).await;
        assert_eq!(eviction.reason(), Reason::UpgradeFailed);
    }
    within("an idle registry", server.registry().wait_idle()).await;
    within("an idle registry", client.registry().wait_idle()).await;
    assert_eq!((server_recorder.total(), client_recorder.total()), (0, 0));
}

#[tokio::test]
async fn other_requests_and_their_bodies_pass() {
    let (layer, recorder) = heartbeat();
    let (near, mut far) = duplex(4096);
    let (mut io, _live) = layer.wrap_server_handshake(near);
    let request = b"POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\nbody";
    far.write_all(request).await.unwrap();
    let mut got = vec![0; request.len()];
    within("the request", io.read_exact(&mut got))
        .await
        .unwrap();
    assert_eq!(got, request);
    let response = b"HTTP/1.1 101 no\r\n\r\nHTTP/1.1 101 no\r\n\r\n";
    io.write_all(response).await.unwrap();
    let mut got = vec![0; response.len()];
    within("the response", far.read_exact(&mut got))
        .await
        .unwrap();
    assert_eq!(got, response);
    assert!(layer.registry().is_empty());
    assert_eq!(recorder.total(), 0);
}
