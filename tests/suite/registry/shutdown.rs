//! The shutdown in one call: its phases, its deadline, its report, and more than one call.

use std::future::{pending, ready};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tower_ws_liveness::{Drain, Liveness, Reason, Registry, ShutdownPlan, ShutdownReport};

use super::drained::*;
use crate::script::*;

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A plan without a delay, a time for handlers, and a spread.
fn at_once() -> ShutdownPlan {
    let plan = ShutdownPlan::new().delay(Duration::ZERO);
    plan.handler_grace(Duration::ZERO).spread(Duration::ZERO)
}

fn shut_down(registry: &Registry, plan: ShutdownPlan) -> JoinHandle<ShutdownReport> {
    let registry = registry.clone();
    tokio::spawn(async move { registry.shutdown(ready(()), plan).await })
}

/// The code and the text of the first Close frame that the peer received.
fn close_frame(peer: &Peer) -> (u16, String) {
    let frames = peer.frames();
    let close = frames.iter().find(|frame| frame.opcode() == CLOSE).unwrap();
    let code = u16::from_be_bytes(close.payload[..2].try_into().unwrap());
    (
        code,
        String::from_utf8(close.payload[2..].to_vec()).unwrap(),
    )
}

#[test]
fn the_defaults_are_as_documented() {
    let plan = ShutdownPlan::default()
        .delay(seconds(5))
        .handler_grace(seconds(5))
        .spread(seconds(5))
        .deadline(seconds(25))
        .code(1001)
        .reason("server is going away");
    assert_eq!(plan, ShutdownPlan::new());
    assert_eq!(ShutdownReport::default().open(), 0);
}

// The phases.

#[tokio::test(start_paused = true)]
async fn the_phases_follow_each_other_from_the_signal_on() {
    let mut scene = DrainScene::with_closing_peers(10);
    let readiness = scene.registry.readiness();
    let begun = Instant::now();
    let registry = scene.registry.clone();
    let shutdown = tokio::spawn(async move {
        let signal = sleep(seconds(60));
        registry.shutdown(signal, ShutdownPlan::new()).await
    });
    sleep(ms(59_990)).await;
    assert!(readiness.is_ready());

    // The signal was at 60 s.
    sleep(ms(20)).await;
    assert!(!readiness.is_ready());
    sleep(ms(4_980)).await;
    assert!(!scene.registry.is_draining());
    scene.open_closing();
    assert_eq!(scene.registry.len(), 11, "admitted during the delay");

    // At 65 s handlers are woken.
    sleep(ms(20)).await;
    assert!(scene.registry.is_draining());
    sleep(ms(4_970)).await;
    assert_eq!(scene.recorder.total(), 0);

    // At 70 s the evictions begin.
    sleep(ms(40)).await;
    assert_eq!(scene.recorder.total(), 1);
    let report = shutdown.await.unwrap();
    assert_eq!((report.open(), report.closed_by_handlers()), (11, 0));
    assert_eq!(counts(report.drained()), (11, 0, 0));
    assert_eq!(report.elapsed() + seconds(60), begun.elapsed());
    scene.assert_all_evicted(Reason::Drained);
    let (.., peer) = &scene.connections[0];
    let expected = (1001, "server is going away".to_owned());
    assert_eq!(close_frame(peer), expected);
}

