//! The fastwebsockets example as a process, with idle, closed and dead clients.
//!
//! With the argument `role-server` this binary is the example, otherwise the test harness.

#[allow(dead_code, unreachable_pub)] // its `main` is unused
#[path = "../examples/fastwebsockets.rs"]
mod example;
#[path = "../src/support.rs"]
mod support;

use std::process::{ExitCode, Stdio};

use libtest_mimic::{Arguments, Trial};
use support::raw::{Answer, BINARY, Frame, RawClient};
use support::within;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::runtime::Runtime;

const SERVER_ROLE: &str = "role-server";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(SERVER_ROLE) {
        let runtime = Runtime::new().expect("a runtime");
        let result = runtime.block_on(example::run(args.collect()));
        result.expect("it serves until the process ends");
        return ExitCode::SUCCESS;
    }
    let ends = Trial::test("live_closed_and_dead_peers_are_distinguished", || {
        Runtime::new()?.block_on(live_closed_and_dead_peers_are_distinguished());
        Ok(())
    });
    let idle = Trial::test("an_idle_peer_is_evicted", || {
        Runtime::new()?.block_on(an_idle_peer_is_evicted());
        Ok(())
    });
    libtest_mimic::run(&Arguments::from_args(), vec![ends, idle]).exit_code()
}

async fn live_closed_and_dead_peers_are_distinguished() {
    let mut server = Server::start(&["--interval-ms", "50", "--timeout-ms", "1000"]).await;
    let mut client = server.client().await;
    client.live_until_ping(3).await;
    for message in [Frame::text("hello"), Frame::new(BINARY, vec![7; 100_000])] {
        client.send(&message).await.expect("an open connection");
        assert_eq!(client.expect_frame().await, message);
    }
    let close = Frame::close(1000, "done");
    client.send(&close).await.expect("an open connection");
    assert_eq!(client.expect_frame().await, close);
    assert_eq!(server.end().await, "closed by the peer (1000)");

    let mut client = server.client().await;
    client.shutdown().await.expect("an open connection");
    assert_eq!(server.end().await, "peer vanished without a Close");

    let mut dead = server.client().await.answering(Answer::Nothing);
    let close = dead.closed().await.expect("a Close frame");
    assert_eq!(close.close_code(), Some(3008));
    assert_eq!(server.end().await, "heartbeat timeout (1 ping unanswered)");
}

async fn an_idle_peer_is_evicted() {
    let mut server = Server::start(&["--interval-ms", "50", "--idle-ms", "500"]).await;
    let mut client = server.client().await;
    let close = client.expect_frame().await;
    assert_eq!(close, Frame::close(1001, "idle timeout"));
    assert!(client.pings > 0);
    client.send(&close).await.expect("an open connection");
    assert_eq!(server.end().await, "idle timeout");
}

/// The example in a process, which is killed on drop.
struct Server {
    lines: Lines<BufReader<ChildStdout>>,
    addr: String,
    _process: Child,
}

impl Server {
    async fn start(flags: &[&str]) -> Self {
        let this = std::env::current_exe().expect("this binary");
        let mut process = Command::new(this)
            .args([SERVER_ROLE, "--addr", "127.0.0.1:0"])
            .args(flags)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a process");
        let stdout = process.stdout.take().expect("stdout is piped");
        let mut server = Self {
            lines: BufReader::new(stdout).lines(),
            addr: String::new(),
            _process: process,
        };
        let line = server.next_line().await;
        server.addr = line.strip_prefix("listening on ").expect(&line).to_owned();
        server
    }

    async fn client(&self) -> RawClient {
        RawClient::connect(self.addr.parse().expect("an address"), "/").await
    }

    /// Returns the printed reason of the next end.
    async fn end(&mut self) -> String {
        let line = self.next_line().await;
        let (_, reason) = line.split_once(": ").expect(&line);
        reason.to_owned()
    }

    async fn next_line(&mut self) -> String {
        let line = within("a line from the server", self.lines.next_line()).await;
        line.expect("a pipe").expect("the server runs")
    }
}
