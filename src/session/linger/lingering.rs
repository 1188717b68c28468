//! A seat that lingers, and the end of its session.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::session_end::{SessionEnd, SessionEndCause};
use super::stage::{Lingering, Session, Stage, Taken};
use super::{Linger, LingeringSeat};
use crate::connection::{SessionHooks, Vacated};
use crate::driver::{Drive, Driver, TimerEntry};
use crate::eviction::Eviction;
use crate::hooks;
use crate::monitor::{Moment, Reason, granularity_millis};
use crate::panic_guard;
use crate::session::SessionMap;
use crate::session::registration::MapRegistration;
use crate::sync::AtomicBool;

/// The part of a registration that a lingering seat needs.
pub(in crate::session) struct LingeringSession<K, V> {
    linger: Linger<K, V>,
    value: Arc<V>,
    stage: Stage,
    /// The seat has been in the map, or the session was resumed.
    begun: AtomicBool,
}

impl<K, V> LingeringSession<K, V> {
    pub(super) fn new(linger: &Linger<K, V>, value: &Arc<V>) -> Self {
        Self {
            linger: linger.clone(),
            value: Arc::clone(value),
            stage: Stage::new(),
            begun: AtomicBool::new(false),
        }
    }

    /// The map has inserted the seat, or the session was resumed. Before that there is nothing that
    /// could linger or end.
    pub(in crate::session) fn begin(&self) {
        self.begun.store(true, Ordering::Relaxed);
    }

    fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// Whether the application lets the seat of a connection with this end linger.
    pub(super) fn lingers_after(&self, reason: Reason) -> bool {
        panic_guard::catch(|| (self.linger.shared.after)(reason)).unwrap_or(false)
    }
}

impl<K, V, M> MapRegistration<K, V, M>
where
    K: Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
    M: SessionMap<K, V> + ?Sized,
{
    /// Lets the seat of a connection that has ended linger. `None` if it must be removed.
    pub(in crate::session) fn linger(
        self: &Arc<Self>,
        end: &Eviction,
        driver: &Arc<Driver>,
    ) -> Option<Vacated> {
        let session = self.session.as_ref()?;
        // Before the map has inserted the seat, there is nothing that could linger.
        if !self.is_seated() || !session.lingers_after(end.reason()) {
            return None;
        }
        let linger = &session.linger;
        let lingers = session.stage.linger(|| {
            let place = linger.add(Arc::clone(self) as Arc<dyn LingeringSeat<K, V>>)?;
            let since = driver.clock().now();
            let timer = TimerEntry::insert(
                Arc::clone(driver),
                Arc::clone(self) as Arc<dyn Drive>,
                since + linger.grace,
                granularity_millis(linger.grace, 1),
            );
            let Some(timer) = timer else {
                linger.remove(place);
                return None;
            };
            Some(Lingering {
                reason: end.reason(),
                since,
                timer,
                place,
            })
        });
        if !lingers {
            return None;
        }
        driver.start();
        let excess = linger.has_excess().then(|| {
            let linger = linger.clone();
            Box::new(move || linger.end_excess()) as SessionHooks
        });
        Some(Vacated {
            seat: None,
            afterwards: excess,
        })
    }

    /// Ends the session with its connection. `was_seated` if its seat was removed from the map.
    /// Returns the call of its hooks.
    pub(in crate::session) fn end_with_connection(
        &self,
        reason: Reason,
        was_seated: bool,
    ) -> Option<SessionHooks> {
        let session = self.session.as_ref()?;
        if !was_seated && !session.has_begun() {
            return None;
        }
        session.stage.take()?;
        let end = self.session_end(session, SessionEndCause::ConnectionEnded, Some(reason));
        let linger = session.linger.clone();
        Some(Box::new(move || linger.call_hooks(&end)))
    }

    fn session_end(
        &self,
        session: &LingeringSession<K, V>,
        cause: SessionEndCause,
        reason: Option<Reason>,
    ) -> SessionEnd<K, V> {
        SessionEnd {
            key: self.key.clone(),
            value: Arc::clone(&session.value),
            connection: self.connection,
            reason,
            away: Duration::ZERO,
            cause,
        }
    }

    /// Ends the session if it lingers. A panic of the application is caught, also that of its key or
    /// value when the last reference is dropped here.
    fn expire(self: Arc<Self>, cause: SessionEndCause) {
        hooks::guard_session_map(self.connection, cause.as_str(), move || {
            if let (Some(end), Some(session)) = (self.end_lingering(cause), &self.session) {
                session.linger.call_hooks(&end);
            }
        });
    }
}

impl<K, V, M> LingeringSeat<K, V> for MapRegistration<K, V, M>
where
    K: Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
    M: SessionMap<K, V> + ?Sized,
{
    fn end_lingering(&self, cause: SessionEndCause) -> Option<SessionEnd<K, V>> {
        let session = self.session.as_ref()?;
        let lingering = session.stage.take_lingering()?;
        let (away, reason) = (lingering.away(), lingering.reason);
        // Code of the application comes last, since it may panic.
        self.stop_lingering(lingering);
        hooks::guard_session_map(self.connection, cause.as_str(), || {
            drop(self.map.remove_if(&self.key, self.connection));
        });
        Some(SessionEnd {
            away,
            ..self.session_end(session, cause, Some(reason))
        })
    }
}

impl<K, V, M> Session for MapRegistration<K, V, M>
where
    K: Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
    M: SessionMap<K, V> + ?Sized,
{
    fn stage(&self) -> &Stage {
        let session = self.session.as_ref();
        &session
            .expect("only seats with a session refer to it")
            .stage
    }

    fn stop_lingering(&self, lingering: Lingering) {
        let Lingering { timer, place, .. } = lingering;
        timer.remove();
        if let Some(session) = &self.session {
            session.linger.remove(place);
        }
    }

    fn end_session(&self, cause: SessionEndCause, reason: Option<Reason>) {
        let Some(session) = &self.session else {
            return;
        };
        let end = match session.stage.take() {
            Some(Taken::Connected) => self.session_end(session, cause, reason),
            Some(Taken::Lingering(lingering)) => {
                let (away, reason) = (lingering.away(), lingering.reason);
                self.stop_lingering(lingering);
                SessionEnd {
                    away,
                    ..self.session_end(session, cause, Some(reason))
                }
            }
            None => return,
        };
        session.linger.call_hooks(&end);
    }
}

impl<K, V, M> Drive for MapRegistration<K, V, M>
where
    K: Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
    M: SessionMap<K, V> + ?Sized,
{
    fn drive(self: Arc<Self>, _: Moment, _: &mut [u8]) -> bool {
        self.expire(SessionEndCause::Expired);
        true
    }

    fn abandon(self: Arc<Self>) {
        self.expire(SessionEndCause::RuntimeShutDown);
    }
}
