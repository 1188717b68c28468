//! tokio-tungstenite over wrapped streams: both ends have a heartbeat, on many kinds of transport.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufStream};
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};
use tower_ws_liveness::{Evicted, HandshakeStream, HeartbeatLayer, Liveness, Reason};
use tungstenite::Message;
use tungstenite::protocol::CloseFrame;

use super::wires::{self, Io};
use crate::support::recorder::Recorder;
use crate::support::{self, ms, until, within};

const URL: &str = "ws://localhost/ws";
const NEVER: Duration = Duration::from_secs(600);

/// The heartbeat of one endpoint, and a recorder of its evictions.
struct Endpoint {
    layer: HeartbeatLayer,
    recorder: Recorder,
}

impl Endpoint {
    fn new(interval: Duration, timeout: Duration) -> Self {
        let recorder = Recorder::new();
        let layer = HeartbeatLayer::builder()
            .interval(interval)
            .timeout(timeout)
            .on_evict(recorder.hook())
            .build();
        Self {
            layer: layer.unwrap(),
            recorder,
        }
    }

    /// Asserts that the hook was called once, with this reason, and that the registry is empty.
    async fn assert_evicted_once(&self, live: &Liveness, reason: impl Fn(Reason) -> bool) {
        let event = self.recorder.nth(1).await;
        assert!(reason(event.reason), "{:?}", event.reason);
        assert_eq!(event.id, live.id());
        self.recorder.stays_at_for(1, ms(1)).await;
        assert!(self.layer.registry().is_empty());
    }
}

/// Pings every 30 ms and never evicts.
fn pinging() -> Endpoint {
    Endpoint::new(ms(30), NEVER)
}

/// Evicts a silent peer. The timeout is long enough for a handshake on a busy machine.
fn strict() -> Endpoint {
    Endpoint::new(ms(30), ms(500))
}

fn quiet() -> Endpoint {
    Endpoint::new(NEVER, NEVER)
}

type Socket<T> = WebSocketStream<HandshakeStream<T>>;

/// Both ends of a connection, each with its own heartbeat.
async fn meet<A: Io, B: Io>(
    (near, far): (A, B),
    server: &Endpoint,
    client: &Endpoint,
) -> ((Socket<A>, Liveness), (Socket<B>, Liveness)) {
    let (near, server_live) = server.layer.wrap_server_handshake(near);
    let (far, client_live) = client.layer.wrap_client_handshake(far);
    let both = async { tokio::join!(accept_async(near), client_async(URL, far)) };
    let (accepted, connected) = within("the opening handshake", both).await;
    let client = (connected.unwrap().0, client_live);
    ((accepted.unwrap(), server_live), client)
}

/// Echoes until the end. The handler sends no ping, so it must see no pong.
async fn echo<S: Io>(mut socket: WebSocketStream<S>) {
    while let Some(Ok(message)) = socket.next().await {
        assert!(
            !message.is_pong(),
            "a pong to a ping that the handler did not send"
        );
        let is_data = message.is_text() || message.is_binary();
        if is_data && socket.send(message).await.is_err() {
            return;
        }
    }
}

/// The next message that is no ping.
async fn next<S: Io>(socket: &mut WebSocketStream<S>) -> Message {
    let message = async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Ping(_))) => {}
                Some(Ok(message)) => return message,
                other => panic!("{other:?}"),
            }
        }
    };
    within("a message", message).await
}

async fn echoes_between_pings<A: Io, B: Io>(wire: (A, B)) {
    let (server, client) = (pinging(), pinging());
    let ((socket, server_live), (mut peer, client_live)) = meet(wire, &server, &client).await;
    let serving = tokio::spawn(echo(socket));
    for round in 1..=3 {
        for len in [0, 5, 125, 126, 3000] {
            let message = Message::binary(support::noise(round, len));
            peer.send(message.clone()).await.unwrap();
            assert_eq!(next(&mut peer).await, message, "{len} bytes");
        }
        let pongs = |live: &Liveness| live.stats().pongs_received();
        let (ours, theirs) = (pongs(&server_live), pongs(&client_live));
        let answered = until("both were pinged and answered", || {
            pongs(&server_live) > ours && pongs(&client_live) > theirs
        });
        tokio::select! {
            // tungstenite answers pings only while it is read.
            message = next(&mut peer) => panic!("{message:?}"),
            () = answered => {}
        }
    }
    let close = CloseFrame {
        code: 4000.into(),
        reason: "bye".into(),
    };
    peer.close(Some(close)).await.unwrap();
    // An endpoint that closes must read on until the peer's Close frame.
    let end = async { while let Some(Ok(_)) = peer.next().await {} };
    within("the closing handshake", end).await;
    within("the server's end", serving).await.unwrap();
    server
        .assert_evicted_once(&server_live, |reason| {
            reason == Reason::PeerClosed { code: Some(4000) }
        })
        .await;
    client
        .assert_evicted_once(&client_live, |reason| {
            reason == Reason::ServerClosed { code: Some(4000) }
        })
        .await;
}

