//! An opening handshake between the request and its response.

use std::mem;
use std::sync::Arc;

use async_task::Runnable;
use http::{Request, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::task::unconstrained;

use super::bridge::Bridge;
use super::detect::{HandshakeKind, NotUpgradable, detect, is_accepted};
use super::handler_stream::HandlerStream;
use super::policy_override::PolicyOverride;
use super::refusal::Refusal;
use super::transport::Transport;
use crate::connection::{
    AttachmentId, Connection, ErasedConnection, InnerLayerGuard, LayerConfig, Liveness,
    LivenessStream,
};
use crate::driver::Driver;
use crate::monitor::Overrides;
use crate::panic_guard;
use crate::sync::in_runtime;
use crate::wire::Role;

/// A layer whose service has not answered the opening handshake yet.
///
/// Dropping it detaches the layer from the connection.
pub(super) enum PendingLayer {
    /// The outermost layer, which creates the connection.
    Outermost(PendingUpgrade),
    /// A layer further in, which has joined the connection.
    Inner(HandshakeKind, InnerLayerGuard),
}

/// The innermost layer that has joined so far, stored in the request for the layers further in.
#[derive(Clone, Copy)]
struct InnermostAttachment(AttachmentId);

impl PendingLayer {
    /// Creates the request's connection, or joins it. `None` if the request cannot be upgraded.
    pub(super) fn intercept<B>(
        config: &Arc<LayerConfig>,
        req: &mut Request<B>,
    ) -> Result<Option<Self>, Refusal> {
        let Some(kind) = detect(req) else {
            return Ok(None);
        };
        // Removed from the request, so that a layer further in does not apply the override again
        // over values that were set after this layer.
        let overrides = req.extensions_mut().remove::<PolicyOverride>();
        let overrides = overrides.as_ref().map(PolicyOverride::values);
        let extensions = req.extensions();
        let Some(live) = extensions.get::<Liveness>() else {
            let upgrade = PendingUpgrade::intercept(config, kind, overrides, req)?;
            return Ok(upgrade.map(Self::Outermost));
        };
        // The outermost layer has replaced the upgrade: all layers share its stream and deadlines.
        let within = extensions
            .get::<InnermostAttachment>()
            .map(|attachment| attachment.0);
        let attachment = live
            .join(config, within, overrides)
            .map_err(Refusal::ByRegistry)?;
        req.extensions_mut()
            .insert(InnermostAttachment(attachment.id()));
        Ok(Some(Self::Inner(kind, attachment)))
    }

    /// Handles the response of the layer's service.
    pub(super) fn on_response<B>(self, response: &Response<B>) {
        // hyper eventually resolves the `OnUpgrade` of every upgrade request, also of a refused
        // one, with a stream that ended long before. So a handshake that is not accepted is
        // abandoned here, by the drop of `self`.
        match self {
            Self::Outermost(upgrade) if is_accepted(upgrade.kind, response) => {
                upgrade.open_once_upgraded();
            }
            Self::Outermost(upgrade) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                upgrade.pass_through_once_upgraded();
            }
            Self::Inner(kind, attachment) if is_accepted(kind, response) => {
                attachment.accept();
            }
            Self::Outermost(_) | Self::Inner(..) => {}
        }
    }
}

/// The connection and the replaced upgrade of a handshake that has not been answered yet.
pub(super) struct PendingUpgrade {
    /// Stored because the upgrade may be completed outside of the driver's runtime.
    driver: Arc<Driver>,
    kind: HandshakeKind,
    /// hyper's own, removed from the request.
    on_upgrade: OnUpgrade,
    /// Resolves the `OnUpgrade` that the request has instead.
    bridge: Bridge<HandlerStream>,
    connection: NotUpgradedGuard,
}

impl PendingUpgrade {
    /// Replaces the request's `OnUpgrade`. `None` if the request cannot be upgraded.
    fn intercept<B>(
        config: &LayerConfig,
        kind: HandshakeKind,
        overrides: Option<&Overrides>,
        req: &mut Request<B>,
    ) -> Result<Option<Self>, Refusal> {
        let Some(on_upgrade) = req.extensions_mut().get_mut::<OnUpgrade>() else {
            return Ok(None);
        };
        let driver = Driver::current().map_err(Refusal::NoDriver)?;
        let admission = config.admit().map_err(Refusal::ByRegistry)?;
        let Some((bridge, bridged)) = Bridge::new() else {
            req.extensions_mut().insert(NotUpgradable);
            return Ok(None);
        };
        let on_upgrade = mem::replace(on_upgrade, bridged);
        let connection = Connection::new(Role::Server, Transport::TRAITS);
        if kind.is_multiplexed() {
            connection.set_over_http2();
        }
        let live = Liveness::new(Arc::clone(&connection) as Arc<dyn ErasedConnection>);
        live.attach(config, admission);
        if let Some(overrides) = overrides {
            live.override_policy(overrides);
        }
        req.extensions_mut().insert(live);
        Ok(Some(Self {
            driver,
            kind,
            on_upgrade,
            bridge,
            connection: NotUpgradedGuard(Some(connection)),
        }))
    }

