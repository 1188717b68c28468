//! The hooks of one layer.

use std::sync::Arc;

use crate::hooks::{OnEvict, OnHealth};

/// The hooks of one layer.
pub(crate) struct Listeners {
    pub(crate) hooks: Vec<Arc<dyn OnEvict>>,
    pub(crate) health_hooks: Vec<Arc<dyn OnHealth>>,
}

impl Listeners {
    pub(crate) fn is_empty(&self) -> bool {
        self.hooks.is_empty() && self.health_hooks.is_empty()
    }
}
