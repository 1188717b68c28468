//! Inner layers of a connection that can still be detached from it.
//!
//! The outermost layer creates the connection, and its response decides whether it is upgraded. An
//! inner layer joins when the request passes it, since its limits, hooks and times apply from then
//! on. If the response of its own service is not an upgrade, the layer leaves, but the connection
//! may continue: a service further out may answer the handshake itself, or call another service.
//!
//! This state exists while the response of an inner layer is outstanding.

use std::mem;
use std::sync::Arc;

use super::contracts::{AttachmentId, LayerConfig};
use crate::monitor::{Overrides, Policy};

/// Settings of one connection alone.
#[derive(Default)]
pub(crate) struct ConnectionSettings {
    /// Values that take precedence over those of all layers. Boxed: every connection with an inner
    /// layer has settings until its upgrade, and few have overrides.
    pub(crate) overrides: Option<Box<Overrides>>,
    /// Present only while the response of an inner layer is outstanding.
    pub(crate) attachments: Option<InnerLayers>,
}

/// One inner layer of a connection.
pub(crate) struct InnerLayer {
    pub(crate) id: AttachmentId,
    /// The next inner layer further out, if there is one. When that leaves, this one leaves too.
    pub(crate) within: Option<AttachmentId>,
    pub(crate) layer: Arc<LayerConfig>,
    /// This layer added its hooks, so they are removed with it, unless another layer shares them.
    pub(crate) owns_hooks: bool,
    /// This layer entered its registry, so that is undone with it, unless another layer shares it.
    pub(crate) owns_admission: bool,
    /// The response of its service was an upgrade.
    pub(crate) accepted: bool,
}

/// A change of a connection's policy. Kept, so that the others can be applied again without it.
enum PolicyChange {
    Layer(InnerLayer),
    Overrides {
        /// The layer whose request brought them; `None` if they were set on the handle.
        by: Option<AttachmentId>,
        values: Box<Overrides>,
    },
}

/// The changes of a connection's policy that inner layers and overrides have made.
pub(crate) struct InnerLayers {
    /// Policy and overrides before the first change.
    policy: Policy,
    overrides: Option<Box<Overrides>>,
    changes: Vec<PolicyChange>,
}

impl InnerLayers {
    pub(crate) fn new(policy: Policy, overrides: Option<Box<Overrides>>) -> Self {
        Self {
            policy,
            overrides,
            changes: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, attached: InnerLayer) {
        self.changes.push(PolicyChange::Layer(attached));
    }

    pub(crate) fn add_overrides(&mut self, by: Option<AttachmentId>, values: &Overrides) {
        let values = Box::new(values.clone());
        self.changes.push(PolicyChange::Overrides { by, values });
    }

    /// Records that the response of a layer is an upgrade. It now leaves only with a layer further
    /// out.
    pub(crate) fn accept(&mut self, id: AttachmentId) {
        if let Some(attached) = self.layers_mut().find(|attached| attached.id == id) {
            attached.accepted = true;
        }
    }

    /// Whether no response is outstanding, so that no layer can be detached any more.
    pub(crate) fn are_final(&self) -> bool {
        self.layers().all(|attached| attached.accepted)
    }

    /// Removes a layer and all layers within it.
    pub(crate) fn remove(&mut self, id: AttachmentId) -> Vec<InnerLayer> {
        let mut leaving = vec![id];
        // A layer is attached after the one further out, so one pass finds all.
        for attached in self.layers() {
            if attached
                .within
                .is_some_and(|within| leaving.contains(&within))
            {
                leaving.push(attached.id);
            }
        }
        let mut removed = Vec::new();
        for change in mem::take(&mut self.changes) {
            match change {
                PolicyChange::Layer(attached) if leaving.contains(&attached.id) => {
                    removed.push(attached)
                }
                PolicyChange::Overrides { by: Some(by), .. } if leaving.contains(&by) => {}
                change => self.changes.push(change),
            }
        }
        removed
    }

    /// Passes the hooks of a layer that leaves to one that shares them. False if there is none.
    pub(crate) fn inherit_hooks(&mut self, from: &LayerConfig) -> bool {
        let mut layers = self.layers_mut();
        let successor = layers.find(|successor| Arc::ptr_eq(&successor.layer.hooks, &from.hooks));
        successor
            .map(|successor| successor.owns_hooks = true)
            .is_some()
    }

    /// Passes the place in a registry to a layer that shares the registry. False if there is none.
    pub(crate) fn inherit_admission(&mut self, from: &LayerConfig) -> bool {
        let is_same = |successor: &InnerLayer| match (&successor.layer.registry, &from.registry) {
            (Some(registry), Some(known)) => Arc::ptr_eq(registry, known),
            _ => false,
        };
        let successor = self.layers_mut().find(|successor| is_same(successor));
        successor
            .map(|successor| successor.owns_admission = true)
            .is_some()
    }

    /// Returns the policy and the overrides after all changes.
    pub(crate) fn policy(&self) -> (Policy, Option<Box<Overrides>>) {
        let (mut policy, mut overrides) = (self.policy.clone(), self.overrides.clone());
        for change in &self.changes {
            match change {
                PolicyChange::Layer(attached) => policy.add(&attached.layer.policy),
                PolicyChange::Overrides { values, .. } => {
                    overrides.get_or_insert_default().merge(values);
                }
            }
        }
        if let Some(overrides) = &overrides {
            overrides.apply(&mut policy);
        }
        (policy, overrides)
    }

    fn layers(&self) -> impl Iterator<Item = &InnerLayer> {
        self.changes.iter().filter_map(|change| match change {
            PolicyChange::Layer(attached) => Some(attached),
            PolicyChange::Overrides { .. } => None,
        })
    }

    fn layers_mut(&mut self) -> impl Iterator<Item = &mut InnerLayer> {
        self.changes.iter_mut().filter_map(|change| match change {
            PolicyChange::Layer(attached) => Some(attached),
            PolicyChange::Overrides { .. } => None,
        })
    }
}
