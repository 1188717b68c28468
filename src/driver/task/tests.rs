use std::pin::pin;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Waker;
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::advance;

use super::*;
use crate::sync::Mutex;

/// The start of a 4096 ms slot of the wheel.
const SLOT_START_MS: u64 = 7 * 4096;

/// More entries than the task visits before it yields.
const MANY: usize = 3 * MAX_ADVANCES_PER_ITERATION * MAX_ENTRIES_PER_LOCK + 1;

/// A connection that removes itself when it is driven.
struct TestConnection {
    driver: Arc<Driver>,
    key: Mutex<Option<Key>>,
    deadline: u64,
    /// How long driving it takes, by the stopped clock.
    takes: Duration,
    driven: Arc<AtomicUsize>,
}

impl Drive for TestConnection {
    fn drive(self: Arc<Self>, now: Moment, _: &mut [u8]) -> bool {
        assert!(now >= Moment::after_millis(self.deadline), "early");
        self.driven.fetch_add(1, Relaxed);
        if !self.takes.is_zero() {
            // tokio's future advances the clock in its first poll.
            let cx = &mut Context::from_waker(Waker::noop());
            assert!(pin!(advance(self.takes)).poll(cx).is_pending());
        }
        let key = self.key.lock().unwrap().take();
        self.driver.remove(key.expect("driven once"));
        !self.takes.is_zero()
    }

    fn abandon(self: Arc<Self>) {}
}

/// Connections of one driver, and how many of them were driven.
struct TestConnections {
    driver: Arc<Driver>,
    driven: Arc<AtomicUsize>,
}

impl TestConnections {
    fn new() -> Self {
        Self {
            driver: Driver::expect_current(),
            driven: Arc::default(),
        }
    }

    fn add(&self, count: usize, deadline: u64) -> Vec<Arc<TestConnection>> {
        self.add_slow(count, deadline, Duration::ZERO)
    }

    fn add_slow(&self, count: usize, deadline: u64, takes: Duration) -> Vec<Arc<TestConnection>> {
        let add = |_| {
            let connection = Arc::new(TestConnection {
                driver: Arc::clone(&self.driver),
                key: Mutex::default(),
                deadline,
                takes,
                driven: Arc::clone(&self.driven),
            });
            let key = self.driver.insert(Arc::clone(&connection) as _, deadline);
            *connection.key.lock().unwrap() = key;
            self.driver.start();
            connection
        };
        (0..count).map(add).collect()
    }

    fn driven(&self) -> usize {
        self.driven.load(Relaxed)
    }

    /// Whether the wheel has entries left to visit at `now`.
    fn is_wheel_unfinished(&self, now: u64) -> bool {
        lock(&self.driver.queue).wheel.next_expiration() <= Some(now)
    }
}

/// The tick until which the task sleeps. `None` if it does not.
fn asleep_until(driver: &Driver) -> Option<u64> {
    match lock(&driver.queue).task {
        TaskState::Asleep { until, .. } => Some(until),
        _ => None,
    }
}