    /// The handshake was accepted: opens the connection as soon as hyper resolves the upgrade, which
    /// it does when it has written the response head.
    fn open_once_upgraded(self) {
        let Self {
            driver,
            kind,
            on_upgrade,
            bridge,
            connection,
        } = self;
        let connection = connection.into_accepted();
        run_where_woken(async move {
            let upgraded = on_upgrade.await;
            let driver = &driver;
            // For the hooks: the thread that wakes this may have no runtime, or another one.
            in_runtime(driver.runtime(), move || match upgraded {
                Ok(upgraded) => {
                    let transport = Transport::new(kind, upgraded);
                    if let Some(stream) = connection.open(transport, driver) {
                        bridge.complete(HandlerStream::WebSocket(TokioIo::new(stream)));
                    }
                }
                // The drop of `bridge` fails the handler's upgrade. The drop of `connection` ends
                // the connection.
                Err(error) => panic_guard::log(
                    || tracing::debug!(%error, "upgrade failed after the handshake"),
                ),
            });
        });
    }

    /// The handler switched to another protocol that the client offered: it gets hyper's stream
    /// unchanged.
    fn pass_through_once_upgraded(self) {
        let Self {
            on_upgrade, bridge, ..
        } = self;
        run_where_woken(async move {
            if let Ok(upgraded) = on_upgrade.await {
                bridge.complete(HandlerStream::Other(Box::new(upgraded)));
            }
        });
    }
}

/// Polls `future` now, and then inside each wake-up: hyper resolves an upgrade by waking the
/// task that awaits it. A task of the runtime would be woken too, and run later, perhaps by another thread.
///
/// tokio's cooperative budget does not apply: when it is used up, tokio may wake the future in the
/// middle of its poll, which would then be polled without end.
fn run_where_woken(future: impl Future<Output = ()> + Send + 'static) {
    let run = |future: Runnable| {
        panic_guard::catch(|| future.run());
    };
    let (runnable, task) = async_task::spawn(unconstrained(future), run);
    task.detach();
    run(runnable);
}

/// A connection whose handshake is not answered yet. Dropping it reports that no upgrade happened.
struct NotUpgradedGuard(Option<Arc<Connection<Transport>>>);

impl NotUpgradedGuard {
    fn into_accepted(mut self) -> UpgradeFailedGuard {
        UpgradeFailedGuard(self.0.take())
    }
}

impl Drop for NotUpgradedGuard {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            connection.not_upgraded();
        }
    }
}

/// A connection whose handshake was accepted. Dropping it reports that its upgrade failed.
struct UpgradeFailedGuard(Option<Arc<Connection<Transport>>>);

impl UpgradeFailedGuard {
    fn open(mut self, io: Transport, driver: &Arc<Driver>) -> Option<LivenessStream<Transport>> {
        LivenessStream::open(self.0.take()?, io, driver)
    }
}

impl Drop for UpgradeFailedGuard {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            connection.upgrade_failed();
        }
    }
}

#[cfg(all(test, not(liveness_loom)))]
mod tests {
    use std::convert::Infallible;
    use std::pin::{Pin, pin};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    use http::header::UPGRADE;
    use tokio::io::{DuplexStream, duplex};
    use tokio::runtime::{Builder, Handle};
    use tokio::task::consume_budget;
    use tokio::task::coop::has_budget_remaining;
    use tower::{ServiceExt, service_fn};
    use tower_layer::Layer;

    use super::*;
    use crate::logs::Logs;
    use crate::{Eviction, IdleTimeoutLayer, PolicyOverrideBuilder, Registry};

    /// The end of an upgrade that hyper has.
    type Server = Bridge<TokioIo<DuplexStream>>;

    fn layer() -> IdleTimeoutLayer {
        IdleTimeoutLayer::new(Duration::from_secs(60))
    }

    /// Passes an opening handshake through `layer`, to a handler that accepts it. Returns the
    /// handler's upgrade too.
    async fn accepted(layer: IdleTimeoutLayer) -> (Server, OnUpgrade) {
        accepted_with(layer, PolicyOverride::builder()).await
    }

