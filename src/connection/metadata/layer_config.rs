//! What the connections of a layer have in common.

use std::fmt;
use std::sync::Arc;

use crate::connection::metadata::Listeners;
use crate::connection::metadata::{Admission, Refused, Tracker};
use crate::hooks::OnEvict;
use crate::hooks::OnHealth;
use crate::monitor::Policy;

/// What a layer gives to each of its connections: its settings, its registry, and who is told of them.
///
/// Shared by the layer and all its services, which axum clones several times for each request.
pub(crate) struct LayerConfig {
    pub(crate) policy: Policy,
    pub(crate) tracker: Option<Arc<dyn Tracker>>,
    pub(crate) listeners: Arc<Listeners>,
}

impl LayerConfig {
    pub(crate) fn new(
        policy: Policy,
        tracker: Option<Arc<dyn Tracker>>,
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

impl fmt::Debug for LayerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerConfig")
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}
