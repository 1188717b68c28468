use std::convert::Infallible;
use std::task::Waker;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::mpsc;

use super::*;

const REQUEST: &str = "GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

/// The server that upgrades the connection.
#[derive(Clone, Copy, Debug)]
enum Server {
    /// hyper's `http1` connection.
    Http1,
    /// hyper-util's `auto` connection, which `axum::serve` uses.
    Auto,
}

const SERVERS: [Server; 2] = [Server::Http1, Server::Auto];

/// Returns the upgraded stream of `server` over `io`, from which it reads an upgrade request.
async fn upgraded<I>(server: Server, io: I) -> Upgraded
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (upgrade_tx, mut upgrade_rx) = mpsc::unbounded_channel();
    let service = service_fn(move |mut request: Request<Incoming>| {
        upgrade_tx.send(hyper::upgrade::on(&mut request)).unwrap();
        let mut response = Response::new(String::new());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        async { Ok::<_, Infallible>(response) }
    });
    let io = TokioIo::new(io);
    match server {
        Server::Http1 => {
            let connection = http1::Builder::new().serve_connection(io, service);
            tokio::spawn(async move { connection.with_upgrades().await.unwrap() });
        }
        Server::Auto => {
            tokio::spawn(async move {
                let builder = Builder::new(TokioExecutor::new());
                let connection = builder.serve_connection_with_upgrades(io, service);
                connection.await.unwrap();
            });
        }
    }
    upgrade_rx.recv().await.unwrap().await.unwrap()
}

/// Connects a client that sends `sent` before the server first reads. Returns both ends.
async fn tcp(sent: &[u8]) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    client.write_all(sent).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    (client, server)
}

/// Returns a client and the transport over TCP, with `early` sent in one piece with the request.
async fn transport(server: Server, early: &[u8]) -> (TcpStream, Transport) {
    let (client, io) = tcp(&[REQUEST.as_bytes(), early].concat()).await;
    (client, Transport::from(upgraded(server, io).await))
}

fn early(transport: &Transport) -> Option<&[u8]> {
    match transport {
        Transport::Tcp { early, .. } => early.as_ref().map(|early| &early[..]),
        _ => panic!("not a plain TCP transport"),
    }
}

/// Fills `buf`. The timeout only bounds how late a failure is noticed.
async fn read_all(transport: &mut Transport, buf: &mut [u8]) {
    let read = transport.read_exact(buf);
    let read = tokio::time::timeout(Duration::from_secs(20), read).await;
    read.expect("bytes within 20 s").unwrap();
}

/// Polls a read once.
fn read(transport: &mut Transport, buf: &mut [u8]) -> Poll<usize> {
    let mut buf = ReadBuf::new(buf);
    let mut cx = Context::from_waker(Waker::noop());
    let polled = Pin::new(transport).poll_read(&mut cx, &mut buf);
    polled.map(|result| result.map(|()| buf.filled().len()).unwrap())
}

#[tokio::test]
async fn a_plain_tcp_stream_is_unboxed_to_its_socket() {
    for server in SERVERS {
        let (client, transport) = transport(server, b"").await;
        // An empty `Bytes` would keep hyper's buffer of 8 KiB allocated.
        assert_eq!(early(&transport), None, "{server:?}");
        let socket = transport.tcp().unwrap();
        assert_eq!(
            socket.peer_addr().unwrap(),
            client.local_addr().unwrap(),
            "{server:?}"
        );
    }
}

#[tokio::test]
async fn a_unix_socket_stays_boxed_and_keeps_its_early_bytes() {
    for server in SERVERS {
        let (mut client, io) = UnixStream::pair().unwrap();
        client.write_all(REQUEST.as_bytes()).await.unwrap();
        client.write_all(b"early").await.unwrap();
        let mut transport = Transport::from(upgraded(server, io).await);
        assert!(transport.tcp().is_none(), "{server:?}");
        client.write_all(b" and late").await.unwrap();
        let mut bytes = [0; 14];
        read_all(&mut transport, &mut bytes).await;
        assert_eq!(&bytes, b"early and late", "{server:?}");
        assert!(transport.is_write_vectored(), "{server:?}");
    }
}

#[tokio::test]
async fn early_bytes_are_read_first_and_freed_afterwards() {
    for server in SERVERS {
        let sent: Vec<u8> = (0..=255).cycle().take(3_000).collect();
        let (mut client, mut transport) = transport(server, &sent).await;
        assert_eq!(early(&transport), Some(&sent[..]), "{server:?}");

        let mut got = Vec::new();
        let mut buf = [0; 1_024];
        for size in [1, 2, 7, 1_024, 0, 1_024] {
            assert_eq!(read(&mut transport, &mut buf[..size]), Poll::Ready(size));
            got.extend_from_slice(&buf[..size]);
            assert_eq!(early(&transport), Some(&sent[got.len()..]));
        }
        // The rest is shorter than the buffer: later bytes are returned by the next read.
        let rest = sent.len() - got.len();
        assert_eq!(read(&mut transport, &mut buf), Poll::Ready(rest));
        got.extend_from_slice(&buf[..rest]);
        assert_eq!(got, sent);
        assert_eq!(early(&transport), None, "{server:?}");

        // The end of the early bytes is not the end of the stream.
        assert_eq!(read(&mut transport, &mut buf), Poll::Pending, "{server:?}");
        client.write_all(b"late").await.unwrap();
        read_all(&mut transport, &mut buf[..4]).await;
        assert_eq!(&buf[..4], b"late");
        client.shutdown().await.unwrap();
        assert_eq!(transport.read(&mut buf).await.unwrap(), 0, "{server:?}");
    }
}

#[tokio::test]
async fn writes_reach_the_socket_while_early_bytes_are_unread() {
    for server in SERVERS {
        let (mut client, mut transport) = transport(server, b"early").await;
        let mut head = [0; 512];
        let mut len = 0;
        while !head[..len].ends_with(b"\r\n\r\n") {
            len += client.read(&mut head[len..]).await.unwrap();
        }
        assert!(transport.is_write_vectored(), "{server:?}");
        let slices = [&b"one "[..], b"two ", b"three "].map(IoSlice::new);
        let written = transport.write_vectored(&slices).await.unwrap();
        assert_eq!(written, 14, "all slices at once");
        transport.write_all(b"four").await.unwrap();
        transport.flush().await.unwrap();
        transport.shutdown().await.unwrap();
        let mut got = String::new();
        client.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "one two three four", "{server:?}");
        // Only the write half is shut down.
        let mut bytes = [0; 5];
        read_all(&mut transport, &mut bytes).await;
        assert_eq!(&bytes, b"early");
    }
}
