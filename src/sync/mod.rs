//! Synchronization primitives, which loom models replace with their own.
//!
//! They are those of std and tokio. Unit tests built with `--cfg liveness_loom` use loom's types
//! instead, and small substitutes for what loom lacks, so that the models (`loom_models` next to
//! the code) run the real code through all interleavings. `Arc` is std's everywhere: loom's cannot
//! become an `Arc<dyn Trait>`, and the models do not check reference counts.

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
    sync::Notify,
    time::{Sleep, sleep_until},
};

/// Spawns a task in `runtime`. Works on any thread.
#[cfg(not(all(test, liveness_loom)))]
pub(crate) fn spawn(
    runtime: &tokio::runtime::Handle,
    task: impl Future<Output = ()> + Send + 'static,
) {
    drop(runtime.spawn(task));
}

/// Calls `act` in the context of `runtime`. Works on any thread.
#[cfg(not(all(test, liveness_loom)))]
pub(crate) fn in_runtime<R>(runtime: &tokio::runtime::Handle, act: impl FnOnce() -> R) -> R {
    let _entered = match tokio::runtime::Handle::try_current() {
        Ok(current) if current.id() == runtime.id() => None,
        // tokio's thread-local context is destroyed on a thread that ends.
        Err(error) if error.is_thread_local_destroyed() => None,
        // `enter` panics while `tokio::spawn` drops a task because the runtime is shut down.
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

    /// Sends from within `in_runtime` when it is dropped.
    struct SendOnDrop(Handle, mpsc::Sender<()>);

    impl Drop for SendOnDrop {
        fn drop(&mut self) {
            in_runtime(&self.0, || self.1.send(()).unwrap());
        }
    }

    /// `tokio::spawn` borrows the thread's context while it drops the task of a runtime that is
    /// shut down.
    #[test]
    fn in_runtime_calls_within_the_drop_of_a_task_that_cannot_be_spawned() {
        let new = || Builder::new_current_thread().build().unwrap();
        let (shut_down, other) = (new(), new());
        let shut_down = {
            let handle = shut_down.handle().clone();
            drop(shut_down);
            handle
        };
        for runtime in [&shut_down, other.handle()] {
            let (sender, receiver) = mpsc::channel();
            let on_drop = SendOnDrop(runtime.clone(), sender);
            let _entered = shut_down.enter();
            tokio::spawn(async move {
                let _on_drop = on_drop;
                std::future::pending::<()>().await;
            });
            assert_eq!(receiver.try_recv(), Ok(()));
        }
    }

    /// A thread that ends destroys its thread-local values one by one, including tokio's context.
    #[test]
    fn in_runtime_calls_on_a_thread_whose_context_is_destroyed() {
        thread_local! {
            static ON_DROP: Cell<Option<SendOnDrop>> = const { Cell::new(None) };
        }
        let runtime = Builder::new_current_thread().build().unwrap();
        let (sender, receiver) = mpsc::channel();
        let on_drop = SendOnDrop(runtime.handle().clone(), sender);
        let thread = thread::spawn(move || {
            ON_DROP.set(Some(on_drop));
            // Initialized after `ON_DROP`, so tokio's context is destroyed first.
            assert!(Handle::try_current().is_err());
        });
        thread.join().unwrap();
        assert_eq!(receiver.iter().count(), 1);
    }
}
