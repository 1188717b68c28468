//! Where threads and tasks meet: locks, flags, notifications, timers, new tasks.
//!
//! These are std's and tokio's. In the unit tests of a build with `--cfg liveness_loom` loom's take
//! their place, and small stand-ins for what loom does not have, so that its models (`loom_models`
//! next to the code) run the real code through all orders of events. `Arc` stays std's everywhere:
//! loom's cannot be made an `Arc<dyn Trait>`, and what it would find is not what the models ask.

#[cfg(all(test, liveness_loom))]
pub(crate) mod modelled;

#[cfg(all(test, liveness_loom))]
pub(crate) use modelled::{
    AtomicBool, Mutex, MutexGuard, Notify, OnceLock, Sleep, ThreadId, current_thread, sleep_until,
    spawn,
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
