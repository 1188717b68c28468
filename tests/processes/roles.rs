//! The roles that several modules start as processes.

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
/// The client's connection ends with a reset, also when its process is killed.
pub(crate) const ZERO_LINGER: &str = "--zero-linger";

/// The example server. Exits when its stdin ends, and thus with the process that started it.
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

/// A stock client: connects, sends "hello", and reads until the end, which answers pings.
///
/// Sends each line of its stdin as a text message, and `put LENGTH` as a binary message of that
/// length. Prints `ready` for the first text message, `echo LINE` for each later one, `binary …`
/// for each binary message, `ping` for each ping, and `closed` at the end of the connection. Exits
/// when its stdin ends.
pub(crate) fn client(args: Vec<String>) -> ExitCode {
    let (sender, lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in stdin().lines().map_while(Result::ok) {
            sender.send(line).unwrap();
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
        // Keeps the process running until stdin ends.
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
                    return print_line("closed");
                }
            }
            message = socket.next() => match message {
                Some(Ok(Message::Text(_))) if !is_ready => {
                    is_ready = true;
                    print_line("ready");
                }
                Some(Ok(Message::Text(text))) => print_line(&format!("echo {text}")),
                Some(Ok(Message::Binary(payload))) => {
                    print_line(&format!("binary {}", describe(&payload)));
                }
                Some(Ok(Message::Ping(_))) => print_line("ping"),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return print_line("closed"),
            },
        }
    }
}

/// Payload of a large message. No part of it repeats.
pub(crate) fn payload(length: usize) -> Vec<u8> {
    let byte = |index: usize| (index ^ (index >> 8) ^ (index >> 16)) as u8;
    (0..length).map(byte).collect()
}

/// The payload's length, and whether it arrived unchanged.
pub(crate) fn describe(received: &[u8]) -> String {
    let whole = received == payload(received.len());
    let state = if whole { "whole" } else { "broken" };
    format!("{} {state}", received.len())
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

pub(crate) fn print_line(line: &str) {
    let mut stdout = stdout().lock();
    writeln!(stdout, "{line}").unwrap();
    stdout.flush().unwrap();
}
