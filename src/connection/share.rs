//! What the connections of a layer have in common.

use std::fmt;
use std::sync::Arc;

use super::admission::{Admission, Refused, Track};
use crate::evict::OnEvict;
use crate::health_hook::OnHealth;
use crate::monitor::Policy;

/// What a layer gives to each of its connections: its settings, and who is told of them. One
/// allocation each, shared by all connections.
#[derive(Clone)]
pub(crate) struct Share {
    pub(crate) policy: Policy,
    pub(super) listeners: Arc<Listeners>,
}

pub(super) struct Listeners {
    pub(super) tracker: Option<Arc<dyn Track>>,
    pub(super) hooks: Vec<Arc<dyn OnEvict>>,
    pub(super) health_hooks: Vec<Arc<dyn OnHealth>>,
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
            listeners: Arc::new(Listeners {
                tracker,
                hooks,
                health_hooks,
            }),
        }
    }

    /// Asks the layer's registry, if it has one, for a place for one more handshake.
    pub(crate) fn admit(&self) -> Result<Option<Admission>, Refused> {
        let tracker = self.listeners.tracker.as_ref();
        tracker.map(Admission::admit).transpose()
    }

    /// A place for a stream whose handshake is over, which cannot be refused.
    pub(crate) fn take_in(&self) -> Option<Admission> {
        self.listeners.tracker.as_ref().map(Admission::take_in)
    }

    /// Somebody wants to hear of the connections' health.
    pub(super) fn has_health_hooks(&self) -> bool {
        !self.listeners.health_hooks.is_empty()
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Share")
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}
