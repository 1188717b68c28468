//! A mutex that panics on reentrant locking instead of deadlocking.

use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};
use std::ptr;

use super::{Mutex, MutexGuard};

/// True in loom models: their threads share one OS thread, so held locks cannot be recorded per
/// thread.
const MODELLED: bool = cfg!(all(test, liveness_loom));

thread_local! {
    /// The address of the lock that this thread acquired last and still holds; 0 if it holds none.
    static INNERMOST: Cell<usize> = const { Cell::new(0) };
    /// The addresses of the other locks that this thread holds, usually none.
    static OUTER: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// A mutex for data under whose lock foreign code runs that may try to lock it again.
///
/// The locks that a thread holds are recorded in thread-local storage. Recording one costs three
/// instructions, and the record is read only if the mutex is not free.
pub(crate) struct Lock<T>(Mutex<T>);

/// The guard of a [`Lock`]. Dropping it unlocks.
pub(crate) struct Locked<'a, T> {
    value: MutexGuard<'a, T>,
    record: HeldRecord,
}

impl<T> Lock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Acquires the lock. If the mutex is poisoned, calls `mend` on the value.
    ///
    /// # Panics
    ///
    /// If this thread holds the lock.
    // Inlined: the call itself would cost as much as its body, several times for every message.
    #[inline(always)]
    #[track_caller]
    pub(crate) fn lock(&self, mend: impl FnOnce(&mut T)) -> Locked<'_, T> {
        let free = if MODELLED {
            None
        } else {
            self.0.try_lock().ok()
        };
        Locked {
            value: free.unwrap_or_else(|| self.wait(mend)),
            record: HeldRecord::new(self.address()),
        }
    }

    /// Whether this thread holds the lock.
    pub(crate) fn is_locked_by_this_thread(&self) -> bool {
        let address = self.address();
        INNERMOST.get() == address
            || OUTER
                .try_with(|outer| outer.borrow().contains(&address))
                .unwrap_or(false)
    }

    /// The rare case of [`lock`](Self::lock): the mutex is not free, or it is poisoned.
    #[cold]
    #[track_caller]
    fn wait(&self, mend: impl FnOnce(&mut T)) -> MutexGuard<'_, T> {
        assert!(
            MODELLED || !self.is_locked_by_this_thread(),
            "a connection's handle was used by its own transport, or by a waker, while that was \
             polled: see `LivenessStream`"
        );
        self.0.lock().unwrap_or_else(|poisoned| {
            let mut value = poisoned.into_inner();
            mend(&mut value);
            value
        })
    }

    fn address(&self) -> usize {
        ptr::from_ref(self).addr()
    }
}

impl<T> Locked<'_, T> {
    /// Unlocks. The same as a drop, whose code the compiler does not inline.
    #[inline(always)]
    pub(crate) fn unlock(self) {
        drop(self.value);
        drop(self.record);
    }
}

impl<T> Deref for Locked<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Locked<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

/// Records that the thread holds a lock, until the record is dropped.
struct HeldRecord {
    outer: usize,
}

impl HeldRecord {
    #[inline]
    fn new(lock: usize) -> Self {
        if MODELLED {
            return Self { outer: 0 };
        }
        let outer = INNERMOST.replace(lock);
        if outer != 0 {
            push_outer(outer);
        }
        Self { outer }
    }
}

impl Drop for HeldRecord {
    #[inline]
    fn drop(&mut self) {
        if MODELLED {
            return;
        }
        // `LocalKey::set` is not inlined.
        INNERMOST.with(|innermost| innermost.set(self.outer));
        if self.outer != 0 {
            pop_outer();
        }
    }
}

/// Adds a lock to [`OUTER`]. On a thread that ends, the list is already destroyed, and reentrant
/// locking of `outer` is not detected.
#[cold]
fn push_outer(outer: usize) {
    let _ = OUTER.try_with(|others| others.borrow_mut().push(outer));
}

#[cold]
fn pop_outer() {
    let _ = OUTER.try_with(|others| others.borrow_mut().pop());
}

#[cfg(all(test, not(liveness_loom)))]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::mpsc;
    use std::thread;

    fn lock_panics<T>(lock: &Lock<T>) -> bool {
        catch_unwind(AssertUnwindSafe(|| drop(lock.lock(|_| {})))).is_err()
    }

    #[test]
    fn reentrant_locking_panics_and_another_thread_waits() {
        let lock = Lock::new(0);
        let (sender, receiver) = mpsc::channel();
        thread::scope(|scope| {
            let mut value = lock.lock(|_| {});
            assert!(lock.is_locked_by_this_thread() && lock_panics(&lock));
            scope.spawn(|| {
                assert!(!lock.is_locked_by_this_thread());
                sender.send(()).unwrap();
                assert_eq!(*lock.lock(|_| {}), 1);
            });
            receiver.recv().unwrap();
            *value = 1;
        });
        assert!(!lock.is_locked_by_this_thread() && !lock_panics(&lock));
    }

    #[test]
    fn outer_locks_are_recorded_as_held() {
        let locks = [Lock::new(0), Lock::new(1), Lock::new(2)];
        let held = || locks.each_ref().map(Lock::is_locked_by_this_thread);
        let outer = locks[0].lock(|_| {});
        let inner = locks[1].lock(|_| {});
        let innermost = locks[2].lock(|_| {});
        assert!(locks.iter().all(lock_panics));
        assert_eq!(held(), [true, true, true]);
        drop(innermost);
        assert_eq!(held(), [true, true, false]);
        drop(inner);
        assert_eq!(held(), [true, false, false]);
        drop(outer);
        assert_eq!(held(), [false, false, false]);
    }

    #[test]
    fn a_panic_releases_the_lock_and_the_next_lock_mends_the_value() {
        let lock = Lock::new(1);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _value = lock.lock(|_| {});
            panic!("under the lock");
        }));
        assert!(panicked.is_err() && !lock.is_locked_by_this_thread());
        assert_eq!(*lock.lock(|value| *value += 1), 2);
    }
}
