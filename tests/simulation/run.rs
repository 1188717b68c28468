//! Plays schedules, each in a runtime of its own, and reports the rules that do not hold.

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, Once};
use std::thread;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::time::{advance, sleep, sleep_until};

use super::facts::Facts;
use super::handler::{self, ObservedStream};
use super::log::Event;
use super::plan::Plan;
use super::rng::Rng;
use super::transport::pump;
use super::world::{Shared, World, lock};
use super::{
    bounds, delivery, figures, fragments, handle_calls, idleness, lifetime, opening, ping_calls,
    reasons,
};

/// Time after which a schedule hangs. It normally takes about a millisecond.
const SCHEDULE_TIMEOUT: Duration = Duration::from_secs(60);

/// Number of failed schedules that are listed.
const MAX_LISTED_FAILURES: usize = 100;

#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) trace: String,
    pub(crate) reason: &'static str,
    pub(crate) violation: Option<String>,
}

thread_local! {
    /// Messages of the panics of this thread. Runtimes catch panics of tasks without a report.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static COLLECTING: RefCell<bool> = const { RefCell::new(false) };
}

fn collect_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if COLLECTING.with_borrow(|collects| *collects) {
                PANICS.with_borrow_mut(|panics| panics.push(info.to_string()));
            } else {
                before(info);
            }
        }));
    });
}

/// Plays one schedule, with its whole log.
pub(crate) fn play(seed: u64) -> Outcome {
    play_and_check(seed, true)
}

fn play_and_check(seed: u64, in_full: bool) -> Outcome {
    collect_panics();
    let plan = Plan::draw(seed);
    COLLECTING.set(true);
    let played = catch_unwind(AssertUnwindSafe(|| simulate(&plan)));
    COLLECTING.set(false);
    let panics = PANICS.take();
    let Ok((world, registered)) = played else {
        let (trace, reason) = (format!("{plan:#?}"), "none");
        return Outcome {
            trace,
            reason,
            violation: Some(format!("(f) {panics:?}")),
        };
    };
    let world = lock(&world);
    let checked = catch_unwind(AssertUnwindSafe(|| {
        let facts = Facts::gather(&world)?;
        reasons::check(&facts)?;
        bounds::check(&facts)?;
        idleness::check(&facts)?;
        lifetime::check(&facts)?;
        fragments::check(&facts)?;
        delivery::check(&facts)?;
        figures::round_trips(&facts)?;
        figures::counters(&facts)?;
        ping_calls::check(&facts)
    }));
    let violation = match checked {
        _ if !panics.is_empty() => Some(format!("(f) {panics:?}")),
        _ if registered > 0 => Some("(e) the registry still holds the connection".into()),
        Ok(verdict) => verdict.err(),
        Err(_) => Some("the oracle panicked".into()),
    };
    let reason = world.log.iter().find_map(|entry| match entry.event {
        Event::Evicted(report) => Some(report.reason.as_str()),
        _ => None,
    });
    let trace = match in_full || violation.is_some() {
        true => render(&world),
        false => String::new(),
    };
    Outcome {
        trace,
        reason: reason.unwrap_or("none"),
        violation,
    }
}

fn render(world: &World) -> String {
    let lines = world.log.iter().map(|entry| format!("{entry}\n"));
    format!("{:#?}\n{}", world.plan, lines.collect::<String>())
}

/// Returns the world at the end, and the number of connections that the registry still holds.
fn simulate(plan: &Plan) -> (Shared, usize) {
    // The layer draws its jitter and ping payloads from `fastrand`.
    fastrand::seed(plan.seed);
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.expect("a runtime").block_on(async {
        let world: Shared = Arc::new(Mutex::new(World::new(plan.clone())));
        let (stream, live, registry) = opening::open(&plan.config, &world).await;
        let socket = ObservedStream {
            stream,
            world: world.clone(),
            read_pending: false,
            write_pending: false,
            flush_pending: false,
            shutdown_called: false,
            spends: plan.handler.spends,
            exhausted_at: None,
        };
        let pumping = tokio::spawn(pump(world.clone()));
        tokio::spawn(handle_calls::run(
            world.clone(),
            live.clone(),
            plan.handle_calls.clone(),
        ));
        let handling = tokio::spawn(handler::run(socket, live));
        let standing_still = tokio::spawn(stand_still(world.clone(), plan.standstills.clone()));
        let until = lock(&world).instant(plan.duration);
        sleep_until(until).await;
        lock(&world).note(Event::Over);
        standing_still.abort();
        handling.abort();
        sleep(ms(plan.config.close_timeout + 50)).await;
        lock(&world).note(Event::End);
        pumping.abort();
        (world, registry.len())
    })
}

/// Suspends the process at the planned times.
async fn stand_still(world: Shared, mut standstills: Vec<(u64, u64)>) {
    standstills.sort_unstable();
    for (at, span) in standstills {
        let at = lock(&world).instant(at);
        sleep_until(at).await;
        lock(&world).note(Event::Standstill(span));
        advance(ms(span)).await;
    }
}

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Plays `count` schedules on all cores. Prints the first one that breaks a rule, and fails the
/// test.
pub(crate) fn assert_all_hold(base: u64, count: u64) {
    let mut failed = Vec::new();
    for_each(base, count, |n, seed, outcome| {
        if let Some(violation) = outcome.violation {
            failed.push((n, seed, violation));
        }
    });
    failed.sort();
    let Some((n, seed, violation)) = failed.first() else {
        return;
    };
    for (n, seed, violation) in failed.iter().take(MAX_LISTED_FAILURES) {
        println!("schedule {n}, {seed:#x}: {violation}");
    }
    println!("{}", play(*seed).trace);
    panic!(
        "schedule {n} of {count} ({} failed): {violation}\nreplay: SIMULATION_SEED={seed:#x} cargo \
         test --test simulation replay -- --nocapture",
        failed.len(),
    );
}

pub(crate) fn outcomes(base: u64, count: u64) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for_each(base, count, |_, _, outcome| outcomes.push(outcome));
    outcomes
}

fn for_each(base: u64, count: u64, mut each: impl FnMut(u64, u64, Outcome)) {
    let threads = thread::available_parallelism()
        .map_or(2, usize::from)
        .min(16);
    let next = Arc::new(AtomicU64::new(0));
    let current_seeds: Arc<Vec<_>> = Arc::new((0..threads).map(|_| AtomicU64::new(0)).collect());
    let (outcomes_tx, outcomes_rx) = channel();
    for thread in 0..threads {
        let (next, current_seeds, outcomes_tx) =
            (next.clone(), current_seeds.clone(), outcomes_tx.clone());
        thread::spawn(move || {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return;
                }
                let seed = Rng::new(base.wrapping_add(n)).next();
                current_seeds[thread].store(seed, Ordering::Relaxed);
                if outcomes_tx
                    .send((n, seed, play_and_check(seed, false)))
                    .is_err()
                {
                    return;
                }
            }
        });
    }
    drop(outcomes_tx);
    loop {
        match outcomes_rx.recv_timeout(SCHEDULE_TIMEOUT) {
            Ok((n, seed, outcome)) => each(n, seed, outcome),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                panic!("one of these seeds hangs: {current_seeds:x?}")
            }
        }
    }
}
