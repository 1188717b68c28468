//! [`SharedSettings`]: the registry and the hooks that both builders collect.

use std::sync::Arc;

use crate::connection::{LayerConfig, LayerHooks, OnHealth, OnOpen};
use crate::hooks::{IntoHook, OnEvict};
use crate::monitor::Policy;
use crate::registry::Registry;

/// The settings of a layer that do not depend on its policy.
#[derive(Clone, Debug, Default)]
pub(super) struct SharedSettings {
    registry: Option<Registry>,
    open_hooks: Vec<Arc<dyn OnOpen>>,
    hooks: Vec<Arc<dyn OnEvict>>,
    health_hooks: Vec<Arc<dyn OnHealth>>,
}

impl SharedSettings {
    pub(super) fn set_registry(&mut self, registry: Registry) {
        self.registry = Some(registry);
    }

    /// Returns the configured registry, or configures a new one.
    pub(super) fn registry_or_new(&mut self) -> Registry {
        self.registry.get_or_insert_default().clone()
    }

    pub(super) fn add_open_hook<M>(&mut self, hook: impl IntoHook<dyn OnOpen, M>) {
        self.open_hooks.push(hook.into_arc());
    }

    pub(super) fn add_evict_hook<M>(&mut self, hook: impl IntoHook<dyn OnEvict, M>) {
        self.hooks.push(hook.into_arc());
    }

    pub(super) fn add_health_hook<M>(&mut self, hook: impl IntoHook<dyn OnHealth, M>) {
        self.health_hooks.push(hook.into_arc());
    }

    /// Builds the configuration that the layer passes to each of its connections.
    pub(super) fn into_config(self, policy: Policy) -> Arc<LayerConfig> {
        let registry = self.registry.map(|registry| registry.erased());
        let hooks = LayerHooks {
            open_hooks: self.open_hooks,
            hooks: self.hooks,
            health_hooks: self.health_hooks,
        };
        Arc::new(LayerConfig::new(policy, registry, hooks))
    }

    #[cfg(test)]
    pub(super) fn has_registry(&self) -> bool {
        self.registry.is_some()
    }

    #[cfg(test)]
    pub(super) fn open_hook_count(&self) -> usize {
        self.open_hooks.len()
    }

    #[cfg(test)]
    pub(super) fn evict_hook_count(&self) -> usize {
        self.hooks.len()
    }
}
