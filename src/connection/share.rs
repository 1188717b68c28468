//! What the connections of a layer have in common.

use std::fmt;
use std::sync::Arc;

use super::extras::Listeners;
use super::registries::{Admission, Refused, Track};
use crate::evict::OnEvict;
use crate::health_hook::OnHealth;
use crate::monitor::Policy;

/// What a layer gives to each of its connections: its settings, its registry, and who is told of them.
///
/// Shared by the layer and all its services, which axum clones several times for each request.
pub(crate) struct Share {
    pub(crate) policy: Policy,
    pub(super) tracker: Option<Arc<dyn Track>>,
    pub(super) listeners: Arc<Listeners>,
}

impl Share {
    pub(crate) fn new(
        policy: Policy,
        tracker: Option<Arc<dyn Track>>,
        hooks: Vec<Arc<dyn OnEvict>>,
        health_hooks: Vec<Arc<dyn OnHealth>>,
    ) -> Self {
        Self {
            policy,
            tracker,
            listeners: Arc::new(Listeners {
                hooks,
                health_hooks,
            }),
        }
    }

    /// Asks the layer's registry, if it has one, for a place for one more handshake.
    pub(crate) fn admit(&self) -> Result<Option<Admission>, Refused> {
        self.tracker.as_ref().map(Admission::admit).transpose()
    }

    /// A place for a stream whose handshake is over, which cannot be refused.
    pub(crate) fn take_in(&self) -> Option<Admission> {
        self.tracker.as_ref().map(Admission::take_in)
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Share")
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}
