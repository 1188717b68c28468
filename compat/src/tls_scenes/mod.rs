//! Scenes for TLS on rustls, OpenSSL and native-tls.
//!
//! They cover how TLS ends for a client when the server ends a connection, how the client may end
//! it, how TLS records and frames interact, and which writes TLS requires to be repeated.

mod client;
mod client_ends;
mod handler_ends;
mod layer_ends;
mod pending_writes;
mod shutdown;
mod socket;
mod traffic;

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

/// A server: a TLS implementation and a stack.
#[derive(Clone, Copy, Debug)]
struct TlsServer {
    name: &'static str,
    tls: Tls,
    stack: Stack,
}

/// The tokio wrapper of each TLS implementation, below `axum::serve`.
const ON_AXUM: &[TlsServer] = &[
    TlsServer::new("tokio-rustls", Tls::Rustls, stacks::axum::STACK),
    TlsServer::new("tokio-openssl", Tls::OpenSsl, stacks::axum::STACK),
    TlsServer::new("tokio-native-tls", Tls::Native, stacks::axum::STACK),
];

/// axum-server's acceptors.
const ON_AXUM_SERVER: &[TlsServer] = &[
    TlsServer::new(
        "axum-server, tls-rustls",
        Tls::Rustls,
        stacks::axum_server::STACK,
    ),
    TlsServer::new(
        "axum-server, tls-openssl",
        Tls::OpenSsl,
        stacks::axum_server::STACK,
    ),
];

/// A test with its name and the servers that it runs on.
struct Scene {
    name: &'static str,
    servers: &'static [&'static [TlsServer]],
    /// Whether it runs without a socket, on a paused clock that advances when all tasks are idle.
    in_memory: bool,
    run: fn(TlsServer) -> BoxFuture<'static, ()>,
}

impl TlsServer {
    const fn new(name: &'static str, tls: Tls, stack: Stack) -> Self {
        Self { name, tls, stack }
    }

    /// Returns a server with the same TLS and another stack.
    fn serving(self, stack: Stack) -> Self {
        Self { stack, ..self }
    }

    /// Returns the `Reason` of a TLS error. OpenSSL's errors have no specific `ErrorKind`.
    fn tls_error_reason(self) -> Reason {
        Reason::Transport(match self.tls {
            Tls::Rustls => ErrorKind::InvalidData,
            Tls::OpenSsl | Tls::Native => ErrorKind::Other,
        })
    }

    /// HTTP/1.1, with one TLS connection per WebSocket.
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
    /// Runs on all servers.
    const fn everywhere(name: &'static str, run: fn(TlsServer) -> BoxFuture<'static, ()>) -> Self {
        Self {
            name,
            servers: &[ON_AXUM, ON_AXUM_SERVER],
            in_memory: false,
            run,
        }
    }

    /// Runs on one server per TLS implementation, for a scene with a handler of its own.
    const fn on_axum(name: &'static str, run: fn(TlsServer) -> BoxFuture<'static, ()>) -> Self {
        Self {
            servers: &[ON_AXUM],
            ..Self::everywhere(name, run)
        }
    }

    const fn on_axum_server(
        name: &'static str,
        run: fn(TlsServer) -> BoxFuture<'static, ()>,
    ) -> Self {
        Self {
            servers: &[ON_AXUM_SERVER],
            ..Self::everywhere(name, run)
        }
    }

    const fn in_memory(name: &'static str, run: fn(TlsServer) -> BoxFuture<'static, ()>) -> Self {
        Self {
            in_memory: true,
            ..Self::on_axum(name, run)
        }
    }

    fn trials(&'static self) -> impl Iterator<Item = Trial> {
        let servers = self.servers.iter().copied().flatten();
        servers.map(move |&server| {
            Trial::test(format!("{} ({})", self.name, server.name), move || {
                // One runtime per scene: dropping it ends all tasks of the scene.
                let mut runtime = if self.in_memory {
                    Builder::new_current_thread()
                } else {
                    Builder::new_multi_thread()
                };
                let runtime = runtime.enable_all().start_paused(self.in_memory).build()?;
                runtime.block_on((self.run)(server));
                Ok(())
            })
        })
    }
}

/// Runs the scenes that the command line selects.
pub fn run() -> ExitCode {
    let scenes = [
        layer_ends::SCENES,
        handler_ends::SCENES,
        pending_writes::SCENES,
        shutdown::SCENES,
        socket::SCENES,
        traffic::SCENES,
        client_ends::SCENES,
    ];
    let scenes = scenes.into_iter().flatten();
    let trials = scenes.flat_map(Scene::trials).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
