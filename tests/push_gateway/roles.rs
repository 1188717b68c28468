//! The roles that the tests start as processes.

use std::io::{Write, stdin, stdout};
use std::process::{ExitCode, exit};

use futures_util::StreamExt;
use tokio::runtime::Runtime;
use tungstenite::Message;

use crate::gateway::event_number;
use crate::push_gateway;

pub(crate) const SERVER: &str = "role-server";
pub(crate) const CLIENT: &str = "role-client";

/// The example. Exits when its stdin ends, and thus with the process that started it.
pub(crate) fn server(args: Vec<String>) -> ExitCode {
    end_with_stdin();
    runtime().block_on(push_gateway::run(args)).unwrap();
    ExitCode::SUCCESS
}

/// A bot: `role-client ADDRESS NAME`. Prints `ready` once it is connected, `event N` for each
/// event, `ping` for each ping, `closed` at the end of the connection. Exits when its stdin ends.
pub(crate) fn client(args: &[String]) -> ExitCode {
    end_with_stdin();
    let url = format!("ws://{}/ws/{}", args[0], args[1]);
    runtime().block_on(async {
        let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
        print_line("ready");
        while let Some(Ok(message)) = socket.next().await {
            match message {
                Message::Text(text) => {
                    print_line(&format!("event {}", event_number(text.as_bytes())))
                }
                Message::Ping(_) => print_line("ping"),
                _ => {}
            }
        }
        print_line("closed");
        std::future::pending().await // runs until stdin ends
    })
}

fn end_with_stdin() {
    std::thread::spawn(|| {
        for _ in stdin().lines() {}
        exit(0);
    });
}

fn print_line(line: &str) {
    let mut stdout = stdout().lock();
    writeln!(stdout, "{line}").unwrap();
    stdout.flush().unwrap();
}

pub(crate) fn runtime() -> Runtime {
    Runtime::new().unwrap()
}
