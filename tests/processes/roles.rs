//! What the processes do that the tests of several modules start.

use std::io::{Write, stdin, stdout};
use std::process::{ExitCode, exit};

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::{WebSocketStream, client_async};
use tungstenite::Message;
use tungstenite::protocol::Role;

use crate::examples::echo;
use crate::h2_client::H2Client;

pub(crate) const SERVER: &str = "role-server";
pub(crate) const CLIENT: &str = "role-client";
pub(crate) const HTTP2: &str = "--http2";
/// The client's connection ends by a reset, however its process ends.
pub(crate) const ZERO_LINGER: &str = "--zero-linger";

/// The example server. Ends with its stdin, and thus with whoever started it.
pub(crate) fn server(args: Vec<String>) -> ExitCode {
    end_with_stdin();
    runtime().block_on(async {
        echo::run(args).await.unwrap();
        ExitCode::SUCCESS
    })
}

pub(crate) fn serve<E: std::fmt::Debug>(run: impl Future<Output = Result<(), E>>) -> ExitCode {
    runtime().block_on(run).unwrap();
    ExitCode::SUCCESS
}

pub(crate) fn end_with_stdin() {
    std::thread::spawn(|| {
        for _ in stdin().lines() {}
        exit(0);
    });
}

/// A stock client: connects, says hello, and answers pings for ever by being read. Sends every line
/// of its stdin as a message, for `put LENGTH` a binary one of that length. Prints `echo LINE` for
/// every text message that comes, `ready` after the first, `binary` and more for every other
/// message, `ping` for every ping, `closed` at the end of the connection. Ends with its stdin.
pub(crate) fn client(args: Vec<String>) -> ExitCode {
    let (tell, lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in stdin().lines().map_while(Result::ok) {
            tell.send(line).unwrap();
        }
        exit(0);
    });
    let addr = &args[0];
    runtime().block_on(async {
        if args.iter().any(|arg| arg == HTTP2) {
            let h2 = H2Client::connect(addr.parse().unwrap()).await.unwrap();
            let (response, io) = h2.websocket("http://localhost/ws").await.unwrap();
            assert!(response.status().is_success(), "{response:?}");
            let socket = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
            talk(socket, lines).await;
        } else {
            let io = TcpStream::connect(addr).await.unwrap();
            io.set_nodelay(true).unwrap();
            if args.iter().any(|arg| arg == ZERO_LINGER) {
                io.set_zero_linger().unwrap();
            }
            let (socket, _) = client_async(format!("ws://{addr}/ws"), io).await.unwrap();
            talk(socket, lines).await;
        }
        // Until stdin ends.
        std::future::pending().await
    })
}

async fn talk<S>(mut socket: WebSocketStream<S>, mut lines: mpsc::UnboundedReceiver<String>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    socket.send(Message::text("hello")).await.unwrap();
    let mut is_ready = false;
    loop {
        tokio::select! {
            Some(line) = lines.recv() => {
                let message = match line.strip_prefix("put ") {
                    Some(length) => Message::binary(payload(length.parse().unwrap())),
                    None => Message::text(line),
                };
                if socket.send(message).await.is_err() {
                    return say("closed");
                }
            }
            message = socket.next() => match message {
                Some(Ok(Message::Text(_))) if !is_ready => {
                    is_ready = true;
                    say("ready");
                }
                Some(Ok(Message::Text(text))) => say(&format!("echo {text}")),
                Some(Ok(Message::Binary(payload))) => say(&format!("binary {}", describe(&payload))),
                Some(Ok(Message::Ping(_))) => say("ping"),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return say("closed"),
            },
        }
    }
}

/// A large message. No piece of it looks like the next.
pub(crate) fn payload(length: usize) -> Vec<u8> {
    let byte = |index: usize| (index ^ (index >> 8) ^ (index >> 16)) as u8;
    (0..length).map(byte).collect()
}

/// How long it is, and whether nothing of it was lost or exchanged on its way.
pub(crate) fn describe(received: &[u8]) -> String {
    let whole = received == payload(received.len());
    let state = if whole { "whole" } else { "broken" };
    format!("{} {state}", received.len())
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

pub(crate) fn say(line: &str) {
    let mut stdout = stdout().lock();
    writeln!(stdout, "{line}").unwrap();
    stdout.flush().unwrap();
}