    /// Like [`accepted`], with an override in the request.
    async fn accepted_with(
        layer: IdleTimeoutLayer,
        overrides: PolicyOverrideBuilder,
    ) -> (Server, OnUpgrade) {
        let (server, on_upgrade) = Server::new().unwrap();
        let mut req = Request::get("/")
            .header(UPGRADE, "websocket")
            .body(())
            .unwrap();
        req.extensions_mut().insert(on_upgrade);
        req.extensions_mut().insert(overrides.build().unwrap());
        let handler_upgrade = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&handler_upgrade);
        let handler = service_fn(move |mut req: Request<()>| {
            *slot.lock().unwrap() = req.extensions_mut().remove::<OnUpgrade>();
            let mut res = Response::new(String::new());
            *res.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            async { Ok::<_, Infallible>(res) }
        });
        let service = layer.layer(handler);
        service.oneshot(req).await.unwrap();
        let handler_upgrade = handler_upgrade.lock().unwrap().take().unwrap();
        (server, handler_upgrade)
    }

    fn is_upgraded(on_upgrade: &mut OnUpgrade) -> bool {
        let cx = &mut Context::from_waker(Waker::noop());
        matches!(pin!(unconstrained(on_upgrade)).poll(cx), Poll::Ready(Ok(_)))
    }

    #[tokio::test]
    async fn the_handler_is_upgraded_as_soon_as_hyper_is_and_without_a_task() {
        let (server, mut on_upgrade) = accepted(layer()).await;
        let tasks = || Handle::current().metrics().num_alive_tasks();
        assert!(!is_upgraded(&mut on_upgrade));
        assert_eq!(tasks(), 0);
        let (ours, _theirs) = duplex(64);
        server.complete(TokioIo::new(ours));
        assert!(is_upgraded(&mut on_upgrade));
        assert_eq!(tasks(), 1, "the driver's");
    }

    #[tokio::test]
    async fn the_handler_is_upgraded_though_the_budget_of_hypers_task_is_used_up() {
        let (server, mut on_upgrade) = accepted(layer()).await;
        let (ours, _theirs) = duplex(64);
        while has_budget_remaining() {
            consume_budget().await;
        }
        server.complete(TokioIo::new(ours));
        assert!(is_upgraded(&mut on_upgrade));
    }

    #[tokio::test]
    async fn the_handlers_upgrade_fails_as_soon_as_hypers_does() {
        let (server, mut on_upgrade) = accepted(layer()).await;
        drop(server);
        let cx = &mut Context::from_waker(Waker::noop());
        let failed = Pin::new(&mut on_upgrade).poll(cx);
        assert!(matches!(failed, Poll::Ready(Err(_))), "{failed:?}");
    }

    /// The only test of this binary with an override for a missing layer, since a process logs it
    /// once.
    #[tokio::test]
    async fn an_override_for_a_missing_layer_is_logged_once_with_the_layer() {
        let logs = Logs::keep();
        let second = Duration::from_secs(1);
        let fits = PolicyOverride::builder()
            .idle_timeout(second)
            .close_timeout(second);
        for (overrides, expected) in [
            (fits.clone(), 0),
            (fits.clone().interval(second), 1),
            (fits.interval(second), 1),
        ] {
            let (server, on_upgrade) = accepted_with(layer(), overrides).await;
            let (ours, _theirs) = duplex(64);
            server.complete(TokioIo::new(ours));
            let errors = logs.errors();
            assert_eq!(errors.len(), expected, "{errors:?}");
            let wanted = ["`PolicyOverride`", "HeartbeatLayer"];
            assert!(
                errors
                    .iter()
                    .all(|line| wanted.iter().all(|wanted| line.contains(wanted))),
                "{errors:?}"
            );
            drop(on_upgrade);
        }
    }

    #[test]
    fn hooks_have_a_runtime_where_hyper_has_none() {
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        for completes in [true, false] {
            let calls = Arc::new(AtomicUsize::new(0));
            let called = Arc::clone(&calls);
            let hook = move || {
                // Panics without a runtime.
                drop(tokio::spawn(async {}));
                called.fetch_add(1, Ordering::SeqCst);
            };
            let registry = Registry::new();
            let (alarm, open) = (hook.clone(), hook.clone());
            registry.on_high_water(0, move |_, _| alarm());
            let layer = IdleTimeoutLayer::builder()
                .registry(registry)
                .on_open(move |_| open())
                .on_evict(move |_: &Eviction| hook())
                .build()
                .unwrap();
            let (server, on_upgrade) = runtime.block_on(accepted(layer));
            let (ours, _theirs) = duplex(64);
            if completes {
                server.complete(TokioIo::new(ours));
            } else {
                drop(server);
            }
            let expected = if completes { 2 } else { 1 };
            assert_eq!(
                calls.load(Ordering::SeqCst),
                expected,
                "completes: {completes}"
            );
            drop(on_upgrade);
        }
    }
}