/// As handlers on other threads may, before `begin_drain` has returned.
#[tokio::test(start_paused = true)]
async fn a_connection_that_its_woken_handler_ends_is_counted() {
    struct EvictWhenWoken(Liveness);

    impl Wake for EvictWhenWoken {
        fn wake(self: Arc<Self>) {
            self.0.evict(1001, "");
        }
    }

    let scene = DrainScene::with_closing_peers(2);
    let (_, live, _) = &scene.connections[0];
    let mut draining = pin!(live.draining());
    let waker = Waker::from(Arc::new(EvictWhenWoken(live.clone())));
    let polled = draining.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    let report = shut_down(&scene.registry, at_once()).await.unwrap();
    assert_eq!((report.open(), report.closed_by_handlers()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn evictions_are_distributed_over_the_spread() {
    for _ in 0..20 {
        let scene = DrainScene::with_closing_peers(11);
        let begun = Instant::now();
        let report = shut_down(&scene.registry, at_once().spread(seconds(10)));
        assert_eq!(counts(report.await.unwrap().drained()), (11, 0, 0));
        let events = scene.recorder.all();
        assert_eq!(events[0].at, begun);
        for pair in events.windows(2) {
            let pause = pair[1].at - pair[0].at;
            assert!(pause >= ms(500) && pause <= ms(1_501), "{pause:?}");
        }
    }
    // The deadline leaves the drain 2 s, and the evictions the first half of it.
    let scene = DrainScene::with_closing_peers(100);
    let begun = Instant::now();
    let plan = at_once().spread(Duration::MAX).deadline(seconds(2));
    shut_down(&scene.registry, plan).await.unwrap();
    let events = scene.recorder.all();
    let last = events[99].at - begun;
    assert!(last <= seconds(1) && last >= ms(500), "{last:?}");
}

#[tokio::test(start_paused = true)]
async fn handlers_that_close_their_connections_end_the_wait_for_them() {
    let mut scene = DrainScene::with_closing_peers(3);
    for (stream, live, _) in scene.connections.drain(..) {
        tokio::spawn(async move {
            live.draining().await;
            sleep(seconds(1)).await;
            drop(stream);
        });
    }
    let report = shut_down(&scene.registry, ShutdownPlan::new());
    let report = report.await.unwrap();
    assert_eq!((report.open(), report.closed_by_handlers()), (3, 3));
    assert_eq!(counts(report.drained()), (0, 0, 0));
    assert!(report.elapsed() <= ms(6_010), "{report:?}");
    let reasons = scene.recorder.all();
    assert!(
        reasons
            .iter()
            .all(|one| one.reason == Reason::HandlerDropped)
    );
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_opens_after_the_delay_is_sent_the_frame_of_the_plan() {
    let mut scene = DrainScene::with_silent_peers(1);
    let plan = at_once().handler_grace(seconds(5)).code(1012);
    let shutdown = shut_down(&scene.registry, plan.reason("version 7"));
    sleep(seconds(1)).await;
    scene.open_closing();
    sleep(ms(1)).await;
    let (_, live, peer) = scene.connections.last().unwrap();
    assert_eq!(live.evicted().await.reason(), Reason::Drained);
    assert_eq!(close_frame(peer), (1012, "version 7".to_owned()));
    let report = shutdown.await.unwrap();
    assert_eq!((report.open(), report.drained().total()), (1, 1));
    let (.., peer) = &scene.connections[0];
    assert_eq!(close_frame(peer), (1012, "version 7".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_code_that_must_not_be_sent_is_replaced() {
    let scene = DrainScene::with_closing_peers(1);
    let report = shut_down(&scene.registry, at_once().code(1006)).await;
    assert_eq!(report.unwrap().drained().clean(), 1);
    assert_eq!(close_codes(&scene.connections[0].2), [1011]);
}

// The deadline.

#[tokio::test(start_paused = true)]
async fn the_deadline_is_counted_from_the_signal_and_shortens_every_phase() {
    let long = seconds(3_600);
    let plans = [
        at_once(),
        at_once().delay(long),
        at_once().handler_grace(long),
        at_once().spread(long),
        at_once().delay(Duration::MAX).handler_grace(Duration::MAX),
        ShutdownPlan::new().spread(Duration::MAX),
    ];
    for deadline in [0, 1, 2_000, 12_000] {
        for plan in &plans {
            let scene = DrainScene::with_silent_peers(5);
            let plan = plan.clone().deadline(ms(deadline));
            let report = shut_down(&scene.registry, plan.clone()).await.unwrap();
            let elapsed = report.elapsed();
            assert!(elapsed >= ms(deadline), "{elapsed:?}: {plan:?}");
            assert!(elapsed <= ms(deadline + 3), "{elapsed:?}: {plan:?}");
            assert_eq!(counts(report.drained()), (0, 5, 0), "{plan:?}");
            scene.assert_all_evicted(Reason::Drained);
            for (.., peer) in &scene.connections {
                assert_eq!(close_codes(peer), [1001], "{plan:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_endless_deadline_is_accepted() {
    let scene = DrainScene::with_closing_peers(2);
    let report = shut_down(&scene.registry, at_once().deadline(Duration::MAX)).await;
    assert_eq!(counts(report.unwrap().drained()), (2, 0, 0));
}

// More than one call.

#[tokio::test(start_paused = true)]
async fn a_call_after_a_shutdown_finds_nothing_and_has_no_delay() {
    let scene = DrainScene::with_closing_peers(2);
    let first = shut_down(&scene.registry, ShutdownPlan::new());
    assert_eq!(first.await.unwrap().open(), 2);
    let begun = Instant::now();
    let second = shut_down(&scene.registry, ShutdownPlan::new());
    assert_eq!(second.await.unwrap(), ShutdownReport::default());
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn concurrent_calls_count_each_connection_once() {
    for delay in [ms(0), ms(500), seconds(7), seconds(12)] {
        let scene = DrainScene::with_closing_peers(100);
        let one = shut_down(&scene.registry, ShutdownPlan::new());
        sleep(delay).await;
        let other = shut_down(&scene.registry, ShutdownPlan::new());
        let (one, other) = (one.await.unwrap(), other.await.unwrap());
        assert_eq!(one.open(), 100, "{delay:?}");
        let (one, other) = (one.drained(), other.drained());
        assert_eq!(one.clean() + other.clean(), 100, "{one:?} {other:?}");
        assert_eq!(one.cut() + other.cut(), 0, "{one:?} {other:?}");
        scene.assert_all_evicted(Reason::Drained);
    }
}

#[tokio::test(start_paused = true)]
async fn the_earlier_deadline_of_two_calls_cuts() {
    for (first, second) in [(40, 3), (3, 40)] {
        let scene = DrainScene::with_silent_peers(10);
        let begun = Instant::now();
        let one = shut_down(&scene.registry, at_once().deadline(seconds(first)));
        sleep(ms(10)).await;
        let other = shut_down(&scene.registry, at_once().deadline(seconds(second)));
        let (one, other) = (one.await.unwrap().drained(), other.await.unwrap().drained());
        assert_eq!(one.cut() + other.cut(), 10, "{one:?} {other:?}");
        assert!(begun.elapsed() <= ms(3_020), "{:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_another_call_begins_ends_the_delay() {
    let scene = DrainScene::with_closing_peers(4);
    let plan = at_once().delay(seconds(20));
    let shutdown = shut_down(&scene.registry, plan);
    sleep(seconds(1)).await;
    assert_eq!(scene.registry.len(), 4);
    scene.registry.begin_drain();
    let report = shutdown.await.unwrap();
    assert_eq!(counts(report.drained()), (4, 0, 0));
    assert!(report.elapsed() <= ms(1_010), "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn a_call_during_a_drain_has_no_delay_and_shares_the_connections() {
    let scene = DrainScene::with_closing_peers(10);
    let registry = scene.registry.clone();
    let drain = Drain::default().batch(1).pause(seconds(1));
    let draining = tokio::spawn(async move { registry.drain(drain).await });
    sleep(ms(10)).await;
    assert_eq!(scene.registry.len(), 9);
    let plan = at_once().delay(seconds(3_600));
    let report = shut_down(&scene.registry, plan).await.unwrap();
    assert!(report.elapsed() <= ms(10), "{report:?}");
    assert_eq!((report.open(), report.drained().clean()), (9, 9));
    assert_eq!(counts(draining.await.unwrap()), (1, 0, 9));
    scene.assert_all_evicted(Reason::Drained);
}

// Cancelled calls.

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_before_its_signal_changes_nothing() {
    let scene = DrainScene::with_silent_peers(1);
    let shutdown = scene.registry.shutdown(pending(), ShutdownPlan::new());
    assert!(timeout(seconds(3_600), shutdown).await.is_err());
    assert!(scene.registry.readiness().is_ready());
    assert!(!scene.registry.is_draining());
    assert_eq!(scene.registry.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn another_call_continues_a_dropped_one() {
    // Dropped in the delay, while handlers finish, and during the drain.
    for dropped_after in [seconds(2), seconds(7), seconds(12)] {
        let scene = DrainScene::with_closing_peers(100);
        {
            let shutdown = pin!(scene.registry.shutdown(ready(()), ShutdownPlan::new()));
            assert!(timeout(dropped_after, shutdown).await.is_err());
        }
        assert!(!scene.registry.readiness().is_ready());
        assert_eq!(scene.registry.is_draining(), dropped_after > seconds(5));
        let left = scene.registry.len();
        sleep(seconds(60)).await;
        assert_eq!(
            scene.registry.len(),
            left,
            "dropped after {dropped_after:?}"
        );
        let report = shut_down(&scene.registry, at_once()).await.unwrap();
        assert_eq!((report.open(), report.drained().clean()), (left, left));
        scene.assert_all_evicted(Reason::Drained);
    }
}