async fn detects_a_dead_client<A: Io, B: Io>(wire: (A, B)) {
    let (server, client) = (strict(), quiet());
    let ((mut socket, live), peer) = meet(wire, &server, &client).await;
    expect_heartbeat_timeout(&mut socket).await;
    server
        .assert_evicted_once(&live, |reason| {
            reason == Reason::HeartbeatTimeout { missed: 1 }
        })
        .await;
    drop(peer);
}

async fn detects_a_dead_server<A: Io, B: Io>(wire: (A, B)) {
    let (server, client) = (quiet(), strict());
    let (peer, (mut socket, live)) = meet(wire, &server, &client).await;
    expect_heartbeat_timeout(&mut socket).await;
    client
        .assert_evicted_once(&live, |reason| {
            reason == Reason::HeartbeatTimeout { missed: 1 }
        })
        .await;
    drop(peer);
}

async fn expect_heartbeat_timeout<S: Io>(socket: &mut WebSocketStream<S>) {
    let error = within("the verdict", socket.next()).await.unwrap();
    let error = error.unwrap_err();
    let evicted = Evicted::from_error(&error).expect("an eviction");
    assert_eq!(evicted.reason(), Reason::HeartbeatTimeout { missed: 1 });
}

async fn evicts_with_a_close_code<A: Io, B: Io>(wire: (A, B), by_server: bool) {
    let (server, client) = (quiet(), quiet());
    let ((mut socket, server_live), (mut peer, client_live)) = meet(wire, &server, &client).await;
    let closed = |message| match message {
        Message::Close(Some(frame)) => (u16::from(frame.code), frame.reason.to_string()),
        other => panic!("{other:?}"),
    };
    let expected = (4001, "go".to_owned());
    let is_kicked = |reason| reason == Reason::Kicked { code: 4001 };
    if by_server {
        assert!(server_live.evict(4001, "go"));
        assert_eq!(closed(next(&mut peer).await), expected);
        server.assert_evicted_once(&server_live, is_kicked).await;
    } else {
        assert!(client_live.evict(4001, "go"));
        assert_eq!(closed(next(&mut socket).await), expected);
        client.assert_evicted_once(&client_live, is_kicked).await;
    }
}

async fn reports_a_peer_that_vanishes<A: Io, B: Io>(wire: (A, B)) {
    let (server, client) = (quiet(), quiet());
    let ((socket, live), (peer, _)) = meet(wire, &server, &client).await;
    let serving = tokio::spawn(echo(socket));
    drop(peer);
    let vanished = |reason| reason == Reason::PeerVanished;
    server.assert_evicted_once(&live, vanished).await;
    within("the server's end", serving).await.unwrap();
}

/// A reader and a writer in two tasks, at both ends, against buffers that fill up.
async fn works_in_split_halves<A: Io, B: Io>(wire: (A, B)) {
    let (server, client) = (pinging(), pinging());
    let ((socket, _server), (peer, live)) = meet(wire, &server, &client).await;
    let (mut out, mut messages) = socket.split();
    let serving = tokio::spawn(async move {
        while let Some(Ok(message)) = messages.next().await {
            assert!(!message.is_pong());
            if message.is_binary() {
                out.send(message).await.unwrap();
            }
        }
    });
    let (mut out, mut messages) = peer.split();
    let message = |n| Message::binary(support::noise(n, n as usize % 300));
    // The reader is pending before the first write.
    let reading = tokio::spawn(async move {
        let mut count = 0;
        while count < 200 {
            match messages.next().await.unwrap().unwrap() {
                Message::Ping(_) => {}
                received => {
                    assert_eq!(received, message(count));
                    count += 1;
                }
            }
        }
        messages
    });
    for n in 0..100 {
        out.feed(message(n)).await.unwrap();
    }
    out.flush().await.unwrap();
    // While both readers are pending, the drivers use their transports.
    let before = live.stats().pongs_received();
    until("a pong", || live.stats().pongs_received() > before).await;
    for n in 100..200 {
        out.send(message(n)).await.unwrap();
    }
    let messages = within("all echoes", reading).await.unwrap();
    drop(messages.reunite(out).unwrap());
    within("the server's end", serving).await.unwrap();
}

