//! A connection before its upgrade, for tests.

use std::sync::Arc;

use tokio::io::Empty;

use crate::connection::{Connection, ErasedConnection, Liveness, TransportTraits};
use crate::wire::Role;

/// A connection that is not open yet, so that its end needs no driver.
pub(super) fn connection() -> Liveness {
    Liveness::new(
        Connection::<Empty>::new(Role::Server, TransportTraits::FOREIGN)
            as Arc<dyn ErasedConnection>,
    )
}
