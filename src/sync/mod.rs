//! Where threads and tasks meet: locks, flags, notifications, timers, new tasks.
//!
//! These are std's and tokio's. In the unit tests of a build with `--cfg liveness_loom` loom's take
//! their place, and small stand-ins for what loom does not have, so that its models (`loom_models`
//! next to the code) run the real code through all orders of events. `Arc` stays std's everywhere:
//! loom's cannot be made an `Arc<dyn Trait>`, and what it would find is not what the models ask.

mod lock;
#[cfg(all(test, liveness_loom))]
pub(crate) mod modelled;

pub(crate) use lock::{Lock, Locked};

#[cfg(all(test, liveness_loom))]
pub(crate) use modelled::{
    AtomicBool, Mutex, MutexGuard, Notify, OnceLock, Sleep, ThreadId, current_thread, in_runtime,
    sleep_until, spawn,
};

#[cfg(not(all(test, liveness_loom)))]
pub(crate) use std::sync::{Mutex, MutexGuard, OnceLock, atomic::AtomicBool};

#[cfg(not(all(test, liveness_loom)))]
pub(crate) use std::thread::{ThreadId, current as current_thread};

#[cfg(not(all(test, liveness_loom)))]
pub(crate) use tokio::{
    spawn,
    sync::Notify,
    time::{Sleep, sleep_until},
};

/// Calls `act` in the context of `runtime`, on any thread.
#[cfg(not(all(test, liveness_loom)))]
pub(crate) fn in_runtime<R>(runtime: &tokio::runtime::Handle, act: impl FnOnce() -> R) -> R {
    let _entered = match tokio::runtime::Handle::try_current() {
        Ok(current) if current.id() == runtime.id() => None,
        // A thread that is about to end has no context any more.
        Err(error) if error.is_thread_local_destroyed() => None,
        // It cannot be entered while `tokio::spawn` drops a task, since its runtime is shut down.
        _ => crate::panic_guard::catch(|| runtime.enter()),
    };
    act()
}

#[cfg(all(test, not(liveness_loom)))]
mod tests {
    use std::cell::Cell;
    use std::sync::mpsc;
    use std::thread;

    use tokio::runtime::{Builder, Handle};

    use super::in_runtime;

    /// Calls `in_runtime` as it is dropped.
    struct Last(Handle, mpsc::Sender<()>);

    impl Drop for Last {
        fn drop(&mut self) {
            in_runtime(&self.0, || self.1.send(()).unwrap());
        }
    }

    /// `tokio::spawn` holds the thread's context while it drops the task of a runtime that has gone.
    #[test]
    fn a_task_that_is_dropped_as_it_is_spawned_calls_all_the_same() {
        let new = || Builder::new_current_thread().build().unwrap();
        let (gone, other) = (new(), new());
        let gone = {
            let handle = gone.handle().clone();
            drop(gone);
            handle
        };
        for runtime in [&gone, other.handle()] {
            let (tell, told) = mpsc::channel();
            let last = Last(runtime.clone(), tell);
            let _entered = gone.enter();
            tokio::spawn(async move {
                let _last = last;
                std::future::pending::<()>().await;
            });
            assert_eq!(told.try_recv(), Ok(()));
        }
    }

    /// A thread that ends destroys its thread-local values one by one, tokio's context among them.
    #[test]
    fn a_thread_without_a_context_calls_all_the_same() {
        thread_local! {
            static KEPT: Cell<Option<Last>> = const { Cell::new(None) };
        }
        let runtime = Builder::new_current_thread().build().unwrap();
        let (tell, told) = mpsc::channel();
        let last = Last(runtime.handle().clone(), tell);
        let thread = thread::spawn(move || {
            KEPT.set(Some(last));
            // Made last, so it is destroyed first.
            assert!(Handle::try_current().is_err());
        });
        thread.join().unwrap();
        assert_eq!(told.iter().count(), 1);
    }
}
