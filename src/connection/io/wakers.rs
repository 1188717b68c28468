//! The handler's waker for one direction of its stream.

use std::task::Waker;

/// The handler's waker for one direction.
///
/// A transport keeps one waker per direction, the last one. While the driver's waker is registered
/// there, the handler's waits here, and the driver passes the wake-up on.
#[derive(Default)]
pub(crate) struct HandlerWaker {
    /// Kept after use: the next one is most likely the same.
    pub(crate) waker: Option<Waker>,
    /// The handler got `Pending` and has not polled since.
    pub(crate) pending: bool,
    /// The transport has the driver's waker.
    pub(crate) by_driver: bool,
    /// The handler must be woken once the lock is released.
    pub(crate) due: bool,
}

impl HandlerWaker {
    /// The transport has the handler's waker. Returns false and does nothing if that is another than
    /// the stored one.
    #[inline]
    pub(crate) fn keep(&mut self, waker: &Waker) -> bool {
        let known = self.waker.as_ref();
        let same = known.is_some_and(|known| known.will_wake(waker));
        if same {
            self.pending = true;
            self.by_driver = false;
        }
        same
    }

    /// Stores the waker of a pending handler. Returns the one that it replaces.
    pub(crate) fn store(&mut self, waker: &Waker, by_driver: bool) -> Option<Waker> {
        self.pending = true;
        self.by_driver = by_driver;
        let known = self.waker.as_ref();
        if known.is_some_and(|known| known.will_wake(waker)) {
            return None;
        }
        self.waker.replace(waker.clone())
    }

    /// Has the handler woken if it is pending.
    pub(crate) fn wake_if_pending(&mut self) {
        self.due |= self.pending;
    }

    /// The waker to wake, if the handler must be woken.
    pub(crate) fn take_due(&mut self) -> Option<Waker> {
        if !std::mem::take(&mut self.due) {
            return None;
        }
        self.pending = false;
        self.waker.take()
    }
}
