//! Health hooks receive each change once, in order, and nothing after the end.
//!
//! They are called outside every lock; they may panic, block, or end the connection.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;

use axum::Router;
use tokio::io::AsyncReadExt;
use tokio::time::sleep;
use tower_ws_liveness::{
    Eviction, Health, HealthChange, IdleTimeoutLayer, Liveness, OnHealth, Reason,
};

use super::health_changes::Changes;
use crate::script::*;
use crate::support::raw::{Answer, RawClient};
use crate::support::{echo_route, in_memory, until, within};

const SILENT: Health = Health::PeerSilent { missed: 0 };

/// The connection's handle, for hooks built before the connection opens.
type Slot = Arc<OnceLock<Liveness>>;

fn handle(slot: &Slot) -> &Liveness {
    slot.get()
        .expect("the handle is set before the hook is called")
}

/// A client that leaves the first ping unanswered.
async fn silent_client(app: Router) -> RawClient<tokio::io::DuplexStream> {
    let client = RawClient::handshake(in_memory(app, 64 * 1024), "/ws").await;
    let mut client = client.answering(Answer::Nothing);
    client.expect_ping().await;
    sleep(ms(30)).await;
    client
}

#[tokio::test(start_paused = true)]
async fn the_hooks_of_stacked_layers_are_called_once_each() {
    let [outer, inner, idle, shared] = [(); 4].map(|()| Changes::new());
    let twice = heartbeat().missed_pings(3).on_health(shared.hook());
    let idle_layer = IdleTimeoutLayer::builder().on_health(idle.hook());
    let app = Router::new()
        .route("/ws", echo_route())
        .layer(twice.clone().on_health(inner.hook()).build().unwrap())
        .layer(idle_layer.build().unwrap())
        .layer(twice.on_health(outer.hook()).build().unwrap());
    let _client = silent_client(app).await;
    for changes in [outer, inner, idle, shared] {
        assert_eq!(changes.states(), [SILENT]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_hook_is_called_on_whichever_layer_it_is_set() {
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
        let _client = silent_client(app).await;
        assert_eq!(changes.states(), [SILENT], "{layers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn hooks_may_be_types_and_are_called_in_order() {
    struct Named(&'static str, mpsc::Sender<&'static str>);

    impl OnHealth for Named {
        fn on_health(&self, change: &HealthChange) {
            assert_eq!((change.from(), change.to()), (Health::Live, SILENT));
            self.1.send(self.0).unwrap();
        }
    }

    let (tx, rx) = mpsc::channel();
    let builder = heartbeat()
        .on_health_hook(Named("first", tx.clone()))
        .on_health_hook(Named("second", tx.clone()))
        .on_health_hook(Named("third", tx));
    let (_stream, _live, _peer) = wrap_with(builder);
    sleep(ms(140)).await;
    assert_eq!(
        rx.try_iter().collect::<Vec<_>>(),
        ["first", "second", "third"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_panics_does_not_affect_the_others() {
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
            // A change that the hook itself causes is reported after this one.
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
async fn a_change_gives_the_handle_of_its_connection() {
    let changes = Changes::new();
    let builder = heartbeat()
        .missed_pings(5)
        .on_health(changes.hook())
        .on_health(|change: &HealthChange| {
            assert_eq!(change.live().id(), change.id());
            assert_eq!(change.live().health(), change.to());
            assert!(change.live().evict_as("unwell", 4001, "not well"));
        });
    let (stream, live, peer) = wrap_with(builder);
    let end = within("the end", live.evicted()).await;
    assert_eq!((end.label(), changes.total()), ("unwell", 1));
    // A change that is kept does not keep the transport.
    drop(stream);
    within("the release", live.closed()).await;
    assert!(peer.is_dropped());
    assert_eq!(changes.all()[0].live().age(), end.lifetime());
}

#[tokio::test(start_paused = true)]
async fn a_hook_may_evict_and_no_later_health_hook_is_called() {
    let slot = Slot::default();
    let (tx, rx) = mpsc::channel();
    let evict_tx = tx.clone();
    let (first, later) = (Changes::new(), Changes::new());
    let builder = heartbeat()
        .missed_pings(5)
        .on_health(first.hook())
        .on_health({
            let slot = Arc::clone(&slot);
            move |_: &HealthChange| {
                assert!(handle(&slot).evict(4001, "not well"));
                assert_eq!(handle(&slot).health(), Health::Ended);
                tx.send("evicted").unwrap();
            }
        })
        .on_health(later.hook())
        .on_evict(move |ev: &Eviction| {
            assert_eq!(ev.reason(), Reason::Kicked { code: 4001 });
            evict_tx.send("on_evict").unwrap();
        });
    let (mut stream, live, peer) = wrap_with(builder);
    slot.set(live.clone()).unwrap();
    assert!(stream.read_u8().await.is_err());
    sleep(ms(10_000)).await;
    assert!(peer.is_dropped());
    assert_eq!(rx.try_iter().collect::<Vec<_>>(), ["on_evict", "evicted"]);
    assert_eq!(first.states(), [SILENT]);
    assert_eq!(later.total(), 0);
}

// In real time: tokio's paused clock does not advance while a worker is blocked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_during_a_blocked_hook_follow_it_or_are_dropped_at_the_end() {
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
        // The driver detects the silence and blocks in the hook.
        until("the hook is called", || changes.total() == 1).await;
        let wakes = Wakes::new();
        peer.send(&frame(0x80 | TEXT, Some([1; 4]), b"x"));
        assert!(!got(poll_read(&mut stream, &wakes, 64)).is_empty());
        let close = frame(0x80 | CLOSE, None, &1000_u16.to_be_bytes());
        assert!(poll_write(&mut stream, &wakes, &close).is_ready());
        assert_eq!(live.health(), Health::Closing);
        if ends {
            assert!(
                live.evict(1000, "bye"),
                "eviction does not wait for the hook"
            );
            drop(stream);
        }
        assert_eq!(changes.states(), [SILENT], "one at a time");
        drop(release);
        if ends {
            until("the transport is closed", || peer.is_dropped()).await;
            assert_eq!(changes.states(), [SILENT]);
        } else {
            until("all changes are reported", || changes.total() == 3).await;
            assert_eq!(changes.states(), [SILENT, Health::Live, Health::Closing]);
        }
    }
}

#[test]
fn hooks_on_two_threads_are_called_in_order_and_never_overlap() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let changes = Changes::new();
        let record = changes.hook();
        let (inside, overlaps) = (AtomicBool::new(false), Arc::new(AtomicUsize::new(0)));
        let begun = Arc::new(AtomicUsize::new(0));
        let (counted, calls) = (Arc::clone(&overlaps), Arc::clone(&begun));
        let builder = heartbeat()
            .interval(ms(2))
            .timeout(ms(2))
            .missed_pings(255)
            .on_health(move |change: &HealthChange| {
                calls.fetch_add(1, Ordering::SeqCst);
                if inside.swap(true, Ordering::SeqCst) {
                    counted.fetch_add(1, Ordering::SeqCst);
                }
                thread::yield_now();
                record(change);
                inside.store(false, Ordering::SeqCst);
            });
        let (mut stream, live, peer) = wrap_with(builder);
        // The driver detects each silence; this thread ends it by reading.
        let reading = thread::spawn({
            let live = live.clone();
            move || {
                let text = frame(0x80 | TEXT, Some([1; 4]), b"x");
                let wakes = Wakes::new();
                while live.health() != Health::Ended {
                    peer.send(&text);
                    let _ = poll_read(&mut stream, &wakes, 64);
                    thread::sleep(ms(7));
                }
            }
        });
        until("many changes", || changes.total() >= 200).await;
        assert!(live.evict(1000, "enough"));
        let reading = tokio::task::spawn_blocking(move || reading.join().unwrap());
        within("the reader", reading).await.unwrap();
        let begun_by_the_end = begun.load(Ordering::SeqCst);
        let states = changes.states();
        let recoveries = states.iter().filter(|state| **state == Health::Degraded);
        assert!(recoveries.count() >= 10, "{states:?}");
        assert_eq!(overlaps.load(Ordering::SeqCst), 0);
        sleep(ms(50)).await;
        // A call that began before the end may be recorded after it.
        assert_eq!(
            begun.load(Ordering::SeqCst),
            begun_by_the_end,
            "none begins after the end"
        );
    });
}

#[tokio::test(start_paused = true)]
async fn the_driver_visits_a_stalled_connection_early_only_for_a_hook() {
    for hooked in [false, true] {
        let builder = heartbeat().interval(ms(100_000)).write_timeout(ms(100_000));
        let builder = match hooked {
            true => builder.on_health(|_: &HealthChange| {}),
            false => builder,
        };
        let (mut stream, live, peer) = wrap_with(builder);
        peer.write_steps(&[WAIT]);
        assert!(poll_write(&mut stream, &Wakes::new(), b"\x81\x00").is_pending());
        // Bytes that the handler does not read are found only when the driver visits.
        peer.send(&frame(0x80 | TEXT, Some([1; 4]), b"x"));
        sleep(ms(60_000)).await;
        assert_eq!(live.stats().bytes_received() > 0, hooked);
    }
}
