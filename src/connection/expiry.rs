//! [`Expiry`], and the warning before it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::layers::{ErasedConnection, ExpiryHook};
use crate::eviction::ConnectionId;
use crate::monitor::Moment;
use crate::panic_guard;

/// When the credentials of a connection expire: its token, its certificate, its booking.
///
/// Made from an [`Instant`] of std or tokio, from a [`SystemTime`], or from `None` for never. For
/// [`Liveness::expires_at`](crate::Liveness::expires_at) and
/// [`PolicyOverrideBuilder::expires_at`](crate::PolicyOverrideBuilder::expires_at), which do the
/// conversion.
///
/// A [`SystemTime`] is compared with the system clock once, when it is converted. A later jump of
/// that clock does not move the expiry. Time for which the machine is suspended counts only
/// if [`Instant`] counts it, which it does not on Linux. A time that is too far ahead for an
/// [`Instant`] never comes.
///
/// ```
/// use std::time::{Duration, Instant, UNIX_EPOCH};
///
/// use tower_ws_liveness::Expiry;
///
/// // The claim `exp` of a token (RFC 7519 section 4.1.4).
/// let exp = 1_893_456_000;
/// let of_token = Expiry::from(UNIX_EPOCH + Duration::from_secs(exp));
/// let in_an_hour = Expiry::from(Instant::now() + Duration::from_secs(3600));
/// assert_ne!(of_token, in_an_hour);
/// assert_eq!(Expiry::from(None), Expiry::from(None), "never");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry(Option<Instant>);

impl Expiry {
    /// `None` if it never comes.
    pub(crate) fn instant(self) -> Option<Instant> {
        self.0
    }
}

impl From<Instant> for Expiry {
    fn from(instant: Instant) -> Self {
        Self(Some(instant))
    }
}

impl From<tokio::time::Instant> for Expiry {
    fn from(instant: tokio::time::Instant) -> Self {
        Self(Some(instant.into_std()))
    }
}

impl From<SystemTime> for Expiry {
    fn from(time: SystemTime) -> Self {
        // tokio's, since connections are judged by it, and a test may have paused it.
        let now = tokio::time::Instant::now().into_std();
        Self(match time.duration_since(SystemTime::now()) {
            Ok(ahead) => now.checked_add(ahead),
            Err(past) => Some(now.checked_sub(past.duration()).unwrap_or(now)),
        })
    }
}

/// `None` is an expiry that never comes.
impl From<Option<Expiry>> for Expiry {
    fn from(expiry: Option<Self>) -> Self {
        expiry.unwrap_or(Self(None))
    }
}

/// The hook that warns before a connection's credentials expire.
pub(crate) struct ExpiryWarning {
    before: Duration,
    hook: ExpiryHook,
    state: Warned,
}

/// Whether the hook was called for the present expiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Warned {
    No,
    /// The hook must be called once the lock is released.
    Due,
    /// The hook is being called.
    Calling,
    /// The hook is being called, and the connection has a new expiry since.
    Renewed,
    Yes,
}

impl ExpiryWarning {
    pub(crate) fn new(before: Duration, hook: ExpiryHook) -> Self {
        Self {
            before,
            hook,
            state: Warned::No,
        }
    }

    /// Replaces the hook, and returns the earlier one. An expiry of which that has warned stays so.
    pub(crate) fn replace(&mut self, before: Duration, hook: ExpiryHook) -> ExpiryHook {
        self.before = before;
        std::mem::replace(&mut self.hook, hook)
    }

    /// When the hook must be called; `None` if it was, or is about to be.
    pub(crate) fn deadline(&self, expires_at: Moment) -> Option<Moment> {
        (self.state == Warned::No).then(|| expires_at.before(self.before))
    }

    /// The hook must be called now.
    pub(crate) fn mark_due(&mut self) {
        self.state = Warned::Due;
    }

    pub(crate) fn is_due(&self) -> bool {
        self.state == Warned::Due
    }

    /// The hook, if it must be called now. The caller holds a lock: it calls the hook later.
    pub(crate) fn take_due(&mut self) -> Option<ExpiryHook> {
        if !self.is_due() {
            return None;
        }
        self.state = Warned::Calling;
        Some(Arc::clone(&self.hook))
    }

    /// The connection has a new expiry.
    pub(crate) fn renew(&mut self) {
        self.state = match self.state {
            Warned::Calling | Warned::Renewed => Warned::Renewed,
            Warned::No | Warned::Due | Warned::Yes => Warned::No,
        };
    }

    /// The hook has returned. If an expiry was set meanwhile of which less than the hook asks for is
    /// left, the hook has warned of it too: a hook that sets the same expiry again would otherwise
    /// be called without a pause.
    pub(crate) fn returned(&mut self, now: Moment, expires_at: Option<Moment>) {
        let is_later = expires_at.is_none_or(|expiry| expiry.before(self.before) > now);
        self.state = match self.state {
            Warned::Renewed if is_later => Warned::No,
            Warned::Calling | Warned::Renewed => Warned::Yes,
            state @ (Warned::No | Warned::Due | Warned::Yes) => state,
        };
    }
}

/// Calls a hook and catches its panic. The caller holds no lock.
pub(crate) fn call(hook: &ExpiryHook, connection: Arc<dyn ErasedConnection>, id: ConnectionId) {
    let slow = |took_ms| {
        tracing::warn!(
            conn_id = %id,
            took_ms,
            "a hook before an expiry was slow, others may have had to wait"
        );
    };
    let panicked = |panic: &str| {
        tracing::warn!(conn_id = %id, panic, "a hook before an expiry panicked");
    };
    panic_guard::call_timed(|| hook(connection), slow, panicked);
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn a_system_time_keeps_its_distance_from_now() {
        let now = tokio::time::Instant::now().into_std();
        let near = |expiry: Expiry, expected: Instant| {
            let at = expiry.instant().unwrap();
            let apart = at.max(expected) - at.min(expected);
            assert!(apart < Duration::from_secs(60), "{apart:?}");
        };
        near(Expiry::from(SystemTime::now() + HOUR), now + HOUR);
        let past = Expiry::from(SystemTime::now() - Duration::from_millis(1));
        assert!(past.instant().unwrap() <= now);
        let long_past = Expiry::from(SystemTime::UNIX_EPOCH);
        assert!(long_past.instant().unwrap() <= now);
    }

    #[test]
    fn a_time_out_of_range_and_none_never_come() {
        let never = Expiry::from(None);
        assert_eq!(never.instant(), None);
        // The last second that a `SystemTime` can hold on Unix.
        let last = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(i64::MAX as u64));
        if let Some(last) = last {
            let at = Expiry::from(last).instant();
            let year = 365 * 24 * HOUR;
            assert!(at.is_none_or(|at| at > Instant::now() + year));
        }
    }
}
