//! Inner layers of a connection that can still be detached from it.
//!
//! The outermost layer creates the connection, and its response decides whether it is upgraded. An inner
//! layer joins when the request passes it, since its limits, hooks and times apply from then on. If the
//! response of its own service is not an upgrade, the layer leaves, but the connection may go on: a
//! service further out may answer the handshake itself, or call another service.
//!
//! This state exists while the response of an inner layer is outstanding, and is freed after the last one.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::connection::metadata::LayerConfig;
use crate::monitor::{Overrides, Policy};

/// Identifies an attachment, unique in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttachmentId(u64);

impl AttachmentId {
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);

        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// One inner layer of a connection.
pub(crate) struct Attached {
    pub(crate) id: AttachmentId,
    /// The next inner layer further out, if there is one. When that leaves, this one leaves too.
    pub(crate) within: Option<AttachmentId>,
    pub(crate) layer: Arc<LayerConfig>,
    /// This layer added its listeners, so they are removed with it, unless another layer shares them.
    pub(crate) owns_listeners: bool,
    /// The same for the place in its registry.
    pub(crate) owns_place: bool,
    /// The response of its service was an upgrade.
    pub(crate) accepted: bool,
}

/// A change of a connection's policy, kept so that the others can be applied again without it.
enum Step {
    Layer(Attached),
    Overrides {
        /// The layer whose request brought them; `None` if they were set on the handle.
        by: Option<AttachmentId>,
        values: Overrides,
    },
}

pub(crate) struct Attachments {
    /// Policy and overrides before the first step.
    policy: Policy,
    overrides: Overrides,
    steps: Vec<Step>,
}

impl Attachments {
    pub(crate) fn new(policy: Policy, overrides: Overrides) -> Self {
        Self {
            policy,
            overrides,
            steps: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, attached: Attached) {
        self.steps.push(Step::Layer(attached));
    }

    pub(crate) fn add_overrides(&mut self, by: Option<AttachmentId>, values: &Overrides) {
        let values = values.clone();
        self.steps.push(Step::Overrides { by, values });
    }

    /// Records that a layer's response is an upgrade. It now leaves only with a layer further out.
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
    pub(crate) fn remove(&mut self, id: AttachmentId) -> Vec<Attached> {
        let mut gone = vec![id];
        // A layer is attached after the one further out, so one pass finds all.
        for attached in self.layers() {
            if attached.within.is_some_and(|within| gone.contains(&within)) {
                gone.push(attached.id);
            }
        }
        let mut removed = Vec::new();
        for step in mem::take(&mut self.steps) {
            match step {
                Step::Layer(attached) if gone.contains(&attached.id) => removed.push(attached),
                Step::Overrides { by: Some(by), .. } if gone.contains(&by) => {}
                step => self.steps.push(step),
            }
        }
        removed
    }

    /// Passes the listeners of a layer that leaves to one that shares them. False if there is none.
    pub(crate) fn inherit_listeners(&mut self, from: &LayerConfig) -> bool {
        let mut layers = self.layers_mut();
        let heir = layers.find(|heir| Arc::ptr_eq(&heir.layer.listeners, &from.listeners));
        heir.map(|heir| heir.owns_listeners = true).is_some()
    }

    /// The same for its place in its registry.
    pub(crate) fn inherit_place(&mut self, from: &LayerConfig) -> bool {
        let is_same = |heir: &Attached| match (&heir.layer.tracker, &from.tracker) {
            (Some(tracker), Some(known)) => Arc::ptr_eq(tracker, known),
            _ => false,
        };
        let heir = self.layers_mut().find(|heir| is_same(heir));
        heir.map(|heir| heir.owns_place = true).is_some()
    }

    /// Returns the policy and the overrides after all steps.
    pub(crate) fn policy(&self) -> (Policy, Overrides) {
        let (mut policy, mut overrides) = (self.policy.clone(), self.overrides.clone());
        for step in &self.steps {
            match step {
                Step::Layer(attached) => policy.add(&attached.layer.policy),
                Step::Overrides { values, .. } => overrides.merge(values),
            }
        }
        overrides.apply(&mut policy);
        (policy, overrides)
    }

    fn layers(&self) -> impl Iterator<Item = &Attached> {
        self.steps.iter().filter_map(|step| match step {
            Step::Layer(attached) => Some(attached),
            Step::Overrides { .. } => None,
        })
    }

    fn layers_mut(&mut self) -> impl Iterator<Item = &mut Attached> {
        self.steps.iter_mut().filter_map(|step| match step {
            Step::Layer(attached) => Some(attached),
            Step::Overrides { .. } => None,
        })
    }
}
