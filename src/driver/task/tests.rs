use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::advance;

use super::*;
use crate::sync::Mutex;

/// The start of a slot of the wheel that holds the next four seconds.
const SLOT: u64 = 7 * 4096;

/// More than the task does between two looks at what others want.
const MANY: usize = 3 * PIECES * PIECE + 1;

/// A connection that gives itself up when it is driven.
struct Probe {
    driver: Arc<Driver>,
    key: Mutex<Option<Key>>,
    deadline: u64,
    driven: Arc<AtomicUsize>,
}

impl Drive for Probe {
    fn drive(self: Arc<Self>, now: Moment, _: &mut [u8]) {
        assert!(now >= Moment::after_millis(self.deadline), "early");
        self.driven.fetch_add(1, Relaxed);
        let key = self.key.lock().unwrap().take();
        self.driver.remove(key.expect("driven once"));
    }

    fn abandon(self: Arc<Self>) {}
}

/// Probes with the same deadline.
struct Probes {
    driver: Arc<Driver>,
    driven: Arc<AtomicUsize>,
}

impl Probes {
    fn new() -> Self {
        Self {
            driver: Driver::expect_current(),
            driven: Arc::default(),
        }
    }

    fn add(&self, count: usize, deadline: u64) -> Vec<Arc<Probe>> {
        let add = |_| {
            let probe = Arc::new(Probe {
                driver: Arc::clone(&self.driver),
                key: Mutex::default(),
                deadline,
                driven: Arc::clone(&self.driven),
            });
            let key = self.driver.insert(Arc::clone(&probe) as _, deadline);
            *probe.key.lock().unwrap() = key;
            self.driver.start();
            probe
        };
        (0..count).map(add).collect()
    }

    fn driven(&self) -> usize {
        self.driven.load(Relaxed)
    }

    /// Whether the wheel has a rest, or is about to be looked at.
    fn is_busy(&self, now: u64) -> bool {
        lock(&self.driver.queue).wheel.next_expiration() <= Some(now)
    }
}

async fn advance_to(driver: &Driver, millis: u64) {
    let now = driver.clock.now();
    let left = Moment::after_millis(millis).since_start() - now.since_start();
    // The driver's timer goes by whole milliseconds, and is late by less than one.
    advance(left + Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_large_slot_moves_piece_by_piece() {
    let probes = Probes::new();
    probes.add(MANY, SLOT + 2000);
    yield_now().await;
    advance_to(&probes.driver, SLOT).await;
    let mut turns = 0;
    while probes.is_busy(SLOT + 1) {
        turns += 1;
        if turns == 2 {
            probes.add(1, SLOT);
        }
        yield_now().await;
    }
    assert!(turns > MANY / PIECE / PIECES, "in {turns} turns");
    // Who came meanwhile is found with the rest.
    while probes.driven() == 0 {
        yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn many_that_are_due_at_once_are_driven_once_each_and_hold_nobody_up() {
    let probes = Probes::new();
    let all = probes.add(MANY, SLOT);
    yield_now().await;
    advance_to(&probes.driver, SLOT).await;
    let mut before = 0;
    while probes.driven() < MANY {
        yield_now().await;
        let driven = probes.driven();
        assert!(driven - before <= BATCH, "{} at a time", driven - before);
        before = driven;
    }
    // The task looks once more, and ends.
    for _ in 0..3 {
        yield_now().await;
    }
    assert!(matches!(lock(&probes.driver.queue).task, Task::None));
    assert!(all.iter().all(|probe| probe.key.lock().unwrap().is_none()));
}

#[tokio::test(start_paused = true)]
async fn who_is_due_does_not_wait_for_all_who_are_scheduled() {
    let probes = Probes::new();
    let scheduled = probes.add(4 * SCHEDULED, 0);
    for probe in &scheduled {
        let key = probe.key.lock().unwrap().expect("not driven yet");
        probes.driver.rearm(key, 2 * SLOT);
    }
    let due = probes.add(1, SLOT);
    yield_now().await;
    assert_eq!(probes.driven(), 0);
    for probe in scheduled {
        assert!(probes.driver.schedule(probe));
    }
    while probes.driven() == 0 {
        yield_now().await;
    }
    advance_to(&probes.driver, SLOT).await;
    while due[0].key.lock().unwrap().is_some() {
        yield_now().await;
    }
    let before = probes.driven();
    assert!(before <= 2 * SCHEDULED, "it waited for {before} others");
    while probes.driven() < 4 * SCHEDULED + 1 {
        yield_now().await;
    }
}
