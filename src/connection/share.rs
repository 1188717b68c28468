//! What a layer gives to each of its connections.

use std::fmt;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

use super::shared::Connection;
use super::stream::LivenessStream;
use super::{ConnectionId, Liveness};
use crate::evict::OnEvict;
use crate::monitor::Policy;
use crate::wire::Role;

/// Keeps account of the connections of a layer.
pub(crate) trait Track: Send + Sync {
    fn opened(&self, live: Liveness);
    fn ended(&self, id: ConnectionId);
}

/// Who is told of a layer's connections.
pub(crate) struct Listeners {
    pub(super) tracker: Option<Arc<dyn Track>>,
    pub(super) hooks: Vec<Arc<dyn OnEvict>>,
}

/// A layer's settings and listeners. One allocation each, shared by all connections.
#[derive(Clone)]
pub(crate) struct Share {
    pub(super) policy: Policy,
    pub(super) listeners: Arc<Listeners>,
}

impl Share {
    pub(crate) fn new(
        policy: Policy,
        tracker: Option<Arc<dyn Track>>,
        hooks: Vec<Arc<dyn OnEvict>>,
    ) -> Self {
        Self {
            policy,
            listeners: Arc::new(Listeners { tracker, hooks }),
        }
    }

    /// Puts a stream that speaks frames already under this layer.
    pub(crate) fn wrap<T>(&self, io: T, role: Role) -> (LivenessStream<T>, Liveness)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let connection = Connection::new(role);
        let live = connection.live();
        live.attach(self);
        (connection.start(io), live)
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Share")
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}
