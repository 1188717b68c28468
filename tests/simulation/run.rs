//! Plays schedules, each in a runtime of its own, and tells of those that the oracle condemns.

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
use super::handler::{self, Observed};
use super::log::Event;
use super::plan::Plan;
use super::rng::Rng;
use super::transport::pump;
use super::world::{Shared, World, lock};
use super::{asks, bounds, calls, figures, fragments, idleness, leavings, opening, verdicts};

/// A schedule takes a millisecond or so. One that takes longer than this hangs.
const HANGS: Duration = Duration::from_secs(60);

/// So many complaints are listed.
const MOST_TOLD: usize = 100;

#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) trace: String,
    pub(crate) reason: &'static str,
    pub(crate) complaint: Option<String>,
}

thread_local! {
    /// What panicked on this thread, in whatever task. Runtimes catch panics and say nothing.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static COLLECTS: RefCell<bool> = const { RefCell::new(false) };
}

fn collect_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if COLLECTS.with_borrow(|collects| *collects) {
                PANICS.with_borrow_mut(|panics| panics.push(info.to_string()));
            } else {
                before(info);
            }
        }));
    });
}

/// Plays one schedule, and writes it down.
pub(crate) fn play(seed: u64) -> Outcome {
    judge(seed, true)
}

fn judge(seed: u64, in_full: bool) -> Outcome {
    collect_panics();
    let plan = Plan::draw(seed);
    COLLECTS.set(true);
    let played = catch_unwind(AssertUnwindSafe(|| simulate(&plan)));
    COLLECTS.set(false);
    let panics = PANICS.take();
    let Ok((world, left)) = played else {
        let (trace, reason) = (format!("{plan:#?}"), "none");
        return Outcome {
            trace,
            reason,
            complaint: Some(format!("(f) {panics:?}")),
        };
    };
    let world = lock(&world);
    let judged = catch_unwind(AssertUnwindSafe(|| {
        let facts = Facts::gather(&world)?;
        verdicts::check(&facts)?;
        bounds::check(&facts)?;
        idleness::check(&facts)?;
        fragments::check(&facts)?;
        leavings::check(&facts)?;
        figures::round_trips(&facts)?;
        figures::counters(&facts)?;
        calls::check(&facts)
    }));
    let complaint = match judged {
        _ if !panics.is_empty() => Some(format!("(f) {panics:?}")),
        _ if left > 0 => Some("(e) the registry still holds it".into()),
        Ok(verdict) => verdict.err(),
        Err(_) => Some("the oracle panicked".into()),
    };
    let reason = world.log.iter().find_map(|entry| match entry.event {
        Event::Evicted(told) => Some(told.reason.as_str()),
        _ => None,
    });
    let trace = match in_full || complaint.is_some() {
        true => tell(&world),
        false => String::new(),
    };
    Outcome {
        trace,
        reason: reason.unwrap_or("none"),
        complaint,
    }
}

fn tell(world: &World) -> String {
    let lines = world.log.iter().map(|entry| format!("{entry}\n"));
    format!("{:#?}\n{}", world.plan, lines.collect::<String>())
}

/// The world after it, and how many connections the registry holds.
fn simulate(plan: &Plan) -> (Shared, usize) {
    // The layer's own dice.
    fastrand::seed(plan.seed);
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.expect("a runtime").block_on(async {
        let world: Shared = Arc::new(Mutex::new(World::new(plan.clone())));
        let (stream, live, registry) = opening::open(&plan.config, &world).await;
        let socket = Observed {
            stream,
            world: world.clone(),
            reads: false,
            writes: false,
            flushes: false,
            shut: false,
            spends: plan.handler.spends,
            spent: None,
        };
        let pumping = tokio::spawn(pump(world.clone()));
        tokio::spawn(asks::run(world.clone(), live.clone(), plan.asks.clone()));
        let handling = tokio::spawn(handler::run(socket, live));
        let jumping = tokio::spawn(jump(world.clone(), plan.jumps.clone()));
        let until = lock(&world).instant(plan.until);
        sleep_until(until).await;
        lock(&world).note(Event::Over);
        jumping.abort();
        handling.abort();
        sleep(ms(plan.config.close_timeout + 50)).await;
        lock(&world).note(Event::End);
        pumping.abort();
        (world, registry.len())
    })
}

/// The process is suspended now and then.
async fn jump(world: Shared, mut jumps: Vec<(u64, u64)>) {
    jumps.sort_unstable();
    for (at, span) in jumps {
        let at = lock(&world).instant(at);
        sleep_until(at).await;
        lock(&world).note(Event::Jumped(span));
        advance(ms(span)).await;
    }
}

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Plays so many schedules on all cores. The first that is condemned is told, and fails the test.
pub(crate) fn all(base: u64, count: u64) {
    let mut condemned = Vec::new();
    for_each(base, count, |n, seed, outcome| {
        if let Some(complaint) = outcome.complaint {
            condemned.push((n, seed, complaint));
        }
    });
    condemned.sort();
    let Some((n, seed, complaint)) = condemned.first() else {
        return;
    };
    for (n, seed, complaint) in condemned.iter().take(MOST_TOLD) {
        println!("schedule {n}, {seed:#x}: {complaint}");
    }
    println!("{}", play(*seed).trace);
    panic!(
        "schedule {n} of {count} ({} failed): {complaint}\nreplay: SIMULATION_SEED={seed:#x} cargo \
         test --test simulation replay -- --nocapture",
        condemned.len(),
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
    let now: Arc<Vec<_>> = Arc::new((0..threads).map(|_| AtomicU64::new(0)).collect());
    let (tell, told) = channel();
    for thread in 0..threads {
        let (next, now, tell) = (next.clone(), now.clone(), tell.clone());
        thread::spawn(move || {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return;
                }
                let seed = Rng::new(base.wrapping_add(n)).next();
                now[thread].store(seed, Ordering::Relaxed);
                if tell.send((n, seed, judge(seed, false))).is_err() {
                    return;
                }
            }
        });
    }
    drop(tell);
    loop {
        match told.recv_timeout(HANGS) {
            Ok((n, seed, outcome)) => each(n, seed, outcome),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => panic!("one of these seeds hangs: {now:x?}"),
        }
    }
}
