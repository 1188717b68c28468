//! Inner layers whose services have not answered yet, so that each can be detached.
//!
//! The outermost layer makes the connection, and its response decides whether there is one. A layer
//! further in joins it when the request passes, since limits, hooks and times hold from then on. If its
//! own response turns out not to be an upgrade, it must leave again, while the connection may go on: a
//! service further out may answer the handshake itself, or ask another one.
//!
//! All of this is kept while a response of an inner layer is outstanding, and freed with the last one.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::share::Share;
use crate::monitor::{Overrides, Policy};

/// Names one attachment among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttachmentId(u64);

impl AttachmentId {
    pub(super) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);

        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// One inner layer of a connection.
pub(super) struct Attached {
    pub(super) id: AttachmentId,
    /// The inner layer around this one, if there is one. It takes this one along when it leaves.
    pub(super) within: Option<AttachmentId>,
    pub(super) layer: Arc<Share>,
    /// Its listeners were not those of another layer, so they leave with it. An heir may take over.
    pub(super) owns_listeners: bool,
    /// The same for the place in its registry.
    pub(super) owns_place: bool,
    /// Its response was an upgrade.
    pub(super) accepted: bool,
}

/// What has changed a connection's policy, in this order.
enum Step {
    Layer(Attached),
    Overrides {
        /// The layer whose request brought them; `None` if they were set on the handle.
        by: Option<AttachmentId>,
        values: Overrides,
    },
}

pub(super) struct Attachments {
    /// What held before the first step.
    policy: Policy,
    overrides: Overrides,
    steps: Vec<Step>,
}

impl Attachments {
    pub(super) fn new(policy: Policy, overrides: Overrides) -> Self {
        Self {
            policy,
            overrides,
            steps: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, attached: Attached) {
        self.steps.push(Step::Layer(attached));
    }

    pub(super) fn add_overrides(&mut self, by: Option<AttachmentId>, values: &Overrides) {
        let values = values.clone();
        self.steps.push(Step::Overrides { by, values });
    }

    /// The response of a layer is an upgrade. Only a layer around it can still take it along.
    pub(super) fn accept(&mut self, id: AttachmentId) {
        if let Some(attached) = self.layers_mut().find(|attached| attached.id == id) {
            attached.accepted = true;
        }
    }

    /// Whether no response is outstanding, so that nothing will be detached any more.
    pub(super) fn are_final(&self) -> bool {
        self.layers().all(|attached| attached.accepted)
    }

    /// Takes a layer out, and all that are within it.
    pub(super) fn remove(&mut self, id: AttachmentId) -> Vec<Attached> {
        let mut gone = vec![id];
        // A layer is attached after the one that it is within, so one pass finds all.
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

    /// Has one of the layers take over the listeners of one that leaves. False if none has them.
    pub(super) fn inherit_listeners(&mut self, from: &Share) -> bool {
        let mut layers = self.layers_mut();
        let heir = layers.find(|heir| Arc::ptr_eq(&heir.layer.listeners, &from.listeners));
        heir.map(|heir| heir.owns_listeners = true).is_some()
    }

    /// The same for its place in its registry.
    pub(super) fn inherit_place(&mut self, from: &Share) -> bool {
        let is_same = |heir: &Attached| match (&heir.layer.tracker, &from.tracker) {
            (Some(tracker), Some(known)) => Arc::ptr_eq(tracker, known),
            _ => false,
        };
        let heir = self.layers_mut().find(|heir| is_same(heir));
        heir.map(|heir| heir.owns_place = true).is_some()
    }

    /// The policy by all steps, and the overrides in it.
    pub(super) fn policy(&self) -> (Policy, Overrides) {
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
