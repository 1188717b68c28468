//! Loom models of the driver's task: sleeping, ending and shutdown against concurrent calls.
//!
//! Each model ends with all connections removed and all tasks ended. A connection that is never
//! driven, or a task that oversleeps, leaves a thread waiting forever, which loom reports as a
//! deadlock.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::sync::{Arc, Weak};
use std::time::Duration;

use loom::sync::Condvar;
use loom::sync::atomic::AtomicBool;

use super::{Drive, Driver, Key};
use crate::monitor::Moment;
use crate::sync::Mutex;
use crate::sync::modelled::{advance, all_done, check, shut_down, spawned, thread};

const SOON_MS: u64 = 5;
const LATE_MS: u64 = 1_000;

/// A connection that removes itself when it is driven at or after its deadline.
struct ModelConnection {
    driver: Arc<Driver>,
    key: Mutex<Option<Key>>,
    /// If driven before this tick, the connection stays in the wheel.
    until: u64,
    /// A task is driving it.
    driving: AtomicBool,
    abandoned: AtomicBool,
    /// The driver has accepted it.
    inserted: AtomicBool,
    removed: Latch,
}

/// A flag that is set once and can be waited for.
#[derive(Default)]
struct Latch {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Latch {
    fn set(&self) {
        *self.set.lock().unwrap() = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let mut set = self.set.lock().unwrap();
        while !*set {
            set = self.changed.wait(set).unwrap();
        }
    }
}

impl ModelConnection {
    fn new(driver: &Arc<Driver>, until: u64) -> Arc<Self> {
        Arc::new(Self {
            driver: Arc::clone(driver),
            key: Mutex::default(),
            until,
            driving: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            inserted: AtomicBool::new(false),
            removed: Latch::default(),
        })
    }

    /// Inserts as `State::open` does: under the lock, so that other threads see the key once the
    /// connection is in the wheel.
    fn insert(self: &Arc<Self>, deadline: u64) -> bool {
        let mut key = self.key.lock().unwrap();
        *key = self.driver.insert(Arc::clone(self) as _, deadline);
        key.is_some()
    }

    fn rearm(&self, deadline: u64) {
        if let Some(key) = *self.key.lock().unwrap() {
            self.driver.rearm(key, deadline);
        }
    }

    fn schedule(self: &Arc<Self>) -> bool {
        self.driver.schedule(Arc::clone(self) as _)
    }

    fn remove(&self) {
        let key = self.key.lock().unwrap().take();
        if let Some(key) = key {
            self.driver.remove(key);
        }
    }
}

impl Drive for ModelConnection {
    fn drive(self: Arc<Self>, now: Moment, _: &mut [u8]) -> bool {
        assert!(!self.driving.swap(true, AcqRel), "driven by two tasks");
        if now >= Moment::after_millis(self.until) {
            self.remove();
            self.removed.set();
        }
        assert!(self.driving.swap(false, AcqRel));
        true
    }

