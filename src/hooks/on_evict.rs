//! The eviction hook, and guarded calls of application code at a connection's end.

use std::fmt;
use std::sync::Arc;

use super::into_hook::sealed::{IntoArc, Shared, SharedDyn, Value};
use crate::eviction::Eviction;
use crate::panic_guard;

/// A hook that is called at each connection's end, exactly once per connection.
///
/// Closures implement it:
///
/// ```
/// use tower_ws_liveness::{ConfigError, HeartbeatLayer};
///
/// # fn main() -> Result<(), ConfigError> {
/// let layer = HeartbeatLayer::builder()
///     .on_evict(|ev| println!("{} ended: {}", ev.id(), ev.reason()))
///     .build()?;
/// # Ok(())
/// # }
/// ```
///
/// A hook is called on the task or thread that notices the end, outside every lock of this crate
/// and before the Close frame is sent, but after the [`OnOpen`](crate::OnOpen) hooks of the
/// connection. If hyper's connection is dropped before the response is written, that is the thread
/// that drops it, perhaps under a lock of the server.
///
/// On every thread a hook runs in the context of the runtime in which the connection was opened, so
/// `tokio::spawn` starts a task there; if that runtime is shut down or shutting down, the task is
/// dropped without being run. A connection that was never open has no such runtime: its hooks run in
/// that of the layers if its upgrade failed after the response, else in the context of the caller
/// that ended it. On a plain thread there is none, and `tokio::spawn` panics.
///
/// A hook must not block: hand slow work to a task or a channel. A hook that takes 100 ms or longer
/// is logged at WARN, with its duration, because it has probably delayed the driver, and with it
/// all connections of the runtime. If a hook panics, the panic is caught and logged at WARN, the
/// remaining hooks run, and the eviction continues; a program built with `panic = "abort"` ends, as
/// with any panic.
///
/// A hook may end other connections; their hooks then run inside this call. If every end ends
/// another connection, the stack grows with the number of connections: let a task do it.
///
/// When a runtime is shut down, each open connection that was opened in it ends with
/// [`Reason::HandlerDropped`](crate::Reason::HandlerDropped), even if its stream is used in another
/// runtime: reads and writes then fail with [`Evicted`](crate::Evicted), and the transport is
/// dropped. The hooks are called by the thread that drops the tasks, outside of a task, and a task
/// that a hook spawns is not run. A process that exits without dropping its runtime calls no hooks.
pub trait OnEvict: Send + Sync + 'static {
    /// Called once for each connection that ends.
    fn on_evict(&self, eviction: &Eviction);
}

impl<T: OnEvict> IntoArc<dyn OnEvict, Value> for T {
    fn into_arc(self) -> Arc<dyn OnEvict> {
        Arc::new(self)
    }
}

impl<T: OnEvict> IntoArc<dyn OnEvict, Shared> for Arc<T> {
    fn into_arc(self) -> Arc<dyn OnEvict> {
        self
    }
}

impl IntoArc<dyn OnEvict, SharedDyn> for Arc<dyn OnEvict> {
    fn into_arc(self) -> Arc<dyn OnEvict> {
        self
    }
}

impl<F> OnEvict for F
where
    F: Fn(&Eviction) + Send + Sync + 'static,
{
    fn on_evict(&self, eviction: &Eviction) {
        self(eviction);
    }
}

// A closure has no `Debug`, which types that hold hooks need to derive theirs.
impl fmt::Debug for dyn OnEvict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnEvict")
    }
}

/// A hook of a single connection. `FnOnce`, because a connection ends once.
pub(crate) type LocalHook = Box<dyn FnOnce(&Eviction) + Send>;

/// Calls a layer's hook and catches its panic.
pub(crate) fn call_on_evict(hook: &dyn OnEvict, eviction: &Eviction) {
    call_guarded("eviction hook", eviction, || hook.on_evict(eviction));
}

/// Calls a hook of a single connection and catches its panic.
pub(crate) fn call_local(hook: LocalHook, eviction: &Eviction) {
    call_guarded("eviction hook", eviction, || hook(eviction));
}

/// Calls `remove`, which removes a seat from an application's session map, and catches its panic.
pub(crate) fn guard_map(eviction: &Eviction, remove: impl FnOnce()) {
    call_guarded("session map", eviction, remove);
}

/// Calls `wake`, which wakes tasks that wait for the end, and catches a waker's panic, so that the
/// caller can continue with the others.
pub(crate) fn guard_waker(eviction: &Eviction, wake: impl FnOnce()) {
    call_guarded("waker", eviction, wake);
}

