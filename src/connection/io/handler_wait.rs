//! How the handler waits for one direction of its stream.

use std::task::Waker;

/// How the handler waits for one direction.
///
/// A transport keeps one waker per direction, the last one. While the driver's waker is registered
/// there, the handler's waits in `stored`, and the driver passes the wake-up on. It is stored beside
/// this, so that the flags of both directions share a word.
#[derive(Default)]
pub(crate) struct HandlerWait {
    /// The handler got `Pending` and has not polled since.
    pub(crate) pending: bool,
    /// The transport has the driver's waker.
    pub(crate) by_driver: bool,
    /// The handler must be woken once the lock is released.
    pub(crate) due: bool,
}

impl HandlerWait {
    /// The transport has the handler's waker. Returns false and does nothing if that is another than
    /// the stored one.
    #[inline]
    pub(crate) fn keep(&mut self, stored: Option<&Waker>, waker: &Waker) -> bool {
        let same = stored.is_some_and(|known| known.will_wake(waker));
        if same {
            self.pending = true;
            self.by_driver = false;
        }
        same
    }

    /// Stores the waker of a pending handler. Returns the one that it replaces.
    pub(crate) fn store(
        &mut self,
        stored: &mut Option<Waker>,
        waker: &Waker,
        by_driver: bool,
    ) -> Option<Waker> {
        self.pending = true;
        self.by_driver = by_driver;
        let known = stored.as_ref();
        if known.is_some_and(|known| known.will_wake(waker)) {
            return None;
        }
        stored.replace(waker.clone())
    }

    /// Has the handler woken if it is pending.
    pub(crate) fn wake_if_pending(&mut self) {
        self.due |= self.pending;
    }

    /// The waker to wake, if the handler must be woken.
    pub(crate) fn take_due(&mut self, stored: &mut Option<Waker>) -> Option<Waker> {
        if !std::mem::take(&mut self.due) {
            return None;
        }
        self.pending = false;
        stored.take()
    }
}
