//! Changes of a connection's policy by layers and overrides.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::io::Report;
use super::layers::{AttachmentId, InnerLayer, InnerLayers};
use super::state::State;
use crate::driver::Clock;
use crate::monitor::{Moment, Overrides, Policy};
use crate::panic_guard;

impl<T: 'static> State<T> {
    /// Adds a layer's settings. The later layer of a kind is the inner one, and its values win.
    pub(crate) fn attach(&mut self, layer: &Policy) {
        self.policy.add(layer);
        let settings = self.settings.as_ref();
        if let Some(overrides) = settings.and_then(|settings| settings.overrides.as_ref()) {
            overrides.apply(&mut self.policy);
        }
    }

    /// Adds the settings of an inner layer that may leave, and the overrides that came with its
    /// request.
    pub(crate) fn join(
        &mut self,
        now: Moment,
        attached: InnerLayer,
        overrides: Option<&Overrides>,
        report: &mut Report,
    ) {
        let (id, layer) = (attached.id, Arc::clone(&attached.layer));
        let settings = self.settings.get_or_insert_default();
        let policy = &self.policy;
        let attachments = settings
            .attachments
            .get_or_insert_with(|| InnerLayers::new(policy.clone(), settings.overrides.clone()));
        attachments.add(attached);
        let before = self.heartbeat_timeout();
        self.attach(&layer.policy);
        self.policy_changed(now, before);
        self.set_socket_options(report);
        if let Some(overrides) = overrides {
            self.override_policy(now, Some(id), overrides, report);
        }
    }

    /// Removes the settings of an inner layer and of the layers within it. Returns these layers.
    pub(crate) fn leave(
        &mut self,
        now: Moment,
        id: AttachmentId,
        report: &mut Report,
    ) -> Vec<InnerLayer> {
        let before = self.heartbeat_timeout();
        let Some(settings) = &mut self.settings else {
            return Vec::new();
        };
        let Some(attachments) = &mut settings.attachments else {
            return Vec::new();
        };
        let removed = attachments.remove(id);
        (self.policy, settings.overrides) = attachments.policy();
        self.policy_changed(now, before);
        self.set_socket_options(report);
        removed
    }

    /// The inner layers, while the response of one of them is outstanding.
    pub(crate) fn attachments(&mut self) -> Option<&mut InnerLayers> {
        self.settings.as_mut()?.attachments.as_mut()
    }

    /// Takes the state of inner layers once no response is outstanding. Drop it without the lock.
    pub(crate) fn take_final_attachments(&mut self) -> Option<InnerLayers> {
        let settings = self.settings.as_mut()?;
        let attachments = settings.attachments.take_if(|all| all.are_final())?;
        if settings.overrides.is_none() {
            self.settings = None;
        }
        Some(attachments)
    }

    /// Replaces values of the policy for this connection alone. `by` is the inner layer whose
    /// request brought them, if any.
    pub(crate) fn override_policy(
        &mut self,
        now: Moment,
        by: Option<AttachmentId>,
        overrides: &Overrides,
        report: &mut Report,
    ) {
        let before = self.heartbeat_timeout();
        let settings = self.settings.get_or_insert_default();
        if let Some(attachments) = &mut settings.attachments {
            attachments.add_overrides(by, overrides);
        }
        let all = settings.overrides.get_or_insert_default();
        all.merge(overrides);
        all.apply(&mut self.policy);
        if overrides.expires_at.is_some() {
            if let Some(warning) = self.expiry_warning() {
                warning.renew();
            }
        }
        self.policy_changed(now, before);
        // They follow from the heartbeat's times alone, and a token may be refreshed often.
        if overrides.has_heartbeat() {
            self.set_socket_options(report);
        }
    }

    /// Gives the policy the moment at which the credentials expire.
    pub(crate) fn apply_expiry(&mut self, clock: &Clock) {
        let overrides = self
            .settings
            .as_ref()
            .and_then(|settings| settings.overrides.as_ref());
        let Some(expires_at) = overrides.and_then(|overrides| overrides.expires_at) else {
            return;
        };
        let moment = |expires_at| clock.moment(Instant::from_std(expires_at));
        if let Some(idle) = &mut self.policy.idle {
            Arc::make_mut(idle).expires_at = expires_at.map(moment);
        }
    }

    /// The layer that the connection does not have although an override is for it, if there is one.
    pub(crate) fn missing_layer(&self) -> Option<&'static str> {
        let overrides = self.settings.as_ref()?.overrides.as_ref()?;
        overrides.missing_layer(&self.policy)
    }

    fn heartbeat_timeout(&self) -> Option<Duration> {
        Some(self.policy.heartbeat.as_ref()?.timeout)
    }

    /// Applies a changed policy; the timeout of its pings was `before`.
    fn policy_changed(&mut self, now: Moment, before: Option<Duration>) {
        if let Some(timer) = &mut self.timer {
            timer.granularity = self.policy.step_millis();
            let clock = *timer.clock();
            self.apply_expiry(&clock);
        }
        self.monitor.policy_changed(now, &self.policy, before);
    }
}

/// Logs that a connection has an override for a layer that it does not have. Once per process and
/// layer, since every connection of such a route has it.
pub(super) fn log_missing_layer(layer: &'static str) {
    // std's also in loom models: a static outlives a model's run.
    static HEARTBEAT_LOGGED: AtomicBool = AtomicBool::new(false);
    static IDLE_TIMEOUT_LOGGED: AtomicBool = AtomicBool::new(false);

    let logged = match layer {
        "HeartbeatLayer" => &HEARTBEAT_LOGGED,
        _ => &IDLE_TIMEOUT_LOGGED,
    };
    if !logged.swap(true, Ordering::Relaxed) {
        let message = "a `PolicyOverride` has values for a layer that the request does not pass";
        panic_guard::log(|| tracing::error!(layer, "{message}"));
    }
}