fn call_guarded(what: &'static str, eviction: &Eviction, call: impl FnOnce()) {
    let slow = |took_ms| {
        tracing::warn!(
            conn_id = %eviction.id(),
            reason = eviction.reason().as_str(),
            what,
            took_ms,
            "slow at a connection's end, others may have had to wait"
        );
    };
    let panicked = |panic: &str| {
        tracing::warn!(
            conn_id = %eviction.id(),
            reason = eviction.reason().as_str(),
            what,
            panic,
            "panicked at a connection's end"
        );
    };
    panic_guard::call_timed(call, slow, panicked);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eviction::Reason;
    use crate::logs::Logs;
    use crate::panic_guard::SLOW;
    use std::mem;
    use std::panic::{self, AssertUnwindSafe};
    use std::sync::atomic::{AtomicU32, Ordering};

    fn eviction() -> Eviction {
        Eviction::for_test(Reason::HandlerDropped)
    }

    #[test]
    fn closures_and_types_implement_the_hook() {
        struct Counter(Arc<AtomicU32>);

        impl OnEvict for Counter {
            fn on_evict(&self, eviction: &Eviction) {
                assert_eq!(eviction.reason(), Reason::HandlerDropped);
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }

        let count = Arc::new(AtomicU32::new(0));
        let (by_closure, by_local) = (count.clone(), count.clone());
        let hooks: Vec<Arc<dyn OnEvict>> = vec![
            Arc::new(Counter(count.clone())),
            Arc::new(move |_: &Eviction| {
                by_closure.fetch_add(10, Ordering::Relaxed);
            }),
        ];
        assert_eq!(format!("{hooks:?}"), "[OnEvict, OnEvict]");
        for hook in &hooks {
            call_on_evict(hook.as_ref(), &eviction());
        }
        let local = move |_: &Eviction| {
            by_local.fetch_add(100, Ordering::Relaxed);
        };
        call_local(Box::new(local), &eviction());
        assert_eq!(count.load(Ordering::Relaxed), 111);
    }

    #[test]
    fn panics_are_caught_and_logged() {
        let logs = Logs::keep();
        let eviction = eviction();
        call_on_evict(&|_: &Eviction| panic!("a literal"), &eviction);
        call_on_evict(
            &|ev: &Eviction| panic!("formatted for {}", ev.id()),
            &eviction,
        );
        call_local(Box::new(|_| panic!("a local one")), &eviction);
        call_on_evict(&|_: &Eviction| panic::panic_any(7_u8), &eviction);

        let lines = logs.lines();
        let expected = [
            "a literal".to_owned(),
            format!("formatted for {}", eviction.id()),
            "a local one".to_owned(),
            "(no message)".to_owned(),
        ];
        let conn_id = format!("conn_id={}", eviction.id());
        // A panic that prints its backtrace on a busy machine may be slow as well.
        let lines: Vec<_> = lines
            .iter()
            .filter(|line| !line.contains("slow at"))
            .collect();
        assert_eq!(lines.len(), expected.len(), "{lines:?}");
        for (line, expected) in lines.iter().zip(expected) {
            let wanted = [
                "WARN",
                "what=\"eviction hook\"",
                "panicked at a connection's end",
                "handler_dropped",
                &conn_id,
                &expected,
            ];
            for wanted in wanted {
                assert!(line.contains(wanted), "{wanted:?} is not in {line}");
            }
        }
    }

    #[test]
    fn slow_hooks_are_logged_with_their_duration() {
        let logs = Logs::keep();
        let eviction = eviction();
        call_on_evict(&|_: &Eviction| {}, &eviction);
        call_on_evict(&|_: &Eviction| std::thread::sleep(SLOW), &eviction);
        guard_map(&eviction, || {
            std::thread::sleep(SLOW);
            panic!("slow and panicked");
        });
        let lines = logs.lines();
        let conn_id = format!("conn_id={}", eviction.id());
        for what in ["eviction hook", "session map"] {
            let wanted = ["WARN", "slow at", "handler_dropped", &conn_id, what];
            let found = |line: &&String| wanted.iter().all(|wanted| line.contains(wanted));
            assert!(lines.iter().any(|line| found(&line)), "{what}: {lines:?}");
        }
        // The fast hook is logged only if the machine was busy enough to make it slow.
        for line in lines.iter().filter(|line| line.contains("slow at")) {
            let (_, took) = line.split_once("took_ms=").unwrap();
            let took = took.split(' ').next().unwrap();
            assert!(took.parse::<u64>().unwrap() >= 100, "{line}");
        }
        assert!(lines.iter().any(|line| line.contains("slow and panicked")));
    }

    #[test]
    fn a_payload_that_panics_when_dropped_is_caught() {
        /// Panics when it is dropped, with a payload that does the same, this many times.
        struct PanickingPayload(u32);

        impl Drop for PanickingPayload {
            fn drop(&mut self) {
                if let Some(remaining) = self.0.checked_sub(1) {
                    panic::panic_any(PanickingPayload(remaining));
                }
            }
        }

        let eviction = eviction();
        let escaped = panic::catch_unwind(AssertUnwindSafe(|| {
            let hook = |_: &Eviction| panic::panic_any(PanickingPayload(3));
            call_on_evict(&hook, &eviction);
        }));
        // Forgotten, because a payload that panics in the test harness hangs it.
        assert!(escaped.map_err(mem::forget).is_ok());
    }
}
