//! Opens the connection: a wrapped stream, or an HTTP upgrade if there is an idle layer.

use axum::Router;
use axum::extract::Request;
use axum::routing::any;
use http::StatusCode;
use http::header::{CONNECTION, UPGRADE};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tower_ws_liveness::{
    Eviction, HeartbeatLayer, IdleTimeoutLayer, Liveness, ProofOfLife, Registry,
};

use super::plan::{Config, Idle};
use super::run::ms;
use super::transport::Transport;
use super::world::{Shared, lock};

/// The peer's request. The layers do not check its key.
pub(crate) const REQUEST: &str = "GET /ws HTTP/1.1\r\nhost: sim\r\nconnection: upgrade\r\nupgrade: \
                                  websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: \
                                  dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// The stream of the handler.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// The handler's stream, its handle, and the registry that holds the connection.
pub(crate) type Opened = (Box<dyn Stream>, Liveness, Registry);

/// Opens the connection. No time passes.
pub(crate) async fn open(config: &Config, world: &Shared) -> Opened {
    let registry = Registry::default();
    match (config.heartbeat, config.idle) {
        (_, None) => {
            let layer = heartbeat(config, world, &registry);
            let (stream, live) = layer.wrap_server(Transport(world.clone()));
            (Box::new(stream), live, registry)
        }
        (false, Some(settings)) => {
            let idle = idle(config, settings, &registry, Some(world));
            upgrade(|app| app.layer(idle.clone()), world, registry).await
        }
        (true, Some(settings)) => {
            let heartbeat = heartbeat(config, world, &registry);
            let idle = idle(config, settings, &registry, None);
            let both = |app: Router| match settings.outside {
                true => app.layer(heartbeat.clone()).layer(idle.clone()),
                false => app.layer(idle.clone()).layer(heartbeat.clone()),
            };
            upgrade(both, world, registry).await
        }
    }
}

fn heartbeat(config: &Config, world: &Shared, registry: &Registry) -> HeartbeatLayer {
    let proof = match config.matching {
        true => ProofOfLife::MatchingPong,
        false => ProofOfLife::AnyBytes,
    };
    let builder = HeartbeatLayer::builder()
        .takes_any_bytes(!lock(world).plan.net.claims)
        .interval(ms(config.interval))
        .timeout(ms(config.timeout))
        .missed_pings(config.missed as u32)
        .proof_of_life(proof)
        .write_timeout(config.write_timeout.map(ms))
        .handler_stall_timeout(config.stall_timeout.map(ms))
        .close_timeout(ms(config.close_timeout))
        .control_frame_limit(config.control_limit.map(|limit| limit as u32))
        .jitter(config.jitter)
        .registry(registry.clone())
        .on_evict(hook(world));
    builder.build().expect("a valid configuration")
}

fn idle(
    config: &Config,
    settings: Idle,
    registry: &Registry,
    world: Option<&Shared>,
) -> IdleTimeoutLayer {
    let mut builder = IdleTimeoutLayer::builder()
        .timeout(settings.timeout.map(ms))
        .watch(settings.watch)
        .first_message(settings.first_message.map(ms))
        .message_timeout(settings.message_timeout.map(ms))
        .max_lifetime(settings.max_lifetime.map(ms))
        .max_lifetime_jitter(settings.lifetime_jitter)
        .close_timeout(ms(config.close_timeout))
        .registry(registry.clone());
    if let Some(world) = world {
        builder = builder.on_evict(hook(world));
    }
    builder.build().expect("a valid configuration")
}

fn hook(world: &Shared) -> impl Fn(&Eviction) + Send + Sync + 'static {
    let world = world.clone();
    move |ev| lock(&world).on_evict(ev)
}

/// Performs the opening handshake over the transport, with a hyper server in front of the layers.
async fn upgrade(app: impl Fn(Router) -> Router, world: &Shared, registry: Registry) -> Opened {
    lock(world).begin_handshake(REQUEST);
    let (opened, mut requests) = mpsc::unbounded_channel();
    let route = any(move |mut request: Request| async move {
        let live = request.extensions().get::<Liveness>().cloned();
        let _ = opened.send((live, hyper::upgrade::on(&mut request)));
        let names = [(CONNECTION, "upgrade"), (UPGRADE, "websocket")];
        (StatusCode::SWITCHING_PROTOCOLS, names)
    });
    let service = TowerToHyperService::new(app(Router::new().route("/ws", route)));
    let io = TokioIo::new(Transport(world.clone()));
    let connection = http1::Builder::new().serve_connection(io, service);
    tokio::spawn(connection.with_upgrades());
    let (live, upgraded) = requests.recv().await.expect("a request");
    let upgraded = upgraded.await.expect("an upgrade");
    let live = live.expect("a layer");
    (Box::new(TokioIo::new(upgraded)), live, registry)
}
