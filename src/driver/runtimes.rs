//! The registry of drivers, one per tokio runtime.

use std::collections::HashMap;
use std::fmt;
use std::future::pending;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::{Handle, Id};
use tokio::time::sleep;

use super::Driver;
use crate::panic_guard;

/// Why the current thread has no driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoDriver {
    /// The thread is not in the context of a tokio runtime.
    NoRuntime,
    /// The runtime's timer is not enabled.
    NoTimer,
}

impl NoDriver {
    /// The cause and the remedy, in the characters of a status line (RFC 9112 section 4).
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::NoRuntime => "WebSocket liveness needs a tokio runtime, and runs outside of one",
            Self::NoTimer => {
                "WebSocket liveness needs tokio's timer: call `enable_time` or `enable_all` \
                 on the `tokio::runtime::Builder`"
            }
        }
    }
}

impl fmt::Display for NoDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

enum RuntimeEntry {
    Driver(Weak<Driver>),
    NoTimer,
}

type Runtimes = HashMap<Id, RuntimeEntry>;

/// Uses std's lock also in loom models: a static outlives a model's run, and no code under the lock
/// waits for another thread.
static RUNTIMES: LazyLock<Mutex<Runtimes>> = LazyLock::new(Default::default);

impl Driver {
    /// The driver of the current runtime.
    ///
    /// # Errors
    ///
    /// [`NoDriver::NoRuntime`] outside of a tokio runtime, logged at ERROR once per process;
    /// [`NoDriver::NoTimer`] in a runtime whose timer is not enabled, logged at ERROR once per
    /// runtime.
    pub(crate) fn current() -> Result<Arc<Self>, NoDriver> {
        static LOGGED: AtomicBool = AtomicBool::new(false);

        let Ok(runtime) = Handle::try_current() else {
            let missing = NoDriver::NoRuntime;
            if !LOGGED.swap(true, Ordering::Relaxed) {
                panic_guard::log(|| tracing::error!("{missing}"));
            }
            return Err(missing);
        };
        let id = runtime.id();
        if let Some(entry) = find(&lock(), id) {
            return entry;
        }
        // Called without the lock: `has_timer` may panic, which calls the application's panic hook.
        let has_timer = has_timer();
        let mut runtimes = lock();
        if let Some(entry) = find(&runtimes, id) {
            return entry;
        }
        if has_timer {
            runtimes.retain(|_, entry| entry.is_in_use());
            let driver = Arc::new(Self::new(runtime));
            runtimes.insert(id, RuntimeEntry::Driver(Arc::downgrade(&driver)));
            return Ok(driver);
        }
        runtimes.insert(id, RuntimeEntry::NoTimer);
        drop(runtimes);
        let remove = RemoveOnDrop(id);
        runtime.spawn(async move {
            let _remove = remove;
            pending::<()>().await;
        });
        let missing = NoDriver::NoTimer;
        panic_guard::log(|| tracing::error!("{missing}"));
        Err(missing)
    }

    /// Like [`current`](Self::current), for callers that document the panic.
    ///
    /// # Panics
    ///
    /// If [`current`](Self::current) returns an error.
    pub(crate) fn expect_current() -> Arc<Self> {
        Self::current().unwrap_or_else(|missing| panic!("{missing}"))
    }

    /// Removes this driver from the registry, so that the next connection of a runtime with the
    /// same id gets a new one.
    pub(super) fn unregister(self: &Arc<Self>) {
        lock().retain(|_, entry| match entry {
            RuntimeEntry::Driver(driver) => !std::ptr::eq(driver.as_ptr(), Arc::as_ptr(self)),
            RuntimeEntry::NoTimer => true,
        });
    }
}

impl RuntimeEntry {
    fn is_in_use(&self) -> bool {
        match self {
            Self::Driver(driver) => driver.strong_count() > 0,
            Self::NoTimer => true,
        }
    }
}

/// Removes the entry of a runtime without a timer when the runtime drops its tasks: a new runtime
/// with the same id may have a timer.
struct RemoveOnDrop(Id);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        lock().remove(&self.0);
    }
}

fn find(runtimes: &Runtimes, id: Id) -> Option<Result<Arc<Driver>, NoDriver>> {
    match runtimes.get(&id)? {
        RuntimeEntry::Driver(driver) => driver.upgrade().map(Ok),
        RuntimeEntry::NoTimer => Some(Err(NoDriver::NoTimer)),
    }
}

/// Whether the current runtime has a timer. tokio has no query for it: `sleep` panics without one.
fn has_timer() -> bool {
    catch_unwind(|| drop(sleep(Duration::ZERO))).is_ok()
}

fn lock() -> MutexGuard<'static, Runtimes> {
    RUNTIMES.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(all(test, not(liveness_loom)))]
mod tests {
    use tokio::runtime::Builder;

    use super::*;

    #[test]
    fn a_runtime_without_a_timer_stays_registered_until_it_is_dropped() {
        let runtime = Builder::new_current_thread().build().unwrap();
        let id = runtime.handle().id();
        {
            let _entered = runtime.enter();
            for _ in 0..2 {
                assert_eq!(Driver::current().unwrap_err(), NoDriver::NoTimer);
                assert!(find(&lock(), id).is_some());
            }
        }
        drop(runtime);
        assert!(find(&lock(), id).is_none());
    }

    #[test]
    fn a_runtime_has_one_driver() {
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        let driver = Driver::expect_current();
        assert!(Arc::ptr_eq(&driver, &Driver::expect_current()));
        driver.unregister();
        assert!(!Arc::ptr_eq(&driver, &Driver::expect_current()));
    }
}
