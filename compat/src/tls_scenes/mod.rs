//! What is special to TLS, on rustls: how a connection ends for a client that looks below the
//! WebSocket, how the client may end it, and what a TLS stream does to the frames in it.

mod client;
mod ends;
mod letting_go;
mod shutdown;
mod socket;
mod traffic;
mod vanishing;

use std::process::ExitCode;

use futures_util::future::BoxFuture;
use libtest_mimic::{Arguments, Trial};
use tokio::runtime::Runtime;

use crate::protocol::{Http, Protocol};
use crate::stack::Stack;
use crate::stacks;

/// What all of it is played over: one TLS connection for each WebSocket.
const PROTOCOL: Protocol = Protocol {
    http: Http::One,
    tls: true,
};

/// The acceptors: tokio-rustls below `axum::serve`, and axum-server's.
const STACKS: [Stack; 2] = [stacks::axum::STACK, stacks::axum_server::STACK];

/// A name, and what is played under it.
type Scene = (&'static str, fn() -> BoxFuture<'static, ()>);

/// Plays all, or those that are asked for on the command line.
pub fn run() -> ExitCode {
    let scenes = [
        ends::SCENES,
        letting_go::SCENES,
        shutdown::SCENES,
        socket::SCENES,
        traffic::SCENES,
        vanishing::SCENES,
    ];
    let scenes = scenes.into_iter().flatten();
    let trials = scenes.map(|&(name, play)| {
        Trial::test(name, move || {
            // A runtime of its own: when it is dropped, nothing of the scene is left.
            Runtime::new()?.block_on(play());
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}