    fn abandon(self: Arc<Self>) {
        self.abandoned.store(true, Release);
        self.key.lock().unwrap().take();
    }
}

/// Runs `model` with a new driver, and asserts that each run drops its driver.
fn model(name: &str, preemptions: usize, model: impl Fn(&Arc<Driver>) + Send + Sync + 'static) {
    let previous = Arc::new(std::sync::Mutex::new(Weak::<Driver>::new()));
    check(name, preemptions, move || {
        // A reference cycle of the last run's connections and driver would leak the driver.
        let mut previous = previous.lock().unwrap();
        assert!(previous.upgrade().is_none(), "the driver leaks");
        let driver = Driver::expect_current();
        *previous = Arc::downgrade(&driver);
        drop(previous);
        model(&driver);
    });
}

#[test]
fn loom_the_task_wakes_for_a_deadline_that_moves_nearer() {
    model("a deadline moves nearer", 3, |driver| {
        let connection = ModelConnection::new(driver, SOON_MS);
        assert!(connection.insert(LATE_MS));
        driver.start();
        thread(move || {
            connection.rearm(SOON_MS);
            advance(Duration::from_millis(SOON_MS));
        });
    });
}

#[test]
fn loom_the_task_wakes_for_a_new_connection_with_a_nearer_deadline() {
    model("a new connection with a nearer deadline", 3, |driver| {
        let first = ModelConnection::new(driver, LATE_MS);
        assert!(first.insert(LATE_MS));
        driver.start();
        let second = ModelConnection::new(driver, SOON_MS);
        thread(move || {
            assert!(second.insert(SOON_MS));
            second.driver.start();
            advance(Duration::from_millis(SOON_MS));
            // Not before, since the removal of the first connection would wake the task too.
            second.removed.wait();
            first.remove();
        });
    });
}

#[test]
fn loom_a_scheduled_connection_is_driven() {
    model("scheduled while the task goes to sleep", 3, |driver| {
        let connections = [
            ModelConnection::new(driver, 0),
            ModelConnection::new(driver, 0),
        ];
        for connection in &connections {
            assert!(connection.insert(LATE_MS));
        }
        driver.start();
        for connection in connections {
            thread(move || assert!(connection.schedule()));
        }
    });
}

#[test]
fn loom_entries_left_by_a_bounded_advance_are_driven() {
    model("the wheel advances in steps", 3, |driver| {
        // In models the wheel advances by one entry at a time.
        let connections = [
            ModelConnection::new(driver, SOON_MS),
            ModelConnection::new(driver, SOON_MS),
        ];
        for connection in &connections {
            assert!(connection.insert(SOON_MS));
        }
        driver.start();
        thread(|| advance(Duration::from_millis(SOON_MS)));
        thread(move || {
            let [moved, woken] = connections;
            moved.rearm(SOON_MS);
            woken.schedule();
        });
    });
}

#[test]
fn loom_a_connection_scheduled_before_the_task_starts_is_driven() {
    model("scheduled before the task starts", 4, |driver| {
        let connection = ModelConnection::new(driver, 0);
        assert!(connection.insert(LATE_MS));
        let woken = Arc::clone(&connection);
        thread(move || assert!(woken.schedule()));
        driver.start();
    });
}

#[test]
fn loom_a_connection_inserted_while_the_task_ends_is_driven() {
    model("removal of the last, insertion of the next", 3, |driver| {
        let last = ModelConnection::new(driver, LATE_MS);
        assert!(last.insert(LATE_MS));
        driver.start();
        thread(move || last.remove());
        let next = ModelConnection::new(driver, SOON_MS);
        thread(move || {
            assert!(next.insert(SOON_MS));
            next.driver.start();
            advance(Duration::from_millis(SOON_MS));
        });
        all_done();
        assert!(spawned() <= 2);
    });
}

#[test]
fn loom_concurrent_starts_spawn_one_task() {
    model("two threads start the task", 3, |driver| {
        let connections = [
            ModelConnection::new(driver, 0),
            ModelConnection::new(driver, 0),
        ];
        for connection in &connections {
            assert!(connection.insert(LATE_MS));
        }
        for connection in connections {
            thread(move || {
                connection.driver.start();
                assert!(connection.schedule());
            });
        }
        all_done();
        assert_eq!(spawned(), 1);
    });
}

#[test]
fn loom_a_connection_removed_before_the_task_starts_is_dropped() {
    model("removed before the task starts", 3, |driver| {
        let connection = ModelConnection::new(driver, LATE_MS);
        assert!(connection.insert(LATE_MS));
        let removed = Arc::clone(&connection);
        thread(move || removed.remove());
        thread(move || {
            connection.schedule();
        });
        driver.start();
    });
}

#[test]
fn loom_a_runtime_shutdown_abandons_all_connections() {
    model("the runtime is shut down", 3, |driver| {
        let early = ModelConnection::new(driver, LATE_MS);
        assert!(early.insert(LATE_MS));
        driver.start();
        let woken = Arc::clone(&early);
        thread(move || {
            woken.schedule();
            woken.rearm(SOON_MS);
        });
        let late = ModelConnection::new(driver, LATE_MS);
        let opening = Arc::clone(&late);
        thread(move || {
            let inserted = opening.insert(LATE_MS);
            opening.driver.start();
            opening.inserted.store(inserted, Release);
        });
        shut_down();
        all_done();
        // `abandon` may be called twice for a connection that was also scheduled.
        assert!(early.abandoned.load(Acquire));
        assert_eq!(late.abandoned.load(Acquire), late.inserted.load(Acquire));
        assert_eq!(spawned(), 1);
    });
}
