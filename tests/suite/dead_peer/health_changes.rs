//! A recorder of the health changes that a hook receives.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use tower_ws_liveness::{Health, HealthChange};

/// Lateness allowed for a change: the driver's tick, and one polling step of the test.
const TICK: Duration = Duration::from_millis(2);

/// Every change that one hook received, with its time.
#[derive(Clone)]
pub(crate) struct Changes {
    start: Instant,
    received: Arc<Mutex<Vec<(Instant, HealthChange)>>>,
}

impl Changes {
    /// Measures times from now.
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            received: Arc::default(),
        }
    }

    pub(crate) fn hook(&self) -> impl Fn(&HealthChange) + Send + Sync + 'static {
        let received = Arc::clone(&self.received);
        move |change| {
            received
                .lock()
                .unwrap()
                .push((Instant::now(), change.clone()))
        }
    }

    pub(crate) fn all(&self) -> Vec<HealthChange> {
        let received = self.received.lock().unwrap();
        received.iter().map(|(_, change)| change.clone()).collect()
    }

    pub(crate) fn total(&self) -> usize {
        self.received.lock().unwrap().len()
    }

    /// The states in the order received. Asserts that each change starts from the previous state.
    #[track_caller]
    pub(crate) fn states(&self) -> Vec<Health> {
        let mut previous = Health::Live;
        let received = self.all();
        for change in &received {
            assert_eq!(change.from(), previous, "{received:?}");
            assert_ne!(change.from(), change.to(), "{received:?}");
            assert_eq!(change.id(), received[0].id());
            previous = change.to();
        }
        received.iter().map(HealthChange::to).collect()
    }

    /// Asserts the states received so far, and how many milliseconds after the start.
    #[track_caller]
    pub(crate) fn assert_at(&self, expected: &[(u64, Health)]) {
        let states: Vec<_> = expected.iter().map(|(_, state)| *state).collect();
        assert_eq!(self.states(), states);
        let received = self.received.lock().unwrap();
        for ((at, change), (millis, _)) in received.iter().zip(expected) {
            let (after, due) = (*at - self.start, Duration::from_millis(*millis));
            assert!(
                after >= due && after <= due + TICK,
                "{:?} after {after:?}, expected after {due:?}",
                change.to()
            );
        }
    }
}
