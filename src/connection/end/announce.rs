//! The announcement of an end: registries, session maps, eviction streams, hooks, waiting tasks.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::connection::connection::Connection;
use crate::connection::handle::Liveness;
use crate::connection::layers::ErasedConnection;
use crate::connection::metadata::{Metadata, vacate};
use crate::connection::on_health::{HealthChange, call_on_health};
use crate::connection::on_open::{OnOpen, call_on_open};
use crate::eviction::Eviction;
use crate::hooks;
use crate::monitor::{Announced, Reason};
use crate::panic_guard;

impl<T> Connection<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// Announces the end, once, in this order: to the registries, which stop counting the
    /// connection; to the session maps, from which its seats are removed; to the eviction streams;
    /// to the hooks; to the tasks that await the end. The caller holds no lock.
    ///
    /// While open hooks are being called, their thread continues with the eviction hooks when they
    /// have returned.
    pub(crate) fn announce_end(&self, mut eviction: Eviction) {
        if !self.metadata.record_end(&eviction) {
            return;
        }
        let registries = self.membership.end(eviction.id());
        self.metadata.vacate_seats(&mut eviction);
        for registry in registries {
            registry.evicted(&eviction);
        }
        if let Some(eviction) = self.metadata.defer_for_open_hooks(eviction) {
            self.announce_to_hooks(eviction);
        }
    }

    fn announce_to_hooks(&self, eviction: Eviction) {
        self.metadata.call_hooks(eviction);
        self.membership.mark_announced();
    }

    /// Calls the open hooks. Then, if the connection has ended meanwhile, the eviction hooks.
    pub(crate) fn call_open_hooks(self: &Arc<Self>, hooks: &[Arc<dyn OnOpen>]) {
        let live = self.live();
        for hook in hooks {
            call_on_open(&**hook, &live);
        }
        if let Some(eviction) = self.metadata.finish_open_hooks() {
            self.announce_to_hooks(eviction);
        }
    }

    /// Calls the health hooks for all queued changes, including those that are queued meanwhile.
    pub(crate) fn deliver_health_changes(self: &Arc<Self>) {
        let next = || self.lock().next_health_change();
        while let Some(change) = next() {
            let change = HealthChange {
                live: self.live(),
                from: change.from,
                to: change.to,
                rtt: change.rtt,
                stats: change.stats,
            };
            for hook in self.metadata.health_hooks() {
                // The previous hook may have ended the connection.
                if self.metadata.has_ended() {
                    break;
                }
                call_on_health(&*hook, &change);
            }
        }
    }

    fn live(self: &Arc<Self>) -> Liveness {
        Liveness::new(Arc::clone(self) as Arc<dyn ErasedConnection>)
    }
}

impl Metadata {
    /// Records the end and its reason. False if that was done before.
    fn record_end(&self, eviction: &Eviction) -> bool {
        // Session and seats are recorded apart: they can be released before the rest.
        let recorded = Box::new(Eviction {
            session: None,
            ..eviction.clone()
        });
        let mut record = self.record();
        if record.eviction().is_some() {
            return false;
        }
        record.on_demand().eviction = Some(recorded);
        drop(record);
        let missed = match eviction.reason() {
            Reason::HeartbeatTimeout { missed } => Some(missed),
            _ => None,
        };
        panic_guard::log(|| {
            tracing::debug!(
                conn_id = %self.id(),
                reason = eviction.reason().as_str(),
                label = eviction.label,
                missed,
                idle_ms = millis(eviction.idle_for()),
                rtt_ms = eviction.rtt().map(|rtt| millis(rtt.smoothed())),
                "connection ended"
            );
        });
        true
    }

    /// Removes the connection's seats from their maps and adds them to its eviction. From now on no
    /// seat can be registered.
    fn vacate_seats(&self, eviction: &mut Eviction) {
        let registrations = {
            let mut record = self.record();
            record.announced.advance(Announced::InProgress);
            mem::take(&mut record.on_demand().registrations)
        };
        let (seats, sessions) = vacate(registrations, eviction, self.driver());
        if let Some(seats) = seats {
            eviction.seats = Some(seats.clone());
            self.record().on_demand().seats = Some(seats);
        }
        if !sessions.is_empty() {
            self.record().on_demand().session_hooks = sessions;
        }
    }

    /// Keeps the eviction for [`finish_open_hooks`](Self::finish_open_hooks) if open hooks are being
    /// called, else returns it.
    fn defer_for_open_hooks(&self, eviction: Eviction) -> Option<Eviction> {
        let mut record = self.record();
        if !record.calls_open_hooks {
            return Some(eviction);
        }
        record.on_demand().deferred = Some(Box::new(eviction));
        None
    }

    /// Calls all hooks, and wakes the tasks that await the end.
    fn call_hooks(&self, eviction: Eviction) {
        let (local, sessions, layers) = {
            let mut record = self.record();
            let rest = record.on_demand();
            let local = mem::take(&mut rest.local_hooks);
            let sessions = mem::take(&mut rest.session_hooks);
            (local, sessions, record.take_layers())
        };
        for hook in local {
            hooks::call_local(hook, &eviction);
        }
        let all = || layers.iter().flat_map(|layer| &layer.hooks);
        for (index, hook) in all().enumerate() {
            // A hook that several layers share is called once.
            if !all().take(index).any(|known| Arc::ptr_eq(known, hook)) {
                hooks::call_on_evict(&**hook, &eviction);
            }
        }
        for call in sessions {
            // Guarded as a whole: its key and value are dropped in it.
            hooks::guard_map(&eviction, call);
        }
        let changed = {
            let mut record = self.record();
            record.announced.advance(Announced::Done);
            record.changed()
        };
        hooks::guard_waker(&eviction, || changed.notify());
        // Its session may be the last reference, if a hook has put another into the slot.
        panic_guard::discard(self.id(), eviction);
        self.release_session(|record| record.readers -= 1);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
