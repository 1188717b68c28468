//! A waker that panics when it is woken, as a faulty executor's may.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

/// Its message is [`PANIC`].
#[derive(Default)]
pub(crate) struct PanickingWaker {
    armed: AtomicBool,
}

pub(crate) const PANIC: &str = "a waker's panic, as the test wants";

impl PanickingWaker {
    /// A waker that panics from now on.
    pub(crate) fn armed() -> Waker {
        let waker = Arc::new(Self::default());
        waker.arm();
        Waker::from(waker)
    }

    /// Makes it panic from now on. The transport of a test can wake it before.
    pub(crate) fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
    }
}

impl Wake for PanickingWaker {
    fn wake(self: Arc<Self>) {
        assert!(!self.armed.load(Ordering::SeqCst), "{PANIC}");
    }
}
