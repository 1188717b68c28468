//! An opening handshake between the request and its response.

use std::sync::Arc;

use http::{Request, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::runtime::Handle;

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
                upgrade.spawn_opening();
            }
            Self::Outermost(upgrade) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                upgrade.spawn_passthrough();
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
    /// Stored because the response may be polled outside of the runtime.
    runtime: Handle,
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
        // A request that cannot be upgraded needs no driver.
        if req.extensions().get::<OnUpgrade>().is_some() {
            Driver::current().map_err(Refusal::NoDriver)?;
        }
        let admission = config.admit().map_err(Refusal::ByRegistry)?;
        // The bridge first: if there is none, the request keeps its own `OnUpgrade`.
        let Some((bridge, bridged)) = Bridge::new() else {
            req.extensions_mut().insert(NotUpgradable);
            return Ok(None);
        };
        let Some(on_upgrade) = req.extensions_mut().remove::<OnUpgrade>() else {
            return Ok(None);
        };
        let connection = Connection::new(Role::Server, Transport::TRAITS);
        if kind.is_multiplexed() {
            connection.set_over_http2();
        }
        let live = Liveness::new(Arc::clone(&connection) as Arc<dyn ErasedConnection>);
        live.attach(config, admission);
        if let Some(overrides) = overrides {
            live.override_policy(overrides);
        }
        req.extensions_mut().insert(bridged);
        req.extensions_mut().insert(live);
        Ok(Some(Self {
            runtime: Handle::current(),
            kind,
            on_upgrade,
            bridge,
            connection: NotUpgradedGuard(Some(connection)),
        }))
    }

    /// The handshake was accepted: spawns a task that opens the connection.
    ///
    /// The task ends when hyper resolves the upgrade, which it does as soon as it has written the
    /// response head, or when the upgrade fails.
    fn spawn_opening(self) {
        let Self {
            runtime,
            kind,
            on_upgrade,
            bridge,
            connection,
        } = self;
        let connection = connection.into_accepted();
        runtime.spawn(async move {
            match on_upgrade.await {
                Ok(upgraded) => {
                    if let Some(stream) = connection.open(Transport::new(kind, upgraded)) {
                        bridge.complete(HandlerStream::WebSocket(TokioIo::new(stream)));
                    }
                }
                // The drop of `bridge` fails the handler's upgrade. The drop of `connection` ends
                // the connection.
                Err(error) => panic_guard::log(
                    || tracing::debug!(%error, "upgrade failed after the handshake"),
                ),
            }
        });
    }

    /// The handler switched to another protocol that the client offered: spawns a task that gives
    /// it hyper's stream unchanged.
    fn spawn_passthrough(self) {
        let Self {
            runtime,
            on_upgrade,
            bridge,
            ..
        } = self;
        runtime.spawn(async move {
            if let Ok(upgraded) = on_upgrade.await {
                bridge.complete(HandlerStream::Other(Box::new(upgraded)));
            }
        });
    }
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
    fn open(mut self, io: Transport) -> Option<LivenessStream<Transport>> {
        LivenessStream::open(self.0.take()?, io)
    }
}

impl Drop for UpgradeFailedGuard {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            connection.upgrade_failed();
        }
    }
}
