//! Handles of connections that never open, for tests.

use std::sync::Arc;

use super::connection::Connection;
use super::handle::Liveness;
use super::io::{NoTransport, TransportTraits};
use super::layers::ErasedConnection;
use crate::eviction::ConnectionId;
use crate::wire::Role;

impl Liveness {
    /// The handle of a connection that never opens. When it is evicted, its transport counts as
    /// released.
    pub(crate) fn detached(id: ConnectionId) -> Self {
        let traits = TransportTraits::<NoTransport>::FOREIGN;
        let connection = Connection::with_id(id, Role::Server, traits);
        let live = Self::new(Arc::clone(&connection) as Arc<dyn ErasedConnection>);
        let connection = Arc::downgrade(&connection);
        live.on_evict(move |_| {
            if let Some(connection) = connection.upgrade() {
                connection.not_upgraded();
            }
        });
        live
    }

    /// Whether this handle was made by [`test_util::detached`](crate::test_util::detached): no socket
    /// follows.
    ///
    /// With the feature `test-util`.
    #[cfg(feature = "test-util")]
    #[must_use]
    pub fn is_detached(&self) -> bool {
        self.connection.is_detached()
    }
}
