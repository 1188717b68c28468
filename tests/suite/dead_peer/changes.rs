//! A recorder of what health hooks are told.
#![allow(dead_code)] // every test binary uses its own part of this

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use tower_ws_liveness::{Health, HealthChange};

/// What may be added to a time: the driver's tick, and a step of whoever looks.
const TICK: Duration = Duration::from_millis(2);

/// Everything that one hook was told.
#[derive(Clone)]
pub(crate) struct Changes {
    begun: Instant,
    told: Arc<Mutex<Vec<(Instant, HealthChange)>>>,
}

impl Changes {
    /// Times are counted from now.
    pub(crate) fn new() -> Self {
        Self {
            begun: Instant::now(),
            told: Arc::default(),
        }
    }

    pub(crate) fn hook(&self) -> impl Fn(&HealthChange) + Send + Sync + 'static {
        let told = Arc::clone(&self.told);
        move |change| told.lock().unwrap().push((Instant::now(), change.clone()))
    }

    pub(crate) fn all(&self) -> Vec<HealthChange> {
        let told = self.told.lock().unwrap();
        told.iter().map(|(_, change)| change.clone()).collect()
    }

    pub(crate) fn total(&self) -> usize {
        self.told.lock().unwrap().len()
    }

    /// The states in the order in which they were told, after checking that each change begins where
    /// the one before has ended.
    #[track_caller]
    pub(crate) fn states(&self) -> Vec<Health> {
        let mut before = Health::Live;
        let told = self.all();
        for change in &told {
            assert_eq!(change.from(), before, "{told:?}");
            assert_ne!(change.from(), change.to(), "{told:?}");
            assert_eq!(change.id(), told[0].id());
            before = change.to();
        }
        told.iter().map(HealthChange::to).collect()
    }

    /// Asserts what was told so far, and after how many milliseconds.
    #[track_caller]
    pub(crate) fn are(&self, expected: &[(u64, Health)]) {
        let states: Vec<_> = expected.iter().map(|(_, state)| *state).collect();
        assert_eq!(self.states(), states);
        let told = self.told.lock().unwrap();
        for ((at, change), (millis, _)) in told.iter().zip(expected) {
            let (after, due) = (*at - self.begun, Duration::from_millis(*millis));
            assert!(
                after >= due && after <= due + TICK,
                "{:?} after {after:?}, not {due:?}",
                change.to()
            );
        }
    }
}
