//! Scenes that are special to TLS, on rustls, OpenSSL and native-tls.
//!
//! They cover how TLS ends for a client when the server ends a connection, how the client may end it, how
//! TLS records and frames interact, and which writes TLS requires to be repeated.

mod client;
mod ends;
mod letting_go;
mod pending_writes;
mod shutdown;
mod socket;
mod traffic;
mod vanishing;

use std::io::ErrorKind;
use std::process::ExitCode;

use futures_util::future::BoxFuture;
use libtest_mimic::{Arguments, Trial};
use tokio::runtime::Builder;
use tower_ws_liveness::{HeartbeatLayerBuilder, IdleTimeoutLayerBuilder, Reason};

use crate::http_version::HttpVersion;
use crate::protocol::Protocol;
use crate::rig::Rig;
use crate::stack::Stack;
use crate::stacks;
use crate::tls::Tls;

/// A server: its TLS, and what is served below it.
#[derive(Clone, Copy, Debug)]
struct Server {
    name: &'static str,
    tls: Tls,
    stack: Stack,
}

/// tokio's wrappers of each TLS, below `axum::serve`.
const ON_AXUM: &[Server] = &[
    Server::new("tokio-rustls", Tls::Rustls, stacks::axum::STACK),
    Server::new("tokio-openssl", Tls::OpenSsl, stacks::axum::STACK),
    Server::new("tokio-native-tls", Tls::Native, stacks::axum::STACK),
];

/// axum-server's acceptors.
const ON_AXUM_SERVER: &[Server] = &[
    Server::new(
        "axum-server, tls-rustls",
        Tls::Rustls,
        stacks::axum_server::STACK,
    ),
    Server::new(
        "axum-server, tls-openssl",
        Tls::OpenSsl,
        stacks::axum_server::STACK,
    ),
];

/// A name, and the test that is run on each of the servers.
struct Scene {
    name: &'static str,
    servers: &'static [&'static [Server]],
    /// Without a socket, on a clock that moves when everything waits.
    in_memory: bool,
    play: fn(Server) -> BoxFuture<'static, ()>,
}

impl Server {
    const fn new(name: &'static str, tls: Tls, stack: Stack) -> Self {
        Self { name, tls, stack }
    }

    /// The same TLS, and something else below it.
    fn serving(self, stack: Stack) -> Self {
        Self { stack, ..self }
    }

    /// The `Reason` of an end that TLS itself causes: OpenSSL's errors have no `ErrorKind`.
    fn tls_failed(self) -> Reason {
        Reason::Transport(match self.tls {
            Tls::Rustls => ErrorKind::InvalidData,
            Tls::OpenSsl | Tls::Native => ErrorKind::Other,
        })
    }

    /// One TLS connection for each WebSocket.
    fn protocol(self) -> Protocol {
        Protocol {
            http: HttpVersion::One,
            tls: Some(self.tls),
        }
    }

    async fn start(self, heartbeat: HeartbeatLayerBuilder, idle: IdleTimeoutLayerBuilder) -> Rig {
        Rig::start(self.stack, self.protocol(), heartbeat, idle).await
    }
}

impl Scene {
    /// On all servers.
    const fn everywhere(name: &'static str, play: fn(Server) -> BoxFuture<'static, ()>) -> Self {
        Self {
            name,
            servers: &[ON_AXUM, ON_AXUM_SERVER],
            in_memory: false,
            play,
        }
    }

    /// With a handler of its own, so that one server for each TLS does.
    const fn on_axum(name: &'static str, play: fn(Server) -> BoxFuture<'static, ()>) -> Self {
        Self {
            servers: &[ON_AXUM],
            ..Self::everywhere(name, play)
        }
    }

    const fn on_axum_server(
        name: &'static str,
        play: fn(Server) -> BoxFuture<'static, ()>,
    ) -> Self {
        Self {
            servers: &[ON_AXUM_SERVER],
            ..Self::everywhere(name, play)
        }
    }

    const fn in_memory(name: &'static str, play: fn(Server) -> BoxFuture<'static, ()>) -> Self {
        Self {
            in_memory: true,
            ..Self::on_axum(name, play)
        }
    }

    fn trials(&'static self) -> impl Iterator<Item = Trial> {
        let servers = self.servers.iter().copied().flatten();
        servers.map(move |&server| {
            Trial::test(format!("{} ({})", self.name, server.name), move || {
                // A runtime of its own: when it is dropped, nothing of the scene is left.
                let mut runtime = if self.in_memory {
                    Builder::new_current_thread()
                } else {
                    Builder::new_multi_thread()
                };
                let runtime = runtime.enable_all().start_paused(self.in_memory).build()?;
                runtime.block_on((self.play)(server));
                Ok(())
            })
        })
    }
}

/// Plays all, or those that are asked for on the command line.
pub fn run() -> ExitCode {
    let scenes = [
        ends::SCENES,
        letting_go::SCENES,
        pending_writes::SCENES,
        shutdown::SCENES,
        socket::SCENES,
        traffic::SCENES,
        vanishing::SCENES,
    ];
    let scenes = scenes.into_iter().flatten();
    let trials = scenes.flat_map(Scene::trials).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