async fn advance_to(driver: &Driver, millis: u64) {
    let now = driver.clock.now();
    let left = Moment::after_millis(millis).since_start() - now.since_start();
    // The driver's timer has a resolution of one millisecond, and is late by less than that.
    advance(left + Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_large_slot_is_drained_in_several_iterations() {
    let connections = TestConnections::new();
    connections.add(MANY, SLOT_START_MS + 2000);
    yield_now().await;
    advance_to(&connections.driver, SLOT_START_MS).await;
    let mut iterations = 0;
    while connections.is_wheel_unfinished(SLOT_START_MS + 1) {
        iterations += 1;
        if iterations == 2 {
            connections.add(1, SLOT_START_MS);
        }
        yield_now().await;
    }
    let most_entries = MAX_ADVANCES_PER_ITERATION * MAX_ENTRIES_PER_LOCK;
    assert!(iterations > MANY / most_entries, "{iterations} iterations");
    // A connection that was inserted meanwhile is driven too.
    while connections.driven() == 0 {
        yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn connections_due_at_once_are_driven_once_each_and_in_batches() {
    let connections = TestConnections::new();
    let all = connections.add(MANY, SLOT_START_MS);
    yield_now().await;
    advance_to(&connections.driver, SLOT_START_MS).await;
    let mut before = 0;
    while connections.driven() < MANY {
        yield_now().await;
        let driven = connections.driven();
        assert!(
            driven - before <= MAX_DRIVES_PER_BATCH,
            "{} at a time",
            driven - before
        );
        before = driven;
    }
    assert!(
        all.iter()
            .all(|connection| connection.key.lock().unwrap().is_none())
    );
}

#[tokio::test(start_paused = true)]
async fn a_batch_of_slow_connections_ends_when_its_time_is_over() {
    // The number of connections that take as long as a batch may.
    for (takes, most) in [
        (MAX_BATCH_TIME / 8, 8),
        (MAX_BATCH_TIME / 2, 2),
        (MAX_BATCH_TIME, 1),
        (100 * MAX_BATCH_TIME, 1),
    ] {
        let connections = TestConnections::new();
        let start = connections.driver.clock.now().ceil_millis();
        let deadline = start + SLOT_START_MS;
        connections.add_slow(64, deadline, takes);
        yield_now().await;
        advance_to(&connections.driver, deadline).await;
        let mut before = 0;
        while connections.driven() < 64 {
            yield_now().await;
            let driven = connections.driven();
            assert!(driven - before <= most, "{} at a time", driven - before);
            before = driven;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_due_connection_does_not_wait_for_all_scheduled_ones() {
    let connections = TestConnections::new();
    let scheduled = connections.add(4 * MAX_SCHEDULED_PER_ITERATION, 0);
    for connection in &scheduled {
        let key = connection.key.lock().unwrap().expect("not driven yet");
        connections.driver.rearm(key, 2 * SLOT_START_MS);
    }
    let due = connections.add(1, SLOT_START_MS);
    yield_now().await;
    assert_eq!(connections.driven(), 0);
    for connection in scheduled {
        assert!(connections.driver.schedule(connection));
    }
    while connections.driven() == 0 {
        yield_now().await;
    }
    advance_to(&connections.driver, SLOT_START_MS).await;
    while due[0].key.lock().unwrap().is_some() {
        yield_now().await;
    }
    let before = connections.driven();
    assert!(
        before <= 2 * MAX_SCHEDULED_PER_ITERATION,
        "it waited for {before} others"
    );
    while connections.driven() < 4 * MAX_SCHEDULED_PER_ITERATION + 1 {
        yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn connections_that_come_one_by_one_share_a_task_and_do_not_wake_it() {
    let connections = TestConnections::new();
    let driver = &connections.driver;
    let open_and_close = |deadline| {
        let connection = &connections.add(1, deadline)[0];
        let key = connection.key.lock().unwrap().take();
        driver.remove(key.expect("not driven"));
    };
    open_and_close(SLOT_START_MS);
    yield_now().await;
    assert_eq!(asleep_until(driver), Some(MAX_UNUSED_MILLIS));
    for _ in 0..3 {
        advance_to(driver, driver.clock.now().ceil_millis() + 300).await;
        open_and_close(SLOT_START_MS);
        assert_eq!(asleep_until(driver), Some(MAX_UNUSED_MILLIS), "woken");
    }
    advance_to(driver, MAX_UNUSED_MILLIS).await;
    yield_now().await;
    assert!(matches!(lock(&driver.queue).task, TaskState::None));
}

#[tokio::test(start_paused = true)]
async fn only_a_deadline_before_the_one_for_which_the_task_sleeps_wakes_it() {
    let connections = TestConnections::new();
    let driver = &connections.driver;
    // Within the first ring of the wheel, where each slot is one tick.
    connections.add(1, 40);
    yield_now().await;
    assert_eq!(asleep_until(driver), Some(40));
    let late = connections.add(2, 50);
    for deadline in [45, 60] {
        let key = late[0].key.lock().unwrap().expect("not driven");
        driver.rearm(key, deadline);
    }
    assert_eq!(asleep_until(driver), Some(40), "woken");
    let key = late[1].key.lock().unwrap().expect("not driven");
    driver.rearm(key, 39);
    assert_eq!(asleep_until(driver), None);
    yield_now().await;
    assert_eq!(asleep_until(driver), Some(39));
    connections.add(1, 38);
    assert_eq!(asleep_until(driver), None);
}
