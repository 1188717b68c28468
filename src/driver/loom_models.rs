//! The driver's task going to sleep, ending and being shut down, against everybody who wants
//! something of it at that moment.
//!
//! Each model ends with all connections gone and all tasks ended. A connection that is forgotten, or a
//! task that oversleeps, leaves a thread waiting for ever, which loom reports as a deadlock.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::sync::{Arc, Weak};
use std::time::Duration;

use loom::sync::Condvar;
use loom::sync::atomic::AtomicBool;

use super::{Drive, Driver, Key};
use crate::monitor::Moment;
use crate::sync::Mutex;
use crate::sync::modelled::{advance, all_done, check, shut_down, spawned, thread};

const SOON: u64 = 5;
const LATE: u64 = 1_000;

/// A connection that gives itself up when it was driven at its time.
struct Probe {
    driver: Arc<Driver>,
    key: Mutex<Option<Key>>,
    /// Driven before this (in ticks), it waits to be driven again.
    until: u64,
    /// A task is driving it.
    busy: AtomicBool,
    abandoned: AtomicBool,
    /// The driver has taken it in.
    taken: AtomicBool,
    gone: Gate,
}

/// Opens once.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    fn wait(&self) {
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.opened.wait(open).unwrap();
        }
    }
}

impl Probe {
    fn new(driver: &Arc<Driver>, until: u64) -> Arc<Self> {
        Arc::new(Self {
            driver: Arc::clone(driver),
            key: Mutex::default(),
            until,
            busy: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            taken: AtomicBool::new(false),
            gone: Gate::default(),
        })
    }

    /// As `State::open` does it: the connection can be found by others only when it knows its key.
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

impl Drive for Probe {
    fn drive(self: Arc<Self>, now: Moment, _: &mut [u8]) {
        assert!(!self.busy.swap(true, AcqRel), "two tasks drive it");
        if now >= Moment::after_millis(self.until) {
            self.remove();
            self.gone.open();
        }
        assert!(self.busy.swap(false, AcqRel));
    }

    fn abandon(self: Arc<Self>) {
        self.abandoned.store(true, Release);
        self.key.lock().unwrap().take();
    }
}

/// Runs `model` with a driver of its own, of which nothing may be left in the end.
fn model(name: &str, preemptions: usize, model: impl Fn(&Arc<Driver>) + Send + Sync + 'static) {
    let left = Arc::new(std::sync::Mutex::new(Weak::<Driver>::new()));
    check(name, preemptions, move || {
        // The last run's connections and its driver must not keep each other alive.
        let mut left = left.lock().unwrap();
        assert!(left.upgrade().is_none(), "the driver leaks");
        let driver = Driver::expect_current();
        *left = Arc::downgrade(&driver);
        drop(left);
        model(&driver);
    });
}

#[test]
fn loom_a_nearer_deadline_is_not_slept_past() {
    model("a nearer deadline", 3, |driver| {
        let probe = Probe::new(driver, SOON);
        assert!(probe.insert(LATE));
        driver.start();
        thread(move || {
            probe.rearm(SOON);
            advance(Duration::from_millis(SOON));
        });
    });
}

#[test]
fn loom_a_nearer_newcomer_is_not_slept_past() {
    model("a nearer newcomer", 3, |driver| {
        let first = Probe::new(driver, LATE);
        assert!(first.insert(LATE));
        driver.start();
        let second = Probe::new(driver, SOON);
        thread(move || {
            assert!(second.insert(SOON));
            second.driver.start();
            advance(Duration::from_millis(SOON));
            // Only now: its own removal would wake the task, too.
            second.gone.wait();
            first.remove();
        });
    });
}

#[test]
fn loom_who_is_scheduled_is_driven() {
    model("scheduled while it falls asleep", 3, |driver| {
        let probes = [Probe::new(driver, 0), Probe::new(driver, 0)];
        for probe in &probes {
            assert!(probe.insert(LATE));
        }
        driver.start();
        for probe in probes {
            thread(move || assert!(probe.schedule()));
        }
    });
}

#[test]
fn loom_what_a_piece_leaves_is_driven() {
    model("a rest of the wheel", 3, |driver| {
        // In models a piece is one entry.
        let probes = [Probe::new(driver, SOON), Probe::new(driver, SOON)];
        for probe in &probes {
            assert!(probe.insert(SOON));
        }
        driver.start();
        thread(|| advance(Duration::from_millis(SOON)));
        thread(move || {
            let [moved, woken] = probes;
            moved.rearm(SOON);
            woken.schedule();
        });
    });
}

#[test]
fn loom_a_wake_up_before_the_task_is_kept() {
    model("scheduled before the task", 4, |driver| {
        let probe = Probe::new(driver, 0);
        assert!(probe.insert(LATE));
        let woken = Arc::clone(&probe);
        thread(move || assert!(woken.schedule()));
        driver.start();
    });
}

#[test]
fn loom_the_task_ends_while_a_connection_comes() {
    model("the last goes, the next comes", 3, |driver| {
        let last = Probe::new(driver, LATE);
        assert!(last.insert(LATE));
        driver.start();
        thread(move || last.remove());
        let next = Probe::new(driver, SOON);
        thread(move || {
            assert!(next.insert(SOON));
            next.driver.start();
            advance(Duration::from_millis(SOON));
        });
        all_done();
        assert!(spawned() <= 2);
    });
}

#[test]
fn loom_whoever_starts_the_task_there_is_one() {
    model("two start it", 3, |driver| {
        let probes = [Probe::new(driver, 0), Probe::new(driver, 0)];
        for probe in &probes {
            assert!(probe.insert(LATE));
        }
        for probe in probes {
            thread(move || {
                probe.driver.start();
                assert!(probe.schedule());
            });
        }
        all_done();
        assert_eq!(spawned(), 1);
    });
}

#[test]
fn loom_a_connection_given_up_before_the_task_is_forgotten() {
    model("given up before the task", 3, |driver| {
        let probe = Probe::new(driver, LATE);
        assert!(probe.insert(LATE));
        let given_up = Arc::clone(&probe);
        thread(move || given_up.remove());
        thread(move || {
            probe.schedule();
        });
        driver.start();
    });
}

#[test]
fn loom_a_runtime_that_goes_gives_everybody_up() {
    model("the runtime goes", 3, |driver| {
        let early = Probe::new(driver, LATE);
        assert!(early.insert(LATE));
        driver.start();
        let woken = Arc::clone(&early);
        thread(move || {
            woken.schedule();
            woken.rearm(SOON);
        });
        let late = Probe::new(driver, LATE);
        let newcomer = Arc::clone(&late);
        thread(move || {
            let taken = newcomer.insert(LATE);
            newcomer.driver.start();
            newcomer.taken.store(taken, Release);
        });
        shut_down();
        all_done();
        // Who was scheduled besides is told so once more.
        assert!(early.abandoned.load(Acquire));
        assert_eq!(late.abandoned.load(Acquire), late.taken.load(Acquire));
        assert_eq!(spawned(), 1);
    });
}