async fn waits_for_a_peer_that_does_not_read<A: Io, B: Io>(wire: (A, B)) {
    let (server, client) = (quiet(), quiet());
    let ((mut socket, _live), (mut peer, _)) = meet(wire, &server, &client).await;
    // More than the buffers of any transport here hold.
    let messages: Vec<_> = (0..8).map(|n| support::noise(n, 1 << 20)).collect();
    let sent = messages.clone();
    let sending = tokio::spawn(async move {
        for message in sent {
            socket.send(Message::binary(message)).await.unwrap();
        }
        socket
    });
    support::never("a send into a full buffer", ms(100), async {
        until("the sender has finished", || sending.is_finished()).await;
    })
    .await;
    for message in messages {
        assert_eq!(next(&mut peer).await, Message::binary(message));
    }
    within("the sender", sending).await.unwrap();
}

macro_rules! over {
    ($($wire:ident)*) => {$(
        mod $wire {
            use super::wires::$wire;

            #[tokio::test]
            async fn echoes_between_pings() {
                super::echoes_between_pings($wire().await).await;
            }

            #[tokio::test]
            async fn detects_a_dead_client() {
                super::detects_a_dead_client($wire().await).await;
            }

            #[tokio::test]
            async fn detects_a_dead_server() {
                super::detects_a_dead_server($wire().await).await;
            }

            #[tokio::test]
            async fn evicts_with_a_close_code() {
                super::evicts_with_a_close_code($wire().await, true).await;
                super::evicts_with_a_close_code($wire().await, false).await;
            }

            #[tokio::test]
            async fn reports_a_peer_that_vanishes() {
                super::reports_a_peer_that_vanishes($wire().await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn works_in_split_halves() {
                super::works_in_split_halves($wire().await).await;
            }
        }
    )*};
}

over! { tcp unix memory boxed joined_halves two_pipes buffered read_buffered trickle }

#[tokio::test]
async fn a_sender_waits_for_a_peer_that_does_not_read() {
    waits_for_a_peer_that_does_not_read(wires::tcp().await).await;
    waits_for_a_peer_that_does_not_read(wires::buffered().await).await;
    waits_for_a_peer_that_does_not_read(wires::two_pipes().await).await;
}

/// The buffers are around the wrapped stream, not under it.
#[tokio::test]
async fn a_wrapped_stream_works_inside_a_buffer() {
    let (server, client) = (pinging(), quiet());
    let (near, far) = wires::tcp().await;
    let (near, live) = server.layer.wrap_server_handshake(near);
    let accepting = accept_async(BufStream::new(near));
    let both = async { tokio::join!(accepting, client_async(URL, far)) };
    let (accepted, connected) = within("the opening handshake", both).await;
    let serving = tokio::spawn(echo(accepted.unwrap()));
    let mut peer = connected.unwrap().0;
    peer.send("hello".into()).await.unwrap();
    assert_eq!(next(&mut peer).await, "hello".into());
    let pinged = until("a pong", || live.stats().pongs_received() > 0);
    tokio::select! {
        message = next(&mut peer) => panic!("{message:?}"),
        () = pinged => {}
    }
    drop(peer);
    within("the server's end", serving).await.unwrap();
    drop(client);
}

/// Covers `tokio::io::split` of the wrapped stream itself. The frames have an extension bit, which
/// a library without the extension would refuse.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_pass_through_the_halves_of_a_wrapped_stream() {
    use support::raw::{BINARY, Frame, RawClient};

    let server = pinging();
    let (near, far) = wires::memory().await;
    let (stream, live) = server.layer.wrap_server(near);
    let (mut read, mut write) = tokio::io::split(stream);
    let frame = |n: u32| Frame::new(BINARY, support::noise(n, 200)).with_rsv(4);
    let expected: Vec<u8> = (0..50).flat_map(|n| frame(n).masked()).collect();
    let len = expected.len();
    let reading = tokio::spawn(async move {
        let mut got = vec![0; len];
        read.read_exact(&mut got).await.unwrap();
        got
    });
    let writing = tokio::spawn(async move {
        for n in 0..50 {
            write.write_all(&frame(n).unmasked()).await.unwrap();
            write.flush().await.unwrap();
        }
        write
    });
    let mut client = RawClient::over(far);
    for n in 0..50 {
        assert_eq!(client.expect_frame().await, frame(n));
    }
    client.live_until_ping(client.pings + 2).await;
    // The reader was pending all the time.
    for n in 0..50 {
        client.send(&frame(n)).await.unwrap();
    }
    let got = within("all the bytes", reading).await.unwrap();
    assert!(
        got == expected,
        "the bytes differ from those the client sent"
    );
    assert!(live.stats().pongs_received() > 0);
    drop(writing.await.unwrap());
}
