//! How health hooks are told: each change once, in order, outside every lock, whatever the hooks do,
//! and nothing after the end.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;

use axum::Router;
use tokio::io::AsyncReadExt;
use tokio::time::sleep;
use tower_ws_liveness::{
    Eviction, Health, HealthChange, IdleTimeoutLayer, Liveness, OnHealth, Reason,
};

use super::changes::Changes;
use crate::script::*;
use crate::support::raw::{Answer, RawClient};
use crate::support::{echo_route, in_memory, until, within};

const SILENT: Health = Health::PeerSilent { missed: 0 };

/// The handle of the connection, for hooks that are made before it.
type Slot = Arc<OnceLock<Liveness>>;

fn handle(slot: &Slot) -> &Liveness {
    slot.get().expect("the hook is called later")
}

/// One ping that nobody answers.
async fn silence(app: Router) -> RawClient<tokio::io::DuplexStream> {
    let client = RawClient::handshake(in_memory(app, 64 * 1024), "/ws").await;
    let mut client = client.answering(Answer::Nothing);
    client.expect_ping().await;
    sleep(ms(30)).await;
    client
}

#[tokio::test(start_paused = true)]
async fn the_hooks_of_stacked_layers_are_told_once_each() {
    let [outer, inner, idle, shared] = [(); 4].map(|()| Changes::new());
    let twice = heartbeat().missed_pings(3).on_health(shared.hook());
    let idle_layer = IdleTimeoutLayer::builder().on_health(idle.hook());
    let app = Router::new()
        .route("/ws", echo_route())
        .layer(twice.clone().on_health(inner.hook()).build().unwrap())
        .layer(idle_layer.build().unwrap())
        .layer(twice.on_health(outer.hook()).build().unwrap());
    let _client = silence(app).await;
    for changes in [outer, inner, idle, shared] {
        assert_eq!(changes.states(), [SILENT]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_layer_with_a_hook_may_be_any_of_several() {
    for layers in [[true, false], [false, true]] {
        let changes = Changes::new();
        let mut app = Router::new().route("/ws", echo_route());
        for hooked in layers {
            let builder = heartbeat().missed_pings(3);
            let builder = match hooked {
                true => builder.on_health(changes.hook()),
                false => builder,
            };
            app = app.layer(builder.build().unwrap());
        }
        let _client = silence(app).await;
        assert_eq!(changes.states(), [SILENT], "{layers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn hooks_are_types_too_and_come_in_order() {
    struct Named(&'static str, mpsc::Sender<&'static str>);

    impl OnHealth for Named {
        fn on_health(&self, change: &HealthChange) {
            assert_eq!((change.from(), change.to()), (Health::Live, SILENT));
            self.1.send(self.0).unwrap();
        }
    }

    let (tell, told) = mpsc::channel();
    let builder = heartbeat()
        .on_health(Named("first", tell.clone()))
        .on_health(Named("second", tell.clone()))
        .on_health(Named("third", tell));
    let (_stream, _live, _peer) = wrap_with(builder);
    sleep(ms(140)).await;
    assert_eq!(
        told.try_iter().collect::<Vec<_>>(),
        ["first", "second", "third"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_panics_harms_nobody() {
    let (before, after) = (Changes::new(), Changes::new());
    let builder = heartbeat()
        .missed_pings(2)
        .on_health(before.hook())
        .on_health(|change: &HealthChange| panic!("of {}", change.id()))
        .on_health(after.hook());
    let (_stream, live, _peer) = wrap_with(builder);
    let end = within("the end", live.evicted()).await;
    assert_eq!(end.reason(), Reason::HeartbeatTimeout { missed: 2 });
    for changes in [before, after] {
        assert_eq!(changes.states(), [SILENT, Health::PeerSilent { missed: 1 }]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_hook_may_use_the_handle() {
    let slot = Slot::default();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let builder = heartbeat().missed_pings(5).on_health({
        let (slot, seen) = (Arc::clone(&slot), Arc::clone(&seen));
        move |change: &HealthChange| {
            let live = handle(&slot);
            assert_eq!(live.health(), change.to());
            assert_eq!(live.stats(), change.stats());
            // A change by the hook itself is told after this one.
            live.set_timeout(ms(20)).unwrap();
            seen.lock().unwrap().push(change.to());
        }
    });
    let (_stream, live, _peer) = wrap_with(builder);
    slot.set(live.clone()).unwrap();
    within("the end", live.evicted()).await;
    let expected = [0, 1, 2, 3, 4].map(|missed| Health::PeerSilent { missed });
    assert_eq!(*seen.lock().unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_hook_may_end_the_connection_and_nobody_is_told_more() {
    let slot = Slot::default();
    let (tell, told) = mpsc::channel();
    let by_evict = tell.clone();
    let (first, later) = (Changes::new(), Changes::new());
    let builder = heartbeat()
        .missed_pings(5)
        .on_health(first.hook())
        .on_health({
            let slot = Arc::clone(&slot);
            move |_: &HealthChange| {
                assert!(handle(&slot).evict(4001, "not well"));
                assert_eq!(handle(&slot).health(), Health::Ended);
                tell.send("evicted").unwrap();
            }
        })
        .on_health(later.hook())
        .on_evict(move |ev: &Eviction| {
            assert_eq!(ev.reason(), Reason::Kicked { code: 4001 });
            by_evict.send("on_evict").unwrap();
        });
    let (mut stream, live, peer) = wrap_with(builder);
    slot.set(live.clone()).unwrap();
    assert!(stream.read_u8().await.is_err());
    sleep(ms(10_000)).await;
    assert!(peer.is_dropped());
    assert_eq!(told.try_iter().collect::<Vec<_>>(), ["on_evict", "evicted"]);
    assert_eq!(first.states(), [SILENT]);
    assert_eq!(later.total(), 0);
}

// In real time: tokio's clock does not move by itself while a worker is blocked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_while_a_hook_is_busy_is_told_after_it_or_dropped() {
    for ends in [false, true] {
        let (release, released) = mpsc::channel::<()>();
        let released = Mutex::new(released);
        let changes = Changes::new();
        let record = changes.hook();
        let builder = heartbeat()
            .interval(ms(10))
            .timeout(ms(200))
            .missed_pings(255)
            .on_health(move |change: &HealthChange| {
                record(change);
                let _ = released.lock().unwrap().recv();
            });
        let (mut stream, live, peer) = wrap_with(builder);
        // The driver sees the silence, and is held up by the hook.
        until("a busy hook", || changes.total() == 1).await;
        let wakes = Wakes::new();
        peer.send(&frame(0x80 | TEXT, Some([1; 4]), b"x"));
        assert!(!got(poll_read(&mut stream, &wakes, 64)).is_empty());
        let close = frame(0x80 | CLOSE, None, &1000_u16.to_be_bytes());
        assert!(poll_write(&mut stream, &wakes, &close).is_ready());
        assert_eq!(live.health(), Health::Closing);
        if ends {
            assert!(live.evict(1000, "bye"), "nobody waits for the hook");
            drop(stream);
        }
        assert_eq!(changes.states(), [SILENT], "one at a time");
        drop(release);
        if ends {
            until("the transport is closed", || peer.is_dropped()).await;
            assert_eq!(changes.states(), [SILENT]);
        } else {
            until("all are told", || changes.total() == 3).await;
            assert_eq!(changes.states(), [SILENT, Health::Live, Health::Closing]);
        }
    }
}

#[test]
fn two_threads_tell_in_order_and_one_at_a_time() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let changes = Changes::new();
        let record = changes.hook();
        let (inside, overlaps) = (AtomicBool::new(false), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&overlaps);
        let builder = heartbeat()
            .interval(ms(2))
            .timeout(ms(2))
            .missed_pings(255)
            .on_health(move |change: &HealthChange| {
                if inside.swap(true, Ordering::SeqCst) {
                    counted.fetch_add(1, Ordering::SeqCst);
                }
                thread::yield_now();
                record(change);
                inside.store(false, Ordering::SeqCst);
            });
        let (mut stream, live, peer) = wrap_with(builder);
        // The driver sees the silences; this thread ends them, by reading.
        let reading = thread::spawn({
            let live = live.clone();
            move || {
                let said = frame(0x80 | TEXT, Some([1; 4]), b"x");
                let wakes = Wakes::new();
                while live.health() != Health::Ended {
                    peer.send(&said);
                    let _ = poll_read(&mut stream, &wakes, 64);
                    thread::sleep(ms(7));
                }
            }
        });
        until("many changes", || changes.total() >= 200).await;
        assert!(live.evict(1000, "enough"));
        let reading = tokio::task::spawn_blocking(move || reading.join().unwrap());
        within("the reader", reading).await.unwrap();
        let states = changes.states();
        let recoveries = states.iter().filter(|state| **state == Health::Degraded);
        assert!(recoveries.count() >= 10, "{states:?}");
        assert_eq!(overlaps.load(Ordering::SeqCst), 0);
        sleep(ms(50)).await;
        assert_eq!(
            changes.states().len(),
            states.len(),
            "nothing after the end"
        );
    });
}

#[tokio::test(start_paused = true)]
async fn connections_without_a_hook_are_not_visited_for_news() {
    for hooked in [false, true] {
        let builder = heartbeat().interval(ms(100_000)).write_timeout(ms(100_000));
        let builder = match hooked {
            true => builder.on_health(|_: &HealthChange| {}),
            false => builder,
        };
        let (mut stream, live, peer) = wrap_with(builder);
        peer.write_steps(&[WAIT]);
        assert!(poll_write(&mut stream, &Wakes::new(), b"\x81\x00").is_pending());
        // What nobody reads is found by the driver, if it comes by.
        peer.send(&frame(0x80 | TEXT, Some([1; 4]), b"x"));
        sleep(ms(60_000)).await;
        assert_eq!(live.stats().bytes_received() > 0, hooked);
    }
}
